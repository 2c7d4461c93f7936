"""Answers as models give them: pairs `target | given`, right and wrong, by kind of answer."""

import importlib.util
import json
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

import start
from config import Config
from data.boxes import asked_answer
from data.example import Example, InputError, split_marked
from data.fingerprint import fingerprint
from lib import answers
from lib.answers import grade, reader, same_math
from lib.families import box_scale
from lib.log import Log

RIGHT = r"""5 | \boxed{5}    5 | x = 5    5 | $5$    5 | **5**    5 | (5)    5 | 5.    7 | -(-7)
5 | 5 cm    5 cm | 5 centimeters    5 cm | 5    9 m^2 | 9 square meters    9 m^2 | 9 m²
\text{5 apples} | 5    60 km/h | 60 km per hour    9.8 m/s^2 | 9.8 m/s²    5 N | 5N
9.8 m/s² | 9.8 meters per second squared    \frac35 | \cfrac{3}{5}    5 | EUR 5    3 | 3 nm
16 | 16 square units    $1,200 | 1200    0.5 | 1/2    0.5 | \frac{1}{2}    \frac{1}{2} | \dfrac12
-\frac{3}{4} | −3/4    $\frac{1}{3}$ | \(\frac{1}{3}\)    2.5 | 2\frac{1}{2}    2.5 | 2 1/2
12.5 | 12\frac12
2^3 | 8    (\frac{1}{2})^2 | 0.25    \frac{\sqrt{2}}{2} | \sqrt{2}/2    3\sqrt{2} | \sqrt{18}
\sqrt{2} | √2    \sqrt[3]{27} | 3    2\pi | 2π    \frac{\pi}{4} | \pi/4    45 | 45^\circ
45^\circ | 45 degrees    45° | 45^{\circ}    50\% | 50%    50 | 50%    0.5 | 50%    3:4 | 3 : 4
3:4 | 6:8    1:2:3 | 2 : 4 : 6    3:4 | 3 to 4    1200 | 1.2 \times 10^3    1200 | 1.2e3
1.2 \times 10^{-5} | 1.2 x 10^-5    12000 | 12,000    12000 | 12{,}000    \{1, 2\} | 2, 1
1, 2 | x = 1 or x = 2    {1,2} | \{2,1\}    \pm 2 | 2, -2    0, 100 | 100 and 0    (1,2) | (1, 2)
[0, \infty) | [0,∞)    (-\infty, 1) \cup (2, 3) | (2,3)∪(-∞,1)    x \in (1,2) | (1,2)"""
WRONG = r"""1/2 | 12    5 cm | 5 m    5 | 5 or 6    5 | 3 4    5 | 5, 6    5 | 6    5 | -5    5 |
 5 | five    5 | 5x    5 | 2+3i    3:4 | 4:3    (1,2) | (2,1)    (1,2) | [1,2]    \{1,2\} | 1
\{1,2\} | 1,2,3    \{1,1\} | 1,2    0.33 | 1/3    2\sqrt{2} | \sqrt{2}    1200 | 1.2 \times 10^2
x = 1, y = 2 | x = 2, y = 1    5 | at least 5    5 | 5 = 6    1/0 | inf    \infty | -\infty
5 | 5 or more    5% | 5.5%    9 m^2 | 9 m^3"""
LIBRARY = r"""x^2+1 | 1+x^2    \sin(x) | \sin x    3 | \log_2 8    120 | 5!    x>3 | (3,\infty)
x = 1, y = 2 | y = 2, x = 1    \binom{4}{2} | 6
\begin{pmatrix}1&2\end{pmatrix} | \begin{pmatrix}1&\frac{4}{2}\end{pmatrix}"""


def pairs(table):
    """(target, given) of a table's cells."""
    cells = [cell for line in table.splitlines() for cell in line.split("    ") if cell]
    return [tuple(part.strip() for part in cell.split("|")) for cell in cells]


@pytest.mark.parametrize(
    "target, given, right", [(*p, 1) for p in pairs(RIGHT)] + [(*p, 0) for p in pairs(WRONG)]
)
def test_the_same_value_is_right_however_it_is_written(target, given, right):
    assert same_math(target, given) == same_math(given, target) == right
    assert grade(Example(answer=target, kind="math"), given) == right


