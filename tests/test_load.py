"""What is known of the data before the first step, and what a run does with it."""

import json
import threading

import pytest
from PIL import Image

from config import parse, tolerances
from data import Example, InputError
from lib.log import Log
from lib.ranks import Ranks
from load import Task, check_task, made_ahead, step_groups
from model import encode_prompts
from start import estimate_memory

MINE = ["--dataset", "mine.jsonl", "--model", "tiny"]


def rows(*changes):
    """Ten good text-only examples, and one more for each of `changes`."""
    facts = [("red", "4"), ("blue", "7")]
    examples = [Example(question=f"What is red, {i}", answer="4", facts=facts) for i in range(10)]
    examples += [Example(**{"question": "What is red", "answer": "4", **more}) for more in changes]
    for i, example in enumerate(examples):
        example.id = f"row {i}"
    return examples


@pytest.fixture
def checked(tmp_path, vlm, capsys):
    """checked(flags, *changes): the numbers of the rows that are left, and what is said."""

    def check(flags, *changes):
        task, log = Task(rows(*changes), rows()[:2], {}), Log(str(tmp_path), True)
        left = check_task(parse([*MINE, *flags]), task, vlm[1], log).train
        return [int(example.id[4:]) for example in left], capsys.readouterr().out

    return check


def test_a_question_with_a_special_token_is_an_error_or_left_out(checked):
    bad = ({"question": "What is <image>"}, {"options": ["a", "<|im_end|>"]})
    with pytest.raises(InputError, match="2 examples, row 10, row 11: .* --skip_bad_rows"):
        checked([], *bad)
    left, said = checked(["--skip_bad_rows"], *bad)
    assert left == [*range(10)] and "left out: 2 examples" in said


@pytest.mark.parametrize("label", ["red\nblue", "nan", "Infinity", "...", "[]"])
def test_a_label_that_nothing_can_match_is_left_out_of_training(checked, label):
    left, said = checked([], {"answer": label})
    assert left == [*range(10)]
    assert "1 examples, row 10: no response could match the label" in said


def test_a_reader_is_told_what_scores_the_thinking_and_that_no_image_is_seen(checked):
    _, said = checked([], {"trace": "It is seen at once that red has four."}, {})
    assert "2 of 12 examples have no facts" in said and "not one example has any" in said


def test_tolerance_is_chartqas_in_evaluation_alone():
    for flags, wanted in (
        ("chartqa", (0, 0.05)),
        ("gsm8k", (0, 0)),
        ("aokvqa --tolerance 1", (1, 1)),
    ):
        assert tolerances(parse(["--dataset", *flags.split()])) == wanted


def test_a_recipe_sets_what_the_command_line_does_not():
    config = parse(["--dataset", "gsm8k", "--recipe", "published", "--num_train_epochs", "2"])
    published = (config.num_generations, config.max_completion_length, config.num_train_epochs)
    assert published == (16, 1024, 2) and config.prompts_per_step == 32
    with pytest.raises(InputError, match="--recipe published: is for chartqa, gsm8k"):
        parse(["--recipe", "published"])


def test_a_row_found_bad_late_is_an_error_or_leaves_its_slot_empty(tmp_path, vlm, capsys):
    """The image's header is fine, its end is missing."""
    Image.new("RGB", (64, 64)).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    bad = Example(image=str(tmp_path / "cut.png"), question="What is red", id="row 1")
    log, strict, lenient = Log(str(tmp_path), True), parse(MINE), parse([*MINE, "--skip_bad_rows"])
    model, processor = vlm

    def groups(config, example):
        return step_groups(config, model, [(0, example)], encode_prompts(processor, [example]), log)

    assert groups(lenient, bad) == [] and "left out: " in capsys.readouterr().out
    assert "not estimated" in estimate_memory(lenient, *vlm, [bad], Ranks())
    with pytest.raises(InputError, match="cut.png"):
        groups(strict, bad)
    strict.max_completion_length = 32760
    with pytest.raises(InputError, match="row 0: its prompt has .* room for 8 before"):
        groups(strict, rows()[0])


def test_the_next_step_is_made_while_this_one_is_used_and_the_order_stays():
    begun, used = threading.Event(), []

    def make(item):
        begun.set() if item == 1 else None
        return 6 // (2 - item)  # not for 2

    with pytest.raises(ZeroDivisionError):
        for made in made_ahead(make, range(4)):
            assert begun.wait(5)
            used.append(made)
    assert used == [3, 6]


def test_a_number_that_is_not_finite_is_null_in_the_log(tmp_path):
    Log(str(tmp_path), True).append("metrics.jsonl", {"step": 1, "loss": float("nan")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": None}
