"""What a text states about a picture: the claimed pairs (name, value) of DyME's visual facts.

Takes the names and values of each clause and finds out which value is claimed for which name. With
facts Latvia 3.0, Portugal 8.9, Romania 13.0, for example:

    "Latvia and Romania are at 3.0 and 13.0; their sum is 16.0. Portugal has 7."
    clause 1: names Latvia, Romania, values 3.0, 13.0: as many, so they go in order
    clause 2: nothing, 16.0 being a result;   clause 3: (Portugal, 7), which is no fact

Numbers that state nothing are left out: results of arithmetic, counts, years, what is asked or
denied. Rules, no model: each looks at a bounded stretch of text, so that the time is linear in the
text's length. tests/test_claims.jsonl, read by hand, measures precision and recall. Left out: "the
former"; a name in one sentence and its value in the next, except under a heading or the head of a
table.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, product

from lib import english
from lib.names import PADDING, UNKNOWN, YEAR, find_name, name_words, read_chart, tokenize
from lib.numbers import read_value


def claimed_facts(thinking: str, facts) -> list[tuple[str, ...]]:
    """The facts that a text claims, each once, in the order of the text: tuples like the facts.

    facts: (name, value) or (row, column, value) strings. A claim has a name and the value stated
    for it: as the fact writes it where both are equal (3.0 = 3, 1,200 = 1200, 12 % = 12), so that
    `claim in facts` says whether it is right, else as the text has it. A value of a name that the
    picture hasn't is a claim too, a wrong one: (name, value) or (name, "", value). It is found in
    the form of a fact (Reader.unknown_name), and wherever a colour is said of embedded charts.
    """
    return list(read_claims(thinking, tuple(map(tuple, facts))))


@lru_cache(maxsize=1024)  # a reward and a reading ask for the same text, and so do equal responses
def read_claims(thinking: str, facts: tuple) -> dict[tuple[str, ...], None]:
    """claimed_facts, as the names of a dict."""
    return dict.fromkeys(claim for claim, _, _ in locate_claims(thinking, facts))


def locate_claims(thinking: str, facts) -> list[tuple]:
    """Each claim of a text with where its value is: [(claim, first character, end)]."""
    reader = Reader(thinking, facts)
    tokens, found = reader.tokens, []
    for mentions, silent in reader.clauses():
        found += reader.state(mentions, silent)
    return [(claim, tokens[start].start, tokens[end - 1].end) for claim, start, end in found]


@dataclass
class Mention:
    """A name or a value, where it is in a text."""

    kind: int | None  # 0 row (or the whole name), 1 column, None value
    part: object  # the words of the name; the value's number, or its words
    start: int  # in tokens
    end: int  # exclusive


class Reader:
    """Reads the claims of one clause after the other; of their names it keeps the last ones."""

    def __init__(self, text: str, facts):
        self.tokens = tokenize(text)
        self.texts = [token.text for token in self.tokens]
        self.chart = read_chart(tuple(tuple(map(str, fact)) for fact in facts))
        self.mentions = []  # of the clause, in its order
        self.named = set()  # the tokens that belong to names
        self.kinds = range(len(next(iter(self.chart.table), ())))  # row, and column in a table
        self.last = [[] for _ in self.kinds]  # the last name, a list of one
        self.heads = [[] for _ in self.kinds]  # the last list of several names

    def clauses(self) -> Iterator[tuple[list[Mention], bool]]:
        """Yields of each clause its names and stated values, and whether it asks or denies."""
        i, computed, silent = 0, False, False
        while i < len(self.tokens) - len(PADDING):
            token, text, end = self.tokens[i], self.texts[i], i + 1
            name = ()
            if token.word in self.chart.spellings:
                stop, name = find_name(self.tokens, i, self.chart.spellings)
            if name:
                self.mentions += [Mention(kind, part, i, stop) for kind, part in name]
                self.named.update(range(i, stop))
                end = stop
            elif self.is_break(i):
                yield self.mentions, silent or text == "?"
                self.mentions, computed, silent = [], False, False
            elif text in english.RESULTS or self.is_operator(i):
                computed = True
            elif text in english.TRENDS and len(self.mentions) != 1:
                computed = True
            elif token.value is not None:
                if computed and self.texts[i - 1] in english.COPULAS:
                    computed = False
                elif not self.is_denied(i):
                    self.add_value(Mention(None, token.value, i, end))
            elif text in english.ASKING and not self.mentions and (i == 0 or self.is_break(i - 1)):
                silent = True
            silent = silent or text in english.FALSE
            i = end
        yield self.mentions, silent

    def add_value(self, value: Mention) -> None:
        """Adds a value that is stated, with the name that it brings along."""
        i = value.start
        adjacent = i - 1 in self.named or i - 2 in self.named and not self.tokens[i - 1].word
        if not self.is_stated(value, adjacent):
            return
        start, end = (i, i) if adjacent else self.unknown_name(value)
        if start < end:
            text = " ".join(token.raw for token in self.tokens[start:end])
            self.mentions.append(Mention(0, (UNKNOWN, text), start, end))
            self.named.update(range(start, end))
        self.mentions.append(value)

    def is_break(self, i: int) -> bool:
        """Whether a clause ends at token i: not at the stop of "U.S." or of "Vinyl?" = 4."""
        text, before = self.texts[i], self.texts[i - 1]
        if text not in english.BREAKS or text in ".?!" and self.texts[i + 1] in english.NAME_ENDS:
            return False
        return text != "." or not (len(before) == 1 and before.isalpha())

    def is_operator(self, i: int) -> bool:
        """Whether token i computes: a word does, a mark between operands ("A - 5" has a dash)."""
        token, before, behind = self.tokens[i], self.tokens[i - 1], self.tokens[i + 1]
        if token.text not in english.OPERATORS or token.word:
            return token.text in english.OPERATORS
        left = before.value is not None or before.word and behind.value is None
        right = behind.value is not None or behind.word in self.chart.spellings
        return bool(right and (left or token.text not in "-–*/"))

    def is_denied(self, i: int) -> bool:
        """Whether a "not" before the number at token i denies it."""
        for k in range(i - 1, max(-1, i - 10), -1):
            text = self.texts[k]
            if k not in self.named and (text in english.DENYING or text.endswith(("n't", "n’t"))):
                return True
            if text in english.STANDING or self.tokens[k].value is not None:
                return False
        return False

    def is_stated(self, value: Mention, adjacent: bool) -> bool:
        """Whether a number can be a name's value; `adjacent`: it is right behind one."""
        i = value.start
        before = [text for text in self.texts[max(0, i - 8) : i] if text not in english.ADVERBS]
        nearest = before[-1] if before else ""
        percent = self.texts[value.end] == "%"
        j = value.end + percent
        behind = self.texts[j]
        if behind in english.DISTANCES and not find_name(self.tokens, j, self.chart.spellings)[1]:
            return False
        if nearest in english.NOT_BEFORE or "between" in before:
            return adjacent
        if nearest == "by" and not english.CHANGED.isdisjoint(before):
            return False
        return adjacent or percent or not YEAR.fullmatch(self.texts[i])

    # ---- names that the picture hasn't ----------------------------------------------------------

    def unknown_name(self, value: Mention) -> tuple[int, int]:
        """[start, end) of the name that a value has and the picture hasn't, or an empty range.

        "Estonia is 5", or one of a list beside the picture's own names: "Latvia 3.0, estonia 5".
        """
        i, nothing = value.start, (value.start, value.start)
        j = value.end + (self.texts[value.end] == "%")
        if not self.chart.open or self.texts[j] not in english.FOLLOWING:
            return nothing
        linked = self.texts[i - 1] in english.LINKS
        end = i - linked
        while end > 0 and self.texts[end - 1] in english.WRITTEN:
            end -= 1
        start = end
        while start > max(0, end - 4) and start - 1 not in self.named:
            token = self.tokens[start - 1]
            if not token.word or token.value is not None or token.text in english.NAMELESS:
                break
            start -= 1
        if linked and all(token.raw[0].isupper() for token in self.tokens[start:end]):
            return start, end
        k = start - 1
        if self.texts[k] not in english.PARTED | english.WRITTEN:
            return nothing
        while k > 0 and self.texts[k] in english.PARTED | {"%"}:
            k -= 1
        follows = k - 1 - (self.texts[k - 1] in english.LINKS) in self.named
        return (start, end) if follows and self.tokens[k].value is not None else nothing

    # ---- which value belongs to which name ------------------------------------------------------

    def state(self, mentions: list[Mention], silent: bool) -> list[tuple]:
        """The claims of a clause: [(claim, first token, end)]."""
        values = [mention for mention in mentions if mention.kind is None]
        owners = [self.pair(mentions, kind) for kind in self.kinds]
        for kind in self.kinds:
            names = [mention for mention in mentions if mention.kind == kind]
            self.last[kind] = names[-1:] or self.last[kind]
            self.heads[kind] = names if len(names) > 1 else self.heads[kind]
        if silent:
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
                    facts = self.chart.table.get(key, ())
                    same = (
                        f for f in facts if value.part in (read_value(f[-1]), name_words(f[-1]))
                    )
                    claim = next(same, None) or self.write(key, value.start, value.end)
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

    def write(self, key: tuple, start: int, end: int) -> tuple:
        """A claim about a name with the value that the text states in tokens [start, end)."""
        if key in self.chart.table:
            names = self.chart.table[key][0][:-1]
        else:
            names = key[0][1], *[""] * (len(self.kinds) - 1)
        return *names, " ".join(self.texts[start:end])

    def is_guess(self, values: list[Mention], v: int) -> bool:
        """Whether value v is another guess at the value before it: "6 or 7", "6 7", "6 to 7"."""
        between = self.texts[values[v - 1].end : values[v].start][:9]
        return v > 0 and english.GUESSING.issuperset(between)

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
            elif len(before) > 1 and len(run) == 1 and not english.SHARING.isdisjoint(near):
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
            tied = not free and ("," not in gap or not english.TYING.isdisjoint(gap))
            if self.texts[value.start - 1] == ":" and gap and english.TYING.issuperset(gap):
                tied = True  # "A and B differ: 70 for A"
            if tied and english.PARTING.isdisjoint(gap):
                return following
        several = len(self.kinds) > 1 or isinstance(value.part, tuple)
        return previous if free or several else None