def test_the_tolerance_is_of_values_too():
    assert same_math("1/3", "0.33", 0.05) and not same_math("1/3", "0.33")


@pytest.mark.skipif(not importlib.util.find_spec("math_verify"), reason="without math-verify")
@pytest.mark.parametrize("target, given", pairs(LIBRARY))
def test_what_our_rules_cannot_read_goes_to_math_verify(target, given):
    assert same_math(target, given) and not same_math(target, "x^2+2")


def test_without_the_library_it_is_said_once_what_is_not_read(monkeypatch, capsys):
    answers.say_once.cache_clear()
    monkeypatch.setitem(sys.modules, "math_verify", None)
    assert not any(same_math("x^2+1", "1+x^2") for _ in range(3))
    assert capsys.readouterr().err.count("pip install math-verify") == 1
    assert reader([Example(kind="math")]) == "own rules" and reader([Example()]) is None
    answers.say_once.cache_clear()


def test_a_resume_with_another_reader_of_mathematics_is_an_error(tmp_path):
    now = {**fingerprint([]), "reader": "own rules"}
    then = {"data": {**now, "reader": "own rules, math-verify 0.9.0"}, "config": asdict(Config())}
    (tmp_path / "state.json").write_text(json.dumps(then | {"positions": {}}))
    with pytest.raises(InputError, match="reader: was 'own rules, math-verify 0.9.0', is now 'own"):
        start.resume(Config(), tmp_path, {"data": now}, Log("", False))


HOSTILE = ["9^" * 60 + "9", "(" * 200, "5 " + "ab/" * 60 + "!", r"\frac{" * 30, "$" * 10**6 + "x"]


@pytest.mark.parametrize("text", [*HOSTILE, r"\sum_{i=1}^{9^{99}} i", "5j", "None", "5\0"])
def test_a_hostile_expression_is_wrong_and_does_not_hang(text):
    assert not same_math("5", text)


# ---- letters ------------------------------------------------------------------------------------

ASKED = "Which?\nChoices:\n(A) a dog\n(B) cat\n(C) 3/11"


RIGHT_ONE = r"B|(B)|B.|b|B: cat|(B) cat|cat|Cat.|option B|\boxed{B}|\text{B}|**B**|$B$".split("|")
WRONG_ONE = "A|A or B|A, B|AB|A: a dog, B: cat|dog|a cat|".split("|")


@pytest.mark.parametrize("given, right", [(x, 1) for x in RIGHT_ONE] + [(x, 0) for x in WRONG_ONE])
def test_a_letter_is_right_alone_or_with_its_options_text(given, right):
    assert grade(Example(question=ASKED, answer="B", kind="letters"), given) == right
    lettered = Example(question="Which?", answer="cat", options=["a dog", "cat"])
    assert grade(lettered, given) == right


# ---- boxes --------------------------------------------------------------------------------------

BOX = Example(answer="[10, 20, 30, 40]", kind="box")
BOXES = ["10, 20, 30, 40", "[10, 20, 30, 40].", "[[10, 20, 30, 40]]", "(10,20),(30,40)"]
BOXES += ["１０，20，30，40", "[{'bbox_2d': [10, 20, 30, 40]}]"]
BOXES += ['{"bbox_2d": [10, 20, 30, 40], "label": "cat 2"}']
BOXES += ["<|object_ref_start|>cat 2<|object_ref_end|><|box_start|>(10,20),(30,40)<|box_end|>"]
BOXES += ['```json\n[\n  {"bbox_2d": [10, 20, 30, 40], "label": "cat"}\n]\n```']
NO_BOXES = ["[10, 20, 30]", "[10, 20, 30, 40], [1, 2, 3, 4]", "30, 40, 10, 20", "a 10, 20, 30, 40"]
NO_BOXES += ['[{"bbox_2d": [10, 20, 30, 40]}, {"bbox_2d": [1, 2, 3, 4]}]', f"0,0,{'9' * 400},20"]


@pytest.mark.parametrize("text, right", [(t, 1) for t in BOXES] + [(t, 0) for t in NO_BOXES])
def test_one_box_is_read_in_every_form_that_models_write(text, right):
    for response in (f"So it is.\nAnswer: {text}\n", f"So.\n<answer>{text}</answer>"):
        assert grade(BOX, split_marked(response)[1]) == right


def test_a_box_is_mapped_to_the_originals_pixels():
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
