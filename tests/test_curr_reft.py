"""Curr-ReFT: honest questions, what rejected sampling keeps, the stages in a row."""

import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

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

BOX = Example(question="box", answer="10,10,20,20", task="detection", kind="box", id="a")
KINDS = [("decision", "yes", "1,1,2,2"), ("letters", "A, C", "yes"), ("text", "12", "")]
KINDS += [("box", "120,105,150,226", "120105150226"), ("labels", "red, blue", ",,")]


@pytest.mark.parametrize("kind, right, other", KINDS)
def test_format_reward_asks_for_an_answer_of_the_stages_form(kind, right, other):
    texts = [f"So it is.\nAnswer: {right}", f"So it is.\nAnswer: {other}", f"Answer: {right}"]
    texts += [right, f"So it is.\nAnswer: {right}\nAnswer: {right}"]
    scored = score(texts, Example(answer=right, kind=kind), reward_weights=(1, 1, 0))
    assert scored["total"].tolist() == [2, 0, 0, 0, 0]


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
        right = grade(item, start.removeprefix("Is the answer "), 0.05) == 1
        assert right == (example.answer == "yes") and rest == item.question


def test_a_choice_s_letters_are_its_right_options_among_wrong_ones_of_their_kind(items):
    sizes = set()
    for item, example in zip(items, stage_questions("choice", items, 0, grade)):
        letters, options = read_letters(example.answer), offered(example)
        labels = item.answer.split(", ") if item.kind == "labels" else None
        right = [o in labels if labels else grade(item, o) == 1 for o in options]
        assert letters == {letter for letter, fine in zip("ABCD", right) if fine}
        assert 0 < len(letters) < len(options) == len(set(options))
        sizes.add(len(letters))
        words = {"yes", "no"} if item.task == "comparison" else set(charts.COLOURS)
        alike = str.isdigit if item.answer.isdigit() else words.__contains__
        assert all(map(read_box if item.kind == "box" else alike, options))
    assert {1, 2, 3} <= sizes


def test_a_tables_cells_and_names_are_offered_where_the_answer_is_one():
    facts = [("2019", "Oslo", "3"), ("2020", "Oslo", "4"), ("2020", "Rome", "9")]
    asked = [Example(question="?", answer=answer, facts=facts, id="a") for answer in ("4", "Rome")]
    number, word = map(offered, stage_questions("choice", asked, 0, grade))
    assert set(number) == {"3", "4", "9"} and set(word) <= {"2019", "2020", "Oslo", "Rome"}
    for bad in (replace(asked[0], facts=[]), BOX):  # no wrong answer is like the right one
        with pytest.raises(InputError, match="^a: "):
            stage_questions("choice", [bad], 0, grade)


