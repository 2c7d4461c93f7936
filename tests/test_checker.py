"""Answers, claims, rewards and refined traces: checker.py, lib/answers, claims, derive, names."""

import json
import random
import re
from operator import eq
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from checker import Rules, format_reward, refine, score, thinking_lines, visual_checker
from data.charts import COLOURS, explain, load_charts
from data.example import Example, InputError
from lib.answers import extract_answer
from lib.claims import claimed_facts, locate_claims
from lib.names import COLOURS as NAMED, mentioned_facts, read_value

COUNTRIES = [("Latvia", "3.0"), ("Portugal", "8.9"), ("Romania", "13.0")]
BARS = [("black", "6"), ("orange", "4"), ("red", "3"), ("cyan", "9")]
SURVEY = [("2015", "Limit its role", "68"), ("2015", "Play a role", "23")]
SURVEY += [("2016", "Limit its role", "62"), ("2016", "Play a role", "29")]
with open(Path(__file__).with_name("test_claims.jsonl"), encoding="utf-8") as file:
    ROWS = list(map(json.loads, file))


def bars_example(**changes):
    known = dict(question="Is black higher than red", answer="yes", facts=BARS)
    return Example(**{**known, "needed": [BARS[0], BARS[2]], "options": ["yes", "no"], **changes})


# ---- claims -------------------------------------------------------------------------------------

STATED = {  # of BARS
    "6 black 4 orange 3 red": "black 6; orange 4; red 3",
    "black 6 plus red 3 is 9 .": "black 6; red 3",
    "black 6, black = 6.0, and black (6)": "black 6",
    "both red and orange are 4": "red 4; orange 4",
    "The sum of black and red is 9. black + red = 9. orange fell by 2": "",
    "blackbird 6, infrared 3": "",
    "Black: 6\n- **orange**: 4%\n| red | 3 |": "black 6; orange 4; red 3",
    "Reasoning: min is 4 so orange. At last a green 9": "green 9",
}
ELSE = {  # of COUNTRIES: denied, guessed, of names that they haven't
    "Is Latvia 3.0? Latvia isn't 3.0, nor is Portugal at 8.9": "",
    "Latvia is 3.0, not 4.0. Portugal is not 8.9 but 4.0": "Latvia 3.0; Portugal 4.0",
    "Latvia is 3.0, 9 or 8": "Latvia 3.0 , 9 or 8",  # one wrong claim
    "Latvia 3.0 million, Portugal 8.9m": "Latvia 3.0; Portugal 8.9",  # the unit
    "Latvia 3.0, estonia 5, Romania 13.0": "Latvia 3.0; estonia 5; Romania 13.0",
    "- **Estonia**: 5\n- Latvia: 3.0": "Estonia 5; Latvia 3.0",
    "The median is 8.9. Max is 13.0. Step 2: Sum = 11.9": "",
}
TABLES = [  # all of SURVEY
    "In 2015, 68% wanted to limit its role and 23% to play a role; 62% and 29% in 2016.",
    "||Limit its role|Play a role|\n|---|---|---|\n|2015|68|23|\n|2016|62|29|",
    "**2015**\n- Limit its role: 68\n- Play a role: 23\n"
    "**2016**\n- Limit its role: 62\n- Play a role: 29",
]
MANY = "A 1; I 2; May 3; P -4; Q 1200; U 12%; bag red; bag left; umbrella black"
MANY_TEXT = """A is 1, I is 2 and May is 3. I see a bar of 5 and a gap of 2, it may be 4. P is -4,
Q 1,200.0, U 12 %. The bag is red and on the left. A black umbrella."""
CASES = [(BARS, *item) for item in STATED.items()] + [(COUNTRIES, *item) for item in ELSE.items()]
CASES += [(SURVEY, text, "; ".join(map(" ".join, SURVEY))) for text in TABLES]
CASES += [([tuple(fact.rsplit(" ", 1)) for fact in MANY.split("; ")], MANY_TEXT, MANY)]


@pytest.mark.parametrize("facts, text, claims", CASES)
def test_what_is_claimed(facts, text, claims):
    assert "; ".join(map(" ".join, claimed_facts(text, facts))) == claims


