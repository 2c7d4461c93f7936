"""What a text states about a picture: the claimed pairs (name, value) of DyME's visual facts.

Takes the names and values of each clause (mentions.py) and finds out which value is claimed for
which name. With facts Latvia 3.0, Portugal 8.9, Romania 13.0, for example:

    "Latvia and Romania are at 3.0 and 13.0; their sum is 16.0. Portugal has 7."
    clause 1: names Latvia, Romania, values 3.0, 13.0: as many, so they go in order
    clause 2: nothing, 16.0 being a result;   clause 3: (Portugal, 7), which is no fact

tests/test_claims.jsonl, read by hand, measures precision and recall. Left out: "the former"; a name
in one sentence and its value in the next, except under a heading or the head of a table.
"""

from itertools import groupby, product

from lib.mentions import Clause, Mention, Reader
from lib.names import UNKNOWN, name_words, words
from lib.numbers import read_value

# "68% of A", "68% said A": the name behind the value is its own; "both A and B are 3".
TYING = words("""of in for among from at with said say says saying who were are was is by belongs
    belonging which that ( voted""")
PARTING = words("and but while whereas versus vs than compared ; | then")
GUESSING = words(", / ( or to maybe perhaps possibly probably even")  # between guesses at one value
SHARING = words("both each all same tied equal equally")


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
    reader = ClaimReader(thinking, facts)
    tokens, found = reader.tokens, []
    for clause in reader.clauses():
        found += reader.state(clause)
    return [(claim, tokens[start].start, tokens[end - 1].end) for claim, start, end in found]


class ClaimReader(Reader):
    """Reads the claims of one clause after the other; of their names it keeps the last ones."""

    def __init__(self, text: str, facts):
        super().__init__(text, facts)
        self.kinds = range(len(next(iter(self.chart.table), ())))  # row, and column in a table
        self.last = [[] for _ in self.kinds]  # the last name, a list of one
        self.heads = [[] for _ in self.kinds]  # the last list of several names

    def state(self, clause: Clause) -> list[tuple]:
        """The claims of a clause: [(claim, first token, end)]."""
        values = [mention for mention in clause.mentions if mention.kind is None]
        owners = [self.pair(clause.mentions, kind) for kind in self.kinds]
        for kind in self.kinds:
            names = [mention for mention in clause.mentions if mention.kind == kind]
            self.last[kind] = names[-1:] or self.last[kind]
            self.heads[kind] = names if len(names) > 1 else self.heads[kind]
        if clause.asked or clause.denied:
            return []
        claims, taken = [], {}  # taken: of the names in the text, the number of their claim
        for v, (value, *owned) in enumerate(zip(values, *owners)):
            for place in self.places(owned):
                key = tuple(name.part for name in place)
                starts = tuple(name.start for name in place)
                if starts in taken and self.is_guess(values, v):  # "6 or 7" is one wrong claim
                    start = claims[taken[starts]][1]
                    claims[taken[starts]] = self.write(key, start, value.end), start, value.end
                elif starts not in taken or isinstance(value.part, tuple):
                    taken.setdefault(starts, len(claims))
                    claim = self.fact_of(key, value) or self.write(key, value.start, value.end)
                    claims.append((claim, value.start, value.end))
        return claims

    def places(self, owned: list) -> list[tuple]:
        """The (row, column) a value is claimed for; a part that isn't said comes from before."""
        if not any(owned):
            return []
        if owned[0] and owned[0][0].part[0] == UNKNOWN:
            return [owned[0][:1]]
        choices = [names or before for names, before in zip(owned, self.last)]
        found = product(*({name.part: name for name in names}.values() for names in choices))
        return [place for place in found if tuple(n.part for n in place) in self.chart.table]

    def fact_of(self, key: tuple, value: Mention) -> tuple | None:
        """The fact of a name that has this value, or None."""
        for fact in self.chart.table.get(key, ()):
            if value.part in (read_value(fact[-1]), name_words(fact[-1])):
                return fact
        return None

    def write(self, key: tuple, start: int, end: int) -> tuple:
        """A claim about a name with the value that the text states in tokens [start, end)."""
        if key in self.chart.table:
            names = self.chart.table[key][0][:-1]
        else:
            names = key[0][1], *[""] * (len(self.kinds) - 1)
        return *names, " ".join(self.texts[start:end])

    def is_guess(self, values: list[Mention], v: int) -> bool:
        """Whether value v is another guess at the value before it: "6 or 7", "6 7", "6 to 7"."""
        return v > 0 and GUESSING.issuperset(self.texts[values[v - 1].end : values[v].start][:9])

    def pair(self, clause: list[Mention], kind: int) -> list[list[Mention]]:
        """The names of `kind` that each value of a clause belongs to: a list of lists.

        Lists of equal length go one to one ("A and B: 3, 8", or under the head of a table).
        Otherwise a value takes the name before it, or the one behind where a word ties them ("68%
        of A") or the one before has its value already. In a table a name may have several values.
        """
        mentions = (mention for mention in clause if mention.kind in (kind, None))
        runs = [[], *(list(run) for _, run in groupby(mentions, lambda m: m.kind)), []]
        heads = self.heads[kind] if any(m.kind == 1 - kind for m in clause) else []
        owners, used, last = [], set(), None
        for before, run, behind in zip(runs, runs[1:], runs[2:]):
            if run[0].kind is not None:
                last = run[-1]
                continue
            before, behind = ([m for m in names if m.kind == kind] for names in (before, behind))
            lists = (before, behind, [] if before else heads)
            lists = [names for names in lists if len(names) == len(run) > 1]
            near = self.texts[max(0, before[0].start - 2) : run[0].start] if before else []
            if lists and lists[0][-1].start not in used:
                matched = [[name] for name in lists[0]]
            elif len(before) > 1 and len(run) == 1 and not SHARING.isdisjoint(near):
                matched = [before]
            else:
                matched = []
                for value in run:
                    following = behind[0] if behind and value is run[-1] else None
                    name = self.choose(value, last, following, used)
                    if matched and not name:
                        guess = self.is_guess(run, len(matched))
                        matched.append(matched[-1] if guess else [])
                    else:
                        matched.append([name] if name else [])
                    used.update(name.start for name in matched[-1])
            used.update(name.start for names in matched for name in names)
            owners += matched
        return owners

    def choose(self, value: Mention, previous, following, used: set[int]) -> Mention | None:
        """The name before or behind a value (Mentions or None) that it belongs to, or None."""
        free = previous is not None and previous.start not in used
        if following is not None:
            gap = [text for text in self.texts[value.end : following.start] if text != "%"]
            tied = not free and ("," not in gap or not TYING.isdisjoint(gap))
            # "A and B differ: 70 for A"
            tied = tied or self.texts[value.start - 1] == ":" and gap and TYING.issuperset(gap)
            if tied and PARTING.isdisjoint(gap):
                return following
        several = len(self.kinds) > 1 or isinstance(value.part, tuple)
        return previous if free or several else None
