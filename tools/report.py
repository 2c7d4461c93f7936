"""The report: one HTML page about any number of runs, to look at on a laptop or a phone.

    python -m tools.report out/charts-dyme out/charts-grpo ... [--out report.html]

Results, learning curves (tools/curves.py), and rollouts: what was asked, the G samples, what became
of them. Numbers that state a fact are marked right or wrong, tokens by their push, up or down. The
page needs no network and no script; what a model wrote gets into it through `esc` alone.
"""

import base64
import html
import io
import sys
from pathlib import Path
from string import Template

from config import Parser
from data.reading import read_lines, written_here
from lib.answers import split_response
from lib.claims import locate_claims
from lib.log import run_program, visible
from tools import curves
from tools.curves import MODES, Variant, group_seeds
from tools.tables import cells, main_columns, read_run

SHOWN_STEPS = 16  # of a variant, of those that groups.jsonl has
VERDICTS = {
    "memorize": "so the reference is memorized, and the samples contribute nothing.",
    "explore": "so the samples are explored: each is made more or less likely by its advantage.",
    "skip": "so there is nothing to learn, and the group is skipped.",
    "collapse": "and all rewards are equal: every advantage is 0 (advantage collapse).",
}
REWARDS = {"format": "format", "accuracy": "accuracy", "thinking": "thinking", "total": "reward"}


def esc(text) -> str:
    """Anything as HTML text or inside an attribute's double quotes."""
    return html.escape(visible(str(text)), quote=True)


def marked(text: str, facts: list) -> str:
    """A response as HTML: stated facts marked, the answer bold."""
    facts = [tuple(map(str, fact)) for fact in facts]
    thinking = split_response(text)[0]
    right = {}  # (first character, end) of a value: whether all that is claimed by it is true
    for claim, *place in locate_claims(thinking, facts):
        right[tuple(place)] = right.get(tuple(place), True) and claim in facts
    parts, done = "", 0
    for (start, end), true in sorted(right.items()):
        css, sign = ("is-true", "✓") if true else ("is-false", "✗")
        if start >= done:
            parts += f'{esc(thinking[done:start])}<mark class="{css}">{esc(thinking[start:end])}'
            parts, done = f"{parts}<i>{sign}</i></mark>", end
    return f"{parts}{esc(thinking[done:])}<b>{esc(text[len(thinking) :])}</b>"


def pushed(pushes: list, largest: float) -> str:
    """A text's tokens, each with its push (lib.groups.token_pushes), the largest in full colour."""
    tokens = ""
    for text, push in pushes:
        number = "" if abs(push) < 0.05 else f"{push:+.1f}".replace("-", "−")
        look = f'class="{"up" if push > 0 else "down"}" style="--s:{abs(push) / largest:.2f}"'
        tokens += f"<span {look}>{esc(text)}<small>{number}</small></span>".replace("\n", "⏎")
        tokens += "<br>" if "\n" in text else ""
    folded = f'<summary>push per token</summary><p class="tokens">{tokens}</p>'
    return f'<details class="push">{folded}</details>' if tokens else ""


def group_card(line: dict, opened: bool) -> str:
    """One group: what was asked, what the samples were, what became of them."""
    mode, responses, facts = line["mode"], line["responses"], line["facts"]
    correct = sum(response["correct"] > 0.5 for response in responses)
    equal = mode == "explore" and len({response["total"] for response in responses}) == 1
    verdict = f"{correct} of {len(responses)} correct, {VERDICTS['collapse' if equal else mode]}"
    if not responses:
        verdict = "This step memorizes without sampling."
    image = f'<img src="{esc(line["image"])}" alt="the chart">' if line["image"] else ""
    told = "".join(f"<li>{esc(' '.join(map(str, n)))} <b>{esc(v)}</b></li>" for *n, v in facts)
    texts = [line.get("target_pushes", []), *(each.get("pushes", []) for each in responses)]
    largest = max((abs(push) for pushes in texts for _, push in pushes), default=0) or 1
    kinds = {}  # the same text has the same rewards: shown once, counted
    for response in sorted(responses, key=lambda response: -response["total"]):
        kinds.setdefault(response["text"], []).append(response)
    about = (facts, mode == "explore", largest)
    cards = "".join(response_card(same[-1], len(same), *about) for same in kinds.values())
    target = ""
    if line["target"]:
        said = f'<div class="said">{marked(line["target"], facts)}</div>'
        target = f'<div class="target"><h4>Memorized</h4>{said}{pushed(texts[0], largest)}</div>'
    return f"""
<details class="group card" {"open" * opened}>
<summary>step {int(line["step"])} <span class="mode" style="--c:{MODES[mode]}">{mode}</span>
<span class="pips" aria-hidden="true">{"●" * correct}{"○" * (len(responses) - correct)}</span>
{esc(line["question"])}</summary>
<div class="both"><div class="ask">{image}
<p class="question">{esc(line["question"])}</p>
<p><small>reference answer</small> <b>{esc(line["answer"])}</b></p>
<ul class="facts">{told}</ul></div>
<div><p>{verdict}</p><ol class="responses">{cards}</ol>{target}</div></div>
</details>"""


