"""An Example; where a response's answer is; the error of bad input."""

import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

THINK = "Think step by step, then finish with a line of the form Answer: x"
DIRECT = "Answer with a single word or number."
SPLITS = ("train", "val", "test")
# Example.kind of the tasks of Curr-ReFT, by the charts' names and by the published ones; else text
TASK_KINDS = {"detection": "box", "classification": "labels", "classify": "labels", "math": "math"}
OPTION_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_MESSAGE = 300  # characters per line of an InputError
# "Answer: 3", "**Answer**: 3", "<answer>3</answer>"; not the end of another word
MARKER = re.compile(r"<answer>|(?<![\w/<])answer[*_ \t]*:", re.IGNORECASE)
FENCED = re.compile(r"[\s*_]*```\w*\s*(.*?)\s*```", re.DOTALL)
CLOSING = re.compile(r"</answer>", re.IGNORECASE)
WRAPPING = " \t\r\n*_`\"'“”‘’"


@dataclass
class Example:
    image: object = None  # a PIL image, a path, one in a zip, or None (text only)
    question: str = ""
    answer: str = ""
    facts: list = field(default_factory=list)  # the visual facts I_c of DyME: see fact_name
    needed: list | None = None  # the facts that the question needs; None: not known
    trace: str | None = None  # the reference thinking, without the answer line
    task: str = ""  # "human" / "augmented" for ChartQA, else the data's own
    id: str = ""  # stable and unique, e.g. chartqa/train/human/12
    options: list | None = None  # what is to be chosen from, in the order of OPTION_LETTERS
    instruction: str | None = None  # how it is to be answered, without thinking; None: THINK
    # what its answer is: text (or a number), math, decision, letters, box, labels; lib/answers.py
    kind: str = "text"
    answers: list = field(default_factory=list)  # all that are right; `answer` is memorized
    caption: str | None = None  # the image in words, for `judge.py facts --from text`
    scale: tuple = (1, 1)  # from a box in the model's coordinates to the image's pixels, x and y

    def __post_init__(self):
        if self.answer not in self.answers:  # also replace(example, answer=another)
            self.answers = [self.answer]


def fact_name(fact: tuple) -> str:
    """The name of a fact, (name, value) or (row, column, value) of strings: "row column"."""
    return " ".join(map(str, fact[:-1])).strip()


def fact_value(fact: tuple) -> str:
    """The value of a fact, its last part."""
    return str(fact[-1])


def split_marked(response: str) -> tuple[str, str | None]:
    """(thinking, answer): the text before the one marker, "Answer: x" or "<answer>x</answer>", and
    the line behind it; without one, or with several, None: one that says everything says nothing.
    """
    markers = list(MARKER.finditer(response))
    if len(markers) != 1:
        return response, None
    thinking = response[: markers[0].start()].rstrip(WRAPPING + "#")
    tail = response[markers[0].end() :]
    if markers[0].group().startswith("<"):
        closing = CLOSING.search(tail)
        tail = tail[: closing.start()] if closing else ""
    if fenced := FENCED.match(tail):  # JSON goes over several lines
        return thinking, " ".join(fenced[1].split())
    # not splitlines: U+2028 and its like are characters of a label
    return thinking, re.split(r"[\r\n]", tail.strip(WRAPPING), maxsplit=1)[0]


def choose(answer: str, options: list[str]) -> str:
    """The option that an answer names ("cab", "B", "(B)", "B. cab", "option B"), or the answer."""
    named = {option.casefold(): option for option in options}
    for letter, option in zip(OPTION_LETTERS, options):
        pattern = rf"(?:option )?\(?{letter}(?:[).:]*|[).: ]+{re.escape(option)})"
        if re.fullmatch(pattern, answer, re.IGNORECASE):
            named.setdefault(answer.casefold(), option)
    return named.get(answer.casefold(), answer)


class InputError(ValueError):
    """Bad input from outside (a file, a flag): what is wrong, what to do, in a line; rows: more."""

    def __init__(self, message: str, rows: Iterable[str] = ()):
        super().__init__("\n  ".join(shorten(line) for line in (message, *rows)))


class NoSplit(InputError):
    """The data has no such split, or nothing in it."""


def shorten(text: str) -> str:
    """A text, whatever a file holds, as a line, cut in the middle: its end may say what to do."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    kept = MAX_MESSAGE // 2 - 5
    return text if len(text) <= MAX_MESSAGE else f"{text[:kept]} ... {text[-kept:]}"


def say(message: str):
    """Prints a line, once whatever the number of processes."""
    if os.environ.get("RANK", "0") == "0":
        print(shorten(message), file=sys.stderr)
