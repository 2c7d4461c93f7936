"""What a text states about a picture: the claimed pairs (name, value) of DyME's visual facts.

Each clause is searched for the chart's names and for values, and then each value finds the name it
is claimed for. With facts Latvia 3.0, Portugal 8.9, Romania 13.0, for example:

    "Latvia and Romania are at 3.0 and 13.0; their sum is 16.0. Portugal has 7."
    clause 1: names Latvia, Romania, values 3.0, 13.0: as many, so they go in order
    clause 2: nothing, 16.0 being a result;   clause 3: (Portugal, 7), which is no fact

Rules, no model: each looks at a bounded stretch of text, so that the time is linear in its length.
tests/test_claims.jsonl, read by hand, measures precision and recall. Left out: paraphrased names,
decimal commas, "the former"; a name in one sentence and its value in the next, except under a
heading or the head of a table.
"""

import re
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import product
from typing import NamedTuple

from data.example import fact_name, fact_value
from lib.answers import read_value

# Nothing that can fail follows a repetition: no backtracking, whatever the text.
TOKEN = re.compile(
    r"(?P<number>(?:(?<![\w)%.])[-−])?\d+(?:[,\u00a0\u202f]\d\d\d(?!\d))*(?:\.\d+)?"
    r"(?:[eE][-+]?\d+)?)"
    r"(?P<tail>[^\W\d_]*(?:\+(?![\w(]))?)"
    r"|(?P<word>[^\W\d_][^\W_]*(?:['’][^\W_]+|\.\d+)*)(?:\+(?![\w(]))?|(?P<mark>\n|[^\s\w])"
)
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
NEVER_PLAIN = words("a the i as all may not or and")
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
NOT_BEFORE = words("""above over past below under per exceeds exceeding not than step top first
    last least most question figure""")
DISTANCES = words("points percentage pp times x")
COUNTED = words("countries bars categories values groups colors colours years lines options items")
ADVERBS = words("only just about approximately roughly around nearly almost exactly some")
COMPARED = words("more less fewer higher lower greater larger smaller bigger")
CHANGED = COMPARED | words("""fell fall falls rose rise rises rising grew grow grows increased
    increases decreased decreases declined declines dropped drops changed reduced differ differs
    divided divide dividing multiplied multiply multiplying leads ahead behind up down""")

# "68% of A", "68% said A": the name behind the value is its own; "both A and B are 3": both have it.
TYING = words("""of in for among from at with said say says saying who were are was is by belongs
    belonging which that ( voted""")
PARTING = words("and but while whereas versus vs than compared ; | then")
SHARING = words("both each all same tied equal equally")

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
        tokens.append(Token(raw, word, value, *match.span()))
    return tokens


def name_words(text):
    """A name as it is looked for: its words without articles."""
    found = tuple(token.word for token in tokenize(text) if token.word)
    return tuple(word for word in found if word not in ARTICLES) or found


@lru_cache(maxsize=1024)
def read_chart(facts):
    """The chart's names as `spell` spells them, and its facts by their names.

    facts: tuple of facts. Returns (spellings, table). spellings: text to ((kind, name), ...), a
    row's with its column's where they follow each other, None where a name only begins so. table:
    (row,), or (row, column) where all facts have both, to the facts of that name.
    """
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
    for value in map(fact_value, facts):
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


# ---- the names and values of a clause -----------------------------------------------------------


@dataclass
class Mention:
    """A name or a value, where it is in a text."""

    kind: int | None  # 0 row (or the whole name), 1 column, None value
    part: object  # the words of the name; the value's number, or its words
    start: int  # in tokens
    end: int  # exclusive


def read_clauses(tokens, spellings):
    """Yields the Mentions of each clause: names, and values that are read off and not computed."""
    clause, i, names, computed = [], 0, 0, False
    while i < len(tokens):
        text, word, value = tokens[i][:3]
        before = tokens[i - 1].text if i else ""
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
            if computed and before in COPULAS:
                computed = False
            elif is_stated(tokens, i, spellings, gap == 0 or gap == 1 and not tokens[i - 1].word):
                clause.append(Mention(None, value, i, i + 1))
        i = max(end, i + 1)
    yield clause


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


