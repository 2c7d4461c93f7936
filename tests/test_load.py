"""What is known of the data before the first step, and what a run does with it."""

import json

import pytest
from PIL import Image

from config import parse, tolerances
from data import Example, InputError
from lib.log import Log
from lib.ranks import Ranks
from load import Task, check_task, encode
from start import estimate_memory


def rows(*changes):
    """Ten good text-only examples, and one more for each of `changes`."""
    facts = [("red", "4"), ("blue", "7")]
    good = [Example(question=f"What is red, {i}", answer="4", facts=facts) for i in range(10)]
    more = [Example(**{"question": "What is red", "answer": "4", **change}) for change in changes]
    for i, example in enumerate(good + more):
        example.id = f"row {i}"
    return good + more


def checked(tmp_path, vlm, examples, *flags, capsys=None):
    """The training examples that are left, and what is said."""
    config = parse(["--dataset", "mine.jsonl", "--model", "tiny", *flags])
    task = Task(examples, rows()[:2], {})
    left = check_task(config, task, vlm[1], Log(str(tmp_path), True)).train
    return [example.id for example in left], capsys.readouterr().out


def test_a_question_with_a_special_token_is_an_error_or_left_out(tmp_path, vlm, capsys):
    examples = rows({"question": "What is <image>"}, {"options": ["a", "<|im_end|>"]})
    with pytest.raises(InputError, match="2 examples, row 10, row 11: .* --skip_bad_rows"):
        checked(tmp_path, vlm, examples, capsys=capsys)
    left, said = checked(tmp_path, vlm, examples, "--skip_bad_rows", capsys=capsys)
    assert left == [f"row {i}" for i in range(10)] and "left out: 2 examples" in said


@pytest.mark.parametrize("label", ["red\nblue", "nan", "Infinity", "...", "[]"])
def test_a_label_that_nothing_can_match_is_left_out_of_training(tmp_path, vlm, capsys, label):
    left, said = checked(tmp_path, vlm, rows({"answer": label}), capsys=capsys)
    assert "row 10" not in left and len(left) == 10
    assert "1 examples, row 10: no response could match the label" in said


def test_a_reader_is_told_what_scores_the_thinking_and_that_no_image_is_seen(tmp_path, vlm, capsys):
    examples = rows({"trace": "It is seen at once that red has four."}, {})
    _, said = checked(tmp_path, vlm, examples, capsys=capsys)
    assert "2 of 12 examples have no facts" in said
    assert "not one example has any" in said


def test_tolerance_is_chartqas_in_evaluation_alone():
    assert tolerances(parse(["--dataset", "chartqa"])) == (0.0, 0.05)
    assert tolerances(parse(["--dataset", "gsm8k"])) == (0.0, 0.0)
    assert tolerances(parse(["--dataset", "gsm8k", "--tolerance", "0.1"])) == (0.1, 0.1)


def test_a_recipe_sets_what_the_command_line_does_not():
    config = parse(["--dataset", "gsm8k", "--recipe", "published", "--num_train_epochs", "2"])
    published = (config.num_generations, config.max_completion_length, config.num_train_epochs)
    assert published == (16, 1024, 2) and config.prompts_per_step == 32
    assert parse(["--dataset", "aokvqa", "--recipe", "published"]).num_generations == 4
    with pytest.raises(InputError, match="--recipe published: is for chartqa, gsm8k"):
        parse(["--recipe", "published"])


def test_a_row_found_bad_late_leaves_its_slot_empty(tmp_path, vlm, capsys):
    """The image's header is fine, its end is missing."""
    Image.new("RGB", (64, 64)).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    bad = Example(image=str(tmp_path / "cut.png"), question="What is red", id="row 1")
    for flags, skips in (([], False), (["--skip_bad_rows"], True)):
        config = parse(["--dataset", "mine.jsonl", "--model", "tiny", *flags])
        log = Log(str(tmp_path), True)
        if skips:
            assert encode(config, *vlm, [(0, bad)], log) == []
            assert "left out: " in capsys.readouterr().out
            assert "not estimated" in estimate_memory(config, *vlm, [bad], Ranks())
        else:
            with pytest.raises(InputError, match="cut.png"):
                encode(config, *vlm, [(0, bad)], log)
            config.max_completion_length = 32760
            with pytest.raises(InputError, match="row 0: its prompt has .* room for 8 before"):
                encode(config, *vlm, [(0, rows()[0])], log)


def test_a_number_that_is_not_finite_is_null_in_the_log(tmp_path):
    log = Log(str(tmp_path), True)
    log.append("metrics.jsonl", {"step": 1, "loss": float("nan")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": None}
