"""What a text states about a picture: the claimed pairs (name, value) of DyME's visual facts.

Takes the names and values of each clause (mentions.py) and finds out which value is claimed for
which name. With facts Latvia 3.0, Portugal 8.9, Romania 13.0, for example:

    "Latvia and Romania are at 3.0 and 13.0; their sum is 16.0. Portugal has 7."
    clause 1: names Latvia, Romania, values 3.0, 13.0: as many, so they go in order
    clause 2: nothing, 16.0 being a result;   clause 3: (Portugal, 7), which is no fact

tests/test_claims.jsonl, read by hand, measures precision and recall. Left out: "the former"; a name
in one sentence and its value in the next, except under a heading or the head of a table.
"""

from itertools import product

from lib.answers import read_value
from lib.mentions import Clause, Mention, Reader
from lib.names import UNKNOWN, Chart, Token, name_words, read_chart, tokenize, words

# "68% of A", "68% said A": the name behind the value is its own; "both A and B are 3": both have it.
TYING = words("""of in for among from at with said say says saying who were are was is by belongs
    belonging which that ( voted""")
PARTING = words("and but while whereas versus vs than compared ; | then")
# Between values that are guesses at one; the SEPARATING marks alone only where three are listed.
SEPARATING = words(", / (")
GUESSING = SEPARATING | words("or maybe perhaps possibly probably even")
SHARING = words("both each all same tied equal equally")


# ---- whose value it is --------------------------------------------------------------------------


def claimed_facts(thinking: str, facts) -> list[tuple[str, ...]]:
    """The facts that a text claims, each once, in the order of the text: tuples like the facts.

    facts: (name, value) or (row, column, value) strings. A claim has a name and the value stated
    for it: as the fact writes it where both are equal (3.0 = 3, 1,200 = 1200, 12 % = 12), so that
    `claim in facts` says whether it is right, else as the text has it. A value of a name that the
    picture hasn't is a claim too, a wrong one: (name, value) or (name, "", value). It is found in
    the form of a fact (mentions.unknown_name), and wherever a colour is said of embedded charts.
    """
    return list(dict.fromkeys(claim for claim, _, _ in locate_claims(thinking, facts)))


def locate_claims(thinking: str, facts) -> list[tuple]:
    """Each claim of a text with where its value is: [(claim, first character, end)]."""
    chart = read_chart(tuple(tuple(map(str, fact)) for fact in facts))
    tokens = tokenize(thinking)
    kinds = range(len(next(iter(chart.table), ())))
    last, heads = [[] for _ in kinds], [[] for _ in kinds]  # the last name, the last list of names
    found, before = [], 0
    for clause in Reader(tokens, chart).clauses():
        if clause.denied and not clause.mentions:
            del found[before:]  # "That's wrong."
        before = len(found)
        found += state(tokens, clause, chart, last, heads)
    return [(claim, tokens[start].start, tokens[end - 1].end) for claim, start, end in found]


def state(
    tokens: list[Token], clause: Clause, chart: Chart, last: list, heads: list
) -> list[tuple]:
    """The claims of a clause, [(claim, first token, end)]; `last` and `heads` go on to the next."""
    values = [mention for mention in clause.mentions if mention.kind is None]
    owners = []  # by kind, then by value: the names it may belong to
    for kind in range(len(last)):
        names = [mention for mention in clause.mentions if mention.kind == kind]
        once = len(last) == 1 or len(names) >= len(values)
        owners.append(pair(tokens, clause.mentions, kind, once, heads[kind]))
        last[kind] = names[-1:] or last[kind]
        heads[kind] = names if len(names) > 1 else heads[kind]
    if clause.asked or clause.denied:
        return []
    claims, taken = [], {}  # taken: of the names in the text, the number of their claim
    for v, (value, *owned) in enumerate(zip(values, *owners)):
        for place in places(owned, last):
            key = tuple(name.part for name in place)
            starts = tuple(name.start for name in place)
            if starts in taken and is_guess(tokens, values, v):  # "6 or 7" is one wrong claim
                first = claims[taken[starts]][1]
                guesses = write(tokens, chart, key, first, value.end)
                claims[taken[starts]] = guesses, first, value.end
            elif starts not in taken or isinstance(value.part, tuple):
                taken.setdefault(starts, len(claims))
                claims.append((claim_of(tokens, chart, key, value), value.start, value.end))
    for value in clause.bounds:  # "A is above 99" is a wrong claim where A isn't
        named = [m for m in clause.mentions if m.end <= value.start]
        place = [([m for m in named if m.kind == k] or last[k])[-1:] for k in range(len(last))]
        key = tuple(names[0].part for names in place if names)
        numbers = [read_value(fact[-1]) for fact in chart.table.get(key, ())]
        if numbers and all(
            (n or value.part) * value.bound < value.part * value.bound for n in numbers
        ):
            claims.append(
                (write(tokens, chart, key, value.start - 1, value.end), value.start, value.end)
            )
    return claims


