"""Benchmarks in VLMEvalKit's TSV form: read, asked, scored where that takes no judge, handed on."""

import base64
import csv

import huggingface_hub
import pytest
from PIL import Image

import evaluate as program
from data import load_data, open_image
from data.images import data_url
from data.tsv import read_tsv
from lib.benchmark import final_answer, has_metric
from rollout import Response
from tests.test_data import error_of


PICTURE = data_url(Image.new("RGB", (8, 8), "red")).split(",")[1]


# rows as each benchmark has them, and (answer, kind, options, task, scored here) of them
BENCHMARKS = {
    "MMBench_DEV_EN": (
        {"hint": "It rains.", "question": "Which?", "A": "cat", "B": "dog", "C": "", "answer": "B"}
        | {"category": "ocr", "l2-category": "x", "split": "dev"},
        ("dog", "text", ["cat", "dog"], "ocr", True),
    ),
    "MathVerse_MINI": (
        {"question": "Find it.\nChoices:\nA:60\nB:50", "answer": "A", "question_for_eval": "Find"}
        | {"question_type": "multi-choice", "problem_version": "Text Lite"},
        ("A", "letters", None, "Text Lite", True),
    ),
    "MathVista_MINI": (
        {"question": "Which? Choices: (A) 3/11 (B) 8/11", "choices": "['3/11', '8/11']"}
        | {"answer": "8/11", "answer_option": "B", "question_type": "multi_choice"}
        | {"answer_type": "text", "task": "figure", "category": "vqa", "skills": "['algebraic']"},
        ("B", "letters", None, "figure", True),
    ),
    "MathVision": (
        {"question": "How many?", "choices": "[]", "answer": "1.5", "category": "algebra"},
        ("1.5", "math", None, "algebra", True),
    ),
    "DynaMath": (
        {"question": "Is f even?", "answer": "Yes", "answer_type": "text", "subject": "algebra"}
        | {"qid": "1", "varid": "1", "knowledge_level": "high"},
        ("yes", "decision", None, "algebra", True),
    ),
    "MMVet": (
        {"question": "Explain this.", "answer": "a cat<AND>a dog", "category": "rec,gen"},
        ("a cat<AND>a dog", "text", None, "rec,gen", False),
    ),
}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", tmp_path / "cache")


def write_tsv(path, *rows):
    """A TSV of these rows, index and image filled in; quoted where a cell has line breaks."""
    rows = [{"index": i, "image": PICTURE, **row} for i, row in enumerate(rows, start=1)]
    with open(path, "w", newline="") as stream:
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(stream, names, delimiter="\t", restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_is_read_with_its_kind_of_answer(tmp_path, name):
    row, (answer, kind, options, task, scored) = BENCHMARKS[name]
    (example,) = read_tsv(write_tsv(tmp_path / f"{name}.tsv", row), tmp_path)
    assert (example.answer, example.kind, example.options) == (answer, kind, options)
    assert (example.task, example.id) == (task, f"{name}/1")
    assert example.question == "\n".join(filter(None, [row.get("hint"), row["question"]]))
    assert has_metric(example) == scored and open_image(example).size == (8, 8)


def test_an_image_may_be_another_rows_a_file_or_a_list_of_one(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    rows = [{"image": "2"}, {}, {"image": "", "image_path": "['a.png']"}, {"image": [PICTURE]}]
    path = write_tsv(tmp_path / "x.tsv", *({"question": "q", **row} for row in rows))
    first, second, third, fourth = read_tsv(path, tmp_path)
    assert first.image == second.image == fourth.image and first.answer == ""
    assert open_image(third).size == (4, 4)


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"image": "x" * 99}, "row 2: image: not base64"),
        ({"image": base64.b64encode(b"x" * 99).decode()}, "row 2: .*not an image"),
        ({"image": "7"}, "row of index 2: image '7': is neither base64 nor the index"),
        ({"image": f"['{PICTURE}', '{PICTURE}']"}, "row 2: image has 2 entries"),
        ({"index": "1"}, "row 2: index 1: is there twice"),
        ({"question": ""}, "row of index 2: question is missing"),
        ({"image": "", "image_path": "../a.png"}, "row of index 2: .*leaves the folder"),
        ({"A": "cat", "answer": "D"}, "row of index 2: the answer 'D' is none of the options"),
        ({"B": "cat", "answer": "B"}, "row of index 2: an option is empty"),
        ({"choices": "['1', '2']", "answer": "5"}, "row of index 2: the answer '5' is no letter"),
    ],
)
def test_a_bad_row_is_named_and_can_be_left_out(tmp_path, row, reason):
    path = write_tsv(tmp_path / "x.tsv", {"question": "q"}, {"question": "q", **row})
    with pytest.raises(program.InputError, match=f"x.tsv: {reason}"):
        read_tsv(path, tmp_path)
    assert len(read_tsv(path, tmp_path, skip_bad_rows=True)) == 1


