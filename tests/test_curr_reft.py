"""
Curr-ReFT: what each reward pays, honest questions, rejected sampling, the stages one after the
other. No network.
"""

import functools
import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch

from data import charts
import quality
import reject
from data.charts import TASKS, load_charts
from lib.ranks import Ranks
from curr_reft import FORMS, accuracy_reward, read_box, read_letters, score_stage, stage_questions
from data import Example, InputError
from evaluate import pass_at_k, pass_at_ks
from config import parse
from model import DIRECT
from stages import run_stages
from lib.tiny import tiny_vlm

torch.set_num_threads(1)

JUDGE = Example(question="Is the answer 4 right, yes or no?", answer="yes", task="value")
ONE = Example(question="Choose", answer="B", options=list("abcd"), task="value")
TWO = Example(question="Choose", answer="A, C", options=list("abcd"), task="value")
BOX = Example(question="box", answer="10,10,20,20", task="detection")
LABELS = Example(question="colours", answer="red, blue", task="classification-5bars")
MATH = Example(question="sum", answer="12", task="sum")


@pytest.mark.parametrize(
    "form, example, answer, reward",
    [
        ("judge", JUDGE, "yes", 1),
        ("judge", JUDGE, "Yes.", 1),
        ("judge", JUDGE, "no", 0),
        ("judge", JUDGE, "yes or no", 0),
        ("judge", JUDGE, "yes no", 0),
        ("judge", JUDGE, "", 0),
        ("judge", JUDGE, None, 0),
        ("choice", ONE, "B", 1),
        ("choice", ONE, "b", 1),
        ("choice", ONE, "B, B", 1),
        ("choice", ONE, "A", 0),
        ("choice", ONE, "A, B", 0),
        ("choice", ONE, "A, B, C, D", 0),
        ("choice", ONE, "", 0),
        ("choice", ONE, "Bad", 0),
        ("choice", TWO, "C, A", 1),
        ("choice", TWO, "C and A", 1),
        ("choice", TWO, "AC", 1),
        ("choice", TWO, "A", 0.2),
        ("choice", TWO, "A A A", 0.2),
        ("choice", TWO, "A, B", 0),
        ("choice", TWO, "A, C, E", 0),
        ("choice", TWO, "ABCD", 0),
        ("choice", TWO, " , ", 0),
        ("open", BOX, "10,10,20,20", 1),
        ("open", BOX, "[10, 10, 20, 20]", 1),
        ("open", BOX, "11,10,21,20", 1),
        ("open", BOX, "10,10,20,15", 0),  # an IoU of exactly 0.5 is not above it
        ("open", BOX, "20,20,10,10", 0),
        ("open", BOX, "20,10,10,20", 0),
        ("open", BOX, "10,10,20", 0),
        ("open", BOX, "10,10,20,20,10,10,20,20", 0),
        ("open", BOX, "-999999,-999999,999999,999999", 0),
        ("open", BOX, "0,0," + "9" * 400 + ",20", 0),
        ("open", BOX, "nan,nan,nan,nan", 0),
        ("open", BOX, "10,10,1e9,1e9", 0),
        ("open", BOX, "", 0),
        ("open", LABELS, "red, blue", 1),
        ("open", LABELS, "Blue, RED", 1),
        ("open", LABELS, "red, red, red", 0.5),
        ("open", LABELS, "red, green", 1 / 3),
        ("open", LABELS, ", ".join(charts.COLOURS), 2 / 8),
        ("open", LABELS, "", 0),
        ("open", LABELS, ",,", 0),
        ("open", MATH, "12", 1),
        ("open", MATH, "12.0", 1),
        ("open", MATH, "13", 0),
        ("open", MATH, "12.1", 0),
        ("open", MATH, "", 0),
        ("open", MATH, "$", 0),
        ("open", MATH, "twelve or 13", 0),
    ],
)
def test_accuracy_reward(form, example, answer, reward):
    assert accuracy_reward(form, answer, example) == pytest.approx(reward)


def test_three_digit_coordinates_are_no_thousands():
    example = replace(BOX, answer="120,105,150,226")
    scored = score_stage(
        "open",
        ["It is there.\nAnswer: 120,105,150,226", "It is there.\nAnswer: 120105150226"],
        example,
    )
    assert scored["accuracy"].tolist() == [1, 0]
    assert scored["format"].tolist() == [1, 0]


