"""
Metrics: what a step looked like, in one line of <output_dir>/metrics.jsonl.

Sums first, so that several processes can add theirs up; then means. What to watch, and why, stands
in the README.
"""

import base64
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from lib.checkpoint import cut_metrics
from data import open_image
from rollout import MODE_NAMES
from evaluate import interval
from model import get_tokenizer

# of a step's responses: summed up, and divided by their number
SUMMED = ("reward", "format", "accuracy", "thinking", "correct")
SUMMED += ("truncated", "distinct", "advantage")


def rollout_sums(responses, scores, advantages, modes) -> dict[str, float]:
    """
    Sums over this process's groups and responses, to be added up over processes and divided in
    `means`.
    """
    sums = {f"groups/{name}": float((modes == mode).sum()) for mode, name in enumerate(MODE_NAMES)}
    sums["groups"] = float(len(modes))
    sums.update(
        dict.fromkeys((*SUMMED, "groups/equal", "groups/all_wrong", "groups/all_right"), 0.0),
        responses=0.0,
        length=0.0,
    )
    for group, scored, advantage in zip(responses, scores, advantages):
        sums["responses"] += len(group)
        sums["reward"] += scored["total"].sum().item()
        for name in ("format", "accuracy", "thinking", "correct"):
            sums[name] += scored[name].sum().item()
        sums["length"] += sum(len(response.token_ids) for response in group)
        sums["truncated"] += sum(response.truncated for response in group)
        sums["distinct"] += len({tuple(response.token_ids) for response in group})
        sums["advantage"] += advantage.abs().sum().item()
        sums["groups/equal"] += float((scored["total"] == scored["total"][0]).all())
        sums["groups/all_wrong"] += float(not scored["correct"].any())
        sums["groups/all_right"] += float(scored["correct"].all())
    return sums


def means(sums: dict[str, float]) -> dict[str, float]:
    """A metrics line's shares and means from the step's sums."""
    line = {
        f"share_{name[7:]}": value / max(sums["groups"], 1)
        for name, value in sums.items()
        if name.startswith("groups/")
    }
    if sums["responses"]:
        for name in SUMMED:
            line[name] = sums[name] / sums["responses"]
        line["completion_length"] = sums["length"] / sums["responses"]
    for name in ("entropy", "kl", "clip_low", "clip_high"):
        line[name] = sums[name] / max(sums["tokens"], 1)
    line["loss"] = sums["loss"]
    line["skipped_prompts"] = sums["skipped"]
    line.update(
        {name: value for name, value in sums.items() if name.startswith(("judge_", "refiner_"))}
    )
    return line


@dataclass
class Log:
    """The files of a run's folder; only the first process (active) writes and speaks."""

    output_dir: str
    active: bool

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        if self.active:
            tqdm.write(text)

    def open(self, fresh: bool) -> None:
        """Make the folder; for a fresh run without what an earlier one logged."""
        if self.active:
            Path(self.output_dir).mkdir(parents=True, exist_ok=True)
            for name in ("metrics.jsonl", "groups.jsonl", "result.json") if fresh else ():
                (Path(self.output_dir) / name).unlink(missing_ok=True)

    def append(self, name: str, line: dict) -> None:
        """One JSON line to a file of the run; NaN and infinity, which JSON lacks, as null."""
        if self.active:
            clean = {
                key: None if isinstance(v, float) and not math.isfinite(v) else v
                for key, v in line.items()
            }
            with open(Path(self.output_dir) / name, "a", encoding="utf-8") as file:
                text = json.dumps(clean, ensure_ascii=False)
                # of control characters JSON escapes only some: the others would act on a terminal
                file.write(
                    "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text) + "\n"
                )

    def write(self, name: str, content: dict) -> None:
        """A whole JSON file of the run."""
        if self.active:
            text = json.dumps(content, indent=1, ensure_ascii=False)
            (Path(self.output_dir) / name).write_text(text, encoding="utf-8")

    def positions(self) -> dict[str, dict[str, int]]:
        """How far the line files are written, in bytes: what a checkpoint remembers of them."""
        paths = [Path(self.output_dir) / name for name in ("metrics.jsonl", "groups.jsonl")]
        return {
            "positions": {path.name: path.stat().st_size if path.exists() else 0 for path in paths}
        }

    def cut(self, state: dict) -> None:
        """Back to a checkpoint's positions, so that no step stands twice in a file."""
        if self.active:
            for name, position in state["positions"].items():
                cut_metrics(Path(self.output_dir) / name, position)


def seconds(clock: list[float]) -> dict[str, float]:
    """
    Seconds of a step's parts from its four marks: start, end of the rollout, start of the update,
    end.
    """
    names = ("seconds_rollout", "seconds_score", "seconds_update")
    parts = {name: end - start for name, start, end in zip(names, clock, clock[1:])}
    return {**parts, "seconds": clock[-1] - clock[0]}


def group_lines(
    step, examples, responses, scores, advantages, modes, targets, processor, most: int = 2
):
    """
    A few groups of a step as report.py shows them: chart, question, facts, responses, rewards,
    mode, target.
    """
    for p, example in enumerate(examples[:most]):
        line = {
            "step": step,
            "question": example.question,
            "answer": example.answer,
            "facts": [list(fact) for fact in example.facts],
            "image": thumbnail(example),
            "mode": MODE_NAMES[int(modes[p])],
            "target": get_tokenizer(processor).decode(targets[p][:-1]) if p in targets else None,
            "responses": [],
        }
        for g, response in enumerate(responses[p] if responses else []):
            rewards = {name: float(value[g]) for name, value in scores[p].items()}
            line["responses"].append(
                {"text": response.text, "advantage": float(advantages[p, g]), **rewards}
            )
        yield line


def thumbnail(example, side: int = 320) -> str | None:
    """The image as a small PNG data address; tiny ones are enlarged without smoothing."""
    image = open_image(example)
    if image is None:
        return None
    scale = side / max(image.size)
    size = [max(1, round(length * scale)) for length in image.size]
    if scale < 1 or max(image.size) <= 64:
        image = image.resize(
            size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        )
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def summary(title: str, readings: dict[str, dict]) -> str:
    """evaluate_all's result in one line."""
    greedy, sampled, direct = readings["greedy"], readings["sampled"], readings["direct"]
    low, high = interval(greedy["accuracy"], greedy["count"])
    return (
        f"{title}: accuracy {greedy['accuracy']:.3f} [{low:.3f}, {high:.3f}] greedy, "
        f"{sampled['accuracy']:.3f} at temperature 1, {direct['accuracy']:.3f} answering directly; "
        f"format {greedy['format']:.3f}, stated facts true {sampled['fact_precision']:.3f}, "
        f"right answers grounded {greedy['grounded']:.3f} ({greedy['count']} questions)"
    )
