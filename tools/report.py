"""The report: one HTML page about any number of runs, to look at on a laptop or a phone.

    python -m tools.report out/charts-dyme out/charts-grpo ... [--out report.html]
    python -m tools.report out/compare/base0-noise0.5-* --noise results/noise.json --png assets

Results, the switch at work, learning curves with the spread over seeds, and a gallery of rollouts
(tools/gallery.py). The page is one file, needs no network and no script, and trusts nobody:
whatever a model wrote is escaped. --png writes the same pictures as files, for a README. The
pictures need matplotlib; without it the page has all the rest.
"""

import argparse
import base64
import json
import re
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from data.example import InputError
from evaluate import interval
from tools.curves import SEEDS, Curve, Variant, colours, curves_of, group_seeds, has_matplotlib
from tools.curves import is_number, line_of, plot_curve, plot_modes, read_run, render, save_png
from tools.curves import switched
from tools.gallery import esc, gallery

COLUMNS = [  # reading, metric, heading; page.html says what they are
    ("greedy", "accuracy", "accuracy, greedy"),
    ("sampled", "accuracy", "accuracy, temperature 1"),
    ("direct", "accuracy", "accuracy, no thinking"),
    ("greedy", "format", "format"),
    ("sampled", "fact_precision", "true facts"),
    ("greedy", "grounded", "grounded"),
]


# ---- the page ------------------------------------------------------------------------------------


def figure(plot: Callable, about: str) -> str:
    """A picture in the page, for a light and for a dark screen."""
    if not has_matplotlib():
        return ""
    light, dark = (
        "data:image/svg+xml;base64," + base64.b64encode(render(plot, (4.6, 3), d)).decode()
        for d in (0, 1)
    )
    source = f'<source srcset="{dark}" media="(prefers-color-scheme: dark)">'
    image = f'<img src="{light}" width="460" height="300" alt="{esc(about)}">'
    return f'<figure class="card"><picture>{source}{image}</picture></figure>'


def last_values(curve: Curve, variants: list[Variant]) -> str:
    """A curve in words, for who can't see it."""
    told = []
    for variant in variants:
        if line := line_of(variant, curve.key, curve.of_val):
            told.append(f"{variant.label} {line[2].mean(0)[-1]:.3g} at step {line[0][-1]}")
    return f"{curve.title}, {curve.caption}: {'; '.join(told)}"


def cell(readings: list[dict], reading: str, metric: str) -> str:
    """The mean over seeds, and how sure it is: the seeds' standard deviation, or the interval of a
    single count.
    """
    numbers = [r[reading][metric] for r in readings if is_number(r.get(reading, {}).get(metric))]
    if not numbers:
        return "<td>–</td>"
    mean, doubt = statistics.mean(numbers), ""
    if len(numbers) > 1:
        doubt = f"± {statistics.stdev(numbers):.3f}"
    elif metric == "accuracy" and readings[0][reading].get("count"):
        doubt = "{:.3f} to {:.3f}".format(*interval(mean, readings[0][reading]["count"]))
    return f"<td><b>{mean:.3f}</b><small>{doubt}</small></td>"


def results_table(variants: list[Variant]) -> str:
    """Before training and after, by split: a row per variant."""
    runs = [run for variant in variants for run in variant.runs]
    colour_of = colours([variant.method for variant in variants])
    heads = "".join(f"<th>{heading}</th>" for *_, heading in COLUMNS)
    parts = [f"<table><thead><tr><th></th>{heads}</tr></thead>"]

    def row(label: str, about: str, readings: list[dict]) -> str:
        cells = "".join(cell(readings, reading, metric) for reading, metric, _ in COLUMNS)
        return f"<tr><th>{label}<br><small>{esc(about)}</small></th>{cells}</tr>"

    for split in dict.fromkeys(split for run in runs for split in [*run.base, *run.final]):
        parts.append(f'<tbody><tr><th class="split" colspan="7">{esc(split)}</th></tr>')
        starts = {}  # each starting model once, however many runs set out from it
        for run in runs:
            if split in run.base:
                reading = run.base[split]
                starts.setdefault(str(run.config.get("model")), {})[json.dumps(reading)] = reading
        for model, readings in starts.items():
            parts.append(row("before training", model, list(readings.values())))
        for variant in variants:
            light, dark = colour_of[variant.method]
            key = f'<span class="key" style="--c:{light};--d:{dark}"></span>{esc(variant.label)}'
            readings = [run.final[split] for run in variant.runs if split in run.final]
            parts.append(row(key, about_runs(variant), readings))
        parts.append("</tbody>")
    if len(parts) == 1:
        parts.append('<tbody><tr><td colspan="7">No run has been evaluated yet.</td></tr></tbody>')
    return "".join(parts) + "</table>"


