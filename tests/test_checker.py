"""Tests of checker.py and of lib/answers, claims and derive: answers, rewards, claims, traces."""

import json
import math
import random
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from checker import Rules, format_reward, refine, score, thinking_lines, unmatchable, visual_checker
from data.charts import KINDS, explain, load_charts
from data.example import Example, InputError
from lib.answers import (
    clean_answer,
    extract_answer,
    grade,
    read_value,
    readable,
    relaxed_accuracy,
    split_response,
)
from lib.claims import claimed_facts, locate_claims, mentioned_facts

COUNTRIES = [("Latvia", "3.0"), ("Portugal", "8.9"), ("Romania", "13.0")]
BARS = [("black", "6"), ("orange", "4"), ("red", "3"), ("cyan", "9")]
SURVEY = [
    ("2015", "Limit its role", "68"),
    ("2015", "Play a role", "23"),
    ("2016", "Limit its role", "62"),
    ("2016", "Play a role", "29"),
]
LINES = Path(__file__).with_name("test_claims.jsonl").read_text(encoding="utf-8").splitlines()
ROWS = [json.loads(line) for line in LINES]


def bars_example(**changes):
    known = dict(question="Is black higher than red", answer="yes", facts=BARS)
    return Example(**{**known, "needed": [BARS[0], BARS[2]], "options": ["yes", "no"], **changes})


# ---- answer and format --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "response, answer",
    [
        ("x\nAnswer: 5", "5"),
        ("x\n**Answer**: **$1,200.**", "1200"),
        ('x. ANSWER : "Don\'t know"', "Don't know"),
        ("x Answer:\n42\n", "42"),
        ("x Answer: 12 %", "12%"),
        ("x <answer>yes</answer>", "yes"),
        ("x Answer: [3, 4]", "[3, 4]"),
        ("Answer: 5\nand more", "5"),
        ("the answers: 5", None),
        ("Answer: 5 Answer: 5", None),
        ("<answer>5</answer> Answer: 5", None),
        ("x <answer>5", ""),
    ],
)
def test_the_answer_is_behind_the_one_marker(response, answer):
    assert extract_answer(response) == answer


def test_cleaning_twice_is_cleaning_once():
    rng = random.Random(0)
    for _ in range(2000):
        text = "".join(rng.choices("15,.%$*_`'\"“ [a\n", k=rng.randrange(9)))
        assert clean_answer(clean_answer(text)) == clean_answer(text), repr(text)


@pytest.mark.parametrize(
    "response, reward",
    [
        ("because I say\nAnswer: 5", 1.0),
        ("because I say <answer>5</answer>", 1.0),
        ("Answer: 5", 0.0),
        ("because I say 5", 0.0),
        ("because I say\nAnswer: **", 0.0),
        ("because I say\nAnswer: 5\nAnswer: 5", 0.0),
    ],
)
def test_the_format_is_thinking_and_one_answer(response, reward):
    assert format_reward(response) == reward
    assert format_reward(response, truncated=True) == 0.0


@pytest.mark.parametrize(
    "thinking, reward",
    {
        **dict.fromkeys(["<think>\n</think>", "<reasoning></reasoning>", "<br>", "# Thinking"], 0),
        **dict.fromkeys(["**Step one: what I see**", "Here is my reasoning:", "x", "so so so"], 0),
        **dict.fromkeys(
            [
                "<|im_start|>",
                "&nbsp;",
                "...",
                "1. 2. 3. 4.",
                "Let's see.",
                "<!-- see above now -->",
            ],
            0,
        ),
        **dict.fromkeys(
            ["red 3", "3+4=7", "<think>It is red</think>", "因为黑色", "**It** is red"], 1
        ),
    }.items(),
)
def test_markup_and_headings_are_no_thinking(thinking, reward):
    assert format_reward(f"{thinking}\nAnswer: 5") == reward


