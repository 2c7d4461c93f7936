"""What runs have logged, read back and drawn: the pictures of the report and of a README.

A variant (runs that differ only by seed) is a line, the mean over its seeds. Metrics of single
steps are noisy, so they are shown as moving means over a twentieth of the run; validation readings
as they were measured. matplotlib is optional. Left out: time as the horizontal axis.
"""

import io
import itertools
import json
import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np

from data.example import InputError
from lib.log import visible
from tools.gallery import MODES, read_lines

try:
    import matplotlib
    from matplotlib.figure import Figure
except ImportError:
    matplotlib = Figure = None

SEEDS = ("seed", "base_seed", "data_seed")
# flags that don't change what is learned, or only by chance: runs that differ by these alone are
# one variant
ASIDE = {*SEEDS, "output_dir", "data_dir", "overwrite", "resume", "num_threads", "final_splits"}
ASIDE |= {"save_steps", "save_minutes", "save_total_limit", "log_groups_every"}
ASIDE |= {"eval_steps", "eval_base"}
COLOURS = {  # told apart by the colour-blind too
    "dyme": "#1f5fbf",
    "grpo": "#c4500c",
    "sft": "#0a8063",
    "two_stage": "#8b3fa8",
    "curr_reft": "#8f6a00",
}
SPARE = ("#0784a5", "#b93a77", "#566070")  # of other methods, and of a method's second variant
LABEL = 40  # characters of a variant's name
CURVES = {  # title: metric, what it is, whether it is a share
    "Accuracy": ("val/accuracy", "validation questions, greedy", True),
    "True facts": ("val/fact_precision", "of the stated ones, validation", True),
    "Reward": ("reward", "mean of the sampled responses", False),
    "Correct samples": ("correct", "right answer, right format", True),
    "Advantage collapse": ("frac_reward_zero_std", "groups with equal rewards", True),
    "Length": ("completions/mean_length", "tokens of a response", False),
    "Entropy": ("entropy", "nats per token, in the update", False),
    "Seconds per step": ("step_time", "rollout, rewards, update", False),
}
if matplotlib:
    STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}
    STYLE |= {"grid.alpha": 0.25, "axes.titlelocation": "left", "axes.titleweight": "bold"}
    STYLE |= {"text.parse_math": False}  # a label is a file's word: no $ of it is a formula
    matplotlib.rcParams.update(STYLE)


# ---- runs ---------------------------------------------------------------------------------------


@dataclass
class Run:
    """One output folder: metrics by step, config, validation readings, and readings by split before
    and after.
    """

    folder: Path
    steps: list[dict]
    config: dict
    val: list[dict]
    base: dict
    final: dict

    def seeds(self) -> str:
        """What tells it from the other runs of its variant."""
        return ", ".join(f"{name} {self.config[name]}" for name in SEEDS if name in self.config)


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
    folder = Path(folder)
    path = folder / "metrics.jsonl"
    steps = read_lines(path) if path.is_file() else []
    if not steps:
        raise InputError(f"{path}: no step is logged; give folders that train.py wrote")
    saved = sorted(folder.glob("checkpoints/step-*[0-9]/state.json"), reverse=True)
    paths = [path for path in [folder / "result.json", *saved] if path.is_file()]
    kinds = {"config": dict, "val": list, "base": dict, "final": dict}
    try:
        state = json.loads(paths[0].read_text(encoding="utf-8")) if paths else {}
        return Run(folder, steps, *(kind(state.get(name, ())) for name, kind in kinds.items()))
    except (ValueError, TypeError, AttributeError):
        raise InputError(f"{paths[0]}: isn't what train.py writes; remove the file") from None


def group_seeds(runs: list[Run]) -> list[Variant]:
    """Runs that differ only by seed together, each variant named by its method and what tells it
    from the others. InputError for two runs of equal flags and seeds.
    """
    together, values = {}, {}
    for run in runs:
        settings = {name: json.dumps(v) for name, v in run.config.items() if name not in ASIDE}
        for name, value in settings.items():
            values.setdefault(name, set()).add(value)
        same = together.setdefault(str(settings or run.folder), {})
        if same.setdefault(run.seeds(), run) is not run:
            other = same[run.seeds()].folder
            raise InputError(f"{run.folder}: has the flags and seed of {other}; leave one out")
    variants, spare = [], itertools.cycle(SPARE)
    for group in (list(same.values()) for same in together.values()):
        config, folder = group[0].config, "/".join(group[0].folder.parts[-2:])
        method = str(config.get("method", folder))
        own = [n for n in config if len(values.get(n, ())) > 1 and n != "method"]
        label = ", ".join([method, *(f"{name} {config[name]}" for name in own)])
        label = label if len(label) <= LABEL else folder[-LABEL:]
        colour = COLOURS.get(method)
        if colour is None or colour in [variant.colour for variant in variants]:
            colour = next(spare)
        variants.append(Variant(visible(label), colour, group))
    return variants


