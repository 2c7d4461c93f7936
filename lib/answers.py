"""Answers: how one is read from a response, and how right it is, by the kind that is asked for.

Free text and numbers: relaxed accuracy (ChartQA, arXiv 2203.10244); mathematics: lib/numbers.py.
Decisions, letters, boxes and labels: the difficulty-aware rewards of Curr-ReFT (arXiv 2503.07065,
section 3). results/README.md has a table of what is read, and what is not.
"""

import math
import re
from collections.abc import Sequence

from data.boxes import iou, read_box
from data.example import Example, choose, split_marked
from lib.numbers import PLAIN, clean_answer, close, math_reader, same_math, to_number, unwrap

PARTIAL = 0.2  # for some of the right letters (paper; the published code has no such credit)
LETTERED = re.compile(r"(?:^|(?<=[\s,;(]))\(?([A-Z])[).:]")  # "(A) cat, C: dog"
OPTION = re.compile(r"(?:^|\s)\(?([A-Z])[).:] *([^\n]*?)(?=\s\(?[A-Z][).:]|\n|$)")


def split_response(response: str) -> tuple[str, str | None]:
    """(thinking, cleaned answer), the answer None without exactly one marker."""
    thinking, answer = split_marked(response)
    return thinking, None if answer is None else clean_answer(answer)


def extract_answer(response: str) -> str | None:
    """The cleaned answer of a response, or None without exactly one answer marker."""
    return split_response(response)[1]


# ---- numbers and free text ----------------------------------------------------------------------


def relaxed_accuracy(*, target: str, prediction: str, tolerance: float = 0.05) -> bool:
    """ChartQA's metric: a number within `tolerance`, a share of the TARGET; text but for its case.

    Both sides come from clean_answer. "%" divides by 100, as published, so that "57%" is not the
    label "57" where a chart's labels leave the sign out. Elements of a list come in any order.
    """
    target, prediction = target.strip(), prediction.strip()
    if target.startswith("[") and target.endswith("]"):
        wanted, given = map(elements, (target, prediction))  # in order of size they match if at all
        return len(wanted) == len(given) and all(
            relaxed_accuracy(target=target, prediction=prediction, tolerance=tolerance)
            for target, prediction in zip(wanted, given)
        )
    wanted, given = to_number(target), to_number(prediction)
    if wanted is None or given is None:
        return target.casefold() == prediction.casefold() != ""
    return close(wanted, given, tolerance)


def elements(text: str) -> list[str]:
    """The cleaned elements of a list: numbers by size, then text."""
    cleaned = sorted(map(clean_answer, text.strip("[] ").split(",")), key=str.casefold)
    return sorted(cleaned, key=lambda text: math.inf if (n := to_number(text)) is None else n)


# ---- other kinds of answer ----------------------------------------------------------------------


def read_letters(text: str, question: str = "") -> set[str] | None:
    """The letters of "A, C", "C and A", "(a)", "AC", "A: cat", of the question's option; None."""
    text = unwrap(text)
    words = [word for word in re.findall(r"\w+", text) if word.casefold() != "and"]
    words = words[1:] if words and words[0].casefold() == "option" else words
    if words and all(re.fullmatch("[A-Z]+|[a-z]", word) for word in words):
        return set("".join(words).upper())
    named = {clean_answer(option).casefold(): name for name, option in OPTION.findall(question)}
    if letter := named.get(clean_answer(text).casefold()):
        return {letter}
    return LETTERED.match(text) and set(LETTERED.findall(text))


def read(example: Example, text: str):
    """What a marked answer says in the form that the Example asks for, None without that form."""
    if example.kind in ("text", "math"):
        return text
    text = text.translate(PLAIN)
    if example.kind == "letters":
        return read_letters(text, example.question)
    if example.kind == "box":
        return read_box(text)
    words = {clean_answer(part).casefold() for part in re.split("[,;]", text.strip("[] "))} - {""}
    if example.kind == "decision":  # one word, in any case
        return words if words in ({"yes"}, {"no"}) else None
    return words or None  # labels, between commas or semicolons


def readable(example: Example, text: str | None) -> bool:
    """Whether a marked answer has the form that the Example asks for; None: nothing was marked."""
    return text is not None and read(example, text) is not None


def reader(examples: Sequence[Example]) -> str | None:
    """What reads the mathematics among the answers; None where there is none to read."""
    return math_reader() if any(example.kind == "math" for example in examples) else None


def grade(
    example: Example, text: str | None, tolerance: float = 0.0, scale: tuple = (1, 1)
) -> float:
    """How right a marked answer, uncleaned, is, in [0, 1], right above 0.5; None is 0.

    text: 1 for any of the right answers by the answer metric at `tolerance`, for an option's letter
    too. math: the same by value, see same_math. letters: 1 for exactly the right ones, PARTIAL for
    some of them, 0 with any wrong one. box: 1 for an IoU above 0.5, `scale` taking its x and y to
    the pixels of the right one. labels: the Jaccard index.
    """
    given = None if text is None else read(example, text)
    right = read(example, example.answer)
    if given is None or right is None:
        return 0.0
    match example.kind:
        case "math":
            return float(any(same_math(right, given, tolerance) for right in example.answers))
        case "text":
            options = list(map(clean_answer, example.options or []))
            given, *rights = (choose(clean_answer(a), options) for a in (given, *example.answers))
            same = (
                relaxed_accuracy(target=r, prediction=given, tolerance=tolerance) for r in rights
            )
            return float(any(same))
        case "box":
            given = tuple(number * factor for number, factor in zip(given, (*scale, *scale)))
            return float(iou(given, right) > 0.5)
        case "labels":
            return len(given & right) / len(given | right)
        case "letters" if given < right:
            return PARTIAL
    return float(given == right)


def matches(example: Example, text: str | None, tolerance: float = 0.0) -> bool:
    """Whether a marked answer is right."""
    return grade(example, text, tolerance) > 0.5
