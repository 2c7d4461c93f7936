"""Which of a chart's names and which numbers a text mentions, clause by clause.

The first half of reading what a text states about a chart; claims.py, the second, says which value
is claimed for which name. Numbers that state nothing about the chart are left out here: results of
arithmetic, thresholds, counts, years. Rules, no model: each looks at a bounded stretch of text, so
that the time is linear in the text's length.

Left out: values in words ("twelve", "a third"), paraphrased names, decimal commas.
"""

import math
import re
from dataclasses import dataclass
from functools import lru_cache, reduce

# Nothing that can fail follows a repetition: no backtracking, whatever the text.
TOKEN = re.compile(
    r"(?P<number>(?:(?<![\w)%.])[-−])?\d+(?:[,\u00a0\u202f]\d\d\d(?!\d))*(?:\.\d+)?"
    r"(?:[eE][-+]?\d+)?)"
    r"(?P<tail>[^\W\d_]*(?:\+(?![\w(]))?)"
    r"|(?P<word>[^\W\d_][^\W_]*(?:['’][^\W_]+|\.\d+)*)(?:\+(?![\w(]))?|(?P<mark>\n|[^\s\w])"
)
# "Tokyo, Japan", "Other cereals (excl. rice)", "Rep/Lean Rep" are called by their first part too.
SHORTENING = re.compile("[,(/;]")


def words(text):
    return frozenset(text.split())


ARTICLES = words("the a an its their his her our")
SKIPPED_IN_NAMES = words(", / - – — ' \" “ ” ‘ ’ ( ) * & . < > + ` : % $ ? !")
NAME_ENDS = words("\" ' ” ’ = : | ( *")
# These words are names only where a quote or an answer shows it, or behind "more" nothing goes on.
WEAK_NAMES = words("a the i as some all no yes more less fewer may not or and other")
NEVER_PLAIN = words("a the i as all may not or and")
ANSWERED = words("said say says saying answered chose | \" ' “ ‘ *")
SHOWING = words(": = ( | * \" ' ” ’")
ENDING = words("and or but is are was were has had at in for while by with") | {"\n"}

BREAKS = words(". ! ? ; so therefore thus hence then → ⇒") | {"\n"}
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

# "1st", "1990s", "3x" and "65+" are no values either.
NO_UNITS = words("st nd rd th s x +")
# "above 50", "step 2", "5 points", "4 countries", "3 more than", "fell by 9": no name's value.
NOT_BEFORE = words("""above over past below under per exceeds exceeding not than step top first
    last least most question figure""")
DISTANCES = words("points percentage pp times x")
COUNTED = words("countries bars categories values groups colors colours years lines options items")
ADVERBS = words("only just about approximately roughly around nearly almost exactly some")
COMPARED = words("more less fewer higher lower greater larger smaller bigger")
CHANGED = COMPARED | words("""fell fall falls rose rise rises rising grew grow grows increased
    increases decreased decreases declined declines dropped drops changed reduced differ differs
    divided divide dividing multiplied multiply multiplying leads ahead behind up down""")


@dataclass
class Mention:
    """A name or a value, where it stands in a text."""

    kind: int | None  # 0 row (or the whole name), 1 column, None value
    part: object  # the words of the name; the value's number, or its words
    start: int  # in tokens
    end: int  # exclusive


# ---- words and numbers --------------------------------------------------------------------------


