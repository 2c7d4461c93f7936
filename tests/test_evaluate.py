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
from rollout import Group, Response, make_groups, rollout

CHART = Example(question="Of red?", answer="5", facts=[("red", "5"), ("blue", "2")], id="a")


@pytest.fixture
def run(folder):
    """A run's folder."""
    config = {"dataset": "charts", "max_completion_length": 6, "tolerance": 0.1}
    (folder / "result.json").write_text(json.dumps({"config": config}))
    return folder


def said(text, truncated=False, **fields) -> Group:
    return Group(0, replace(CHART, **fields), None, [Response([1, 2], text, truncated)])


def test_marks_count_the_answer_and_the_true_facts_and_a_direct_answer_is_the_whole_response():
    row = marks(said("red 5, blue 3\nAnswer: 5"))
    assert (row["accuracy"], row["format"], row["stated"], row["true"]) == (1, 1, 2, 1)
    assert marks(said("red 5\nAnswer: 5", truncated=True))["format"] == 0
    near = said("so it is\nAnswer: 104", answer="100")
    assert [marks(near, tolerance)["accuracy"] for tolerance in (0, 0.05)] == [0, 1]
    bare = [said(text, instruction=DIRECT) for text in ("5", "red 5\nAnswer: 5")]
    assert [marks(group)["accuracy"] for group in bare] == [1, 0]


def test_a_stated_fact_is_true_of_the_image_shown_of_the_own_one_or_of_neither():
    facts = [("red", "4"), ("green", "2"), ("cyan", "8")]
    row = marks(said("red 4, cyan 8, blue 2, green 7\nAnswer: 5", facts=facts), belongs=CHART)
    counts = (row["stated"], row["true"], row["true_of_own"], row["untrue"])
    assert counts == (4, 2, 1, 1) and row["accuracy"] == 1


def test_another_image_has_other_facts_and_a_blank_one_none():
    charts = load_charts("val", 4)
    shown = program.shown_instead(charts, 0, "other")
    assert shown.image == charts[2].image and shown.facts == charts[2].facts != charts[0].facts
    assert (shown.question, shown.answer) == (charts[0].question, charts[0].answer)
    blank = program.shown_instead(charts, 0, "blank")
    assert blank.image.getcolors() == [(32 * 32, (255, 255, 255))] and blank.facts == []


def test_readings_are_shares_by_task_and_fact_precision_none_where_nothing_is_stated(capsys):
    rows = [marks(said("so it is\nAnswer: 5", task="human"))]
    assert readings(rows)["fact_precision"] is None
    rows.append(marks(said("red 5, blue 3\nAnswer: 4", task="augmented")))
    found = readings(rows)
    assert (found["fact_precision"], found["accuracy"], found["grounded"]) == (0.5, 0.5, 0)
    program.show_accuracies(rows)
    told = [line.split(" [")[0] for line in capsys.readouterr().out.splitlines()]
    assert told == ["accuracy 0.500", "accuracy/augmented 0.000", "accuracy/human 1.000"]
    line = summary("dyme", dict.fromkeys(("greedy", "sampled", "direct"), found))
    assert "accuracy 0.500 [0.095, 0.905] greedy (augmented 0.000, human 1.000)," in line


def test_the_program_takes_the_data_sets_own_tolerance(run):
    for flags, wanted in (("--dataset chartqa", 0.05), ("", 0.1), ("--tolerance 0.2", 0.2)):
        args = program.parse(f"--ckpt {run} {flags}".split(), "", program.FLAGS)
        assert args.asked["tolerance"] == wanted


def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample_and_no_batch_changes_it(
    vlm, monkeypatch
):
    right = []  # of each question, whether its samples are right

    def score(texts, example, tolerance):  # random weights answer nothing: count what they say
        right.append([float(len(text) % 3 == 0) for text in texts])
        return {"accuracy": torch.tensor(right[-1])}

    monkeypatch.setattr(program, "score", score)
    asked = {"temperature": 1.0, "max_completion_length": 6}
    found, same = (
        pass_at_ks(*vlm, load_charts("test", 5), 4, batch_size=size, **asked) for size in (4, 400)
    )
    assert found == same and set(found) == {"pass@1", "pass@2", "pass@4"}
    pairs = [max(pair) for samples in right[:5] for pair in combinations(samples, 2)]
    assert found["pass@2"] == pytest.approx(sum(pairs) / len(pairs)) and 0 < sum(pairs) < 30