def is_operator(tokens, i, spellings):
    """Whether token i computes: a word does, a mark only between operands ("-" may be a dash)."""
    text, word = tokens[i].text, tokens[i].word
    if text not in OPERATORS or word:
        return text in OPERATORS
    behind = tokens[i + 1] if i + 1 < len(tokens) else NOTHING
    if behind.value is None and behind.text not in BRACKETS and behind.word not in spellings:
        return False
    before = tokens[i - 1] if i else NOTHING
    return text not in "-–*/" or before.value is not None or before.text in BRACKETS


def is_stated(tokens, i, spellings, adjacent):
    """Whether the number at token i can be a name's value; `adjacent`: right behind a name."""
    value = tokens[i].value
    before = [token.text for token in tokens[max(0, i - 8) : i] if token.text not in ADVERBS]
    before = ["", "", *before]
    percent = i + 1 < len(tokens) and tokens[i + 1].text == "%"
    j = i + 1 + percent
    behind = tokens[j].text if j < len(tokens) else ""
    if behind in DISTANCES or behind in COUNTED and not adjacent and value == int(value):
        return False
    if adjacent:
        return True
    if before[-1] in NOT_BEFORE or before[-1].endswith("n't") or "between" in before:
        return False
    if behind in COMPARED and not find_name(tokens, j, spellings)[1]:
        return False
    if before[-1] == "by" and not CHANGED.isdisjoint(before):
        return False
    return percent or not (1800 <= value <= 2100 and tokens[i].text.isdigit())  # a year


# ---- whose value it is --------------------------------------------------------------------------


def claimed_facts(thinking: str, facts) -> list[tuple[str, ...]]:
    """The facts that a text claims, each once, in the order of the text: tuples like the facts.

    facts: (name, value) or (row, column, value) strings. A claim has a name of the facts and the
    value stated for it: as the fact writes it where both are equal (3.0 = 3, 1,200 = 1200, 12 % =
    12), so that `claim in facts` says whether it is right, else as the text has it.
    """
    return list(dict.fromkeys(claim for claim, _, _ in locate_claims(thinking, facts)))


def locate_claims(thinking: str, facts):
    """Yields each claim of a text with where its value is: (claim, first character, end)."""
    spellings, table = read_chart(tuple(tuple(map(str, fact)) for fact in facts))
    tokens = tokenize(thinking)
    kinds = range(len(next(iter(table), ())))
    last, heads = [[] for _ in kinds], [[] for _ in kinds]  # the last name, the last list of names
    for clause in read_clauses(tokens, spellings):
        values = [mention for mention in clause if mention.kind is None]
        owners = []  # by kind, then by value: the names it may belong to
        for kind in kinds:
            names = [mention for mention in clause if mention.kind == kind]
            once = len(kinds) == 1 or len(names) >= len(values)
            owners.append(pair(tokens, clause, kind, once, heads[kind]) if values else [])
            last[kind] = names[-1:] or last[kind]
            heads[kind] = names if len(names) > 1 else heads[kind]
        taken = set()
        for value, *owned in zip(values, *owners):
            if not any(owned):
                continue
            # A part that the clause doesn't say comes from an earlier one.
            choices = [names or before for names, before in zip(owned, last)]
            choices = [{name.part: name for name in names}.values() for names in choices]
            again = tokens[value.start - 1].text == "or" or isinstance(value.part, tuple)
            for place in product(*choices):
                key = tuple(name.part for name in place)
                starts = tuple(name.start for name in place)
                if key in table and (again or starts not in taken):
                    claim = state(tokens, value, table[key])
                    yield claim, tokens[value.start].start, tokens[value.end - 1].end
                taken.add(starts)


