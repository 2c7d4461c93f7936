"""
The gallery: rollouts as a person can judge them, in HTML; report.py shows them.

A group is one question: its chart, the facts, the G samples side by side with rewards and
advantages, what the switch made of it, and the reference that was memorised. Numbers that state a
fact of the chart are marked right or wrong.

A model may write anything: nothing gets into the page but through `esc`.
"""

import html
import re

from checker import split_response
from lib.claims import claimed_facts
from data import InputError
from tools.figures import MODES, is_number
from lib.mentions import TOKEN, read_value
from tools.runs import Variant, read_lines, visible

SHOWN_STEPS = 16  # logged steps of a variant
SHOWN_CHARACTERS = 4000  # of a response
PROBE = "7777777"  # a value that no chart has


# -------------------------------------------------------------------------------------------------
# text that a model wrote


def esc(text) -> str:
    """Anything as HTML text or inside an attribute's double quotes."""
    return html.escape(visible(str(text)), quote=True)


def stated_spans(text: str, facts: list) -> list[tuple[int, int, tuple[str, str]]]:
    """
    Where a text states which facts: [(start, end, claim)], claims as claims.claimed_facts has
    them.

    The reader of claims doesn't say where it found them. It is asked: a number is a name's value
    when the name's value changes with it.
    """
    claims = claimed_facts(text, facts)
    spans = []
    for match in TOKEN.finditer(text) if claims else ():
        if match["number"]:
            start, end = match.span("number")
            probed = claimed_facts(text[:start] + PROBE + text[end:], facts)
            names = {name for name, value in probed if value == PROBE}
            own = [
                c
                for c in claims
                if c[0] in names and read_value(c[1]) == read_value(match["number"])
            ]
            spans += [(start, end, claim) for claim in own[:1]]
    return spans


def marked(text: str, facts: list) -> str:
    """
    A response as HTML: stated facts marked right or wrong, the answer bold, what is too long left
    out.
    """
    facts = [(str(name), str(value)) for name, value in facts]
    shown = text[:SHOWN_CHARACTERS]
    thinking = split_response(shown)[0]
    truth = dict(reversed(facts))
    parts, place = [], 0
    spans = stated_spans(thinking, facts)
    for start, end, claim in spans:
        name, value = claim
        said = "true" if claim in facts else "false"
        title = f"{name} is {truth[name]}" + ("" if said == "true" else f", not {value}")
        parts.append(esc(thinking[place:start]))
        parts.append(
            f'<mark class="is-{said}" title="{esc(title)}">'
            f"{esc(thinking[start:end])}{sign(said == 'true')}</mark>"
        )
        place = end
    parts.append(esc(thinking[place:]))
    if len(thinking) < len(shown):
        parts.append(f'<span class="answer">{esc(shown[len(thinking) :])}</span>')
    if len(text) > len(shown):
        parts.append(f"<small> … {len(text) - len(shown)} more characters</small>")
    found = {claim for _, _, claim in spans}
    for claim in claimed_facts(thinking, facts):  # values in words have no number to mark
        if claim not in found:
            said = "true" if claim in facts else "false"
            parts.append(
                f'<br><mark class="is-{said}">{esc(" ".join(claim))}{sign(said == "true")}</mark>'
            )
    return "".join(parts) or "<small>(nothing)</small>"


def sign(right: bool) -> str:
    """✓ or ✗: no meaning by colour alone."""
    return "<i>✓</i>" if right else "<i>✗</i>"


# -------------------------------------------------------------------------------------------------
# the gallery


def gallery(variants: list[Variant]) -> str:
    """
    The logged groups of each variant's first run, of at most SHOWN_STEPS steps from its first to
    its last.
    """
    parts = []
    for index, variant in enumerate(variants):
        path = variant.runs[0].folder / "groups.jsonl"
        lines = read_lines(path) if path.is_file() else []
        steps = list(dict.fromkeys(line.get("step") for line in lines))
        most = min(SHOWN_STEPS, len(steps))
        chosen = {steps[round(i * (len(steps) - 1) / max(most - 1, 1))] for i in range(most)}
        for line in lines:
            if line.get("step") in chosen:
                try:
                    parts.append(group_card(line, index))
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    place, problem = (
                        f"{path}, step {line.get('step')}",
                        f"{type(error).__name__} {error}",
                    )
                    raise InputError(
                        f"{place}: not a group that train.py logs ({problem})"
                    ) from None
    return "".join(parts)


