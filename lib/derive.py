"""Which operation leads from the facts to the answer: the refiner's Reasoning, by rules.

A question's words ask for steps: a cell read off, the highest, a count, a sum, two of these
compared. A step is stated only where the cells shown give the answer by it, to its digits: invented
arithmetic would be memorized. Left out: colours and places, the second highest, longer derivations.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from statistics import mean, median
from typing import NamedTuple

from data.example import fact_name, fact_value
from lib.names import NUMBER, mentioned_facts, name_words, read_value, words

HIGHEST = words("""highest most largest maximum max biggest greatest top peak tallest longest
    leading popular""")
LOWEST = words("lowest least smallest minimum min fewest bottom shortest tiniest")
MORE = words("more higher greater larger bigger above over exceed exceeds")
LESS = words("less lower fewer smaller below under")
CHANGE = "difference gap differ subtract minus increase decrease change rise drop fall"
QUOTIENT = "ratio times divide divided quotient twice double half"
# What is found: the words that ask for it, how it is written, between which marks, reckoned how.
OPERATIONS = {
    "average": (words("average mean"), "({}) / {n}", " + ", mean),
    "median": (words("median"), "the middle of {}", ", ", median),
    "sum": (words("sum total combined together add added adding addition"), "{}", " + ", sum),
    "difference": (words(CHANGE), "{}", " - ", lambda pair: pair[0] - pair[1]),
    "ratio": (words(QUOTIENT), "{}", " / ", lambda pair: pair[0] / (pair[1] or math.nan)),
}
OF_TWO = ("difference", "ratio")
COUNTS = {"two": 2, "2": 2, "three": 3, "3": 3, "four": 4, "4": 4}
BEYOND = words("second 2nd third 3rd fourth 4th fifth 5th other others rest remaining")
# Which cells these mean only the picture shows: of a table they are looked for by column.
SEEN = words("""red green blue yellow orange purple pink brown gray grey black white navy light dark
    leftmost rightmost upper left right""")
GIVEN = re.compile(rf"(?<![\w.,]){NUMBER}(?!\w)")


class Step(NamedTuple):
    """What is done with facts; without reasoning where they are only observed."""

    facts: list
    goal: str = "read what the chart shows"
    reasoning: str = ""  # as `steps` has it up to the result: "3.0 + 8.9 =", "the highest value is"
    result: float = math.nan
    chosen: tuple = ()  # the one fact with this value, whose name may be the answer


def value(fact) -> float | None:
    """The number of a fact."""
    return read_value(fact_value(fact))


def ask(text: str, named: list) -> set[str]:
    """The words of a text that are no part of the names in it ("the value of Increase")."""
    names = " ".join(map(fact_name, named)).casefold()
    return set(re.findall(r"\w+", text)) - set(re.findall(r"\w+", names))


def relation(a: float, b: float) -> str:
    """How a compares with b."""
    return "more than" if a > b else "less than" if a < b else "equal to"


def shows(fact, answer: str) -> bool:
    """Whether the answer is this fact's value, its name, or the row or column in it."""
    if value(fact) is not None and value(fact) == read_value(answer):
        return True
    return name_words(answer) in [name_words(name) for name in (fact_name(fact), *fact[:-1])]


def derive(question: str, facts: list, answer: str) -> Step:
    """How the facts lead to the answer, without reasoning where no step does: of those that the
    question names, of all, of one row or column of a table alone (the question may mean a colour).
    """
    text, mentioned = question.casefold(), mentioned_facts(question, facts)
    numbers = [fact for fact in facts if value(fact) is not None]
    named = [fact for fact in mentioned if fact in numbers]
    lines = defaultdict(list)  # the rows and the columns
    for fact in numbers if all(len(fact) == 3 for fact in facts) else ():
        lines[0, fact[0]].append(fact)
        lines[1, fact[1]].append(fact)

    def find(scope):
        return next(filter(None, (conclude(s, answer) for s in steps(text, scope, named))), None)

    for scope in [named] if lines and SEEN & ask(text, mentioned) else [named, numbers]:
        if found := find(scope) or compare(text, scope, named, answer):
            return found
    fitting = [found for line in lines.values() if len(line) > 1 and (found := find(line))]
    return fitting[0] if len(fitting) == 1 else Step(mentioned or facts)


