"""What a text states about a picture: the claimed pairs (name, value) of DyME's visual facts.

Finds the names and values of each clause, and which value is claimed for which name. With facts
Latvia 3.0, Portugal 8.9, Romania 13.0:

    "Latvia and Romania are at 3.0 and 13.0; their sum is 16.0. Portugal has 7."
    clause 1: names Latvia, Romania, values 3.0, 13.0: as many, so they go in order
    clause 2: nothing, 16.0 being a result;   clause 3: (Portugal, 7), which is no fact

Results of arithmetic, counts, years, what is asked or denied state nothing. Rules in linear time,
measured by tests/test_claims.jsonl, read by hand. Left out: "the former"; a name in one sentence
and its value in the next, except under a heading or the head of a table.
"""

import re
from functools import lru_cache
from itertools import groupby, product
from typing import NamedTuple

from lib.names import STOP, UNKNOWN, find_names, name_words, read_chart, read_value, tokenize
from lib.names import words

BREAKS = words(". ! ? ; so therefore thus hence then → ⇒") | {"\n"}
NAME_ENDS = words("\" ' ” ’ = : | ( *")  # behind the full stop or question mark of a name
# What follows COPULAS behind COMPUTED words, or MARKS between operands, is no value of a name.
COPULAS = words("= ≈ ~ : is are was were equals equal gives makes be about of to")
MARKS = words("+ * × ÷ / - – −")
COMPUTED = words("""plus minus times divided add adds added adding subtract subtracted subtracting
    multiply multiplied sum total totals difference gap combined together altogether margin product
    average mean median ratio range increase decrease rise drop decline change""")
# "above 50", "step 2", "5 points", "4 countries", "3 more than" and "fell by 9" are no values.
COMPARED = words("more higher greater larger bigger less fewer lower smaller")
NOT_BEFORE = words("""above over past exceed exceeding least > ≥ below under most < ≤ per than step
    top first last question figure twice double triple half ranked rank number place""")
DISTANCES = COMPARED | words("""points percentage pp times x countries bars categories values groups
    items colors colours lines options""")
CHANGED = words("""fell fall rose rising grew grow increased decreased declined dropped changed
    reduced differ divide dividing multiplying lead ahead behind up down""")
CHANGED |= COMPARED | COMPUTED
ADVERBS = words("only just about approximately roughly around nearly almost exactly some")
YEAR = re.compile(r"(?:18|19|20)\d\d")
# What is asked or denied is not stated: "is A 3?", "A never has 3", "that A is 3 is wrong".
ASKING = words("is are was were does do did can could would should what which whether suppose")
DENYING = words("not never neither nor cannot hardly without nobody doubt deny denies unlikely ≠")
FALSE = words("false wrong untrue incorrect mistaken impossible myth")
STANDING = words(", : ; = but and only than") | BREAKS  # behind these a "not" denies no more
# "68% of A", "68% said A": the name behind the value is its own; "both A and B are 3".
TYING = words("of in for among from at with said say says who were are was is belongs which that (")
PARTING = words("and but while whereas versus vs than compared ; | then")
GUESSING = words(", / ( or to maybe perhaps possibly probably even")  # between guesses at one value
SHARING = words("both each all same tied equal equally")
# Around names that the picture hasn't: links to their values, quotes, what is around such a pair,
# and words that are no names but what a chart, a step or a result is called.
LINKS = words("= : | is are was were has had at ( shows reaches")
WRITTEN = words("* _ ` \" ' ” ’")
FOLLOWING = words("percent per and or but while whereas with so % ) , ; . : | !") | {"\n", ""}
PARTED = words(", ; | * - – • ( . : % and then also while but") | {"\n"}
NAMELESS = words("""among answer axis bar between bottom calculation category chart check color
    colour comparison conclusion count data date either estimate final find given goal graph group
    hence high highest however label legend line look low lowest max maximum middle min minimum none
    note observation overall percent pie point reading reasoning result scale second segment series
    share since slice source table therefore third three title trend two unit value year yes""")
NAMELESS |= STOP | NOT_BEFORE | DISTANCES | ADVERBS | CHANGED | SHARING | {""}


def claimed_facts(thinking: str, facts) -> list[tuple[str, ...]]:
    """The claims of a text, each once: (name, value) or (row, column, value) like the facts.

    A claim is its fact where the values are equal (3.0 = 3, 1,200 = 1200, 12 % = 12), so that
    `claim in facts` says whether it is right, else it has the value as the text writes it. A value
    of a name that the picture hasn't is a wrong claim: (name, value) or (name, "", value).
    """
    return list(dict.fromkeys(claim for claim, _, _ in locate_claims(thinking, facts)))


def locate_claims(thinking: str, facts) -> list[tuple]:
    """Each claim of a text with where its value is: [(claim, first character, end)]."""
    return list(read_claims(thinking, tuple(tuple(map(str, fact)) for fact in facts)))


