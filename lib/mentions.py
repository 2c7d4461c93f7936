"""Which of a picture's names and which values a text mentions, clause by clause.

Numbers that state nothing are left out here: results of arithmetic, counts, years, what is asked or
denied. Names that the picture hasn't are found where they have a value of their own. Rules, no
model: each looks at a bounded stretch of text, so that the time is linear in the text's length.
claims.py says which value is claimed for which name.
"""

from dataclasses import dataclass, field

from lib.names import COPULAS, PADDING, STOP, UNKNOWN, YEAR
from lib.names import find_name, read_chart, tokenize, words


BREAKS = words(". ! ? ; so therefore thus hence then → ⇒") | {"\n"}
NAME_ENDS = words("\" ' ” ’ = : | ( *")  # behind the full stop or question mark of a name

# What follows "=" or "is" behind these is computed, not read off. The TRENDS can also be what the
# chart is about ("in Chad the average age is 20"): with one name before them, they are.
OPERATORS = words("""+ * × ÷ / - – − plus minus times divided add adds added adding subtract
    subtracted subtracting multiply multiplied""")
RESULTS = words("sum total totals difference gap combined together altogether margin product")
TRENDS = words("average mean median ratio range increase decrease rise drop decline change")
# "above 50", "step 2", "5 points", "4 countries", "3 more than" and "fell by 9" are no values.
COMPARED = words("more higher greater larger bigger less fewer lower smaller")
NOT_BEFORE = words("""above over past exceed exceeds exceeding least > ≥ below under most < ≤ per
    than step top first last question figure twice double triple half ranked ranks rank number
    place""")
DISTANCES = COMPARED | words("""points percentage pp times x countries bars categories values groups
    colors colours lines options items""")
ADVERBS = words("only just about approximately roughly around nearly almost exactly some")
CHANGED = COMPARED | words("""fell fall falls rose rise rises rising grew grow grows
    increased
    increases decreased decreases declined declines dropped drops changed reduced differ differs
    divided divide dividing multiplied multiply multiplying leads ahead behind up down""")

# What is asked or denied is not stated: "is A 3?", "A never has 3", "that A is 3 is wrong".
ASKING = words("""is are was were does do did can could would should what which whether suppose
    assume assuming imagine""")
DENYING = words("not never neither nor cannot hardly without nobody doubt deny denies unlikely ≠")
FALSE = words("false wrong untrue incorrect mistaken impossible myth")
STANDING = words(", : ; = but and only than") | BREAKS  # behind these a "not" denies no more

# Words that are no names: what a chart, a step or a result is called.
LINKS = words("= : | is are was were has had at ( shows reaches")
WRITTEN = words("* _ ` \" ' ” ’")  # around a name
FOLLOWING = words("percent per and or but while whereas with so % ) , ; . : | !") | {"\n", ""}
# Around a pair in a list.
PARTED = words(", ; | * - – • ( . :") | {"\n", "and", "then", "also", "while", "but", ""}
NAMELESS = STOP | words(
    """according adding again among answer answers approximately around average axis bar bars based
    between bottom calculate calculated calculation category chart check color colour combined
    compare comparison conclusion count data date difference divide dividing during either equal
    equals estimate everything figure final finally find gap given goal graph group hence high
    higher highest himself however increase label last least left legend line look looking low
    lower lowest max maximum mean means median middle min minimum none note number numbers
    observation others overall percent percentage pie point points product range rank ratio
    reading reasoning respectively rest result results right same scale second segment series
    share since slice source subtract subtracting sum table therefore third three title top total
    totals trend true two unit units value values year years yes"""
)

# ---- the names and values of a clause -----------------------------------------------------------


@dataclass
class Mention:
    """A name or a value, where it is in a text."""

    kind: int | None  # 0 row (or the whole name), 1 column, None value
    part: object  # the words of the name; the value's number, or its words
    start: int  # in tokens
    end: int  # exclusive


@dataclass
class Clause:
    """What a clause mentions, in its order."""

    mentions: list = field(default_factory=list)
    asked: bool = False
    denied: bool = False  # it says that something is false


