"""Rewards of a response and the visual supervision around them, without a model in the loop.

Answer and format, the visual checker, which scores how far the thinking states the chart's facts,
and the visual refiner, which writes the text that a group memorises: DyME, arXiv 2506.23061.
Relaxed accuracy: ChartQA, arXiv 2203.10244.

Left out: the forms of checker and refiner that ask a language model (judge.py), and how claims are
read from a text (claims.py).
"""

import math
import re

import torch

import charts
from claims import claimed_facts, mentioned_facts
from data import InputError
from mentions import read_value, words

# ---- the answer ---------------------------------------------------------------------------------

MARKER = re.compile(r"<answer>|(?<![\w/<])answer[*_ \t]*:", re.IGNORECASE)
CLOSING = re.compile(r"</answer>", re.IGNORECASE)
THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
WRAPPING = " \t\r\n*_`\"'“”‘’"


def split_response(response):
    """(thinking, answer): the text before the one answer marker, and the cleaned answer behind it.

    Markers are "Answer: x" (to the end of its line) and "<answer>x</answer>". Without a marker, or
    with several, the answer is None: one that says everything has said nothing.
    """
    markers = list(MARKER.finditer(response))
    if len(markers) != 1:
        return response, None
    thinking = response[:markers[0].start()]
    return thinking.rstrip(WRAPPING + "#"), clean_answer(marked_answer(response))


def marked_answer(response):
    """The text behind the one answer marker as it stands, or None: a box's commas part numbers."""
    markers = list(MARKER.finditer(response))
    if len(markers) != 1:
        return None
    tail = response[markers[0].end():]
    if markers[0].group().startswith("<"):
        closing = CLOSING.search(tail)
        tail = tail[:closing.start()] if closing else ""
    lines = tail.strip(WRAPPING).splitlines()
    return lines[0] if lines else ""


def clean_answer(text):
    """The bare answer: no markdown, quotes, final dot, "$", thousands commas; "12 %" is "12%".

    For labels too: it is idempotent, and relaxed_accuracy compares what it is given.
    """
    text = text.replace("$", "").strip(WRAPPING).rstrip("." + WRAPPING)
    if not text.startswith("["):  # the commas of a list part its elements
        text = THOUSANDS.sub(lambda number: number.group().replace(",", ""), text)
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
    """ChartQA's metric: a number within `tolerance`, a share of the TARGET; text but for its case.

    "%" divides by 100. An empty or non-finite prediction is wrong. `tolerance=0` asks for the same
    number up to rounding of floats. A bracketed list ("[3, 4]") is compared element by element, in
    any order. No cleaning here: both sides come from clean_answer.
    """
    target, prediction = target.strip(), prediction.strip()
    if target.startswith("[") and target.endswith("]"):
        return same_elements(target, prediction, tolerance)
    wanted, given = to_number(target), to_number(prediction)
    if wanted is not None and given is not None:
        return abs(given - wanted) <= (tolerance + 1e-12) * abs(wanted)
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
    """Whether each element of the target has an equal in the prediction, and none is left over."""
    given = [part.strip() for part in prediction.strip("[]").split(",")]
    for element in target.strip("[]").split(","):
        equal = [i for i, part in enumerate(given)
                 if relaxed_accuracy(target=element, prediction=part, tolerance=tolerance)]
        if not equal:
            return False
        given.pop(equal[0])
    return not given


# ---- the visual checker and the rewards ---------------------------------------------------------


def visual_checker(thinking, facts, needed=None, question="", trace=""):
    """How far the thinking is grounded in the visual facts: F1 of its claims, in [0, 1].

    Precision over the claimed pairs, recall over the reference pairs: `needed` where known, else
    the facts whose names the question or the reference trace mentions, else all. A true fact that
    isn't in the reference costs precision. Nothing claimed: 0.
    """
    facts = tuple((str(name), str(value)) for name, value in facts)
    if needed:
        reference = {(str(name), str(value)) for name, value in needed}
    else:
        reference = set(mentioned_facts(f"{question}\n{trace or ''}", facts) or facts)
    claimed = set(claimed_facts(thinking, facts))
    right = len(claimed & reference)
    return 2 * right / (len(claimed) + len(reference)) if right else 0.0


def score(
    responses, example, *, truncated=None, reward_weights=(1, 1, 1), tolerance=0.0, accuracy=None
):
    """The rewards of G responses to an Example, a dict of (G,) tensors.

    format, accuracy, thinking: in [0, 1]. total: their sum weighted by `reward_weights`, in this
    order, and 0 where format is 0. correct: bool, accuracy > 0.5 and format 1, which is what the
    switch counts. `truncated` says which responses were cut off; `accuracy`, G numbers, replaces
    the metric. Raises InputError, naming the example, for an accuracy that isn't finite.
    """
    if accuracy is not None and not all(map(math.isfinite, accuracy)):
        raise InputError(f"reward: {accuracy} of example {example.id!r} must be finite numbers")
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


# ---- the visual refiner -------------------------------------------------------------------------

LONGEST = 500  # characters of an observation; a trace has to fit into a completion
HIGHEST = words("highest most largest maximum max biggest greatest top")
LOWEST = words("lowest least smallest minimum min fewest bottom")
MORE = words("more higher greater larger above exceed exceeds")
LESS = words("less lower fewer smaller below")
SUM = words("sum total combined together add added adding")
MEAN = words("average mean")
RATIO = words("ratio times divide divided quotient")
DIFFERENCE = words("difference gap differ subtract minus")
# Not the highest value alone is asked for.
BESIDES = SUM | MEAN | RATIO | DIFFERENCE | words("second third median")


