"""An Example: a question about an image, its answer, its visual facts and a reference trace."""

from collections.abc import Iterable
from dataclasses import dataclass, field

THINK = "Think step by step, then finish with a line of the form Answer: x"
DIRECT = "Answer with a single word or number."
SPLITS = ("train", "val", "test")
OPTION_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_MESSAGE = 300  # characters per line of an InputError


@dataclass
class Example:
    image: object = None  # a PIL image, a path, a ZipImage, or None (text only)
    question: str = ""
    answer: str = ""
    facts: list = field(default_factory=list)  # the visual facts I_c of DyME: see fact_name
    needed: list | None = None  # the facts that the question needs; None: not known
    trace: str | None = None  # the reference thinking, without the answer line
    task: str = ""  # "human" / "augmented" for ChartQA, else the data's own
    id: str = ""  # stable and unique, e.g. chartqa/train/human/12
    options: list | None = None  # what is to be chosen from, in the order of OPTION_LETTERS
    instruction: str | None = None  # how it is to be answered, without thinking; None: THINK
    # what its answer is: text (or a number), decision, letters, box, labels; see lib/answers.py
    kind: str = "text"
    answers: list = field(default_factory=list)  # all that are right; `answer` is memorized

    def __post_init__(self):
        if self.answer not in self.answers:  # also replace(example, answer=another)
            self.answers = [self.answer]


def fact_name(fact: tuple) -> str:
    """The name of a fact, (name, value) or (row, column, value) of strings: "row column"."""
    return " ".join(map(str, fact[:-1])).strip()


def fact_value(fact: tuple) -> str:
    """The value of a fact, its last part."""
    return str(fact[-1])


class InputError(ValueError):
    """Bad input from outside (a file, a flag): what is wrong and what to do, in one line.

    rows: a line for each of several things. Whatever a file holds, the lines are no more and none
    is longer than MAX_MESSAGE.
    """

    def __init__(self, message: str, rows: Iterable[str] = ()):
        super().__init__("\n  ".join(shorten(line) for line in (message, *rows)))


class NoSplit(InputError):
    """The data has no such split, or nothing in it."""


def shorten(text: str) -> str:
    """A text as a line of at most MAX_MESSAGE characters; what is cut is its middle.

    Its end often says what to do. Terminal escapes, which a file's name may hold, are taken out.
    """
    text = text if len(text) < 10 * MAX_MESSAGE else text[: 2 * MAX_MESSAGE] + text[-MAX_MESSAGE:]
    text = " ".join(
        "".join(c if c.isprintable() or c.isspace() else "\ufffd" for c in text).split()
    )
    if len(text) <= MAX_MESSAGE:
        return text
    end = MAX_MESSAGE // 2 - 5
    return f"{text[: MAX_MESSAGE - end - 5]} ... {text[-end:]}"