# ---- pictures -----------------------------------------------------------------------------------


def is_number(value) -> bool:
    """Whether a picture can show it."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def line_of(variant: Variant, metric: str) -> tuple | None:
    """(steps, values, smoothed values), the values (runs, steps) at the steps that all seeds have;
    smoothed: over a fortieth of the run on either side. None where nothing was logged.
    """
    name = metric.removeprefix("val/")
    by_run = []
    for run in variant.runs:
        lines = run.steps if name == metric else run.val
        lines = [line for line in lines if is_number(line.get(name))]
        # an update without tokens has no entropy; it is logged as 0
        by_run.append({x["step"]: x[name] for x in lines if x[name] or name != "entropy"})
    steps = sorted(set.intersection(*map(set, by_run)))
    if not steps:
        return None
    raw = np.array([[points[step] for step in steps] for points in by_run])
    window = np.ones(2 * (len(steps) // 40) + 1 if name == metric else 1)
    near = np.convolve(np.ones(len(steps)), window, "same")
    return steps, raw, np.array([np.convolve(row, window, "same") for row in raw]) / near


def plot_curve(title: str, variants: list[Variant]) -> "Figure | None":
    """A line per variant: the mean over its seeds, a band from the lowest to the highest; of a
    single run the steps themselves, faint. None where nothing was logged.
    """
    metric, about, share = CURVES[title]
    figure = Figure(figsize=(4.8, 3.1), layout="constrained")
    ax, top = figure.subplots(), 0.0
    for variant in variants:
        if line := line_of(variant, metric):
            steps, raw, smooth = line
            if len(raw) > 1:
                low, high = smooth.min(0), smooth.max(0)
                ax.fill_between(steps, low, high, color=variant.colour, alpha=0.15, lw=0)
            else:
                ax.plot(steps, raw[0], color=variant.colour, alpha=0.2, lw=0.8)
            look = ".-" if metric.startswith("val/") else "-"
            ax.plot(steps, smooth.mean(0), look, color=variant.colour, label=variant.label)
            top = max(top, 1.08 * smooth.max())
    if not ax.lines:
        return None
    ax.set(title=title, xlabel="step", ylabel=about)
    ax.set_ylim(min(0, ax.get_ylim()[0]), 1.02 if share else top or 1)
    ax.legend(fontsize=8)
    return figure


def plot_modes(variants: list[Variant]) -> "Figure | None":
    """The switch at work: a stacked area of the shares of groups per variant."""
    lines = [(v.label, [line_of(v, f"share_{mode}") for mode in MODES]) for v in variants]
    lines = [(label, found) for label, found in lines if all(found)]
    if not lines:
        return None
    figure = Figure(figsize=(2.6 * len(lines) + 1.4, 2.9), layout="constrained")
    axes = figure.subplots(1, len(lines), sharey=True, squeeze=False)[0]
    for ax, (label, found) in zip(axes, lines):
        steps, shares = found[0][0], [smooth.mean(0) for _, _, smooth in found]
        ax.stackplot(steps, *shares, colors=MODES.values(), labels=MODES)
        ax.set(
            title=textwrap.fill(label, 22),
            xlabel="step",
            ylim=(0, 1),
            xlim=(steps[0], steps[-1] or 1),
        )
    axes[0].set_ylabel("share of groups")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", reverse=True)
    return figure


def plot_noise(records: list[dict]) -> "Figure":
    """tools/compare.py's records of several trace noises: accuracy on the test split and the share
    of stated facts that are true; a line per row, a dot per run.
    """
    panels = {"accuracy, greedy": ("greedy", "accuracy")}
    panels["accuracy at temperature 1"] = ("sampled", "accuracy")
    panels["stated facts that are true"] = ("sampled", "fact_precision")
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for ax, (title, (reading, metric)) in zip(axes, panels.items()):
        found = {}  # row: noise: values
        for record in sorted(records, key=lambda record: record["trace_noise"]):
            value = record["final"]["test"][reading][metric]
            if value is not None:
                noises = found.setdefault(record["row"], {})
                noises.setdefault(record["trace_noise"], []).append(value)
        for row, noises in found.items():
            colour = COLOURS.get(row, SPARE[-1])
            ax.plot(list(noises), [mean(v) for v in noises.values()], color=colour, label=row)
            for noise, dots in noises.items():
                ax.plot([noise] * len(dots), dots, ".", color=colour)
        ax.set(title=title, xlabel="trace noise", ylim=(0, 1.02))
    axes[0].legend(loc="lower left")
    return figure


def render(figure: "Figure", form: str) -> bytes:
    """The picture as a file: a transparent svg for the page, a white png for a README."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=160, transparent=form == "svg")
    return buffer.getvalue()