@pytest.mark.parametrize(
    "target, prediction, correct",
    [
        ("Abc", "abc", True),
        ("96%", "100%", True),
        ("94%", "100%", False),
        ("0.96", "100%", True),
        ("0.94", "100%", False),
        ("Won't", "Don't", False),
        ("100", "105.1", False),  # the target is the denominator:
        ("105.1", "100", True),
        ("100", "95", True),
        ("0", "0.0", True),
        ("0", "0.01", False),
        ("-5", "5", False),
        ("", "", False),
        ("nan", "nan", False),
        ("inf", "inf", False),
        ("1e999", "1e999", False),
        ("10", "1_0", False),
        ("[3, 4]", "4, 3", True),
        ("[3, 4]", "[3, 4, 4]", False),
        ("[3, 3]", "[3, 4]", False),
        ("[Men, Women]", "women, men", True),
        ("٣", "3", True),
        ("naïve caf�", "Naïve CAF�", True),
    ],
)
def test_relaxed_accuracy(target, prediction, correct):
    assert relaxed_accuracy(target=target, prediction=prediction) is correct


def test_tolerance_zero_is_equality_up_to_rounding():
    assert relaxed_accuracy(target="0.3", prediction=str(0.1 + 0.2), tolerance=0)
    assert relaxed_accuracy(target="12%", prediction="0.12", tolerance=0)
    assert not relaxed_accuracy(target="1000000", prediction="1000001", tolerance=0)


@pytest.mark.parametrize(
    "kind, target, answers",
    [
        ("decision", "yes", {"Yes.": 1, "no": 0, "yes or no": 0, "": 0}),
        ("letters", "B", {"b": 1, "B, B": 1, "A, B": 0, "Bad": 0}),
        ("letters", "A, C", {"C and A": 1, "AC": 1, "A A": 0.2, "A, B": 0, "A, C, E": 0, ",": 0}),
        ("box", "10,10,20,20", {"[11, 10, 21, 20]": 1, "10,10,20,15": 0, "20,20,10,10": 0}),
        ("box", "10,10,20,20", {"10,10,1e9,1e9": 0, "0,0," + "9" * 400 + ",20": 0, "10,10,20": 0}),
        ("box", "120,105,150,226", {"120,105,150,226": 1, "120105150226": 0}),
        ("labels", "red, blue", {"Blue; RED": 1, "red, red": 0.5, "red, green": 1 / 3, ",,": 0}),
        ("text", "12", {"12.0": 1, "12.1": 0, "": 0, "twelve or 13": 0}),
    ],
)
def test_answers_are_graded_by_the_kind_that_is_asked_for(kind, target, answers):
    example = Example(answer=target, kind=kind)
    assert {answer: grade(example, answer) for answer in answers} == pytest.approx(answers)
    assert grade(example, None) == 0.0 and not readable(example, None)


@pytest.mark.parametrize(
    "written, plain",
    {
        **{"−5": "-5", "– 5": "-5", "-$5": "-5", "US$5": "5", "€5": "5", "5 €": "5", "EUR 5": "5"},
        **{"1\u202f250": "1250", "1\u00a0250.5": "1250.5", "1 250": "1250", "1’234": "1234"},
        **{
            "１２": "12",
            "12 percent": "12%",
            "12 ％": "12%",
            "12 34": "12 34",
            "[€5, 6]": "[5, 6]",
        },
    }.items(),
)
def test_answers_are_numbers_as_people_write_them(written, plain):
    assert clean_answer(written) == clean_answer(plain) == plain


def test_lists_are_matched_one_to_one():
    assert relaxed_accuracy(target="[100, 106]", prediction="[104, 100]")
    assert not relaxed_accuracy(target="[100, 106]", prediction="[100, 100]")


def test_any_of_several_answers_is_right():
    example = Example(answer="racket", answers=["racket", "tennis racket"])
    answers = {"Tennis racket.": 1, "racket": 1, "ball": 0}
    assert {answer: grade(example, answer) for answer in answers} == answers


@pytest.mark.parametrize("label", ["cat", "B"])
def test_an_options_letter_or_its_text_is_right(label):
    example = Example(answer=label, options=["dog", "cat"])
    answers = {"cat": 1, "B": 1, "(b)": 1, "B. cat": 1, "option B": 1, "A": 0, "B. dog": 0, "C": 0}
    assert {answer: grade(example, answer) for answer in answers} == answers
    assert grade(Example(answer="A", options=["B", "A"]), "B") == 0


def test_labels_that_no_response_can_match_are_found():
    bad = ["red\nblue", "nan", "Infinity", "$", "...", "[]", "Answer: 5"]
    good = ["5", "12 %", "[3, 4]", "€5", "Don't know", "No.", "因为", "+", "a\u2028b"]
    examples = [Example(answer=answer) for answer in bad + good]
    assert [example.answer for example in unmatchable(examples)] == bad
    assert unmatchable([Example(answer="1,2", kind="box"), Example(answer="yes", kind="decision")])