class Reader:
    """Reads a text clause by clause; facts as in claims.claimed_facts."""

    def __init__(self, text: str, facts):
        self.tokens = tokenize(text)
        self.texts = [token.text for token in self.tokens]
        self.chart = read_chart(tuple(tuple(map(str, fact)) for fact in facts))
        self.clause = Clause()
        self.named = set()  # the tokens that belong to names

    def clauses(self):
        """Yields each Clause: its names, and values read off and neither computed nor denied."""
        i, computed = 0, False
        while i < len(self.tokens) - len(PADDING):
            clause, token, text, end = self.clause, self.tokens[i], self.texts[i], i + 1
            name = ()
            if token.word in self.chart.spellings:
                stop, name = find_name(self.tokens, i, self.chart.spellings)
            if name:
                clause.mentions += [Mention(kind, part, i, stop) for kind, part in name]
                self.named.update(range(i, stop))
                end = stop
            elif self.is_break(i):
                clause.asked = clause.asked or text == "?"
                yield clause
                self.clause, computed = Clause(), False
            elif text in RESULTS or self.is_operator(i):
                computed = True
            elif text in TRENDS and len(clause.mentions) != 1:
                computed = True
            elif token.value is not None:
                if computed and self.texts[i - 1] in COPULAS:
                    computed = False
                elif not self.is_denied(i):
                    self.add_value(Mention(None, token.value, i, end))
            elif text in ASKING and not clause.mentions and (i == 0 or self.is_break(i - 1)):
                clause.asked = True
            clause.denied = clause.denied or text in FALSE
            i = end
        yield self.clause

    def add_value(self, value: Mention) -> None:
        """Adds a value that is stated, with the name that it brings along."""
        i = value.start
        adjacent = i - 1 in self.named or i - 2 in self.named and not self.tokens[i - 1].word
        if not self.is_stated(value, adjacent):
            return
        start, end = (i, i) if adjacent else self.unknown_name(value)
        if start < end:
            text = " ".join(token.raw for token in self.tokens[start:end])
            self.clause.mentions.append(Mention(0, (UNKNOWN, text), start, end))
            self.named.update(range(start, end))
        self.clause.mentions.append(value)

    def is_break(self, i: int) -> bool:
        """Whether a clause ends at token i: not at the stop of "U.S." or of "Vinyl?" = 4."""
        text, before = self.texts[i], self.texts[i - 1]
        if text not in BREAKS or text in ".?!" and self.texts[i + 1] in NAME_ENDS:
            return False
        return text != "." or not (len(before) == 1 and before.isalpha())

    def is_operator(self, i: int) -> bool:
        """Whether token i computes: a word does, a mark between operands ("A - 5" has a dash)."""
        token, before, behind = self.tokens[i], self.tokens[i - 1], self.tokens[i + 1]
        if token.text not in OPERATORS or token.word:
            return token.text in OPERATORS
        left = before.value is not None or before.word and behind.value is None
        right = behind.value is not None or behind.word in self.chart.spellings
        return bool(right and (left or token.text not in "-–*/"))

    def is_denied(self, i: int) -> bool:
        """Whether a "not" before the number at token i denies it."""
        for k in range(i - 1, max(-1, i - 10), -1):
            text = self.texts[k]
            if k not in self.named and (text in DENYING or text.endswith(("n't", "n’t"))):
                return True
            if text in STANDING or self.tokens[k].value is not None:
                return False
        return False

    def is_stated(self, value: Mention, adjacent: bool) -> bool:
        """Whether a number can be a name's value; `adjacent`: it is right behind one."""
        i = value.start
        before = [text for text in self.texts[max(0, i - 8) : i] if text not in ADVERBS]
        nearest = before[-1] if before else ""
        percent = self.texts[value.end] == "%"
        j = value.end + percent
        behind = self.texts[j]
        if behind in DISTANCES and not find_name(self.tokens, j, self.chart.spellings)[1]:
            return False
        if nearest in NOT_BEFORE or "between" in before:
            return adjacent
        if nearest == "by" and not CHANGED.isdisjoint(before):
            return False
        return adjacent or percent or not YEAR.fullmatch(self.texts[i])

    # ---- names that the picture hasn't ----------------------------------------------------------

    def unknown_name(self, value: Mention) -> tuple[int, int]:
        """[start, end) of the name that a value has and the picture hasn't, or an empty range.

        "Estonia is 5", or one of a list beside the picture's own names: "Latvia 3.0, estonia 5".
        """
        i, nothing = value.start, (value.start, value.start)
        j = value.end + (self.texts[value.end] == "%")
        if not self.chart.open or self.texts[j] not in FOLLOWING:
            return nothing
        linked = self.texts[i - 1] in LINKS
        end = i - linked
        while end > 0 and self.texts[end - 1] in WRITTEN:
            end -= 1
        start = end
        while start > max(0, end - 4) and start - 1 not in self.named:
            token = self.tokens[start - 1]
            if not token.word or token.value is not None or token.text in NAMELESS:
                break
            start -= 1
        if linked and all(token.raw[0].isupper() for token in self.tokens[start:end]):
            return start, end
        k = start - 1
        if self.texts[k] not in PARTED | WRITTEN:
            return nothing
        while k > 0 and self.texts[k] in PARTED | {"%"}:
            k -= 1
        follows = k - 1 - (self.texts[k - 1] in LINKS) in self.named
        return (start, end) if follows and self.tokens[k].value is not None else nothing
