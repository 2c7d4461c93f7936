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

from checker import Rules, format_reward, refine, score, thinking_lines, unmatchable, visual_checker
from data.charts import COLOURS, explain, load_charts
from data.example import Example, InputError
from lib.answers import extract_answer, grade, relaxed_accuracy
from lib.claims import claimed_facts, locate_claims

from lib.names import COLOURS as NAMED, clean_answer, mentioned_facts, read_value

COUNTRIES = [("Latvia", "3.0"), ("Portugal", "8.9"), ("Romania", "13.0")]
BARS = [("black", "6"), ("orange", "4"), ("red", "3"), ("cyan", "9")]
SURVEY = [("2015", "Limit its role", "68"), ("2015", "Play a role", "23")]
SURVEY += [("2016", "Limit its role", "62"), ("2016", "Play a role", "29")]
BAGS = [("bag", "red"), ("bag", "left"), ("umbrella", "black")]
LINES = Path(__file__).with_name("test_claims.jsonl").read_text(encoding="utf-8").splitlines()
ROWS = [json.loads(line) for line in LINES]


def bars_example(**changes):
    known = dict(question="Is black higher than red", answer="yes", facts=BARS)
    return Example(**{**known, "needed": [BARS[0], BARS[2]], "options": ["yes", "no"], **changes})


# ---- answer and format --------------------------------------------------------------------------

MARKED = {"x\n**Answer**: **$1,200.**": "1200", 'x. ANSWER : "Don\'t know"': "Don't know"}
MARKED |= {"x Answer:\n42\nand more": "42", "x <answer>yes</answer>": "yes", "x <answer>5": ""}
MARKED |= dict.fromkeys(["the answers: 5", "Answer: 5 Answer: 5", "<answer>5</answer> Answer: 5"])


def test_the_answer_is_behind_the_one_marker():
    assert {response: extract_answer(response) for response in MARKED} == MARKED


def test_cleaning_twice_is_cleaning_once():
    rng = random.Random(0)
    for _ in range(2000):
        text = "".join(rng.choices("15,.%$*_`'\"“ [a\n", k=rng.randrange(9)))
        assert clean_answer(clean_answer(text)) == clean_answer(text), repr(text)


NO_THINKING = """<think>\n</think>|<reasoning></reasoning>|<br>|# Thinking|**Step one: what I see**|
Here is my reasoning:|x|so so so|&nbsp;|...|1. 2. 3. 4.|Let's see.|<!-- see above now -->||"""
THINKING = "red 3|3+4=7|<think>It is red</think>|因为黑色|**It** is red|because I say"


@pytest.mark.parametrize(
    "response, reward",
    [
        *((f"{thinking}\nAnswer: 5", 0) for thinking in [*NO_THINKING.split("|"), "<|im_start|>"]),
        *((f"{thinking}\nAnswer: 5", 1) for thinking in THINKING.split("|")),
        ("because I say <answer>5</answer>", 1),
        *((f"because I say{end}", 0) for end in (" 5", "\nAnswer: **", "\nAnswer: 5\nAnswer: 5")),
    ],
)
def test_the_format_is_thinking_that_is_no_markup_and_one_answer(response, reward):
    assert format_reward(response) == reward
    assert format_reward(response, truncated=True) == 0.0


# by relaxed accuracy: target=prediction, the target being the denominator
RIGHT = """Abc=abc  96%=100%  0.96=100%  105.1=100  100=95  0=0.0  [3,4]=4,3  [5,6]=[6,€5]  ٣=3
naïve=Naïve  [Men,Women]=women,men  [100,106]=[104,100]"""
WRONG = """94%=100%  0.94=100%  Won't=Don't  100=105.1  0=0.01  -5=5  =  nan=nan  inf=inf
1e999=1e999  10=1_0  [3,4]=[3,4,4]  [3,3]=[3,4]  [100,106]=[100,100]"""


@pytest.mark.parametrize(
    "pair, right", [(p, True) for p in RIGHT.split()] + [(p, False) for p in WRONG.split()]
)
def test_relaxed_accuracy(pair, right):
    target, prediction = pair.split("=")
    assert relaxed_accuracy(target=target, prediction=prediction) is right


