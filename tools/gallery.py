"""The gallery of the report: rollouts as a person can judge them, in HTML without a script.

A group is one question: its chart, the facts, the G samples side by side with rewards and
advantages, what the switch made of it, and the reference that was memorized. Numbers that state a
fact of the chart are marked right or wrong, and tokens by their push, up or down: by colour and by
sign. A model may write anything: nothing gets into the page but through `esc`.
"""

import html
import re
from collections import Counter

from lib.answers import split_response
from lib.claims import locate_claims
from lib.log import visible
from tools.curves import MODES

SHOWN_STEPS = 16  # logged steps of a variant
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
        if start >= done:
            css, sign = ("is-true", "✓") if true else ("is-false", "✗")
            parts += f'{esc(thinking[done:start])}<mark class="{css}">{esc(thinking[start:end])}'
            parts, done = f"{parts}<i>{sign}</i></mark>", end
    return f"{parts}{esc(thinking[done:])}<b>{esc(text[len(thinking) :])}</b>"


def pushed(pushes: list, largest: float) -> str:
    """The tokens of a text with what the update does to each (lib.groups.token_pushes), folded up;
    the stronger its colour, the closer a push is to the group's largest. Nothing without any.
    """
    tokens = ""
    for text, push in pushes:
        number = "" if abs(push) < 0.05 else f"{push:+.1f}".replace("-", "−")
        look = f'class="{"up" if push > 0 else "down"}" style="--s:{abs(push) / largest:.2f}"'
        tokens += f"<span {look}>{esc(text)}<small>{number}</small></span>".replace("\n", "⏎")
        tokens += "<br>" if "\n" in text else ""
    folded = f'<summary>push per token</summary><p class="tokens">{tokens}</p>'
    return f'<details class="push">{folded}</details>' if tokens else ""


def gallery(lines: list[dict]) -> str:
    """The groups of a run's groups.jsonl, of about SHOWN_STEPS steps from its first to its last;
    the first one that was explored is open.
    """
    steps = list(dict.fromkeys(line["step"] for line in lines))
    shown = steps[:: -(-len(steps) // SHOWN_STEPS) or 1]
    opened = next((line for line in lines if line["mode"] == "explore"), None)
    return "".join(group_card(line, line is opened) for line in lines if line["step"] in shown)


def group_card(line: dict, opened: bool) -> str:
    """One group: what was asked, what the samples were, what became of them."""
    mode, responses, facts = line["mode"], line["responses"], line["facts"]
    correct = sum(response["correct"] > 0.5 for response in responses)
    equal = mode == "explore" and len({response["total"] for response in responses}) == 1
    verdict = f"{correct} of {len(responses)} correct, {VERDICTS['collapse' if equal else mode]}"
    if not responses:
        verdict = "This step memorizes without sampling."
    image = str(line["image"])
    safe = re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]+", image)
    told = "".join(f"<li>{esc(' '.join(map(str, n)))} <b>{esc(v)}</b></li>" for *n, v in facts)
    texts = [line.get("target_pushes", []), *(each.get("pushes", []) for each in responses)]
    largest = max((abs(push) for pushes in texts for _, push in pushes), default=0) or 1
    # the same text has the same rewards: shown once, counted
    counts = Counter(response["text"] for response in responses)
    kinds = {response["text"]: response for response in responses}.values()
    cards = ""
    for response in sorted(kinds, key=lambda response: -response["total"]):
        about = counts[response["text"]], facts, mode == "explore", largest
        cards += response_card(response, *about)
    target = ""
    if line["target"]:
        said = f'<div class="said">{marked(line["target"], facts)}</div>'
        target = f'<div class="target"><h4>Memorized</h4>{said}{pushed(texts[0], largest)}</div>'
    return f"""
<details class="group card" {"open" * opened}>
<summary>step {int(line["step"])} <span class="mode" style="--c:{MODES[mode]}">{mode}</span>
<span class="pips" aria-hidden="true">{"●" * correct}{"○" * (len(responses) - correct)}</span>
{esc(line["question"])}</summary>
<div class="both"><div class="ask">{f'<img src="{image}" alt="the chart">' if safe else ""}
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
