"""Which operation leads from the facts to the answer: the refiner's Reasoning, by rules.

The value or name with the highest or lowest value, a comparison, a sum, mean, difference or ratio:
stated only where the numbers show it. Left out: anything of two steps; the refiner then states the
facts and the result without a reason, since invented arithmetic would be memorized.
"""

import math
import re

from data.example import fact_name, fact_value
from lib.answers import read_value
from lib.claims import words

HIGHEST = words("highest most largest maximum max biggest greatest top")
LOWEST = words("lowest least smallest minimum min fewest bottom")
MORE = words("more higher greater larger above exceed exceeds")
LESS = words("less lower fewer smaller below")
SUM = words("sum total combined together add added adding")
MEAN = words("average mean")
RATIO = words("ratio times divide divided quotient")
DIFFERENCE = words("difference gap differ subtract minus")
# with one of these words, more than the highest or lowest value is asked for
BESIDES = SUM | MEAN | RATIO | DIFFERENCE | words("second third median")


def shows(fact, answer):
    """Whether the answer is this fact's value, or its name or the row or column in it."""
    value, names = read_value(fact_value(fact)), (fact_name(fact), *fact[:-1])
    if value is not None and value == read_value(answer):
        return True
    return answer.casefold() in [name.casefold() for name in names]


def derive(question, facts, answer):
    """(goal, reasoning): what is done with the facts; "" where the numbers don't show it.

    An operation is stated only if its result is the answer to the digits given, and the question's
    words ask for it; the sum or difference of two facts needs no word.
    """
    nothing = ("read what the chart shows", "")
    asked = set(re.findall("[a-z]+", question.casefold()))
    values = [read_value(fact_value(fact)) for fact in facts]
    if not values or None in values:
        return nothing
    if len(values) == 1 and values[0] == read_value(answer):
        return f"find {fact_name(facts[0])}", f"{fact_name(facts[0])} is {answer}"
    found = find_extreme(facts, values, asked, answer)
    found = found or find_relation(question, facts, values, asked, answer)
    return found or find_result(facts, values, asked, answer) or nothing


def find_extreme(facts, values, asked, answer):
    """The highest or lowest value, or the name that has it, as (goal, reasoning); else None."""
    two = len(facts) == 2
    for place, value, asking in (
        ("highest", max(values), HIGHEST | MORE if two else HIGHEST),
        ("lowest", min(values), LOWEST | LESS if two else LOWEST),
    ):
        best = [fact for fact, found in zip(facts, values) if found == value]
        if not asked & asking or asked & BESIDES or not shows(best[0], answer):
            continue
        if value == read_value(answer):
            return f"find the {place} value", f"the {place} value is {answer}"
        if len(best) == 1:
            return (
                f"find the {place}",
                f"the {place} value is {fact_value(best[0])}, so it is {answer}",
            )
    return None


def find_relation(question, facts, values, asked, answer):
    """Yes or no to "has the first name more (less) than the second", as (goal, reasoning)."""
    if len(facts) != 2 or bool(asked & MORE) == bool(asked & LESS):
        return None
    places = [question.casefold().find(fact_name(fact).casefold()) for fact in facts]
    if -1 in places:
        return None
    first, second = (0, 1) if places[0] < places[1] else (1, 0)
    difference = values[first] - values[second]
    holds = difference > 0 if asked & MORE else difference < 0
    if answer.casefold() != ("yes" if holds else "no"):
        return None
    relation = "more than" if difference > 0 else "less than" if difference else "equal to"
    one, other = fact_value(facts[first]), fact_value(facts[second])
    return "compare the two", f"{one} is {relation} {other}, so {answer}"


def find_result(facts, values, asked, answer):
    """The sum, mean, ratio or difference that is the answer, as (goal, reasoning); else None."""
    result, written = read_value(answer), list(map(fact_value, facts))
    if result is None or len(values) < 2:
        return None
    rounding = 0.5 * 10.0 ** -min(len(answer.rstrip("%").partition(".")[2]), 9) * (1 + 1e-9)
    two = len(values) == 2 and result not in values
    low, high = written[values.index(min(values))], written[values.index(max(values))]
    total = " + ".join(written)
    candidates = [
        ("average", asked & MEAN, sum(values) / len(values), f"({total}) / {len(values)}"),
        ("sum", asked & SUM or two, sum(values), total),
        ("difference", asked & DIFFERENCE or two, max(values) - min(values), f"{high} - {low}"),
    ]
    for over, under in ((0, 1), (1, 0)) if len(values) == 2 else ():
        quotient = values[over] / values[under] if values[under] else math.inf
        how = f"{written[over]} / {written[under]}"
        candidates.append(("ratio", asked & RATIO, quotient, how))
    for name, wanted, value, how in candidates:
        if wanted and abs(value - result) <= rounding:
            return f"find the {name}", f"{how} = {answer}"
    return None
