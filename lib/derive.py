"""Which operation leads from the facts to the answer: the refiner's Reasoning, by rules.

Read off, looked up by its value, the highest, second or lowest, counted, added, averaged, compared
and so on: stated only where the question's words ask for it and the cells shown give the answer, to
its digits. Left out: colours and places in the picture, anything of more than two steps. What isn't
found stays without a reason and a conclusion: invented arithmetic would be memorized.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from data.example import fact_name, fact_value
from lib.answers import read_value
from lib.claims import mentioned_facts
from lib.names import name_words, words

HIGHEST = words("""highest most largest maximum max biggest greatest top peak tallest longest
    leading popular""")
LOWEST = words("lowest least smallest minimum min fewest bottom shortest tiniest")
MORE = words("more higher greater larger bigger above over exceed exceeds")
LESS = words("less lower fewer smaller below under")
SUM = words("sum total combined together add added adding")
MEAN = words("average mean")
MEDIAN = words("median")
RATIO = words("ratio times divide divided quotient")
DIFFERENCE = words("difference gap differ subtract minus increase decrease change rise drop fall")
PRODUCT = words("product multiply multiplied")
OPERATIONS = SUM | MEAN | MEDIAN | RATIO | DIFFERENCE | PRODUCT
ORDINALS = {
    "second": 2,
    "2nd": 2,
    "third": 3,
    "3rd": 3,
    "fourth": 4,
    "4th": 4,
    "fifth": 5,
    "5th": 5,
}
COUNTS = {"two": 2, "three": 3, "four": 4, "five": 5}
NUMBER = re.compile(r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")
SHOWN = re.compile(
    r"\b(?:are there|(?:is|are) (?:shown|used|listed|represented|compared)|in (?:the|this) )"
)
# Which cells these mean only the picture shows: of a table they are looked for by column.
SEEN = words("""red green blue yellow orange purple pink brown gray grey black white navy light dark
    leftmost rightmost upper left right""")
OTHERS = words("other others rest remaining")
EQUALS = re.compile(r" th[ae]n | (?:equals?|equal to|the same as) ")


@dataclass
class Derived:
    """The facts that a trace observes, what it looks for, what it does with them ("": nothing)."""

    facts: list
    goal: str = "read what the chart shows"
    reasoning: str = ""


@dataclass
class Case:
    """A question about some of a picture's facts."""

    question: str  # in lower case
    asked: set  # its words
    facts: list  # whose values are numbers
    answer: str
    named: bool  # whether the question names these facts

    def value(self, fact) -> float:
        return read_value(fact_value(fact))

    def equation(self, how: str, result: float) -> str:
        """How a result is got, up to the answer, or "" where it isn't the answer to its digits.

        ChartQA's labels have percentages as shares: 16 - 13 = 3, as a share 0.03.
        """
        wanted = read_value(self.answer)
        if wanted is None or not math.isfinite(result):
            return ""
        near = 0.5 * 10.0 ** -min(len(self.answer.rstrip("%").partition(".")[2]), 9) * (1 + 1e-9)
        if abs(result - wanted) <= near:
            return f"{how} = {self.answer}"
        if abs(wanted) < 1 and abs(result / 100 - wanted) < 1e-9:
            return f"{how} = {write(result)}, as a share {self.answer}"
        return ""


def write(number: float) -> str:
    """A reckoned number, to four decimals."""
    return f"{round(number, 4):.15g}"


def shows(fact, answer: str) -> bool:
    """Whether the answer is this fact's value, its name, or the row or column in it."""
    value = read_value(fact_value(fact))
    if value is not None and value == read_value(answer):
        return True
    return name_words(answer) in [name_words(name) for name in (fact_name(fact), *fact[:-1])]


def derive(question: str, facts: list, answer: str) -> Derived:
    """How the facts lead to the answer; without reasoning where no rule finds it.

    It is looked for among the facts that the question names, then among all, then in each row and
    column of a table, of which one alone must fit: the question may mean a colour.
    """
    named = mentioned_facts(question, facts)
    asked = ask(question.casefold(), named)

    def find(scope, is_named, rules):
        numbers = [fact for fact in scope if read_value(fact_value(fact)) is not None]
        case = Case(question.casefold(), asked, numbers, answer, is_named)
        found = (rule(case) for rule in rules) if numbers else ()
        return next((derived for derived in found if derived), None)

    found = find(named, True, RULES) if named else None
    in_table = all(len(fact) == 3 for fact in facts)
    seen = in_table and asked & SEEN
    if found is None and len(named) != 1:
        found = find(facts, False, RULES[:1] if seen else RULES)
    if found is None and in_table:
        groups = {}
        for fact in facts:
            groups.setdefault((0, fact[0]), []).append(fact)
            groups.setdefault((1, fact[1]), []).append(fact)
        fitting = [find(group, False, RULES[:-1]) for group in groups.values() if len(group) > 1]
        fitting = [derived for derived in fitting if derived]
        found = fitting[0] if len(fitting) == 1 else None
    return found or Derived(named or facts)