def test_the_format_asks_for_an_answer_of_the_kind():
    box = Example(answer="10,10,20,20", kind="box")
    scored = score([f"So it is.\nAnswer: {text}" for text in ("10,10,20,20", "1,1,2,2", "B")], box)
    assert scored["format"].tolist() == [1, 1, 0] and scored["correct"].tolist() == [1, 0, 0]


# ---- claims -------------------------------------------------------------------------------------


def test_the_project_pages_two_traces_score_0_and_1():
    vague = (
        "the values represented by the three bars can be directly observed. Taking their "
        "mean yields an overall average of approximately 8.3"
    )
    grounded = (
        "step 1 is to extract the values for Latvia, Portugal, and Romania: 3.0, 8.9, and "
        "13.0, respectively. Step 2 is to calculate the average of these values: "
        "(3.0 + 8.9 + 13.0) / 3 = 8.3"
    )
    assert visual_checker(vague, COUNTRIES) == 0.0
    assert visual_checker(grounded, COUNTRIES) == 1.0


@pytest.mark.parametrize(
    "thinking, claims",
    [
        ("black 6 ; orange 4 ;", ["black 6", "orange 4"]),
        ("6 black 4 orange 3 red", ["black 6", "orange 4", "red 3"]),
        ("Reasoning: min is 4 so orange", []),
        ("black 6 plus red 3 is 9 .", ["black 6", "red 3"]),
        ("black 6, black = 6.0, and black (6)", ["black 6"]),
        ("black is 6 or 7", ["black 6 or 7"]),  # one wrong claim
        ("9 belongs to cyan", ["cyan 9"]),
        ("both red and orange are 4", ["red 4", "orange 4"]),
        ("black is above 5, orange fell by 2, red isn't 7", []),
        ("The sum of black and red is 9", []),
        ("black + red = 9", []),
        ("blackbird 6, infrared 3", []),
        ("Black: 6\n- **orange**: 4%\n| red | 3 |", ["black 6", "orange 4", "red 3"]),
    ],
)
def test_claims_of_a_sentence(thinking, claims):
    assert [f"{name} {value}" for name, value in claimed_facts(thinking, BARS)] == claims


DENIALS = {
    "Is Latvia 3.0? No.": [],
    "It is false that Latvia is 3.0": [],
    "Latvia never has 3.0, nor does it reach 13.0": [],
    "Latvia isn't 3.0, Portugal is not at 8.9": [],
    "Latvia is 3.0. No, that is wrong.": [],
    "Nobody says that Latvia is 3.0": [],
    "Latvia != 3.0": [],
    "Latvia is 3.0, not 4.0, and not the highest": ["Latvia 3.0"],
    "Latvia is not 3.0 but 4.0": ["Latvia 4.0"],
    "Latvia 3.0 9 8 7 6": ["Latvia 3.0 9 8 7 6"],
    "Latvia is 3.0, 9 or 8": ["Latvia 3.0 , 9 or 8"],
    "Latvia is maybe 3.0, maybe 9": ["Latvia 3.0 , maybe 9"],
    "Latvia is 3.0 billion": ["Latvia 3.0 billion"],
    "Latvia is negative 3.0": ["Latvia negative 3.0"],
    "Latvia is above 99, Portugal has less than 5": ["Latvia above 99", "Portugal than 5"],
    "Latvia is below 99, Portugal has more than 5": [],
    "Latvia is ninety and Portugal is one of three": ["Latvia ninety"],
    "Latvia is three.": ["Latvia 3.0"],
    "Latvia is twice 3.0, Portugal is far from 8.9": [],
    "Latvia is 3.0 to 9, Portugal is 8.9m": ["Latvia 3.0 to 9", "Portugal 8.9m"],
    "Latvia 3.0 million, Portugal 8.9 million": ["Latvia 3.0", "Portugal 8.9"],  # the unit
}


@pytest.mark.parametrize("thinking, claims", DENIALS.items())
def test_what_is_denied_asked_or_guessed_is_no_true_claim(thinking, claims):
    assert [f"{name} {value}" for name, value in claimed_facts(thinking, COUNTRIES)] == claims


def test_numbers_are_read_as_people_write_them():
    facts = [("P", "-4"), ("Q", "1250"), ("R", "90"), ("S", "25")]
    text = "P is negative 4, Q is 1 250, R is ninety, S has twenty-five."
    assert claimed_facts(text, facts) == facts


