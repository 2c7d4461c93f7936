"""What runs have logged, read back and drawn: the pictures of the report and of the README.

    python -m tools.curves out/compare/base0-noise0.5-* results/runs/noise --out assets

A variant, runs that differ only by seed, is a line: the mean over its seeds, each of them faint.
matplotlib is optional. Left out: time as the horizontal axis.
"""

import re
import sys
import textwrap
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from statistics import fmean, stdev

from config import Parser
from data.example import InputError
from data.reading import read_lines, written_here
from lib.checkpoint import read_json
from lib.log import run_program, visible
from tools.compare import read_records
from tools.tables import FIRST, LOOKS, by_row, find

try:
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rc("axes", grid=True, titlelocation="left", titleweight="bold")
    matplotlib.rc("axes.spines", top=False, right=False)
    matplotlib.rc("grid", alpha=0.25)
    matplotlib.rc("figure.constrained_layout", use=True)
    matplotlib.rc("savefig", dpi=160)
    matplotlib.rc("text", parse_math=False)  # a label is a file's word: no $ of it is a formula
except ImportError:
    matplotlib = None

NO_PICTURES = "pictures need matplotlib: pip install matplotlib"
# told apart by the colour-blind too; a method keeps its colour
COLOURS = dict(dyme="#1f5fbf", grpo="#c4500c", sft="#0a8063", two_stage="#8b3fa8")
# of other methods, and of a method's second variant
SPARE = ("#0784a5", "#b93a77", "#566070", "#7d9c0f", "#d4a017", "#333a8c", "#8f6a00")
# from the bottom of the picture of the switch to its top
MODES = {"memorize": "#f0bd55", "explore": "#7aa7e6", "skip": "#dfe3e8"}
CURVES = {  # title: metric, what it is
    "Accuracy": ("val/accuracy", "of validation questions, greedy"),
    "True facts": ("val/fact_precision", "of the stated ones, validation"),
    "Reward": ("reward", "mean of the sampled responses"),
    "Correct samples": ("correct", "right answer, right format"),
    "Advantage collapse": ("frac_reward_zero_std", "groups with equal rewards"),
    "Length": ("completions/mean_length", "tokens of a response"),
    "Entropy": ("entropy", "nats per token, in the update"),
    "Seconds per step": ("step_time", "rollout, rewards, update"),
}
NOISE = {  # title: where a record has it
    "accuracy, greedy": (*FIRST, "greedy", "accuracy"),
    "accuracy at temperature 1": (*FIRST, "sampled", "accuracy"),
    "stated facts that are true": (*FIRST, "sampled", "fact_precision"),
}


@dataclass
class Run:
    """One output folder: lines of metrics, each with its step, those of val as "val/..", and what
    result.json or a checkpoint's state.json has.
    """

    folder: Path
    lines: list[dict]
    config: dict = field(default_factory=dict)
    base: dict = field(default_factory=dict)
    final: dict = field(default_factory=dict)


@dataclass
class Variant:
    """Runs that differ only by seed."""

    label: str
    colour: str
    runs: list[Run]


def read_run(folder: str | Path) -> Run:
    """What a run has written so far: its metrics, and result.json or else its last checkpoint's
    state. InputError, one line, for a folder that isn't a run's.
    """
    run = Run(Path(folder), read_lines(Path(folder) / "metrics.jsonl", ("step",), cut=False))
    if not run.lines:
        raise InputError(f"{folder}/metrics.jsonl: no step is logged; give folders of train.py")
    paths = sorted(run.folder.glob("checkpoints/step-*[0-9]/state.json"))
    for path in [*paths, *run.folder.glob("result.json")][-1:]:
        found = read_json(path)
        with written_here(path):
            run.config, run.base = dict(found["config"]), dict(found["base"])
            run.final = dict(found.get("final", {}))
            for reading in found["val"]:
                line = {f"val/{name}": value for name, value in reading.items()}
                run.lines.append({**line, "step": reading["step"]})
    return run


