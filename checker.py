"""Rewards of a response and the visual supervision around them, without a model in the loop.

Answer and format (DyME, arXiv 2506.23061), ChartQA's relaxed accuracy (arXiv 2203.10244), the visual
checker, which scores how far the thinking states the chart's facts, and the visual refiner, which writes
the text that a group memorises.

Left out: the forms of checker and refiner that ask a language model (judge.py), and how claims are read
from a text (claims.py).
"""

import math
import re

import torch

import charts
from claims import claimed_facts, mentioned_facts, read_value

# ---- the answer -------------------------------------------------------------------------------------

MARKER = re.compile(r"<answer>|(?<![\w/<])answer[*_ \t]*:", re.IGNORECASE)
CLOSING = re.compile(r"</answer>", re.IGNORECASE)
THOUSANDS = re.compile(r"(?<=\d),(?=\d\d\d(?!\d))")
WRAPPING = " \t\r\n*_`\"'“”‘’"


def split_response(response):
    """(thinking, answer): the text before the one answer marker, and the cleaned answer behind it.

    Markers are "Answer: x" (to the end of its line) and "<answer>x</answer>". Without a marker, or with
    several, the answer is None: one that says everything has said nothing.
    """
    markers = list(MARKER.finditer(response))
    if len(markers) != 1:
        return response, None
    thinking, tail = response[:markers[0].start()], response[markers[0].end():]
    if markers[0].group().startswith("<"):
        closing = CLOSING.search(tail)
        tail = tail[:closing.start()] if closing else ""
    lines = tail.strip(WRAPPING).splitlines()
    return thinking.rstrip(WRAPPING + "#"), clean_answer(lines[0] if lines else "")


def clean_answer(text):
    """The bare answer: no markdown, quotes, final dot, "$" or thousands commas; "12 %" becomes "12%".

    For labels too: it is idempotent, and relaxed_accuracy compares what it is given.
    """
    text = text.strip(WRAPPING).rstrip("." + WRAPPING).replace("$", "").strip(WRAPPING)
    # The commas of a list part its elements.
    text = text if text.startswith("[") else THOUSANDS.sub("", text)
    return text[:-1].rstrip() + "%" if text.endswith("%") else text


def extract_answer(response):
    """The cleaned answer of a response, or None without exactly one answer marker."""
    return split_response(response)[1]


def format_reward(response, truncated=False):
    """1.0 for thinking, then exactly one marked, non-empty answer, ended by itself; else 0.0."""
    thinking, answer = split_response(response)
    return float(bool(answer) and any(map(str.isalnum, thinking)) and not truncated)


def to_number(text):
    """The finite number that `text` is, "%" dividing by 100, else None."""
    text = text.strip()
    percent = text.endswith("%")
    try:
        value = float(text[:-1] if percent else text)
    except ValueError:
        return None
    if not math.isfinite(value) or "_" in text:
        return None
    return value / 100 if percent else value


def relaxed_accuracy(*, target, prediction, tolerance=0.05):
    """ChartQA's metric: a number within `tolerance` of the target, as a share of the TARGET; text equal.

    An empty or non-finite prediction is wrong. `tolerance=0` asks for the same number up to rounding of
    floats. A bracketed list ("[3, 4]") is compared element by element, in any order. No cleaning here:
    both sides come from clean_answer.
    """
    target, prediction = target.strip(), prediction.strip()
    if target.startswith("[") and target.endswith("]"):
        return same_elements(target, prediction, tolerance)
    wanted, given = to_number(target), to_number(prediction)
    if wanted is not None and given is not None:
        return abs(given - wanted) <= (tolerance + 1e-9) * abs(wanted)
    if not prediction or not is_finite(prediction):
        return False
    return target.casefold() == prediction.casefold()


def is_finite(text):
    """False for the text of an infinity or a NaN ("inf", "1e999"), true for any other text."""
    try:
        return math.isfinite(float(text.rstrip("%")))
    except ValueError:
        return True


