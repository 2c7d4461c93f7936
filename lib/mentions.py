"""Which of a picture's names and which values a text mentions, clause by clause.

The first half of reading what a text states about a picture; claims.py, the second, says which
value is claimed for which name. Numbers that state nothing are left out here: results of
arithmetic, counts, years, what is asked or denied. Names that the picture doesn't have are found
where they have a value of their own. Rules, no model: each looks at a bounded stretch of text, so
that the time is linear in the text's length.

Left out: paraphrased names, decimal commas, fractions in words.
"""

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache, reduce
from typing import NamedTuple

from data.charts import COLOURS
from data.example import fact_name, fact_value
from lib.answers import read_value

# Nothing that can fail follows a repetition: no backtracking, whatever the text.
TOKEN = re.compile(
    r"(?P<number>(?:(?<![\w)%.])[-−–])?\d+(?:[,\u00a0\u2009\u202f]\d\d\d(?!\d))*(?:\.\d+)?"
    r"(?:[eE][-+]?\d+)?)"
    r"(?P<tail>[^\W\d_]*(?:\+(?![\w(]))?)"
    r"|(?P<word>[^\W\d_][^\W_]*(?:['’][^\W_]+|\.\d+)*)(?:\+(?![\w(]))?|(?P<mark>\n|[^\s\w])"
)
EQUATION = re.compile(r"\d ?[*/+] ?[\d(]")  # GSM8K's facts, which are no picture's: "48/2"
# "Tokyo, Japan", "Other cereals (excl. rice)", "Rep/Lean Rep" are called by their first part too.
SHORTENING = re.compile("[,(/;]")


def words(text: str) -> frozenset[str]:
    """The words of a text, to be looked up."""
    return frozenset(text.split())


# ---- what words tell ----------------------------------------------------------------------------

ARTICLES = words("the a an its their his her our")
SKIPPED_IN_NAMES = words(", / - – — ' \" “ ” ‘ ’ ( ) * & . < > + ` : % $ ? !")
# These are names only where a quote or an answer shows it, or where nothing goes on behind "more".
WEAK_NAMES = words("a the i as some all no yes more less fewer may not or and other")
NEVER_PLAIN = words("the as all not or and")
ANSWERED = words("said say says saying answered chose | \" ' “ ‘ *")
SHOWING = words(": = ( | * \" ' ” ’")
ENDING = words("and or but is are was were has had at in for while by with") | {"\n"}

BREAKS = words(". ! ? ; so therefore thus hence then → ⇒") | {"\n"}
NAME_ENDS = words("\" ' ” ’ = : | ( *")  # behind the full stop or question mark of a name
ABBREVIATIONS = words("vs approx no")

# What follows "=" or "is" behind these is computed, not read off. The TRENDS can also be what the
# chart is about ("in Chad the average age is 20"): with one name before them, they are.
OPERATORS = words("""+ * × ÷ / - – − plus minus times divided add adds added adding subtract
    subtracted subtracting multiply multiplied""")
RESULTS = words("sum total totals difference gap combined together altogether margin product")
TRENDS = words("average mean median ratio range increase decrease rise drop decline change")
BRACKETS = words("( ) % $")
COPULAS = words("""= ≈ ~ : is are was were equals equal gives makes be about approximately roughly
    of to""")

# "1st", "1990s", "3x" and "65+" are no values, and neither are "above 50", "step 2", "5 points",
# "4 countries", "3 more than" and "fell by 9".
NO_UNITS = words("st nd rd th s x +")
BOUNDS = dict.fromkeys(words("above over past exceed exceeds exceeding > ≥"), 1)
BOUNDS |= dict.fromkeys(words("below under < ≤"), -1)
NOT_BEFORE = words("per than step top first last least most question figure") | BOUNDS.keys()
DISTANCES = words("points percentage pp times x")
COUNTED = words("countries bars categories values groups colors colours years lines options items")
ADVERBS = words("only just about approximately roughly around nearly almost exactly some")
LOWERED = words("less fewer lower smaller")
COMPARED = LOWERED | words("more higher greater larger bigger")
CHANGED = COMPARED | words("""fell fall falls rose rise rises rising grew grow grows increased
    increases decreased decreases declined declines dropped drops changed reduced differ differs
    divided divide dividing multiplied multiply multiplying leads ahead behind up down""")

