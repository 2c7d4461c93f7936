"""Curr-ReFT: what each answer is paid, honest questions, rejected sampling, the stages in a row."""

import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import curr_reft
import reject
from checker import score
from curr_reft import read_flags, run_stages
from data import charts
from data.boxes import read_box
from data.charts import TASKS, load_charts
from data.example import DIRECT, Example, InputError
from data.forms import FORMS, stage_questions
from lib.answers import grade, read_letters
from lib.chat import Chat
from lib.ranks import Ranks
from rollout import Group, Response

torch.set_num_threads(1)

BOX = Example(question="box", answer="10,10,20,20", task="detection", kind="box")

# ---- the rewards of a stage (what each answer is paid: test_checker.py) -------------------------


@pytest.mark.parametrize(
    "kind, right, other",
    [
        ("decision", "yes", "10,10,20,20"),
        ("letters", "A, C", "yes"),
        ("box", "120,105,150,226", "120105150226"),
        ("labels", "red, blue", ",,"),
        ("text", "12", ""),
    ],
)
def test_format_reward_asks_for_an_answer_of_the_stages_form(kind, right, other):
    texts = [f"So it is.\nAnswer: {right}", f"So it is.\nAnswer: {other}", f"Answer: {right}"]
    texts += [right, f"So it is.\nAnswer: {right}\nAnswer: {right}"]
    scored = score(texts, Example(answer=right, kind=kind), reward_weights=(1, 1, 0))
    assert scored["format"].tolist() == [1, 0, 0, 0, 0]
    assert scored["total"].tolist() == [2, 0, 0, 0, 0]
    assert scored["correct"].tolist() == [True, False, False, False, False]


# ---- the questions ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def items():
    return list(load_charts("train", 216, tasks=TASKS))


def offered(choice: Example) -> list[str]:
    """The options of a choice, in the order of their letters."""
    lines = [line for line in choice.question.split("\n") if line[1:3] == ": "]
    assert [line[0] for line in lines] == list("ABCD")[: len(lines)] and choice.options is None
    return [line[3:] for line in lines]


def test_judge_questions_are_balanced_and_say_yes_exactly_for_right_answers(items):
    asked = stage_questions("judge", items, 0, grade)
    decisions = Counter((example.task, example.answer) for example in asked)
    assert all(abs(decisions[task, "yes"] - decisions[task, "no"]) <= 1 for task, _ in decisions)
    for item, example in zip(items, asked):
        start, _, rest = example.question.partition(" right, yes or no?\n")
        proposed = start.removeprefix("Is the answer ")
        assert (grade(item, proposed, 0.05) == 1) == (example.answer == "yes")
        assert rest == item.question and example.kind == "decision"


def test_a_choice_s_letters_are_its_right_options_among_wrong_ones_of_their_kind(items):
    sizes = set()
    for item, example in zip(items, stage_questions("choice", items, 0, grade)):
        letters, options = read_letters(example.answer), offered(example)
        for letter, option in zip("ABCD", options):
            labels = item.answer.split(", ") if item.kind == "labels" else None
            right = option in labels if labels else grade(item, option) == 1
            assert right == (letter in letters)
        assert 0 < len(letters) < len(options) == len(set(options))
        sizes.add(len(letters))
        words = {"yes", "no"} if item.task == "comparison" else set(charts.COLOURS)
        alike = str.isdigit if item.answer.isdigit() else words.__contains__
        assert all(map(read_box if item.kind == "box" else alike, options))
    assert {1, 2, 3} <= sizes


def test_a_tables_cells_and_names_are_offered_where_the_answer_is_one():
    facts = [("2019", "Oslo", "3"), ("2020", "Oslo", "4"), ("2020", "Rome", "9")]
    ask = Example(question="How many?", answer="4", facts=facts, id="a")
    name = replace(ask, answer="Rome")
    number, word = stage_questions("choice", [ask, name], 0, grade)
    assert set(offered(number)) == {"3", "4", "9"}
    assert set(offered(word)) <= {"2019", "2020", "Oslo", "Rome"}


def test_what_no_question_can_be_made_of_is_an_error_that_names_the_example():
    for bad in (Example(question="?", answer="3", task="one", id="a"), replace(BOX, id="a")):
        with pytest.raises(InputError, match="^a: "):
            stage_questions("choice", [bad], 0, grade)


# ---- rejected sampling --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def item():
    return next(e for e in load_charts("train", 60) if e.task == "sum")


def said(item, texts) -> Group:
    return Group(0, item, None, [Response([], text, False) for text in texts])


def working(item, result=None) -> str:
    (a, x), (b, y) = item.needed
    return f"Observation: {a} {x}, {b} {y}. Reasoning: {x} + {y} = {result or item.answer}."


