"""One's own data: what is read, what is refused, what is said; and what a resumed run can tell."""

import json

import pytest
from PIL import Image

from data import Example, InputError, load_data, open_image
from data.example import MAX_MESSAGE, split_marked
from data.fingerprint import changes, fingerprint
from tests.test_data import bomb_png, error_of, write_chartqa, write_jsonl


def load_rows(folder, *rows, **settings):
    """The Examples of these rows, all of them: val is a file of its own."""
    write_jsonl(folder / "own.val.jsonl", [{"question": "v", "answer": "v"}])
    return load_data(write_jsonl(folder / "own.jsonl", rows), "train", **settings)


# ---- what is read -------------------------------------------------------------------------------


def test_own_jsonl_is_read_with_all_its_fields(tmp_path):
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png")
    full = {"image": "a.png", "question": "q?", "answer": 7, "options": ["7", "8"], "task": "t"}
    full |= {"facts": [["red", 3], ["b", "c", "4"]], "trace": "red is 3\nAnswer: 7", "caption": "c"}
    short = {"question": "x", "answer": "y", "facts": {"k": 1.5}}
    first, second = load_rows(tmp_path, full, short)
    facts, told = [("red", "3"), ("b", "c", "4")], (None, "red is 3", "t", "own.jsonl/1")
    path = str(tmp_path / "a.png")
    assert first == Example(path, "q?", "7", facts, *told, ["7", "8"], caption="c")
    assert (second.image, second.facts, second.id) == (None, [("k", "1.5")], "own.jsonl/2")


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


def test_every_bad_line_is_reported_at_once_with_its_number(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "bomb.png").write_bytes(bomb_png(100_000))
    good = {"question": "q", "answer": "a"}
    bad = [
        ("{broken", "not valid JSON"),
        ({"question": "q"}, "an answer is missing"),
        (dict(good, question=["q"]), "question must be a text"),
        (dict(good, answer=True), "answer must be"),
        ("[1]", "not an object"),
        (dict(good, image="gone.png"), "gone.png: no such"),
        (dict(good, image="../text.png"), "leaves the folder"),
        (dict(good, facts="x"), "facts must be"),
        (dict(good, image="text.png"), "text.png: not an image"),
        (dict(good, image="bomb.png"), "exceeds limit"),
        (dict(good, facts=[["a"]]), "list of [name, value]"),
        (dict(good, options="x"), "options must be"),
        (dict(good, image=["a.png", "b.png"]), "one image per question"),
        (dict(good, answer="\ud800"), "surrogate"),
        ('{"question": "q", "answer": 1e999}', "answer must be"),
        ('{"question": "q", "answer": NaN}', "answer must be"),
        ("[" * 100_000, "not valid JSON"),
        ('{"question": "q", "answer": "' + "x" * (10 * 2**20) + '"}', "longer than 10 MB"),
    ]
    path = write_jsonl(tmp_path / "own.jsonl", [good, *[row for row, _ in bad], good])
    lines = error_of(load_data, path, "train").splitlines()
    assert f"own.jsonl: {len(bad)} bad rows" in lines[0] and len(lines) == 1 + len(bad)
    for number, (line, (_, reason)) in enumerate(zip(lines[1:], bad), start=2):
        assert line.startswith(f"  line {number}: ") and reason in line
    message = error_of(load_data, write_jsonl(tmp_path / "x.jsonl", ["{"] * 50), "train")
    assert "50 bad rows" in message and "30 more" in message and message.count("\n") == 21


def test_an_empty_or_missing_file_or_an_unknown_name_is_an_error(tmp_path):
    (tmp_path / "x.jsonl").write_text("\n")
    assert "x.jsonl" in error_of(load_data, str(tmp_path / "x.jsonl"), "train")
    assert "y.json" in error_of(load_data, str(tmp_path / "y.json"), "train")
    message = error_of(load_data, "chartsqa", "train")
    assert all(name in message for name in ("charts", "chartqa", "gsm8k", "aokvqa", ".jsonl"))


