"""What runs have logged, read back and drawn: the pictures of the report and of the README.

    python -m tools.curves out/compare/base0-noise0.5-* results/runs/noise --out assets

A variant, runs that differ only by seed, is a line: the mean over its seeds, each of them faint.
Metrics of single steps are noisy, so they are shown as moving means over a twentieth of the run.
matplotlib is optional. Left out: time as the horizontal axis.
"""

import itertools
import re
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from config import Parser
from data.example import InputError
from data.reading import read_lines, written_here
from lib.checkpoint import read_json
from lib.log import run_program, visible
from tools.compare import read_records
from tools.tables import by_row

try:
    import matplotlib
    from matplotlib.figure import Figure

    STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}
    STYLE |= {"grid.alpha": 0.25, "axes.titlelocation": "left", "axes.titleweight": "bold"}
    STYLE |= {"figure.constrained_layout.use": True, "savefig.dpi": 160}
    STYLE |= {"text.parse_math": False}  # a label is a file's word: no $ of it is a formula
    matplotlib.rcParams.update(STYLE)
except ImportError:
    matplotlib = None

NO_PICTURES = "pictures need matplotlib: pip install matplotlib"
# flags that change what is learned by chance alone, or not at all
ASIDE = {"seed", "base_seed", "output_dir", "data_dir", "overwrite", "resume", "final_splits"}
ASIDE |= {"save_steps", "log_groups_every", "eval_steps", "eval_size", "eval_base", "report_to"}
COLOURS = {  # told apart by the colour-blind too
    "dyme": "#1f5fbf",
    "grpo": "#c4500c",
    "sft": "#0a8063",
    "two_stage": "#8b3fa8",
    "curr_reft": "#8f6a00",
}
# of other methods, and of a method's second variant
SPARE = ("#0784a5", "#b93a77", "#566070", "#7d9c0f", "#d4a017", "#333a8c")
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


# ---- runs ---------------------------------------------------------------------------------------


@dataclass
class Run:
    """One output folder: its metrics by step, and of result.json or a checkpoint's state.json what
    is there: config, val, base, final.
    """

    folder: Path
    steps: list[dict]
    state: dict = field(default_factory=lambda: {"config": {}, "val": [], "base": {}, "final": {}})


@dataclass
class Variant:
    """Runs that differ only by seed."""

    label: str
    colour: str
    runs: list[Run]


def read_run(folder: str | Path) -> Run:
    """What a run has written so far: its state from result.json, or while there is none from its
    last checkpoint. InputError, one line, for a folder that isn't a run's.
    """
    run = Run(Path(folder), read_lines(Path(folder) / "metrics.jsonl", ("step",), cut=False))
    if not run.steps:
        raise InputError(f"{folder}/metrics.jsonl: no step is logged; give folders of train.py")
    with written_here(run.folder / "metrics.jsonl"):
        sum(row["step"] for row in run.steps)  # each is a number
    paths = sorted(run.folder.glob("checkpoints/step-*[0-9]/state.json"))
    for path in [*paths, *run.folder.glob("result.json")][-1:]:
        with written_here(path):
            found = read_json(path)
            run.state = {name: type(v)(found.get(name, v)) for name, v in run.state.items()}
            sum(reading["step"] for reading in run.state["val"])  # here too
            run.state["final"] = {name: dict(v) for name, v in run.state["final"].items()}
    return run


def group_seeds(runs: list[Run]) -> list[Variant]:
    """Runs that differ only by seed together, each variant named by its method and what tells it
    from the others.
    """
    values, together = {}, {}  # flag: its values; label: runs
    for run in runs:
        for name, value in run.state["config"].items():
            values.setdefault(name, set()).add(str(value))
    tells = {name for name, found in values.items() if len(found) > 1} - ASIDE - {"method"}
    for run in runs:
        config = run.state["config"]
        told = [f"{name} {value}" for name, value in config.items() if name in tells and value]
        label = ", ".join([str(config.get("method", run.folder.name)), *told])
        together.setdefault(label, []).append(run)
    variants = []
    for (label, group), colour in zip(together.items(), colours(together)):
        label = label if len(label) < 40 else group[0].folder.name  # a long one has no room
        variants.append(Variant(visible(label), colour, group))
    return variants


