"""Published data sets, images and hostile files: all made here, nothing is downloaded."""

import io
import json
import shutil
import sys
import zipfile
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from PIL import Image

from data import Example, InputError, load_data, open_image
from data.published import read_table

ROWS = [
    {"imgname": "a.png", "query": "How high is b?", "label": "1.684722222"},
    {"imgname": "b.png", "query": "Who?", "label": "[Men, 50+]"},
    {"imgname": "b.png", "query": "Which?", "label": "caf\ufffd"},
]
TABLE = (
    b'\xef\xbb\xbfEntity,Value\r\n"Important, but lower",7\r\nCaf\xe9,12%\r\nno,nan\r\nvoid,\r\n'
)
WIDE = b"Year,Men,Women\n2001,5,nan\n2002,6,8\n"


def png(mode, size) -> bytes:
    """A plain picture as a PNG; of 1 bit a huge one is small."""
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


BOMB = png("1", (9000, 9000))


def write_chartqa(folder, rows=ROWS):
    train = folder / "ChartQA Dataset" / "train"
    (train / "png").mkdir(parents=True)
    (train / "tables").mkdir()
    Image.new("RGB", (6, 4), "red").save(train / "png" / "a.png")
    Image.new("RGBA", (6, 4), (0, 0, 255, 0)).save(train / "png" / "b.png")
    (train / "tables" / "a.csv").write_bytes(TABLE)
    (train / "tables" / "b.csv").write_bytes(WIDE)
    (train / "train_human.json").write_text(json.dumps(rows))
    (train / "train_augmented.json").write_text(json.dumps(ROWS[:1]))
    return train