def about_runs(variant: Variant) -> str:
    """How many runs (seeds) and steps a variant is made of, and what of it doesn't count yet."""
    runs = variant.runs
    told = [f"{len(runs)} seeds"] if len(runs) > 1 else []
    told.append(f"{max(len(run.steps) for run in runs)} steps")
    unfinished = sum(not run.final for run in runs)
    told += [f"{unfinished} unfinished"] if unfinished else []
    return ", ".join(told)


def runs_table(variants: list[Variant]) -> str:
    """A row per run: its folder, seed, steps, seconds, and accuracy by split."""
    runs = [(variant.label, run) for variant in variants for run in variant.runs]
    splits = list(dict.fromkeys(split for _, run in runs for split in run.final))
    names = ["run", "folder", "seed", "steps", "seconds", *(f"{s}, greedy" for s in splits)]
    heads = "".join(f"<th>{esc(name)}</th>" for name in names)
    rows = []
    for label, run in runs:
        seeds = [
            f"{name.removesuffix('seed')}{run.config[name]}"
            for name in SEEDS
            if run.config.get(name)
        ]
        seconds = sum(line["step_time"] for line in run.steps if is_number(line.get("step_time")))
        steps = f"{len(run.steps)}{'' if run.final else ', unfinished'}"
        cells = [run.folder, " ".join(seeds) or "0", steps, f"{seconds:.0f}"]
        found = "".join(f"<td>{esc(value)}</td>" for value in cells)
        found += "".join(cell([run.final.get(split, {})], "greedy", "accuracy") for split in splits)
        rows.append(f"<tr><th>{esc(label)}</th>{found}</tr>")
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def page(variants: list[Variant], title: str = "What the runs learned") -> str:
    """The whole page."""
    runs = [run for variant in variants for run in variant.runs]
    about = f"{len(runs)} run{'s' * (len(runs) > 1)}"
    for name, text in (("dataset", " on {}"), ("model", ", starting from {}")):
        found = sorted({str(run.config[name]) for run in runs if name in run.config})
        about += text.format(", ".join(found)) if found else ""
    again = [str(folder) for variant in variants for folder in variant.again]
    if again:
        about += (
            f". The same flags and seed again, which is no other seed, left out: {', '.join(again)}"
        )
    missing = "" if has_matplotlib() else '<p class="note">No pictures: pip install matplotlib.</p>'
    curves = [
        figure(partial(plot_curve, curve, variants), last_values(curve, variants))
        for curve in curves_of(variants)
    ]
    modes = [
        figure(
            partial(plot_modes, [v]), f"{v.label}: shares of groups memorized, explored, skipped"
        )
        for v in switched(variants)
    ]
    rollouts = [
        f"<h3>{esc(v.label)}</h3>{gallery(v.runs[0].folder / 'groups.jsonl')}" for v in variants
    ]
    parts = {
        "title": esc(title),
        "summary": esc(f"{about}."),
        "results": results_table(variants),
        "every_run": runs_table(variants),
        "modes": missing or "".join(modes) or '<p class="note">No shares were logged.</p>',
        "curves": missing or "".join(curves),
        "rollouts": "".join(rollouts),
        "footer": esc("Made by tools/report.py from " + ", ".join(str(run.folder) for run in runs)),
    }
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    # in one pass: a response that spells {{title}} stays as it is
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


# ---- the command line ----------------------------------------------------------------------------


def read_noise(path: str | None) -> list[dict]:
    """The records of tools/compare.py's kept results."""
    try:
        return json.loads(Path(path).read_text())["records"] if path else []
    except (OSError, ValueError, LookupError, TypeError):
        raise InputError(f"--noise {path}: is not a result of tools.compare --out") from None


def main(argv: list[str]) -> None:
    """The command line; bad input ends in one line and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="tools.report", description="One HTML page about any number of runs."
    )
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="folders that train.py wrote; seeds go together")
    add("--out", default="report.html", help="the page (%(default)s)")
    add("--title", default="What the runs learned", help="its title")
    add("--png", metavar="FOLDER", help="write the pictures as PNG files, and no page")
    add("--noise", metavar="JSON", help="with --png: results of tools.compare at several noises")
    args = parser.parse_args(argv)
    try:
        if not args.runs and not args.noise:
            raise InputError("give the folders of one or more runs")
        variants = group_seeds([read_run(folder) for folder in dict.fromkeys(args.runs)])
        for folder in (folder for variant in variants for folder in variant.again):
            print(f"{folder}: the same flags and seed as another run, left out", file=sys.stderr)
        if args.png:
            if not has_matplotlib():
                raise InputError("--png: needs matplotlib; pip install matplotlib")
            paths = save_png(variants, read_noise(args.noise), Path(args.png))
            print("\n".join(map(str, paths)))
        else:
            text = page(variants, args.title)
            Path(args.out).write_text(text, encoding="utf-8", errors="backslashreplace")
            print(f"{args.out}: {len(text) / 2**20:.1f} MB")
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror or error}; give another", file=sys.stderr)
        sys.exit(2)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