@pytest.mark.parametrize("tuned, exact", [(True, 44), (False, 41)])  # of 45 and 47
def test_claims_agree_with_the_texts_read_by_hand(tuned, exact):
    def claims(pairs):
        return {(*names, read_value(value)) for *names, value in pairs}

    rows = [row for row in ROWS if row["tuned"] == tuned]
    found = [claims(claimed_facts(row["trace"], row["facts"])) for row in rows]
    wanted = [claims(row["claims"]) for row in rows]
    right = sum(len(f & w) for f, w in zip(found, wanted))
    assert right >= 0.95 * max(sum(map(len, found)), sum(map(len, wanted)))
    assert sum(map(eq, found, wanted)) >= exact


def test_where_a_claim_is_and_which_facts_a_question_mentions():
    found = locate_claims("black 6, then\norange (7)", BARS)
    assert found == [(("black", "6"), 6, 7), (("orange", "7"), 22, 23)]
    assert mentioned_facts("Who wants to play a role in 2016?", SURVEY) == [SURVEY[3]]
    assert mentioned_facts("What about 2015?", SURVEY) == SURVEY[:2]
    assert mentioned_facts("Which color is this?", SURVEY) == []


# ---- rewards ------------------------------------------------------------------------------------

NO_THINKING = """<think>\n</think>|<reasoning></reasoning>|<br>|# Thinking|**Step one: what I see**|
Here is my reasoning:|x|so so so|&nbsp;|...|1. 2. 3. 4.|Let's see.|<!-- see above now -->||"""
THINKING = "red 3|3+4=7|<think>It is red</think>|因为黑色|**It** is red|because I say"


def test_the_format_is_thinking_that_is_no_markup_and_one_answer():
    for thinking in [*NO_THINKING.split("|"), "<|im_start|>"]:
        assert format_reward(f"{thinking}\nAnswer: 5") == 0, thinking
    for thinking in THINKING.split("|"):
        assert format_reward(f"{thinking}\nAnswer: 5") == 1, thinking
        assert format_reward(f"{thinking}\nAnswer: 5", truncated=True) == 0
    for end in (" 5", "\nAnswer: **", "\nAnswer: 5\nAnswer: 5"):
        assert format_reward(f"because I say{end}") == 0, end


VAGUE = "Taking the mean of the three bars yields an overall average of approximately 8.3"
STEPS = """step 1 is to extract the values for Latvia, Portugal, and Romania: 3.0, 8.9, and 13.0,
respectively. Step 2 is to calculate the average of these values: (3.0 + 8.9 + 13.0) / 3 = 8.3"""
EVERY = ", ".join(f"{name} {value}" for name, value in BARS)
GROUNDED = {  # by the facts that are needed, black and orange
    "black 6, orange 4": 1,
    "black 6, orange 6": 0.5,  # a right number on a wrong name
    "black 4, orange 6": 0,
    EVERY: 2 * 2 / (4 + 2),  # more than the reference
    "black 6, orange 4, green 9, yellow 1, blue 3": 4 / 7,  # invented
    "black is 6 or 4, orange 4": 0.5,  # guessed
    "black orange red cyan 6 4 3": 0,
    "6 4 3 black orange": 0,
}


def test_thinking_is_paid_the_f1_of_its_claims():
    for thinking, reward in GROUNDED.items():
        assert visual_checker(thinking, BARS, BARS[:2]) == pytest.approx(reward), thinking
    assert visual_checker(VAGUE, COUNTRIES) == 0 and visual_checker(STEPS, COUNTRIES) == 1
    assert visual_checker("black 6", BARS, question="What is the value of black") == 1
    assert visual_checker("black 6", BARS, trace="black 6, red 3") == pytest.approx(2 / 3)


def test_true_traces_of_the_charts_score_1_and_noisy_ones_0_until_they_are_refined():
    assert NAMED is COLOURS
    rng = np.random.default_rng(0)
    noisy = load_charts("train", size=120, trace_noise=1.0)
    for example, clean in zip(noisy, load_charts("train", size=120)):
        known = (example.facts, example.needed)
        assert visual_checker(example.trace, *known) == 0, example.trace
        assert refine(example) == clean.trace
        for text in (clean.trace, explain(rng, example.task, example.needed, example.answer)):
            assert visual_checker(text, *known) == 1, text


def test_without_facts_the_words_of_the_trace_are_the_measure_else_format_and_answer():
    trace = "The dog chases a red ball in the park."
    assert visual_checker("A dog and the red ball, in this park: it chases", [], trace=trace) == 1
    assert visual_checker("A dog", [], trace=trace) == pytest.approx(2 / 6)
    for trace, total in {None: 4, "It is a dog": 4, "Something else": 2}.items():
        example = Example(answer="dog", trace=trace)
        rewards = score(["It is a dog.\nAnswer: dog"], example, reward_weights=(1, 1, 2))
        assert rewards["total"] == total


