"""A step's Groups written down: in numbers, a line of metrics.jsonl; a few of them whole, a line
each of groups.jsonl, for the report; one response, for the person who watches.

The numbers are sums first, so that several processes can add theirs up; then means, under TRL's
names where it has one. What to watch is in the README.
"""

from collections import Counter

from PIL import Image, ImageOps

from data.example import Example
from data.images import data_url, open_image
from lib.log import visible

PARTS = ("format", "accuracy", "thinking")
# over the tokens that were sampled and learned from: grpo_loss's name, the name of the mean
PER_TOKEN = {"kl": "kl", "ratio": "ratio", "approx_kl": "approx_kl"}
PER_TOKEN |= {"clip_low": "clip_ratio/low_mean", "clip_high": "clip_ratio/high_mean"}


def group_sums(groups: list, mode_names: tuple[str, ...]) -> Counter:
    """Sums over some Groups: their number, that of their responses; under (one of these, name) what
    is to be divided by it, see `means`.
    """
    sums = Counter({("groups", f"share_{name}"): 0 for name in mode_names})
    for group in groups:
        sums["groups"] += 1
        sums["groups", f"share_{mode_names[group.mode]}"] += 1
        if not group.responses:
            continue
        # correct: right and in the right format, what the switch counts
        total, correct = group.rewards["total"], group.rewards["correct"]
        sums["groups", "frac_reward_zero_std"] += bool((total == total[0]).all())
        sums["groups", "all_wrong"] += not correct.any()
        sums["groups", "all_right"] += bool(correct.all())
        sums["responses"] += len(group.responses)
        sums["responses", "reward"] += total.sum().item()
        sums["responses", "correct"] += correct.sum().item()
        for name in PARTS:
            sums["responses", f"rewards/{name}/mean"] += group.rewards[name].sum().item()
        said = [tuple(response.token_ids) for response in group.responses]
        sums["responses", "completions/mean_length"] += sum(map(len, said))
        sums["responses", "completions/clipped_ratio"] += sum(r.truncated for r in group.responses)
        sums["responses", "distinct"] += len({*said})
        sums["responses", "advantage"] += group.advantages.abs().sum().item()
    return sums


def means(sums: Counter) -> dict[str, float]:
    """A metrics line's shares and means from the step's sums: group_sums' and dyme.update's."""
    keys = [key for key in sums if isinstance(key, tuple)]
    line = {name: sums[over, name] / max(sums[over], 1) for over, name in keys}
    for name, mean in PER_TOKEN.items():
        line[mean] = sums[name] / max(sums["sampled_tokens"], 1)
    line["entropy"] = sums["entropy"] / max(sums["tokens"], 1)
    if sums["memorized_rows"]:
        line["nll"] = sums["nll"] / sums["memorized_rows"]
    asked = {k: v for k, v in sums.items() if str(k).startswith(("judge_", "refiner_"))}
    return {**line, **asked, "loss": sums["loss"], "skipped_prompts": sums["skipped"]}


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
    update at its logit, in thousandths of a prompt's share: weight * (1 - p) / (length * G), see
    walkthrough.ipynb, section 6. Left out: the KL term.
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
        rewards = ", ".join(f"{name} {float(v[0]):.2f}" for name, v in group.rewards.items())
        text = group.responses[0].text.strip()
    lines = [f"step {step}, {mode}: {group.example.question}", text, rewards]
    lines = [" / ".join(visible(line).split("\n")) for line in lines]
    return "\n  ".join(line if len(line) < 300 else f"{line[:300]}…" for line in lines)
