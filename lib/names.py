"""Words, numbers and names: the tokens of a text, and which of a picture's names begins at one.

Left out: paraphrased names, decimal commas, numbers in words, and scales: "3.0 million" is 3.0,
since a chart's table mostly leaves its unit out. Which value is stated for which name: claims.py.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from data.charts import COLOURS
from data.example import fact_name
from lib.numbers import NUMBER, THOUSANDS, read_value


def words(text: str) -> frozenset[str]:
    """The words of a text, to be looked up."""
    return frozenset(text.split())


# what says nothing of a picture
STOP = words("""a about after all also am an and any are as at be because been before being both but
    by can could did do does each first for from had has have he her here his how i if in into is it
    its just let lets me more most my need next no not now of on one only or other our out over
    question s see she should so some step such than that the their them then there these they
    this those thus to up us very was we were what when where which while who why will with would
    you your""")
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
            word = THOUSANDS.sub("", number).lstrip("-−–") + tail.rstrip("+")
        tokens.append(Token(raw, word, value, *match.span(), match.group()))
    return tokens + PADDING


def name_words(text: str) -> tuple[str, ...]:
    """A name as it is looked for: its words without articles."""
    found = tuple(token.word for token in tokenize(text) if token.word)
    return tuple(word for word in found if word not in ARTICLES) or found


class Chart(NamedTuple):
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
    table, called, also = {}, [], []  # called: (name, what it means); also: the same, behind it
    for fact in facts:
        texts = fact[:-1] if in_table else (fact_name(fact),)
        names = tuple(map(name_words, texts))
        table.setdefault(names, []).append(fact)
        called += [(name, (entry,)) for name, entry in zip(names, enumerate(names))]
        called.append((sum(names, ()), tuple(enumerate(names))))
        shorts = [name_words(SHORTENING.split(text)[0]) for text in texts]
        also += [(short, (entry,)) for short, entry in zip(shorts, enumerate(names))]
        if read_value(fact[-1]) is None:
            also.append((name_words(fact[-1]), ((None, name_words(fact[-1])),)))
    if all(fact_name(fact) in COLOURS for fact in facts):
        also += [((colour,), ((0, (UNKNOWN, colour)),)) for colour in COLOURS]
    spellings = {}
    for name, meaning in called + also:
        spelt = "".join(name)
        for end in range(1, len(spelt)):
            spellings.setdefault(spelt[:end], None)
        if spelt and spellings.get(spelt) is None:
            spellings[spelt] = meaning
    equations = any(EQUATION.search(fact_name(fact)) for fact in facts)
    return Chart(spellings, table, bool(facts) and not equations)


def find_name(tokens: list[Token], start: int, spellings: dict) -> tuple[int, tuple]:
    """(end, ((kind, name), ...)) of the longest name from token `start` on, or (start + 1, ())."""
    none = found = (start + 1, ())
    if tokens[start].word not in spellings:
        return none
    spelt, parted = "", False
    for i in range(start, len(tokens)):
        word = tokens[i].word
        if word and (spelt + word in spellings or word not in ARTICLES):
            spelt += word
            if spelt not in spellings:
                break
            # A row and its column are one name only where no mark parts them.
            if spellings[spelt] and not (parted and len(spellings[spelt]) > 1):
                found = (i + 1, spellings[spelt])
        parted = parted or tokens[i].text in ".,:;|!?\n"
    behind = tokens[start + 1]
    if found[0] == start + 1 and tokens[start].word in WEAK_NAMES:
        ended = behind.text in ENDING or not behind.word or behind.value is not None
        return found if ended else none
    return found


def find_names(tokens: list[Token], spellings: dict) -> Iterator[tuple[int, int, tuple]]:
    """Yields (start, end, name) of a text's names, as find_name has them, and of its other tokens,
    with the name ().
    """
    i = 0
    while i < len(tokens) - len(PADDING):
        end, name = find_name(tokens, i, spellings)
        yield i, end, name
        i = end


def mentioned_facts(text: str, facts) -> list[tuple[str, ...]]:
    """The facts whose names a text mentions; of a table's rows alone, all their columns, and the
    other way round.
    """
    chart = read_chart(tuple(tuple(map(str, fact)) for fact in facts))
    named = {0: set(), 1: set(), None: set()}
    for *_, name in find_names(tokenize(text), chart.spellings):
        for kind, part in name:
            named[kind].add(part)
    rows, columns = named[0], named[1]
    return [
        fact
        for key, found in chart.table.items()
        for fact in found
        if (rows or columns)
        and all(part in parts or not parts for part, parts in zip(key, (rows, columns)))
    ]
