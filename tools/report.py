"""
The report: one HTML page about any number of runs, to look at on a laptop or a phone.

    python report.py out/charts-dyme out/charts-grpo ... [--out report.html] [--png FOLDER]

Results, the picture of the switch, learning curves with the spread over seeds, and a gallery of
rollouts: what a group looked like to the method, its rewards, its advantages, the facts that each
response states, right or wrong.

The page is one file, needs no network and trusts nobody: whatever a model wrote is escaped, its
control characters are spelt out, and the page's policy runs no script but its own. Its look and
its script are in page.html, its curves in figures.py, its gallery in gallery.py.
"""

import argparse
import base64
import hashlib
import json
import re
import statistics
import sys
from pathlib import Path

from tools import figures
from tools import pictures
from data import InputError
from evaluate import interval
from tools.gallery import esc, gallery, sign
from tools.runs import Run, Variant, group_seeds, read_run

COLUMNS = [  # reading, metric, heading, what it says
    ("greedy", "accuracy", "accuracy", "greedy decoding, thinking first"),
    ("sampled", "accuracy", "at temperature 1", "accuracy when the answer is sampled"),
    ("direct", "accuracy", "answering directly", "accuracy without thinking: is it forgotten?"),
    ("greedy", "format", "format", "thinking, then exactly one marked answer"),
    (
        "sampled",
        "fact_precision",
        "true facts",
        "of the facts stated at temperature 1; 0 where none is stated",
    ),
    ("greedy", "grounded", "grounded", "right answers whose thinking states the needed facts"),
]


# -------------------------------------------------------------------------------------------------
# the parts of the page


def cell(readings: list[dict], reading: str, metric: str) -> str:
    """
    The mean over seeds, and how sure it is: the seeds' standard deviation, or the interval of a
    single count.
    """
    numbers = [
        r[reading][metric] for r in readings if figures.is_number(r.get(reading, {}).get(metric))
    ]
    if not numbers:
        return "<td>–</td>"
    mean, doubt = statistics.mean(numbers), ""
    if len(numbers) > 1:
        doubt = f"± {statistics.stdev(numbers):.3f}"
    elif metric == "accuracy" and readings[0][reading].get("count"):
        doubt = "{:.3f} to {:.3f}".format(*interval(mean, readings[0][reading]["count"]))
    bar = f'<span class="bar"><i style="width:{100 * min(max(mean, 0), 1):.0f}%"></i></span>'
    return f"<td><b>{mean:.3f}</b>{bar}<small>{doubt}</small></td>"


def results_table(variants: list[Variant]) -> str:
    """Before training and after, by split: a row for each variant."""
    runs = [run for variant in variants for run in variant.runs]
    heads = "".join(
        f'<th title="{esc(about)}">{esc(heading)}</th>' for _, _, heading, about in COLUMNS
    )
    parts = [f"<table><thead><tr><th></th>{heads}</tr></thead>"]
    for split in dict.fromkeys(split for run in runs for split in [*run.base, *run.final]):
        parts.append(
            f'<tbody><tr><th class="split" colspan="{len(COLUMNS) + 1}">{esc(split)}</th></tr>'
        )
        starts = {}  # each starting model once, however many runs set out from it
        for run in runs:
            if split in run.base:
                starts.setdefault(str(run.config.get("model")), {})[json.dumps(run.base[split])] = (
                    run.base[split]
                )
        for model, readings in starts.items():
            label = "before training" + (f", {model}" if len(starts) > 1 else "")
            parts.append(row(label, "", "", list(readings.values())))
        for variant in variants:
            readings = [run.final[split] for run in variant.runs if split in run.final]
            parts.append(
                row(variant.label, f"c{variant.colour}", about_runs(variant.runs), readings)
            )
        parts.append("</tbody>")
    if len(parts) == 1:
        parts.append(
            f'<tbody><tr><td colspan="{len(COLUMNS) + 1}">'
            "No run has been evaluated yet.</td></tr></tbody>"
        )
    return "".join(parts) + "</table>"


def row(label: str, css: str, about: str, readings: list[dict]) -> str:
    """A line of the table."""
    cells = "".join(cell(readings, reading, metric) for reading, metric, _, _ in COLUMNS)
    key = '<span class="key"></span>' if css else ""
    head = f"<th>{key}{esc(label)}<br><small>{esc(about)}</small></th>"
    return f'<tr class="{css}">{head}{cells}</tr>'


def about_runs(runs: list[Run]) -> str:
    """
    How many runs (seeds), steps and seconds a variant is made of, and whether it is still going
    on.
    """
    seeds = f"{len(runs)} runs, " if len(runs) > 1 else ""
    steps, seconds = (
        max(len(run.steps) for run in runs),
        statistics.mean(run.seconds for run in runs),
    )
    unfinished = sum(not run.final for run in runs)
    time = f"{seconds:.0f}\u00a0s" if seconds < 600 else f"{seconds / 60:.0f}\u00a0min"
    return f"{seeds}{steps} steps, {time}" + (f", {unfinished} unfinished" if unfinished else "")


def figure(svg: str, title: str, caption: str, readings: list[dict]) -> str:
    """A picture with its title, and the numbers that a pointer over it reads."""
    data = json.dumps(readings).replace("<", "\\u003c")  # nothing in it can end the script element
    head = f"<figcaption><h3>{esc(title)}</h3><small>{esc(caption)}</small></figcaption>"
    return (
        f'<figure class="card">{head}{svg}<script type="application/json">{data}</script></figure>'
    )


