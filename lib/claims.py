"""What a text states about a chart: the claimed pairs (name, value) of DyME's visual facts.

Takes the names and values of each clause (mentions.py) and finds out which value is claimed for
which name. test_checker.py measures precision and recall of the claims against a table that was
read by hand, test_claims.jsonl. For example, with facts Latvia 3.0, Portugal 8.9, Romania 13.0:

    "Latvia and Romania are at 3.0 and 13.0; their sum is 16.0. Portugal has 7."
    mentions.py   clause 1: names Latvia, Romania, values 3.0, 13.0; clause 2: none, 16.0 being a
                  result; clause 3: name Portugal, value 7
    claims.py     as many values as names go in order: (Latvia, 3.0), (Romania, 13.0); and
                  (Portugal, 7), which is no fact: two of three claims are right

Left out: "the former"; a name in one sentence and its value in the next, except under a heading or
the head of a table.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product

from lib.mentions import Mention, name_words, read_chart, read_clauses, read_value, tokenize, words

# "68% of A", "68% said A": the name behind the value is its own.
TYING = words("""of in for among from at with said say says saying who were are was is by belongs
    belonging which that ( voted""")
PARTING = words("and but while whereas versus vs than compared ; | then")
# "both A and B are 3": both names have the value.
SHARING = words("both each all same tied equal equally")
REACH = 20  # tokens between a value and the name behind it


@dataclass
class Memory:
    """What a later clause leans on: the last name of a kind, the last list of names (a head)."""

    name: Mention | None = None
    names: list = field(default_factory=list)


def claimed_facts(thinking, facts):
    """The pairs that a text claims, each once, in the order of the text: [(name, value)].

    facts: [(name, value)] strings, the names in a table being "<row> <column>". A claim has a name
    of the facts and the value stated for it: as the fact writes it where both are equal (3.0 = 3,
    1,200 = 1200, 12 % = 12), so that `claim in facts` says whether it is right, else as the text
    has it.
    """
    spellings, table = read_chart(tuple((str(name), str(value)) for name, value in facts))
    tokens = tokenize(thinking)
    memories = [Memory() for _ in next(iter(table), ())]
    claims = {}
    for clause in read_clauses(tokens, spellings):
        values = [mention for mention in clause if mention.kind is None]
        owners = []
        for kind, memory in enumerate(memories):
            names = [mention for mention in clause if mention.kind == kind]
            once = len(memories) == 1 or len(names) >= len(values)
            owners.append(pair(tokens, clause, kind, once, memory.names) if values else [])
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
        in_table = has_others or run[0].start and tokens[run[0].start - 1][0] == "|"
        if lists:
            matched = [[name] for name in lists[0]]
        elif in_table and not before and len(heads) == len(run) > 1:
            matched = [[name] for name in heads]
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
    return any(token[0] in SHARING for token in near)


def choose(tokens, value, previous, following, used, once):
    """The name before or behind a value that it belongs to, or None."""
    free = previous is not None and previous.start not in used
    near = free and value.start - previous.end <= 3
    if following is not None and following.start - value.end <= REACH:
        gap = [token[0] for token in tokens[value.end : following.start] if token[0] != "%"]
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


def places(owners, memories):
    """The (row, column) a value is claimed for; one missing part comes from earlier clauses."""
    if not any(owners):
        return []
    owners = [
        names or ([memory.name] if memory.name else []) for names, memory in zip(owners, memories)
    ]
    distinct = [{name.part: name for name in names}.values() for names in owners]
    return product(*distinct)


def state(tokens, value, facts):
    """The claim (name, value) that a value makes about a name with these facts."""
    for name, written in facts:
        number = read_value(written)
        if value.part == (name_words(written) if number is None else number):
            return name, written
    return facts[0][0], " ".join(token[0] for token in tokens[value.start : value.end])


@lru_cache(maxsize=1024)
def mentioned_facts(text, facts):
    """The facts (a tuple of pairs) whose names a text mentions; [] when it mentions none.

    Of a table: the facts of the rows and columns mentioned; of rows alone, all their columns, and
    the other way round.
    """
    spellings, table = read_chart(facts)
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
