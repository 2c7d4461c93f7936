"""One's own data: what is read, what is refused, what is said; and what a resumed run can tell."""

import json

import pytest
from PIL import Image

from data import Example, InputError, load_data, open_image
from data.example import MAX_MESSAGE, split_marked
from data.fingerprint import changes, fingerprint
from tests.test_data import BOMB, error_of, write_chartqa, write_jsonl

GOOD = {"question": "q", "answer": "a"}


def load_rows(folder, *rows, **settings):
    """The Examples of these rows, all of them: val is a file of its own."""
    write_jsonl(folder / "own.val.jsonl", [GOOD])
    return load_data(write_jsonl(folder / "own.jsonl", rows), "train", **settings)


# ---- what is read -------------------------------------------------------------------------------


def test_own_jsonl_is_read_with_all_its_fields(tmp_path):
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png")
    full = {"image": "a.png", "question": "q?", "answer": 7, "options": ["7", "8"], "task": "t"}
    full |= {"facts": [["red", 3], ["b", "c", "4"]], "trace": "red is 3\nAnswer: 7", "caption": "c"}
    short = {"question": "x", "answer": "y", "facts": {"k": 1.5}, "imageId": 7, "isHard": True}
    first, second = load_rows(tmp_path, full, short)
    told = [("red", "3"), ("b", "c", "4")], None, "red is 3", "t", "own.jsonl/1", ["7", "8"]
    assert first == Example(str(tmp_path / "a.png"), "q?", "7", *told, caption="c")
    assert second == Example(None, "x", "y", [("k", "1.5")], id="own.jsonl/2")


def test_own_json_and_jsonl_agree_and_val_is_a_file_beside_or_the_last_tenth(tmp_path):
    rows = [{"question": f"q{i}", "answer": str(i)} for i in range(20)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text("\ufeff" + json.dumps(rows), encoding="utf-8")
    for split, count in (("train", 18), ("val", 2)):
        a, b = (load_data(str(tmp_path / name), split) for name in ("a.jsonl", "b.json"))
        assert [e.question for e in a] == [e.question for e in b] and len(a) == count
    assert "--final_splits" in error_of(load_data, str(tmp_path / "a.jsonl"), "test")
    write_jsonl(tmp_path / "a_val.jsonl", rows[:3])
    lengths = [len(load_data(str(tmp_path / "a.jsonl"), split)) for split in ("train", "val")]
    assert lengths == [20, 3]


def test_the_published_list_format_is_read_as_it_is(tmp_path):
    Image.new("RGB", (3, 3)).save(tmp_path / "train_0.png")
    seen = {"objects": [{"name": "bag", "attributes": ["red", "small"], "position": "left"}]}
    row = {"question": "Think step by step. Who?", "question_wo_prompt": "Who?", "answer": "2017"}
    row |= {"image": "/elsewhere/images/train_0.png", "hint": "Goal: x\n#### 2017"}
    row |= {"visual_fact": json.dumps(seen), "choices": ["2017", "2018"]}
    sft = {"question": "Who?", "answer": "because\nAnswer: 5", "human_or_machine": 0}
    (tmp_path / "train.json").write_text(json.dumps([row, {**sft, "visual_fact": '{"a": [cut'}]))
    (tmp_path / "val.json").write_text(json.dumps([sft]))
    path = str(tmp_path / "train.json")
    (first, second), (third,) = (load_data(path, split) for split in ("train", "val"))
    assert (first.question, first.answer, first.trace) == ("Who?", "2017", "Goal: x")
    assert first.image == str(tmp_path / "train_0.png") and first.options == ["2017", "2018"]
    assert first.facts == [("bag", "red"), ("bag", "small"), ("bag", "left")]
    assert (second.answer, second.trace, second.facts, second.task) == ("5", "because", [], "human")
    assert third.question == "Who?"


def test_curr_refts_published_rows_are_read_and_ask_for_their_kind_of_answer(tmp_path):
    (tmp_path / "coco").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "coco" / "a.png")
    row = {"images": ["/gone/data/coco/a.png"], "problem": "<image>\nWhere?", "task": "detection"}
    row |= {"solution": "<thinking>It is left.</thinking><answer>[1, 2, 3, 4.5]</answer>"}
    labels = dict(row, task="classify", solution="<answer>cat, dog</answer>")
    worked = {"problem": "p", "answer": 4, "solution": "2 + 2 = 4", "task": "math"}
    box, *others = load_rows(tmp_path, row, labels, worked)
    assert box.question == "Where?\nA box is written [left, top, right, bottom]."
    assert (box.kind, box.answer, box.trace) == ("box", "[1, 2, 3, 4.5]", "It is left.")
    assert [(e.kind, e.answer) for e in others] == [("labels", "cat, dog"), ("math", "4")]
    assert box.image == str(tmp_path / "coco" / "a.png") and others[1].trace == "2 + 2 = 4"
    two = dict(row, solution="<answer>[1, 2, 3, 4], [5, 6, 7, 8]</answer>")
    assert "is not one box" in error_of(load_rows, tmp_path, two)


