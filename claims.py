"""What a text states about a chart: the claimed pairs (name, value) of DyME's visual facts.

`claimed_facts` reads clause by clause: the chart's names and the numbers, which number belongs to which
name, and which numbers state nothing about the chart (results of arithmetic, thresholds, years). Rules, no
model: each looks at a bounded stretch of text, so that the time is linear in the text's length.

Left out: values in words ("twelve", "a third"), paraphrased names, "the former", decimal commas.
"""

import math
import re
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product

# Nothing that can fail follows a repetition: no backtracking, whatever the text.
TOKEN = re.compile(
    r"(?P<number>(?:(?<![\w)%.])[-−])?\d+(?:[,\u00a0\u202f]\d\d\d(?!\d))*(?:\.\d+)?(?:[eE][-+]?\d+)?)"
    r"(?P<tail>[^\W\d_]*)|(?P<word>[^\W\d_][^\W_]*(?:['’][^\W_]+)*)|(?P<mark>\n|[^\s\w])"
)
# "Tokyo, Japan", "Other cereals (excl. rice)" and "Rep/Lean Rep" are called by their first part too.
SHORTENING = re.compile("[,(/;]")


def words(text):
    return frozenset(text.split())


ARTICLES = words("the a an its their his her our")
SKIPPED_IN_NAMES = words(", / - – — ' \" “ ” ‘ ’ ( ) * & . < > + ` : % $ ? !")
QUOTES = words("\" ' ” ’")
# Names of these words are names only where a quote, a mark or a value shows it.
WEAK_NAMES = words("as some all no yes more less fewer may not or and other")
ANSWERED = words("said say says saying answered chose | \" ' “ ‘ *")

BREAKS = words(". ! ? ; so therefore thus hence then → ⇒") | {"\n"}
PARTING = words("and but while whereas versus vs than compared ; | then")
ABBREVIATIONS = words("vs approx no")

# What follows "=" or "is" behind these is computed, not read off. The second kind can also be a chart's
# own topic ("the average age in Chad is 20"): with one name before it, it is.
OPERATORS = words("+ * × ÷ / - – − plus minus times divided add adds added adding subtract subtracted "
                  "subtracting multiply multiplied")
RESULTS = words("sum total totals totaling totalling difference gap combined together altogether margin product")
TRENDS = words("average mean median ratio range increase decrease rise drop decline change")
COPULAS = words("= ≈ ~ : is are was were equals equal gives makes be about approximately roughly of to")

# "by 5", "above 50", "step 2", "5 points", "3 more than", "4 countries": none of them is a name's value.
NOT_BEFORE = words("above over past below under exceeds exceeding not than step top first last least "
                   "most question figure")
NOT_BEHIND = words("points percentage pp times x countries bars categories values groups colors colours years "
                   "lines entries options items slices segments")
COMPARED = words("more less fewer higher lower greater larger smaller bigger")
CHANGED = words("fell fall falls rose rise rises rising grew grow grows increased increases decreased decreases "
                "declined declines dropped drops changed reduced differ differs divided divide dividing "
                "multiplied multiply multiplying exceeds exceeded leads ahead behind up down") | COMPARED

# "68% of A", "68% said A": the name behind the value is its own. "both A and B are 3": both names are.
TYING = words("of in for among from at with said say says saying who were are was is by belongs belonging "
              "which that ( voted")
SHARING = words("both each all same tied equal equally")
REACH = 20  # tokens between a value and the name behind it


@dataclass
class Mention:
    """A name (kind 0 a row, 1 a column; part: its words) or a value (kind None; part: number or words)."""
    kind: int | None
    part: object
    start: int  # tokens, end exclusive
    end: int


@dataclass
class Memory:
    """What a later clause may lean on: the last name of a kind, the last list of names (a table's head)."""
    name: Mention | None = None
    names: list = field(default_factory=list)


# ---- words, names, the chart --------------------------------------------------------------------------


