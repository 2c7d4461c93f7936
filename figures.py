"""
Figures: what runs logged, as curves. report.py puts them into its page as SVG, `report.py --png` into files.

Runs that differ only by seed are one variant: its line is the mean over the seeds, its band reaches from the lowest to
the highest. Curves of single steps are noisy (P prompts each), so they are moving means over a few steps; of a variant
with one run the steps themselves lie behind, faint. Validation curves are shown as they were measured.

Left out: a plotting library for the page (two kinds of picture don't need one), time as the horizontal axis.
"""

import html
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data import InputError

SEEDS = {"seed", "base_seed", "data_seed"}
# flags that don't change what is learned: runs that differ by these alone are one variant
ASIDE = SEEDS | {"output_dir", "overwrite", "resume", "num_threads", "data_dir", "save_steps", "save_total_limit",
                 "log_groups_every", "eval_base", "final_splits"}  # fmt: skip
NAMES = {"dyme": "DyME", "sft": "SFT", "grpo": "GRPO", "two_stage": "two-stage"}
MODES = {"memorize": "memorise", "explore": "explore", "skip": "skip"}  # from the bottom of the picture to its top

# told apart by people who see fewer colours too; (on white, on black), and a dash for each
COLOURS = [("#1f5fbf", "#74aaff"), ("#c4500c", "#ff9d5c"), ("#0a8063", "#42d1a8"), ("#8b3fa8", "#d596f2"),
           ("#8f6a00", "#e3bf4a"), ("#566070", "#b3bcc9"), ("#0784a5", "#5cd3ee"), ("#b93a77", "#ff94c4")]  # fmt: skip
DASHES = ["none", "7 3", "2.5 2.5", "9 3 2.5 3"]
MODE_COLOURS = {"memorize": ("#e9b44c", "#b98a2b"), "explore": ("#5b8fd6", "#3f6fb5"), "skip": ("#d5d9df", "#434a55")}
FAVOURITE = {"dyme": 0, "grpo": 1, "sft": 2, "two_stage": 3}  # a method's colour in every report

WIDTH, HEIGHT = 320, 190  # of a picture, in units of about a pixel
LEFT, RIGHT, TOP, BOTTOM = 36, 10, 10, 24
MOST_POINTS = 400  # of a line


@dataclass
class Run:
    """One output folder of train.py: config, metrics by step, validation readings, result by split (or empty)."""

    folder: Path
    config: dict
    steps: list[dict]
    val: list[dict]
    base: dict
    final: dict
    seconds: float


@dataclass
class Variant:
    """Runs that differ only by seed, the name they go by, and the index of their colour."""

    label: str
    colour: int
    runs: list[Run]


@dataclass(frozen=True)
class Curve:
    """One picture: a key of metrics.jsonl, or of the validation readings; share: from 0 to 1."""

    key: str
    title: str
    caption: str
    share: bool = True
    of_val: bool = False


CURVES = [
    Curve("accuracy", "Accuracy, validation", "questions answered right, decoding greedily", of_val=True),
    Curve("fact_precision", "True facts, validation", "of the facts that the thinking states", of_val=True),
    Curve("reward", "Reward", "mean total of the sampled responses", share=False),
    Curve("correct", "Correct samples", "right answer in the right format"),
    Curve("share_equal", "Advantage collapse", "groups with equal rewards: GRPO learns nothing from them"),
    Curve("completion_length", "Length", "tokens of a sampled response", share=False),
    Curve("entropy", "Entropy", "nats a token, over the tokens of the update", share=False),
    Curve("seconds", "Seconds", "of a step: rollout, rewards and update", share=False),
]


@dataclass
class Line:
    """A variant's curve: its mean and range at each step; raw: the unsmoothed values of a single run."""

    variant: Variant
    steps: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    raw: list[float] | None


# ---------------------------------------------------------------------------------------------------------------
# from folders to lines


