"""Which of a picture's names and which values a text mentions, clause by clause.

Numbers that state nothing are left out here: results of arithmetic, counts, years, what is asked or
denied. Names that the picture hasn't are found where they have a value of their own. Rules, no
model: each looks at a bounded stretch of text, so that the time is linear in the text's length.
claims.py says which value is claimed for which name.
"""

from dataclasses import dataclass, field, replace

from lib.names import (
    COPULAS,
    NOTHING,
    NUMERALS,
    UNKNOWN,
    Chart,
    Token,
    find_name,
    find_units,
    is_year,
    read_number,
    words,
)

# ---- what words tell ----------------------------------------------------------------------------

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
# "above 50", "step 2", "5 points", "4 countries", "3 more than" and "fell by 9" are no values.
BOUNDS = dict.fromkeys(words("above over past exceed exceeds exceeding > ≥"), 1)
BOUNDS |= dict.fromkeys(words("below under < ≤"), -1)
NOT_BEFORE = BOUNDS.keys() | words("""per than step top first last least most question figure
    twice double triple half ranked ranks rank number place""")
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
DENYING_PAIRS = {
    ("!", "="),
    ("no", "longer"),
    ("no", "way"),
    ("far", "from"),
    ("differs", "from"),
    ("half", "of"),
}
FALSE = words("false wrong untrue incorrect mistaken impossible myth")
STANDING = words(", : ; = but and only than") | BREAKS  # behind these a "not" denies no more

# Words that are no names: what a chart, a step or a result is called.
LINKS = words("= : | is are was were has had at ( shows reaches")
WRITTEN = words("* _ ` \" ' ” ’")  # around a name
MEASURES = words("value share figure percentage rate score number count level bar")
FOLLOWING = words("and or but while whereas with so % ) , ; . : | !") | {"\n", ""}
LISTING = words(", and")
BETWEEN = COPULAS | LINKS | words("well clearly far even still a value lies")  # A .. above 5
# Around a pair in a list.
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

# ---- the names and values of a clause -----------------------------------------------------------


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


def read_clauses(tokens: list[Token], chart: Chart):
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


def read_value_at(
    tokens: list[Token], value: Mention, i: int, clause: Clause, named: set[int], chart: Chart
) -> None:
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


def add_unknown(tokens: list[Token], start: int, end: int, clause: Clause, named: set[int]) -> None:
    """Adds a name that the picture hasn't, at tokens [start, end), to a clause."""
    if start < end:
        text = " ".join(token.raw for token in tokens[start:end])
        clause.mentions.append(Mention(0, (UNKNOWN, text), start, end))
        named.update(range(start, end))


def is_denied(tokens: list[Token], i: int, named: set[int]) -> bool:
    """Whether a "not" before the number at token i denies it."""
    for k in range(i - 1, max(-1, i - 10), -1):
        text = tokens[k].text
        before = tokens[k - 1].text if k else ""
        if k not in named and (text in DENYING or text.endswith(("n't", "n’t"))):
            return True
        if (before, text) in DENYING_PAIRS:
            return True
        if text in STANDING or text.endswith("est") or tokens[k].value is not None:
            return False
    return False


def read_bound(tokens: list[Token], i: int, named: set[int]) -> int:
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


def unknown_name(
    tokens: list[Token], value: Mention, named: set[int], chart: Chart
) -> tuple[int, int]:
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


def is_nameable(token: Token, chart: Chart) -> bool:
    """Whether a word can be part of a name."""
    if token.value is not None:
        return chart.years and is_year(token.text)
    return bool(token.word) and token.text not in NAMELESS


def unknown_listed(tokens: list[Token], i: int, named: set[int], chart: Chart) -> int:
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


def is_listed(tokens: list[Token], start: int, end: int, named: set[int], chart: Chart) -> bool:
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
        listed = tokens[j].text in PARTED or tokens[j].text in LINKS or tokens[j].value is not None
        if not listed and not is_nameable(tokens[j], chart):
            return False
    return False


def is_break(tokens: list[Token], i: int) -> bool:
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


def is_operator(tokens: list[Token], i: int, chart: Chart, named: set[int]) -> bool:
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


def is_stated(tokens: list[Token], value: Mention, i: int, chart: Chart, adjacent: bool) -> bool:
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