def test_bars_may_be_called_a_i_or_may():
    facts = [("A", "1"), ("I", "2"), ("May", "3")]
    assert claimed_facts("A is 1, I is 2 and May is 3", facts) == facts
    assert claimed_facts("A, I and May: 1, 2, 3", facts) == facts
    assert claimed_facts("I see a bar of 5 and a gap of 2, it may be 4", facts) == []


INVENTED = {
    "Estonia is 5.0": ["Estonia 5.0"],
    "Latvia 3.0, estonia 5, Romania 13.0": ["Latvia 3.0", "estonia 5", "Romania 13.0"],
    "Observation: Estonia = 5; Latvia = 3.0.": ["Estonia 5", "Latvia 3.0"],
    "- **Estonia**: 5\n- Latvia: 3.0": ["Estonia 5", "Latvia 3.0"],
    "| Latvia | 3.0 |\n| Estonia | 5 |": ["Latvia 3.0", "Estonia 5"],
    "Latvia, Estonia and Romania: 3.0, 5 and 13.0": ["Latvia 3.0", "Estonia 5", "Romania 13.0"],
    "Estonia's value is 5": ["Estonia's 5"],
    "The median is 8.9. Max is 13.0. Step 2: Sum = 11.9": [],
    "Latvia's share is 3.0, the average is 8": ["Latvia 3.0"],
    "Therefore, the difference is 5.9. Answer A is 5 more than B": [],
}


@pytest.mark.parametrize("thinking, claims", INVENTED.items())
def test_a_value_of_a_name_that_the_picture_hasnt_is_a_wrong_claim(thinking, claims):
    assert [" ".join(claim) for claim in claimed_facts(thinking, COUNTRIES)] == claims


def test_invented_colours_cost_the_charts_thinking():
    bars = [("cyan", "2"), ("orange", "5"), ("red", "3"), ("blue", "9")]
    example = Example(answer="5", facts=bars, needed=bars[:2], id="charts-0-val-1")
    honest, invented = "cyan 2, orange 5", "cyan 2, orange 5, black 3, green 9, yellow 1"
    scored = score([f"{honest}\nAnswer: 5", f"{invented}\nAnswer: 5"], example)["thinking"]
    assert scored.tolist() == pytest.approx([1, 4 / 7])
    assert claimed_facts("at last a green 9", bars) == [("green", "9")]
    assert mentioned_facts("How much is green?", bars) == []


@pytest.mark.parametrize(
    "thinking",
    [
        "In 2015, 68% wanted to limit its role and 23% to play a role; 62% and 29% in 2016.",
        "| | Limit its role | Play a role |\n|---|---|---|\n| 2015 | 68 | 23 |\n| 2016 | 62 | 29 |",
        "| | 2015 | 2016 |\n|---|---|---|\n| Limit its role | 68 | 62 |\n| Play a role | 23 | 29 |",
        "**2015**\n- Limit its role: 68\n- Play a role: 23\n**2016**\n- Limit its role: 62",
    ],
)
def test_a_table_is_claimed_by_row_and_column(thinking):
    found = claimed_facts(thinking, SURVEY)
    assert set(found) <= set(SURVEY) and len(found) >= 3


def test_claims_agree_with_the_table_read_by_hand(capsys):
    lines = []
    for tuned in (True, False):
        right = claimed = expected = 0
        for row in (row for row in ROWS if row["tuned"] == tuned):
            found = {(*n, read_value(v)) for *n, v in claimed_facts(row["trace"], row["facts"])}
            wanted = {(*n, read_value(v)) for *n, v in row["claims"]}
            right += len(found & wanted)
            claimed += len(found)
            expected += len(wanted)
        lines.append(
            f"{'tuned' if tuned else 'not tuned'} on: {right} of {claimed} claims right "
            f"({right / claimed:.3f}), {right} of {expected} found ({right / expected:.3f})"
        )
        assert right >= 0.95 * claimed and right >= 0.95 * expected, lines
    assert sum(not row["tuned"] for row in ROWS) >= len(ROWS) / 3
    with capsys.disabled():
        print("", *lines, sep="\n  claims, rows ")


