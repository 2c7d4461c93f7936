"""What runs have logged, read back and drawn: the pictures of the report and of a README.

A variant (runs that differ only by seed) is a line, the mean over its seeds. Metrics of single
steps are noisy, so they are shown as moving means over a twentieth of the run; validation readings
as they were measured. One method has one colour everywhere. matplotlib is optional, and imported
here alone. Left out: time as the horizontal axis.
"""

import io
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from data.example import InputError
from lib.log import read_state, visible
from tools.gallery import MODES, read_lines

SEEDS = ("seed", "base_seed", "data_seed")
# flags that don't change what is learned, or only by chance: runs that differ by these alone are
# one variant
ASIDE = {*SEEDS, "output_dir", "data_dir", "overwrite", "resume", "num_threads", "save_steps"}
ASIDE |= {"save_total_limit", "log_groups_every", "eval_steps", "eval_base", "final_splits"}
METHODS = {  # name, and its colours on white and on black, told apart by the colour-blind too
    "dyme": ("DyME", "#1f5fbf", "#7aaeff"),
    "grpo": ("GRPO", "#c4500c", "#ff9d5c"),
    "sft": ("SFT", "#0a8063", "#42d1a8"),
    "two_stage": ("two-stage", "#8b3fa8", "#d596f2"),
    "curr_reft": ("Curr-ReFT", "#8f6a00", "#e3bf4a"),
}
SPARE = [("#566070", "#b3bcc9"), ("#0784a5", "#5cd3ee"), ("#b93a77", "#ff94c4")]  # of others
DASHES = ["-", "--", ":", "-."]  # of variants of one method
MOST_POINTS = 400  # of a line
LABEL = 40  # characters of a name


# ---- runs ----------------------------------------------------------------------------------------


@dataclass
class Run:
    """One output folder: its config, metrics by step, validation readings, and readings by split
    before and after.
    """

    folder: Path
    config: dict
    steps: list[dict]
    val: list[dict]
    base: dict
    final: dict


@dataclass
class Variant:
    """Runs that differ only by seed. nth: how many of its method were named before it; again:
    folders that hold a run of the same seed once more, which is no other seed and counts once.
    """

    label: str
    method: str
    nth: int
    runs: list[Run]
    again: list[Path] = field(default_factory=list)


def read_run(folder: str | Path) -> Run:
    """What a run has written so far; InputError, one line, for a folder that isn't a run's."""
    folder = Path(folder)
    if not (folder / "metrics.jsonl").is_file():
        raise InputError(
            f"{folder}: no metrics.jsonl; give folders that train.py wrote (its --output_dir)"
        )
    steps = read_lines(folder / "metrics.jsonl")
    if not steps:
        raise InputError(f"{folder}/metrics.jsonl: no step is logged yet; wait for the first one")
    return Run(folder, steps=steps, **read_state(folder))


def group_seeds(runs: list[Run]) -> list[Variant]:
    """Runs that differ only by seed together, each variant named by what tells it from others."""
    together = {}
    for run in runs:
        settings = {name: value for name, value in run.config.items() if name not in ASIDE}
        key = json.dumps(settings, sort_keys=True) if settings else str(run.folder)
        together.setdefault(key, []).append(run)
    usual = {}  # the commonest value of each setting: it needs no mention
    configs = [group[0].config for group in together.values()]
    for name in sorted(set().union(*configs) - ASIDE - {"method"}):
        written = [json.dumps(config[name]) for config in configs if name in config]
        usual[name] = Counter(written).most_common(1)[0][0]
    variants, labels, counts = [], set(), Counter()
    for group in together.values():
        config, folder = group[0].config, group[0].folder.name
        own = [n for n in usual if n in config and json.dumps(config[n]) != usual[n]]
        method = str(config.get("method", folder))
        name = METHODS.get(method, (method,))[0]
        label = visible(", ".join([name, *(f"{n} {config[n]}" for n in own)]))[:LABEL]
        if len(own) > 3 or label in labels:
            label = visible(str(group[0].folder))[-LABEL:]
        labels.add(label)
        seeds = {}  # the longest run of each seed
        for run in sorted(group, key=lambda run: -len(run.steps)):
            key = [run.config.get(name) for name in SEEDS] if run.config else run.folder
            seeds.setdefault(str(key), []).append(run)
        again = [run.folder for same in seeds.values() for run in same[1:]]
        first = [run for run in group if run.folder not in again]
        variants.append(Variant(label, method, counts[method], first, again))
        counts[method] += 1
    return variants