def refine(example):
    """The thinking that a group memorises, from facts, question and answer; no answer line.

    Goal / Observation / Reasoning / Conclusion: the facts that the question needs (`needed`, else
    those it mentions, else all; of too many, those that show the answer), what is done with them
    where the numbers show it, and the answer. The embedded charts' items get the text of their own
    writer, with the true facts: the tiny model's words.
    """
    kind = example.task.split("-")[0]
    if example.id.startswith("charts-") and kind in charts.GOALS and example.needed:
        return charts.write_trace(kind, example.needed, example.answer)
    facts = tuple((str(name), str(value)) for name, value in example.needed or example.facts)
    if not example.needed:
        facts = tuple(mentioned_facts(example.question, facts)) or facts
    answer = clean_answer(example.answer)
    goal, reasoning = derive(example.question, facts, answer)
    observed = "; ".join(f"{name} = {value}" for name, value in facts)
    if len(observed) > LONGEST:
        shown = [fact for fact in facts if shows(fact, answer)]
        observed = "; ".join(f"{name} = {value}" for name, value in shown)
    parts = [f"Goal: {goal}."]
    parts += [f"Observation: {observed}."] if 0 < len(observed) <= LONGEST else []
    parts += [f"Reasoning: {reasoning}."] if reasoning else []
    # A fact's name may look like the answer marker, of which the target has just the last.
    return MARKER.sub("answer", "\n".join(parts + [f"Conclusion: the result is {answer}."]))


def shows(fact, answer):
    """Whether the answer is this fact's value, or its name or the row or column in it."""
    name, value, answer = fact[0].casefold(), read_value(fact[1]), answer.casefold()
    if value is not None and value == read_value(answer) or name == answer:
        return True
    return bool(answer) and (name.startswith(answer + " ") or name.endswith(" " + answer))


def derive(question, facts, answer):
    """(goal, reasoning): what is done with the facts; "" where the numbers don't show it.

    An operation is stated only if its result is the answer to the digits given, and the question's
    words ask for it; the sum or difference of two facts needs no word.
    """
    nothing = ("read what the chart shows", "")
    asked = set(re.findall("[a-z]+", question.casefold()))
    values = [read_value(value) for _, value in facts]
    if not values or None in values:
        return nothing
    if len(values) == 1 and values[0] == read_value(answer):
        return f"find {facts[0][0]}", f"{facts[0][0]} is {answer}"
    found = find_extreme(facts, values, asked, answer)
    found = found or find_relation(question, facts, values, asked, answer)
    return found or find_result(facts, values, asked, answer) or nothing


def find_extreme(facts, values, asked, answer):
    """The highest or lowest value, or the name that has it, as (goal, reasoning); else None."""
    two = len(facts) == 2
    for place, value, asking in (("highest", max(values), HIGHEST | MORE if two else HIGHEST),
                                 ("lowest", min(values), LOWEST | LESS if two else LOWEST)):
        best = [fact for fact in facts if read_value(fact[1]) == value]
        if not asked & asking or asked & BESIDES or not shows(best[0], answer):
            continue
        if value == read_value(answer):
            return f"find the {place} value", f"the {place} value is {answer}"
        if len(best) == 1:
            return f"find the {place}", f"the {place} value is {best[0][1]}, so it is {answer}"
    return None


def find_relation(question, facts, values, asked, answer):
    """Yes or no to "has the first name more (less) than the second", as (goal, reasoning)."""
    if len(facts) != 2 or bool(asked & MORE) == bool(asked & LESS):
        return None
    places = [question.casefold().find(name.casefold()) for name, _ in facts]
    if -1 in places:
        return None
    first, second = (0, 1) if places[0] < places[1] else (1, 0)
    difference = values[first] - values[second]
    holds = difference > 0 if asked & MORE else difference < 0
    if answer.casefold() != ("yes" if holds else "no"):
        return None
    relation = "more than" if difference > 0 else "less than" if difference else "equal to"
    return "compare the two", f"{facts[first][1]} is {relation} {facts[second][1]}, so {answer}"


def find_result(facts, values, asked, answer):
    """The sum, mean, ratio or difference that is the answer, as (goal, reasoning); else None."""
    result, written = read_value(answer), [value for _, value in facts]
    if result is None or len(values) < 2:
        return None
    rounding = 0.5 * 10.0 ** -min(len(answer.rstrip("%").partition(".")[2]), 9) * (1 + 1e-9)
    two = len(values) == 2 and result not in values
    low, high = written[values.index(min(values))], written[values.index(max(values))]
    total = " + ".join(written)
    candidates = [
        ("average", asked & MEAN, sum(values) / len(values), f"({total}) / {len(values)}"),
        ("sum", asked & SUM or two, sum(values), total),
        ("difference", asked & DIFFERENCE or two, max(values) - min(values), f"{high} - {low}"),
    ]
    for over, under in ((0, 1), (1, 0)) if len(values) == 2 else ():
        quotient = values[over] / values[under] if values[under] else math.inf
        how = f"{written[over]} / {written[under]}"
        candidates.append(("ratio", asked & RATIO, quotient, how))
    for name, wanted, value, how in candidates:
        if wanted and abs(value - result) <= rounding:
            return f"find the {name}", f"{how} = {answer}"
    return None