def read_lines(path: Path) -> list[dict]:
    """The objects of a jsonl file; a last line without its end is still being written, and left out."""
    rows = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            rows.append(None)
        if not isinstance(rows[-1], dict):
            raise InputError(f"{path}, line {number}: not a JSON object; remove the line")
    return rows


def read_run(folder) -> Run:
    """What a run has written so far; InputError, one line, for a folder that isn't a run's."""
    folder = Path(folder)
    if not (folder / "metrics.jsonl").is_file():
        raise InputError(f"{folder}: no metrics.jsonl; give folders that train.py wrote (its --output_dir)")
    steps = read_lines(folder / "metrics.jsonl")
    if not steps:
        raise InputError(f"{folder}/metrics.jsonl: no step is logged yet; wait for the first one")
    # a run that hasn't ended has no result.json: its last checkpoint knows the rest
    states = [folder / "result.json", *sorted(folder.glob("checkpoints/step-*/state.json"), reverse=True)]
    path = next((path for path in states if path.is_file() and ".tmp" not in path.parent.name), None)
    try:
        state = json.loads(path.read_text(encoding="utf-8")) if path else {}
        parts = [state.get(name, empty) for name, empty in (("config", {}), ("val", []), ("base", {}), ("final", {}))]
    except (ValueError, AttributeError):
        raise InputError(f"{path}: not the JSON that train.py writes; remove it") from None
    seconds = sum(line.get("seconds") or 0.0 for line in steps)
    return Run(folder, parts[0], steps, *parts[1:], seconds)


def variants(runs: list[Run]) -> list[Variant]:
    """Runs that differ only by seed together, named by what tells them from the others."""
    together = {}
    for run in runs:
        settings = {name: value for name, value in run.config.items() if name not in ASIDE}
        key = json.dumps(settings, sort_keys=True) if settings else str(run.folder)
        together.setdefault(key, []).append(run)
    groups = list(together.values())
    configs = [group[0].config for group in groups]
    usual = {}
    for name in sorted(set().union(*configs) - ASIDE - {"method"}):
        values = [json.dumps(config[name]) for config in configs if name in config]
        usual[name] = Counter(values).most_common(1)[0][0]
    found, free = [], list(range(len(COLOURS)))
    for group, config in zip(groups, configs):
        own = [f"{name} {config[name]}" for name in usual if name in config and json.dumps(config[name]) != usual[name]]
        label = ", ".join([NAMES.get(config.get("method"), group[0].folder.name), *own])
        if len(own) > 3 or label in [variant.label for variant in found]:
            label = group[0].folder.name
        colour = FAVOURITE.get(config.get("method"), 0)
        colour = colour if colour in free else (free or [len(found) % len(COLOURS)])[-1]
        free = [index for index in free if index != colour]
        found.append(Variant(label, colour, group))
    return found


def values(run: Run, curve: Curve) -> dict[float, float]:
    """A run's value at each step where it has one."""
    lines = run.steps
    if curve.of_val:
        start = run.base.get(run.config.get("eval_split"), {}).get("greedy")
        lines = ([{**start, "step": 0}] if start else []) + run.val
    if curve.key == "entropy":  # 0 stands for an update without tokens
        lines = [line for line in lines if line.get("entropy") != 0]
    return {line["step"]: line[curve.key] for line in lines if is_number(line.get(curve.key)) and "step" in line}