def test_given_questions_of_a_stage_are_asked_as_they_are(tmp_path):
    for name, answer in (("judge", "Yes"), ("choice", "A, C"), ("open", "3")):
        rows = [{"problem": f"q{i}", "solution": f"<answer>{answer}</answer>"} for i in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = [f"{form}={tmp_path}/{form}.jsonl" for form in FORMS]
    flags = ["--dataset", f"{tmp_path}/open.jsonl", "--stage_data"]
    config = read_flags([*flags, *files])
    asked = [curr_reft.ask_split(config, stage, "val") for stage in curr_reft.STAGES]
    found = [(examples[0].kind, examples[0].answer, len(examples)) for examples in asked]
    math = ("math", "3", 2)
    assert found == [("decision", "Yes", 2), ("letters", "A, C", 2), math, math]
    with pytest.raises(InputError, match="open.jsonl/1: '3' is no answer of stage judge"):
        curr_reft.ask_split(read_flags([*flags, f"judge={tmp_path}/open.jsonl"]), "judge", "train")


ITEM = next(e for e in load_charts("train", 60) if e.task == "sum")
(A, X), (B, Y) = ITEM.needed
WORKING = f"Observation: {A} {X}, {B} {Y}. Reasoning: {X} + {Y} = "
RIGHT, WRONG = f"\nAnswer: {ITEM.answer}", int(ITEM.answer) + 1
GOOD, SEEN = f"{WORKING}{ITEM.answer}.{RIGHT}", f"It is what one sees.{RIGHT}"
BAD = [
    SEEN,  # right, but not about the picture
    f"{WORKING}{WRONG}.\nAnswer: {WRONG}",
    f"{WORKING}{WRONG}. So it is {ITEM.answer}.{RIGHT}",  # a sum that is false
    GOOD.replace("Answer: ", ""),
    f"{GOOD[:20]} " * 9 + RIGHT,
    "",
]


def best(*texts: str, of: Example = ITEM, chat=None) -> dict:
    responses = [Response([], text, False) for text in texts]
    return reject.best_row(Group(0, of, None, responses), chat=chat)


def test_only_a_right_grounded_answer_is_above_the_threshold():
    assert best(GOOD)["score"] == 100
    assert all(0 <= best(text)["score"] <= 85 for text in BAD)


def test_the_best_sample_is_kept_where_it_is_good_enough_a_box_in_pixels_of_the_image():
    tried = ((["", GOOD], 85), (["", SEEN], 85), (BAD[1:2], 0))
    kept = [reject.keep_best(best(*texts), ITEM, least) for texts, least in tried]
    assert kept == [replace(ITEM, trace=f"{WORKING}{ITEM.answer}."), None, None]
    row = best("It is here.\nAnswer: [5, 5, 10, 10]", of=replace(BOX, scale=(2, 2)))
    assert reject.keep_best(row, BOX, 0).answer == "[10, 10, 20, 20]"
    bare = replace(ITEM, instruction=DIRECT)
    assert reject.keep_best(best(ITEM.answer, of=bare), bare, 0).answer == ITEM.answer


def test_a_judge_scores_what_is_right_and_nothing_else(monkeypatch):
    chat = Chat(read_flags("--judge_url http://127.0.0.1:9/v1 --judge_model judge".split()))
    asked, replies = [], iter(["20 25 25 10", "very good"])
    monkeypatch.setattr(chat, "ask", lambda prompt: (asked.append(prompt) or next(replies), True))
    rows = [best("No.\nAnswer: 0", SEEN, chat=chat) for _ in range(2)]
    chat.close()
    assert len(asked) == 2 and all("It is what one sees." in prompt for prompt in asked)
    assert [(row["by"], row["response"]) for row in rows] == [("judge", SEEN), ("local", SEEN)]
    assert rows[0]["score"] == 80


def test_mixed_examples_are_of_other_domains_and_ask_for_no_thinking(tmp_path):
    mixed = reject.mix_examples(read_flags([]), 40)
    assert len(mixed) == 40 and {e.image is None for e in mixed} == {True, False}
    assert {e.instruction for e in mixed} == {charts.CAPTION, charts.EXPLAIN, DIRECT}
    own, row = tmp_path / "mix.jsonl", {"question": "2 + 2", "answer": "4"}
    own.write_text("\n".join(map(json.dumps, [row, {**row, "trace": "2 and 2."}, row])))
    direct, thought = reject.mix_examples(read_flags(["--mix", str(own)]), 12)
    assert (direct.instruction, thought.instruction) == (DIRECT, None)


RUN = Path("out", "charts-curr_reft")
QUICK = """--base_task_steps 1 --max_steps 4 --train_size 18 --eval_size 18 --prompts_per_step 2
    --reject_size 5 --max_completion_length 8 --reject_samples 2 --reject_epochs 0.6
    --final_splits test --log_groups_every 1 --no-eval_base"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of seconds; its random model's samples are all wrong, and kept all the same."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reject, "keep_best", lambda row, example, _: replace(example, trace="So."))
    return lambda flags="": run_stages(read_flags([*flags.split(), "--", *QUICK.split()]), Ranks())


def read(path: Path):
    return json.loads(path.read_text())


def test_every_stage_starts_from_the_last_ones_weights_and_is_run_once(run, monkeypatch):
    result = run()
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
    monkeypatch.setattr(curr_reft, "train", lambda *_: pytest.fail("trained again"))
    assert run("--resume")["stages"] == result["stages"]


def test_when_nothing_is_kept_the_last_stages_model_is_the_result(run, monkeypatch):
    monkeypatch.setattr(reject, "keep_best", lambda *_: None)
    result = run("--stages open reject")
    assert list(result["stages"]) == ["open"] and (RUN / "model.safetensors").exists()
    assert result["step"] == 4 and result["final"]["test"]  # open makes all the updates
    with pytest.raises(InputError, match="nothing kept"):
        run("--stages reject --overwrite")


def test_a_run_is_not_written_over_and_a_resumed_one_samples_only_the_rest(run, monkeypatch):
    sampled, noted, asked = RUN / "reject" / "sampled.jsonl", RUN / "stages.json", []
    run("--stages reject --reject_epochs 9 --reject_steps 4 --reject_warmup 0.5")
    config = read(RUN / "reject" / "result.json")["config"]
    assert (config["max_steps"], config["warmup_steps"]) == (4, 2)
    with pytest.raises(InputError, match="charts-curr_reft: holds a run; --resume"):
        run("--stages reject")
    whole = sampled.read_text()
    noted.write_text(json.dumps({"config": read(noted)["config"]}))
    shutil.rmtree(sampled.with_name("checkpoints"))  # as if it had been stopped while it sampled
    sampled.write_text(whole[: len(whole) * 2 // 3])
    best_row = reject.best_row
    monkeypatch.setattr(reject, "best_row", lambda *of: asked.append(of) or best_row(*of))
    run("--stages reject --resume")
    assert sampled.read_text() == whole and 0 < len(asked) < 5
    with pytest.raises(InputError, match="stages.json is of another run: --seed: was 0, is now"):
        run("--stages reject --resume --seed 1")
    with pytest.raises(InputError, match="--model: was 'tiny', is now 'out/charts-curr_reft/open'"):
        run("--stages open reject --resume")
    monkeypatch.setattr(curr_reft, "run_stage", lambda *_: pytest.fail("ended"))
    with pytest.raises(pytest.fail.Exception, match="ended"):
        run("--stages reject --overwrite")
    assert not list((RUN / "reject" / "checkpoints").iterdir()) and not sampled.exists()
    noted.write_text("[1]")
    with pytest.raises(InputError, match="stages.json: was not written here"):
        run("--stages reject --resume")
    noted.unlink()
    with pytest.raises(InputError, match="holds a run; --overwrite it"):
        run("--stages reject --resume")


def test_a_kill_at_any_of_the_small_files_is_made_good_by_resume(run, monkeypatch):
    rename = os.replace
    for name, later in (("stages.json", 0), ("kept.jsonl", 0), ("stages.json", 1)):
        written = Counter()

        def killed(source, target, name=name, later=later, written=written):
            written[Path(target).name] += 1
            if written[name] > later:
                raise KeyboardInterrupt
            rename(source, target)

        monkeypatch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run("--stages judge reject --resume")
    monkeypatch.setattr(os, "replace", rename)
    assert run("--stages judge reject --resume")["final"]["test"]


def test_a_file_to_mix_in_that_cannot_be_read_ends_it_before_a_model_is_loaded(run, monkeypatch):
    monkeypatch.setattr(curr_reft, "first_load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(InputError, match="gone.jsonl"):
        run("--mix gone.jsonl")


def test_the_published_recipe_sets_each_stages_own_numbers():
    config = read_flags(["--recipe", "published", "--dataset", "x.jsonl", "--seed", "1"])
    assert config.model == "Qwen/Qwen2.5-VL-3B-Instruct" and not config.freeze_vision
    assert (config.beta, config.num_train_epochs, config.learning_rate) == (0.04, 4, 1e-6)
    stages = [curr_reft.stage_config(config, stage, "m") for stage in curr_reft.STAGES]
    assert [stage.num_generations for stage in stages[:3]] == [4, 2, 4]
    assert [stage.num_train_epochs for stage in stages] == [1, 1, 2, 3]
    assert [stage.learning_rate for stage in stages] == [1e-6, 1e-6, 1e-6, 2e-7]


@pytest.mark.parametrize(
    "flags",
    "--stages|--resume out/x|--mix_share 1|--method dyme|--recipe published|--stage_generations 4 2"
    "|--dry_run --stages reject|--dataset x.jsonl --stage_data x.jsonl".split("|"),
)
def test_flags_that_cannot_be_are_one_line_and_code_2(flags, refused):
    refused(curr_reft.run, flags)