def ask(question: str, named: list) -> set:
    """The words of a question that are no part of the names in it ("the value of Increase")."""
    names = " ".join(map(fact_name, named)).casefold()
    return set(re.findall(r"\w+", question)) - set(re.findall(r"\w+", names))


# ---- the rules: a Case to what it shows, or None ------------------------------------------------


def read_off(case):
    """The one fact that is asked for: its value, or the name that has a value."""
    numbers = [read_value(text) for text in NUMBER.findall(case.question)]
    shown = [fact for fact in case.facts if case.value(fact) == read_value(case.answer)]
    chosen = len(case.facts) > 1 and case.asked & (HIGHEST | LOWEST)
    if case.named and len(shown) == 1 and not chosen and not case.asked & OPERATIONS:
        name = fact_name(shown[0])
        return Derived(shown, f"find {name}", f"{name} is {case.answer}")
    having = [fact for fact in case.facts if case.value(fact) in numbers]
    if len(having) == 1 and shows(having[0], case.answer):
        value, name = fact_value(having[0]), fact_name(having[0])
        return Derived(
            having, f"find what is {value}", f"{value} is {name}, so it is {case.answer}"
        )
    return None


def extreme(case):
    """The highest or lowest value, the second and so on, or the name that has it."""
    if case.asked & OPERATIONS or len(case.facts) < 2:
        return None
    ordinal = next((ORDINALS[word] for word in ORDINALS if word in case.asked), 1)
    two = len(case.facts) == 2
    for place, asking, sign in (
        ("highest", HIGHEST | MORE if two else HIGHEST, -1),
        ("lowest", LOWEST | LESS if two else LOWEST, 1),
    ):
        ordered = sorted(case.facts, key=lambda fact: sign * case.value(fact))
        if not case.asked & asking or len(ordered) < ordinal:
            continue
        best = ordered[ordinal - 1]
        same = [fact for fact in case.facts if case.value(fact) == case.value(best)]
        place = f"{'' if ordinal == 1 else ORDER[ordinal] + ' '}{place}"
        if case.value(best) == read_value(case.answer):
            return Derived(
                case.facts, f"find the {place} value", f"the {place} value is {case.answer}"
            )
        if len(same) == 1 and shows(best, case.answer):
            how = f"the {place} value is {fact_value(best)}, so it is {case.answer}"
            return Derived(case.facts, f"find the {place}", how)
    return None


ORDER = {number: word for word, number in reversed(ORDINALS.items()) if word.isalpha()}


def count(case):
    """How many there are, or how many are above, below or at a value."""
    if "how many" not in case.question or not case.answer.isdigit():
        return None
    for facts, what in selections(case):
        if what and len(facts) == int(case.answer):
            stated = ", ".join(f"{fact_name(fact)} {fact_value(fact)}" for fact in facts)
            return Derived(
                facts, f"count those {what}", f"{stated} are {what}, so it is {case.answer}"
            )
    for part in range(len(case.facts[0]) - 1) if SHOWN.search(case.question) else ():
        names = list(dict.fromkeys(fact[part] for fact in case.facts))
        if not case.named and len(names) == int(case.answer):
            return Derived(case.facts, "count them", f"{', '.join(names)}, so it is {case.answer}")
    return None


def reckon(case):
    """A sum, mean, median, difference, ratio or product of facts."""
    for facts, _ in selections(case):
        values, written = [case.value(f) for f in facts], [fact_value(f) for f in facts]
        if len(values) < 2:
            continue
        # The sum or difference of two facts needs no word.
        two = case.named and len(values) == 2 and read_value(case.answer) not in values
        high, low = (written[values.index(choose(values))] for choose in (max, min))
        total = " + ".join(written)
        results = [
            ("average", case.asked & MEAN, sum(values) / len(values), f"({total}) / {len(values)}"),
            ("median", case.asked & MEDIAN, median(values), f"the middle of {', '.join(written)}"),
            ("sum", case.asked & SUM or two, sum(values), total),
            ("product", case.asked & PRODUCT, math.prod(values), " * ".join(written)),
        ]
        if len(values) == 2:
            how = f"{high} - {low}"
            gap = case.asked & DIFFERENCE or two
            results.append(("difference", gap, max(values) - min(values), how))
            for over, under in ((0, 1), (1, 0)):
                quotient = values[over] / values[under] if values[under] else math.inf
                how = f"{written[over]} / {written[under]}"
                results.append(("ratio", case.asked & RATIO, quotient, how))
        for name, wanted, result, how in results:
            if wanted and case.equation(how, result):
                return Derived(facts, f"find the {name}", case.equation(how, result))
    return None