# What is asked or denied is not stated: "is A 3?", "A never has 3", "that A is 3 is wrong".
ASKING = words("""is are was were does do did can could would should what which whether suppose
    assume assuming imagine""")
DENYING = words("not never neither nor cannot hardly without nobody doubt deny denies unlikely ≠")
FALSE = words("false wrong untrue incorrect mistaken impossible myth")
STANDING = words(", : ; = but and only than") | BREAKS  # behind these a "not" denies no more

# Numbers in words count where nothing is counted: "A is ninety." but not "A is one of three".
NUMERALS = {
    word: number
    for number, word in enumerate(
        """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
        fifteen sixteen seventeen eighteen nineteen""".split()
    )
}
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NUMERALS |= {word: 10 * number for number, word in enumerate(TENS, 2)}
SCALES = {"hundred": 1e2, "thousand": 1e3, "k": 1e3, "million": 1e6, "mn": 1e6, "billion": 1e9}
SCALES |= {"bn": 1e9, "trillion": 1e12, "tn": 1e12}

# Words that are no names: what a chart, a step or a result is called.
LINKS = words("= : | is are was were has had at ( shows reaches")
WRITTEN = words("* _ ` \" ' ” ’")  # around a name
MEASURES = words("value share figure percentage rate score number count level bar")
FOLLOWING = words("and or but while whereas with so % ) , ; . : | !") | {"\n", ""}
LISTING = words(", and")
BETWEEN = COPULAS | LINKS | words("well clearly far even still a value lies")  # A .. above 5
PARTED = words(", ; | * - – • ( . :") | {"\n", "and", "then", "also", "while", "but", ""}
NAMELESS = words(
    """a about according adding after again all also among an and answer answers approximately
    around as at average axis bar bars based because between both bottom but by calculate
    calculated calculation category chart check color colour combined compare comparison
    conclusion count data date difference divide dividing during each either equal equals
    estimate everything figure final finally find first for from gap given goal graph group he
    hence her here high higher highest himself his how however i if in increase is it its label
    last least left legend let line look looking low lower lowest max maximum mean means median
    middle min minimum more most my next no none note now number numbers observation of on one
    only or other others our over overall percent percentage pie point points product question
    range rank ratio reading reasoning respectively rest result results right same scale second
    see segment series share she since slice so source step subtract subtracting sum table that
    the their them then there therefore these they third this those three thus title to top
    total totals trend true two unit units up us value values we what when where which while who
    with year years yes you your"""
)

# ---- words and names ----------------------------------------------------------------------------


def normal(word):
    """A word as names are compared: possessive and plural dropped."""
    word = word.replace("’", "'").removesuffix("'s")
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


class Token(NamedTuple):
    """A word, number or mark of a text."""

    text: str  # in lower case
    word: str  # as names are compared, "" for a mark
    value: float | None
    start: int  # in characters
    end: int  # exclusive
    raw: str = ""  # as it is


NOTHING = Token("", "", None, 0, 0)


def tokenize(text):
    """The Tokens of a text."""
    tokens = []
    for match in TOKEN.finditer(text):
        raw, word, value = match.group().casefold(), "", None
        if match["word"]:
            word = normal(raw.rstrip("+"))
        elif match["number"]:
            number, tail = match["number"], match["tail"].casefold()
            value = None if tail in NO_UNITS else read_value(number)
            word = number.lstrip("-−").replace(",", "") + tail.rstrip("+")
        tokens.append(Token(raw, word, value, *match.span(), match.group()))
    return tokens