def response_card(response: dict, count: int, facts: list, used: bool, largest: float) -> str:
    """One response: right or wrong, its text, its tokens' pushes, its advantage, its rewards."""
    css, right = ("is-true", "✓ correct") if response["correct"] > 0.5 else ("is-false", "✗ wrong")
    advantage = float(response["advantage"])
    up, arrow = ("is-true", "▲") if advantage > 0 else ("is-false", "▼") if advantage else ("", "=")
    rewards = ""
    for name, title in REWARDS.items():
        rewards += f"<div><dt>{title}</dt><dd>{float(response[name]):.2f}</dd></div>"
    return f"""
<li><header><b class="{css}">{right}</b>
<small>{f"{count} times" if count > 1 else ""}</small></header>
<div class="said">{marked(response["text"], facts)}</div>
{pushed(response.get("pushes", []), largest)}
<p class="{up if used else "unused"}">{arrow} {advantage:+.2f}
<small>advantage{"" if used else ", not used"}</small></p>
<dl class="rewards">{rewards}</dl></li>"""


def results_table(variants: list[Variant]) -> str:
    """Before training and after, in percent: a row per variant, tools.compare's columns."""
    every = [run for *_, runs in variants for run in runs]
    splits = {"final": {split: None for run in every for split in [*run["base"], *run["final"]]}}
    columns = {title: c for title, c in main_columns([splits]).items() if c[1] == "final"}
    # each starting model once, however many runs set out from it
    bases = {str(run["base"]): {"final": run["base"]} for run in every if run["base"]}
    rows = [("before training", [*bases.values()])] if bases else []
    for label, colour, runs in variants:
        name = f'<span class="key" style="--c:{colour}"></span>{esc(label)}'
        rows.append((name, [run for run in runs if run["final"]]))
    heads = "".join(f"<th>{esc(title)}</th>" for title in ["", "runs", *columns])
    table = f"<thead><tr>{heads}</tr></thead>"
    for name, runs in rows:
        line = [f"<td>{value or '–'}</td>" for value in [len(runs), *cells(runs, columns)]]
        table += f"<tr><th>{name}</th>{''.join(line)}</tr>"
    return f"<table>{table}</table>"


def page(variants: list[Variant]) -> str:
    """The whole page: with the rollouts of each variant's first run."""
    folders = [str(run["folder"]) for *_, runs in variants for run in runs]
    pictures = "" if curves.matplotlib else f'<p class="note">{curves.NO_PICTURES}</p>'
    rollouts = ""
    for title, figure in (curves.draw(variants) if curves.matplotlib else {}).items():
        figure.savefig(svg := io.BytesIO(), format="svg", transparent=True)
        source = f"data:image/svg+xml;base64,{base64.b64encode(svg.getvalue()).decode()}"
        # a panel per variant is wider than a phone
        look = 'class="card wide scroll" tabindex="0"' if title == "Modes" else 'class="card"'
        pictures += f'<figure {look}><img src="{source}" alt="{title}"></figure>'
    for label, _, runs in variants:
        path = runs[0]["folder"] / "groups.jsonl"
        with written_here(path):
            groups = read_lines(path, ("step",), cut=False)
            steps = [*dict.fromkeys(line["step"] for line in groups)]
            shown = steps[:: -(-len(steps) // SHOWN_STEPS) or 1]
            opened = next((line for line in groups if line["mode"] == "explore"), None)
            cards = [group_card(line, line is opened) for line in groups if line["step"] in shown]
        rollouts += f"<h3>{esc(label)}</h3>{''.join(cards)}"
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    about, results = esc("of " + ", ".join(folders)), results_table(variants)
    return template.substitute(about=about, results=results, pictures=pictures, rollouts=rollouts)


def main(argv: list[str]) -> None:
    """The command line."""
    parser = Parser("tools.report", description="One HTML page about any number of runs.")
    parser.add_argument("runs", nargs="+", help="folders that train.py wrote; seeds go together")
    parser.add_argument("--out", default="report.html", help="the page (%(default)s)")
    args = parser.parse_args(argv)
    with written_here(" or ".join(f"{folder}/metrics.jsonl" for folder in args.runs)):
        text = page(group_seeds([read_run(folder) for folder in dict.fromkeys(args.runs)]))
    Path(args.out).write_text(text, encoding="utf-8", errors="backslashreplace")
    print(f"{args.out}: {len(text) / 2**20:.1f} MB")


if __name__ == "__main__":
    run_program(main, sys.argv[1:])