def kept_run(row: str, record: dict) -> Run:
    """A kept result as a run: accuracies of val, where it says at which step, and what NOISE asks,
    with the noise as its step.
    """
    read = zip(record.get("on_the_way", ()), record["val"])
    lines = [{"step": at["step"], "val/accuracy": value} for at, value in read if at["step"]]
    noisy = {f"val/{title}": find(record, names) for title, names in NOISE.items()}
    return Run(Path(row), [*lines, {"step": record["trace_noise"], **noisy}], {"method": row})


def group_seeds(runs: list[Run]) -> list[Variant]:
    """Runs that differ only by seed together, named by their method; where a method has several
    such variants, by the folder of their first run. The first one of a method has its colour.
    """
    groups = {}
    for run in runs:
        flags = {**run.config, **dict.fromkeys(("seed", "base_seed", "output_dir"))}
        groups.setdefault(str(flags if run.config else run.folder), []).append(run)
    methods = [str(group[0].config.get("method", "")) for group in groups.values()]
    variants, spare = [], cycle(SPARE)
    for method, group in zip(methods, groups.values()):
        label = method if method and methods.count(method) == 1 else group[0].folder.name
        colour = COLOURS.get(re.split("[,:]", method)[0])
        if colour in (None, *(variant.colour for variant in variants)):
            colour = next(spare)
        variants.append(Variant(visible(label)[:50], colour, group))  # more has no room
    return variants


def line_of(run: Run, metric: str) -> dict[float, float]:
    """{step: value}; of a metric of the steps, which is noisy, the mean over a fortieth of the run
    on either side.
    """
    points = {line["step"]: line[metric] for line in run.lines if line.get(metric) is not None}
    values = [*points.values()]
    reach = 0 if metric.startswith("val/") else len(values) // 40
    near = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return dict(zip(points, map(fmean, near)))


def mean_line(variant: Variant, metric: str) -> dict[float, float]:
    """{step: mean over the runs that have it}."""
    lines = [line_of(run, metric) for run in variant.runs]
    steps = sorted(set().union(*lines))
    return {step: fmean(line[step] for line in lines if step in line) for step in steps}


def draw(variants: list[Variant]) -> "dict[str, Figure]":
    """Every picture of runs that something was logged for, by its title."""
    figures = {"Modes": plot_modes(variants)}
    figures |= {title: plot_curve(title, variants) for title in CURVES}
    return {title: figure for title, figure in figures.items() if figure}


def draw_records(kept: str, records: list[dict]) -> "dict[str, Figure]":
    """Results kept by this name: what the traces' noise does; of a single noise, accuracies on the
    way and by the image that is shown.
    """
    rows = {}
    for (row, _), found in by_row(records).items():
        rows.setdefault(row, []).extend(found)
    variants = group_seeds([kept_run(row, run) for row, runs in rows.items() for run in runs])
    if len({record["trace_noise"] for record in records}) > 1:
        figure = Figure(figsize=(9, 3))
        for ax, title in zip(figure.subplots(1, 3, sharey=True), NOISE):
            plot_lines(ax, variants, f"val/{title}")
            ax.set(title=title, xlabel="trace noise", ylim=(0, 1.02))
        figure.axes[0].legend(loc="lower left")
        return {kept: figure}
    figures = draw(variants)
    if all("other" in find(record, FIRST) for record in records):
        figures["looks"] = plot_looks(rows)
    return {f"{kept}_{title}": figure for title, figure in figures.items()}


def plot_lines(ax, variants: list[Variant], metric: str) -> None:
    """A line per variant: the mean over its seeds, which are faint."""
    for variant in variants:
        look = {"color": variant.colour, "marker": "." if metric.startswith("val/") else None}
        if line := mean_line(variant, metric):
            for run in variant.runs:
                ax.plot(*zip(*line_of(run, metric).items()), alpha=0.25, **look)
            ax.plot(*zip(*line.items()), label=variant.label, **look)