def colours(labels: Iterable[str]) -> list[str]:
    """A colour for each label: its method's, for the first that begins with it, or a spare one."""
    found, spare = [], itertools.cycle(SPARE)
    for label in labels:
        colour = COLOURS.get(re.split("[,:]", label)[0])
        found.append(next(spare) if colour is None or colour in found else colour)
    return found


# ---- pictures of runs ---------------------------------------------------------------------------


def line_of(variant: Variant, metric: str) -> tuple[list[int], np.ndarray] | None:
    """(steps, values (runs, steps)) at the steps that all seeds have, None where nothing was
    logged. Of a metric of the steps the mean over a fortieth of the run on either side.
    """
    name = metric.removeprefix("val/")
    by_run = []
    for run in variant.runs:
        lines = run.steps if name == metric else run.state["val"]
        by_run.append({line["step"]: line[name] for line in lines if line.get(name) is not None})
    steps = sorted(set.intersection(*map(set, by_run)))
    if not steps:
        return None
    values = np.array([[points[step] for step in steps] for points in by_run])
    reach = len(steps) // 40 if name == metric else 0
    near = [slice(max(0, i - reach), i + reach + 1) for i in range(len(steps))]
    return steps, np.stack([values[:, span].mean(axis=1) for span in near], axis=1)


def draw(variants: list[Variant]) -> "dict[str, Figure]":
    """Every picture that something was logged for, by its title."""
    figures = {"Modes": plot_modes(variants)}
    figures |= {title: plot_curve(title, variants) for title in CURVES}
    return {title: figure for title, figure in figures.items() if figure}


def plot_curve(title: str, variants: list[Variant]) -> "Figure | None":
    """A line per variant: the mean over its seeds, which are faint."""
    metric, about = CURVES[title]
    crowd = len(variants) > 6
    figure = Figure(figsize=(7, 4) if crowd else (4.8, 3.1))
    ax = figure.subplots()
    for variant in variants:
        if line := line_of(variant, metric):
            steps, values = line
            look = {"color": variant.colour, "marker": "." if metric.startswith("val/") else None}
            ax.plot(steps, values.T, alpha=0.25, **look)
            ax.plot(steps, values.mean(axis=0), label=variant.label, **look)
    if not ax.lines:
        return None
    ax.set(title=title, xlabel="step", ylabel=about)
    ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
    if crowd:
        figure.legend(loc="outside right center", fontsize=8)
    else:
        ax.legend(fontsize=8)
    return figure


def plot_modes(variants: list[Variant]) -> "Figure | None":
    """The switch at work: a stacked area of the shares of groups per variant."""
    lines = [(v.label, [line_of(v, f"share_{mode}") for mode in MODES]) for v in variants]
    lines = [(label, found) for label, found in lines if all(found)]
    if not lines:
        return None
    figure = Figure(figsize=(2.6 * len(lines) + 1.4, 2.9))
    axes = figure.subplots(1, len(lines), sharey=True, squeeze=False)[0]
    for ax, (label, found) in zip(axes, lines):
        steps = found[0][0]
        shares = [values.mean(axis=0) for _, values in found]
        ax.stackplot(steps, *shares, colors=MODES.values(), labels=MODES)
        ax.set(title=textwrap.fill(label, 22), xlabel="step", ylim=(0, 1))
        ax.set_xlim(steps[0], max(steps[-1], 1))
    axes[0].set_ylabel("share of groups")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", reverse=True)
    return figure


# ---- pictures of kept results, by tools.compare -------------------------------------------------


def draw_records(records: list[dict]) -> "dict[str, Figure]":
    """What the traces' noise does; of a single noise, val on the way and whose image is seen."""
    if len({record["trace_noise"] for record in records}) > 1:
        return {"noise": plot_noise(records)}
    rows, figures = {row: runs for (row, _), runs in by_row(records).items()}, {}
    if all(len(record["val"]) > 1 and not record.get("stages") for record in records):
        variants = [Variant(row, c, kept_runs(rows[row])) for row, c in zip(rows, colours(rows))]
        figures["val"] = plot_curve("Accuracy", variants)
    if all("other" in first_split(record) for record in records):
        figures["looks"] = plot_looks(rows)
    return figures