@pytest.mark.parametrize(
    "kind, target, answers",
    [
        ("decision", "yes", {"Yes.": 1, "no": 0, "yes or no": 0, "": 0}),
        ("letters", "A, C", {"C and A": 1, "AC": 1, "A A": 0.2, "A, B": 0, "A, C, E": 0, ",": 0}),
        ("box", "10,10,20,20", {"[11, 10, 21, 20]": 1, "10,10,20,15": 0}),
        ("labels", "red, blue", {"Blue; RED": 1, "red, red": 0.5, "red, green": 1 / 3, ",,": 0}),
        ("text", "12", {"12.0": 1, "12.1": 0, "": 0, "twelve or 13": 0}),
    ],
)
def test_answers_are_graded_by_the_kind_that_is_asked_for(kind, target, answers):
    example = Example(answer=target, kind=kind)
    assert {answer: grade(example, answer) for answer in answers} == pytest.approx(answers)
    assert grade(example, None) == 0.0


WRITTEN = {"-5": "−5|– 5|-$5", "5": "US$5|€5|5 €|EUR 5|5.", "12%": "12 percent|12 ％|12 %"}
WRITTEN |= {"1250": "1\u202f250|1 250|1,250", "1250.5": "1\u00a0250.5", "1234": "1’234"}
WRITTEN |= {"12": "１２", "12 34": "12 34"}


@pytest.mark.parametrize("plain", WRITTEN)
def test_answers_are_numbers_as_people_write_them(plain):
    assert {clean_answer(text) for text in [plain, *WRITTEN[plain].split("|")]} == {plain}


def test_any_of_several_answers_is_right():
    example = Example(answer="x", answers=["x", "tennis racket"])
    assert [grade(example, text) for text in ("Tennis racket.", "x", "ball")] == [1, 1, 0]
    assert not grade(Example(answer="A", options=["B", "A"]), "B")  # an option's text, no letter


def test_labels_that_no_response_can_match_are_found():
    bad = ["red\nblue", "nan", "Infinity", "...", "[]", "Answer: 5"]
    good = ["5", "12 %", "[3, 4]", "€5", "Don't know", "No.", "因为", "+", "$", "a\u2028b"]
    examples = [Example(answer=answer) for answer in bad + good]
    assert [example.answer for example in unmatchable(examples)] == bad


# ---- claims -------------------------------------------------------------------------------------


def test_the_project_pages_two_traces_score_0_and_1():
    vague = """the values represented by the three bars can be directly observed. Taking their
mean yields an overall average of approximately 8.3"""
    grounded = """step 1 is to extract the values for Latvia, Portugal, and Romania: 3.0, 8.9, and
13.0, respectively. Step 2 is to calculate the average of these values: (3.0 + 8.9 + 13.0) / 3"""
    assert visual_checker(vague, COUNTRIES) == 0.0
    assert visual_checker(grounded.replace("\n", " ") + " = 8.3", COUNTRIES) == 1.0


STATED = {  # of BARS
    "6 black 4 orange 3 red": ["black 6", "orange 4", "red 3"],
    "black 6 plus red 3 is 9 .": ["black 6", "red 3"],
    "black 6, black = 6.0, and black (6)": ["black 6"],
    "both red and orange are 4": ["red 4", "orange 4"],
    "The sum of black and red is 9. black + red = 9. orange fell by 2": [],
    "blackbird 6, infrared 3": [],
    "Black: 6\n- **orange**: 4%\n| red | 3 |": ["black 6", "orange 4", "red 3"],
    "Reasoning: min is 4 so orange. At last a green 9": ["green 9"],
}
ELSE = {  # of COUNTRIES: denied, guessed, of names that they haven't
    "Is Latvia 3.0? Latvia isn't 3.0, nor is Portugal at 8.9": [],
    "Latvia is 3.0, not 4.0. Portugal is not 8.9 but 4.0": ["Latvia 3.0", "Portugal 4.0"],
    "Latvia is 3.0, 9 or 8": ["Latvia 3.0 , 9 or 8"],  # one wrong claim
    "Latvia 3.0 million, Portugal 8.9m": ["Latvia 3.0", "Portugal 8.9"],  # the unit
    "Latvia 3.0, estonia 5, Romania 13.0": ["Latvia 3.0", "estonia 5", "Romania 13.0"],
    "- **Estonia**: 5\n- Latvia: 3.0": ["Estonia 5", "Latvia 3.0"],
    "The median is 8.9. Max is 13.0. Step 2: Sum = 11.9": [],
}


