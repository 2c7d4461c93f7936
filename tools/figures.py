"""
Figures: what runs logged, as curves. report.py puts them into its page as SVG, pictures.py into PNG
files.

A variant (runs that differ only by seed) is a line, the mean over its seeds, and a band from the
lowest to the highest. Metrics of single steps are noisy, P prompts each, so they are shown as
moving means over a twentieth of the run; of a variant with one run the steps themselves lie
behind, faint. Validation readings are shown as they were measured.

Left out: a plotting library for the page (two kinds of picture don't need one), time as the
horizontal axis.
"""

import html
import math
from dataclasses import dataclass

from tools.runs import Run, Variant

# told apart by people who see fewer colours too: (on white, on black); and dashes besides
COLOURS = [("#1f5fbf", "#7aaeff"), ("#c4500c", "#ff9d5c"), ("#0a8063", "#42d1a8")]
COLOURS += [("#8b3fa8", "#d596f2"), ("#8f6a00", "#e3bf4a"), ("#566070", "#b3bcc9")]
COLOURS += [("#0784a5", "#5cd3ee"), ("#b93a77", "#ff94c4")]
DASHES = ["", "7 3", "2.5 2.5", "9 3 2.5 3"]
# from the bottom of the picture to its top
MODES = {"memorize": "memorise", "explore": "explore", "skip": "skip"}
MODE_COLOURS = [("#f0bd55", "#d9a441"), ("#7aa7e6", "#6c9fe3"), ("#dfe3e8", "#7f8894")]

WIDTH, HEIGHT = 320, 190  # of a picture, in units of about a pixel
LEFT, RIGHT, TOP, BOTTOM = 34, 10, 10, 24
MOST_POINTS = 400  # of a line


@dataclass(frozen=True)
class Curve:
    """
    What a picture shows: a key of metrics.jsonl, or of the validation readings; share: its axis is
    0 to 1.
    """

    key: str
    title: str
    caption: str
    share: bool = True
    of_val: bool = False


CURVES = [
    Curve("accuracy", "Accuracy", "of validation questions, greedy", of_val=True),
    Curve("fact_precision", "True facts", "validation, greedy; 0: none stated", of_val=True),
    Curve("reward", "Reward", "mean of the sampled responses", share=False),
    Curve("correct", "Correct samples", "right answer in the right format"),
    Curve("share_equal", "Advantage collapse", "groups whose rewards are all equal"),
    Curve("completion_length", "Length", "tokens of a sampled response", share=False),
    Curve("entropy", "Entropy", "nats a token, in the update", share=False),
    Curve("seconds", "Seconds a step", "rollout, rewards and update", share=False),
]


@dataclass
class Line:
    """
    A variant's curve: its mean and range at each step; raw: the unsmoothed values of a single run.
    """

    variant: Variant
    steps: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    raw: list[float]


# -------------------------------------------------------------------------------------------------
# from runs to lines


def values(run: Run, curve: Curve) -> dict[float, float]:
    """A run's value at each step where it has one."""
    lines = run.steps
    if curve.of_val:
        start = run.base.get(run.config.get("eval_split"), {}).get("greedy")
        lines = ([{**start, "step": 0}] if start else []) + run.val
    lines = [line for line in lines if is_number(line.get("step"))]
    if curve.key == "entropy":  # 0 stands for an update without tokens
        lines = [line for line in lines if line.get("entropy") != 0]
    return {line["step"]: line[curve.key] for line in lines if is_number(line.get(curve.key))}


def is_number(value) -> bool:
    """Whether a picture can show it."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def reach_of(variant: Variant) -> int:
    """How many neighbours on either side a moving mean takes: a fortieth of the run."""
    return max(len(run.steps) for run in variant.runs) // 40


def smooth(numbers: list[float], reach: int) -> list[float]:
    """The moving mean over `reach` neighbours on either side."""
    windows = [numbers[max(0, i - reach) : i + reach + 1] for i in range(len(numbers))]
    return [sum(window) / len(window) for window in windows]


def lines_of(variants: list[Variant], curve: Curve) -> list[Line]:
    """
    A curve's line for each variant that has values, over the steps that all of its seeds have.
    """
    lines = []
    for variant in variants:
        reach = 0 if curve.of_val else reach_of(variant)
        by_run = [values(run, curve) for run in variant.runs]
        steps = sorted(set.intersection(*map(set, by_run)))
        every = max(1, math.ceil(len(steps) / MOST_POINTS))
        rows = [[points[step] for step in steps] for points in by_run]
        raw = rows[0][::every] if len(rows) == 1 and reach else []
        columns = list(zip(*(smooth(row, reach)[::every] for row in rows)))
        if columns:
            mean = [sum(column) / len(column) for column in columns]
            low, high = [min(column) for column in columns], [max(column) for column in columns]
            lines.append(Line(variant, steps[::every], mean, low, high, raw))
    return lines


def mode_lines(variant: Variant) -> list[Line]:
    """
    The share of groups that were memorised, explored and skipped, or [] where it wasn't logged.
    """
    lines = [line for mode in MODES for line in lines_of([variant], Curve(f"share_{mode}", "", ""))]
    return lines if len(lines) == len(MODES) else []


def limits(curve: Curve, lines: list[Line]) -> tuple[float, float, float]:
    """(last step, lowest, highest value) of a picture."""
    last = max((line.steps[-1] for line in lines), default=1) or 1
    if curve.share:
        return last, 0.0, 1.0
    low = min([0.0, *(value for line in lines for value in line.low)])
    high = max((value for line in lines for value in line.high), default=1.0)
    for line in lines:  # the odd step may leave the picture
        high = max([high, *sorted(line.raw)[: int(0.98 * len(line.raw))]])
    return last, low, low + (high - low) * 1.08 if high > low else low + 1.0


# -------------------------------------------------------------------------------------------------
# SVG


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round numbers from low to high."""
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * 0.999)
    return [
        i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def axes(last: float, low: float, high: float):
    """Grid and numbers as SVG, and the functions from a step and from a value to their places."""

    def x(step):
        return round(LEFT + (WIDTH - LEFT - RIGHT) * step / last, 1)

    def y(value):
        value = min(max(value, low), high)
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low), 1)

    parts = [
        f'<path class="grid" d="M{LEFT} {y(value)}H{WIDTH - RIGHT}"/>' for value in ticks(low, high)
    ]
    parts += [
        f'<text x="{LEFT - 6}" y="{y(v) + 3.5}" text-anchor="end">{v:g}</text>'
        for v in ticks(low, high)
    ]
    parts += [
        f'<text x="{x(s)}" y="{HEIGHT - 7}" text-anchor="middle">{s:g}</text>'
        for s in ticks(0, last)[1:]
    ]
    parts.append(f'<text x="{LEFT - 6}" y="{HEIGHT - 7}">step</text>')
    return "".join(parts), x, y


