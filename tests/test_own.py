"""One's own data: what is read, what is refused, what is said; and what a resumed run can tell."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from data import Example, InputError, load_data
from data.example import MAX_MESSAGE
from data.fingerprint import changes, fingerprint
from tests.test_data import error_of, write_chartqa, write_rows

GOOD = {"question": "q", "answer": "a"}


def load_rows(folder, *rows, **settings):
    """The Examples of these rows, all of them: val is a file of its own; a picture is beside."""
    write_rows(folder / "own.val.jsonl", [GOOD])
    (folder / "coco").mkdir(exist_ok=True)
    Image.new("RGB", (3, 3)).save(folder / "coco" / "a.png")
    return load_data(write_rows(folder / "own.jsonl", rows), "train", **settings)


def test_rows_of_ones_own_of_dymes_lists_and_of_curr_refts_are_read(tmp_path):
    full = {"image": "coco/a.png", "question": "q?", "answer": 7, "options": ["7", "8"]}
    full |= {"facts": [["red", 3], ["b", "c", "4"]], "trace": "red is 3\nAnswer: 7", "task": "t"}
    short = dict(GOOD, answer="n.a.", facts={"k": 1.5}, caption="c", imageId=7, isHard=True)
    lines = [f"x{separator}y" for separator in "\u2028\u2029\x85\x0b\x0c\x1e"]  # in a label
    several = dict(GOOD, answer=["x", "y z", "x", 7], answers=["b", "y z", *lines])
    thought = {"question": "q", "answers": ["because\nAnswer: 3", "three"]}
    seen = {"objects": [{"name": "bag", "attributes": ["red", "big"], "position": "left"}]}
    dyme = {"question": "Think. Who?", "question_wo_prompt": "Who?", "hint": "Goal: x\n#### 2017"}
    dyme |= {"image": "/gone/data/coco/a.png", "answer": "A", "visual_fact": json.dumps(seen)}
    dyme |= {"choices": ["2017", "8"]}
    human = dict(GOOD, answer="so\nAnswer: 5", human_or_machine=0, visual_fact='{"a": [cut')
    box = {"images": ["/gone/data/coco/a.png"], "problem": "<image>\nWhere?", "task": "detection"}
    box |= {"solution": "<thinking>It is left.</thinking><answer>[1, 2, 3, 4.5]</answer>"}
    labels = dict(box, task="classify", solution="<answer>cat, dog</answer>")
    worked = {"problem": "p", "answer": 4, "solution": "2 + 2 = 4", "task": "math"}

    image = str(tmp_path / "coco" / "a.png")
    left = [("bag", "red"), ("bag", "big"), ("bag", "left")]
    where = "Where?\nA box is written [left, top, right, bottom]."
    told = [
        ("q?", ["7"], "text", "red is 3", [("red", "3"), ("b", "c", "4")], image, "t"),
        ("q", ["n.a."], "text", None, [("k", "1.5")], None, ""),
        ("q", ["x", "y z", "7", "b", *lines], "text", None, [], None, ""),
        ("q", ["3", "three"], "math", "because", [], None, ""),
        ("Who?", ["2017"], "text", "Goal: x", left, image, ""),
        ("q", ["5"], "text", "so", [], None, "human"),
        (where, ["[1, 2, 3, 4.5]"], "box", "It is left.", [], image, "detection"),
        ("Where?", ["cat, dog"], "labels", None, [], image, "classify"),
        ("p", ["4"], "math", "2 + 2 = 4", [], None, "math"),
    ]
    read = load_rows(tmp_path, full, short, several, thought, dyme, human, box, labels, worked)
    for line, (e, row) in enumerate(zip(read, told, strict=True), start=1):
        assert (e.question, e.answers, e.kind, e.trace, e.facts, e.image, e.task) == row
        assert e.answer == e.answers[0] and e.id == f"own.jsonl/{line}"
    assert read[0].options == ["7", "8"] and read[1].caption == "c"


@pytest.mark.parametrize("answer", ["cab", "Cab", "B", "b", "(B)", "B.", "B) cab", "B: CAB"])
def test_an_answer_names_an_option_by_its_text_or_its_letter(tmp_path, answer):
    forms = (["bus", "cab"], {"A": "bus", "B": "cab"}, ["A. bus", "B. cab"])
    for example in load_rows(tmp_path, *(dict(GOOD, options=x, answer=answer) for x in forms)):
        assert (example.answer, example.options) == ("cab", ["bus", "cab"])


def test_a_number_is_meant_by_its_value_but_for_chartqas_own_questions(tmp_path):
    answers = ["7", "−1,200.5", "12 %", "1/2", r"\frac{1}{2}", "x^2", "Tuesday 7", "3-4", "n.a."]
    rows = [dict(GOOD, answer=answer) for answer in answers]
    read = load_rows(tmp_path, *rows, dict(GOOD, answer="7", task="human"))
    assert [example.kind for example in read] == ["math"] * 6 + ["text"] * 4


@pytest.mark.parametrize("name, val", [("a.jsonl", "a_val.jsonl"), ("train.json", "val.json")])
def test_val_is_a_file_beside_or_the_last_tenth(tmp_path, name, val):
    def questions(split):
        return [int(example.question) for example in load_data(path, split)]

    rows = [{"question": i, "answer": "a"} for i in range(29)]
    path = write_rows(tmp_path / name, rows)
    assert (questions("train"), questions("val")) == ([*range(27)], [27, 28])
    write_rows(tmp_path / val, rows[:3])
    assert (questions("train"), questions("val")) == ([*range(29)], [0, 1, 2])
    assert "--final_splits" in error_of(load_data, path, "test")


LONG = "x\ny" * 30_000
BAD = [
    ("{broken", "not valid JSON"),
    ("[" * 100_000, "not valid JSON"),
    ("[1]", "not an object"),
    ({"question": "q"}, "an answer is missing"),
    (dict(GOOD, question=["q"]), "question must be a text"),
    *((dict(GOOD, answer=x), "answer") for x in (True, [], ["a", None], [["b"]], [{"a": "a"}])),
    *((f'{{"question": "q", "answer": {x}}}', "answer must be") for x in ("1e999", "NaN")),
    ('{"question": "q", "answer": "\\ud800"}', "surrogate"),
    (dict(GOOD, facts="x"), "facts must be"),
    (dict(GOOD, facts=[["a"]]), "list of [name, value]"),
    (dict(GOOD, options="x"), "options must be"),
    (dict(GOOD, options=["bus", "cab"], answer="C"), "none of the options"),
    (dict(GOOD, options=["bus", "cab"], answer=LONG), "none of the options"),
    (dict(GOOD, image="own.jsonl"), "not an image"),
    (dict(GOOD, image="../a.png"), "leaves the folder"),
    (dict(GOOD, image=["a.png", "b.png"]), "one image per question"),
    *((dict(GOOD, image=x), "own") for x in (LONG, "data:image/png," + LONG)),
    *((dict(GOOD, image=x), x) for x in ("i/coco/a.png", "https://h/coco/a.png", "file:///a.png")),
    *((dict(GOOD, **{x: "x"}), x) for x in ("image_path", "Question", "correctAnswer", "A")),
    ({**GOOD, LONG + "_image": "x"}, "unknown field"),
    (dict(GOOD, problem="x"), "problem differs"),
    (dict(GOOD, task="detection", answer="[1, 2, 3, 4], [5, 6, 7, 8]"), "is not one box"),
]


def test_a_bad_row_is_refused_in_a_short_line_with_its_number_and_reason(tmp_path):
    for row, reason in BAD:
        message = error_of(load_rows, tmp_path, GOOD, row)
        assert "own.jsonl: line 2: " in message and reason in message
        assert len(message) <= MAX_MESSAGE
    assert str(InputError("a" * 900 + " give --flag")).endswith("a give --flag")


def test_all_bad_rows_are_reported_at_once_or_left_out(tmp_path, capsys):
    rows = [GOOD, *(row for row, _ in BAD[:3]), GOOD]
    first, *more = error_of(load_rows, tmp_path, *rows).splitlines()
    assert "line 2: not valid" in first and "3 of 5 rows are bad" in first
    assert [line.split(": ")[0] for line in more] == ["  line 3", "  line 4"]
    assert error_of(load_rows, tmp_path, *["{"] * 50).count("\n") == 19
    kept = load_rows(tmp_path, *rows, skip_bad_rows=True)
    assert [example.id for example in kept] == ["own.jsonl/1", "own.jsonl/5"]
    assert "3 of 5 rows are bad and left out; line 2: not valid JSON" in capsys.readouterr().err


def test_an_empty_or_missing_file_or_an_unknown_name_is_an_error(tmp_path):
    (tmp_path / "x.jsonl").write_text("\n")
    for name, told in (("x.jsonl", "no examples"), ("y.json", "No such file"), ("charst", "gsm8k")):
        assert told in error_of(load_data, str(tmp_path / name), "train")


def test_only_an_absolute_path_that_is_gone_is_looked_for_by_its_name(tmp_path, capsys):
    for path in ("/gone/coco/a.png", "C:\\coco\\a.png"):
        (example,) = load_rows(tmp_path, dict(GOOD, image=path))
        assert example.image == str(tmp_path / "coco" / "a.png")
        assert "1 images are not where it says" in capsys.readouterr().err
    outside = dict(GOOD, image="/gone/../coco/a.png")
    assert "no such image" in error_of(load_rows, tmp_path / "coco", outside)
    rows = [dict(GOOD, image=f"/gone/{i}/coco/a.png") for i in (0, 0, 1)]
    assert len(load_rows(tmp_path, *rows[:2])) == 2
    assert "several have one name" in error_of(load_rows, tmp_path, *rows, skip_bad_rows=True)


def test_a_resumed_run_can_say_in_which_fields_the_data_changed(tmp_path):
    def of(folder="then", image=b"0", **changed):
        (tmp_path / f"{folder}.png").write_bytes(image)
        example = Example(str(tmp_path / f"{folder}.png"), "q", "a", [("a", "1")], trace="t")
        return fingerprint([replace(example, **changed), example])

    then = json.loads(json.dumps(of()))
    assert changes(then, of("now")) == ""  # data may move
    assert changes(then, of(image=b"1")) == "image (2 rows then, 2 now)"
    changed = {"question": "?", "answers": ["a", "b"], "facts": [], "needed": [], "trace": None}
    for name, value in changed.items():
        assert changes(then, of(**{name: value})) == f"{name} (2 rows then, 2 now)"
    assert "(2 rows then, 0 now)" in changes(then, fingerprint([]))


def test_traces_and_facts_are_attached_by_id_and_strangers_are_counted(tmp_path, capsys):
    write_chartqa(tmp_path)

    def load(**written):
        paths = {
            name: write_rows(tmp_path / f"{name}.jsonl", rows) for name, rows in written.items()
        }
        return load_data("chartqa", "train", str(tmp_path), **paths)

    first, second, third = load()
    traces = [{"id": first.id, "trace": "old"}, {"id": first.id, "trace": "b is 1\nAnswer: 1"}]
    traces += [{"id": second.id, "question": "Another?", "trace": "t"}, {"id": "x", "trace": "y"}]
    facts = [{"id": second.id, "facts": [["a", "2019", 3]]}, {"id": third.id, "facts": []}]
    examples = load(traces=traces, facts=facts)
    assert [example.trace for example in examples] == ["b is 1", None, None]
    assert [e.facts for e in examples] == [first.facts, [("a", "2019", "3")], third.facts]
    assert "1 of 3 examples, 2 fit none" in capsys.readouterr().err
    assert "0 of 3 examples, 1 fit none" in error_of(load, traces=traces[3:])
    assert "line 1: facts" in error_of(load, facts=[{"id": second.id, "facts": "a: 3"}])