def test_the_published_list_format_is_read_as_it_is(tmp_path):
    Image.new("RGB", (3, 3)).save(tmp_path / "train_0.png")
    seen = {"objects": [{"name": "bag", "attributes": ["red", "small"], "position": "left"}]}
    row = {"question": "Think step by step. Who?", "question_wo_prompt": "Who?", "answer": "2017"}
    row |= {"image": "/elsewhere/images/train_0.png", "hint": "Goal: x\n#### 2017"}
    row |= {"visual_fact": json.dumps(seen), "choices": ["2017", "2018"]}
    sft = {"question": "Who?", "answer": "because\nAnswer: 5", "human_or_machine": 0}
    sft |= {"visual_fact": '{"objects": [cut off'}
    (tmp_path / "d").mkdir()
    path = tmp_path / "d" / "train.json"
    path.write_text(json.dumps([row, sft, sft]))
    (tmp_path / "d" / "val.json").write_text(json.dumps([sft]))
    first, second, _ = load_data(str(path), "train", str(tmp_path))
    assert (first.question, first.answer, first.trace) == ("Who?", "2017", "Goal: x")
    assert first.image == str(tmp_path / "train_0.png") and first.options == ["2017", "2018"]
    assert first.facts == [("bag", "red"), ("bag", "small"), ("bag", "left")]
    assert (second.answer, second.trace, second.facts) == ("5", "because", [])
    assert second.task == "human" and len(load_data(str(path), "val", str(tmp_path))) == 1


# ---- several right answers, options -------------------------------------------------------------


def test_each_of_a_list_of_answers_is_right_and_the_first_is_memorized(tmp_path):
    first, second, third = load_rows(
        tmp_path,
        {"question": "q", "answer": ["racket", "tennis racket", "racket", 7]},
        {"question": "q", "answer": "a", "answers": ["b", "a"]},
        {"question": "q", "answers": ["because\nAnswer: 3", "three"]},
    )
    assert (first.answer, first.answers) == ("racket", ["racket", "tennis racket", "7"])
    assert (second.answer, second.answers) == ("a", ["a", "b"])
    assert (third.answer, third.answers, third.trace) == ("3", ["3", "three"], "because")
    for bad in ([], ["a", None], ["a", ["b"]], [{"answer": "a"}]):
        assert "answer" in error_of(load_rows, tmp_path, {"question": "q", "answer": bad})


@pytest.mark.parametrize("answer", ["cab", "Cab", "B", "b", "(B)", "B.", "B) cab", "B: CAB"])
@pytest.mark.parametrize(
    "options", [["bus", "cab"], {"A": "bus", "B": "cab"}, ["A. bus", "B. cab"]]
)
def test_an_answer_names_an_option_by_its_text_or_its_letter(tmp_path, options, answer):
    row = {"question": "Which?", "options": options, "answer": answer}
    (example,) = load_rows(tmp_path, row)
    assert (example.answer, example.options) == ("cab", ["bus", "cab"])
    assert "none of the options" in error_of(load_rows, tmp_path, dict(row, answer="C"))


# ---- nothing of a row is lost without a word ----------------------------------------------------


@pytest.mark.parametrize("field", ["image_path", "Question", "correctAnswer", "A", "problem"])
def test_a_field_that_matters_is_an_error_that_names_it(tmp_path, field):
    message = error_of(load_rows, tmp_path, {"question": "q", "answer": "a", field: "x"})
    assert field in message and "\n" not in message