def read_value(text):
    """The finite number that a text writes ("1,200", "12 %", "$3.0"), else None; "%" changes nothing."""
    text = text.strip().removeprefix("$").removesuffix("%").replace("−", "-")
    text = text.replace(",", "").replace("\u00a0", "").replace("\u202f", "")
    try:
        value = float(text) if len(text) < 400 and "_" not in text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def normal(word):
    """A word as names are compared: case, possessive and plural dropped."""
    word = word.replace("’", "'").removesuffix("'s")
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def tokenize(text):
    """[(text in lower case, word for names or "", value or None)] of the words, numbers and marks."""
    tokens = []
    for match in TOKEN.finditer(text):
        raw = match.group().casefold()
        if match.lastgroup == "word":
            tokens.append((raw, normal(raw), None))
        elif match.lastgroup == "mark":
            tokens.append((raw, "", None))
        else:
            number, tail = match.group("number"), match.group("tail").casefold()
            # "1st", "1990s" and "3x" are no values.
            value = None if tail in ("st", "nd", "rd", "th", "s", "x") else read_value(number)
            tokens.append((raw, raw if tail else number.lstrip("-−").replace(",", ""), value))
    return tokens


def name_words(text):
    """A name as the tree knows it: its words without articles."""
    found = tuple(word for _, word, _ in tokenize(text) if word)
    return tuple(word for word in found if word not in ARTICLES) or found


def split_names(names):
    """The (row, column) of each name when the names form a table, else (name,) for each.

    Facts of a table are called "<row> <column>": a row's words begin, a column's words end several names.
    """
    begins, ends = {}, {}
    for name in set(names):
        for cut in range(1, len(name)):
            begins[name[:cut]] = begins.get(name[:cut], 0) + 1
            ends[name[cut:]] = ends.get(name[cut:], 0) + 1
    cuts = {}
    for name in names:
        shared = [(min(begins[name[:c]], ends[name[c:]]), begins[name[:c]] * ends[name[c:]], c)
                  for c in range(1, len(name))]
        common, _, cut = max(shared, default=(0, 0, 0))
        if common > 1:
            cuts[name] = cut
    columns = {name[cut:] for name, cut in cuts.items()}
    for name in names:
        # A row with a single known cell shares its beginning with no other name.
        cut = next((c for c in range(1, len(name)) if name[c:] in columns), None)
        if cuts.setdefault(name, cut) is None:
            return [(name,) for name in names]
    return [(name[:cuts[name]], name[cuts[name]:]) for name in names]


@lru_cache(maxsize=1024)
def read_chart(facts):
    """The chart's names as a tree of words, and its facts by the parts of their names: (tree, table).

    Following words in `tree` leads to {None: (kind, part)}; `table` maps (row,) or (row, column) to its
    facts (two rows may share a name).
    """
    tree, table, shorts = {}, {}, {}
    for fact, parts in zip(facts, split_names([name_words(name) for name, _ in facts])):
        table.setdefault(parts, []).append(fact)
        for kind, part in enumerate(parts):
            plant(tree, part, (kind, part))
        short = name_words(SHORTENING.split(fact[0])[0])
        if len(short) < len(parts[0]):
            shorts.setdefault(short, set()).add(parts[0])
    for short, rows in shorts.items():
        if len(rows) == 1:
            plant(tree, short, (0, rows.pop()))
    for _, value in facts:
        if read_value(value) is None:
            plant(tree, name_words(value), (None, name_words(value)))
    return tree, table


def plant(tree, path, entry):
    """Puts a name into the tree; what stands there already stays."""
    node = tree
    for word in path:
        node = node.setdefault(word, {})
    if path:
        node.setdefault(None, entry)


# ---- from tokens to clauses of names and values -------------------------------------------------------


def find_name(tokens, start, tree):
    """(end, (kind, part)) of the longest name that begins at token `start`, or (start, None)."""
    found, node, i = (start, None), tree, start
    while i < len(tokens) and node:
        text, word, _ = tokens[i]
        if word and (word in node or word not in ARTICLES or i == start):
            node = node.get(word)
            if node and None in node:
                found = (i + 1, node[None])
        elif not word and text not in SKIPPED_IN_NAMES:
            break
        i += 1
    if found[0] == start + 1 and tokens[start][1] in WEAK_NAMES and not is_marked(tokens, start):
        return start, None
    return found


def is_marked(tokens, i):
    """Whether a word like "more" or "all" stands as a name: quoted, answered, or with a value or mark."""
    before, behind = tokens[i - 1] if i else ("", "", None), tokens[i + 1:i + 2]
    return before[0] in ANSWERED or bool(behind) and (behind[0][2] is not None or behind[0][0] in ":=(|*\"'”’")


