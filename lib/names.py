"""Words, numbers and names: the tokens of a text, and which of a picture's names begins at one.

Left out: paraphrased names, decimal commas, numbers in words, and scales: "3.0 million" is 3.0,
since a chart's table mostly leaves its unit out. Which value is stated for which name: claims.py.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from data.charts import COLOURS
from data.example import fact_name
from lib.english import ARTICLES, ENDING, SKIPPED_IN_NAMES, WEAK_NAMES, words
from lib.numbers import read_value

# Nothing that can fail follows a repetition: no backtracking, whatever the text.
TOKEN = re.compile(
    r"(?P<number>(?:(?<![\w)%.])[-−–])?\d+(?:[,\u00a0\u2009\u202f]\d\d\d(?!\d))*(?:\.\d+)?"
    r"(?:[eE][-+]?\d+)?)"
    r"(?P<tail>[^\W\d_]*(?:\+(?![\w(]))?)"
    r"|(?P<word>[^\W\d_][^\W_]*(?:['’][^\W_]+|\.\d+)*)(?:\+(?![\w(]))?|(?P<mark>\n|[^\s\w])"
)
EQUATION = re.compile(r"\d ?[*/+] ?[\d(]")  # GSM8K's facts, which are no picture's: "48/2"
YEAR = re.compile(r"(?:18|19|20)\d\d")
# "Tokyo, Japan", "Other cereals (excl. rice)", "Rep/Lean Rep" are called by their first part too.
SHORTENING = re.compile("[,(/;]")
NO_UNITS = words("st nd rd th s x +")  # "1st", "1990s", "3x" and "65+" are no values

UNKNOWN = "?"  # the part of a name that the picture hasn't: (UNKNOWN, its text)

# ---- words and names ----------------------------------------------------------------------------


class Token(NamedTuple):
    """A word, number or mark of a text."""

    text: str  # in lower case
    word: str  # as names are compared, "" for a mark
    value: float | None
    start: int  # in characters
    end: int  # exclusive
    raw: str = ""  # as it is


PADDING = [Token("", "", None, 0, 0)] * 9  # behind a text's tokens, so before the first one too


def tokenize(text: str) -> list[Token]:
    """The Tokens of a text, then PADDING: one may look 9 tokens past either end."""
    tokens = []
    for match in TOKEN.finditer(text):
        raw, word, value = match.group().casefold(), "", None
        if match["word"]:  # possessive and plural are dropped
            word = raw.rstrip("+").replace("’", "'").removesuffix("'s")
            if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
                word = word[:-1]
        elif match["number"]:
            number, tail = match["number"], match["tail"].casefold()
            value = None if tail in NO_UNITS else read_value(number)
            word = number.lstrip("-−").replace(",", "") + tail.rstrip("+")
        tokens.append(Token(raw, word, value, *match.span(), match.group()))
    return tokens + PADDING


def name_words(text: str) -> tuple[str, ...]:
    """A name as it is looked for: its words without articles."""
    found = tuple(token.word for token in tokenize(text) if token.word)
    return tuple(word for word in found if word not in ARTICLES) or found


@dataclass
class Chart:
    """The names of a picture's facts.

    spellings: names without blanks (tables read off images have theirs wrong: "Spa in") to
    ((kind, name), ...), None where a name only begins so. table: (row,) or (row, column) to facts.
    """

    spellings: dict
    table: dict
    open: bool  # whether names of other things are wrong: not where the facts are equations


@lru_cache(maxsize=1024)
def read_chart(facts: tuple) -> Chart:
    """The Chart of facts; where all names are the embedded charts' colours, others are UNKNOWN."""
    in_table = all(len(fact) == 3 for fact in facts)
    spellings, table, shorts = {}, {}, {}
    for fact in facts:
        texts = fact[:-1] if in_table else (fact_name(fact),)
        names = tuple(name_words(text) for text in texts)
        table.setdefault(names, []).append(fact)
        for kind, (text, name) in enumerate(zip(texts, names)):
            add_spelling(spellings, name, ((kind, name),))
            short = name_words(SHORTENING.split(text)[0])
            shorts.setdefault((kind, short), set()).add(name)
        add_spelling(spellings, sum(names, ()), tuple(enumerate(names)))
    for (kind, short), called in shorts.items():
        if len(called) == 1:
            add_spelling(spellings, short, ((kind, called.pop()),))
    for value in (fact[-1] for fact in facts if read_value(fact[-1]) is None):
        add_spelling(spellings, name_words(value), ((None, name_words(value)),))
    if all(fact_name(fact) in COLOURS for fact in facts):
        for colour in COLOURS:
            add_spelling(spellings, (colour,), ((0, (UNKNOWN, colour)),))
    equations = any(EQUATION.search(fact_name(fact)) for fact in facts)
    return Chart(spellings, table, bool(facts) and not equations)


def add_spelling(spellings: dict, name: tuple, entry: tuple) -> None:
    """Enters a name and what it begins with; what is there already stays."""
    spelt = "".join(name)
    for end in range(1, len(spelt)):
        spellings.setdefault(spelt[:end], None)
    if spelt and spellings.get(spelt) is None:
        spellings[spelt] = entry


def find_name(tokens: list[Token], start: int, spellings: dict) -> tuple[int, tuple]:
    """(end, ((kind, name), ...)) of the longest name from token `start` on, or (start, ())."""
    found, spelt, parted = (start, ()), "", False
    for i in range(start, len(tokens)):
        text, word = tokens[i].text, tokens[i].word
        if word and (spelt + word in spellings or word not in ARTICLES):
            spelt += word
            if spelt not in spellings:
                break
            # A row and its column are one name only where no mark parts them.
            if spellings[spelt] and not (parted and len(spellings[spelt]) > 1):
                found = (i + 1, spellings[spelt])
        elif not word and text not in SKIPPED_IN_NAMES:
            break
        parted = parted or text in ".,:!?"
    word, behind = tokens[start].word, tokens[start + 1]
    if found[0] == start + 1 and word in WEAK_NAMES:
        ended = behind.text in ENDING or not behind.word or behind.value is not None
        return found if ended else (start, ())
    return found


def mentioned_facts(text: str, facts) -> list[tuple[str, ...]]:
    """The facts whose names a text mentions; of a table's rows alone, all their columns, and the
    other way round.
    """
    chart, tokens = read_chart(tuple(tuple(map(str, fact)) for fact in facts)), tokenize(text)
    named, i = {0: set(), 1: set(), None: set()}, 0
    while i < len(tokens) - len(PADDING):
        end, name = find_name(tokens, i, chart.spellings)
        for kind, part in name:
            named[kind].add(part)
        i = max(end, i + 1)
    rows, columns = named[0], named[1]
    return [
        fact
        for key, found in chart.table.items()
        for fact in found
        if (rows or columns)
        and all(part in parts or not parts for part, parts in zip(key, (rows, columns)))
    ]
