"""Answers as models give them: `target | given | given`, right and wrong, by kind of answer."""

import importlib.util
import json
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

import start
from checker import unmatchable
from config import Config
from data.boxes import asked_answer
from data.example import Example, InputError, split_marked
from data.fingerprint import fingerprint
from lib import answers
from lib.answers import extract_answer, grade, reader, same_math
from lib.families import box_scale
from lib.log import Log

RIGHT, WRONG = {}, {}
RIGHT["math"] = r"""
5 | \boxed{5} | x = 5 | $5$ | **5** | (5) | 5. | 5 cm | EUR 5    1.2 \times 10^{-5} | 1.2 x 10^-5
9.8 m/s² | 9.8 meters per second squared    (-\infty, 1) \cup (2, 3) | (2,3)∪(-∞,1)    $1,200 | 1200
$\frac{1}{3}$ | \(\frac{1}{3}\)    \frac{\sqrt{2}}{2} | \sqrt{2}/2    9 m^2 | 9 square meters | 9 m²
1200 | 1.2 \times 10^3 | 1.2e3    0.5 | 1/2 | \frac{1}{2} | 50%    2.5 | 2\frac{1}{2} | 2 1/2
3:4 | 3 : 4 | 6:8 | 3 to 4    12000 | 12,000 | 12{,}000    5 cm | 5 centimeters | 5    \sqrt{2} | √2
60 km/h | 60 km per hour    \frac35 | \cfrac{3}{5}    \frac{1}{2} | \dfrac12    9.8 m/s^2 | 9.8 m/s²
(\frac{1}{2})^2 | 0.25    3\sqrt{2} | \sqrt{18}    \frac{\pi}{4} | \pi/4    45^\circ | 45 degrees
1, 2 | x = 1 or x = 2    16 | 16 square units    \text{5 apples} | 5    -\frac{3}{4} | −3/4
[0, \infty) | [0,∞)    x \in (1,2) | (1,2)    0, 100 | 100 and 0    1:2:3 | 2 : 4 : 6    50\% | 50%
12.5 | 12\frac12    \sqrt[3]{27} | 3    45° | 45^{\circ}    \{1, 2\} | 2, 1    {1,2} | \{2,1\}
(1,2) | (1, 2)    45 | 45^\circ    \pm 2 | 2, -2    7 | -(-7)    2\pi | 2π    5 N | 5N    3 | 3 nm
50 | 50%    2^3 | 8"""
WRONG["math"] = r"""
5 | 5 or 6 | 3 4 | 5, 6 | 6 | -5 |  | five | 5x | 2+3i | at least 5 | 5 = 6 | 5 or more    3:4 | 4:3
x = 1, y = 2 | x = 2, y = 1    1200 | 1.2 \times 10^2    (1,2) | (2,1) | [1,2]    \infty | -\infty
2\sqrt{2} | \sqrt{2}    \{1,2\} | 1 | 1,2,3    \{1,1\} | 1,2    9 m^2 | 9 m^3    5 cm | 5 m
0.33 | 1/3    1/0 | inf    5% | 5.5%    1/2 | 12    16.5 | 3.5\frac12"""
LIBRARY = r"""
\begin{pmatrix}1&2\end{pmatrix} | \begin{pmatrix}1&\frac{4}{2}\end{pmatrix}    \sin(x) | \sin x
x = 1, y = 2 | y = 2, x = 1    x>3 | (3,\infty)    \binom{4}{2} | 6    x^2+1 | 1+x^2    3 | \log_2 8
120 | 5!"""
# by relaxed accuracy: the target is the denominator
RIGHT["text"] = """
Abc | abc    96% | 100%    0.96 | 100%    105.1 | 100    100 | 95    0 | 0.0    [3,4] | 4,3    ٣ | 3
[5,6] | [6,€5]    naïve | Naïve    [Men,Women] | women,men    [100,106] | [104,100]    -5 | −5 | – 5
5 | US$5 | €5 | 5 € | EUR 5 | 5.    12% | 12 percent | 12 ％ | 12 %    12 | １２    -5 | -$5
1250 | 1\u202f250 | 1 250 | 1,250 | 1’250 | 1\u00a0250.5"""
WRONG["text"] = """
94% | 100%    0.94 | 100%    Won't | Don't    100 | 105.1    0 | 0.01    -5 | 5    nan | nan
inf | inf    1e999 | 1e999    10 | 1_0    [3,4] | [3,4,4]    [3,3] | [3,4]    [100,106] | [100,100]
12 |  | twelve or 13    1234 | 12 34    57 | 57%     | """
RIGHT["letters"] = r"""
B | (B) | B. | b | B: cat | (B) cat | cat | Cat. | option B | \boxed{B} | \text{B} | **B** | $B$
A, C | C and A | AC"""
WRONG["letters"] = "B |  | A | A or B | A, B | AB | A: a dog, B: cat | dog | a cat    A, C | ,"
RIGHT["decision"], WRONG["decision"] = "yes | Yes.", "yes | no | yes or no | "
RIGHT["labels"], WRONG["labels"] = "red, blue | Blue; RED", "red, blue | red, red | red, green | ,,"
RIGHT["box"] = """
[10, 20, 30, 40] | 10, 20, 30, 40 | [10, 20, 30, 40]. | [[11, 20, 31, 40]] | (10,20),(30,40)
[10, 20, 30, 40] | １０，20，30，40 | [{'bbox_2d': [10, 20, 30, 40]}]
[10, 20, 30, 40] | {"bbox_2d": [10, 20, 30, 40], "label": "cat 2"}
[10, 20, 30, 40] | <|object_ref_start|>2<|object_ref_end|><|box_start|>(10,20),(30,40)<|box_end|>"""
WRONG["box"] = """
[10, 20, 30, 40] | [10, 20, 30] | [10, 20, 30, 40], [1, 2, 3, 4] | 30, 40, 10, 20 | a 10, 20, 30, 40
[10, 20, 30, 40] | 10,20,30,29 | [{"bbox_2d": [10, 20, 30, 40]}, {"bbox_2d": [1, 2, 3, 4]}]"""
ASKED = "Which?\nChoices:\n(A) a dog\n(B) cat\n(C) 3/11"