def is_break(tokens, i):
    """Whether a clause ends at token i."""
    text = tokens[i][0]
    if text not in BREAKS:
        return False
    before = tokens[i - 1][0] if i else ""
    if text == "\n":
        return before != ":"
    if text in ".?!" and i + 1 < len(tokens) and tokens[i + 1][0] in QUOTES:
        return False  # the end of a quoted name
    return not (text == "." and (len(before) == 1 and before.isalpha() or before in ABBREVIATIONS))


def read_clauses(tokens, tree):
    """Yields the mentions of each clause: names, and the values that are read off and not computed."""
    clause, i, names, computed = [], 0, 0, False
    while i < len(tokens):
        text, word, value = tokens[i]
        before = tokens[i - 1][0] if i else ""
        end, name = find_name(tokens, i, tree) if word in tree else (i, None)
        if name:
            clause.append(Mention(*name, i, end))
            names += name[0] is not None
        elif is_break(tokens, i):
            yield clause
            clause, names, computed = [], 0, False
        elif text in OPERATORS and is_operator(tokens, i):
            computed = True
        elif text in RESULTS or text in TRENDS and names != 1:
            computed = True
        elif value is not None:
            gap = i - clause[-1].end if clause and clause[-1].kind is not None else 99
            if computed and (before in COPULAS or before in RESULTS):
                computed = False
            elif is_stated(tokens, i, gap == 0 or gap == 1 and not before.isalnum()):
                clause.append(Mention(None, value, i, i + 1))
        i = max(end, i + 1)
    yield clause


def is_operator(tokens, i):
    """Whether a "-", "*" or "/" stands between two numbers or brackets, and isn't a dash or markdown."""
    if tokens[i][0] not in "-–*/":
        return True
    sides = [token for token in tokens[max(0, i - 1):i + 2] if token[2] is not None or token[0] in "()%"]
    return len(sides) == 2


def is_stated(tokens, i, adjacent):
    """Whether the number at token i can be a name's value; `adjacent`: nothing but a mark after a name."""
    before = [""] * 6 + [token[0] for token in tokens[max(0, i - 6):i]]
    behind = [token[0] for token in tokens[i + 1:i + 3] if token[0] not in "%-"][:1] or [""]
    value = tokens[i][2]
    if behind[0] in NOT_BEHIND:
        return False
    if adjacent:
        return True
    if before[-1] in NOT_BEFORE or before[-1].endswith("n't") or behind[0] in COMPARED or "between" in before[-5:]:
        return False
    if before[-1] == "by" and not CHANGED.isdisjoint(before[-6:]):
        return False  # "fell by 9", but "named by 9"
    if before[-1] == "/" and before[-2] == ")":
        return False
    is_year = 1800 <= value <= 2100 and tokens[i][0].isdigit() and "%" not in [t[0] for t in tokens[i + 1:i + 2]]
    return not is_year


# ---- which value belongs to which name ----------------------------------------------------------------


def pair(tokens, clause, kind, once, memory):
    """The names of `kind` that each value of a clause belongs to: a list of lists, one per value.

    Lists of equal length go one to one ("A and B: 3, 8"). Otherwise a value takes the name before it,
    or the one behind where a word ties them ("68% of A") or the one before has its value already.
    `once`: a name has one value in a clause, else it may be the topic of several.
    """
    runs, owners, used = split_runs(clause, kind), [], set()
    has_others = any(mention.kind not in (kind, None) for mention in clause)
    last = None
    for r, run in enumerate(runs):
        if run[0].kind is not None:
            last = run[-1]
            continue
        before = runs[r - 1] if r and runs[r - 1][0].kind == kind else []
        behind = runs[r + 1] if r + 1 < len(runs) and runs[r + 1][0].kind == kind else []
        heads = [] if before else memory.names
        if not has_others and tokens[run[0].start - 1][0] != "|":
            heads = []
        lists = [names for names in (before, behind, heads)
                 if len(names) == len(run) > 1 and (names is heads or names[-1].start not in used)]
        if lists:
            matched = [[name] for name in lists[0]]
        elif len(before) > 1 and len(run) == 1 and is_shared(tokens, before, run[0]):
            matched = [before]
        else:
            matched = []
            for value in run:
                if matched and tokens[value.start - 1][0] == "or":
                    matched.append(matched[-1])  # "6 or 7" claims both
                    continue
                following = behind[0] if behind and value is run[-1] else None
                name = choose(tokens, value, last, following, used, once)
                matched.append([name] if name else [])
                used.update(n.start for n in matched[-1])
        used.update(name.start for names in matched for name in names if lists[:1] != [heads])
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
    near = tokens[max(0, names[0].start - 2):names[0].start]
    near += tokens[names[-1].end:min(value.start, names[-1].end + 8)]
    return any(token[0] in SHARING for token in near)


