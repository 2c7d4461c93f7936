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
import sys
from pathlib import Path
from statistics import mean, stdev

from data.example import InputError
from lib.log import run_program
from evaluate import interval
from tools import curves
from tools.curves import Variant, group_seeds, is_number, read_run
from tools.gallery import esc, gallery

COLUMNS = {  # heading: reading, metric; page.html says what they are
    "accuracy, greedy": ("greedy", "accuracy"),
    "accuracy, temperature 1": ("sampled", "accuracy"),
    "accuracy, no thinking": ("direct", "accuracy"),
    "format": ("greedy", "format"),
    "true facts": ("sampled", "fact_precision"),
    "grounded": ("greedy", "grounded"),
}
NO_PICTURES = "pictures need matplotlib: pip install matplotlib"


def pictures(figures: dict) -> str:
    """Those figures that there are, by their names, as HTML."""
    parts = []
    for name, figure in figures.items():
        if figure:
            svg = base64.b64encode(curves.render(figure, "svg")).decode()
            image = f'<img src="data:image/svg+xml;base64,{svg}" alt="{esc(name)}">'
            parts.append(f'<figure class="card">{image}</figure>')
    return "".join(parts) or '<p class="note">Nothing was logged.</p>'


def cell(readings: list[dict], reading: str, metric: str) -> str:
    """The mean over seeds, and how sure it is: the seeds' standard deviation, or the interval of a
    single count.
    """
    numbers = [r[reading][metric] for r in readings if is_number(r.get(reading, {}).get(metric))]
    if not numbers:
        return "<td>–</td>"
    doubt = ""
    if len(numbers) > 1:
        doubt = f"± {stdev(numbers):.3f}"
    elif metric == "accuracy" and readings[0][reading].get("count"):
        doubt = "{:.3f} to {:.3f}".format(*interval(numbers[0], readings[0][reading]["count"]))
    return f"<td><b>{mean(numbers):.3f}</b><small>{doubt}</small></td>"


def head(titles: list[str]) -> str:
    """The first row of a table."""
    return f"<thead><tr>{''.join(f'<th>{esc(title)}</th>' for title in titles)}</tr></thead>"


def results_table(variants: list[Variant]) -> str:
    """Before training and after, by split: a row per variant."""
    runs = [run for variant in variants for run in variant.runs]
    rows = []

    def add(name: str, about: str, readings: list[dict]) -> None:
        cells = "".join(cell(readings, *column) for column in COLUMNS.values())
        rows.append(f"<tr><th>{name}<br><small>{esc(about)}</small></th>{cells}</tr>")

    for split in dict.fromkeys(split for run in runs for split in [*run.base, *run.final]):
        rows.append(f'<tr><th class="split" colspan="7">{esc(split)}</th></tr>')
        starts = {}  # each starting model once, however many runs set out from it
        for run in runs:
            if split in run.base:
                reading = run.base[split]
                starts.setdefault(str(run.config.get("model")), {})[json.dumps(reading)] = reading
        for model, readings in starts.items():
            add("before training", model, list(readings.values()))
        for variant in variants:
            key = f'<span class="key" style="--c:{variant.colour}"></span>{esc(variant.label)}'
            done = [run.final[split] for run in variant.runs if split in run.final]
            add(key, f"{len(done)} of {len(variant.runs)} runs", done)
    rows = rows or ['<tr><td colspan="7">No run has been evaluated yet.</td></tr>']
    return f"<table>{head(['', *COLUMNS])}<tbody>{''.join(rows)}</tbody></table>"


def runs_table(variants: list[Variant]) -> str:
    """A row per run: its folder, seeds, steps, seconds, and accuracy by split."""
    runs = [(variant.label, run) for variant in variants for run in variant.runs]
    splits = list(dict.fromkeys(split for _, run in runs for split in run.final))
    rows = []
    for label, run in runs:
        seconds = sum(line["step_time"] for line in run.steps if is_number(line.get("step_time")))
        steps = f"{len(run.steps)}{'' if run.final else ', unfinished'}"
        told = (run.folder, run.seeds(), steps, f"{seconds:.0f}")
        cells = "".join(f"<td>{esc(text)}</td>" for text in told)
        cells += "".join(cell([run.final.get(split, {})], "greedy", "accuracy") for split in splits)
        rows.append(f"<tr><th>{esc(label)}</th>{cells}</tr>")
    titles = ["run", "folder", "seeds", "steps", "seconds", *(f"{s}, greedy" for s in splits)]
    return f"<table>{head(titles)}<tbody>{''.join(rows)}</tbody></table>"


def page(variants: list[Variant]) -> str:
    """The whole page."""
    runs = [run for variant in variants for run in variant.runs]
    about = f"{len(runs)} run{'s' * (len(runs) > 1)}"
    for name, text in (("dataset", " on "), ("model", ", starting from ")):
        found = sorted({str(run.config[name]) for run in runs if name in run.config})
        about += text * bool(found) + ", ".join(found)
    rollouts = [
        f"<h3>{esc(v.label)}</h3>{gallery(v.runs[0].folder / 'groups.jsonl')}" for v in variants
    ]
    parts = {
        "summary": esc(about),
        "results": results_table(variants),
        "every_run": runs_table(variants),
        "rollouts": "".join(rollouts),
        "footer": esc("Made by tools/report.py from " + ", ".join(str(run.folder) for run in runs)),
    }
    if curves.matplotlib:
        modes = {
            f"{v.label}: memorized, explored, skipped": curves.plot_modes([v]) for v in variants
        }
        parts["modes"] = pictures(modes)
        lines = {title: curves.plot_curve(title, variants) for title in curves.CURVES}
        parts["curves"] = pictures(lines)
    else:
        parts["modes"] = parts["curves"] = f'<p class="note">{NO_PICTURES}</p>'
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    # in one pass: a response that spells {{footer}} stays as it is
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def save_png(variants: list[Variant], noise: str | None, folder: Path) -> None:
    """All pictures as files: accuracy.png, true_facts.png .. by their titles, modes.png and, of
    tools/compare.py's kept results, noise.png.
    """
    if not curves.matplotlib:
        raise InputError(f"--png: {NO_PICTURES}")
    figures = {title: curves.plot_curve(title, variants) for title in curves.CURVES}
    figures["modes"] = curves.plot_modes(variants)
    if noise:
        try:
            figures["noise"] = curves.plot_noise(json.loads(Path(noise).read_text())["records"])
        except (ValueError, LookupError, TypeError):
            raise InputError(f"--noise {noise}: is not a result of tools.compare --out") from None
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        if figure:
            path = folder / f"{name.lower().replace(' ', '_')}.png"
            path.write_bytes(curves.render(figure, "png"))
            print(path)


def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="tools.report", description="One HTML page about any number of runs."
    )
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="folders that train.py wrote; seeds go together")
    add("--out", default="report.html", help="the page (%(default)s)")
    add("--png", metavar="FOLDER", help="write the pictures as PNG files, and no page")
    add("--noise", metavar="JSON", help="with --png: results of tools.compare at several noises")
    args = parser.parse_args(argv)
    if not args.runs and not (args.png and args.noise):
        raise InputError("give the folders of one or more runs")
    variants = group_seeds([read_run(folder) for folder in args.runs])
    if args.png:
        save_png(variants, args.noise, Path(args.png))
    else:
        text = page(variants)
        Path(args.out).write_text(text, encoding="utf-8", errors="backslashreplace")
        print(f"{args.out}: {len(text) / 2**20:.1f} MB")


if __name__ == "__main__":
    run_program(main, sys.argv[1:])