def read_value(text):
    """The finite number that a text writes ("1,200", "12 %", "$3.0"), or None; 12 % is 12."""
    text = text.strip().removeprefix("$").removesuffix("%").replace("−", "-")
    text = text.replace(",", "").replace("\u00a0", "").replace("\u202f", "")
    try:
        # No chart has a number of 400 digits.
        value = float(text) if len(text) < 400 and "_" not in text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def normal(word):
    """A word as names are compared: possessive and plural dropped."""
    word = word.replace("’", "'").removesuffix("'s")
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def tokenize(text):
    """[(text in lower case, word for names or "", value or None)] of words, numbers and marks."""
    tokens = []
    for match in TOKEN.finditer(text):
        raw = match.group().casefold()
        if match.lastgroup == "word":
            tokens.append((raw, normal(raw.rstrip("+")), None))
        elif match.lastgroup == "mark":
            tokens.append((raw, "", None))
        else:
            number, tail = match.group("number"), match.group("tail").casefold()
            value = None if tail in NO_UNITS else read_value(number)
            word = number.lstrip("-−").replace(",", "") + tail.rstrip("+")
            tokens.append((raw, word, value))
    return tokens


def name_words(text):
    """A name as it is looked for: its words without articles."""
    found = tuple(word for _, word, _ in tokenize(text) if word)
    return tuple(word for word in found if word not in ARTICLES) or found


# ---- the chart's names --------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def read_chart(facts):
    """The chart's names as `spell` spells them, and its facts by the parts of their names.

    facts: tuple of (name, value). Returns (spellings, table). spellings: text to ((kind, part),
    ...), both parts for a row with its column, None where a name only begins so. table: (row,), or
    (row, column) where names form a table, to the facts of that name, which two rows may share.
    """
    spellings, table, shorts = {}, {}, {}
    names = [name_words(name) for name, _ in facts]
    cuts = find_cuts(names)
    for fact, name in zip(facts, names):
        first, last = cuts.get(name, (len(name), len(name)))
        parts = (name[:first], name[last:]) if cuts else (name,)
        table.setdefault(parts, []).append(fact)
        for cut in range(first, last + 1):
            add_spelling(spellings, name[:cut], ((0, parts[0]),))
            add_spelling(spellings, name[cut:], ((1, name[last:]),))
        add_spelling(spellings, name, tuple(enumerate(parts)))
        short = name_words(SHORTENING.split(fact[0])[0])
        if len(short) < len(parts[0]):
            shorts.setdefault(short, set()).add(parts[0])
    for short, rows in shorts.items():
        if len(rows) == 1:
            add_spelling(spellings, short, ((0, rows.pop()),))
    for _, value in facts:
        if read_value(value) is None:
            add_spelling(spellings, name_words(value), ((None, name_words(value)),))
    return spellings, table


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


def find_cuts(names):
    """{name: (first, last)}, where the row ends and the column begins; {} when they form no table.

    Facts of a table are called "<row> <column>": a row's words begin, a column's words end several
    names. Words between `first` and `last` may belong to both ("65+ [your personal] health").
    """
    begins, ends = {}, {}
    for name in set(names):
        for cut in range(1, len(name)):
            begins[name[:cut]] = begins.get(name[:cut], 0) + 1
            ends[name[cut:]] = ends.get(name[cut:], 0) + 1
    cuts, rows, columns = {}, set(), set()
    for name in set(names):
        shared = [(begins[name[:cut]], ends[name[cut:]], cut) for cut in range(1, len(name))]
        scores = {cut: (min(b, e), b * e) for b, e, cut in shared if min(b, e) > 1}
        best = [cut for cut in scores if scores[cut] == max(scores.values())]
        if best:
            cuts[name] = (best[0], best[-1])
            rows.update(name[:cut] for cut in best)
            columns.update(name[cut:] for cut in best)
    for name in set(names) - set(cuts):
        # A row or column with a single known cell shares its words with no other name.
        alone = [cut for cut in range(1, len(name)) if name[:cut] in rows or name[cut:] in columns]
        if not alone:
            return {}
        cuts[name] = (alone[0], alone[-1])
    return cuts


def find_name(tokens, start, spellings):
    """(end, ((kind, part), ...)) of the longest name from token `start` on, or (start, ())."""
    found, spelt, parted, i = (start, ()), "", False, start
    while i < len(tokens):
        text, word, _ = tokens[i]
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
        i += 1
    if found[0] == start + 1 and tokens[start][1] in WEAK_NAMES and not is_marked(tokens, start):
        return start, ()
    return found