def group_card(line: dict, variant: int) -> str:
    """One group: what was asked, what the samples were, what became of them."""
    mode, responses, facts = line["mode"], line["responses"], line["facts"]
    correct = sum(response["correct"] > 0.5 for response in responses)
    pips = "".join("●" if i < correct else "<s>○</s>" for i in range(len(responses)))
    collapsed = mode == "explore" and len({response["total"] for response in responses}) == 1
    verdict = {
        "memorize": "so the reference is memorised, and the samples contribute nothing.",
        "explore": "so the samples are explored: each is made more or less likely "
        "by its advantage.",
        "skip": "so there is nothing to learn, and the group is skipped.",
    }[mode]
    if collapsed:
        verdict = "and all rewards are equal: every advantage is 0, and nothing is learned "
        verdict += "(advantage collapse)."
    told = (
        f"{correct} of {len(responses)} correct, {verdict}"
        if responses
        else "This step memorises without sampling."
    )
    facts_list = "".join(f"<li>{esc(name)} <b>{esc(value)}</b></li>" for name, value in facts)
    image = str(line.get("image") or "")
    safe = re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]+", image)
    parts = [
        f'<article hidden class="group card" data-variant="{variant}" '
        f'data-step="{int(line["step"])}" data-mode="{mode}">',
        '<div class="ask">' + (f'<img src="{image}" alt="the chart">' if safe else ""),
        f'<div><p class="question">{esc(line["question"])}</p>',
        f'<p class="small">reference answer <b>{esc(line["answer"])}</b></p></div>',
        f'<ul class="facts" title="the facts of the chart">{facts_list}</ul></div>',
        f'<div><p class="verdict"><span class="mode m-{mode}">{MODES[mode]}</span>',
        f'<span class="pips" aria-hidden="true">{pips}</span> <span>{told}</span></p>',
    ]
    together = {}  # the same text has the same rewards: shown once, counted
    for response in responses:
        together.setdefault(
            (response["text"], response["total"], response["advantage"]), []
        ).append(response)
    order = sorted(together.values(), key=lambda same: -same[0]["total"])
    cards = [response_card(same[0], len(same), facts, used=mode == "explore") for same in order]
    parts += ['<ol class="responses">', *cards, "</ol>"] if cards else []
    if line.get("target"):
        head = "<h3>Memorised instead</h3>" if responses else "<h3>Memorised</h3>"
        parts.append(
            f'<div class="target">{head}'
            f'<div class="said">{marked(line["target"], facts)}</div></div>'
        )
    return "".join(parts) + "</div></article>"


def number(value, digits: int = 3) -> str:
    """A number as short as it can be read."""
    return f"{value:.{digits}f}" if is_number(value) else "–"


def response_card(response: dict, count: int, facts: list, used: bool) -> str:
    """One response: right or wrong, its advantage, its text, its rewards."""
    right, advantage = response["correct"] > 0.5, float(response["advantage"])
    half = 50 * min(abs(advantage) / 2.5, 1)
    side = f"left:50%;width:{half:.0f}%" if advantage >= 0 else f"right:50%;width:{half:.0f}%"
    direction = "up" if advantage >= 0 else "down"
    bar = f'<span class="bar"><i class="{direction}" style="{side}"></i></span>'
    signed = f"{advantage:+.2f}".replace("-", "−")
    unused, title = ("", "advantage") if used else (" unused", "advantage, not used")
    rewards = [
        ("format", "format"),
        ("accuracy", "accuracy"),
        ("thinking", "thinking"),
        ("total", "reward"),
    ]
    items = "".join(
        f"<div><dt>{label}</dt><dd>{number(response[name], 2)}</dd></div>"
        for name, label in rewards
    )
    told = "✓ correct" if right else "✗ not correct"
    verdict = f'<span class="sign is-{str(right).lower()}">{told}</span>'
    times = f'<span class="times small">{count} times</span>' if count > 1 else ""
    return (
        f'<li class="response"><header>{verdict}{times}</header>'
        f'<div class="said">{marked(str(response["text"]), facts)}</div>'
        f'<div class="advantage{unused}">{bar}<span>{signed}</span> <small>{title}</small></div>'
        f'<dl class="rewards">{items}</dl></li>'
    )
