"""A few groups written down: for the report, which shows what was sampled and what became of it
(groups.jsonl), and for the person who watches.
"""

from PIL import Image

from data.example import Example
from data.images import data_url, open_image
from lib.log import visible


def thumbnail(example: Example, side: int = 320) -> str | None:
    """The image as a small PNG data address; tiny ones are enlarged without smoothing."""
    image = open_image(example)
    if image is None:
        return None
    scale = side / max(image.size)
    size = [max(1, round(length * scale)) for length in image.size]
    if scale < 1 or max(image.size) <= 64:
        smooth = Image.Resampling.LANCZOS if scale <= 1 else Image.Resampling.NEAREST
        image = image.resize(size, smooth)
    return data_url(image)


def group_line(step: int, group, mode: str, config, tokenizer) -> dict:
    """A Group as a line of groups.jsonl, for tools/report.py: what was asked, what the samples
    were, what became of them. A text that the update has learned from has its tokens' pushes.
    """
    sampled = [row for row in group.rows if row.loss == "grpo"]
    memorized = [row for row in group.rows if row.loss == "sft"]
    responses = []
    for g, response in enumerate(group.responses):
        rewards = {name: float(values[g]) for name, values in group.rewards.items()}
        pushes = token_pushes(sampled[g], config, tokenizer) if g < len(sampled) else []
        advantage = float(group.advantages[g])
        told = {"text": response.text, "advantage": advantage, "pushes": pushes}
        responses.append({**told, **rewards})
    return {
        "step": step,
        "question": group.example.question,
        "answer": group.example.answer,
        "facts": [list(fact) for fact in group.example.facts],
        "image": thumbnail(group.example),
        "mode": mode,
        "target": group.target,
        "target_pushes": sum((token_pushes(row, config, tokenizer) for row in memorized), []),
        "responses": responses,
    }


def token_pushes(row, config, tokenizer) -> list[tuple[str, float]]:
    """The text of each of a row's tokens, and its push: how strongly the step's first update raises
    the token's own logit, that is minus the gradient at it, in thousandths of a prompt's share.

    On paper weight * (1 - p) / (length * G): walkthrough.ipynb, section 6. Left out: the KL term,
    and the clipping of later updates.
    """
    p = row.logprobs.cpu().exp()
    pushes = row.weight * (1 - p) / config.num_generations
    if row.token_weight is not None:
        pushes = pushes * row.token_weight(p)
    if config.loss_type == "grpo":
        pushes = pushes / len(p)
    # read behind the token before it: alone, some tokenizers' tokens lose their blank
    ids = row.token_ids
    texts = [tokenizer.decode(ids[max(0, i - 1) : i + 1]) for i in range(len(ids))]
    heads = ["", *(tokenizer.decode([token]) for token in ids[:-1])]
    texts = [text[len(head) :] for text, head in zip(texts, heads)]
    return [(text, round(1000 * push, 3)) for text, push in zip(texts, pushes.tolist())]


def told_response(step: int, group, mode: str) -> str:
    """A group's question, its first response or what it memorizes, its rewards: three lines."""
    rewards, text = "memorized", group.target or ""
    if group.responses:
        rewards = {name: float(values[0]) for name, values in group.rewards.items()}
        rewards = ", ".join(f"{name} {value:.2f}" for name, value in rewards.items())
        text = group.responses[0].text.strip()
    lines = [f"step {step}, {mode}: {group.example.question}", text, rewards]
    lines = [" / ".join(visible(line).split("\n")) for line in lines]
    return "\n  ".join(line if len(line) < 300 else f"{line[:300]}…" for line in lines)