def test_a_missing_column_or_file_is_one_line(tmp_path):
    (tmp_path / "x.tsv").write_text("id\tquestion\n1\tq\n")
    assert "x.tsv: has no column index" in error_of(read_tsv, tmp_path / "x.tsv", tmp_path)
    assert "y.tsv: No such file" in error_of(read_tsv, tmp_path / "y.tsv", tmp_path)


def test_a_benchmark_is_trained_on_like_a_file_of_ones_own(tmp_path):
    rows = [BENCHMARKS["MathVision"][0]] * 20
    path = str(write_tsv(tmp_path / "x.tsv", *rows))
    assert [len(load_data(path, split)) for split in ("train", "val")] == [18, 2]


@pytest.mark.parametrize(
    "response, answer",
    [
        ("so\nAnswer: 3\nmore", "3"),
        (r"so \boxed{1}, no: \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ("It rains.\n(B)\n", "(B)"),
        (r"\boxed{cut", r"\boxed{cut"),
        ("", ""),
    ],
)
def test_without_a_marker_the_last_box_or_line_is_the_answer(response, answer):
    assert final_answer(response) == answer


# ---- asked --------------------------------------------------------------------------------------


def test_predictions_go_to_a_file_that_vlmevalkit_reads_and_resume(
    folder, tmp_path, monkeypatch, capsys
):
    rows = [row for row, _ in BENCHMARKS.values()]
    source, prompts = write_tsv(tmp_path / "All.tsv", *rows), []
    said = iter(["B", "Answer: B", "hm\n(B)", r"\boxed{1.5}", "yes", 'two\tcats\n"here"'])

    def answer(model, processor, groups, **asked):
        for group in groups:
            prompts.append(group.example.instruction)
            group.responses = [Response([1], next(said), False)]

    monkeypatch.setattr(program, "rollout", answer)
    (tmp_path / "prompt.txt").write_text("Reason.\n")
    argv = f"--ckpt {folder} --data {source} --out {tmp_path}/p.tsv"
    argv += f" --instruction {tmp_path}/prompt.txt"
    program.ask_split([*argv.split(), "--size", "2"])
    program.ask_split(argv.split())
    assert prompts == ["Reason."] * 6  # none is asked twice
    with open(tmp_path / "p.tsv", newline="") as stream:
        written = list(csv.DictReader(stream, delimiter="\t"))
    assert "image" not in written[0] and [row["index"] for row in written] == list("123456")
    assert written[0]["B"] == "dog" and written[5]["prediction"] == 'two\tcats\n"here"'
    told = capsys.readouterr().out
    assert "all: accuracy 0.800" in told and "figure: accuracy 1.000 [0." in told
    assert "1 answers are free" in told and told.endswith(f"vlmutil eval All {tmp_path}/p.tsv\n")


@pytest.mark.parametrize("flags", ["--out {tmp}/x.xlsx", "--out {tmp}/x.tsv", "--instruction /no"])
def test_what_would_spoil_a_file_is_refused(folder, tmp_path, flags, refused):
    write_tsv(tmp_path / "x.tsv", BENCHMARKS["MathVision"][0])
    argv = f"--ckpt {folder} --data {{tmp}}/x.tsv {flags}".format(tmp=tmp_path)
    assert refused(program.ask_split, argv).startswith("error: --")
