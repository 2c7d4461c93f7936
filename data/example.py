"""An Example: a question about an image, its answer, its visual facts and a reference trace."""

from dataclasses import dataclass, field

THINK = "Think step by step, then finish with a line of the form Answer: x"
DIRECT = "Answer with a single word or number."
SPLITS = ("train", "val", "test")


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
    options: list | None = None
    instruction: str | None = None  # how it is to be answered, without thinking; None: THINK
    # what its answer is: text (or a number), decision, letters, box, labels; see lib/answers.py
    kind: str = "text"


def fact_name(fact: tuple) -> str:
    """The name of a fact, (name, value) or (row, column, value) of strings: "row column"."""
    return " ".join(map(str, fact[:-1])).strip()


def fact_value(fact: tuple) -> str:
    """The value of a fact, its last part."""
    return str(fact[-1])


class InputError(ValueError):
    """Bad input from outside (a file, a flag): what is wrong and what to do, in one line."""

    def __init__(self, message: str):
        # A file name may hold terminal escapes; line breaks separate the rows of a list.
        super().__init__("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in message))


class NoSplit(InputError):
    """The data has no such split, or nothing in it."""