def test_each_of_a_list_of_answers_is_right_and_the_first_is_memorized(tmp_path):
    for row, answers, trace in (
        (
            {"answer": ["racket", "tennis racket", "racket", 7]},
            ["racket", "tennis racket", "7"],
            None,
        ),
        ({"answer": "a", "answers": ["b", "a"]}, ["a", "b"], None),
        ({"answers": ["because\nAnswer: 3", "three"]}, ["3", "three"], "because"),
    ):
        (read,) = load_rows(tmp_path, {"question": "q", **row})
        assert (read.answer, read.answers, read.trace) == (answers[0], answers, trace)


@pytest.mark.parametrize("answer", ["cab", "Cab", "B", "b", "(B)", "B.", "B) cab", "B: CAB"])
@pytest.mark.parametrize(
    "options", [["bus", "cab"], {"A": "bus", "B": "cab"}, ["A. bus", "B. cab"]]
)
def test_an_answer_names_an_option_by_its_text_or_its_letter(tmp_path, options, answer):
    (example,) = load_rows(tmp_path, {"question": "Which?", "options": options, "answer": answer})
    assert (example.answer, example.options) == ("cab", ["bus", "cab"])


def test_a_number_is_meant_by_its_value_but_for_chartqas_own_questions(tmp_path):
    answers = ["7", "−1,200.5", "12 %", "1/2", r"\frac{1}{2}", "x^2", "Tuesday 7", "3-4", "n.a."]
    rows = [{"question": "q", "answer": answer} for answer in answers]
    rows.append({"question": "q", "answer": "7", "task": "human"})
    assert [e.kind for e in load_rows(tmp_path, *rows)] == ["math"] * 6 + ["text"] * 4


def test_a_line_separator_that_unicode_knows_is_a_character_of_a_label(tmp_path):
    labels = [f"red{separator}blue" for separator in "\u2028\u2029\x85\x0b\x0c\x1e"]
    rows = [json.dumps({"question": "q", "answer": x}, ensure_ascii=False) for x in labels]
    assert [example.answer for example in load_rows(tmp_path, *rows)] == labels
    assert [split_marked(f"t\nAnswer: {label}\nmore")[1] for label in labels] == labels


# ---- what is refused, and what is said ----------------------------------------------------------


def test_every_bad_line_is_reported_at_once_with_its_number_or_left_out(tmp_path, capsys):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "bomb.png").write_bytes(BOMB)
    Image.new("RGB", (1, 300)).save(tmp_path / "strip.png")
    bad = [
        ("{broken", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "not an object"),
        ({"question": "q"}, "an answer is missing"),
        (dict(GOOD, question=["q"]), "question must be a text"),
        *((dict(GOOD, answer=x), "answer") for x in (True, [], ["a", None], [["b"]], [{"a": "a"}])),
        *((f'{{"question": "q", "answer": {x}}}', "answer must be") for x in ("1e999", "NaN")),
        (dict(GOOD, answer="\ud800"), "surrogate"),
        (dict(GOOD, facts="x"), "facts must be"),
        (dict(GOOD, facts=[["a"]]), "list of [name, value]"),
        (dict(GOOD, options="x"), "options must be"),
        (dict(GOOD, options=["bus", "cab"], answer="C"), "none of the options"),
        (dict(GOOD, image="gone.png"), "gone.png: no such"),
        (dict(GOOD, image="../text.png"), "leaves the folder"),
        (dict(GOOD, image="text.png"), "text.png: not an image"),
        (dict(GOOD, image="bomb.png"), "too large"),
        (dict(GOOD, image="strip.png"), "300 pixels: a side is over 200 times"),
        (dict(GOOD, image=["a.png", "b.png"]), "one image per question"),
        *((dict(GOOD, **{x: "x"}), x) for x in ("image_path", "Question", "correctAnswer", "A")),
        (dict(GOOD, problem="x"), "problem differs"),
    ]
    for row, reason in bad:
        assert reason in error_of(load_rows, tmp_path, row)
    lines = error_of(load_rows, tmp_path, GOOD, *[row for row, _ in bad[:3]], GOOD).splitlines()
    assert "own.jsonl: line 2: not" in lines[0] and "3 of 5 rows are bad" in lines[0]
    assert [line.split(": ")[0] for line in lines[1:]] == ["  line 3", "  line 4"]
    message = error_of(load_rows, tmp_path, *["{"] * 50)
    assert "30 more" in message and message.count("\n") == 20
    kept = load_rows(tmp_path, GOOD, bad[0][0], GOOD, skip_bad_rows=True)
    assert [example.id for example in kept] == ["own.jsonl/1", "own.jsonl/3"]
    assert "1 of 3 rows are bad and left out; line 2: not valid JSON" in capsys.readouterr().err


