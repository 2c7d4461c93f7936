"""evaluate.py and sample.py: numbers that no batch or restart changes; nobody is trusted."""

import json
from dataclasses import replace
from itertools import combinations

import pytest
import torch

import evaluate as program
import sample
from data.charts import load_charts
from data.example import DIRECT, Example
from data.reading import read_lines
from evaluate import marks, pass_at_ks, predict
from lib.readings import readings, summary
from lib.tiny import tiny_vlm
from rollout import Group, Response, make_groups, rollout

CHART = Example(
    question="What is the value of red", answer="5", facts=[("red", "5"), ("blue", "2")], id="a"
)


@pytest.fixture
def run(folder):
    """A run's folder."""
    config = {"dataset": "charts", "max_completion_length": 6}
    (folder / "result.json").write_text(json.dumps({"config": config}))
    return folder


def said(example, text, truncated=False) -> Group:
    return Group(0, example, None, [Response([1, 2], text, truncated)])


def test_marks_count_the_answer_and_the_true_facts_and_a_direct_answer_is_the_whole_response():
    row = marks(said(CHART, "red 5, blue 3\nAnswer: 5"))
    assert (row["accuracy"], row["format"], row["stated"], row["true"]) == (1, 1, 2, 1)
    assert marks(said(CHART, "red 5\nAnswer: 5", truncated=True))["format"] == 0
    near = said(replace(CHART, answer="100"), "so it is\nAnswer: 104")
    assert marks(near)["accuracy"] == 0 and marks(near, tolerance=0.05)["accuracy"] == 1
    bare = replace(CHART, instruction=DIRECT)
    assert [marks(said(bare, text))["accuracy"] for text in ("5", "red 5\nAnswer: 5")] == [1, 0]


def test_a_stated_fact_is_true_of_the_image_shown_of_the_own_one_or_of_neither():
    shown = replace(CHART, facts=[("red", "4"), ("green", "2")])
    row = marks(said(shown, "red 4, blue 2, green 7\nAnswer: 5"), belongs=CHART)
    counts = (row["stated"], row["true"], row["true_of_own"], row["untrue"])
    assert counts == (3, 1, 1, 1) and row["accuracy"] == 1


def test_another_image_has_other_facts_and_a_blank_one_none():
    charts = load_charts("val", 4)
    shown = program.shown_instead(charts, 0, "other")
    assert shown.image == charts[2].image and shown.facts == charts[2].facts != charts[0].facts
    assert (shown.question, shown.answer) == (charts[0].question, charts[0].answer)
    blank = program.shown_instead(charts, 0, "blank")
    assert blank.image.getcolors() == [(32 * 32, (255, 255, 255))] and blank.facts == []


def test_readings_are_shares_and_fact_precision_none_where_nothing_is_stated():
    rows = [marks(said(CHART, "so it is\nAnswer: 5"))]
    assert readings(rows)["fact_precision"] is None
    found = readings([*rows, marks(said(replace(CHART, task="sum"), "red 5, blue 3\nAnswer: 4"))])
    assert (found["fact_precision"], found["accuracy"], found["grounded"]) == (0.5, 0.5, 0)
    assert (found["accuracy/"], found["accuracy/sum"]) == (1, 0)


def test_accuracy_is_shown_by_human_and_augmented_beside_the_average(capsys):
    rows = [{"task": task, "accuracy": right} for task, right in [("human", 0), ("augmented", 1)]]
    program.show_accuracies(rows)
    told = [line.split(" [")[0] for line in capsys.readouterr().out.splitlines()]
    assert told == ["accuracy 0.500", "accuracy/augmented 1.000", "accuracy/human 0.000"]
    found = readings([{**marks(said(CHART, "so\nAnswer: 5")), **row} for row in rows])
    line = summary("dyme", dict.fromkeys(("greedy", "sampled", "direct"), found))
    assert "accuracy 0.500 [0.095, 0.905] greedy (augmented 1.000, human 0.000)," in line


def test_the_program_takes_the_data_sets_own_tolerance(run):
    flags = ["--dataset chartqa", "--dataset gsm8k", "", "--tolerance 0.2"]
    argvs = [f"--ckpt {run} {some}".split() for some in flags]
    found = [program.parse(argv, "", program.FLAGS).tolerance for argv in argvs]
    assert found == [0.05, 0.0, 0.0, 0.2]


def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample_and_no_batch_changes_it(
    vlm, monkeypatch
):
    def score(texts, example, tolerance):  # random weights answer nothing: count what they say
        return {"accuracy": torch.tensor([float(len(text) % 3 == 0) for text in texts])}

    monkeypatch.setattr(program, "score", score)
    asked = {"temperature": 1.0, "max_completion_length": 6}
    found, same = (
        pass_at_ks(*vlm, load_charts("test", 5), 4, batch_size=size, **asked) for size in (4, 400)
    )
    assert found == same and set(found) == {"pass@1", "pass@2", "pass@4", "right"}
    subsets = [
        any(i < n for i in pair) for n in found["right"] for pair in combinations(range(4), 2)
    ]
    assert found["pass@2"] == pytest.approx(sum(subsets) / len(subsets)) and 0 < sum(subsets) < 30