def write_jsonl(path, rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return str(path)


def error_of(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


# ---- ChartQA, GSM8K, A-OKVQA --------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "parent", "zip", "folder of the zip"])
def test_chartqas_human_questions_are_read_as_published_from_folder_and_zip(tmp_path, form):
    train = write_chartqa(tmp_path / "made")
    packed = Path(shutil.make_archive(tmp_path / "ChartQA Dataset", "zip", tmp_path / "made"))
    where = {"folder": train.parent, "parent": tmp_path / "made", "zip": packed}.get(form, tmp_path)
    examples = load_data("chartqa", "train", str(where))
    assert [e.answer for e in examples] == [row["label"] for row in ROWS]
    assert [e.id for e in examples] == [f"chartqa/train/human/{i}" for i in range(3)]
    assert examples[0].facts == [("Important, but lower", "7"), ("Caf\ufffd", "12%")]
    assert examples[1].facts == [("2001", "Men", "5"), ("2002", "Men", "6"), ("2002", "Women", "8")]
    assert isinstance(examples[0].image, zipfile.Path if "zip" in form else str)
    shown = [open_image(image) for image in (*examples[:2], Image.new("LA", (6, 4), (0, 0)))]
    white = (255, 255, 255)  # what is see-through
    assert [image.getpixel((1, 1)) for image in shown] == [(255, 0, 0), white, white]


def test_chartqa_reports_every_bad_row_at_once(tmp_path):
    rows = [{"imgname": "gone.png", "query": "q", "label": "1"}, {"imgname": "a.png", "label": "1"}]
    rows += [{"imgname": "../../a.png", "query": "q", "label": "1"}, ROWS[0], ROWS[1]]
    train = write_chartqa(tmp_path, rows)
    (train / "png" / "b.png").write_bytes(b"GIF")
    message = error_of(load_data, "chartqa", "train", str(tmp_path))
    for part in ("4 of 5", "gone.png: no such", "row 1: query", "row 2: imgname", "b.png: not an"):
        assert part in message and "row 3" not in message
    assert len(load_data("chartqa", "train", str(tmp_path), skip_bad_rows=True)) == 1
    (train / "train_human.json").write_text('[{"imgname": "a.png",')
    message = error_of(load_data, "chartqa", "train", str(tmp_path))
    assert "train_human.json: not valid JSON" in message
    assert "--final_splits" in error_of(load_data, "chartqa", "test", str(tmp_path))


def test_odd_tables_are_read(tmp_path):
    path = tmp_path / "a.csv"
    assert read_table(path) == []
    for table, facts in (
        (b"", []),
        (b"A,B, C\nx,1,2\n\n,3", [("x", "B", "1"), ("x", "C", "2"), ("", "B", "3")]),
        (b'A,B\n"x\ny",1', [("x\ny", "1")]),
    ):
        path.write_bytes(table)
        assert read_table(path) == facts


@pytest.mark.parametrize("name", ["/etc/evil.png", "a/../../evil.png", "C:evil.png", "huge.csv"])
def test_a_zip_entry_that_points_outside_or_swells_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ChartQA Dataset/train/train_human.json", json.dumps(ROWS))
        archive.writestr(name, b"x" * (2**26 + 1 if name == "huge.csv" else 1))
    assert "refused" in error_of(load_data, "chartqa", "train", str(tmp_path / "evil.zip"))


def test_without_network_one_line_names_both_ways_out(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    message = error_of(load_data, "chartqa", "train")
    assert "--data_dir" in message and "--dataset charts" in message and "\n" not in message


def test_gsm8k_gives_result_trace_and_equations_and_val_is_cut_off_train(tmp_path):
    rows = [
        {"question": "q1", "answer": "He has 2*600 = <<2*600=1200>>1200.\n#### 1,200"},
        {"question": "q2", "answer": "It is $<<3+4=7>>7 and <<7*1.5=10.5>>10.5.\n#### -3"},
    ] * 10
    write_jsonl(tmp_path / "train.jsonl", rows)
    train, val = (load_data("gsm8k", split, str(tmp_path)) for split in ("train", "val"))
    assert [e.id for e in train + val] == [f"gsm8k/train/{i}" for i in range(1, 21)]
    assert [(e.answer, e.kind) for e in val] == [("1200", "math"), ("-3", "math")]
    assert [e.trace for e in val] == ["He has 2*600 = 1200.", "It is $7 and 10.5."]
    assert val[1].facts == [("3+4", "7"), ("7*1.5", "10.5")]
    write_jsonl(tmp_path / "test.jsonl", [{"question": "q", "answer": "none"}])
    assert "####" in error_of(load_data, "gsm8k", "test", str(tmp_path))


def test_aokvqa_takes_choice_direct_answers_rationales_and_unpacks_images(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", tmp_path)
    row = {"image": {"bytes": png("RGB", (3, 3))}, "question": "Awaiting?"}
    row |= {"choices": ["skater", "cab"], "correct_choice_idx": 1, "rationales": ["One.", "Two."]}
    row |= {"direct_answers": "['car', 'bus', 'bus']"}
    bare, bad = dict(row, choices=None, correct_choice_idx=None), dict(row, image={"bytes": b"GIF"})
    for name, line in (("train/0000", row), ("train/0001", bare), ("validation/0000", bad)):
        path = tmp_path / "default" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist([line]), path)
    first, second = load_data("aokvqa", "train", str(tmp_path))
    assert (first.answer, first.options, first.trace) == ("cab", ["skater", "cab"], "One. Two.")
    assert first.answers == ["cab", "bus", "car"] and second.answers == ["bus", "car"]
    assert (first.id, second.id) == ("aokvqa/train/1", "aokvqa/train/2")
    assert open_image(second).size == (3, 3)
    assert "row 1: " in error_of(load_data, "aokvqa", "val", str(tmp_path))
    assert "not published" in error_of(load_data, "aokvqa", "test")
    path.write_bytes(b"torn")
    assert "validation: " in error_of(load_data, "aokvqa", "val", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "pyarrow" in error_of(load_data, "aokvqa", "val", str(tmp_path))


# ---- images -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_an_image_is_turned_as_its_exif_says(tmp_path, suffix):
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste("red", (0, 0, 16, 8))
    names = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 6: "ROTATE_90", 7: "TRANSVERSE"}
    for turn, name in names.items():
        exif = Image.Exif()
        exif[0x0112] = turn
        stored = upright.transpose(Image.Transpose[name])
        stored.save(tmp_path / f"x.{suffix}", exif=exif)
        shown = open_image(tmp_path / f"x.{suffix}")
        corners = [shown.getpixel(place)[1] < 60 for place in ((3, 3), (28, 3), (3, 12), (28, 12))]
        assert shown.size == (32, 16) and corners == [True, False, False, False]


def test_grey_of_any_depth_is_shown_in_its_range_or_refused(tmp_path):
    file = tmp_path / "grey.tif"
    for kind, values, seen in (
        ("uint16", [0, 0x8000, 65535], [0, 128, 255]),
        ("int32", [0, 100, 255], [0, 100, 255]),
        ("float32", [0, 0.5, 1], [0, 127, 255]),
    ):
        Image.fromarray(np.array([values], kind)).save(file)
        assert [open_image(file).getpixel((x, 0))[0] for x in range(3)] == seen
    for kind, values in (("int32", [0, -1, 2**30]), ("float32", [0, 1, float("nan")])):
        Image.fromarray(np.array([values], kind)).save(file)
        assert "grey.tif: can't be shown" in error_of(open_image, file)


@pytest.mark.parametrize("size", [(400, 100), (5000, 1), (1, 5000), (10, 10), (101, 20_000)])
def test_max_pixels_caps_the_size_and_keeps_the_aspect_that_processors_take(size):
    width, height = open_image(Image.new("RGB", size), max_pixels=1000).size
    assert 1 <= width * height <= 1000 and max(width, height) <= 200 * min(width, height)
    assert size != (400, 100) or (width, height) == (63, 15)


HOSTILE = [
    (None, "no such image"),
    (BOMB, "too large"),
    (png("L", (1, 300)), "1 x 300 pixels: a side is over 200 times the other"),
    (png("RGB", (64, 64))[:60], "broken image"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not an image"),
]


@pytest.mark.parametrize("content, reason", HOSTILE)
def test_hostile_images_are_one_line_naming_file_and_example(
    tmp_path, monkeypatch, content, reason
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as others set it
    file = tmp_path / "bad\x1b[31m.png"
    if content is not None:
        file.write_bytes(content)
    message = error_of(open_image, Example(str(file), id="set/train/7"))
    assert reason in message and ".png" in message and "set/train/7" in message
    assert "\n" not in message and "\x1b" not in message