@pytest.mark.parametrize(
    "form, example, right, other",
    [
        ("judge", JUDGE, "yes", "10,10,20,20"),
        ("choice", ONE, "B", "yes"),
        ("open", BOX, "10,10,20,20", "B"),
        ("open", MATH, "12", ", "),
    ],
)
def test_format_reward_asks_for_an_answer_of_the_stages_form(form, example, right, other):
    texts = [
        f"So.\nAnswer: {right}",
        f"So.\nAnswer: {other}",
        f"Answer: {right}",
        right,
        f"So.\nAnswer: {right}\nAnswer: {right}",
    ]
    scored = score_stage(form, texts, example, reward_weights=(1, 1, 0))
    assert scored["format"].tolist() == [1, 0, 0, 0, 0]
    assert scored["total"].tolist() == [2, 0, 0, 0, 0]
    assert scored["correct"].tolist() == [True, False, False, False, False]


def test_readers_refuse_what_has_not_the_form():
    assert read_letters("A: red") is None and read_letters("(C)") == {"C"}
    assert read_box("1,2,3") is None and read_box("1, 2, 3, 4.5") == (1, 2, 3, 4.5)


# ---- the questions


@pytest.fixture(scope="module")
def items():
    return list(load_charts("train", 216, tasks=TASKS))


def test_judge_questions_are_balanced_and_say_yes_exactly_for_right_answers(items):
    asked = stage_questions("judge", items)
    for task in {item.task for item in items}:
        decisions = Counter(e.answer for e in asked if e.task == task)
        assert abs(decisions["yes"] - decisions["no"]) <= 1
    for item, example in zip(items, asked):
        proposed = example.question.removeprefix("Is the answer ").partition(" right, yes or no?")[
            0
        ]
        assert (accuracy_reward("open", proposed, item, 0.05) == 1) == (example.answer == "yes")
        assert example.question.endswith(item.question)


def test_a_choice_s_letters_are_its_right_options_never_all_of_them(items):
    sizes = Counter()
    for item, example in zip(items, stage_questions("choice", items)):
        letters = read_letters(example.answer)
        for letter, option in zip("ABCD", example.options):
            right = (
                option in item.answer.split(", ")
                if item.task == "classification"
                else accuracy_reward("open", option, item) == 1
            )
            assert right == (letter in letters)
            assert f"{letter}: {option}\n" in example.question
        assert 0 < len(letters) < len(example.options) == len(set(example.options))
        sizes[len(letters)] += 1
    assert {1, 2, 3} <= set(sizes)


def test_distractors_are_of_the_answers_kind(items):
    for item, example in zip(items, stage_questions("choice", items)):
        if item.task == "detection":
            assert all(map(read_box, example.options))
        elif item.answer.isdigit():
            assert all(option.isdigit() for option in example.options)
        else:
            assert set(example.options) <= (
                {"yes", "no"} if item.task == "comparison" else set(charts.COLOURS)
            )


def test_questions_depend_on_their_arguments_alone(items):
    for form in FORMS:
        assert stage_questions(form, items, 1) == stage_questions(form, items, 1)
    assert stage_questions("choice", items, 1) != stage_questions("choice", items, 2)


@pytest.mark.parametrize(
    "bad",
    [Example(question="?", answer="3", task="one", id="a"), replace(BOX, answer="left", id="a")],
)
def test_what_no_question_can_be_made_of_is_an_error_that_names_the_example(bad):
    with pytest.raises(InputError, match="^a: "):
        stage_questions("choice", [bad])


# ---- rejected sampling


@pytest.fixture(scope="module")
def item():
    return next(e for e in load_charts("train", 60) if e.task == "sum")


def graded(texts, item):
    scored = score_stage("open", texts, item)
    scores = []
    for g, text in enumerate(texts):
        rewards = {name: float(scored[name][g]) for name in ("accuracy", "format")}
        scores.append(quality.total(quality.local_quality(text, item, rewards), quality.WEIGHTS))
    return scores


