"""Numbers, words and names: the tokens of a text, and which of a picture's names begins at one.

Left out: paraphrased names, decimal commas, numbers in words, and scales and units: "3.0 million"
is 3.0, since a chart's table mostly leaves them out.
"""

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from data.charts import COLOURS
from data.example import WRAPPING, fact_name

# full-width forms and other minus signs
PLAIN = {0xFF01 + i: chr(0x21 + i) for i in range(94)} | dict.fromkeys(map(ord, "−–‒﹣"), "-")
SPACES = "\u00a0\u2007\u2009\u202f\u3000"  # that nobody breaks a line at, or thin ones
AROUND = WRAPPING + SPACES  # blanks, markdown, quotes
THOUSANDS = re.compile(rf"(?<=\d)[,'’ {SPACES}](?=\d\d\d(?!\d))")
NUMBER = rf"\d+(?:[,'’{SPACES}]\d\d\d(?!\d))*(?:\.\d+)?(?:[eE][-+]?\d+)?"
CODES = "USD|EUR|GBP|JPY|CNY|INR|CHF"
CURRENCY = rf"(?:[A-Z]{{0,2}} ?[$€£¥₹₩₽]|(?:{CODES}|[Dd]ollars?|[Ee]uros?)\b)?"
AMOUNT = re.compile(  # what an answer may be: "- $5", "1 200 EUR", "12 per cent"
    rf"(-?) ?{CURRENCY} ?([-+]?)(\d{{1,3}}(?: \d\d\d)+(?:\.\d+)?|{NUMBER}|\.\d+)"
    rf" ?(%|[Pp]er ?cent)? ?{CURRENCY}"
)
# LaTeX around an answer: "\boxed{5}", "\(5\)", "$$5$$", "\text{cat}"
LATEX = [r"\\boxed\s*\{(.*)\}", r"\$\$?([^$]*)\$\$?", r"\\\((.*)\\\)", r"\\\[(.*)\\\]"]
LATEX = re.compile("|".join(LATEX), re.DOTALL)
MACRO = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")


def unwrap(text: str) -> str:
    """A text without the LaTeX, markdown, quotes and blanks around it, and a final dot."""
    text = MACRO.sub(r"\1", text)
    while True:
        text = text.strip(AROUND).rstrip("." + AROUND)
        if not (found := LATEX.fullmatch(text)):
            return text
        text = found[found.lastindex]


def clean_answer(text: str) -> str:
    """An answer, or a label, without markup; a number as Python reads it: "12 percent" is "12%",
    "US$1,200" and "1 200" are "1200", "−5" is "-5", "\\boxed{5}" is "5".
    """
    text = unwrap(text.translate(PLAIN))
    if not (found := AMOUNT.fullmatch(text)):
        return text
    minus, sign, number, percent = found.groups()
    return minus + sign + THOUSANDS.sub("", number) + ("%" if percent else "")


def to_number(text: str) -> float | None:
    """The number that a cleaned answer is, "%" dividing by 100, or None; "inf" and "1e999" are nan,
    which is close to nothing, not even to itself.
    """
    try:
        value = float(text.replace("_", "?").removesuffix("%"))  # 1_000 is Python's own
    except ValueError:
        return None
    value /= 100 if text.endswith("%") else 1
    return value if math.isfinite(value) else math.nan


@lru_cache(maxsize=4096)  # the numbers of a text are few, and read again and again
def read_value(text: str) -> float | None:
    """The finite number that a text writes ("1,200", "12 %", "$3.0"), or None; 12 % is 12."""
    value = to_number(clean_answer(text).removesuffix("%"))
    return None if value is None or math.isnan(value) else value


def close(wanted: float, given: float, tolerance: float) -> bool:
    """Whether a number is within `tolerance`, a share of the wanted one, and rounding, of it."""
    return wanted == given or abs(given - wanted) <= (tolerance + 1e-12) * abs(wanted) < math.inf


def words(text: str) -> frozenset[str]:
    """The words of a text, to be looked up."""
    return frozenset(text.split())


# what says nothing of a picture
STOP = words("""a about after all also am an and any are as at be because been before being both but
    by can could did do does each first for from had has have he her here his how i if in into is it
    its just let lets me more most my need next no not now of on one only or other our out over
    question s see she should so some step such than that the their them then there these they this
    those thus to up us very was we were what when where which while who why will with would you
    your""")
ARTICLES = words("the a an its their his her our")
# These are names only before a value, a mark or a word of ENDING.
WEAK_NAMES = words("a the i as some all no yes more less fewer may not or and other")
ENDING = words("and or but is are was were has had at in for while by with")
NO_UNITS = words("st nd rd th s x +")  # "1st", "1990s", "3x" and "65+" are no values