def pairs(table):
    """(target, given) of a table's cells."""
    rows = [cell.split(" | ") for line in table.split("\n") for cell in line.split("    ")]
    return [(target, given) for target, *givens in rows for given in givens]


@pytest.mark.parametrize(
    "kind, target, given, right",
    [
        (kind, *pair, right)
        for right, tables in enumerate((WRONG, RIGHT))
        for kind, table in tables.items()
        for pair in pairs(table)
    ],
)
def test_an_answer_is_right_however_it_is_written(kind, target, given, right):
    example = Example(question=ASKED, answer=target, kind=kind)
    assert (grade(example, given, 0.05 if kind == "text" else 0) > 0.5) == right
    if kind == "math":
        assert same_math(given, target) == right
    if kind == "letters" and target == "B":  # an option's letter, or its text
        lettered = Example(question="Which?", answer="cat", options=["a dog", "cat"])
        assert grade(lettered, given) == right


def test_any_of_several_answers_is_right_and_a_part_of_one_is_worth_a_fraction():
    example = Example(answer="x", answers=["x", "tennis racket"])
    assert [grade(example, text) for text in ("Tennis racket.", "x", "ball", None)] == [1, 1, 0, 0]
    assert not grade(Example(answer="A", options=["B", "A"]), "B")  # an option's text, no letter
    letters, labels = Example(answer="A, C", kind="letters"), Example(answer="r, b", kind="labels")
    assert [grade(letters, text) for text in ("A A", "A, B", "A, C, E")] == [0.2, 0, 0]
    assert [grade(labels, text) for text in ("r, r", "r, g")] == pytest.approx([1 / 2, 1 / 3])