def name_words(text):
    """A name as it is looked for: its words without articles."""
    found = tuple(token.word for token in tokenize(text) if token.word)
    return tuple(word for word in found if word not in ARTICLES) or found


@dataclass
class Chart:
    """The names of a picture's facts.

    spellings: names as `spell` spells them to ((kind, name), ...), a row's with its column's where
    they follow each other, None where a name only begins so. table: (row,), or (row, column) where
    all facts have both, to the facts of that name. numbers: the values.
    """

    spellings: dict
    table: dict
    numbers: set
    open: bool  # whether names of other things are wrong: not where the facts are equations
    years: bool  # whether some names are years


@lru_cache(maxsize=1024)
def read_chart(facts):
    """The Chart of a tuple of facts; where all names are the embedded charts' colours, others are
    known to be none of its names."""
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
    values = [read_value(fact_value(fact)) for fact in facts]
    for fact, value in zip(facts, values):
        if value is None:
            name = name_words(fact_value(fact))
            add_spelling(spellings, name, ((None, name),))
    if all(fact_name(fact) in COLOURS for fact in facts):
        for colour in COLOURS:
            add_spelling(spellings, (colour,), ((0, (UNKNOWN, colour)),))
    years = any(is_year(name[0]) for names in table for name in names if name)
    equations = any(EQUATION.search(fact_name(fact)) for fact in facts)
    return Chart(spellings, table, set(values), bool(facts) and not equations, years)


def is_year(text):
    """Whether a token is a year of our time."""
    return len(text) == 4 and text.isdecimal() and 1800 <= int(text) <= 2100


def spell(spelt, word):
    """Words run together: tables that were read off images have their spaces wrong ("Spa in")."""
    return f"{spelt} {word}" if spelt[-1:].isdigit() and word[0].isdigit() else spelt + word


def add_spelling(spellings, name, entry):
    """Enters a name and what it begins with; what is there already stays."""
    spelt = reduce(spell, name, "")
    for end in range(1, len(spelt)):
        spellings.setdefault(spelt[:end], None)
    if spelt and spellings.get(spelt) is None:
        spellings[spelt] = entry


def find_name(tokens, start, spellings):
    """(end, ((kind, name), ...)) of the longest name from token `start` on, or (start, ())."""
    found, spelt, parted = (start, ()), "", False
    for i in range(start, len(tokens)):
        text, word = tokens[i].text, tokens[i].word
        longer = spell(spelt, word) if word else spelt
        if word and (longer in spellings or word not in ARTICLES):
            spelt = longer
            if spelt not in spellings:
                break
            # A row and its column are one name only where no mark parts them.
            if spellings[spelt] and not (parted and len(spellings[spelt]) > 1):
                found = (i + 1, spellings[spelt])
        elif not word and text not in SKIPPED_IN_NAMES:
            break
        parted = parted or text in ".,:!?"
    if found[0] == start + 1 and tokens[start].word in WEAK_NAMES and not is_marked(tokens, start):
        return start, ()
    return found


def is_marked(tokens, i):
    """Whether a word like "more" or "all" is shown to be a name."""
    behind = tokens[i + 1] if i + 1 < len(tokens) else NOTHING
    if i and tokens[i - 1].text in ANSWERED or behind.value is not None or behind.text in SHOWING:
        return True
    return tokens[i].word not in NEVER_PLAIN and (behind.text in ENDING or not behind.word)


# ---- numbers ------------------------------------------------------------------------------------