def is_number(value) -> bool:
    """Whether a picture can show it."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def smooth(numbers: list[float], reach: int) -> list[float]:
    """The moving mean over `reach` neighbours on either side."""
    windows = [numbers[max(0, i - reach) : i + reach + 1] for i in range(len(numbers))]
    return [sum(window) / len(window) for window in windows]


def reach_of(runs: list[Run]) -> int:
    """How many neighbours on either side a moving mean takes: a fortieth of the longest run."""
    return max(len(run.steps) for run in runs) // 40


def lines_of(found: list[Variant], curve: Curve) -> list[Line]:
    """A curve's line for each variant that has values, over the steps that all its seeds have."""
    lines = []
    reach = 0 if curve.of_val else reach_of([run for variant in found for run in variant.runs])
    for variant in found:
        by_run = [values(run, curve) for run in variant.runs]
        steps = sorted(set.intersection(*(set(points) for points in by_run)))
        every = max(1, math.ceil(len(steps) / MOST_POINTS))
        rows = [[points[step] for step in steps] for points in by_run]
        raw = rows[0][::every] if len(rows) == 1 and reach else None
        columns = list(zip(*(smooth(row, reach)[::every] for row in rows)))
        if columns:
            mean = [sum(column) / len(column) for column in columns]
            low, high = [min(column) for column in columns], [max(column) for column in columns]
            lines.append(Line(variant, steps[::every], mean, low, high, raw))
    return lines


def mode_shares(variant: Variant, reach: int) -> tuple[list, dict[str, list[float]]]:
    """(steps, each mode's share at them): the mean over the seeds, as a moving mean."""
    shares = {mode: lines_of([variant], Curve(f"share_{mode}", "", "")) for mode in MODES}
    if not all(shares.values()):
        return [], {}
    return shares["skip"][0].steps, {mode: lines[0].mean for mode, lines in shares.items()}


# ---------------------------------------------------------------------------------------------------------------
# SVG


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round numbers from low to high."""
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def frame(x_high: float, y_low: float, y_high: float):
    """Grid and axes as SVG, and the functions from step and value to a place in the picture."""

    def x(step):
        return round(LEFT + (WIDTH - LEFT - RIGHT) * step / x_high, 1)

    def y(value):
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - y_low) / (y_high - y_low), 1)

    parts = []
    for value in ticks(y_low, y_high):
        parts.append(f'<path class="grid" d="M{LEFT} {y(value)}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 3.5}" text-anchor="end">{value:g}</text>')
    for step in ticks(0, x_high):
        parts.append(f'<text x="{x(step)}" y="{HEIGHT - 7}" text-anchor="middle">{step:g}</text>')
    return "".join(parts), x, y


def path(points) -> str:
    """An SVG path through (x, y) places."""
    return "M" + "L".join(f"{x} {y}" for x, y in points)


def limits(curve: Curve, lines: list[Line]) -> tuple[float, float, float]:
    """(last step, lowest, highest value) of a picture."""
    last = max((line.steps[-1] for line in lines), default=1) or 1
    if curve.share:
        return last, 0.0, 1.0
    low = min((value for line in lines for value in line.low), default=0)
    high = max((value for line in lines for value in line.high), default=1)
    return last, min(0.0, low), high * 1.05 if high > min(0.0, low) else min(0.0, low) + 1.0


def svg_curve(curve: Curve, found: list[Variant]) -> tuple[str, dict]:
    """A picture of lines, and what a pointer over it reads: the steps and values of each line."""
    lines = lines_of(found, curve)
    last, low, high = limits(curve, lines)
    grid, x, y = frame(last, low, high)
    parts = [grid]
    for line in lines:
        places = [x(step) for step in line.steps]
        title = f"<title>{html.escape(line.variant.label)}</title>"
        parts.append(f'<g class="v c{line.variant.colour}" data-v="{line.variant.label_id}">{title}')
        if len(line.variant.runs) > 1:
            edge = list(zip(places, map(y, line.low))) + list(zip(places, map(y, line.high)))[::-1]
            parts.append(f'<path class="band" d="{path(edge)}Z"/>')
        if line.raw:
            inside = [min(max(value, low), high) for value in line.raw]
            parts.append(f'<path class="raw" d="{path(zip(places, map(y, inside)))}"/>')
        parts.append(f'<path class="line" d="{path(zip(places, map(y, line.mean)))}"/>')
        if curve.of_val:
            parts += [f'<circle cx="{a}" cy="{y(b)}" r="2.6"/>' for a, b in zip(places, line.mean)]
        parts.append("</g>")
    return "".join(parts), {}