def pair(tokens, clause, kind, once, heads):
    """The names of `kind` that each value of a clause belongs to: a list of lists, one per value.

    Lists of equal length go one to one ("A and B: 3, 8"; `heads`: the names of an earlier list).
    Otherwise a value takes the name before it, or the one behind where a word ties them ("68% of
    A") or the one before has its value already. `once`: a name has one value in a clause, else it
    may be the topic of several.
    """
    runs = split_runs(clause, kind)
    has_others = any(mention.kind not in (kind, None) for mention in clause)
    owners, used, last = [], set(), None
    for r, run in enumerate(runs):
        if run[0].kind is not None:
            last = run[-1]
            continue
        before = runs[r - 1] if r and runs[r - 1][0].kind == kind else []
        behind = runs[r + 1] if r + 1 < len(runs) and runs[r + 1][0].kind == kind else []
        lists = [
            names
            for names in (before, behind)
            if len(names) == len(run) > 1 and names[-1].start not in used
        ]
        in_table = has_others or run[0].start and tokens[run[0].start - 1].text == "|"
        if lists:
            matched = [[name] for name in lists[0]]
        elif in_table and not before and len(heads) == len(run) > 1:
            matched = [[name] for name in heads]
        elif len(before) > 1 and len(run) == 1 and is_shared(tokens, before, run[0]):
            matched = [before]
        else:
            matched = []
            for value in run:
                if matched and tokens[value.start - 1].text == "or":
                    matched.append(matched[-1])  # "6 or 7" claims both
                    continue
                following = behind[0] if behind and value is run[-1] else None
                name = choose(tokens, value, last, following, used, once)
                matched.append([name] if name else [])
                used.update(name.start for name in matched[-1])
        used.update(name.start for names in matched for name in names)
        owners += matched
    return owners


def split_runs(clause, kind):
    """Runs of names of `kind` and of values; a name of the other kind ends a run of values."""
    runs, ended = [], True
    for mention in clause:
        if mention.kind not in (kind, None):
            ended = ended or runs[-1][0].kind is None
            continue
        if ended or runs[-1][0].kind != mention.kind:
            runs.append([])
        runs[-1].append(mention)
        ended = False
    return runs


def is_shared(tokens, names, value):
    """Whether several names have the one value: "both A and B are at 11"."""
    near = tokens[max(0, names[0].start - 2) : names[0].start]
    near += tokens[names[-1].end : min(value.start, names[-1].end + 8)]
    return any(token.text in SHARING for token in near)


def choose(tokens, value, previous, following, used, once):
    """The name before or behind a value that it belongs to, or None."""
    free = previous is not None and previous.start not in used
    near = free and value.start - previous.end <= 3
    if following is not None:
        gap = [token.text for token in tokens[value.end : following.start] if token.text != "%"]
        parted = not PARTING.isdisjoint(gap)
        tied = not parted and (not gap or gap[0] in TYING)
        if len(gap) == 1 and tokens[value.start - 1].text == ":":
            near = False  # "A and B differ: 70 for A"
        if tied and not near:
            return following
        if not parted and not free and ("," not in gap or not TYING.isdisjoint(gap)):
            return following
    if free or not once or isinstance(value.part, tuple):
        return previous
    return None


def state(tokens, value, facts):
    """The claim (name, value) that a value makes about a name with these facts."""
    for fact in facts:
        number = read_value(fact[-1])
        if value.part == (name_words(fact[-1]) if number is None else number):
            return fact
    return *facts[0][:-1], " ".join(token.text for token in tokens[value.start : value.end])


def mentioned_facts(text: str, facts) -> list[tuple[str, ...]]:
    """The facts whose names a text mentions; [] when it mentions none.

    Of a table: the facts of the rows and columns mentioned; of rows alone, all their columns, and
    the other way round.
    """
    spellings, table = read_chart(tuple(tuple(map(str, fact)) for fact in facts))
    clauses = read_clauses(tokenize(text), spellings)
    mentions = [mention for clause in clauses for mention in clause]
    named = [{mention.part for mention in mentions if mention.kind == kind} for kind in (0, 1)]
    if not any(named):
        return []
    return [
        fact
        for key, found in table.items()
        for fact in found
        if all(part in parts or not parts for part, parts in zip(key, named))
    ]