def test_only_a_right_grounded_answer_is_above_the_threshold(item):
    wrong = int(item.answer) + 1
    good = f"{working(item)}\nAnswer: {item.answer}"
    bad = [
        f"It is what one sees.\nAnswer: {item.answer}",  # right, but not about the picture
        f"{working(item, wrong)}\nAnswer: {wrong}",
        f"{working(item, wrong)}\nAnswer: {item.answer}",  # a sum that is false
        good.replace("Answer: ", ""),
        f"{working(item)[:20]} " * 9 + f"\nAnswer: {item.answer}",
        "",
    ]
    scores = [reject.best_row(said(item, [text]))["score"] for text in [good, *bad]]
    assert scores[0] == 100 and all(0 <= score <= 85 for score in scores[1:]), scores


def test_the_best_sample_is_kept_and_the_prompts_are_counted(item):
    good = f"{working(item)}\nAnswer: {item.answer}"
    samples = [["nothing", good], ["nothing", "no"], [f"It is seen.\nAnswer: {item.answer}", "no"]]
    rows = [reject.best_row(said(item, texts)) for texts in samples]
    learned, *none = [reject.keep_best(row, item, 85) for row in rows]
    assert learned == replace(item, trace=working(item)) and none == [None, None]


def test_a_kept_box_is_in_the_images_pixels_again():
    asked = replace(BOX, scale=(2, 2))
    row = reject.best_row(said(asked, ["It is here.\nAnswer: [5, 5, 10, 10]"]))
    learned = reject.keep_best(row, BOX, 0)
    assert row["correct"] and learned.answer == "[10, 10, 20, 20]"


def test_a_judge_scores_what_is_right_and_nothing_else(item, monkeypatch):
    flags = read_flags("--judge_url http://127.0.0.1:9/v1 --judge_model judge".split())
    asked, chat, replies = [], Chat(flags), iter(["20 25 25 10", "very good"])

    def answer(_, prompt):
        asked.append(prompt)
        return next(replies), True

    monkeypatch.setattr(Chat, "ask", answer)
    good = f"So it is.\nAnswer: {item.answer}"
    rows = [reject.best_row(said(item, ["No.\nAnswer: 0", good]), chat=chat) for _ in range(2)]
    chat.close()
    assert len(asked) == 2 and all("So it is." in prompt for prompt in asked)
    assert [(row["by"], row["response"]) for row in rows] == [("judge", good), ("local", good)]
    assert rows[0]["score"] == 80