def read_number(tokens, i, numbers, units):
    """(value, end) of the number that begins at token i, or (None, i).

    With its sign and scale: "negative 4", "3.0 billion"; `units`: scales that are just the
    chart's unit. "1 250" is one number where it is among `numbers`, the chart's.
    """
    value, end = tokens[i].value, i + 1
    if value is None:
        value, end = read_numeral(tokens, i)
    elif tokens[i].text.isdecimal() and len(tokens[i].text) < 4:
        j, digits = end, tokens[i].text
        while (
            j < min(len(tokens), i + 4) and tokens[j].text.isdecimal() and len(tokens[j].text) == 3
        ):
            digits += tokens[j].text
            j += 1
        if float(digits) in numbers:
            value, end = float(digits), j
    if value is None:
        return None, i
    before = [token.text for token in tokens[max(0, i - 2) : i]]
    if before[-1:] == ["negative"] or before[-1:] == ["minus"] and before[0] in COPULAS | {"at"}:
        value = -value
    if end < len(tokens) and tokens[end].text in SCALES and tokens[end].text not in units:
        value, end = value * SCALES[tokens[end].text], end + 1
    return value, end


def read_numeral(tokens, i):
    """(value, end) of a number in words from token i on ("twenty-five"), or (None, i)."""
    value, j = None, i
    while j < len(tokens):
        number = NUMERALS.get(tokens[j].text)
        if number is not None and (value is None or value % 10 == 0 < value and number < 10):
            value = (value or 0) + number
        elif value is None or tokens[j].text != "-" or j + 1 == len(tokens):
            break
        elif tokens[j + 1].text not in NUMERALS:
            break
        j += 1
    return value, j


# ---- the names and values of a clause -----------------------------------------------------------

UNKNOWN = "?"  # the part of a name that the picture hasn't: (UNKNOWN, its text)


@dataclass
class Mention:
    """A name or a value, where it is in a text."""

    kind: int | None  # 0 row (or the whole name), 1 column, None value
    part: object  # the words of the name; the value's number, or its words
    start: int  # in tokens
    end: int  # exclusive
    bound: int = 0  # of a value: 1 in "above 5", -1 in "below 5"


@dataclass
class Clause:
    """What a clause mentions, in its order."""

    mentions: list = field(default_factory=list)
    bounds: list = field(default_factory=list)  # "A is above 5": the values of names before them
    asked: bool = False
    denied: bool = False  # it says that something is false


def read_clauses(tokens, chart):
    """Yields each Clause: its names, and values that are read off and neither computed nor denied."""
    clause, i, names, computed = Clause(), 0, 0, False
    units = find_units(tokens)
    named = set()  # the tokens that belong to names
    while i < len(tokens):
        text, word = tokens[i].text, tokens[i].word
        before = tokens[i - 1].text if i else ""
        end, name = find_name(tokens, i, chart.spellings) if word in chart.spellings else (i, ())
        value, behind = None, i
        if not name and (tokens[i].value is not None or text in NUMERALS):
            value, behind = read_number(tokens, i, chart.numbers, units)
        if name:
            clause.mentions += [Mention(kind, part, i, end) for kind, part in name]
            named.update(range(i, end))
            names += name[0][0] is not None
        elif is_break(tokens, i):
            clause.asked = clause.asked or text == "?"
            yield clause
            clause, names, computed = Clause(), 0, False
        elif (
            text in RESULTS or text in TRENDS and names != 1 or is_operator(tokens, i, chart, named)
        ):
            computed = True
        elif value is not None:
            if computed and before in COPULAS:
                computed = False
            elif not is_denied(tokens, i, named):
                start = i - (before in ("negative", "minus") and value < 0)
                read_value_at(tokens, Mention(None, value, start, behind), i, clause, named, chart)
            end = behind
        elif text in ASKING and not clause.mentions and (i == 0 or is_break(tokens, i - 1)):
            clause.asked = True
        elif word and tokens[i].raw[0].isupper():
            end = unknown_listed(tokens, i, named, chart)
            add_unknown(tokens, i, end, clause, named)
        clause.denied = clause.denied or not name and text in FALSE
        i = max(end, i + 1)
    yield clause