def conclude(step: Step, answer: str) -> Step | None:
    """A step that gives the answer, in words: reckoned to the answer's digits, or as a share."""
    wanted, near = read_value(answer), 0
    if step.reasoning.endswith("="):
        near = 0.5 * 10.0 ** -min(len(answer.rstrip("%").partition(".")[2]), 9) * (1 + 1e-9)
    if wanted is not None and abs(step.result - wanted) <= near:
        ending = answer
    # ChartQA's labels have percentages as shares: 16 - 13 = 3, as a share 0.03.
    elif near and abs(wanted or 1) < 1 and abs(step.result / 100 - wanted) < 1e-9:
        ending = f"{step.result:.10g}, as a share {answer}"
    elif step.chosen and shows(step.chosen, answer):
        ending = f"{fact_value(step.chosen)}, so it is {answer}"
    else:
        return None
    return step._replace(reasoning=f"{step.reasoning} {ending}")


def steps(text: str, facts: list, named: list) -> Iterator[Step]:
    """What a text may ask for of these facts, the likeliest first; named: those that it names."""
    asked = ask(text, named)
    if not facts or asked & BEYOND:
        return
    pair = len(facts) == 2  # of which more is the most
    high = asked & (HIGHEST | MORE if pair else HIGHEST)
    low = asked & (LOWEST | LESS if pair else LOWEST)
    ordered = sorted(facts, key=value, reverse=True)
    wanted = [name for name, (asking, *_) in OPERATIONS.items() if asked & asking]
    in_names = {word for fact in facts for word in fact_name(fact).split()}
    limits = {read_value(n) for n in GIVEN.findall(text) if n not in in_names} - {None}

    # ---- one fact, alone with its value: what is named, what has a value, the highest, the lowest
    values = list(map(value, facts))
    alone = [fact for fact in facts if values.count(value(fact)) == 1]
    for fact in alone if not wanted and (len(facts) == 1 or not (high or low)) else ():
        name, given = fact_name(fact), value(fact) in limits
        if facts == named or given:
            goal = f"find what is {fact_value(fact)}" if given else f"find {name}"
            yield Step([fact], goal, f"{name} is", value(fact), fact if given else ())
    for place, is_asked, best in (("highest", high, ordered[0]), ("lowest", low, ordered[-1])):
        if is_asked and len(facts) > 1 and not wanted:
            how = f"the {place} value is"
            yield Step(facts, f"find the {place}", how, value(best), best if best in alone else ())

    # ---- several: those at the ends, those beyond a limit, or all; counted or reckoned with
    several, is_so = facts, relation(bool(asked & MORE), bool(asked & LESS))
    if high and low:
        several = [ordered[0], ordered[-1]]
    elif (high or low) and not pair:
        count = next((COUNTS[word] for word in COUNTS if word in asked), 0)
        several = (ordered if high else ordered[::-1])[:count]
    for limit in limits:
        kept = [fact for fact in facts if relation(value(fact), limit) == is_so]
        several = kept or several
        if kept and "how many" in text:
            listed = ", ".join(f"{fact_name(fact)} {fact_value(fact)}" for fact in kept)
            how = f"{listed} are {is_so} {limit:.10g}, so it is"
            yield Step(kept, f"count those {is_so} {limit:.10g}", how, len(kept))
    if pair and facts == named:
        wanted = wanted or ["sum", "difference"]  # these need no word
    for name in wanted if len(several) > 1 else ():
        _, form, sign, function = OPERATIONS[name]
        if name in OF_TWO and len(several) != 2:
            continue
        for order in (several, several[::-1]) if name in OF_TWO else (several,):
            how = form.format(sign.join(map(fact_value, order)), n=len(order))
            yield Step(several, f"find the {name}", f"{how} =", function([*map(value, order)]))


def compare(text: str, facts: list, named: list, answer: str) -> Step | None:
    """Yes or no to "is this more (less) than that, or equal to it"; each side may be reckoned."""
    asked = ask(text, named)
    is_so = relation(bool(asked & MORE), bool(asked & LESS))
    ties = " (?:equal to|equals?|the same as) " if is_so == "equal to" else r" \w+ th[ae]n "
    sides = []  # the steps that each asks for
    for part in re.split(ties, text):
        number, mentioned = read_value(part.strip(" ?")), mentioned_facts(part, facts)
        given = [Step([], "", "the number given is", number)]
        asking = steps(part, mentioned or facts, mentioned)
        sides.append(given if number is not None else list(asking))
    if list(map(len, sides)) != [1, 1] or sides[0] == sides[1]:
        return None
    (one,), (other,) = sides
    found = relation(one.result, other.result)
    shown = [fact for fact in facts if fact in one.facts + other.facts]
    how = f"{one.reasoning} {one.result:.10g} and {other.reasoning} {other.result:.10g}: the first"
    how += f" is {found} the second, so {answer}"
    right = answer.casefold() == ("yes" if found == is_so else "no")
    return Step(shown, "compare the two", how) if right else None
