"""The gallery of the report: rollouts as a person can judge them, in HTML without a script.

A group is one question: its chart, the facts, the G samples side by side with rewards and
advantages, what the switch made of it, and the reference that was memorized. Numbers that state a
fact of the chart are marked right or wrong, by colour and by sign. A model may write anything:
nothing gets into the page but through `esc`.
"""

import html
import json
import math
import re
from pathlib import Path

from data.example import InputError
from lib.answers import split_response
from lib.claims import locate_claims
from lib.log import visible

SHOWN_STEPS = 16  # logged steps of a variant
SHOWN_CHARACTERS = 4000  # of a response
# from the bottom of the picture of the switch to its top: colours on white and on black
MODES = {
    "memorize": ("#f0bd55", "#d9a441"),
    "explore": ("#7aa7e6", "#6c9fe3"),
    "skip": ("#dfe3e8", "#7f8894"),
}
VERDICTS = {
    "memorize": "so the reference is memorized, and the samples contribute nothing.",
    "explore": "so the samples are explored: each is made more or less likely by its advantage.",
    "skip": "so there is nothing to learn, and the group is skipped.",
}


# ---- text that a model wrote ---------------------------------------------------------------------


def esc(text) -> str:
    """Anything as HTML text or inside an attribute's double quotes."""
    return html.escape(visible(str(text)), quote=True)


def sign(right: bool) -> str:
    """✓ or ✗: no meaning by colour alone."""
    return "<i>✓</i>" if right else "<i>✗</i>"


def mark(text: str, claims: list[tuple], facts: list[tuple]) -> str:
    """A value as HTML, right or wrong for the names that it is stated of; pointing at it shows what
    is right.
    """
    truth = {fact[:-1]: fact[-1] for fact in reversed(facts)}
    told = []
    for *name, _ in claims:
        real = truth.get(tuple(name))
        told.append(f"{' '.join(name)} {'is not there' if real is None else f'is {real}'}")
    right = all(claim in facts for claim in claims)
    css = "is-true" if right else "is-false"
    return f'<mark class="{css}" title="{esc(", ".join(told))}">{esc(text)}{sign(right)}</mark>'


def marked(text: str, facts: list) -> str:
    """A response as HTML: stated facts marked, the answer bold, what is too long left out."""
    facts = [tuple(map(str, fact)) for fact in facts]
    shown = text[:SHOWN_CHARACTERS]
    thinking = split_response(shown)[0]
    claims = {}  # (first character, end) of a value -> what is claimed by it
    for claim, *place in locate_claims(thinking, facts):
        claims.setdefault(tuple(place), []).append(claim)
    parts, done = [], 0
    for start, end in sorted(claims):
        if start >= done:
            parts.append(esc(thinking[done:start]))
            parts.append(mark(thinking[start:end], claims[start, end], facts))
            done = end
    parts.append(esc(thinking[done:]))
    if len(thinking) < len(shown):
        parts.append(f"<b>{esc(shown[len(thinking) :])}</b>")
    if len(text) > len(shown):
        parts.append(f"<small> … {len(text) - len(shown)} more characters</small>")
    return "".join(parts) or "<small>(nothing)</small>"