def test_given_questions_of_a_stage_are_asked_as_they_are(tmp_path):
    for name, answer in (("judge", "Yes"), ("choice", "A, C"), ("open", "3")):
        rows = [{"problem": f"q{i}", "solution": f"<answer>{answer}</answer>"} for i in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = [f"{form}={tmp_path}/{form}.jsonl" for form in FORMS]
    flags = ["--dataset", f"{tmp_path}/open.jsonl", "--stage_data"]
    tasks = [curr_reft.stage_task(read_flags([*flags, *files]), form) for form in FORMS]
    asked = [(task.train[0].kind, task.train[0].answer, len(task.val)) for task in tasks]
    assert asked == [("decision", "Yes", 2), ("letters", "A, C", 2), ("math", "3", 2)]
    with pytest.raises(InputError, match="open.jsonl/1: '3' is no answer of stage judge"):
        curr_reft.stage_task(read_flags([*flags, f"judge={tmp_path}/open.jsonl"]), "judge")


def test_mixed_examples_are_of_other_domains_and_ask_for_no_thinking(tmp_path):
    mixed = reject.mix_examples(read_flags([]), 40)
    assert len(mixed) == 40 and {e.image is None for e in mixed} == {True, False}
    assert {e.instruction for e in mixed} == {charts.CAPTION, charts.EXPLAIN, DIRECT}
    own, row = tmp_path / "mix.jsonl", {"question": "2 + 2", "answer": "4"}
    rows = [row, {**row, "trace": "2 and 2."}, row]
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    direct, thought = reject.mix_examples(read_flags(["--mix", str(own)]), 12)
    assert (direct.instruction, thought.instruction) == (DIRECT, None)


# ---- all stages ---------------------------------------------------------------------------------

RUN = Path("out", "charts-curr_reft")


def keep_all(row, example, threshold):
    """What is kept of a sample that is wrong."""
    return replace(example, trace="So.")


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """Flags of a run of seconds; its random model is taught nothing, so keep_all."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reject, "keep_best", keep_all)
    flags = "--base_task_steps 1 --max_steps 4 --train_size 18 --eval_size 18"
    flags += " --prompts_per_step 2 --reject_size 5 --max_completion_length 8 --reject_samples 2"
    flags += " --reject_epochs 0.6 --final_splits test --log_groups_every 1 --no-eval_base"
    return flags.split()


def read(path: Path):
    return json.loads(path.read_text())


def run(flags: list[str], *more: str) -> dict:
    return run_stages(read_flags([*more, "--", *flags]), Ranks())


def test_every_stage_starts_from_the_last_ones_weights(quick):
    result = run(quick)
    stages = [RUN / stage for stage in ("judge", "choice", "open", "reject")]
    starts = [read(stage / "result.json")["config"]["model"] for stage in stages]
    assert starts == ["tiny", *map(str, stages[:3])]
    assert [read(stage / "result.json")["step"] for stage in stages] == [1, 1, 2, 2]
    assert all((s / "checkpoints").is_dir() and (s / "metrics.jsonl").exists() for s in stages)
    assert set(result["final"]["test"]) == {"greedy", "sampled", "direct", "other", "blank", *FORMS}
    for name in ("metrics.jsonl", "groups.jsonl"):
        joined = [json.loads(line) for line in (RUN / name).open()]
        assert {line["step"] for line in joined} == set(range(6)) == set(range(result["step"]))
        assert joined[-1]["stage"] == "reject"


def test_when_nothing_is_kept_the_last_stages_model_is_the_result(quick, monkeypatch):
    monkeypatch.setattr(reject, "keep_best", lambda *_: None)
    result = run(quick, "--stages", "open", "reject")
    assert list(result["stages"]) == ["open"] and (RUN / "model.safetensors").exists()
    assert result["step"] == 4 and result["final"]["test"]  # open makes all the updates
    with pytest.raises(InputError, match="nothing kept"):
        run(quick, "--stages", "reject", "--overwrite")


def test_a_run_is_not_written_over_and_a_resumed_one_samples_only_the_rest(quick, monkeypatch):
    flags, sampled = [*quick, "--stages", "reject"], RUN / "reject" / "sampled.jsonl"
    run(flags)
    whole = sampled.read_text()
    with pytest.raises(InputError, match="--resume"):
        run(flags)
    stages = read(RUN / "stages.json")
    (RUN / "stages.json").write_text(json.dumps({"config": stages["config"]}))
    shutil.rmtree(sampled.with_name("checkpoints"))  # as if it had been stopped while it sampled
    sampled.write_text(whole[: len(whole) * 2 // 3])
    asked, best_row = [], reject.best_row
    monkeypatch.setattr(reject, "best_row", lambda *of: asked.append(of) or best_row(*of))
    run(flags, "--resume")
    assert sampled.read_text() == whole and 0 < len(asked) < 5
    with pytest.raises(InputError, match="stages.json is of another run: --seed: was 0, is now"):
        run(flags, "--resume", "--seed", "1")
    (RUN / "stages.json").write_text("[1]")
    with pytest.raises(InputError, match="stages.json: was not written here"):
        run(flags, "--resume")


def test_a_kill_at_any_of_the_small_files_is_made_good_by_resume(quick, monkeypatch):
    flags, rename = [*quick, "--stages", "judge", "reject", "--resume"], os.replace
    for name, most in (
        ("stages.json", 0),
        ("kept.jsonl", 0),
        ("stages.json", 1),
        ("stages.json", 0),
    ):
        written = []

        def killed(source, target, name=name, most=most, written=written):
            written += [name] * (Path(target).name == name)
            if len(written) > most:
                raise KeyboardInterrupt
            rename(source, target)

        monkeypatch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run(flags)
    monkeypatch.setattr(os, "replace", rename)
    assert run(flags)["final"]["test"]


def test_the_published_recipe_sets_each_stages_own_numbers():
    config = read_flags(["--recipe", "published", "--dataset", "x.jsonl", "--seed", "1"])
    assert config.model == "Qwen/Qwen2.5-VL-3B-Instruct" and not config.freeze_vision
    assert (config.beta, config.num_train_epochs, config.learning_rate) == (0.04, 4, 1e-6)
    stages = [curr_reft.stage_config(config, stage, "m") for stage in curr_reft.STAGES]
    assert [stage.num_generations for stage in stages[:3]] == [4, 2, 4]
    assert [stage.num_train_epochs for stage in stages] == [1, 1, 2, 3]
    assert [stage.learning_rate for stage in stages] == [1e-6, 1e-6, 1e-6, 2e-7]


def test_the_sft_on_what_was_kept_has_its_own_warm_up_and_limit(quick):
    run(quick, *"--reject_epochs 9 --reject_steps 4 --reject_warmup 0.5 --stages reject".split())
    config = read(RUN / "reject" / "result.json")["config"]
    assert (config["max_steps"], config["warmup_steps"]) == (4, 2)


def test_a_file_to_mix_in_that_cannot_be_read_ends_it_before_a_model_is_loaded(quick, monkeypatch):
    monkeypatch.setattr(curr_reft, "first_load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(InputError, match="gone.jsonl"):
        run(quick, "--mix", "gone.jsonl")


BAD = ["--stages", "--resume out/x", "--mix_share 1", "--method dyme", "--recipe published"]
BAD += ["--dry_run --stages reject", "--dataset x.jsonl --stage_data x.jsonl"]


@pytest.mark.parametrize("flags", [*BAD, "--stage_generations 4 2"])
def test_flags_that_cannot_be_are_one_line_and_code_2(flags, refused):
    refused(curr_reft.run, flags)