def choose(tokens, value, previous, following, used, once):
    """The name before or behind a value that it belongs to, or None."""
    free = previous is not None and previous.start not in used
    near = free and value.start - previous.end <= 3
    if following is not None and following.start - value.end <= REACH:
        gap = [token[0] for token in tokens[value.end:following.start] if token[0] != "%"]
        parted = not PARTING.isdisjoint(gap)
        tied = not parted and (not gap or gap[0] in TYING)
        if len(gap) == 1 and tokens[value.start - 1][0] == ":":
            near = False  # "A and B differ: 70 for A"
        if tied and not near:
            return following
        if not parted and not free and ("," not in gap or not TYING.isdisjoint(gap)):
            return following
    if free or not once or isinstance(value.part, tuple):
        return previous
    return None


# ---- the claims ---------------------------------------------------------------------------------------


def claimed_facts(thinking, facts):
    """The pairs that a text claims, each once, in the order of the text: [(name, value)].

    facts: [(name, value)] strings, a table's names being "<row> <column>". A claim has a name of the facts
    and the value stated for it: as the fact writes it where both are equal (3.0 = 3, 1,200 = 1200, 12 % =
    12), so that `claim in facts` says whether it is right, else as the text has it.
    """
    tree, table = read_chart(tuple((str(name), str(value)) for name, value in facts))
    tokens = tokenize(thinking)
    memories = [Memory() for _ in next(iter(table), ())]
    claims = {}
    for clause in read_clauses(tokens, tree):
        values = [mention for mention in clause if mention.kind is None]
        owners = []
        for kind, memory in enumerate(memories):
            names = [mention for mention in clause if mention.kind == kind]
            once = len(memories) == 1 or len(names) >= len(values)
            owners.append(pair(tokens, clause, kind, once, memory) if values else [])
            memory.name = names[-1] if names else memory.name
            memory.names = names if len(names) > 1 else memory.names
        taken = set()
        for v, value in enumerate(values):
            again = tokens[value.start - 1][0] == "or" or isinstance(value.part, tuple)
            for place in places([owner[v] for owner in owners], memories):
                key = tuple(name.part for name in place)
                starts = tuple(name.start for name in place)
                if key in table and (again or starts not in taken):
                    claims[state(tokens, value, table[key])] = None
                taken.add(starts)
    return list(claims)


def places(owners, memories):
    """The (row, column) that a value is claimed for; one missing part comes from the clauses before."""
    if not any(owners):
        return []
    owners = [names or ([memory.name] if memory.name else []) for names, memory in zip(owners, memories)]
    distinct = [{name.part: name for name in names}.values() for names in owners]
    return product(*distinct)


def state(tokens, value, facts):
    """The claim (name, value) that a value makes about a name with these facts."""
    for name, written in facts:
        number = read_value(written)
        if value.part == (name_words(written) if number is None else number):
            return name, written
    return facts[0][0], " ".join(token[0] for token in tokens[value.start:value.end])


@lru_cache(maxsize=1024)
def mentioned_facts(text, facts):
    """The facts, a tuple of pairs, whose names a text mentions; of a table, whose row and column it mentions.

    Where it mentions rows only, all their columns, and the other way round; [] when it mentions none.
    """
    tree, table = read_chart(facts)
    mentions = [mention for clause in read_clauses(tokenize(text), tree) for mention in clause]
    named = [{mention.part for mention in mentions if mention.kind == kind} for kind in (0, 1)]
    if not any(named):
        return []
    return [fact for key, found in table.items() for fact in found
            if all(part in parts or not parts for part, parts in zip(key, named))]