def test_rewards_of_a_group():
    good = "black 6, red 3\nAnswer: yes"
    texts, cut = [good, "Answer: yes", "black 6\nAnswer: no", good], [False, False, False, True]
    rewards = score(texts, bars_example(), truncated=cut, reward_weights=(0.5, 1, 2))
    assert rewards["format"].tolist() == [1, 0, 1, 0]
    assert rewards["accuracy"].tolist() == [1, 1, 0, 1]
    assert rewards["thinking"].tolist() == pytest.approx([1, 0, 2 / 3, 1])
    assert rewards["total"].tolist() == pytest.approx([3.5, 0, 0.5 + 4 / 3, 0])
    assert rewards["correct"].tolist() == [True, False, False, False]
    assert score(["It is 5\nAnswer: 1200"], bars_example(answer="$1,200."))["correct"].item()


PIECES = (
    "black orange 65+ yes 2015 Limit its role 6 12% 1,200 -3 1e999 nan ٣ ² ½ １２ = + - / ( ) ."
)
PIECES += " | , answer Answer: <answer> or both by of U.S. ’s ﬁ İ ß _ ** \x00 \ud800"


def test_scores_of_random_text_are_in_range():
    rng = random.Random(0)

    def text(most):
        return "".join(rng.choices([*PIECES.split(" "), "\n", " ", " "], k=rng.randrange(most)))

    for _ in range(400):
        facts = [(text(4), text(2)) for _ in range(3)]
        facts = rng.choice((facts, facts + BARS, SURVEY, facts + SURVEY, []))
        example = Example(question=text(5), answer=text(3), facts=facts, trace=text(9))
        rewards = score([text(40), text(40), f"{refine(example)}\nAnswer: 3"], example)
        values = torch.stack([rewards[name] for name in ("format", "accuracy", "thinking")])
        assert ((values >= 0) & (values <= 1)).all(), example


LONG = "black 6, orange and cyan 4 or a number of others which are still to be read off "