def same_elements(target, prediction, tolerance):
    """Each element of the target list has its own equal in the prediction, and none is left over."""
    given = [part.strip() for part in prediction.strip("[]").split(",")]
    wanted = [part.strip() for part in target.strip("[]").split(",")]
    if len(given) != len(wanted):
        return False
    for element in wanted:
        equal = [g for g in given if relaxed_accuracy(target=element, prediction=g, tolerance=tolerance)]
        if not equal:
            return False
        given.remove(equal[0])
    return True


# ---- the visual checker and the rewards ---------------------------------------------------------------

def visual_checker(thinking, facts, needed=None, question="", trace=""):
    """How far the thinking is grounded in the visual facts: F1 of its claims, in [0, 1].

    Precision over the claimed pairs, recall over the reference pairs: `needed` where known, else the facts
    whose names the question or the reference trace mentions, else all. A true fact that isn't in the
    reference costs precision. Nothing claimed: 0.
    """
    facts = tuple((str(name), str(value)) for name, value in facts)
    if needed:
        reference = {(str(name), str(value)) for name, value in needed}
    else:
        reference = set(mentioned_facts(f"{question}\n{trace or ''}", facts) or facts)
    claimed = set(claimed_facts(thinking, facts))
    right = len(claimed & reference)
    return 2 * right / (len(claimed) + len(reference)) if right else 0.0


def score(responses, example, *, truncated=None, reward_weights=(1, 1, 1), tolerance=0.0, accuracy=None):
    """The rewards of G responses to an Example: a dict of (G,) float tensors in [0, 1], and `correct`.

    Keys: format, accuracy, thinking; total, their sum weighted by `reward_weights` in this order, and 0
    where format is 0; correct, bool: accuracy > 0.5 and format 1 (the switch counts these). `truncated`
    says which responses were cut off; `accuracy`, G numbers, replaces the metric (a reward of one's own).
    """
    truncated = truncated if truncated is not None else [False] * len(responses)
    target = clean_answer(example.answer)
    rewards = {"format": [], "accuracy": [], "thinking": []}
    for g, response in enumerate(responses):
        thinking, answer = split_response(response)
        right = answer is not None and relaxed_accuracy(
            target=target, prediction=answer, tolerance=tolerance)
        rewards["format"].append(format_reward(response, truncated[g]))
        rewards["accuracy"].append(float(right) if accuracy is None else float(accuracy[g]))
        rewards["thinking"].append(visual_checker(
            thinking, example.facts, example.needed, example.question, example.trace))
    rewards = {name: torch.tensor(values) for name, values in rewards.items()}  # (G,) each
    weighted = sum(w * values for w, values in zip(reward_weights, rewards.values()))
    well_formed = rewards["format"] > 0.5
    rewards["total"] = torch.where(well_formed, weighted, torch.zeros_like(weighted))
    rewards["correct"] = (rewards["accuracy"] > 0.5) & well_formed
    return rewards


# ---- the visual refiner -------------------------------------------------------------------------------

def refine(example):
    """The thinking that a group memorises, written from facts, question and answer; no answer line.

    Goal / Observation / Reasoning / Conclusion: the facts that the question needs (`needed`, else those
    it mentions, else all), what is done with them where the numbers show it, and the answer. The embedded
    charts have a trace of this kind already, in the words that the tiny tokenizer knows: theirs is used.
    """
    kind = example.task.split("-")[0]
    if example.id.startswith("charts-") and kind in charts.GOALS and example.needed:
        return charts.write_trace(kind, example.needed, example.answer)
    facts = tuple((str(name), str(value)) for name, value in example.needed or example.facts)
    if not example.needed:
        facts = mentioned_facts(example.question, facts) or facts
    answer = clean_answer(example.answer)
    observed = "; ".join(f"{name}: {value}" for name, value in facts)
    reasoning = derive(example.question, facts, answer)
    parts = [f"Goal: answer the question from the chart: {example.question.strip()}"]
    parts += [f"Observation: {observed}."] if facts else []
    parts += [f"Reasoning: {reasoning}."] if reasoning else []
    return "\n".join(parts + [f"Conclusion: it is {answer}."])


def derive(question, facts, answer):
    """What is done with the facts to reach the answer, as a clause; "" where the numbers don't show it."""
    return ""