def test_images_problem_and_solution_are_read_and_what_is_not_used_is_said(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    row = {"images": ["a.png"], "problem": "p", "solution": "so <answer>4</answer>", "level": 3}
    row |= {"isHard": True, "note": None}
    worked = {"question": "p", "answer": 4, "solution": "2 + 2 = 4", "imageId": 7}
    first, second = load_rows(tmp_path, row, worked)
    assert (first.question, first.answer, first.trace) == ("p", "4", "so")
    assert open_image(first).size == (8, 8)
    assert (second.answer, second.trace, second.image) == ("4", "2 + 2 = 4", None)
    assert "not used are the fields imageId, isHard, level" in capsys.readouterr().err


def test_only_an_absolute_path_that_is_gone_is_looked_for_by_its_name(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    row = {"question": "q", "answer": "a"}
    for path in ("/gone/img/a.png", "C:\\img\\a.png"):
        (example,) = load_rows(tmp_path, dict(row, image=path))
        assert open_image(example).size == (8, 8)
        assert "1 images are not where it says" in capsys.readouterr().err
    for path in ("img/a.png", "https://host/a.png", "file:///gone/a.png"):
        assert path in error_of(load_rows, tmp_path, dict(row, image=path))
    (tmp_path / "data").mkdir()
    outside = dict(row, image="/gone/../a.png")
    assert "no such image" in error_of(load_rows, tmp_path / "data", outside)
    rows = [dict(row, image=f"/gone/{i}/a.png") for i in range(2)]
    assert len(load_rows(tmp_path, rows[0], rows[0])) == 2
    assert "several have one name" in error_of(load_rows, tmp_path, *rows, skip_bad_rows=True)


def test_bad_rows_are_left_out_and_counted_where_that_is_asked(tmp_path, capsys):
    Image.new("RGB", (1, 300)).save(tmp_path / "strip.png")
    good = {"question": "q", "answer": "a"}
    rows = [good, "{broken", good, dict(good, image="strip.png")]
    assert "300 pixels: a side is over 200 times" in error_of(load_rows, tmp_path, *rows)
    kept = load_rows(tmp_path, *rows, skip_bad_rows=True)
    assert [example.id for example in kept] == ["own.jsonl/1", "own.jsonl/3"]
    assert "2 of 4 rows are bad and left out; line 2: not valid JSON" in capsys.readouterr().err


def test_a_message_is_short_whatever_the_data_holds(tmp_path):
    long = "x\ny" * 30_000
    good = {"question": "q", "answer": "a"}
    for bad in (
        dict(good, image=long),
        {**good, long + "_image": "b"},
        dict(good, options=["b"], answer=long),
        {**good, "image": "data:image/png;base64," + "A" * 92_000},
    ):
        lines = error_of(load_rows, tmp_path, bad, bad).split("\n")
        assert len(lines) == 3 and max(len(line.strip()) for line in lines) <= MAX_MESSAGE
    assert str(InputError("a" * 900 + " give --flag")).endswith("a give --flag")


def test_a_line_separator_that_unicode_knows_is_a_character_of_a_label(tmp_path):
    labels = [f"red{separator}blue" for separator in "\u2028\u2029\x85\x0b\x0c\x1e"]
    rows = [json.dumps({"question": "q", "answer": x}, ensure_ascii=False) for x in labels]
    assert [example.answer for example in load_rows(tmp_path, *rows)] == labels
    assert [split_marked(f"t\nAnswer: {label}\nmore")[1] for label in labels] == labels


# ---- what changed under --resume ----------------------------------------------------------------


CHANGED = {"question": "?", "answers": ["0", "zero"], "facts": [["a", 1]], "trace": "other"}


@pytest.mark.parametrize("name", [None, "image", *CHANGED])
def test_a_resumed_run_can_say_in_which_fields_the_data_changed(tmp_path, name):
    rows = [{"question": f"q{i}", "answers": [str(i)], "image": f"{i}.png"} for i in range(3)]
    prints = []
    for folder in (tmp_path / "then", tmp_path / "now"):  # data may move
        folder.mkdir()
        for i in range(3):
            grey = 9 if name == "image" and folder.name == "now" else i
            Image.new("L", (8, 8), grey).save(folder / f"{i}.png")
        prints.append(json.loads(json.dumps(fingerprint(load_rows(folder, *rows)))))
        rows[1] |= {name: CHANGED[name]} if name in CHANGED else {}
    assert changes(*prints) == (f"{name} (3 rows then, 3 now)" if name else "")
    assert "(3 rows then, 2 now)" in changes(prints[0], fingerprint(load_rows(folder, *rows[1:])))


# ---- traces and facts from a file of their own --------------------------------------------------


def test_traces_are_attached_by_id_and_strangers_are_counted(tmp_path, capsys):
    write_chartqa(tmp_path)
    first = {"id": "chartqa/train/human/0", "trace": "b is 1\nAnswer: 1"}
    changed = {"id": "chartqa/train/human/1", "question": "Another?", "trace": "t"}
    rows = [dict(first, trace="old"), first, changed, {"id": "x", "trace": "y"}]
    traces = write_jsonl(tmp_path / "traces.jsonl", rows)
    examples = load_data("chartqa", "train", str(tmp_path), traces=traces)
    assert [e.trace for e in examples] == ["b is 1", None, None]
    assert "1 of 3 examples, 2 fit none" in capsys.readouterr().err
    wrong = write_jsonl(tmp_path / "wrong.jsonl", rows[-1:])
    message = error_of(load_data, "chartqa", "train", str(tmp_path), traces=wrong)
    assert "0 of 3 examples, 1 fit none" in message


def test_facts_of_a_file_take_the_place_of_the_datas_own(tmp_path):
    write_chartqa(tmp_path)
    rows = [{"id": "chartqa/train/human/1", "facts": [["a", "2019", 3], ["a", "2020", 4.5]]}]
    rows.append({"id": "chartqa/train/human/2", "facts": []})
    facts = write_jsonl(tmp_path / "facts.jsonl", rows)
    plain = load_data("chartqa", "train", str(tmp_path))
    examples = load_data("chartqa", "train", str(tmp_path), facts=facts)
    assert examples[1].facts == [("a", "2019", "3"), ("a", "2020", "4.5")] != plain[1].facts
    assert [examples[0], examples[2]] == [plain[0], plain[2]]
    bad = write_jsonl(tmp_path / "bad.jsonl", [dict(rows[0], facts="a: 3")])
    message = error_of(load_data, "chartqa", "train", str(tmp_path), facts=bad)
    assert "bad.jsonl: line 1: facts" in message


def test_curr_refts_published_rows_are_read_and_ask_for_their_kind_of_answer(tmp_path):
    (tmp_path / "coco").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "coco" / "a.png")
    row = {"image": "/gone/data/coco/a.png", "problem": "<image>\nWhere?", "task": "detection"}
    row |= {"solution": "<thinking>It is left.</thinking><answer>[1, 2, 3, 4.5]</answer>"}
    labels = dict(row, task="classify", solution="<answer>cat, dog</answer>")
    number = dict(row, task="math", solution=4)
    box, *others = load_rows(tmp_path, row, labels, number)
    assert box.question == "Where?\nA box is written [left, top, right, bottom]."
    assert (box.kind, box.answer, box.trace) == ("box", "[1, 2, 3, 4.5]", "It is left.")
    assert [(e.kind, e.answer) for e in others] == [("labels", "cat, dog"), ("math", "4")]
    assert box.image == str(tmp_path / "coco" / "a.png")
    two = dict(row, solution="<answer>[1, 2, 3, 4], [5, 6, 7, 8]</answer>")
    assert "is not one box" in error_of(load_rows, tmp_path, two)


def test_a_number_is_meant_by_its_value_but_for_chartqas_own_questions(tmp_path):
    answers = ["7", "−1,200.5", "12 %", "1/2", r"\frac{1}{2}", "x^2", "Tuesday 7", "3-4", "n.a."]
    rows = [{"question": "q", "answer": answer} for answer in answers]
    rows.append({"question": "q", "answer": "7", "task": "human"})
    assert [e.kind for e in load_rows(tmp_path, *rows)] == ["math"] * 6 + ["text"] * 4
