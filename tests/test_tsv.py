"""Benchmarks in VLMEvalKit's TSV form: read, asked, scored where that takes no judge, handed on."""

import base64
import csv

import huggingface_hub
import pytest
from PIL import Image

import evaluate as program
from data import load_data, open_image
from data.example import InputError
from data.images import data_url
from data.tsv import final_answer, read_tsv
from rollout import Response

PICTURE = data_url(Image.new("RGB", (8, 8), "red")).split(",")[1]
# rows as each benchmark has them, and (answer, kind, options, task) of them
BENCHMARKS = {
    "MMBench_DEV_EN": (
        {"hint": "It rains.", "question": "Which?", "A": "cat", "B": "dog", "C": "", "answer": "B"}
        | {"category": "ocr", "l2-category": "x", "split": "dev"},
        ("dog", "text", ["cat", "dog"], "ocr"),
    ),
    "MathVerse_MINI": (
        {"question": "Find it.\nChoices:\nA:60\nB:50", "answer": "A", "question_for_eval": "Find"}
        | {"question_type": "multi-choice", "problem_version": "Text Lite"},
        ("A", "letters", None, "Text Lite"),
    ),
    "MathVista_MINI": (
        {"question": "Choices: (A) 3/11 (B) 8/11", "choices": "['3/11', '8/11']", "answer": "8/11"}
        | {"answer_option": "B", "answer_type": "text", "task": "figure", "category": "vqa"},
        ("B", "letters", None, "figure"),
    ),
    "MathVision": (
        {"question": "How many?", "choices": "[]", "answer": "1.5", "category": "algebra"},
        ("1.5", "math", None, "algebra"),
    ),
    "DynaMath": (
        {"question": "Is f even?", "answer": "Yes", "answer_type": "text", "subject": "algebra"},
        ("yes", "decision", None, "algebra"),
    ),
    "MMVet": (
        {"question": "Explain this.", "answer": "a cat<AND>a dog", "category": "rec,gen"},
        ("a cat<AND>a dog", "text", None, "rec,gen"),
    ),
}
ROWS = [row for row, _ in BENCHMARKS.values()]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", tmp_path / "cache")


def write_tsv(path, *rows):
    """A TSV of these rows, index, image and question filled in."""
    rows = [{"index": i, "image": PICTURE, "question": "q", **row} for i, row in enumerate(rows, 1)]
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, dict.fromkeys(sum(map(list, rows), [])), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_each_benchmark_is_read_with_its_kind_of_answer(tmp_path):
    read = read_tsv(write_tsv(tmp_path / "x.tsv", *ROWS), tmp_path)
    found = [(e.answer, e.kind, e.options, e.task) for e in read]
    assert found == [found for _, found in BENCHMARKS.values()]
    assert read[0].question == "It rains.\nWhich?" and read[1].question == ROWS[1]["question"]
    assert read[5].id == "x/6" and open_image(read[5]).size == (8, 8)


def test_an_image_may_be_another_rows_or_a_file(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    rows = [{"image": "2"}, {"image": f"['{PICTURE}']"}, {"image": "", "image_path": "['a.png']"}]
    first, second, third = read_tsv(write_tsv(tmp_path / "x.tsv", *rows), tmp_path)
    assert first.image == second.image and first.answer == "" and open_image(third).size == (4, 4)


BAD = [
    ({"image": "x" * 99}, "image: 'x.* is neither one image in base64"),
    ({"image": base64.b64encode(b"x" * 99).decode()}, ".*not an image"),
    ({"image": "7"}, "image: '7' is neither one image in base64 nor the index"),
    ({"image": f"['{PICTURE}', '{PICTURE}']"}, "image: .* is neither one"),
    ({"index": "1"}, "index 1: is there twice"),
    ({"index": ""}, "index is missing"),
    ({"question": ""}, "question is missing"),
    ({"image": "", "image_path": "../a.png"}, ".*leaves the folder"),
    ({"image": "", "image_path": "['a.png', 'b.png']"}, "the image has 2 entries"),
    ({"A": "cat", "answer": "D"}, "the answer 'D' is none of the options"),
    ({"B": "cat", "answer": "B"}, "an option is empty"),
    ({"choices": "['1', '2']", "answer": "5"}, "the answer '5' is no letter"),
]


@pytest.mark.parametrize("row, reason", BAD)
def test_a_bad_row_is_named_and_can_be_left_out(tmp_path, row, reason):
    path = write_tsv(tmp_path / "x.tsv", {}, row)
    with pytest.raises(InputError, match=f"x.tsv: row 2: {reason}"):
        read_tsv(path, tmp_path)
    assert len(read_tsv(path, tmp_path, skip_bad_rows=True)) == 1


def test_a_benchmark_is_trained_on_like_a_file_of_ones_own_and_needs_rows(tmp_path):
    path = write_tsv(tmp_path / "x.tsv", *[{}] * 20)
    assert [len(load_data(str(path), split)) for split in ("train", "val")] == [18, 2]
    with pytest.raises(InputError, match="x.tsv: has no rows"):
        read_tsv(write_tsv(path), tmp_path)


def test_without_a_marker_the_last_box_or_line_is_the_answer():
    assert final_answer("so\nAnswer: 3\nmore") == "3" and final_answer("") == ""
    assert final_answer(r"so \boxed{1}, no: \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"
    assert final_answer("It rains.\n(B)\n") == "(B)" and final_answer(r"\boxed{c") == r"\boxed{c"


def test_predictions_go_to_a_file_for_vlmevalkit_and_resume(folder, tmp_path, monkeypatch, capsys):
    source, prompts = write_tsv(tmp_path / "All.tsv", *ROWS), []
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
    assert "accuracy 0.800" in told and "accuracy/figure 1.000 [0." in told
    assert "1 answers are free" in told and told.endswith(f"vlmutil eval All {tmp_path}/p.tsv\n")


def test_what_would_spoil_a_file_is_refused(folder, tmp_path, refused):
    path = write_tsv(tmp_path / "x.tsv", {})
    for flags in (f"--out {tmp_path}/x.xlsx", f"--out {path}", "--instruction /no"):
        refused(program.ask_split, f"--ckpt {folder} --data {path} {flags}")