def read_value_at(tokens, value, i, clause, named, chart):
    """Adds a value to its clause, with the name that it brings along, or as a bound."""
    relation = read_bound(tokens, i, named)
    gap = next((k for k in (1, 2) if i - k in named), 9)
    adjacent = gap == 1 or gap == 2 and not tokens[i - 1].word
    if relation:
        clause.bounds.append(replace(value, bound=relation))
    elif is_stated(tokens, value, i, chart, adjacent):
        start, end = unknown_name(tokens, value, named, chart) if not adjacent else (i, i)
        add_unknown(tokens, start, end, clause, named)
        clause.mentions.append(value)


def add_unknown(tokens, start, end, clause, named):
    """Adds a name that the picture hasn't, at tokens [start, end), to a clause."""
    if start < end:
        text = " ".join(token.raw for token in tokens[start:end])
        clause.mentions.append(Mention(0, (UNKNOWN, text), start, end))
        named.update(range(start, end))


def find_units(tokens):
    """The scales that several numbers of a text have: its unit, which a chart's table leaves out."""
    pairs = zip(tokens, tokens[1:])
    scales = Counter(two.text for one, two in pairs if one.value is not None and two.text in SCALES)
    return {scale for scale, count in scales.items() if count > 1}


def is_denied(tokens, i, named):
    """Whether a "not" before the number at token i denies it."""
    for k in range(i - 1, max(-1, i - 10), -1):
        text = tokens[k].text
        before = tokens[k - 1].text if k else ""
        if k not in named and (text in DENYING or text.endswith(("n't", "n’t"))):
            return True
        if (before, text) in (("!", "="), ("no", "longer"), ("no", "way")):
            return True
        if text in STANDING or text.endswith("est") or tokens[k].value is not None:
            return False
    return False


def read_bound(tokens, i, named):
    """1 for "A is above 5", "A has more than 5", -1 for below and less, 0 for no such bound of A."""
    k = i - 1
    while k > 0 and tokens[k].text in ADVERBS:
        k -= 1
    text, before = (tokens[k].text, tokens[k - 1].text) if k > 0 else ("", "")
    relation = BOUNDS.get(text, 0)
    if text == "than" and before in COMPARED:
        k, relation = k - 1, -1 if before in LOWERED else 1
    elif text in ("least", "most") and before == "at":
        k, relation = k - 1, 1 if text == "least" else -1
    if not relation:
        return 0
    for k in range(k - 1, max(-1, k - 5), -1):
        if k in named:
            return relation
        if tokens[k].text not in BETWEEN:
            return 0
    return 0


def unknown_name(tokens, value, named, chart):
    """[start, end) of the name that a value has and the picture hasn't, empty where there is none.

    "Estonia is 5", or one of a list beside the picture's own names: "Latvia 3.0, estonia 5".
    """
    i, after = value.start, [token.text for token in tokens[value.end : value.end + 2]]
    percent = after[:1] == ["%"]
    following = after[percent] if len(after) > percent else ""
    if not chart.open or i == 0 or following not in FOLLOWING:
        return i, i
    linked = tokens[i - 1].text in LINKS
    end = i - linked
    end -= linked and end > 1 and tokens[end - 1].text in MEASURES  # "Estonia's value is 5"
    while end > 0 and tokens[end - 1].text in WRITTEN:
        end -= 1
    start = end
    while start > max(0, end - 4) and start - 1 not in named:
        if not is_nameable(tokens[start - 1], chart):
            break
        start -= 1
    if linked and all(token.raw[0].isupper() or token.value for token in tokens[start:end]):
        return start, end
    if start and tokens[start - 1].text not in PARTED | WRITTEN:
        return i, i
    return (start, end) if is_listed(tokens, start, value.end + percent, named, chart) else (i, i)


def is_nameable(token, chart):
    """Whether a word can be part of a name."""
    if token.value is not None:
        return chart.years and is_year(token.text)
    return bool(token.word) and token.text not in NAMELESS