def is_marked(tokens, i):
    """Whether a word like "more" or "all" is shown to be a name."""
    text, value = (tokens[i + 1][0], tokens[i + 1][2]) if i + 1 < len(tokens) else (".", None)
    if i and tokens[i - 1][0] in ANSWERED or value is not None or text in SHOWING:
        return True
    return tokens[i][1] not in NEVER_PLAIN and (text in ENDING or not text[0].isalnum())


# ---- clauses ------------------------------------------------------------------------------------


def read_clauses(tokens, spellings):
    """Yields the Mentions of each clause: names, and values that are read off and not computed."""
    clause, i, names, computed = [], 0, 0, False
    while i < len(tokens):
        text, word, value = tokens[i]
        before = tokens[i - 1][0] if i else ""
        end, name = find_name(tokens, i, spellings) if word in spellings else (i, ())
        if name:
            clause += [Mention(kind, part, i, end) for kind, part in name]
            names += name[0][0] is not None
        elif is_break(tokens, i):
            yield clause
            clause, names, computed = [], 0, False
        elif text in RESULTS or text in TRENDS and names != 1 or is_operator(tokens, i, spellings):
            computed = True
        elif value is not None:
            gap = i - clause[-1].end if clause and clause[-1].kind is not None else 99
            if computed and (before in COPULAS or before in RESULTS):
                computed = False
            elif is_stated(tokens, i, spellings, gap == 0 or gap == 1 and not tokens[i - 1][1]):
                clause.append(Mention(None, value, i, i + 1))
        i = max(end, i + 1)
    yield clause


def is_break(tokens, i):
    """Whether a clause ends at token i."""
    text = tokens[i][0]
    if text not in BREAKS:
        return False
    before = tokens[i - 1][0] if i else ""
    if text == "\n":
        return before != ":"
    if text in ".?!" and i + 1 < len(tokens) and tokens[i + 1][0] in NAME_ENDS:
        return False  # the end of a name ("What is vinyl?" = 4)
    # The stop behind a single letter is an abbreviation's ("U.S.").
    return text != "." or not (len(before) == 1 and before.isalpha() or before in ABBREVIATIONS)


def is_operator(tokens, i, spellings):
    """Whether token i computes: a word does, a mark only between operands ("-" may be a dash)."""
    text, word, _ = tokens[i]
    if text not in OPERATORS or word:
        return text in OPERATORS
    behind = tokens[i + 1] if i + 1 < len(tokens) else ("", "", None)
    if behind[2] is None and behind[0] not in BRACKETS and behind[1] not in spellings:
        return False
    before = tokens[i - 1] if i else ("", "", None)
    return text not in "-–*/" or before[2] is not None or before[0] in BRACKETS


def is_stated(tokens, i, spellings, adjacent):
    """Whether the number at token i can be a name's value; `adjacent`: right behind a name."""
    value = tokens[i][2]
    before = [token[0] for token in tokens[max(0, i - 8) : i] if token[0] not in ADVERBS]
    before = [""] * 2 + before
    percent = i + 1 < len(tokens) and tokens[i + 1][0] == "%"
    j = i + 1 + percent
    j += j < len(tokens) and tokens[j][0] == "-"
    behind = tokens[j][0] if j < len(tokens) else ""
    if behind in DISTANCES or behind in COUNTED and not adjacent and value == int(value):
        return False
    if adjacent:
        return True
    if before[-1] in NOT_BEFORE or before[-1].endswith("n't") or "between" in before:
        return False
    if behind in COMPARED and not find_name(tokens, j, spellings)[1]:
        return False
    if before[-1] == "by" and not CHANGED.isdisjoint(before) or before[-2:] == [")", "/"]:
        return False
    return percent or not (1800 <= value <= 2100 and tokens[i][0].isdigit())  # a year