def predictions(vlm, path, **asked):
    asked = {"max_completion_length": 6, "temperature": 1.0, "seed": 1, "batch_size": 2, **asked}
    return predict(*vlm, load_charts("val", 7), path, {"split": "val"}, **asked)


def test_predictions_that_were_interrupted_end_as_unbroken_ones(vlm, tmp_path, monkeypatch):
    unbroken, broken, calls = tmp_path / "unbroken.jsonl", tmp_path / "broken.jsonl", []
    wanted = predictions(vlm, unbroken)

    def failing(*args, **asked):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        rollout(*args, **asked)

    monkeypatch.setattr(program, "rollout", failing)
    with pytest.raises(KeyboardInterrupt):
        predictions(vlm, broken)
    broken.write_bytes(broken.read_bytes()[:-9])  # and its last line is torn
    assert predictions(vlm, broken) == wanted
    assert sorted(broken.read_text().splitlines()) == sorted(unbroken.read_text().splitlines())
    asked = len(calls)
    predictions(vlm, broken)
    assert len(calls) == asked  # nothing is asked twice
    predictions(vlm, broken, temperature=0.0)
    predictions(tiny_vlm(1), broken, temperature=0.0)
    assert len(read_lines(broken)) == 21  # another temperature, other weights


def test_the_program_asks_a_split_and_says_where_its_answers_are(run, capsys):
    argv = ["--ckpt", str(run), "--size", "3"]
    program.ask_split(argv)
    assert len((run / "predictions.jsonl").read_text().splitlines()) == 3
    told = capsys.readouterr().out
    assert told.startswith("accuracy ") and told.endswith(f"{run}/predictions.jsonl\n")
    program.ask_split([*argv, "--pass_at_k", "2"])
    assert "pass@1 " in capsys.readouterr().out


def test_what_cannot_be_asked_is_one_line_and_code_2(run, tmp_path, refused):
    (tmp_path / "bad.jsonl").write_text("[1]\n")
    (tmp_path / "notes.txt").write_text("my notes")
    refused(sample.ask, f"--ckpt {run} --num_generations 4")
    refused(sample.ask, f"--ckpt {run} --image {run}/result.json --question x")
    refused(program.ask_split, f"--ckpt {tmp_path}")
    for flags in (
        *("--ckpt out/nothing", "--batch_size 0", "--split nowhere", "--temperature -1"),
        *(f"--out {tmp_path}/bad.jsonl", f"--out {tmp_path}/notes.txt", "--out /proc/none/x.jsonl"),
    ):
        refused(program.ask_split, f"--ckpt {run} {flags}")
    assert (tmp_path / "notes.txt").read_text() == "my notes"


def test_a_number_that_is_out_of_range_in_the_runs_own_file_is_refused(run, refused):
    (run / "result.json").write_text('{"config": {"max_completion_length": -6}}')
    assert "--max_completion_length: -6: must be" in refused(program.ask_split, f"--ckpt {run}")


def test_streaming_says_what_rollout_says_without_its_end_token(vlm, monkeypatch):
    asked = {"max_completion_length": 24, "temperature": 1.0, "seed": 3}
    (group,), pieces = make_groups(*vlm, load_charts("val", 1)), []
    rollout(*vlm, [group], num_generations=1, **asked)
    ends = [*vlm[0].end_ids, group.responses[0].token_ids[9]]
    monkeypatch.setattr(vlm[0], "end_ids", ends)
    sample.stream(*vlm, group, pieces.append, **asked)
    (streamed,) = group.responses
    rollout(*vlm, [group], num_generations=1, **asked)
    assert [streamed] == group.responses and not streamed.truncated
    assert "".join(pieces) == streamed.text and len(pieces) > 1


def test_a_verdict_says_which_stated_facts_are_true_and_no_escape_code_is_shown(capsys):
    told = sample.verdict(said(CHART, "red 5, blue 3\nAnswer: 5"))
    assert told.startswith("✓ right") and "red 5 ✓" in told and "blue 3 ✗" in told
    assert sample.verdict(said(CHART, "Answer: 3")).startswith("✗ wrong")
    assert sample.verdict(said(Example(question="own"), "5", truncated=True)) == "(cut off)\n"
    sample.show("\x1b]0;title\x07 fine \r\u202e Gr\u00fc\u00dfe\t1\u00a0000\n")
    told = "\\x1b]0;title\\x07 fine \\r\\u202e Grüße\t1\u00a0000\n"
    assert capsys.readouterr().out == told


def test_a_question_of_the_data_set_is_asked_and_judged(run, capsys):
    argv = f"--ckpt {run} --seed 1 --num_generations 2 --temperature 1"
    sample.ask(argv.split())
    told = capsys.readouterr().out
    assert "(--seed 1 asks it again)" in told and told.count("accuracy") == 2
