"""A step's Groups written down: in numbers, a line of metrics.jsonl; a few of them whole, a line
each of groups.jsonl, for the report; one response, for the person who watches.

The numbers are sums first, so that several processes can add theirs up; then means, under TRL's
names where TRL has one. What to watch, and why, is in the README.
"""

from collections import Counter
from collections.abc import Iterable

from PIL import Image, ImageOps

from data.example import Example
from data.images import data_url, open_image
from lib.log import visible

PARTS = ("format", "accuracy", "thinking")
# means over a step's responses; correct: right and in the right format, what the switch counts
PER_RESPONSE = ["reward", *(f"rewards/{name}/mean" for name in PARTS), "correct"]
PER_RESPONSE += ["completions/mean_length", "completions/clipped_ratio", "distinct", "advantage"]
# over its groups, beside their modes
PER_GROUP = ("frac_reward_zero_std", "all_wrong", "all_right")
# over the tokens that were sampled and learned from: grpo_loss's name, the name of the mean
PER_TOKEN = {"kl": "kl", "ratio": "ratio", "approx_kl": "approx_kl"}
PER_TOKEN |= {"clip_low": "clip_ratio/low_mean", "clip_high": "clip_ratio/high_mean"}


def group_sums(groups: list, mode_names: tuple[str, ...]) -> Counter:
    """Sums over some Groups and their responses, to be added up over processes; see `means`."""
    sums = Counter(groups=len(groups))
    for group in groups:
        sums[f"share_{mode_names[group.mode]}"] += 1
        if not group.responses:
            continue
        total, correct = group.rewards["total"], group.rewards["correct"]
        sums["frac_reward_zero_std"] += bool((total == total[0]).all())
        sums["all_wrong"] += not correct.any()
        sums["all_right"] += bool(correct.all())
        sums["reward"] += total.sum().item()
        sums["correct"] += correct.sum().item()
        for name in PARTS:
            sums[f"rewards/{name}/mean"] += group.rewards[name].sum().item()
        responses = group.responses
        sums["responses"] += len(responses)
        sums["completions/mean_length"] += sum(len(r.token_ids) for r in responses)
        sums["completions/clipped_ratio"] += sum(r.truncated for r in responses)
        sums["distinct"] += len({tuple(r.token_ids) for r in responses})
        sums["advantage"] += group.advantages.abs().sum().item()
    return sums


def means(sums: dict[str, float], mode_names: tuple[str, ...]) -> dict[str, float]:
    """A metrics line's shares and means from the step's sums."""
    sums = Counter(sums)  # what is not there is 0

    def divided(names: Iterable[str], by: str) -> dict[str, float]:
        return {name: sums[name] / max(sums[by], 1) for name in names}

    line = divided([f"share_{name}" for name in mode_names], "groups")
    if sums["responses"]:
        line |= divided(PER_GROUP, "groups") | divided(PER_RESPONSE, "responses")
    line |= {PER_TOKEN[name]: mean for name, mean in divided(PER_TOKEN, "sampled_tokens").items()}
    line |= divided(["entropy"], "tokens")
    if sums["memorized_rows"]:
        line |= divided(["nll"], "memorized_rows")
    line |= {"loss": sums["loss"], "skipped_prompts": sums["skipped"]}
    asked = {name: sums[name] for name in sums if name.startswith(("judge_", "refiner_"))}
    return {**line, **asked}


def thumbnail(example: Example, side: int = 320) -> str | None:
    """The image as a PNG data address; a smaller one is enlarged, without smoothing."""
    image = open_image(example)
    if image is None:
        return None
    smooth = Image.Resampling.LANCZOS if max(image.size) > side else Image.Resampling.NEAREST
    return data_url(ImageOps.contain(image, (side, side), smooth))


def group_line(step: int, group, mode: str, config, tokenizer) -> dict:
    """A Group as a line of groups.jsonl, for tools/report.py, with its tokens' pushes."""
    pushes = {"grpo": [], "sft": []}
    for row in group.rows:
        pushes[row.loss].append(token_pushes(row, config, tokenizer))
    responses, example = [], group.example
    for g, response in enumerate(group.responses):
        told = {"text": response.text, "advantage": float(group.advantages[g])}
        told["pushes"] = pushes["grpo"][g] if g < len(pushes["grpo"]) else []
        rewards = {name: float(values[g]) for name, values in group.rewards.items()}
        responses.append({**told, **rewards})
    return {
        "step": step,
        **{name: getattr(example, name) for name in ("question", "answer", "facts")},
        "image": thumbnail(example),
        "mode": mode,
        "target": group.target,
        "target_pushes": sum(pushes["sft"], []),
        "responses": responses,
    }


def token_pushes(row, config, tokenizer) -> list[tuple[str, float]]:
    """The text of each of a row's tokens, and its push: minus the gradient of the step's first
    update at the token's own logit, in thousandths of a prompt's share. On paper weight * (1 - p) /
    (length * G): walkthrough.ipynb, section 6. Left out: the KL term.
    """
    p = row.logprobs.cpu().exp()
    pushes = row.weight * (1 - p) / config.num_generations
    if row.token_weight is not None:
        pushes = pushes * row.token_weight(p)
    if config.loss_type == "grpo":
        pushes = pushes / len(p)
    found = []
    for i, push in enumerate(pushes.tolist()):
        # read behind the token before it: alone, some tokenizers' tokens lose their blank
        before = tokenizer.decode(row.token_ids[max(0, i - 1) : i])
        both = tokenizer.decode(row.token_ids[max(0, i - 1) : i + 1])
        found.append((both[len(before) :], round(1000 * push, 3)))
    return found


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
