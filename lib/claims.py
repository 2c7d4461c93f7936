"""What a text states about a picture: the claimed pairs (name, value) of DyME's visual facts.

Takes the names and values of each clause and finds out which value is claimed for which name. With
facts Latvia 3.0, Portugal 8.9, Romania 13.0, for example:

    "Latvia and Romania are at 3.0 and 13.0; their sum is 16.0. Portugal has 7."
    clause 1: names Latvia, Romania, values 3.0, 13.0: as many, so they go in order
    clause 2: nothing, 16.0 being a result;   clause 3: (Portugal, 7), which is no fact

Results of arithmetic, counts, years, what is asked or denied state nothing. Rules, no model: each
looks at a bounded stretch of text, so that the time is linear. tests/test_claims.jsonl, read by
hand, measures them. Left out: "the former"; a name in one sentence and its value in the next,
except under a heading or the head of a table.
"""

import re
from functools import lru_cache
from itertools import groupby, product
from typing import NamedTuple

from lib.names import STOP, UNKNOWN, find_name, find_names, name_words, read_chart, tokenize, words
from lib.numbers import read_value

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
DISTANCES = words("points percentage pp times x countries bars categories values groups items")
DISTANCES |= COMPARED | words("colors colours lines options")
CHANGED = COMPARED | words("""fell fall rose rise rising grew grow increased increase decreased
    decrease declined decline dropped drop changed reduced differ divided divide dividing multiplied
    multiply multiplying lead ahead behind up down""")
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
PARTED = words(", ; | * - – • ( . : and then also while but") | {"\n", ""}
NAMELESS = words("""among answer axis bar between bottom calculation category chart check color
    colour comparison conclusion count data date either estimate final find given goal graph
    group hence high highest however label legend line look low lowest max maximum middle min
    minimum none note observation overall percent pie point reading reasoning result scale
    second segment series share since slice source table therefore third three title trend two
    unit value year yes""")
NAMELESS |= STOP | COMPUTED | COMPARED | NOT_BEFORE | DISTANCES | ADVERBS | CHANGED | SHARING


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
    tokens = reader.tokens
    return [(claim, tokens[i].start, tokens[end - 1].end) for claim, i, end in reader.read()]