def first_split(record: dict) -> dict[str, dict]:
    """A record's readings of the split that comes first, the test split."""
    return next(iter(record["final"].values()))


def kept_runs(records: list[dict]) -> list[Run]:
    """What a record keeps of a run: the accuracy of val, read at equal distances."""
    runs = []
    for record in records:
        every = record["steps"] // len(record["val"])
        read = [{"step": every * i, "accuracy": a} for i, a in enumerate(record["val"], start=1)]
        runs.append(Run(Path(), [], {"val": read}))
    return runs


def plot_looks(rows: dict[str, list[dict]]) -> "Figure":
    """Accuracy at temperature 1 by the image shown: a bar per row, the best first; its spread."""
    bars = {}  # title: row: accuracies
    for title, reading in (("own image", "sampled"), ("another", "other"), ("blank", "blank")):
        bars[title] = {
            row: [first_split(r)[reading]["accuracy"] for r in rows[row]] for row in rows
        }
    order = sorted(rows, key=lambda row: -mean(bars["own image"][row]))
    figure = Figure(figsize=(7, 0.4 * len(rows) + 1))
    ax = figure.subplots()
    for i, (title, found) in enumerate(bars.items()):
        places = [place + 0.27 * (i - 1) for place in range(len(order))]
        spread = [stdev(found[row]) if len(found[row]) > 1 else 0 for row in order]
        means = [mean(found[row]) for row in order]
        ax.barh(places, means, 0.25, xerr=spread, label=title, color=SPARE[i])
    ax.set(title="Accuracy by the image that is shown", xlabel="temperature 1", xlim=(0, 1))
    ax.set_yticks(range(len(order)), order)
    ax.margins(y=0.02)
    ax.invert_yaxis()
    figure.legend(loc="outside right center", fontsize=8)
    return figure


def plot_noise(records: list[dict]) -> "Figure":
    """Test accuracy and true facts against the traces' noise: a dot per run, a line per row."""
    panels = {
        "accuracy, greedy": ("greedy", "accuracy"),
        "accuracy at temperature 1": ("sampled", "accuracy"),
        "stated facts that are true": ("sampled", "fact_precision"),
    }
    rows = list(dict.fromkeys(record["row"] for record in records))
    figure = Figure(figsize=(9, 3))
    for ax, (title, (reading, metric)) in zip(figure.subplots(1, 3, sharey=True), panels.items()):
        for row, colour in zip(rows, colours(rows)):
            by_noise = {}
            for record in records:
                value = first_split(record)[reading][metric]
                if record["row"] == row and value is not None:
                    by_noise.setdefault(record["trace_noise"], []).append(value)
                    ax.plot(record["trace_noise"], value, ".", color=colour, alpha=0.4)
            means = [mean(by_noise[noise]) for noise in sorted(by_noise)]
            ax.plot(sorted(by_noise), means, color=colour, label=row)
        ax.set(title=title, xlabel="trace noise", ylim=(0, 1.02))
    figure.axes[0].legend(loc="lower left")
    return figure


def main(argv: list[str]) -> None:
    """The command line: the pictures as PNG files, named by what they show; those of kept results
    by their file or folder too.
    """
    parser = Parser(prog="tools.curves", description="Pictures of runs and of kept results.")
    add = parser.add_argument
    told = "folders that train.py wrote; files and folders that tools.compare --out wrote"
    add("sources", nargs="+", metavar="SOURCE", help=told)
    add("--out", default="assets", metavar="FOLDER", help="where the pictures go (%(default)s)")
    args = parser.parse_args(argv)
    if matplotlib is None:
        raise InputError(NO_PICTURES)
    figures, runs = {}, []
    for source in args.sources:
        if Path(source, "metrics.jsonl").exists():
            runs.append(read_run(source))
            continue
        kept = Path(source).stem
        for name, figure in draw_records(read_records([source])).items():
            figures[name if name == kept else f"{kept}_{name}"] = figure
    figures |= draw(group_seeds(runs))
    Path(args.out).mkdir(parents=True, exist_ok=True)
    for title, figure in figures.items():
        path = Path(args.out, f"{title.lower().replace(' ', '_')}.png")
        figure.savefig(path)
        print(path)


if __name__ == "__main__":
    run_program(main, sys.argv[1:])