# Nothing that can fail follows a repetition: no backtracking, whatever the text.
TOKEN = re.compile(
    rf"(?P<number>(?:(?<![\w)%.])[-−–])?{NUMBER})(?P<tail>[^\W\d_]*(?:\+(?![\w(]))?)"
    r"|(?P<word>[^\W\d_][^\W_]*(?:['’][^\W_]+|\.\d+)*)(?:\+(?![\w(]))?|(?P<mark>\n|[^\s\w])"
)
EQUATION = re.compile(r"\d ?[*/+] ?[\d(]")  # GSM8K's facts, which are no picture's: "48/2"
# "Tokyo, Japan", "Other cereals (excl. rice)", "Rep/Lean Rep" are called by their first part too.
SHORTENING = re.compile("[,(/;]")
UNKNOWN = "?"  # the part of a name that the picture hasn't: (UNKNOWN, its text)


class Token(NamedTuple):
    """A word, number or mark of a text."""

    text: str  # in lower case
    word: str  # as names are compared, "" for a mark
    value: float | None
    start: int  # in characters
    end: int  # exclusive


PADDING = [Token("", "", None, 0, 0)] * 9  # behind a text's tokens, so before the first one too


def tokenize(text: str) -> list[Token]:
    """The Tokens of a text, then PADDING: one may look 9 tokens past either end."""
    tokens = []
    for match in TOKEN.finditer(text):
        found, word, value = match.group().casefold(), "", None
        if match["word"]:  # possessive and plural are dropped
            word = found.rstrip("+").replace("’", "'").removesuffix("'s")
            if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
                word = word[:-1]
        elif match["number"]:
            number, tail = match["number"], match["tail"].casefold()
            value = None if tail in NO_UNITS else read_value(number)
            word = THOUSANDS.sub("", number).lstrip("-−–") + tail.rstrip("+")
        tokens.append(Token(found, word, value, *match.span()))
    return tokens + PADDING


def name_words(text: str) -> tuple[str, ...]:
    """A name as it is looked for: its words without articles."""
    found = tuple(token.word for token in tokenize(text) if token.word)
    return tuple(word for word in found if word not in ARTICLES) or found


class Chart(NamedTuple):
    """The names of a picture's facts."""

    # a name without blanks (tables read off images have theirs wrong: "Spa in") to its meaning,
    # ((kind, words), ...); None where a name only begins so
    spellings: dict
    table: dict  # (row,) or (row, column), as words, to its facts
    open: bool  # whether names of other things are wrong: not where the facts are equations


@lru_cache(maxsize=1024)
def read_chart(facts: tuple) -> Chart:
    """The Chart of facts; where all names are the embedded charts' COLOURS, others are UNKNOWN."""
    in_table = all(len(fact) == 3 for fact in facts)
    table, called, also = {}, [], []  # called: (name, what it means); also: the same, behind it
    for fact in facts:
        texts = fact[:-1] if in_table else (fact_name(fact),)
        names = tuple(map(name_words, texts))
        table.setdefault(names, []).append(fact)
        for text, part in zip(texts, enumerate(names)):
            called.append((part[1], (part,)))
            also.append((name_words(SHORTENING.split(text)[0]), (part,)))
        called.append((sum(names, ()), tuple(enumerate(names))))
        if read_value(fact[-1]) is None:
            said = name_words(fact[-1])
            also.append((said, ((None, said),)))
    if all(fact_name(fact) in COLOURS for fact in facts):
        also += [((colour,), ((0, (UNKNOWN, colour)),)) for colour in COLOURS]
    meant = {}
    for name, meaning in called + also:
        meant.setdefault("".join(name), meaning)
    meant.pop("", None)
    begun = {name[:end]: None for name in meant for end in range(1, len(name))}
    equations = any(EQUATION.search(fact_name(fact)) for fact in facts)
    return Chart(begun | meant, table, not equations)


def find_names(tokens: list[Token], spellings: dict) -> Iterator[tuple[int, int, tuple]]:
    """Yields (start, end, ((kind, words), ...)) of each name of a text, () of each other token."""
    start = 0
    while start < len(tokens) - len(PADDING):
        end, name, spelt, parted = start + 1, (), "", False
        for i in range(start, len(tokens) if tokens[start].word in spellings else start):
            word = tokens[i].word
            if word and (spelt + word in spellings or word not in ARTICLES):
                spelt += word
                if spelt not in spellings:
                    break
                # A row and its column are one name only where no mark parts them.
                if spellings[spelt] and not (parted and len(spellings[spelt]) > 1):
                    end, name = i + 1, spellings[spelt]
            parted = parted or tokens[i].text in ".,:;|!?\n"
        behind = tokens[start + 1]
        ended = behind.text in ENDING or not behind.word or behind.value is not None
        if end == start + 1 and tokens[start].word in WEAK_NAMES and not ended:
            name = ()
        yield start, end, name
        start = end


def mentioned_facts(text: str, facts) -> list[tuple[str, ...]]:
    """The facts whose names a text mentions: a row alone means its columns, a column its rows."""
    chart = read_chart(tuple(tuple(map(str, fact)) for fact in facts))
    named = {part for *_, name in find_names(tokenize(text), chart.spellings) for part in name}
    kinds = {kind for kind, _ in named} - {None}  # row, column or both
    return [
        fact
        for key, found in chart.table.items()
        for fact in found
        if kinds and all((kind, key[kind]) in named for kind in kinds)
    ]