def test_a_claim_is_located_at_its_value():
    text = "black 6, then\norange (7)"
    found = {text[start:end]: claim for claim, start, end in locate_claims(text, BARS)}
    assert found == {"6": ("black", "6"), "7": ("orange", "7")}


def test_values_are_equal_however_they_are_written():
    facts = [("a1", "1200"), ("b1", "12%"), ("c1", "3.0")]
    for thinking in ("a1: 1,200; b1: 12 %; c1: 3", "a1 1200.0; b1 12; c1 3.00"):
        assert claimed_facts(thinking, facts) == facts


def test_values_in_words_are_claimed_too():
    facts = [("bag", "red"), ("bag", "left"), ("umbrella", "black")]
    text = "The bag is red and on the left. A black umbrella."
    assert set(claimed_facts(text, facts)) == set(facts)
    assert claimed_facts("The umbrella is red.", facts) == [("umbrella", "red")]


def test_the_facts_that_a_question_mentions():
    assert mentioned_facts("Who wants to play a role in 2016?", SURVEY) == [SURVEY[3]]
    assert mentioned_facts("What about 2015?", SURVEY) == SURVEY[:2]
    assert mentioned_facts("Which color is this?", SURVEY) == []


def test_true_traces_of_the_charts_score_1_and_noisy_ones_less():
    for example in load_charts("ood", size=24):
        thinking = score([f"{example.trace}\nAnswer: {example.answer}"], example)["thinking"]
        assert thinking.item() == 1.0, example.trace
    noisy = load_charts("train", size=24, trace_noise=1.0)
    assert max(visual_checker(e.trace, e.facts, e.needed) for e in noisy) == 0.0


def test_informal_workings_claim_what_they_state():
    rng = np.random.default_rng(0)
    for example in load_charts("train", size=120):
        text = explain(rng, example.task, example.needed, example.answer)
        assert set(claimed_facts(text, example.facts)) == set(example.needed), text


# ---- rewards ------------------------------------------------------------------------------------


def test_without_facts_the_words_of_the_trace_are_the_measure():
    trace = "The dog chases a red ball in the park."
    assert visual_checker("A dog and the red ball, in this park: it chases", [], trace=trace) == 1
    assert visual_checker("A dog", [], trace=trace) == pytest.approx(2 / 6)
    assert visual_checker("What is in the one or the other", [], trace=trace) == 0


def test_without_facts_and_trace_the_thinking_has_no_weight():
    text = "It is a dog.\nAnswer: dog"
    totals = {
        trace: score([text], Example(answer="dog", trace=trace), reward_weights=(1, 1, 2))["total"]
        for trace in (None, "It is a dog", "Something else")
    }
    assert totals == {None: 4, "It is a dog": 4, "Something else": 2}


def test_it_is_said_whose_thinking_earns_nothing_and_what_is_explained():
    examples = [Example(facts=BARS, answer="99"), Example(trace="x"), Example(), bars_example()]
    bare, explained = thinking_lines(examples)
    assert bare.startswith("2 of 4 examples have no facts") and explained.startswith("1 of 2 local")
    assert thinking_lines([bars_example()]) == []


def test_a_right_number_on_a_wrong_name_is_wrong():
    assert visual_checker("black 4, orange 6", BARS, needed=BARS[:2]) == 0.0
    assert visual_checker("black 6, orange 6", BARS, needed=BARS[:2]) == 0.5


def test_stating_more_than_the_reference_costs_precision():
    every = ", ".join(f"{name} {value}" for name, value in BARS)
    assert visual_checker("black 6, orange 4", BARS, needed=BARS[:2]) == 1.0
    assert visual_checker(every, BARS, needed=BARS[:2]) == pytest.approx(2 * 2 / (4 + 2))
    assert visual_checker(every, BARS) == 1.0
    assert visual_checker("black 6", BARS, question="What is the value of black") == 1.0
    assert visual_checker("black 6", BARS, question="Which", trace="black 6, red 3") < 1.0


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


@pytest.mark.parametrize(
    "hack",
    [
        "",
        "Answer: yes",
        "red has 3\nAnswer:",
        "red has 3\nAnswer: yes\nAnswer: no",
        "red has 3\nAnswer: yes or no",
        "red has 3\nAnswer: [yes, no]",
        "red has 3\nAnswer: black orange red cyan 1 2 3 4 5 6 7 8 9",
    ],
)
def test_hacks_are_not_correct(hack):
    assert not score([hack], bars_example())["correct"].item()