MARKED = {"x\n**Answer**: **$1,200.**": "1200", 'x. ANSWER : "Don\'t know"': "Don't know"}
MARKED |= {"x Answer:\n42\nand more": "42", "x <answer>yes</answer>": "yes", "x <answer>5": ""}
MARKED |= dict.fromkeys(["the answers: 5", "Answer: 5 Answer: 5", "<answer>5</answer> Answer: 5"])


def test_the_answer_is_behind_the_one_marker():
    assert {response: extract_answer(response) for response in MARKED} == MARKED


def test_labels_that_no_response_can_match_are_found():
    bad = ["red\nblue", "nan", "Infinity", "...", "[]", "Answer: 5"]
    good = ["5", "12 %", "[3, 4]", "€5", "Don't know", "No.", "因为", "+", "$", "a\u2028b"]
    examples = [Example(answer=answer) for answer in bad + good]
    assert [example.answer for example in unmatchable(examples)] == bad


# ---- what our rules can't read ------------------------------------------------------------------


@pytest.mark.skipif(not importlib.util.find_spec("math_verify"), reason="without math-verify")
@pytest.mark.parametrize("target, given", pairs(LIBRARY))
def test_what_our_rules_cannot_read_goes_to_math_verify(target, given):
    assert same_math(target, given) and not same_math(target, "x^2+2")


def test_without_the_library_it_is_said_once_what_is_not_read(monkeypatch, capsys):
    answers.say_once.cache_clear()
    monkeypatch.setitem(sys.modules, "math_verify", None)
    assert not any(same_math("x^2+1", "1+x^2") for _ in range(3))
    assert capsys.readouterr().err.count("pip install math-verify") == 1
    assert reader([Example(kind="math")])[:9] == "own rules" and reader([Example()]) is None


def test_a_resume_with_another_reader_of_mathematics_is_an_error(tmp_path):
    now = {**fingerprint([]), "reader": "own rules"}
    then = {"data": {**now, "reader": "own rules, math-verify 0.9.0"}, "config": asdict(Config())}
    (tmp_path / "state.json").write_text(json.dumps(then | {"positions": {}}))
    with pytest.raises(InputError, match="reader: was 'own rules, math-verify 0.9.0', is now 'own"):
        start.resume(Config(), tmp_path, {"data": now}, Log("", False))


BOX = Example(answer="[10, 20, 30, 40]", kind="box")
HOSTILE = ["9^" * 60 + "9", "(" * 200, "5 " + "ab/" * 60 + "!", r"\frac{" * 30, "$" * 10**6 + "x"]


@pytest.mark.parametrize("text", [*HOSTILE, r"\sum_{i=1}^{9^{99}} i", "5j", "None", "5\0"])
def test_a_hostile_expression_is_wrong_and_does_not_hang(text):
    assert not same_math("5", text)
    assert not grade(BOX, f"0,0,{'9' * 400},{text}")


# ---- boxes --------------------------------------------------------------------------------------

FENCED = '```json\n[\n  {"bbox_2d": [10, 20, 30, 40], "label": "cat"}\n]\n```'


def test_a_box_is_read_from_a_fenced_block_and_mapped_to_the_originals_pixels():
    assert grade(BOX, split_marked(f"So.\nAnswer: {FENCED}")[1]) == 1
    assert grade(BOX, "[5, 40, 15, 80]", scale=(2, 0.5)) == 1 and grade(BOX, "[5, 40, 15, 80]") == 0
    asked = asked_answer(replace(BOX, scale=(2, 0.5)))
    assert asked == "[5, 40, 15, 80]" and asked_answer(BOX) == BOX.answer


@pytest.mark.parametrize(
    "model_type, scale",
    [("qwen2_5_vl", (2, 4)), ("qwen2_vl", (0.112, 0.112)), ("llava_onevision", (1, 1))],
)
def test_what_a_familys_coordinates_mean_is_in_its_row(model_type, scale):
    config = SimpleNamespace(model_type=model_type, vision_config=SimpleNamespace(patch_size=14))
    grid = {"image_grid_thw": torch.tensor([[1, 2, 4]])}  # 28 rows of 56 pixels
    assert box_scale(config, (112, 112), grid) == scale
