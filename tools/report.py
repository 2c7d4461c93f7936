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
from string import Template

from config import Parser
from data.reading import read_lines, written_here
from lib.log import run_program
from tools import curves
from tools.curves import Variant, group_seeds, read_run
from tools.gallery import esc, gallery
from tools.tables import cell, find, main_columns


def results_table(variants: list[Variant]) -> str:
    """Before training and after, in percent: a row per variant, tools.compare's columns."""
    runs = [run for variant in variants for run in variant.runs]
    splits = {"final": {split: None for run in runs for split in [*run.base, *run.final]}}
    columns = {t: names for t, (_, *names) in main_columns([splits]).items() if names[0] == "final"}
    # each starting model once, however many runs set out from it
    bases = {str(run.base): {"final": run.base} for run in runs if run.base}
    rows = [("before training", list(bases.values()))] if bases else []
    for variant in variants:
        name = f'<span class="key" style="--c:{variant.colour}"></span>{esc(variant.label)}'
        rows.append((name, [{"final": run.final} for run in variant.runs if run.final]))
    heads = "".join(f"<th>{esc(title)}</th>" for title in ["", "runs", *columns])
    html = f"<thead><tr>{heads}</tr></thead>"
    for name, records in rows:
        cells = [cell([find(record, names) for record in records]) for names in columns.values()]
        cells = "".join(f"<td>{value or '–'}</td>" for value in [len(records), *cells])
        html += f"<tr><th>{name}</th>{cells}</tr>"
    return f"<table>{html}</table>"


def picture(title: str, figure) -> str:
    """A figure as an image inside the page."""
    figure.savefig(buffer := io.BytesIO(), format="svg", transparent=True)
    svg = base64.b64encode(buffer.getvalue()).decode()
    # a panel per variant is wider than a phone
    look = 'class="card wide scroll" tabindex="0"' if title == "Modes" else 'class="card"'
    return f'<figure {look}><img src="data:image/svg+xml;base64,{svg}" alt="{title}"></figure>'


def page(variants: list[Variant]) -> str:
    """The whole page: with the gallery of each variant's first run."""
    folders = [str(run.folder) for variant in variants for run in variant.runs]
    pictures, rollouts = f'<p class="note">{curves.NO_PICTURES}</p>', ""
    if curves.matplotlib:
        pictures = "".join(picture(*drawn) for drawn in curves.draw(variants).items())
    for variant in variants:
        path = variant.runs[0].folder / "groups.jsonl"
        with written_here(path):
            groups = gallery(read_lines(path, ("step",), cut=False))
        rollouts += f"<h3>{esc(variant.label)}</h3>{groups}"
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    about, results = esc("of " + ", ".join(folders)), results_table(variants)
    return template.substitute(about=about, results=results, pictures=pictures, rollouts=rollouts)


def main(argv: list[str]) -> None:
    """The command line."""
    parser = Parser("tools.report", description="One HTML page about any number of runs.")
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folders that train.py wrote; seeds go together")
    add("--out", default="report.html", help="the page (%(default)s)")
    args = parser.parse_args(argv)
    with written_here(" or ".join(f"{folder}/metrics.jsonl" for folder in args.runs)):
        text = page(group_seeds([read_run(folder) for folder in dict.fromkeys(args.runs)]))
    Path(args.out).write_text(text, encoding="utf-8", errors="backslashreplace")
    print(f"{args.out}: {len(text) / 2**20:.1f} MB")


if __name__ == "__main__":
    run_program(main, sys.argv[1:])