def colours(methods: list[str]) -> dict[str, tuple[str, str]]:
    """The colour of each method, (on white, on black): the same in every picture and table."""
    unknown = [method for method in dict.fromkeys(methods) if method not in METHODS]
    spare = {method: SPARE[i % len(SPARE)] for i, method in enumerate(unknown)}
    return {method: METHODS[method][1:] for method in METHODS} | spare


# ---- pictures ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """What a picture shows: a key of metrics.jsonl, or of the validation readings; share: its axis
    is 0 to 1.
    """

    key: str
    title: str
    caption: str
    share: bool = True
    of_val: bool = False


CURVES = [
    Curve("accuracy", "Accuracy", "validation questions, greedy", of_val=True),
    Curve("fact_precision", "True facts", "of the stated ones, validation", of_val=True),
    Curve("reward", "Reward", "mean of the sampled responses", share=False),
    Curve("correct", "Correct samples", "right answer, right format"),
    Curve("frac_reward_zero_std", "Advantage collapse", "groups with equal rewards"),
    Curve("completions/mean_length", "Length", "tokens of a response", share=False),
    Curve("entropy", "Entropy", "nats per token, in the update", share=False),
    Curve("step_time", "Seconds per step", "rollout, rewards, update", share=False),
]
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}
STYLE |= {"grid.alpha": 0.25, "font.size": 10, "axes.titlelocation": "left"}
STYLE |= {"axes.titleweight": "bold", "legend.frameon": False, "svg.hashsalt": "report"}
STYLE |= {"text.parse_math": False}  # a label is a file's word: no $ of it is a formula
INKS = ("#1c1f23", "#e6e8eb")


def has_matplotlib() -> bool:
    """Whether pictures can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def render(plot: Callable, size: tuple[float, float], dark: int = 0, form: str = "svg") -> bytes:
    """The picture that plot(figure, dark) draws, in inches: svg for the page, png for a README."""
    import matplotlib
    from matplotlib.figure import Figure

    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    with matplotlib.rc_context({**STYLE, **dict.fromkeys(names, INKS[dark])}):
        figure, buffer = Figure(figsize=size, layout="constrained"), io.BytesIO()
        plot(figure, dark)
        about = {"Date": None} if form == "svg" else {}
        figure.savefig(buffer, format=form, dpi=160, transparent=form == "svg", metadata=about)
    return buffer.getvalue()


def is_number(value) -> bool:
    """Whether a picture can show it."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def values(run: Run, key: str, of_val: bool) -> dict[float, float]:
    """A run's value at each step where it has one."""
    lines = run.steps
    if of_val:
        start = run.base.get(run.config.get("eval_split"), {}).get("greedy")
        lines = ([{**start, "step": 0}] if start else []) + run.val
    lines = [line for line in lines if is_number(line.get("step")) and is_number(line.get(key))]
    # an update without tokens has no entropy; it is logged as 0
    return {line["step"]: line[key] for line in lines if key != "entropy" or line[key] != 0}


