"""What runs have logged, drawn: the pictures of the report and of the README, by matplotlib.

    python -m tools.curves out/compare/base0-noise0.5-* results/runs/noise --out assets

A variant, runs that differ only by seed, is a line: the mean over its seeds, each of them faint.
"""

import re
import sys
import textwrap
from collections import Counter
from itertools import cycle
from pathlib import Path
from statistics import fmean, stdev

from config import Parser
from data.example import InputError
from data.reading import written_here
from lib.log import run_program, visible
from start import FREE_TO_CHANGE
from tools.tables import FIRST, LOOKS, by_row, find, read_records, read_run

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
Variant = tuple[str, str, list[dict]]  # a label, its colour, runs as tables.read_run gives them


def group_seeds(runs: list[dict]) -> list[Variant]:
    """Runs that differ only by seed together, named by their method, or where that has several such
    variants by their first folder. The first one of a method has its colour.
    """
    groups, seen = {}, Counter()
    for run in runs:
        flags = dict.fromkeys(FREE_TO_CHANGE | {"eval_base", "seed", "base_seed"})
        alike = str({**run["config"], **flags} if run["config"] else run["folder"])
        seeds = (alike, run["config"].get("seed"), run["config"].get("base_seed"))
        seen[seeds] += 1  # a second run of equal seeds is no further seed, but a variant of its own
        groups.setdefault((alike, seen[seeds]), []).append(run)
    methods = [str(group[0]["config"].get("method", "")) for group in groups.values()]
    variants, free, spare = [], {**COLOURS}, cycle(SPARE)
    for method, group in zip(methods, groups.values()):
        label = method if method and methods.count(method) == 1 else group[0]["folder"].name
        colour = free.pop(re.split("[,:]", method)[0], None) or next(spare)
        variants.append((visible(label)[:50], colour, group))  # more has no room
    return variants


def lines_of(runs: list[dict], metric: str) -> list[dict[float, float]]:
    """{step: value} of each run, and last their mean; what steps log is a moving mean."""
    lines = []
    for run in runs:
        points = {at["step"]: at[metric] for at in run["lines"] if at.get(metric) is not None}
        values = [*points.values()]
        reach = 0 if metric.startswith("val/") else len(values) // 40  # on either side
        near = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
        lines.append(dict(zip(points, map(fmean, near))))
    steps = sorted(set().union(*lines))
    return [*lines, {step: fmean(line[step] for line in lines if step in line) for step in steps}]


def draw(variants: list[Variant]) -> "dict[str, Figure]":
    """Every picture of runs that something was logged for, by its title."""
    figures = {"Modes": plot_modes(variants)}
    figures |= {title: plot_curve(title, variants) for title in CURVES}
    return {title: figure for title, figure in figures.items() if figure}


def draw_records(kept: str, records: list[dict]) -> "dict[str, Figure]":
    """Kept results: what the traces' noise does; of one noise, accuracies on the way, and looks."""
    runs = []
    for (row, _), found in by_row(records).items():
        for record in found:  # as read_run gives a run; NOISE's lines have the noise as their step
            read = zip(record.get("on_the_way", ()), record["val"])
            lines = [{"step": at["step"], "val/accuracy": x} for at, x in read if at["step"]]
            noisy = {f"val/{title}": find(record, names) for title, names in NOISE.items()}
            lines.append({"step": record["trace_noise"], **noisy})
            runs.append({**record, "config": {"method": row, "seed": len(runs)}, "lines": lines})
    variants = group_seeds(runs)
    if len({record["trace_noise"] for record in records}) == 1:
        figures = draw(variants)
        if all("other" in find(record, FIRST) for record in records):
            figures["looks"] = plot_looks(variants)
        return {f"{kept}_{title}": figure for title, figure in figures.items()}
    figure = Figure(figsize=(9, 3))
    for ax, title in zip(figure.subplots(1, 3, sharey=True), NOISE):
        plot_lines(ax, variants, f"val/{title}")
        ax.set(title=title, xlabel="trace noise", ylim=(0, 1.02))
    figure.axes[0].legend(loc="lower left")
    return {kept: figure}


def plot_lines(ax, variants: list[Variant], metric: str) -> None:
    """A line per variant: the mean over its seeds, which are faint."""
    for label, colour, runs in variants:
        look = {"color": colour, "marker": "." if metric.startswith("val/") else None}
        *seeds, line = lines_of(runs, metric)
        if line:
            for seed in seeds:
                ax.plot(*zip(*seed.items()), alpha=0.25, **look)
            ax.plot(*zip(*line.items()), label=label, **look)


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
    lines = [[lines_of(runs, f"share_{mode}")[-1] for mode in MODES] for *_, runs in variants]
    shown = [(label, found) for (label, *_), found in zip(variants, lines) if all(found)]
    if not shown:
        return None
    figure = Figure(figsize=(2.6 * len(shown) + 1.4, 2.9))
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for ax, (label, found) in zip(axes, shown):
        steps, shares = [*found[0]], [[*line.values()] for line in found]
        ax.stackplot(steps, *shares, colors=MODES.values(), labels=MODES)
        ax.set(title=textwrap.fill(label, 22), xlabel="step", ylim=(0, 1))
        ax.set_xlim(steps[0], max(steps[-1], 1))
    axes[0].set_ylabel("share of groups")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", reverse=True)
    return figure


def plot_looks(variants: list[Variant]) -> "Figure":
    """Accuracy at temperature 1 by the image shown: a bar per variant, the best first."""
    seen = lambda variant, title: [find(run, LOOKS[title][1:]) for run in variant[2]]
    order = sorted(variants, key=lambda variant: fmean(seen(variant, "own image")), reverse=True)
    figure = Figure(figsize=(7, 0.4 * len(order) + 1))
    ax = figure.subplots()
    for i, title in enumerate(("own image", "another", "blank")):
        found = [seen(variant, title) for variant in order]
        spread = [stdev(values) if len(values) > 1 else 0 for values in found]
        places = [place + 0.27 * (i - 1) for place in range(len(order))]
        ax.barh(places, list(map(fmean, found)), 0.25, xerr=spread, label=title, color=SPARE[i])
    ax.set(title="Accuracy by the image that is shown", xlabel="temperature 1", xlim=(0, 1))
    ax.set_yticks(range(len(order)), [label for label, *_ in order])
    ax.margins(y=0.02)
    ax.invert_yaxis()
    figure.legend(loc="outside right center", fontsize=8)
    return figure


def main(argv: list[str]) -> None:
    """The command line: PNG files named by what they show, of kept results by their folder too."""
    parser = Parser("tools.curves", description="Pictures of runs and of kept results.")
    parser.add_argument("sources", nargs="+", help="folders of train.py or tools.compare --out")
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