def test_an_empty_or_missing_file_or_an_unknown_name_is_an_error(tmp_path):
    (tmp_path / "x.jsonl").write_text("\n")
    for name, told in (("x.jsonl", "no examples"), ("y.json", "No such file"), ("charst", "gsm8k")):
        assert told in error_of(load_data, str(tmp_path / name), "train")


def test_only_an_absolute_path_that_is_gone_is_looked_for_by_its_name(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for path in ("/gone/img/a.png", "C:\\img\\a.png"):
        (example,) = load_rows(tmp_path, dict(GOOD, image=path))
        assert open_image(example).size == (8, 8)
        assert "1 images are not where it says" in capsys.readouterr().err
    for path in ("img/a.png", "https://host/a.png", "file:///gone/a.png"):
        assert path in error_of(load_rows, tmp_path, dict(GOOD, image=path))
    (tmp_path / "data").mkdir()
    outside = dict(GOOD, image="/gone/../a.png")
    assert "no such image" in error_of(load_rows, tmp_path / "data", outside)
    rows = [dict(GOOD, image=f"/gone/{i}/a.png") for i in range(2)]
    assert len(load_rows(tmp_path, rows[0], rows[0])) == 2
    assert "several have one name" in error_of(load_rows, tmp_path, *rows, skip_bad_rows=True)


def test_a_message_is_short_whatever_the_data_holds(tmp_path):
    long = "x\ny" * 30_000
    rows = [dict(GOOD, image=long), {**GOOD, long + "_image": "b"}]
    rows += [dict(GOOD, options=["b"], answer=long), dict(GOOD, image="data:image/png," + long)]
    lines = error_of(load_rows, tmp_path, *rows).split("\n")
    assert len(lines) == 4 and max(len(line.strip()) for line in lines) <= MAX_MESSAGE
    assert str(InputError("a" * 900 + " give --flag")).endswith("a give --flag")


# ---- what changed under --resume; traces and facts from a file of their own ---------------------


CHANGED = {"question": "?", "answers": ["0", "zero"], "facts": [["a", 1]], "trace": "other"}


@pytest.mark.parametrize("name", [None, "image", *CHANGED])
def test_a_resumed_run_can_say_in_which_fields_the_data_changed(tmp_path, name):
    rows = [{"question": f"q{i}", "answers": [str(i)], "image": "a.png"} for i in range(3)]
    prints = []
    for folder in (tmp_path / "then", tmp_path / "now"):  # data may move
        folder.mkdir()
        Image.new("L", (8, 8), 9 * (name == "image" and bool(prints))).save(folder / "a.png")
        prints.append(json.loads(json.dumps(fingerprint(load_rows(folder, *rows)))))
        rows[1] |= {name: CHANGED[name]} if name in CHANGED else {}
    assert changes(*prints) == (f"{name} (3 rows then, 3 now)" if name else "")
    assert "(3 rows then, 2 now)" in changes(prints[0], fingerprint(load_rows(folder, *rows[1:])))


def test_traces_and_facts_are_attached_by_id_and_strangers_are_counted(tmp_path, capsys):
    write_chartqa(tmp_path)
    ids = [f"chartqa/train/human/{i}" for i in range(3)]
    first, stranger = {"id": ids[0], "trace": "b is 1\nAnswer: 1"}, {"id": "x", "trace": "y"}
    changed = {"id": ids[1], "question": "Another?", "trace": "t"}
    rows = [dict(first, trace="old"), first, changed, stranger]
    traces = write_jsonl(tmp_path / "traces.jsonl", rows)
    seen = {"id": ids[1], "facts": [["a", "2019", 3], ["a", "2020", 4.5]]}
    facts = write_jsonl(tmp_path / "facts.jsonl", [seen, {"id": ids[2], "facts": []}])
    plain = load_data("chartqa", "train", str(tmp_path))
    examples = load_data("chartqa", "train", str(tmp_path), traces=traces, facts=facts)
    assert [e.trace for e in examples] == ["b is 1", None, None]
    assert "1 of 3 examples, 2 fit none" in capsys.readouterr().err
    assert examples[1].facts == [("a", "2019", "3"), ("a", "2020", "4.5")] != plain[1].facts
    assert examples[0].facts == plain[0].facts and examples[2] == plain[2]
    wrong = write_jsonl(tmp_path / "wrong.jsonl", [stranger])
    message = error_of(load_data, "chartqa", "train", str(tmp_path), traces=wrong)
    assert "0 of 3 examples, 1 fit none" in message
    wrong = write_jsonl(tmp_path / "wrong.jsonl", [dict(seen, facts="a: 3")])
    message = error_of(load_data, "chartqa", "train", str(tmp_path), facts=wrong)
    assert "wrong.jsonl: line 1: facts" in message