def line_of(variant: Variant, key: str, of_val: bool = False):
    """(steps, values, smoothed values), the values (runs, steps) at the steps that all seeds have;
    smoothed: over a fortieth of the run on either side. None where nothing was logged.
    """
    by_run = [values(run, key, of_val) for run in variant.runs]
    steps = sorted(set.intersection(*map(set, by_run)))
    if not steps:
        return None
    found = np.array([[points[step] for step in steps] for points in by_run])
    reach = 0 if of_val else len(steps) // 40
    places = np.arange(len(steps))
    begin, end = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(steps))
    total = np.concatenate([np.zeros((len(found), 1)), found.cumsum(axis=1)], axis=1)
    smooth = (total[:, end] - total[:, begin]) / (end - begin)
    every = -(-len(steps) // MOST_POINTS)
    return steps[::every], found[:, ::every], smooth[:, ::every]


def plot_curve(curve: Curve, variants: list[Variant], figure, dark: int) -> None:
    """A line per variant: the mean over its seeds, a band from the lowest to the highest; of a
    single run the steps themselves, faint.
    """
    ax, top = figure.subplots(), 0.0
    colour_of = colours([variant.method for variant in variants])
    for variant in variants:
        line = line_of(variant, curve.key, curve.of_val)
        if line is None:
            continue
        steps, raw, smooth = line
        colour = colour_of[variant.method][dark]
        if len(raw) > 1:
            ax.fill_between(steps, smooth.min(0), smooth.max(0), color=colour, alpha=0.15, lw=0)
        elif not curve.of_val:
            ax.plot(steps, raw[0], color=colour, alpha=0.2, lw=0.8)
        look = {"color": colour, "ls": DASHES[variant.nth % 4], "ms": 4}
        marker = "o" if curve.of_val else None
        ax.plot(steps, smooth.mean(0), label=variant.label, marker=marker, **look)
        top = max(top, smooth.max() * 1.08)
    ax.set(title=curve.title, xlabel="step", ylabel=curve.caption)
    ax.set_ylim(min(0.0, ax.get_ylim()[0]), top or 1.0)
    if curve.share:
        ax.set_ylim(0, 1.02)
    if len(variants) > 1:
        ax.legend(fontsize=8)


def plot_modes(variants: list[Variant], figure, dark: int) -> None:
    """The switch at work: a stacked area of the shares of groups per variant."""
    fills = [pair[dark] for pair in MODES.values()]
    axes = figure.subplots(1, len(variants), sharey=True, squeeze=False)[0]
    for ax, variant in zip(axes, variants):
        lines = [line_of(variant, f"share_{mode}") for mode in MODES]
        shares = [smooth.mean(0) for _, _, smooth in lines]
        ax.stackplot(lines[0][0], *shares, colors=fills, labels=MODES)
        ax.set(title=variant.label, xlabel="step", ylim=(0, 1), xlim=(0, lines[0][0][-1] or 1))
    axes[0].set_ylabel("share of groups")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", reverse=True)


def plot_noise(records: list[dict], figure, dark: int) -> None:
    """tools/compare.py's records of several trace noises: accuracy on the test split and the share
    of stated facts that are true; a line per row, a dot per run.
    """
    panels = [("accuracy, greedy", "greedy", "accuracy")]
    panels += [("accuracy at temperature 1", "sampled", "accuracy")]
    panels += [("stated facts that are true", "sampled", "fact_precision")]
    rows = list(dict.fromkeys(record["row"] for record in records))
    noises = sorted({record["trace_noise"] for record in records})
    axes = figure.subplots(1, 3, sharey=True)
    for ax, (title, reading, metric) in zip(axes, panels):
        for row in rows:
            found = {}
            for record in sorted(records, key=lambda record: record["trace_noise"]):
                if record["row"] == row:
                    value = record["final"]["test"][reading][metric]
                    if value is not None:
                        found.setdefault(record["trace_noise"], []).append(value)
            colour = colours(rows)[row][dark]
            ax.plot(list(found), [statistics.mean(v) for v in found.values()], c=colour, label=row)
            for noise, dots in found.items():
                ax.plot([noise] * len(dots), dots, "o", color=colour, ms=3)
        ax.set(title=title, xlabel="trace noise", ylim=(0, 1.02))
        ax.set_xticks(noises, [f"{noise:g}" for noise in noises])
    axes[0].legend(loc="lower left")


def curves_of(variants: list[Variant]) -> list[Curve]:
    """The curves of which anything was logged."""
    return [
        curve
        for curve in CURVES
        if any(line_of(variant, curve.key, curve.of_val) for variant in variants)
    ]


def switched(variants: list[Variant]) -> list[Variant]:
    """The variants whose shares of modes were logged."""
    return [v for v in variants if all(line_of(v, f"share_{mode}") for mode in MODES)]


def save_png(variants: list[Variant], records: list[dict], folder: Path) -> list[Path]:
    """All pictures as files: accuracy.png, true_facts.png .. by their titles, modes.png and, of
    records, noise.png.
    """
    plots = {}
    for curve in curves_of(variants):
        name = curve.title.lower().replace(" ", "_")
        plots[name] = (partial(plot_curve, curve, variants), (5.6, 3.4))
    if shown := switched(variants):
        plots["modes"] = (partial(plot_modes, shown), (2.6 * len(shown) + 1.4, 2.9))
    if records:
        plots["noise"] = (partial(plot_noise, records), (9, 3))
    folder.mkdir(parents=True, exist_ok=True)
    for name, (plot, size) in plots.items():
        (folder / f"{name}.png").write_bytes(render(plot, size, form="png"))
    return [folder / f"{name}.png" for name in plots]