@pytest.mark.parametrize(
    "facts, thinking, claims",
    [(BARS, *item) for item in STATED.items()] + [(COUNTRIES, *item) for item in ELSE.items()],
)
def test_what_is_claimed(facts, thinking, claims):
    assert [" ".join(claim) for claim in claimed_facts(thinking, facts)] == claims


WEAK = [("A", "1"), ("I", "2"), ("May", "3")]
TABLES = ["In 2015, 68% wanted to limit its role and 23% to play a role; 62% and 29% in 2016."]
TABLES += ["| | Limit its role | Play a role |\n|---|---|---|\n|2015|68|23|\n|2016|62|29|"]
TABLES += ["| | 2015 | 2016 |\n|---|---|---|\n|Limit its role|68|62|\n|Play a role|23|29|"]
LISTED = "**{}**\n- Limit its role: {}\n- Play a role: {}\n"
TABLES += [LISTED.format(2015, 68, 23) + LISTED.format(2016, 62, 29)]


@pytest.mark.parametrize(
    "text, facts",
    [
        ("P is -4, Q 1,200.0, U 12 %", [("P", "-4"), ("Q", "1200"), ("U", "12%")]),
        ("A is 1, I is 2 and May is 3. I see a bar of 5 and a gap of 2, it may be 4", WEAK),
        ("The bag is red and on the left. A black umbrella.", BAGS),
        *((table, SURVEY) for table in TABLES),
    ],
)
def test_every_fact_is_claimed_however_it_is_written(text, facts):
    known = SURVEY if len(facts[0]) == 3 else facts
    assert sorted(claimed_facts(text, known)) == sorted(facts)


def test_claims_agree_with_the_texts_read_by_hand():
    def claims(pairs):
        return {(*names, read_value(value)) for *names, value in pairs}

    exact = 0
    for tuned in (True, False):
        rows = [row for row in ROWS if row["tuned"] == tuned]
        found = [claims(claimed_facts(row["trace"], row["facts"])) for row in rows]
        wanted = [claims(row["claims"]) for row in rows]
        right = sum(len(f & w) for f, w in zip(found, wanted))
        assert right >= 0.95 * max(sum(map(len, found)), sum(map(len, wanted))), tuned
        exact += sum(map(eq, found, wanted))
    assert exact >= 85 and 3 * len(rows) >= len(ROWS)  # of 92; a third isn't tuned on


def test_a_claim_is_located_at_its_value():
    text = "black 6, then\norange (7)"
    found = {text[start:end]: claim for claim, start, end in locate_claims(text, BARS)}
    assert found == {"6": ("black", "6"), "7": ("orange", "7")}


def test_the_facts_that_a_question_mentions():
    assert mentioned_facts("Who wants to play a role in 2016?", SURVEY) == [SURVEY[3]]
    assert mentioned_facts("What about 2015?", SURVEY) == SURVEY[:2]
    assert mentioned_facts("Which color is this?", SURVEY) == []


def test_true_traces_of_the_charts_score_1_and_noisy_ones_0_until_they_are_refined():
    assert NAMED == set(COLOURS)
    rng = np.random.default_rng(0)
    noisy = load_charts("train", size=120, trace_noise=1.0)
    for example, clean in zip(noisy, load_charts("train", size=120)):
        known = (example.facts, example.needed)
        assert visual_checker(example.trace, *known) == 0, example.trace
        assert refine(example) == clean.trace
        for text in (clean.trace, explain(rng, example.task, example.needed, example.answer)):
            assert visual_checker(text, *known) == 1, text