def test_predictions_that_were_interrupted_end_as_unbroken_ones(vlm, tmp_path, monkeypatch):
    unbroken, broken, calls = tmp_path / "unbroken.jsonl", tmp_path / "broken.jsonl", []

    def predictions(path, weights=0, temperature=1.0, **other):
        asked = {"max_completion_length": 6, "seed": 1, "batch_size": 2}
        how = {"weights": weights}
        examples = [replace(example, **other) for example in load_charts("val", 7)]
        return predict(*vlm, examples, path, how, temperature=temperature, **asked)

    def failing(*args, **asked):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        rollout(*args, **asked)

    wanted = predictions(unbroken)
    monkeypatch.setattr(program, "rollout", failing)
    with pytest.raises(KeyboardInterrupt):
        predictions(broken)
    broken.write_bytes(broken.read_bytes()[:-9])  # and its last line is torn
    assert predictions(broken) == wanted
    assert sorted(broken.read_text().splitlines()) == sorted(unbroken.read_text().splitlines())
    asked = len(calls)
    predictions(broken)
    assert len(calls) == asked  # nothing is asked twice
    predictions(broken, temperature=0.0)
    predictions(broken, weights=1)
    predictions(broken, answer="12")  # the data's own has changed
    assert len(read_lines(broken)) == 28


def test_the_program_asks_a_split_and_says_where_its_answers_are(run, capsys):
    argv = ["--ckpt", str(run), "--size", "3"]
    program.ask_split(argv)
    told = capsys.readouterr().out
    assert told.startswith("accuracy ") and told.endswith(f"{run}/predictions.jsonl\n")
    program.ask_split(argv)
    assert len(read_lines(run / "predictions.jsonl")) == 3
    (run / "model.safetensors").touch()  # of new weights
    program.ask_split(argv)
    assert len(read_lines(run / "predictions.jsonl")) == 6
    program.ask_split([*argv, "--pass_at_k", "2"])
    assert "pass@1 " in capsys.readouterr().out


def test_bad_rows_are_an_error_or_left_out(run, tmp_path, refused, capsys):
    rows = [{"question": "q", "answer": "a", "id": 1}, {"question": "q"}]
    (tmp_path / "x.test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = f"--ckpt {run} --dataset {tmp_path}/x.jsonl"
    assert "--skip_bad_rows leaves them out" in refused(program.ask_split, flags)
    program.ask_split(f"{flags} --skip_bad_rows".split())
    assert ", 1 questions" in capsys.readouterr().out


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
    (run / "result.json").write_text('{"config": {"max_completion_length": -6}}')
    assert "--max_completion_length: -6: must be" in refused(program.ask_split, f"--ckpt {run}")


def test_streaming_says_what_rollout_says_without_its_end_token(vlm, monkeypatch):
    asked = {"max_completion_length": 24, "temperature": 1.0, "seed": 10}  # one of two tokens
    (group,), pieces = make_groups(*vlm, load_charts("val", 1)), []
    rollout(*vlm, [group], num_generations=1, **asked)
    ends = [*vlm[0].end_ids, group.responses[0].token_ids[15]]
    monkeypatch.setattr(vlm[0], "end_ids", ends)
    sample.stream(*vlm, group, pieces.append, **asked)
    (streamed,) = group.responses
    rollout(*vlm, [group], num_generations=1, **asked)
    assert [streamed] == group.responses and not streamed.truncated
    assert "".join(pieces) == streamed.text and len(pieces) > 1


def test_a_verdict_says_which_stated_facts_are_true_and_no_escape_code_is_shown(capsys):
    told = sample.verdict(said("red 5, blue 3\nAnswer: 5"))
    assert told.startswith("✓ right") and "red 5 ✓" in told and "blue 3 ✗" in told
    assert sample.verdict(said("Answer: 3")).startswith("✗ wrong")
    assert sample.verdict(said("5", truncated=True, answer="")) == "(cut off)\n"
    sample.show("\x1b]0;title\x07 fine \r\u202e Gr\u00fc\u00dfe\t1\u00a0000\n")
    told = "\\x1b]0;title\\x07 fine \\r\\u202e Grüße\t1\u00a0000\n"
    assert capsys.readouterr().out == told


def test_a_question_of_the_data_set_is_asked_and_judged(run, capsys):
    sample.ask(f"--ckpt {run} --seed 1 --num_generations 2 --temperature 1".split())
    told = capsys.readouterr().out
    assert "(--seed 1 asks it again)" in told and told.count("accuracy") == 2