def test_only_a_right_grounded_answer_is_above_the_threshold(item):
    (a, x), (b, y) = item.needed
    wrong = int(item.answer) + 1
    good = f"Observation: {a} {x}, {b} {y}. Reasoning: {x} + {y} = {item.answer}.\nAnswer: {item.answer}"
    texts = [
        good,
        f"It is what one sees.\nAnswer: {item.answer}",  # right, but not about the picture
        f"Observation: {a} {x}, {b} {y}. Reasoning: {x} + {y} = {wrong}.\nAnswer: {wrong}",
        f"Observation: {a} {x}, {b} {y}. Reasoning: {x} + {y} = {wrong}.\nAnswer: {item.answer}",  # a sum that is false
        good.replace("Answer: ", ""),
        f"{a} {x}, {b} {y} " * 9 + f"\nAnswer: {item.answer}",
        "",
    ]
    scores = graded(texts, item)
    assert scores[0] == 100
    assert all(0 <= score <= 85 for score in scores[1:]), scores


def test_the_best_sample_is_kept_and_why_the_others_fell_is_counted(item):
    (a, x), (b, y) = item.needed
    good = f"Observation: {a} {x}, {b} {y}. Reasoning: {x} + {y} = {item.answer}.\nAnswer: {item.answer}"
    groups = [["nothing", good], ["nothing", "no"], [f"It is seen.\nAnswer: {item.answer}", "no"]]
    rows = []
    for texts in groups:
        rows.append(reject.best_row(item, texts, score_stage("open", texts, item)))
    kept, learned = reject.keep_best(rows, [item] * 3, 85)
    assert [row["trace"] for row in kept] == [learned[0].trace] == [good.partition("\nAnswer")[0]]
    assert learned[0].answer == item.answer and learned[0].image is item.image
    (counts,) = reject.account(rows, 85).values()
    assert counts["prompts"] == 3 and counts["kept"] == 1
    assert counts["fell"] == {reject.REASONS["accuracy"]: 1, reject.REASONS["consistency"]: 1}


def test_a_judge_scores_what_is_right_and_nothing_else(item, monkeypatch):
    class Pool:
        def submit(self, function, *arguments):
            asked.append(arguments[1])
            return type("Done", (), {"result": lambda self: dict.fromkeys(reject.WEIGHTS, 0.9)})()

    asked, judge = [], type("Judge", (), {"chat": type("Chat", (), {"pool": Pool()})()})()
    texts = ["So.\nAnswer: 0", f"So.\nAnswer: {item.answer}", item.answer]
    row = reject.best_row(item, texts, score_stage("open", texts, item), judge)
    assert asked == texts[1:2]
    assert (row["score"], row["by"], row["response"]) == (90, "judge", texts[1])


@pytest.mark.parametrize(
    "reply, parts", [("20 25 25 10", [0.8, 1, 1, 0.4]), ("100 25 25 25", None), ("very good", None)]
)
def test_a_judges_reply_is_four_numbers_or_nothing(item, monkeypatch, reply, parts):
    monkeypatch.setattr(quality, "ask", lambda chat, messages: (reply, True))
    judge = type("Judge", (), {"chat": None})()
    found = quality.judge_quality(judge, "So.\nAnswer: 5", item)
    assert (found and list(found.values())) == parts


def test_mixed_examples_are_of_other_domains_and_ask_for_no_thinking(tmp_path):
    mixed = reject.mix_examples(parse(["--method", "curr_reft"]), 12)
    assert Counter(e.id for e in mixed) == {"mix-caption": 4, "mix-direct": 4, "mix-text": 4}
    assert all(e.instruction and (e.image is None) == (e.id == "mix-text") for e in mixed)
    own = tmp_path / "mix.jsonl"
    own.write_text(
        '{"question": "2 + 2", "answer": "4"}\n{"question": "3 + 3", "answer": "6", "trace": "3 and 3."}\n'
    )
    direct, thought = reject.mix_examples(parse(["--method", "curr_reft", "--mix", str(own)]), 12)
    assert (direct.instruction, thought.instruction) == (DIRECT, None)


# ---- pass@k


def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample():
    assert pass_at_k(4, 1, 1) == 0.25 and pass_at_k(4, 1, 4) == 1 and pass_at_k(4, 0, 4) == 0
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)
    with pytest.raises(ValueError):
        pass_at_k(4, 2, 8)