def plot_curve(title: str, variants: list[Variant]) -> "Figure | None":
    """A metric over the steps."""
    metric, about = CURVES[title]
    crowd = len(variants) > 6
    figure = Figure(figsize=(7, 4) if crowd else (4.8, 3.1))
    ax = figure.subplots()
    plot_lines(ax, variants, metric)
    if not ax.lines:
        return None
    ax.set(title=title, xlabel="step", ylabel=about)
    ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
    where = {"loc": "outside right center"} if crowd else {}
    (figure if crowd else ax).legend(fontsize=8, **where)
    return figure


def plot_modes(variants: list[Variant]) -> "Figure | None":
    """The switch at work: a stacked area of the shares of groups per variant."""
    lines = {v.label: [mean_line(v, f"share_{mode}") for mode in MODES] for v in variants}
    lines = {label: found for label, found in lines.items() if all(found)}
    if not lines:
        return None
    figure = Figure(figsize=(2.6 * len(lines) + 1.4, 2.9))
    axes = figure.subplots(1, len(lines), sharey=True, squeeze=False)[0]
    for ax, (label, found) in zip(axes, lines.items()):
        steps, shares = [*found[0]], [[*line.values()] for line in found]
        ax.stackplot(steps, *shares, colors=MODES.values(), labels=MODES)
        ax.set(title=textwrap.fill(label, 22), xlabel="step", ylim=(0, 1))
        ax.set_xlim(steps[0], max(steps[-1], 1))
    axes[0].set_ylabel("share of groups")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", reverse=True)
    return figure


def plot_looks(rows: dict[str, list[dict]]) -> "Figure":
    """Accuracy at temperature 1 by the image shown: a bar per row, the best first; its spread."""
    own = {row: fmean(find(record, LOOKS["own image"][1:]) for record in rows[row]) for row in rows}
    order = sorted(rows, key=own.get, reverse=True)
    figure = Figure(figsize=(7, 0.4 * len(rows) + 1))
    ax = figure.subplots()
    for i, title in enumerate(("own image", "another", "blank")):
        found = [[find(record, LOOKS[title][1:]) for record in rows[row]] for row in order]
        spread = [stdev(values) if len(values) > 1 else 0 for values in found]
        places = [place + 0.27 * (i - 1) for place in range(len(order))]
        ax.barh(places, list(map(fmean, found)), 0.25, xerr=spread, label=title, color=SPARE[i])
    ax.set(title="Accuracy by the image that is shown", xlabel="temperature 1", xlim=(0, 1))
    ax.set_yticks(range(len(order)), order)
    ax.margins(y=0.02)
    ax.invert_yaxis()
    figure.legend(loc="outside right center", fontsize=8)
    return figure


def main(argv: list[str]) -> None:
    """The command line: the pictures as PNG files, named by what they show; those of kept results
    by their file or folder too.
    """
    parser = Parser("tools.curves", description="Pictures of runs and of kept results.")
    told = "folders that train.py wrote; files and folders that tools.compare --out wrote"
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help=told)
    parser.add_argument("--out", default="assets", metavar="FOLDER", help="where they go")
    args = parser.parse_args(argv)
    if matplotlib is None:
        raise InputError(NO_PICTURES)
    figures, runs = {}, []
    with written_here(" or ".join(args.sources)):
        for source in args.sources:
            if Path(source, "metrics.jsonl").exists():
                runs.append(read_run(source))
            else:
                figures |= draw_records(Path(source).stem, read_records([source]))
        figures |= draw(group_seeds(runs))
    Path(args.out).mkdir(parents=True, exist_ok=True)
    for title, figure in figures.items():
        path = Path(args.out, f"{title.lower().replace(' ', '_')}.png")
        figure.savefig(path)
        print(path)


if __name__ == "__main__":
    run_program(main, sys.argv[1:])