def selections(case):
    """Which facts a question may want reckoned with: (facts, what they have in common or "")."""
    ordered = sorted(case.facts, key=case.value, reverse=True)
    high, low = bool(case.asked & HIGHEST), bool(case.asked & LOWEST)
    if high and low:
        yield [ordered[0], ordered[-1]], ""
    names = {part for fact in case.facts for part in fact[:-1]}
    numbers = [number for number in NUMBER.findall(case.question) if number not in names]
    for word in [*numbers, *COUNTS]:
        n = COUNTS.get(word) or (int(word) if word.isdigit() and word in case.asked else 0)
        if word in case.asked and 1 < n < len(ordered):
            if high and low and 2 * n < len(ordered):
                yield ordered[:n] + ordered[-n:], ""
            if high != low:
                yield ordered[:n] if high else ordered[-n:], ""
            if case.asked & {"first", "last"}:
                yield case.facts[:n] if "first" in case.asked else case.facts[-n:], ""
    for number in numbers:
        limit = read_value(number)
        if case.asked & (MORE | {"than"}) and not case.asked & LESS:
            yield [fact for fact in case.facts if case.value(fact) > limit], f"above {number}"
        elif case.asked & LESS:
            yield [fact for fact in case.facts if case.value(fact) < limit], f"below {number}"
        else:
            yield [fact for fact in case.facts if case.value(fact) == limit], f"at {number}"
    if not high and not low:
        yield case.facts, ""


def compare(case):
    """Yes or no to "is this more (less) than that, or equal to it"; each side may be reckoned."""
    one, _, other = EQUALS.sub(" than ", case.question).partition(" than ")
    more, less = bool(case.asked & MORE), bool(case.asked & LESS)
    if not other and not more | less and len(numbers := NUMBER.findall(one)) == 1:
        one, other = one.replace(numbers[0], ""), numbers[0]  # "is the value of A 52?"
    if not other or more and less or case.answer.casefold() not in ("yes", "no"):
        return None
    left, how, facts = side(case, one, case.facts)
    right, than, others = side(case, other, [fact for fact in case.facts if fact not in facts])
    if left is None or right is None or not facts or facts == others:
        return None
    holds = left > right if more else left < right if less else left == right
    if case.answer.casefold() != ("yes" if holds else "no"):
        return None
    relation = "more than" if left > right else "less than" if left < right else "equal to"
    facts = [fact for fact in case.facts if fact in facts + others]
    return Derived(facts, "compare the two", f"{how} is {relation} {than}, so {case.answer}")


def side(case, text, rest):
    """(value, how it is got, facts) of one side of a comparison; the value None: not found."""
    named = [fact for fact in mentioned_facts(text, case.facts) if fact in case.facts]
    asked = ask(text, named)
    others = [] if named or not asked & OTHERS else rest
    inner = Case(text, asked, named or others or case.facts, case.answer, bool(named or others))
    numbers = NUMBER.findall(text)
    if numbers and not named and not asked & (OPERATIONS | HIGHEST | LOWEST):
        return read_value(numbers[0]), numbers[0], []
    for facts, _ in selections(inner) if asked & (SUM | MEAN | MEDIAN) else ():
        if len(facts) > 1 and (inner.named or not asked & SUM or len(facts) < len(case.facts)):
            values, listed = [case.value(fact) for fact in facts], [*map(fact_value, facts)]
            if asked & MEDIAN:
                return median(values), f"the median {write(median(values))}", facts
            total = sum(values) / (len(values) if asked & MEAN else 1)
            how = f"({' + '.join(listed)}) / {len(values)}" if asked & MEAN else " + ".join(listed)
            return total, f"{how} = {write(total)}", facts
    if asked & HIGHEST or asked & LOWEST:
        choose = max if asked & HIGHEST else min
        named = [choose(inner.facts, key=case.value)]
    if len(named) == 1 and not asked & OPERATIONS:
        return case.value(named[0]), fact_value(named[0]), named
    return None, "", []


RULES: list[Callable] = [read_off, extreme, count, reckon, compare]
