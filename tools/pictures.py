"""
PNG pictures, for a README: the report's curves (`report.py --png FOLDER`), and what trace noise
does to each method (`evaluate.py --table results/noise.json --png FILE`).

matplotlib is optional, and imported here alone. Left out: what the curves are (figures.py).
"""

from pathlib import Path
from statistics import mean

from data import InputError
from tools.figures import COLOURS, CURVES, DASHES, MODE_COLOURS, MODES, limits, lines_of, mode_lines
from tools.runs import Variant

STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}
STYLE |= {"grid.alpha": 0.25, "font.size": 10, "axes.titlelocation": "left"}
STYLE |= {"axes.titleweight": "bold", "legend.frameon": False}


def load_pyplot():
    """matplotlib's pyplot without a display; InputError where it isn't installed."""
    try:
        import matplotlib
    except ImportError:
        raise InputError(
            "--png: matplotlib is not installed; pip install matplotlib, or leave --png out"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def look(number: int) -> dict:
    """The colour and dashes of the line with this number."""
    dash = [float(part) / 1.8 for part in DASHES[number % len(DASHES)].split()]
    linestyle = (0, tuple(dash)) if dash else "-"
    return {"color": COLOURS[number][0], "linestyle": linestyle, "markersize": 4}


def save_png(variants: list[Variant], folder) -> list[Path]:
    """The report's curves as <folder>/<key>.png and modes.png, on white."""
    pyplot = load_pyplot()
    folder, written = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)

    def save(figure, name):
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1], dpi=160)
        pyplot.close(figure)

    with pyplot.rc_context(STYLE):
        for curve in CURVES:
            lines = lines_of(variants, curve)
            figure, ax = pyplot.subplots(figsize=(5.6, 3.4), layout="constrained")
            for line in lines:
                style = look(line.variant.colour)
                colour = style["color"]
                if line.raw:
                    ax.plot(line.steps, line.raw, color=colour, alpha=0.18, linewidth=0.8)
                if len(line.variant.runs) > 1:
                    band = {"color": colour, "alpha": 0.15, "linewidth": 0}
                    ax.fill_between(line.steps, line.low, line.high, **band)
                label = line.variant.label.replace("$", r"\$")
                marker = "o" if curve.of_val else None
                ax.plot(line.steps, line.mean, label=label, marker=marker, **style)
            ax.set(title=curve.title, xlabel="step", ylabel=curve.caption)
            ax.set_ylim(*limits(curve, lines)[1:])
            if lines:
                ax.legend()
            save(figure, curve.key)
        shown = [(variant, lines) for variant in variants if (lines := mode_lines(variant))]
        if shown:
            save(draw_modes(pyplot, shown), "modes")
    return written


def draw_modes(pyplot, shown: list):
    """The switch at work: a stacked area for each (variant, its lines of shares)."""
    size = (2.6 * len(shown) + 1.4, 2.9)
    settings = {"figsize": size, "sharey": True, "layout": "constrained", "squeeze": False}
    figure, (row,) = pyplot.subplots(1, len(shown), **settings)
    colours = [light for light, _ in MODE_COLOURS]
    for ax, (variant, lines) in zip(row, shown):
        shares = [line.mean for line in lines]
        ax.stackplot(lines[0].steps, *shares, colors=colours, labels=MODES.values())
        ax.set(title=variant.label.replace("$", r"\$"), xlabel="step")
        ax.set(ylim=(0, 1), xlim=(0, lines[0].steps[-1] or 1))
    row[0].set_ylabel("share of groups")
    legend = row[0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside right center", reverse=True)
    return figure


def save_noise(records: list[dict], path) -> None:
    """
    compare.py's records of several trace noises as one picture: test accuracy greedy and at
    temperature 1, and the share of stated facts that are true; a line for each row, a dot a run.
    """
    pyplot = load_pyplot()
    panels = [("accuracy, greedy", "greedy", "accuracy")]
    panels += [("accuracy at temperature 1", "sampled", "accuracy")]
    panels += [("stated facts that are true", "sampled", "fact_precision")]
    rows = list(dict.fromkeys(record["row"] for record in records))
    noises = sorted({record["trace_noise"] for record in records})
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(1, 3, figsize=(9, 3), sharey=True, layout="constrained")
        for ax, (title, reading, metric) in zip(axes, panels):
            for number, row in enumerate(rows):
                found = {noise: [] for noise in noises}
                for record in records:
                    if record["row"] == row:
                        value = record["final"]["test"][reading][metric]
                        found[record["trace_noise"]].append(value)
                held = {noise: values for noise, values in found.items() if values}
                ax.plot(list(held), [mean(v) for v in held.values()], label=row, **look(number))
                for noise, values in held.items():
                    ax.plot([noise] * len(values), values, "o", color=COLOURS[number][0], ms=3)
            ax.set(title=title, xlabel="trace noise", ylim=(0, 1.02))
            ax.set_xticks(noises, [f"{noise:g}" for noise in noises])
        axes[0].legend(loc="lower left")
        figure.savefig(path, dpi=160)
        pyplot.close(figure)