def path(points) -> str:
    """The d of an SVG path through (x, y) places."""
    return "M" + "L".join(f"{x} {y}" for x, y in points)


def picture(content: str, name: str, last: float) -> str:
    """
    The svg element around a picture; data-last lets the page's script find the step under a
    pointer.
    """
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(name)}"'
        f' data-last="{last:g}" data-left="{LEFT}" data-right="{RIGHT}">'
        f'{content}<path class="guide" d="M0 {TOP}V{HEIGHT - BOTTOM}"/></svg>'
    )


def svg_curve(curve: Curve, lines: list[Line]) -> str:
    """The picture of a curve's lines."""
    last, low, high = limits(curve, lines)
    grid, x, y = axes(last, low, high)
    parts = [grid]
    for line in lines:
        places = [x(step) for step in line.steps]
        colour = line.variant.colour
        parts.append(
            f'<g class="c{colour}" data-colour="{colour}">'
            f"<title>{html.escape(line.variant.label)}</title>"
        )
        if len(line.variant.runs) > 1:
            edge = [*zip(places, map(y, line.low)), *reversed([*zip(places, map(y, line.high))])]
            parts.append(f'<path class="band" d="{path(edge)}Z"/>')
        if line.raw:
            parts.append(f'<path class="raw" d="{path(zip(places, map(y, line.raw)))}"/>')
        points = list(zip(places, map(y, line.mean)))
        parts.append(f'<path class="line" d="{path(points)}"/>')
        if curve.of_val or len(points) == 1:
            parts += [f'<circle cx="{a}" cy="{b}" r="2.6"/>' for a, b in points]
        parts.append("</g>")
    return picture("".join(parts), curve.title, last)


def svg_modes(lines: list[Line], label: str) -> str:
    """
    The picture of the method: stacked areas of the three modes, each named where it is widest.
    """
    steps = lines[0].steps
    grid, x, y = axes(steps[-1] or 1, 0.0, 1.0)
    places = [x(step) for step in steps]
    below, parts, names = [0.0] * len(steps), [], []
    for mode, line in zip(MODES, lines):
        above = [base + share for base, share in zip(below, line.mean)]
        edge = [*zip(places, map(y, below)), *reversed([*zip(places, map(y, above))])]
        parts.append(
            f'<path class="m-{mode}" d="{path(edge)}Z"><title>{MODES[mode]}</title></path>'
        )
        inside = [i for i, place in enumerate(places) if LEFT + 40 < place < WIDTH - RIGHT - 40]
        widest = max(
            inside, key=lambda i: line.mean[i] - abs(places[i] / WIDTH - 0.5) / 5, default=0
        )
        if line.mean[widest] > 0.13:
            middle = y((below[widest] + above[widest]) / 2) + 4
            names.append(
                f'<text class="name" x="{places[widest]}" y="{middle}">{MODES[mode]}</text>'
            )
        below = above
    return picture("".join(parts) + grid + "".join(names), f"{label}: modes", steps[-1] or 1)


def readings(lines: list[Line], labels: list[str], classes: list[str]) -> list[dict]:
    """
    What a pointer over a picture reads, as JSON: for each line its label, class, steps, means and
    ranges.
    """

    def short(numbers):
        return [float(f"{number:.4g}") for number in numbers]

    found = []
    for line, label, css in zip(lines, labels, classes):
        found.append({"label": label, "css": css, "steps": line.steps, "mean": short(line.mean)})
        if len(line.variant.runs) > 1:
            found[-1].update(low=short(line.low), high=short(line.high))
    return found
