"""The report: one HTML page about any number of runs, to look at on a laptop or a phone.

    python -m tools.report out/charts-dyme out/charts-grpo ... [--out report.html]

Results, the switch at work, learning curves (tools/curves.py), and rollouts (tools/gallery.py). The
page is one file, needs no network and no script, and trusts nobody: whatever a model wrote is
escaped. The pictures need matplotlib; without it the page has all the rest.
"""

import base64
import io
import sys
from pathlib import Path
from statistics import mean, stdev
from string import Template

from config import Parser
from data.reading import read_lines, written_here
from lib.log import run_program
from lib.readings import interval
from tools import curves
from tools.curves import Variant, group_seeds, read_run
from tools.gallery import esc, gallery

COLUMNS = {  # heading: reading, metric; page.html says what they are
    "accuracy, greedy": ("greedy", "accuracy"),
    "accuracy, temperature 1": ("sampled", "accuracy"),
    "accuracy, no thinking": ("direct", "accuracy"),
    "format": ("greedy", "format"),
    "true facts": ("sampled", "fact_precision"),
    "grounded": ("greedy", "grounded"),
}


def cell(readings: list[dict], reading: str, metric: str) -> str:
    """The mean over seeds with their standard deviation, or the interval of a single count."""
    found = [r[reading] for r in readings if r.get(reading, {}).get(metric) is not None]
    if not found:
        return "<td>–</td>"
    numbers, doubt = [each[metric] for each in found], ""
    if len(numbers) > 1:
        doubt = f"± {stdev(numbers):.3f}"
    elif metric == "accuracy":
        doubt = "{:.3f} to {:.3f}".format(*interval(numbers[0], found[0]["count"]))
    return f"<td><b>{mean(numbers):.3f}</b><small>{doubt}</small></td>"


def results_table(variants: list[Variant]) -> str:
    """Before training and after, by split: a row per variant."""
    runs = [run.state for variant in variants for run in variant.runs]
    rows = [f"<thead><tr>{''.join(f'<th>{title}</th>' for title in ['', *COLUMNS])}</tr></thead>"]

    def add(name: str, about: str, readings: list[dict]) -> None:
        cells = "".join(cell(readings, *column) for column in COLUMNS.values())
        rows.append(f"<tr><th>{name}<br><small>{about}</small></th>{cells}</tr>")

    for split in dict.fromkeys(split for run in runs for split in [*run["base"], *run["final"]]):
        rows.append(f'<tr><th class="split" colspan="7">{esc(split)}</th></tr>')
        bases = [run["base"][split] for run in runs if split in run["base"]]
        if bases:  # each starting model once, however many runs set out from it
            add("before training", "", list({str(base): base for base in bases}.values()))
        for variant in variants:
            key = f'<span class="key" style="--c:{variant.colour}"></span>{esc(variant.label)}'
            finals = [run.state["final"] for run in variant.runs]
            done = [final[split] for final in finals if split in final]
            add(key, f"{len(done)} of {len(variant.runs)} runs", done)
    if len(rows) == 1:
        rows.append('<tr><td colspan="7">No run has been evaluated yet.</td></tr>')
    return f"<table>{''.join(rows)}</table>"


def picture(title: str, figure) -> str:
    """A figure as an image inside the page."""
    figure.savefig(buffer := io.BytesIO(), format="svg", transparent=True)
    svg = base64.b64encode(buffer.getvalue()).decode()
    # a panel per variant is wider than a phone
    look = 'class="card wide scroll" tabindex="0"' if title == "Modes" else 'class="card"'
    return f'<figure {look}><img src="data:image/svg+xml;base64,{svg}" alt="{title}"></figure>'


def rollouts(variant: Variant) -> str:
    """The gallery of a variant's first run."""
    path = variant.runs[0].folder / "groups.jsonl"
    with written_here(path):
        return f"<h3>{esc(variant.label)}</h3>{gallery(read_lines(path, ('step',), cut=False))}"


def page(variants: list[Variant]) -> str:
    """The whole page."""
    folders = [str(run.folder) for variant in variants for run in variant.runs]
    pictures = f'<p class="note">{curves.NO_PICTURES}</p>'
    if curves.matplotlib:
        pictures = "".join(picture(*drawn) for drawn in curves.draw(variants).items())
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        about=esc("of " + ", ".join(folders)),
        results=results_table(variants),
        pictures=pictures,
        rollouts="".join(map(rollouts, variants)),
    )


def main(argv: list[str]) -> None:
    """The command line."""
    parser = Parser(prog="tools.report", description="One HTML page about any number of runs.")
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folders that train.py wrote; seeds go together")
    add("--out", default="report.html", help="the page (%(default)s)")
    args = parser.parse_args(argv)
    text = page(group_seeds([read_run(folder) for folder in dict.fromkeys(args.runs)]))
    Path(args.out).write_text(text, encoding="utf-8", errors="backslashreplace")
    print(f"{args.out}: {len(text) / 2**20:.1f} MB")


if __name__ == "__main__":
    run_program(main, sys.argv[1:])
