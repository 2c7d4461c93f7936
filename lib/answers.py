"""Answers: how one is read from a response, and how right it is, by the kind that is asked for.

Free text and numbers: relaxed accuracy (ChartQA, arXiv 2203.10244). Decisions, letters, boxes and
labels: the difficulty-aware rewards of Curr-ReFT (arXiv 2503.07065, section 3). Left out: decimal
commas, numbers in words, several boxes.
"""

import math
import re

from data.example import OPTION_LETTERS, WRAPPING, split_marked

# Numbers as people write them: full-width forms, other minus signs, "US$5", "5 €", "1 234".
PLAIN = {0xFF01 + i: chr(0x21 + i) for i in range(94)} | dict.fromkeys(map(ord, "−–‒﹣"), "-")
CURRENCY = re.compile(r"(?:\b[A-Z]{1,2} ?)?[$€£¥₹₩₽]")
CODE = re.compile(r"\b(?:USD|EUR|GBP|JPY|CNY|INR|CHF|dollars?|euros?)\b")
SPACES = "\u00a0\u2007\u2009\u202f\u3000"  # that nobody breaks a line at, or thin ones
THOUSANDS = re.compile(rf"(?<![\d,.])\d{{1,3}}(?:[,'’{SPACES}]\d{{3}})+(?![\d,])")
SPACED = re.compile(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?%?")  # only where it is all there is
OPTION = re.compile(r"(?:option )?\(?([A-Za-z])(?:[).:]|$)\s*(.*)", re.IGNORECASE)
# nothing, or what Python reads as a number without end: "inf", "1e999"
NO_ANSWER = re.compile(r"|[-+]?(?:nan|inf|infinity|[\d.]+e\+?\d+)%?", re.IGNORECASE)
PARTIAL = 0.2  # for some of the right letters (paper; the published code has no such credit)
COORDINATE = r"\s*(-?\d+(?:\.\d+)?)\s*"
BOX = re.compile(rf"[\[(<]?{COORDINATE},{COORDINATE},{COORDINATE},{COORDINATE}[\])>]?\.?")

# ---- a response and its answer ------------------------------------------------------------------


def split_response(response: str) -> tuple[str, str | None]:
    """(thinking, cleaned answer): data.example.split_marked's, the answer None without one marker."""
    thinking, answer = split_marked(response)
    return thinking, None if answer is None else clean_answer(answer)


def extract_answer(response: str) -> str | None:
    """The cleaned answer of a response, or None without exactly one answer marker."""
    return split_response(response)[1]


def final_answer(response: str) -> str:
    """What a response says in the end: behind its answer marker; without one inside the last
    \\boxed{}, else the last line.
    """
    marked = split_marked(response)[1]
    if marked is not None:
        return marked
    start = response.rfind("\\boxed{")
    depth = 0
    for end in range(start, len(response) if start >= 0 else start):
        depth += (response[end] == "{") - (response[end] == "}")
        if response[end] == "}" and not depth:
            return response[start + 7 : end]
    return (response.strip().splitlines() or [""])[-1].strip()


def clean_answer(text: str) -> str:
    """The bare answer: no markdown, quotes, final dot, currency; numbers as Python reads them.

    "12 percent" is "12%", "US$1,200" and "1 200" are "1200", "−5" is "-5". Labels go through it
    too.
    """
    ends = WRAPPING + SPACES
    text = CURRENCY.sub("", text.translate(PLAIN)).strip(ends).rstrip("." + ends)
    if text.startswith("["):  # the commas of a list part its elements
        return text
    text = THOUSANDS.sub(lambda number: re.sub(r"\D", "", number.group()), text)
    number = re.sub(r"(?<=\d) ?(?:%|per ?cent)$", "%", CODE.sub("", text).strip(), flags=re.I)
    number = number.removeprefix("-").strip() if (minus := number.startswith("-")) else number
    number = number.replace(" ", "") if SPACED.fullmatch(number) else number
    if to_number(number) is not None:
        return "-" * minus + number.rstrip(".")
    return text


# ---- numbers and free text ----------------------------------------------------------------------


def to_number(text: str) -> float | None:
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


def read_value(text: str) -> float | None:
    """The finite number that a text writes ("1,200", "12 %", "$3.0"), or None; 12 % is 12."""
    if len(text) > 400:  # no picture has such a number
        return None
    return to_number(text if text.isdecimal() else clean_answer(text).removesuffix("%"))


def relaxed_accuracy(*, target: str, prediction: str, tolerance: float = 0.05) -> bool:
    """ChartQA's metric: a number within `tolerance`, a share of the TARGET; text but for its case.

    Both sides come from clean_answer. "%" divides by 100, as published, so that "57%" is not the
    label "57" where a chart's labels leave the sign out. An empty or non-finite prediction is
    wrong. Tolerance 0: equal up to rounding of floats. A list ("[3, 4]") is compared element by
    element, in any order.
    """
    target, prediction = target.strip(), prediction.strip()
    if target.startswith("[") and target.endswith("]"):
        wanted, given = map(elements, (target, prediction))  # in order of size they match if at all
        return len(wanted) == len(given) and all(
            relaxed_accuracy(target=target, prediction=prediction, tolerance=tolerance)
            for target, prediction in zip(wanted, given)
        )
    wanted, given = to_number(target), to_number(prediction)
    if wanted is not None and given is not None:
        return abs(given - wanted) <= (tolerance + 1e-12) * abs(wanted)
    return prediction.casefold() == target.casefold() and not NO_ANSWER.fullmatch(prediction)


def elements(text: str) -> list[str]:
    """The cleaned elements of a list: numbers by size, then text."""

    def order(element):
        number = to_number(element)
        return number is None, number or 0.0, element.casefold()

    return sorted(map(clean_answer, text.strip("[] ").split(",")), key=order)


# ---- other kinds of answer: what one says, None when it hasn't the form -------------------------


def read_decision(text: str) -> str | None:
    """ "yes" or "no" in any case, else None."""
    word = clean_answer(text).casefold()
    return word if word in ("yes", "no") else None


def read_letters(text: str) -> set[str] | None:
    """The letters of "A, C", "C and A", "(a)" or "AC"; None without one or with another word."""
    words = [word for word in re.findall(r"\w+", text) if word.casefold() != "and"]
    if not words or not all(re.fullmatch("[A-Z]+|[a-z]", word) for word in words):
        return None
    return set("".join(words).upper())


def read_box(text: str) -> tuple[float, ...] | None:
    """(left, top, right, bottom) in pixels, the last two exclusive; None for no such finite box."""
    found = BOX.fullmatch(text.translate(PLAIN).strip(WRAPPING))
    box = tuple(map(float, found.groups())) if found else ()
    if not box or not all(map(math.isfinite, box)) or box[0] >= box[2] or box[1] >= box[3]:
        return None
    return box


def read_labels(text: str) -> set[str] | None:
    """The labels between commas or semicolons, in lower case; None when there is none."""
    labels = {clean_answer(part).casefold() for part in re.split("[,;]", text.strip("[] "))}
    return labels - {""} or None


READERS = {"decision": read_decision, "letters": read_letters}
READERS |= {"box": read_box, "labels": read_labels}


def iou(a: tuple, b: tuple) -> float:
    """Intersection over union of two boxes that read_box gave."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


# ---- any kind -----------------------------------------------------------------------------------


def readable(example, text: str | None) -> bool:
    """Whether a marked answer has the form that the Example asks for; None: nothing was marked."""
    return text is not None and (example.kind == "text" or READERS[example.kind](text) is not None)


def has_metric(example) -> bool:
    """Whether letters, numbers, yes and no are enough to score it: a free answer needs a judge."""
    plain = example.kind != "text" or example.options
    return bool(example.answer and (plain or to_number(clean_answer(example.answer)) is not None))


def option_text(answer: str, options: list[str]) -> str:
    """The text of the option that a cleaned answer names: "B", "(b)", "B. cat"; else the answer."""
    texts = dict(zip(OPTION_LETTERS, map(clean_answer, options)))
    named = OPTION.fullmatch(answer)
    letter, rest = (named[1].upper(), named[2]) if named else ("", "")
    alone = answer.casefold() not in (text.casefold() for text in texts.values())
    if alone and letter in texts and rest.casefold() in ("", texts[letter].casefold()):
        return texts[letter]
    return answer


def grade(example, text: str | None, tolerance: float = 0.0) -> float:
    """How right a marked answer, uncleaned, is, in [0, 1]; None, nothing marked, is 0.

    text: 1 for any of the right answers by the answer metric at `tolerance`; of an item with
    options, for the right one's letter or text. decision: 1 for the right one. letters: 1 for
    exactly the right ones, PARTIAL for some of them, 0 with any wrong one. box: 1 for an IoU above
    0.5. labels: the Jaccard index.
    """
    if text is None:
        return 0.0
    if example.kind == "text":
        given, *right = (
            option_text(clean_answer(answer), example.options or [])
            for answer in (text, *example.answers)
        )
        same = (relaxed_accuracy(target=t, prediction=given, tolerance=tolerance) for t in right)
        return float(any(same))
    given, right = (READERS[example.kind](answer) for answer in (text, example.answer))
    if given is None or right is None:
        return 0.0
    if example.kind == "box":
        return float(iou(given, right) > 0.5)
    if example.kind == "labels":
        return len(given & right) / len(given | right)
    if example.kind == "letters" and given < right:
        return PARTIAL
    return float(given == right)