def places(owned: list, last: list):
    """The (row, column) a value is claimed for; a part that isn't said comes from before."""
    if not any(owned):
        return ()
    if owned[0] and owned[0][0].part[0] == UNKNOWN:
        return (owned[0][:1],)
    choices = [names or before for names, before in zip(owned, last)]
    return product(*({name.part: name for name in names}.values() for names in choices))


def claim_of(tokens: list[Token], chart: Chart, key: tuple, value: Mention) -> tuple:
    """The fact of a name that has this value, else a claim with the value as it is written."""
    for fact in chart.table.get(key, ()):
        number = read_value(fact[-1])
        if value.part == (name_words(fact[-1]) if number is None else number):
            return fact
    return write(tokens, chart, key, value.start, value.end)


def write(tokens: list[Token], chart: Chart, key: tuple, start: int, end: int) -> tuple:
    """A claim about a name with the value that the text states in tokens [start, end)."""
    if key in chart.table:
        names = chart.table[key][0][:-1]
    else:
        names = key[0][1], *[""] * (len(next(iter(chart.table))) - 1)
    return *names, " ".join(token.text for token in tokens[start:end])


def is_guess(tokens: list[Token], values: list[Mention], v: int) -> bool:
    """Whether value v is another guess at what the value before it is: "6 or 7", "6 7", "6, 7, 8"."""

    def gap(v):
        if not 0 < v < len(values):
            return ["none"]
        start = values[v - 1].end
        return [token.text for token in tokens[start : min(values[v].start, start + 9)]]

    between = gap(v)
    if between == ["to"]:
        return tokens[values[v - 1].start - 1].text != "from"
    if not GUESSING.issuperset(between):
        return False
    if not between or not SEPARATING.issuperset(between):
        return True
    return GUESSING.issuperset(gap(v - 1)) or GUESSING.issuperset(gap(v + 1))


def pair(
    tokens: list[Token], clause: list[Mention], kind: int, once: bool, heads: list
) -> list[list[Mention]]:
    """The names of `kind` that each value of a clause belongs to: a list of lists, one per value.

    Lists of equal length go one to one ("A and B: 3, 8"; `heads`: the names of an earlier list).
    Otherwise a value takes the name before it, or the one behind where a word ties them ("68% of
    A") or the one before has its value already. `once`: a name has one value in a clause, else it
    may be the topic of several.
    """
    runs = [[], *split_runs(clause, kind), []]
    has_others = any(mention.kind not in (kind, None) for mention in clause)
    owners, used, last = [], set(), None
    for r in range(1, len(runs) - 1):
        run, before, behind = runs[r], runs[r - 1], runs[r + 1]
        if run[0].kind is not None:
            last = run[-1]
            continue
        before, behind = ([m for m in names if m.kind == kind] for names in (before, behind))
        near = tokens[max(0, before[0].start - 2) : run[0].start] if before else []
        if len(before) == len(run) > 1 and before[-1].start not in used:
            matched = [[name] for name in before]
        elif len(behind) == len(run) > 1:
            matched = [[name] for name in behind]
        elif has_others and not before and len(heads) == len(run) > 1:
            matched = [[name] for name in heads]
        elif len(before) > 1 and len(run) == 1 and any(t.text in SHARING for t in near[:99]):
            matched = [before]
        else:
            matched = []
            for value in run:
                following = behind[0] if behind and value is run[-1] else None
                name = choose(tokens, value, last, following, used, once)
                if matched and (not name or tokens[value.start - 1].text == "or"):
                    guess = is_guess(tokens, run, len(matched))
                    matched.append(matched[-1] if guess else [])
                else:
                    matched.append([name] if name else [])
                used.update(name.start for name in matched[-1])
        used.update(name.start for names in matched for name in names)
        owners += matched
    return owners


def split_runs(clause: list[Mention], kind: int) -> list[list[Mention]]:
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


def choose(
    tokens: list[Token],
    value: Mention,
    previous: Mention | None,
    following: Mention | None,
    used: set[int],
    once: bool,
) -> Mention | None:
    """The name before or behind a value that it belongs to, or None."""
    free = previous is not None and previous.start not in used
    if following is not None:
        gap = [token.text for token in tokens[value.end : following.start] if token.text != "%"]
        tied = not free and ("," not in gap or not TYING.isdisjoint(gap))
        # "A and B differ: 70 for A"
        tied = tied or tokens[value.start - 1].text == ":" and gap and TYING.issuperset(gap)
        if tied and PARTING.isdisjoint(gap):
            return following
    return previous if free or not once or isinstance(value.part, tuple) else None


def mentioned_facts(text: str, facts) -> list[tuple[str, ...]]:
    """The facts whose names a text mentions; [] when it mentions none.

    Of a table: the facts of the rows and columns mentioned; of rows alone, all their columns, and
    the other way round.
    """
    chart = read_chart(tuple(tuple(map(str, fact)) for fact in facts))
    mentions = [m for clause in Reader(tokenize(text), chart).clauses() for m in clause.mentions]
    named = [
        {m.part for m in mentions if m.kind == kind and m.part[0] != UNKNOWN} for kind in (0, 1)
    ]
    if not any(named):
        return []
    return [
        fact
        for key, found in chart.table.items()
        for fact in found
        if all(part in parts or not parts for part, parts in zip(key, named))
    ]