# A regular expression that backtracks, or a scan per token, would take hours here.
@pytest.mark.parametrize(
    "piece", ["9", "a'", "*", "answer ", "black the ", "Limit, ", "both 2015 2016 role ", LONG]
)
def test_a_response_of_250_000_characters_is_scored(piece):
    text = piece * (250_000 // len(piece))
    facts = SURVEY if "i" in piece[:8] else BARS + [("the the the the one", "1")]
    assert score([text + "\nAnswer: yes"], bars_example(facts=facts))["total"].isfinite()


# ---- the refiner --------------------------------------------------------------------------------


def refined(question, answer, facts, **changes):
    return refine(Example(question=question, answer=answer, facts=facts, **changes))


TABLE = [("p", "x", "5"), ("p", "y", "1"), ("q", "x", "7"), ("q", "y", "9")]


SHOWN = """What is the sum of Latvia and Portugal?|11.9|3.0 + 8.9 = 11.9
How much more has Portugal than Latvia?|5.9|8.9 - 3.0 = 5.9
Portugal minus Latvia, as a share?|0.059|8.9 - 3.0 = 5.9, as a share 0.059
What is the average of the three?|8.3|(3.0 + 8.9 + 13.0) / 3 = 8.3
What is the median?|8.9|the middle of 3.0, 8.9, 13.0 = 8.9
The sum of the two largest?|21.9|13.0 + 8.9 = 21.9
Which has the highest value?|Romania|highest value is 13.0, so it is Romania
Which country has 8.9?|Portugal|Portugal is 8.9, so it is Portugal
How many are above 5?|2|Portugal 8.9, Romania 13.0 are more than 5, so it is 2
Is Latvia higher than Romania?|No|the first is less than the second, so No
Is the sum of Latvia and Portugal more than Romania?|no|3.0 + 8.9 = 11.9 and Rom
What is the difference between the largest and the smallest green bar?|8|9 - 1 = 8
What is the sum of Latvia and Portugal?|12.4|
Which has the second highest value?|Romania|
Is Romania more than twice Latvia?|Yes|
Is Latvia higher than Romania?|Yes|
What is the difference between the largest and the smallest green bar?|2|
Is the largest green bar more than 5?|Yes|"""


@pytest.mark.parametrize("line", SHOWN.splitlines())  # green: of a column that alone fits
def test_the_refiner_says_what_the_numbers_show(line):
    question, answer, reasoning = line.split("|")
    text = refined(question, answer, TABLE if "green" in question else COUNTRIES)
    assert text.startswith("Goal: ") and "\nObservation: " in text
    assert ("\nConclusion: the result is" in text) == bool(reasoning), text
    assert reasoning in text, text


def test_refined_text_is_grounded_and_concludes_nothing_from_cells_that_it_leaves_out():
    rng = random.Random(0)
    for row in ROWS:
        facts = [tuple(fact) for fact in row["facts"] if read_value(fact[-1]) is not None]
        needed = [facts[i] for i in sorted(rng.sample(range(len(facts)), 2))]
        text = refined("How much is it?", "77", facts, needed=needed)
        assert visual_checker(text, facts, needed) == 1.0, text
    assert extract_answer(refined("?", "4", [("No answer", "4"), ("Answer: a", "5")])) is None
    facts = [(f"a row with a long name {i}", str(i)) for i in range(99)]
    text = refined("Which has the highest value?", "a row with a long name 98", facts)
    assert text.endswith("Observation: a row with a long name 98 = 98.")
    for known in (facts, []):  # too many, or none
        assert refined("Which is it?", "none", known, trace="as it came") == "as it came"
        assert refined("Which is it?", "none", known) is None


def test_the_refiner_invents_no_arithmetic():
    rng = random.Random(0)
    words = "sum difference average ratio highest lowest more less total of the two bars".split()
    for _ in range(2000):
        facts = [(name, str(rng.randrange(1, 9))) for name, _ in BARS[: rng.randrange(1, 5)]]
        text = refined(" ".join(rng.choices(words, k=4)), str(rng.randrange(20)), facts)
        for left, right in re.findall(r"Reasoning: ([\d +/()-]* [\d +/()-]*) = (\d+)", text):
            assert abs(eval(left) - int(right)) <= 0.5, text
    assert "Reasoning" not in refined("Which is the highest?", "p", [("p", "3"), ("q", "3")])


def test_it_is_said_whose_thinking_earns_nothing_and_what_is_explained():
    examples = [Example(facts=BARS, answer="99"), Example(trace="x"), Example(), bars_example()]
    bare, explained = thinking_lines(examples)
    assert bare.startswith("2 of 4 examples have no facts") and explained.startswith("1 of 2 local")
    assert thinking_lines([bars_example()]) == []


# ---- the scorer of the loop ---------------------------------------------------------------------


def rules(path=None, refiner="local"):
    knobs = dict(reward=path, reward_weights=(1, 1, 1), refiner=refiner, tolerance=None)
    return Rules(SimpleNamespace(dataset="charts", **knobs))


def heard(scorer, *texts):
    responses = [SimpleNamespace(text=text, truncated=False) for text in texts]
    group = SimpleNamespace(example=bars_example(id="item-7"), responses=responses, rewards={})
    for g in reversed(range(len(texts))):
        scorer.hear(group, g)
    return group.rewards


def test_responses_heard_one_by_one_score_as_a_group_does():
    texts = ["black 6, red 3\nAnswer: yes", "black 6\nAnswer: no", "Answer: yes"]
    rewards, together = heard(rules(), *texts), score(texts, bars_example())
    assert {k: v.tolist() for k, v in rewards.items()} == {
        k: v.tolist() for k, v in together.items()
    }


COUNTING = "seen = []\ndef reward(*given):\n    seen.append(given)\n    return len(seen)"
FAILING = [f"def reward(*_): return {body}" for body in ("1 / 0", "float('nan')", "1e300")]


def test_a_reward_of_ones_own_is_called_once_per_response_and_named_where_it_fails(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(COUNTING)
    assert heard(rules(str(path)), "x\nAnswer: no", "x")["accuracy"].tolist() == [2, 1]
    for text in (*FAILING, "1 / 0", "reward = 1", "def reward(", "pass"):
        path.write_text(text)
        with pytest.raises(InputError, match="item-7" if text in FAILING else "own.py: "):
            heard(rules(str(path)), "x\nAnswer: no")


def test_the_memorized_thinking_is_refined_or_the_datas_own_or_none():
    group = SimpleNamespace(example=bars_example(trace="as it came"))
    assert rules().trace(group) == refine(group.example)
    assert rules(refiner="off").trace(group) == "as it came"
    assert rules().trace(SimpleNamespace(example=bars_example(instruction="in a word"))) is None