# ---- rewards ------------------------------------------------------------------------------------


def test_without_facts_the_words_of_the_trace_are_the_measure_else_format_and_answer():
    trace = "The dog chases a red ball in the park."
    assert visual_checker("A dog and the red ball, in this park: it chases", [], trace=trace) == 1
    assert visual_checker("A dog", [], trace=trace) == pytest.approx(2 / 6)
    for trace, total in {None: 4, "It is a dog": 4, "Something else": 2}.items():
        example = Example(answer="dog", trace=trace)
        rewards = score(["It is a dog.\nAnswer: dog"], example, reward_weights=(1, 1, 2))
        assert rewards["total"] == total


def test_it_is_said_whose_thinking_earns_nothing_and_what_is_explained():
    examples = [Example(facts=BARS, answer="99"), Example(trace="x"), Example(), bars_example()]
    bare, explained = thinking_lines(examples)
    assert bare.startswith("2 of 4 examples have no facts") and explained.startswith("1 of 2 local")
    assert thinking_lines([bars_example()]) == []


EVERY = ", ".join(f"{name} {value}" for name, value in BARS)
GROUNDED = {  # by the facts that are needed, black and orange
    "black 6, orange 4": 1,
    "black 6, orange 6": 0.5,  # a right number on a wrong name
    "black 4, orange 6": 0,
    EVERY: 2 * 2 / (4 + 2),  # more than the reference
    "black 6, orange 4, green 9, yellow 1, blue 3": 4 / 7,  # invented
}


def test_thinking_is_paid_the_f1_of_its_claims():
    for thinking, reward in GROUNDED.items():
        assert visual_checker(thinking, BARS, BARS[:2]) == pytest.approx(reward), thinking
    assert visual_checker(EVERY, BARS) == 1
    assert visual_checker("black 6", BARS, question="What is the value of black") == 1
    assert visual_checker("black 6", BARS, trace="black 6, red 3") == pytest.approx(2 / 3)


def test_rewards_of_a_group():
    good = "black 6, red 3\nAnswer: yes"
    rewards = score(
        [good, "Answer: yes", "black 6\nAnswer: no", good],
        bars_example(),
        truncated=[False, False, False, True],
        reward_weights=(0.5, 1, 2),
    )
    assert rewards["format"].tolist() == [1, 0, 1, 0]
    assert rewards["accuracy"].tolist() == [1, 1, 0, 1]
    assert rewards["thinking"].tolist() == pytest.approx([1, 0, 2 / 3, 1])
    assert rewards["total"].tolist() == pytest.approx([3.5, 0, 0.5 + 4 / 3, 0])
    assert rewards["correct"].tolist() == [True, False, False, False]
    assert score(["It is 5\nAnswer: 1200"], bars_example(answer="$1,200."))["correct"].item()


NUMBERS = " ".join(map(str, range(1, 10)))
HACKS = ["red has 3", "red has 3\nAnswer:", "Answer: yes", "red has 3\nAnswer: yes\nAnswer: no"]
HACKS += ["red has 3\nAnswer: yes or no", f"red has 3\nAnswer: black orange red cyan {NUMBERS}"]
TRICKS = [EVERY, " ".join(f"{name} {n}" for name, _ in BARS for n in range(1, 10))]
TRICKS += [f"black is {NUMBERS.replace(' ', ' or ')}, red is 3", f"{NUMBERS} black red"]
TRICKS += [f"black red orange cyan {NUMBERS}", f"black {NUMBERS} red {NUMBERS}"]


def test_hacks_are_not_correct_and_gain_nothing():
    assert not score(HACKS, bars_example())["correct"].any()
    honest = visual_checker("black 6, red 3", BARS, bars_example().needed)
    for trick in TRICKS:
        assert visual_checker(trick, BARS, bars_example().needed) < honest, trick


PIECES = (
    "black orange 65+ yes 2015 Limit its role 6 12% 1,200 -3 1e999 nan ٣ ² ½ １２ = + - / ( ) . , |"
)
PIECES = f"{PIECES} answer Answer: <answer> or both by of U.S. ’s ﬁ İ ß _ ** \x00 \ud800".split(" ")


