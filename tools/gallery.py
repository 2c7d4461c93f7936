"""The gallery of the report: rollouts as a person can judge them, in HTML without a script.

A group is one question: its chart, the facts, the G samples side by side with rewards and
advantages, what the switch made of it, and the reference that was memorized. Numbers that state a
fact of the chart are marked right or wrong, by colour and by sign. A model may write anything:
nothing gets into the page but through `esc`.
"""

import html
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np

from data.example import InputError
from lib.answers import split_response
from lib.claims import locate_claims
from lib.log import visible

SHOWN_STEPS = 16  # logged steps of a variant
SHOWN_CHARACTERS = 4000  # of a response
# from the bottom of the picture of the switch to its top
MODES = {"memorize": "#f0bd55", "explore": "#7aa7e6", "skip": "#dfe3e8"}
VERDICTS = {
    "memorize": "so the reference is memorized, and the samples contribute nothing.",
    "explore": "so the samples are explored: each is made more or less likely by its advantage.",
    "skip": "so there is nothing to learn, and the group is skipped.",
    "collapse": "and all rewards are equal: every advantage is 0, and nothing is learned "
    "(advantage collapse).",
}
REWARDS = {"format": "format", "accuracy": "accuracy", "thinking": "thinking", "total": "reward"}


def esc(text) -> str:
    """Anything as HTML text or inside an attribute's double quotes."""
    return html.escape(visible(str(text)), quote=True)


def marked(text: str, facts: list) -> str:
    """A response as HTML: stated facts marked, the answer bold, what is too long left out."""
    facts = [tuple(map(str, fact)) for fact in facts]
    thinking = split_response(text[:SHOWN_CHARACTERS])[0]
    right = {}  # (first character, end) of a value: whether all that is claimed by it is true
    for claim, *place in locate_claims(thinking, facts):
        right[tuple(place)] = right.get(tuple(place), True) and claim in facts
    parts, done = [], 0
    for start, end in sorted(right):
        if start >= done:
            css, sign = ("is-true", "✓") if right[start, end] else ("is-false", "✗")
            value = f'<mark class="{css}">{esc(thinking[start:end])}<i>{sign}</i></mark>'
            parts += [esc(thinking[done:start]), value]
            done = end
    answer = text[len(thinking) : SHOWN_CHARACTERS]
    more = f" … {len(text) - SHOWN_CHARACTERS} more" if len(text) > SHOWN_CHARACTERS else ""
    return f"{''.join(parts)}{esc(thinking[done:])}<b>{esc(answer)}</b><small>{more}</small>"


def read_lines(path: Path) -> list[dict]:
    """The objects of a jsonl file; a last line without its end is still being written, and left
    out. InputError with the line's number for anything else.
    """
    rows = []
    for number, line in enumerate(path.read_text("utf-8", "replace").split("\n")[:-1], start=1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError, RecursionError):
            raise InputError(f"{path}, line {number}: not a JSON object; remove the line") from None
    return rows


def gallery(path: Path) -> str:
    """The groups of a run's groups.jsonl, of at most SHOWN_STEPS steps from its first to its last;
    the first one that was explored is open.
    """
    lines = read_lines(path) if path.is_file() else []
    steps = list(dict.fromkeys(line.get("step") for line in lines))
    places = np.linspace(0, len(steps) - 1, SHOWN_STEPS).round() if steps else []
    chosen = {steps[int(place)] for place in places}
    lines = [line for line in lines if line.get("step") in chosen]
    first = next((line for line in lines if line.get("mode") == "explore"), None)
    cards = []
    for line in lines:
        try:
            cards.append(group_card(line, "open" if line is first else ""))
        except (LookupError, TypeError, ValueError, AttributeError):
            step = line.get("step")
            raise InputError(f"{path}, step {step}: not a group that train.py logs") from None
    return "".join(cards)


def group_card(line: dict, opened: str) -> str:
    """One group: what was asked, what the samples were, what became of them."""
    mode, responses, facts = line["mode"], line["responses"], line["facts"]
    correct = sum(response["correct"] > 0.5 for response in responses)
    rewards = {response["total"] for response in responses}
    why = VERDICTS["collapse" if mode == "explore" and len(rewards) == 1 else mode]
    verdict = f"{correct} of {len(responses)} correct, {why}"
    if not responses:
        verdict = "This step memorizes without sampling."
    image = str(line.get("image"))
    safe = re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]+", image)
    told = "".join(f"<li>{esc(' '.join(map(str, n)))} <b>{esc(v)}</b></li>" for *n, v in facts)
    # the same text has the same rewards: shown once, counted
    counts = Counter((response["text"], response["total"]) for response in responses)
    kinds = {(response["text"], response["total"]): response for response in responses}
    best = sorted(kinds, key=lambda kind: -kind[1])
    cards = [response_card(kinds[k], counts[k], facts, mode == "explore") for k in best]
    target = ""
    if line.get("target"):
        said = f'<div class="said">{marked(line["target"], facts)}</div>'
        target = f'<div class="target"><h4>Memorized</h4>{said}</div>'
    return f"""
<details class="group card" {opened}>
<summary>step {int(line["step"])} <span class="mode" style="--c:{MODES[mode]}">{mode}</span>
<span class="pips" aria-hidden="true">{"●" * correct}{"○" * (len(responses) - correct)}</span>
{esc(line["question"])}</summary>
<div class="both"><div class="ask">{f'<img src="{image}" alt="the chart">' if safe else ""}
<p class="question">{esc(line["question"])}</p>
<p><small>reference answer</small> <b>{esc(line["answer"])}</b></p>
<ul class="facts">{told}</ul></div>
<div><p>{verdict}</p><ol class="responses">{"".join(cards)}</ol>{target}</div></div>
</details>"""


def response_card(response: dict, count: int, facts: list, used: bool) -> str:
    """One response: right or wrong, its text, its advantage, its rewards."""
    css, right = ("is-true", "✓ correct") if response["correct"] > 0.5 else ("is-false", "✗ wrong")
    advantage = float(response["advantage"])
    up, arrow = ("is-true", "▲") if advantage > 0 else ("is-false", "▼")
    up, arrow = (up, arrow) if advantage else ("", "=")
    rewards = "".join(
        f"<div><dt>{title}</dt><dd>{float(response[name]):.2f}</dd></div>"
        for name, title in REWARDS.items()
    )
    return f"""
<li><header><b class="{css}">{right}</b>
<small>{f"{count} times" if count > 1 else ""}</small></header>
<div class="said">{marked(response["text"], facts)}</div>
<p class="{up if used else "unused"}">{arrow} {advantage:+.2f}
<small>advantage{"" if used else ", not used"}</small></p>
<dl class="rewards">{rewards}</dl></li>"""