def curve_figures(variants: list[Variant]) -> str:
    """The learning curves, those of which anything was logged."""
    parts = []
    for curve in figures.CURVES:
        lines = figures.lines_of(variants, curve)
        if lines:
            labels = [line.variant.label for line in lines]
            readings = figures.readings(
                lines, labels, [f"c{line.variant.colour}" for line in lines]
            )
            parts.append(
                figure(figures.svg_curve(curve, lines), curve.title, curve.caption, readings)
            )
    return "".join(parts)


def mode_figures(variants: list[Variant]) -> str:
    """The picture of the method, one for each variant."""
    parts = []
    for variant in variants:
        lines = figures.mode_lines(variant)
        if lines:
            readings = figures.readings(
                lines, list(figures.MODES.values()), [f"m-{mode}" for mode in figures.MODES]
            )
            svg = figures.svg_modes(lines, variant.label)
            parts.append(figure(svg, variant.label, about_runs(variant.runs), readings))
    return "".join(parts)


def legend(variants: list[Variant]) -> str:
    """Buttons that name the lines and hide them."""
    parts = []
    for variant in variants:
        folders = ", ".join(str(run.folder) for run in variant.runs)
        swatch = '<svg viewBox="0 0 26 8"><path class="line" d="M0 4H26"/></svg>'
        css = f'class="c{variant.colour}" data-colour="c{variant.colour}"'
        parts.append(
            f'<button {css} aria-pressed="true" title="{esc(folders)}">'
            f"{swatch}{esc(variant.label)}</button>"
        )
    return "".join(parts)


# -------------------------------------------------------------------------------------------------
# the page


def colour_rules() -> str:
    """figures.py's colours as CSS, for white and for black."""
    rules = []
    for shade, media in ((0, "{}"), (1, "@media (prefers-color-scheme: dark) {{ {} }}")):
        found = [f".c{i} {{ --c: {pair[shade]}; }}" for i, pair in enumerate(figures.COLOURS)]
        for mode, pair in zip(figures.MODES, figures.MODE_COLOURS):
            found.append(
                f".m-{mode} {{ --c: {pair[shade]}; fill: var(--c); background: var(--c); }}"
            )
        ink = ("#22262b", "#121519")[shade]
        found.append(
            f":root {{ --mode-ink: {ink}; --memorize-line: {figures.MODE_COLOURS[0][shade]}; }}"
        )
        rules.append(media.format(" ".join(found)))
    for i in range(len(figures.COLOURS)):
        rules.append(f".c{i} {{ --dash: {figures.DASHES[i % len(figures.DASHES)] or 'none'}; }}")
    return "\n".join(rules)


def page(variants: list[Variant], title: str = "What the runs learned") -> str:
    """The whole page."""
    runs = [run for variant in variants for run in variant.runs]
    sets, models = (
        {str(run.config[name]) for run in runs if name in run.config}
        for name in ("dataset", "model")
    )
    about = f"{len(runs)} run{'s' * (len(runs) > 1)}"
    if sets:
        about += f" on {', '.join(sorted(sets))}, starting from {', '.join(sorted(models))}"
    smoothing = (
        "Moving means over a twentieth of a run." if any(map(figures.reach_of, variants)) else ""
    )
    spread = (
        "Bands reach from the lowest to the highest seed. "
        if any(len(v.runs) > 1 for v in variants)
        else ""
    )
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", template, re.DOTALL)[1]
    parts = {
        "script_hash": "sha256-"
        + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "title": esc(title),
        "colours": colour_rules(),
        "summary": esc(about + "."),
        "results_note": "Shares of the questions of a split. Small: the 95 % interval of one run, "
        "or the standard deviation over seeds.",
        "table": results_table(variants),
        "smoothing": smoothing,
        "modes": mode_figures(variants) or '<p class="empty">No shares were logged.</p>',
        "curves_note": f"{spread}{smoothing} Point at a picture for its numbers, "
        "press a name to hide its line.",
        "legend": legend(variants),
        "curves": curve_figures(variants),
        "gallery_note": "What the method saw: the samples of a group, best reward first, equal "
        f"ones together. Stated facts are marked {sign(True)} or {sign(False)}.",
        "variant_options": "".join(
            f'<option value="{i}">{esc(v.label)}</option>' for i, v in enumerate(variants)
        ),
        "gallery": gallery(variants),
        "footer": esc("Made by report.py from " + ", ".join(str(run.folder) for run in runs)),
    }
    # in one pass: a response that spells {{title}} stays as it is
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def main(argv: list[str]) -> None:
    """The command line; bad input ends in one line and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="report.py", description="One HTML page about any number of runs."
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folders that train.py wrote; seeds are put together"
    )
    parser.add_argument("--out", default="report.html", help="the page (default: report.html)")
    parser.add_argument("--title", default="What the runs learned", help="its title")
    parser.add_argument(
        "--png", metavar="FOLDER", help="write the curves as PNG files too; needs matplotlib"
    )
    args = parser.parse_args(argv)
    try:
        variants = group_seeds([read_run(folder) for folder in dict.fromkeys(args.runs)])
        text = page(variants, args.title)
        try:
            Path(args.out).write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise InputError(
                f"--out {args.out}: {error.strerror or error}; give another file"
            ) from None
        print(f"{args.out}: {len(text) / 2**20:.1f} MB")
        if args.png:
            print("\n".join(str(path) for path in pictures.save_png(variants, args.png)))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