def random_text(rng, length):
    return "".join(rng.choice([*PIECES, "\n", " "]) + rng.choice(("", " ")) for _ in range(length))


def test_scores_of_random_text_are_in_range():
    rng = random.Random(0)
    for _ in range(400):
        facts = [(random_text(rng, rng.randrange(4)), random_text(rng, 1)) for _ in range(3)]
        facts = rng.choice((facts, facts + BARS, SURVEY, facts + SURVEY, []))
        texts = dict(question=random_text(rng, 5), answer=random_text(rng, 2))
        example = Example(**texts, facts=facts, trace=rng.choice((None, random_text(rng, 9))))
        responses = [random_text(rng, rng.randrange(40)) for _ in range(4)]
        rewards = score(responses + [f"{refine(example)}\nAnswer: 3"], example)
        for name in ("format", "accuracy", "thinking"):
            assert ((rewards[name] >= 0) & (rewards[name] <= 1)).all(), (name, responses)


LONG = "black 6, orange and cyan 4 or a number of others which are still to be read off "


# A regular expression that backtracks, or a scan per token, would take hours here.
@pytest.mark.parametrize(
    "piece", ["9", "a'", "*", "answer ", "black the ", "Limit, ", "both 2015 2016 role ", LONG]
)
def test_a_response_of_a_million_characters_is_scored(piece):
    text = (piece * (10**6 // len(piece) + 1))[: 10**6]
    facts = SURVEY if "i" in piece[:8] else BARS + [("the the the the one", "1")]
    assert score([text + "\nAnswer: yes"], bars_example(facts=facts))["total"].isfinite()


# ---- the refiner --------------------------------------------------------------------------------


def refined(question, answer, facts, **changes):
    return refine(Example(question=question, answer=answer, facts=facts, **changes))


@pytest.mark.parametrize(
    "question, answer, reasoning",
    [
        ("What is the sum of Latvia and Portugal?", "11.9", "3.0 + 8.9 = 11.9"),
        ("How much more has Portugal than Latvia?", "5.9", "8.9 - 3.0 = 5.9"),
        ("Portugal minus Latvia, as a share?", "0.059", "8.9 - 3.0 = 5.9, as a share 0.059"),
        ("What is the average of the three?", "8.3", "(3.0 + 8.9 + 13.0) / 3 = 8.3"),
        ("What is the median?", "8.9", "the middle of 3.0, 8.9, 13.0 = 8.9"),
        ("The sum of the two largest?", "21.9", "13.0 + 8.9 = 21.9"),
        ("Which has the highest value?", "Romania", "highest value is 13.0, so it is Romania"),
        ("Which country has 8.9?", "Portugal", "Portugal is 8.9, so it is Portugal"),
        ("How many are above 5?", "2", "Portugal 8.9, Romania 13.0 are more than 5, so it is 2"),
        ("Is Latvia higher than Romania?", "No", "the first is less than the second, so No"),
        ("Is the sum of Latvia and Portugal more than Romania?", "no", "3.0 + 8.9 = 11.9 and Rom"),
        ("What is the sum of Latvia and Portugal?", "12.4", None),
        ("Which has the second highest value?", "Romania", None),
        ("Is Romania more than twice Latvia?", "Yes", None),
    ],
)
def test_the_refiner_says_what_the_numbers_show(question, answer, reasoning):
    text = refined(question, answer, COUNTRIES)
    assert text.startswith("Goal: ") and "\nObservation: " in text
    assert ("\nConclusion: the result is" in text) == (reasoning is not None), text
    assert reasoning is None or reasoning in text, text


def test_a_column_is_meant_where_it_alone_gives_the_answer():
    bars = [("p", "x", "5"), ("p", "y", "1"), ("q", "x", "7"), ("q", "y", "9")]
    question = "What is the difference between the largest and the smallest green bar?"
    assert "9 - 1 = 8" in refined(question, "8", bars)
    assert "Reasoning" not in refined(question, "2", bars)  # x or q?
    assert "Reasoning" not in refined("Is the largest green bar more than 5?", "Yes", bars)
    assert "Reasoning" not in refined("Which is the highest?", "p", [("p", "3"), ("q", "3")])


def test_nothing_is_concluded_from_cells_that_are_not_shown():
    facts = [(f"a row with a long name {i}", str(i)) for i in range(99)]
    text = refined("Which has the highest value?", "a row with a long name 98", facts)
    assert text.endswith("Observation: a row with a long name 98 = 98.")
    assert refined("Which has the lowest?", "none", facts, trace="as it came") == "as it came"
    assert refined("Which has the lowest?", "none", facts) is None
    assert refined("?", "2", [], trace="One and one.") == "One and one."  # without facts


def test_refined_text_is_grounded_and_has_no_answer_of_its_own():
    rng = random.Random(0)
    for row in ROWS:
        facts = [tuple(fact) for fact in row["facts"] if read_value(fact[-1]) is not None]
        needed = [facts[i] for i in sorted(rng.sample(range(len(facts)), 2))]
        text = refined("How much is it?", "77", facts, needed=needed)
        assert visual_checker(text, facts, needed) == 1.0, text
    assert extract_answer(refined("?", "4", [("No answer", "4"), ("Answer: a", "5")])) is None


def test_the_refiner_invents_no_arithmetic():
    rng = random.Random(0)
    words = "sum difference average ratio highest lowest more less total of the two bars".split()
    for _ in range(2000):
        facts = [(name, str(rng.randrange(1, 9))) for name, _ in BARS[: rng.randrange(1, 5)]]
        text = refined(" ".join(rng.choices(words, k=4)), str(rng.randrange(20)), facts)
        for left, right in re.findall(r"Reasoning: ([\d +/()-]* [\d +/()-]*) = (\d+)", text):
            assert abs(eval(left) - int(right)) <= 0.5, text


# ---- the scorer of the loop ---------------------------------------------------------------------


def rules(path=None, **changes):
    knobs = dict(reward=path, reward_weights=(1, 1, 1), refiner="local")
    return Rules(SimpleNamespace(**{**knobs, "tolerance": None, "dataset": "charts", **changes}))


def heard(scorer, texts, example):
    responses = [SimpleNamespace(text=text, truncated=False) for text in texts]
    group = SimpleNamespace(example=example, responses=responses, rewards={})
    for g in reversed(range(len(texts))):
        scorer.hear(group, g)
    return group.rewards


def test_responses_heard_one_by_one_score_as_a_group_does():
    texts = ["black 6, red 3\nAnswer: yes", "black 6\nAnswer: no", "Answer: yes"]
    rewards, together = heard(rules(), texts, bars_example()), score(texts, bars_example())
    assert rewards.keys() == together.keys()
    assert all(torch.equal(rewards[name], together[name]) for name in together)


COUNTING = "seen = []\ndef reward(*given):\n    seen.append(given)\n    return len(seen)"


def test_a_reward_of_ones_own_is_called_once_per_response(tmp_path):
    (tmp_path / "own.py").write_text(COUNTING)
    rewards = heard(rules(str(tmp_path / "own.py")), ["x\nAnswer: no"] * 2, bars_example())
    assert rewards["accuracy"].tolist() == [2, 1]


FAILING = {
    f"def reward(*_): return {body}": "item-7" for body in ("1 / 0", "float('nan')", "1e300")
}
FAILING |= dict.fromkeys(["1 / 0", "reward = 1", "def reward(", "pass"], "own.py: ")


@pytest.mark.parametrize("text", FAILING)
def test_a_reward_of_ones_own_that_fails_is_named(tmp_path, text):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(InputError, match=FAILING[text]):
        heard(rules(str(tmp_path / "own.py")), ["x\nAnswer: no"], bars_example(id="item-7"))


def test_the_memorized_thinking_is_refined_or_the_datas_own_or_none():
    group = SimpleNamespace(example=bars_example(trace="as it came"))
    assert rules().trace(group) == refine(group.example)
    assert rules(refiner="off").trace(group) == "as it came"
    assert rules().trace(SimpleNamespace(example=bars_example(instruction="in a word"))) is None