def test_hacks_of_the_thinking_gain_nothing():
    honest = visual_checker("black 6, red 3", BARS, bars_example().needed)
    numbers = " ".join(map(str, range(1, 10)))
    hacks = [
        ", ".join(f"{name} {value}" for name, value in BARS),
        " ".join(f"{name} {n}" for name, _ in BARS for n in range(1, 10)),
        "black is " + " or ".join(map(str, range(1, 10))) + ", red is 3",
        f"black red orange cyan {numbers}",
        f"{numbers} black red",
        f"black {numbers} red {numbers}",
        "black red black red 6 3 3 6",
    ]
    for hack in hacks:
        assert visual_checker(hack, BARS, bars_example().needed) < honest, hack


PIECES = (
    "black orange 65+ yes 2015 Limit its role 6 4 12% 1,200 -3 1e999 nan inf ٣ ² ½ １２ "
    "= + - * / ( ) . , : ; | answer Answer: <answer> </answer> or and both between by of "
    "U.S. ’s ﬁ İ ß _ ** ` \u200b \x00 \ud800 \U0001f600"
).split(" ") + ["\n", " "]


def random_text(rng, length):
    return "".join(rng.choice(PIECES) + rng.choice(("", " ")) for _ in range(length))


def test_scores_of_random_text_are_finite_and_in_range():
    rng = random.Random(0)
    for _ in range(400):
        facts = [(random_text(rng, rng.randrange(4)), random_text(rng, 1)) for _ in range(3)]
        facts = rng.choice((facts, facts + BARS, SURVEY, facts + SURVEY, []))
        example = Example(
            question=random_text(rng, 5),
            answer=random_text(rng, 2),
            facts=facts,
            trace=rng.choice((None, random_text(rng, 9))),
        )
        responses = [random_text(rng, rng.randrange(40)) for _ in range(4)]
        rewards = score(responses + [f"{refine(example)}\nAnswer: 3"], example)
        for name in ("format", "accuracy", "thinking"):
            assert ((rewards[name] >= 0) & (rewards[name] <= 1)).all(), (name, responses)
        assert all(
            len(claim) == len(facts[0]) or len(claim) == 2
            for claim in claimed_facts(responses[0], facts)
        )