def unknown_listed(tokens, i, named, chart):
    """The end of a name at token i that the picture hasn't but a list has: "Latvia, Estonia and"."""
    end = i
    while end < min(len(tokens), i + 4) and is_nameable(tokens[end], chart):
        if not tokens[end].raw[0].isupper():
            return i
        end += 1
    if not chart.open or end == i or end == len(tokens) or tokens[end].text not in LISTING | LINKS:
        return i
    k = i - 1
    while k > max(0, i - 3) and tokens[k].text in LISTING:
        k -= 1
    if k < i - 1 and k in named:
        return end
    parted = i == 0 or tokens[i - 1].text in PARTED
    listed = parted and tokens[end].text in LISTING and end + 1 < len(tokens)
    return end if listed and find_name(tokens, end + 1, chart.spellings)[1] else i


def is_listed(tokens, start, end, named, chart):
    """Whether a pair at [start, end) follows or precedes a pair with a name of the picture."""
    k = start - 1
    while k > 0 and (tokens[k].text in PARTED or tokens[k].text == "%"):
        k -= 1
    if k > 0 and tokens[k].value is not None:
        linked = tokens[k - 1].text in LINKS
        if k - 1 - linked in named:
            return True
    for j in range(end, min(len(tokens), end + 24)):
        if tokens[j].word in chart.spellings and tokens[j - 1].text in PARTED:
            stop, name = find_name(tokens, j, chart.spellings)
            if name and stop < len(tokens):
                stop += tokens[stop].text in LINKS and stop + 1 < len(tokens)
                return tokens[stop].value is not None
        if (
            tokens[j].text not in PARTED | LINKS
            and not is_nameable(tokens[j], chart)
            and tokens[j].value is None
        ):
            return False
    return False


def is_break(tokens, i):
    """Whether a clause ends at token i."""
    text = tokens[i].text
    if text not in BREAKS:
        return False
    before = tokens[i - 1].text if i else ""
    if text == "\n":
        return before != ":"
    if text in ".?!" and i + 1 < len(tokens) and tokens[i + 1].text in NAME_ENDS:
        return False  # the end of a name ("What is vinyl?" = 4)
    # The stop behind a single letter is an abbreviation's ("U.S.").
    return text != "." or not (len(before) == 1 and before.isalpha() or before in ABBREVIATIONS)


def is_operator(tokens, i, chart, named):
    """Whether token i computes: a word does, a mark only between operands ("-" may be a dash)."""
    text, word = tokens[i].text, tokens[i].word
    if text not in OPERATORS or word:
        return text in OPERATORS
    behind = tokens[i + 1] if i + 1 < len(tokens) else NOTHING
    if behind.value is None and behind.text not in BRACKETS and behind.word not in chart.spellings:
        return False
    before = tokens[i - 1] if i else NOTHING
    between = i - 1 in named and behind.value is None  # "A - B", not "A - 5"
    return text not in "-–*/" or before.value is not None or before.text in BRACKETS or between


def is_stated(tokens, value, i, chart, adjacent):
    """Whether the number at token i can be a name's value; `adjacent`: right behind a name."""
    number = value.part
    before = [token.text for token in tokens[max(0, i - 8) : i] if token.text not in ADVERBS]
    before = ["", "", *before]
    percent = value.end < len(tokens) and tokens[value.end].text == "%"
    j = value.end + percent
    behind = tokens[j].text if j < len(tokens) else ""
    if tokens[i].value is None and not (
        (adjacent or before[-1] in LINKS) and behind in FOLLOWING | {"percent", "per"}
    ):
        return False
    if behind in DISTANCES or behind in COUNTED and not adjacent and number == int(number):
        return False
    if adjacent:
        return True
    if before[-1] in NOT_BEFORE or "between" in before:
        return False
    if behind in COMPARED and not find_name(tokens, j, chart.spellings)[1]:
        return False
    if before[-1] == "by" and not CHANGED.isdisjoint(before):
        return False
    return percent or not (1800 <= number <= 2100 and tokens[i].text.isdigit())  # a year