# ---- groups --------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[dict]:
    """The objects of a jsonl file; a last line without its end is still being written, and left
    out. InputError with the line's number for anything else.
    """
    rows = []
    for number, line in enumerate(path.read_text("utf-8", "replace").split("\n")[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            rows.append(None)
        if not isinstance(rows[-1], dict):
            raise InputError(f"{path}, line {number}: not a JSON object; remove the line")
    return rows


def gallery(path: Path) -> str:
    """The groups of a run's groups.jsonl, of at most SHOWN_STEPS steps from its first to its last;
    the first one that was explored is open.
    """
    lines = read_lines(path) if path.is_file() else []
    steps = list(dict.fromkeys(line.get("step") for line in lines))
    most = min(SHOWN_STEPS, len(steps))
    chosen = {steps[round(i * (len(steps) - 1) / max(most - 1, 1))] for i in range(most)}
    cards = []
    for line in lines:
        if line.get("step") in chosen:
            try:
                cards.append(group_card(line))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise InputError(
                    f"{path}, step {line.get('step')}: not a group that train.py logs "
                    f"({type(error).__name__} {error})"
                ) from None
    explored = next((i for i, card in enumerate(cards) if 'data-mode="explore"' in card), 0)
    if cards:
        cards[explored] = cards[explored].replace("<details", "<details open", 1)
    return "".join(cards)


def group_card(line: dict) -> str:
    """One group: what was asked, what the samples were, what became of them."""
    mode, responses, facts = line["mode"], line["responses"], line["facts"]
    light, dark = MODES[mode]
    correct = sum(response["correct"] > 0.5 for response in responses)
    verdict = f"{correct} of {len(responses)} correct, {VERDICTS[mode]}"
    if mode == "explore" and len({response["total"] for response in responses}) == 1:
        verdict = f"{correct} of {len(responses)} correct, and all rewards are equal: every "
        verdict += "advantage is 0, and nothing is learned (advantage collapse)."
    if not responses:
        verdict = "This step memorizes without sampling."
    image = str(line.get("image") or "")
    safe = re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]+", image)
    facts_list = "".join(
        f"<li>{esc(' '.join(map(str, name)))} <b>{esc(value)}</b></li>" for *name, value in facts
    )
    together = {}  # the same text has the same rewards: shown once, counted
    for response in responses:
        key = (response["text"], response["total"], response["advantage"])
        together.setdefault(key, []).append(response)
    order = sorted(together.values(), key=lambda same: -same[0]["total"])
    cards = [response_card(same[0], len(same), facts, mode == "explore") for same in order]
    target = ""
    if line.get("target"):
        head = "Memorized instead" if responses else "Memorized"
        said = f'<div class="said">{marked(line["target"], facts)}</div>'
        target = f'<div class="target"><h4>{head}</h4>{said}</div>'
    return "".join(
        [
            f'<details class="group card" data-mode="{mode}"><summary>',
            f"step {int(line['step'])} ",
            f'<span class="mode" style="--c:{light};--d:{dark}">{mode}</span> ',
            f'<span class="pips" aria-hidden="true">{"●" * correct}',
            f"{'○' * (len(responses) - correct)}</span> {esc(line['question'])}</summary>",
            '<div class="both"><div class="ask">',
            f'<img src="{image}" alt="the chart">' if safe else "",
            f'<p class="question">{esc(line["question"])}</p>',
            f"<p><small>reference answer</small> <b>{esc(line['answer'])}</b></p>",
            f'<ul class="facts" title="the facts of the chart">{facts_list}</ul></div>',
            f'<div><p>{verdict}</p><ol class="responses">{"".join(cards)}</ol>{target}</div>',
            "</div></details>",
        ]
    )


def response_card(response: dict, count: int, facts: list, used: bool) -> str:
    """One response: right or wrong, its text, its advantage, its rewards."""
    right, advantage = response["correct"] > 0.5, float(response["advantage"])
    rewards = {
        "format": "format",
        "accuracy": "accuracy",
        "thinking": "thinking",
        "total": "reward",
    }
    items = "".join(
        f"<div><dt>{title}</dt><dd>{shown(response[name])}</dd></div>"
        for name, title in rewards.items()
    )
    up = "up" if advantage > 0 else "down" if advantage < 0 else "even"
    arrow = {"up": "▲", "down": "▼", "even": "="}[up]
    signed = f"{advantage:+.2f}".replace("-", "−")
    return "".join(
        [
            f'<li><header><b class="is-{str(right).lower()}">',
            "✓ correct</b>" if right else "✗ not correct</b>",
            f"<small>{count} times</small>" if count > 1 else "",
            f'</header><div class="said">{marked(str(response["text"]), facts)}</div>',
            f'<p class="{up if used else "unused"}">{arrow} {signed} <small>advantage',
            f"{'' if used else ', not used'}</small></p>",
            f'<dl class="rewards">{items}</dl></li>',
        ]
    )


def shown(value) -> str:
    """A number as short as it can be read."""
    fine = isinstance(value, (int, float)) and math.isfinite(value)
    return f"{value:.2f}" if fine else "–"