class Mention(NamedTuple):
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
        self.named = set()  # the tokens that belong to names
        self.kinds = range(len(next(iter(self.chart.table), ())))  # row, and column in a table
        self.last = [[] for _ in self.kinds]  # the last name, a list of one
        self.heads = [[] for _ in self.kinds]  # the last list of several names

    def read(self) -> list[tuple]:
        """The claims of the text: [(claim, first token of its value, end)]."""
        claims, mentions = [], []  # mentions: the names and the stated values of the clause
        begun = computed = silent = False  # of the clause; silent: it asks or denies
        for i, end, name in find_names(self.tokens, self.chart.spellings):
            text = self.texts[i]
            if not name and self.is_break(i):
                claims += self.state(mentions, silent or text == "?")
                mentions, begun, computed, silent = [], False, False, False
                continue
            if name:
                mentions += [Mention(kind, part, i, end) for kind, part in name]
                self.named.update(range(i, end))
            elif text in COMPUTED or text in MARKS and self.is_operator(i):
                computed = True
            elif (value := self.tokens[i].value) is not None:
                result = computed and self.texts[i - 1] in COPULAS
                if not result and self.is_stated(i) and not self.is_denied(i):
                    mentions += [*self.unknown_name(i), Mention(None, value, i, end)]
            silent = silent or text in FALSE or text in ASKING and not (begun or name)
            begun = True
        return claims + self.state(mentions, silent)

    def is_break(self, i: int) -> bool:
        """Whether a clause ends at token i: not at the stop of "U.S." or of "Vinyl?" = 4."""
        text, before = self.texts[i], self.texts[i - 1]
        if text not in BREAKS or text in ".?!" and self.texts[i + 1] in NAME_ENDS:
            return False
        return text != "." or not (len(before) == 1 and before.isalpha())

    def is_operator(self, i: int) -> bool:
        """Whether the mark at token i is between operands."""
        behind = self.tokens[i + 1]
        right = behind.value is not None or behind.word in self.chart.spellings
        return right and self.tokens[i - 1].word != ""

    def is_denied(self, i: int) -> bool:
        """Whether a "not" before the number at token i denies it."""
        for k in reversed(range(max(0, i - 9), i)):
            text = self.texts[k]
            if k not in self.named and (text in DENYING or text.endswith(("n't", "n’t"))):
                return True
            if text in STANDING or self.tokens[k].value is not None:
                return False
        return False

    def is_adjacent(self, i: int) -> bool:
        """Whether the number at token i is right behind a name."""
        return i - 1 in self.named or i - 2 in self.named and not self.tokens[i - 1].word

    def is_stated(self, i: int) -> bool:
        """Whether the number at token i can be a name's value."""
        before = [token.word or token.text for token in self.tokens[max(0, i - 4) : i]]
        nearest = next((word for word in reversed(before) if word not in ADVERBS), "")
        percent = self.texts[i + 1] == "%"
        j = i + 1 + percent
        if self.texts[j] in DISTANCES and not find_name(self.tokens, j, self.chart.spellings)[1]:
            return False
        if nearest == "by" and not CHANGED.isdisjoint(before):
            return False
        year = YEAR.fullmatch(self.texts[i]) and not percent
        doubtful = year or nearest in NOT_BEFORE or "between" in before
        return self.is_adjacent(i) or not doubtful

    def unknown_name(self, i: int) -> list[Mention]:
        """The name that the value at token i has and the picture hasn't, if there is one.

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
        while start > end - 4 and self.is_unknown(start - 1):
            start -= 1
        raw = [token.raw for token in self.tokens[start:end]]
        if not raw:
            return []
        if not linked or not all(word[0].isupper() for word in raw):
            k = start - 1
            while k > 0 and self.texts[k] in PARTED | {"%"}:
                k -= 1
            owner = k - 1 - (self.texts[k - 1] in LINKS)
            if k == start - 1 or self.tokens[k].value is None or owner not in self.named:
                return []
        self.named.update(range(start, end))
        return [Mention(0, (UNKNOWN, " ".join(raw)), start, end)]

    def is_unknown(self, i: int) -> bool:
        """Whether token i can be a word of a name that the picture hasn't."""
        token = self.tokens[i]
        other = not token.word or token.value is not None or i in self.named
        return not other and NAMELESS.isdisjoint((token.text, token.word))

    # ---- which value belongs to which name ------------------------------------------------------

    def state(self, mentions: list[Mention], silent: bool) -> list[tuple]:
        """The claims of a clause: [(claim, first token, end)]."""
        values = [mention for mention in mentions if mention.kind is None]
        owners = [self.pair(mentions, kind) for kind in self.kinds]
        for kind in self.kinds:
            names = [mention for mention in mentions if mention.kind == kind]
            self.last[kind] = names[-1:] or self.last[kind]
            self.heads[kind] = names if len(names) > 1 else self.heads[kind]
        claims = {}  # by the names' places in the text
        for v, (value, *owned) in enumerate([] if silent else zip(values, *owners)):
            for place in self.places(owned):
                names = tuple(name.start for name in place)
                guess = names in claims and self.is_guess(values, v)  # "6 or 7" is one wrong claim
                start = claims[names][1] if guess else value.start
                if names in claims and not guess:  # a second number isn't a name's, a word may be
                    if not isinstance(value.part, tuple):
                        continue
                    names = (*names, value.start)
                claims[names] = self.write(place, value, start), start, value.end
        return list(claims.values())

    def write(self, place: tuple, value: Mention, start: int) -> tuple:
        """A claim about names: as their fact has it, else with the text of the tokens from `start`
        to the value's end.
        """
        key = tuple(name.part for name in place)
        facts = self.chart.table.get(key, ())
        for fact in facts if start == value.start else ():
            if value.part in (read_value(fact[-1]), name_words(fact[-1])):
                return fact
        names = facts[0][:-1] if facts else (key[0][1], *[""] * (len(self.kinds) - 1))
        return *names, " ".join(self.texts[start : value.end])

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
        Otherwise a value takes the name before it, or the one behind where a word ties them ("68%
        of A") or the one before has its value already. In a table a name may have several values.
        """
        mentions = (mention for mention in clause if mention.kind in (kind, None))
        runs = [[], *(list(run) for _, run in groupby(mentions, lambda m: m.kind)), []]
        heads = self.heads[kind] if any(m.kind == 1 - kind for m in clause) else []
        owners, used = [], set()
        for before, run, behind in zip(runs, runs[1:], runs[2:]):
            if run[0].kind is not None:
                continue
            lists = (before, behind, [] if before else heads)
            near = self.texts[max(0, before[0].start - 2) : run[0].start] if before else []
            alike = next((names for names in lists if len(names) == len(run) > 1), None)
            if alike and alike[-1].start not in used:
                matched = [[name] for name in alike]
            elif len(before) > 1 and len(run) == 1 and not SHARING.isdisjoint(near):
                matched = [before]
            else:
                matched = []
                for value in run:
                    names = self.choose(value, before, behind if value is run[-1] else [], used)
                    if matched and not names and self.is_guess(run, len(matched)):
                        names = matched[-1]
                    used.update(name.start for name in names)
                    matched.append(names)
            used.update(name.start for names in matched for name in names)
            owners += matched
        return owners

    def choose(self, value: Mention, before: list, behind: list, used: set[int]) -> list[Mention]:
        """The last name before or the first one behind a value that it belongs to, if one does."""
        free = before and before[-1].start not in used
        if behind:
            gap = [text for text in self.texts[value.end : behind[0].start] if text != "%"]
            tied = not free and ("," not in gap or not TYING.isdisjoint(gap))
            if tied and PARTING.isdisjoint(gap):
                return behind[:1]
        several = len(self.kinds) > 1 or isinstance(value.part, tuple)
        return before[-1:] if free or several else []
