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
ROWS = [  # as MMBench, MathVerse, MathVista, MathVision, DynaMath and MMVet have them
    {"hint": "Nö.", "question": "Which?", "A": "cat", "B": "dog", "answer": "B", "category": "x"},
    {"question": "a\nb", "question_type": "multi-choice", "answer": "A", "problem_version": "T"},
    {"choices": "['3', '8']", "answer": "8", "answer_option": "B", "task": "fig", "category": "x"},
    {"choices": "[]", "answer": "1.5", "answer_type": "float", "category": "algebra"},
    {"answer": "Yes", "answer_type": "text", "subject": "algebra"},
    {"answer": "2 cats<AND>a dog", "category": "rec,gen"},
]
FOUND = [  # answer, kind, options, task
    ("dog", "text", ["cat", "dog"], "x"),
    ("A", "letters", None, "T"),
    ("B", "letters", None, "fig"),
    ("1.5", "math", None, "algebra"),
    ("yes", "decision", None, "algebra"),
    ("2 cats<AND>a dog", "text", None, "rec,gen"),
]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", tmp_path / "cache")


def write_tsv(path, *rows):
    """A TSV of these rows, index, image and question filled in."""
    rows = [{"index": i, "image": PICTURE, "question": "q", **row} for i, row in enumerate(rows, 1)]
    names = dict.fromkeys(name for row in rows for name in row)
    with open(path, "w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, names, delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_each_benchmark_is_read_with_its_kind_of_answer(tmp_path):
    read = read_tsv(write_tsv(tmp_path / "x.tsv", *ROWS), tmp_path)
    assert [(e.answer, e.kind, e.options, e.task) for e in read] == FOUND
    assert [e.question for e in read[:3]] == ["Nö.\nWhich?", "a\nb", "q"]
    assert read[5].id == "x/6" and open_image(read[5]).size == (8, 8)


def test_an_image_may_be_another_rows_or_a_file(tmp_path, capsys):
    def read(*rows):
        return read_tsv(write_tsv(tmp_path / "x.tsv", *rows), tmp_path)

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    other, own, file = {"image": "2"}, {"image": f"['{PICTURE}']"}, {"image": ""}
    file["image_path"] = "['/gone/a.png']"
    first, second, third = read(other, own, file)
    assert first.image == second.image and first.answer == "" and open_image(third).size == (4, 4)
    assert "1 images are not where it says" in capsys.readouterr().err
    with pytest.raises(InputError, match="row 1: image: '2' .* has none"):
        read(other, file)
    with pytest.raises(InputError, match="several have one name"):
        read(file, {**file, "image_path": "/gone/too/a.png"})


def test_a_cache_that_cant_be_written_is_no_bad_row(tmp_path, monkeypatch):
    path = write_tsv(tmp_path / "x.tsv", {})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", path)
    with pytest.raises(InputError, match="x.tsv: Not a directory"):
        read_tsv(path, tmp_path, skip_bad_rows=True)


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


def test_a_bad_row_is_named_and_can_be_left_out(tmp_path):
    for row, reason in BAD:
        path = write_tsv(tmp_path / "x.tsv", {}, row)
        with pytest.raises(InputError, match=f"x.tsv: row 2: {reason}"):
            read_tsv(path, tmp_path)
        assert len(read_tsv(path, tmp_path, skip_bad_rows=True)) == 1


def test_a_benchmark_is_trained_on_like_a_file_of_ones_own_and_needs_rows(tmp_path):
    path = write_tsv(tmp_path / "x.tsv", *[{}] * 20)
    assert [len(load_data(str(path), split)) for split in ("train", "val")] == [18, 2]
    for content in ("index\tquestion\n", "number\tquestion\n1\tq\n"):
        path.write_text(content)
        with pytest.raises(InputError, match="x.tsv: has no rows"):
            read_tsv(path, tmp_path, skip_bad_rows=True)


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
    argv = f"--ckpt {folder} --data {source} --out {tmp_path}/p.tsv --instruction"
    for more in ("--size 2", ""):
        program.ask_split(f"{argv} {tmp_path}/prompt.txt {more}".split())
    assert prompts == ["Reason."] * 6  # none is asked twice
    with open(tmp_path / "p.tsv", newline="") as stream:
        written = list(csv.DictReader(stream, delimiter="\t"))
    assert "image" not in written[0] and [row["index"] for row in written] == list("123456")
    assert written[0]["B"] == "dog" and written[5]["prediction"] == 'two\tcats\n"here"'
    told = capsys.readouterr().out
    assert "accuracy 0.800" in told and "accuracy/fig 1.000 [0." in told
    assert "1 answers are free" in told and told.endswith(f"vlmutil eval All {tmp_path}/p.tsv\n")


def test_what_would_spoil_a_file_is_refused(folder, tmp_path, refused):
    path = write_tsv(tmp_path / "x.tsv", {})
    for flags in (f"--out {tmp_path}/x.xlsx", f"--out {path}", "--instruction /no"):
        refused(program.ask_split, f"--ckpt {folder} --data {path} {flags}")