# A regular expression that backtracks, or a scan per token, would take hours here.
@pytest.mark.parametrize(
    "piece",
    [
        "9",
        "a'",
        "*",
        "answer ",
        "black the ",
        "Limit, ",
        "both 2015 2016 role ",
        "black 6, orange and cyan 4 or a number of others which are still to be read off ",
    ],
)
def test_a_response_of_a_million_characters_is_scored(piece):
    text = (piece * (10**6 // len(piece) + 1))[: 10**6]
    facts = SURVEY if "i" in piece[:8] else BARS + [("the the the the one", "1")]
    rewards = score([text + "\nAnswer: yes"], bars_example(facts=facts))
    assert all(math.isfinite(rewards[name].item()) for name in rewards)


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
        ("Ratio of Romania to Latvia?", "4.33", "13.0 / 3.0 = 4.33"),
        ("The sum of the two largest?", "21.9", "13.0 + 8.9 = 21.9"),
        ("Which has the highest value?", "Romania", "highest value is 13.0, so it is Romania"),
        ("What is the lowest value?", "3", "lowest value is 3"),
        ("What is the value of Portugal?", "8.9", "Portugal is 8.9"),
        ("Which country has 8.9?", "Portugal", "Portugal is 8.9, so it is Portugal"),
        ("How many are above 5?", "2", "Portugal 8.9, Romania 13.0 are more than 5, so it is 2"),
        ("Is Latvia higher than Romania?", "No", "the first is less than the second, so No"),
        ("Is the sum of Latvia and Portugal more than Romania?", "no", "3.0 + 8.9 = 11.9 and Rom"),
        ("What is the sum of Latvia and Portugal?", "12.4", None),
        ("Which has the second highest value?", "Romania", None),
        ("Which country had the largest difference?", "Romania", None),
        ("Is Latvia higher than Romania?", "Yes", None),
        ("Is Romania more than the sum of all the others?", "Yes", None),
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


def test_of_equal_values_none_is_singled_out():
    bars = [("p", "3"), ("q", "3")]
    assert "Reasoning" not in refined("Which is the highest?", "p", bars)


def test_nothing_is_concluded_from_cells_that_are_not_shown():
    facts = [(f"a row with a long name {i}", str(i)) for i in range(99)]
    text = refined("Which has the highest value?", "a row with a long name 98", facts)
    assert text.endswith("Observation: a row with a long name 98 = 98.")
    assert refined("Which has the lowest?", "none", facts, trace="as it came") == "as it came"
    assert refined("Which has the lowest?", "none", facts) is None


def test_without_facts_the_datas_own_trace_is_memorized_or_none():
    assert refined("How many?", "2", [], trace="One and one.") == "One and one."
    assert refined("How many?", "2", []) is None


def test_refined_text_is_grounded_and_has_no_answer_of_its_own():
    rng = random.Random(0)
    for row in ROWS:
        facts = [tuple(fact) for fact in row["facts"] if read_value(fact[-1]) is not None]
        needed = [facts[i] for i in sorted(rng.sample(range(len(facts)), 2))]
        text = refined("How much is it?", "77", facts, needed=needed)
        assert visual_checker(text, facts, needed) == 1.0, text
    assert split_response(refined("?", "4", [("No answer", "4"), ("Answer: a", "5")]))[1] is None
    assert format_reward(refined("?", "4", [("No answer", "4")]) + "\nAnswer: 4") == 1.0


def test_the_refiner_invents_no_arithmetic():
    rng = random.Random(0)
    words = "sum difference average ratio highest lowest more less total of the two bars".split()
    for _ in range(2000):
        facts = [(name, str(rng.randrange(1, 9))) for name, _ in BARS[: rng.randrange(1, 5)]]
        text = refined(" ".join(rng.choices(words, k=4)), str(rng.randrange(20)), facts)
        for left, right in re.findall(r"Reasoning: ([\d +/()-]+) = (\d+)", text):
            if left.strip("0123456789 "):
                assert abs(eval(left) - int(right)) <= 0.5, text


def test_the_charts_refined_traces_are_their_true_traces():
    clean_charts = load_charts("train", size=24)
    for noisy, clean in zip(load_charts("train", size=24, trace_noise=1.0), clean_charts):
        assert refine(noisy) == clean.trace
        assert noisy.task in KINDS
        assert score([f"{refine(noisy)}\nAnswer: {noisy.answer}"], noisy)["total"].item() == 3.0


# ---- the scorer of the loop ---------------------------------------------------------------------


def rules(path=None, **changes):
    knobs = dict(reward=path, reward_weights=(1, 1, 1), refiner="local")
    return Rules(SimpleNamespace(**{**knobs, "tolerance": None, "dataset": "charts", **changes}))


def heard(scorer, texts, example):
    responses = [SimpleNamespace(text=text, truncated=False) for text in texts]
    group = SimpleNamespace(example=example, responses=responses, rewards={})
    for g in reversed(range(len(texts))):
        scorer.hear(group, g)
    return group


def test_responses_heard_one_by_one_score_as_a_group_does():
    texts = ["black 6, red 3\nAnswer: yes", "black 6\nAnswer: no", "Answer: yes"]
    rewards = heard(rules(), texts, bars_example()).rewards
    together = score(texts, bars_example())
    assert rewards.keys() == together.keys()
    assert all(torch.equal(rewards[name], together[name]) for name in together)


def test_a_reward_of_ones_own_is_called_once_per_response(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("seen = []\ndef reward(*given):\n    seen.append(given)\n    return len(seen)")
    group = heard(rules(str(path)), ["x\nAnswer: no", "x\nAnswer: yes"], bars_example())
    assert group.rewards["accuracy"].tolist() == [2, 1]


@pytest.mark.parametrize("body", ["return 1 / 0", "return float('nan')", "return 1e300"])
def test_a_reward_of_ones_own_that_fails_names_the_example(tmp_path, body):
    path = tmp_path / "own.py"
    path.write_text(f"def reward(response, example):\n    {body}")
    with pytest.raises(InputError, match="item-7"):
        heard(rules(str(path)), ["x\nAnswer: no"], bars_example(id="item-7"))


def test_the_memorized_thinking_is_refined_or_the_datas_own_or_none():
    group = SimpleNamespace(example=bars_example(trace="as it came"))
    assert rules().trace(group) == refine(group.example)
    assert rules(refiner="off").trace(group) == "as it came"
    assert rules().trace(SimpleNamespace(example=bars_example(instruction="in a word"))) is None
