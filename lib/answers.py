"""Answers: how one is read from a response, and whether it is right (relaxed accuracy)."""

import math
import re

from data.own import WRAPPING, split_marked

THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")


def split_response(response):
    """(thinking, cleaned answer): data.own.split_marked's, the answer None without one marker."""
    thinking, answer = split_marked(response)
    return thinking, None if answer is None else clean_answer(answer)


def clean_answer(text):
    """The bare answer: no markdown, quotes, final dot, "$", thousands commas; "12 %" is "12%".

    For labels too: it is idempotent, and relaxed_accuracy compares what it is given.
    """
    text = text.replace("$", "").strip(WRAPPING).rstrip("." + WRAPPING)
    if not text.startswith("["):  # the commas of a list part its elements
        text = THOUSANDS.sub(lambda number: number.group().replace(",", ""), text)
    return text[:-1].rstrip() + "%" if text.endswith("%") else text


def marked_answer(response):
    """The text behind the one answer marker as it stands, or None: not cleaned, for boxes."""
    return split_marked(response)[1]


def extract_answer(response):
    """The cleaned answer of a response, or None without exactly one answer marker."""
    return split_response(response)[1]


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
        equal = [
            i
            for i, part in enumerate(given)
            if relaxed_accuracy(target=element, prediction=part, tolerance=tolerance)
        ]
        if not equal:
            return False
        given.pop(equal[0])
    return not given