@lru_cache(maxsize=1024)  # a reward and a reading ask for the same text, and so do equal responses
def read_claims(thinking: str, facts: tuple) -> list[tuple]:
    """locate_claims, of facts that can be looked up."""
    return Reader(thinking, facts).read()


class Mention(NamedTuple):
    """A name or a value, where it is in a text."""

    kind: int | None  # 0 row (or the whole name), 1 column, None value
    part: object  # the words of the name; the value's number, or its words
    start: int  # in tokens
    end: int  # exclusive


class Reader:
    """Reads the claims of one clause after the other; of their names it keeps the last ones."""

    def __init__(self, text: str, facts: tuple):
        self.text, self.chart = text, read_chart(facts)
        self.tokens = tokenize(text)
        self.texts = [token.text for token in self.tokens]
        self.items = list(find_names(self.tokens, self.chart.spellings))
        self.named = {i for start, end, name in self.items if name for i in range(start, end)}
        self.kinds = range(len(next(iter(self.chart.table), ())))  # row, and column in a table
        self.last = [[] for _ in self.kinds]  # the last name, a list of one
        self.heads = [[] for _ in self.kinds]  # the last list of several names

    def read(self) -> list[tuple]:
        """The claims of the text: [(claim, first character of its value, end)]."""
        parts = groupby(self.items, lambda item: not item[2] and self.is_break(item[0]))
        clauses = [list(clause) for is_break, clause in parts if not is_break]
        return [claim for clause in clauses for claim in self.state(clause)]

    def is_break(self, i: int) -> bool:
        """Whether a clause ends at token i: not at the stop of "U.S." or of "Vinyl?" = 4."""
        text, before = self.texts[i], self.texts[i - 1]
        abbreviated = text == "." and len(before) == 1 and before.isalpha()
        in_name = text in ".?!" and self.texts[i + 1] in NAME_ENDS
        return text in BREAKS and not abbreviated and not in_name

    # ---- the names and the values of a clause ---------------------------------------------------

    def mentions(self, clause: list[tuple]) -> list[Mention]:
        """The names and the stated values of a clause, which is from find_names."""
        mentions, computed = [], False
        for i, end, name in clause:
            before, token, behind = self.tokens[i - 1], self.tokens[i], self.tokens[i + 1]
            operand = behind.value is not None or behind.word in self.chart.spellings
            if name:
                mentions += [Mention(kind, part, i, end) for kind, part in name]
            elif token.text in COMPUTED or token.text in MARKS and before.word and operand:
                computed = True
            elif token.value is not None and not (computed and before.text in COPULAS):
                if self.is_stated(i):
                    mentions += [*self.unknown_name(i), Mention(None, token.value, i, end)]
        return mentions

    def is_adjacent(self, i: int) -> bool:
        """Whether the number at token i is right behind a name."""
        return i - 1 in self.named or i - 2 in self.named and not self.tokens[i - 1].word

    def is_stated(self, i: int) -> bool:
        """Whether the number at token i can be a name's value, which no "not" denies."""
        before = [token.word or token.text for token in self.tokens[max(0, i - 4) : i]]
        nearest = next((word for word in reversed(before) if word not in ADVERBS), "")
        percent = self.texts[i + 1] == "%"
        j = i + 1 + percent
        distance = self.texts[j] in DISTANCES and j not in self.named
        change = nearest == "by" and not CHANGED.isdisjoint(before)
        year = YEAR.fullmatch(self.texts[i]) and not percent
        doubtful = year or nearest in NOT_BEFORE or "between" in before
        if distance or change or doubtful and not self.is_adjacent(i):
            return False
        for k in range(i - 1, i - 10, -1):
            text = self.texts[k]
            if k not in self.named and (text in DENYING or text.endswith(("n't", "n’t"))):
                return False
            if text in STANDING or self.tokens[k].value is not None:
                break
        return True

    def unknown_name(self, i: int) -> list[Mention]:
        """The name, if any, that the value at token i has and the picture hasn't.

        "Estonia is 5", or one of a list beside the picture's own names: "Latvia 3.0, estonia 5".
        """
        behind = self.texts[i + 1 + (self.texts[i + 1] == "%")]
        if self.is_adjacent(i) or not self.chart.open or behind not in FOLLOWING:
            return []
        linked = self.texts[i - 1] in LINKS
        end = i - linked
        while self.texts[end - 1] in WRITTEN:
            end -= 1
        start = end
        while start > end - 4 and start - 1 not in self.named:
            text, word, value, *_ = self.tokens[start - 1]
            if value is not None or text in NAMELESS or word in NAMELESS:
                break
            start -= 1
        name = [self.text[token.start : token.end] for token in self.tokens[start:end]]
        if not (linked and all(word[0].isupper() for word in name)):
            k = start - 1
            while self.texts[k] in PARTED:
                k -= 1
            owner = k - 1 - (self.texts[k - 1] in LINKS)
            if k == start - 1 or self.tokens[k].value is None or owner not in self.named:
                return []
        self.named.update(range(start, end))
        return [Mention(0, (UNKNOWN, " ".join(name)), start, end)] if name else []

    # ---- which value belongs to which name ------------------------------------------------------

    def state(self, clause: list[tuple]) -> list[tuple]:
        """The claims of a clause: [(claim, first character of its value, end)]."""
        mentions = self.mentions(clause)
        owners = [self.pair(mentions, kind) for kind in self.kinds]
        for kind in self.kinds:
            names = [mention for mention in mentions if mention.kind == kind]
            self.last[kind] = names[-1:] or self.last[kind]
            self.heads[kind] = names if len(names) > 1 else self.heads[kind]
        (start, _, name), (_, end, _) = clause[0], clause[-1]
        asked = self.texts[end] == "?" or not name and self.texts[start] in ASKING
        if asked or any(self.texts[i] in FALSE for i, *_ in clause):
            return []
        values = [mention for mention in mentions if mention.kind is None]
        stated = {}  # by the names' places in the text: names, the first and the last value
        for v, (value, *owned) in enumerate(zip(values, *owners)):
            for names in self.places(owned):
                key, first = tuple(name.start for name in names), value
                if key in stated and self.is_guess(values, v):  # "6 or 7" is one wrong claim
                    first = stated[key][1]
                elif key in stated:  # a second number isn't the name's, a word may be
                    key = (*key, value.start)
                    if not isinstance(value.part, tuple):
                        continue
                stated[key] = names, first, value
        return [self.write(*parts) for parts in stated.values()]

    def write(self, names: tuple, first: Mention, value: Mention) -> tuple:
        """(claim, first character of its value, end): a fact, or the text up to a last guess."""
        key = tuple(name.part for name in names)
        facts = self.chart.table.get(key) or [(key[0][1], *[""] * len(self.kinds))]
        said = *facts[0][:-1], " ".join(self.texts[first.start : value.end])
        same = [f for f in facts if value.part in (read_value(f[-1]), name_words(f[-1]))]
        claim = same[0] if same and first is value else said
        return claim, self.tokens[first.start].start, self.tokens[value.end - 1].end

    def places(self, owned: list) -> list[tuple]:
        """The (row, column) a value is claimed for; a part that isn't said comes from before."""
        if not any(owned):
            return []
        if owned[0] and owned[0][0].part[0] == UNKNOWN:
            return [owned[0][:1]]
        choices = [names or before for names, before in zip(owned, self.last)]
        found = product(*({name.part: name for name in names}.values() for names in choices))
        return [place for place in found if tuple(n.part for n in place) in self.chart.table]

    def is_guess(self, values: list[Mention], v: int) -> bool:
        """Whether value v is another guess at the value before it: "6 or 7", "6 7", "6 to 7"."""
        between = self.texts[values[v - 1].end : values[v].start][:9]
        return v > 0 and GUESSING.issuperset(between)

    def pair(self, clause: list[Mention], kind: int) -> list[list[Mention]]:
        """The names of `kind` that each value of a clause belongs to: a list of lists.

        Lists of equal length go one to one ("A and B: 3, 8", or under the head of a table).
        Otherwise a value takes the name before it, or the one behind where they are tied and the
        one before has its value already. In a table a name may have several values.
        """
        mentions = (mention for mention in clause if mention.kind in (kind, None))
        runs = [[], *(list(run) for _, run in groupby(mentions, lambda m: m.kind)), []]
        heads = self.heads[kind] if any(m.kind == 1 - kind for m in clause) else []
        owners, used = [], set()  # used: where the names are that have their values
        for before, run, behind in zip(runs, runs[1:], runs[2:]):
            if run[0].kind is not None:
                continue
            near = self.texts[max(0, before[0].start - 2) : run[0].start] if before else []
            lists = (before, behind, [] if before else heads)
            alike = next((names for names in lists if len(names) == len(run) > 1), None)
            free = before and before[-1].start not in used
            if alike and alike[-1].start not in used:
                found = [[name] for name in alike]
            elif len(before) > 1 and len(run) == 1 and not SHARING.isdisjoint(near):
                found = [before]
            else:  # the last name, the first one behind, or that of the guess before
                several = [len(self.kinds) > 1 or isinstance(v.part, tuple) for v in run]
                found = [before[-1:] if may else [] for may in several]
                found[0] = before[-1:] if free else found[0]
                gap = self.texts[run[-1].end : behind[0].start] if behind else ()
                tied = behind and PARTING.isdisjoint(gap) and not (free and len(run) == 1)
                if tied and ("," not in gap or not TYING.isdisjoint(gap)):  # "68% of A"
                    found[-1] = behind[:1]
                for v in range(1, len(run)):
                    if not found[v] and self.is_guess(run, v):
                        found[v] = found[v - 1]
            used.update(name.start for names in found for name in names)
            owners += found
        return owners