def test_pass_at_ks_comes_from_counts_that_no_batch_changes():
    model, processor = tiny_vlm(0)
    examples = stage_questions("judge", load_charts("test", 18, tasks=TASKS))[:5]

    def score(
        texts, example, tolerance
    ):  # random weights answer nothing: count what they say instead
        return {"accuracy": torch.tensor([float(len(text) % 3 == 0) for text in texts])}

    readings = [
        pass_at_ks(
            model,
            processor,
            examples,
            samples=4,
            max_completion_length=6,
            score=score,
            batch_rows=rows,
        )
        for rows in (4, 100)
    ]
    assert readings[0] == readings[1]
    assert readings[0]["pass@1"] == pytest.approx(sum(readings[0]["right"]) / 20)
    assert (
        set(readings[0]) == {"pass@1", "pass@2", "pass@4", "samples", "right"}
        and 0 < sum(readings[0]["right"]) < 20
    )


# ---- all stages


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """
    Flags of a run of seconds; its random model is taught nothing, so that what is kept is kept at
    any score.
    """
    monkeypatch.chdir(tmp_path)
    flags = "--method curr_reft --base_steps 1 --base_task_steps 1 --max_steps 4 --train_size 18"
    flags += " --eval_size 18 --prompts_per_step 2 --reject_size 5 --max_completion_length 8"
    flags += " --reject_samples 2 --reject_steps 2 --final_splits test --log_groups_every 1"
    flags += " --no-eval_base"
    monkeypatch.setattr("stages.keep_best", functools.partial(keep_all))
    return flags.split()


def keep_all(rows, examples, threshold):
    return [{"id": row["id"]} for row in rows], [replace(e, trace="So.") for e in examples]


def test_every_stage_starts_from_the_last_ones_weights(quick, tmp_path):
    result = run_stages(parse(quick), Ranks())
    stages = ["judge", "choice", "open", "reject"]
    folders = [tmp_path / "out" / "charts-curr_reft" / stage for stage in stages]
    starts = [
        json.loads((folder / "result.json").read_text())["config"]["model"] for folder in folders
    ]
    assert starts == ["tiny", *(str(f.relative_to(tmp_path)) for f in folders[:3])]
    assert [json.loads((f / "result.json").read_text())["step"] for f in folders] == [1, 1, 2, 2]
    assert all((f / "checkpoints").is_dir() and (f / "metrics.jsonl").exists() for f in folders)
    assert result["step"] == 6 and set(result["final"]["test"]) == {
        "greedy",
        "sampled",
        "direct",
        *FORMS,
    }
    joined = (folders[0].parent / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in joined] == list(range(6))
    shown = (folders[0].parent / "groups.jsonl").read_text().splitlines()
    assert sorted({json.loads(line)["step"] for line in shown}) == list(range(6))


def test_when_nothing_is_kept_the_last_stages_model_is_the_result(quick, tmp_path, monkeypatch):
    monkeypatch.setattr("stages.keep_best", lambda *_: ([], []))
    result = run_stages(parse([*quick, "--stages", "open", "reject"]), Ranks())
    folder = tmp_path / "out" / "charts-curr_reft"
    assert list(result["stages"]) == ["open"] and (folder / "model.safetensors").exists()
    with pytest.raises(InputError, match="nothing kept"):
        run_stages(parse([*quick, "--stages", "reject", "--overwrite"]), Ranks())


def test_without_curriculum_the_open_stage_makes_all_updates(quick):
    assert run_stages(parse([*quick, "--stages", "open"]), Ranks())["step"] == 4


def test_a_run_is_not_written_over_and_a_resumed_one_samples_only_the_rest(
    quick, tmp_path, monkeypatch
):
    flags = [*quick, "--stages", "reject"]
    run_stages(parse(flags), Ranks())
    folder = tmp_path / "out" / "charts-curr_reft" / "reject"
    whole = (folder / "sampled.jsonl").read_text()
    with pytest.raises(InputError, match="--resume"):
        run_stages(parse(flags), Ranks())
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "checkpoints")  # as if it had been stopped while it sampled
    (folder / "sampled.jsonl").write_text(whole[: len(whole) * 2 // 3])
    sampled, best_row = [], reject.best_row
    monkeypatch.setattr(
        reject, "best_row", lambda e, *rest: sampled.append(e.id) or best_row(e, *rest)
    )
    run_stages(parse([*flags, "--resume"]), Ranks())
    assert (folder / "sampled.jsonl").read_text() == whole
    assert 0 < len(sampled) < 5
    with pytest.raises(InputError, match="--overwrite"):
        (folder / "result.json").unlink()
        run_stages(parse([*flags, "--resume", "--reject_samples", "3"]), Ranks())
