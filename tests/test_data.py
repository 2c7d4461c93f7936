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

ROWS = [
    {"imgname": "a.png", "query": "How high is b?", "label": "1.684722222"},
    {"imgname": "b.png", "query": "Who?", "label": "[Men, 50+]"},
    {"imgname": "c.png", "query": "Which?", "label": "caf\ufffd"},
]
NARROW = b'\xef\xbb\xbfEntity,Value\r\n"Less, but\n1",7\r\nCaf\xe9,12%\r\nno,nan\r\nvoid,\r\n'
WIDE = b"Year,Men, Women\n2001,5,nan\n\n2002,6,8\n,7"


def png(mode, size, colour=0) -> bytes:
    """A plain picture as a PNG; of 1 bit a huge one is small."""
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_rows(path, rows) -> str:
    """A .jsonl or .json of rows, or of texts in their place; begun by a mark as Windows does."""
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows]
    text = "\n".join(lines) if path.suffix == ".jsonl" else f"[{', '.join(lines)}]"
    path.write_text("\ufeff" + text, encoding="utf-8")
    return str(path)


def write_chartqa(folder, rows=ROWS):
    """ChartQA's train/ below a folder: three charts, of which the third has no table."""
    train = folder / "ChartQA Dataset" / "train"
    files = {"png/a.png": png("RGB", (6, 4), "red"), "png/c.png": png("LA", (6, 4), (0, 0))}
    files |= {"png/b.png": png("RGBA", (6, 4), (0, 0, 255, 0))}
    for name, content in {**files, "tables/a.csv": NARROW, "tables/b.csv": WIDE}.items():
        (train / name).parent.mkdir(parents=True, exist_ok=True)
        (train / name).write_bytes(content)
    write_rows(train / "train_human.json", rows)
    write_rows(train / "train_augmented.json", ROWS[:1])
    return train


def error_of(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize("form", ["folder", "parent", "zip", "folder of the zip"])
def test_chartqas_human_questions_are_read_as_published_from_folder_and_zip(tmp_path, form):
    train = write_chartqa(tmp_path / "made")
    packed = Path(shutil.make_archive(tmp_path / "ChartQA Dataset", "zip", tmp_path / "made"))
    where = {"folder": train.parent, "parent": tmp_path / "made", "zip": packed}.get(form, tmp_path)
    examples = load_data("chartqa", "train", str(where))
    assert [e.answer for e in examples] == [row["label"] for row in ROWS]
    assert [e.id for e in examples] == [f"chartqa/train/human/{i}" for i in range(3)]
    wide = [("2001", "Men", "5"), ("2002", "Men", "6"), ("2002", "Women", "8"), ("", "Men", "7")]
    narrow = [("Less, but\n1", "7"), ("Caf\ufffd", "12%")]
    assert [example.facts for example in examples] == [narrow, wide, []]
    assert isinstance(examples[0].image, zipfile.Path if "zip" in form else str)
    red, white = (255, 0, 0), (255, 255, 255)  # white is what is see-through
    assert [open_image(example).getpixel((1, 1)) for example in examples] == [red, white, white]


def test_chartqas_bad_rows_files_and_splits_are_named(tmp_path):
    good, no_query = ROWS[0], {"imgname": "a.png", "label": "1"}
    rows = [dict(good, imgname="gone.png"), no_query, dict(good, imgname="../../a.png"), good]
    write_chartqa(tmp_path, rows)
    message = error_of(load_data, "chartqa", "train", str(tmp_path))
    for part in ("3 of 4", "row 0: ", "gone.png: no such", "row 1: query", "row 2: imgname"):
        assert part in message and "row 3" not in message
    write_chartqa(tmp_path, ['{"imgname": "a.png",'])
    message = error_of(load_data, "chartqa", "train", str(tmp_path))
    assert "train_human.json: not valid JSON" in message
    assert "--final_splits" in error_of(load_data, "chartqa", "test", str(tmp_path))


@pytest.mark.parametrize("name", ["/etc/evil.png", "a/../../evil.png", "C:evil.png", "huge.csv"])
def test_a_zip_entry_that_points_outside_or_swells_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/train_human.json", json.dumps(ROWS))
        archive.writestr(name, b"x" * (2**26 + 1 if name == "huge.csv" else 1))
    assert "refused" in error_of(load_data, "chartqa", "train", str(tmp_path / "evil.zip"))


def test_without_network_one_line_names_both_ways_out(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)  # whatever it raises
    message = error_of(load_data, "chartqa", "train")
    assert "--data_dir" in message and "--dataset charts" in message and "\n" not in message


def test_gsm8k_gives_result_trace_and_equations_and_val_is_cut_off_train(tmp_path):
    answers = ["He has 2*600 = <<2*600=1200>>1200.\n#### 1,200"]
    answers += ["It is $<<3+4=7>>7 and <<7*1.5=10.5>>10.5.\n#### -3"]
    rows = [{"question": "q", "answer": answer} for answer in answers * 10]
    write_rows(tmp_path / "train.jsonl", rows)
    train, val = (load_data("gsm8k", split, str(tmp_path)) for split in ("train", "val"))
    assert [e.id for e in train + val] == [f"gsm8k/train/{i}" for i in range(1, 21)]
    first, second = [(e.answer, e.kind, e.trace, e.facts) for e in val]
    assert first == ("1200", "math", "He has 2*600 = 1200.", [("2*600", "1200")])
    facts = [("3+4", "7"), ("7*1.5", "10.5")]
    assert second == ("-3", "math", "It is $7 and 10.5.", facts)
    write_rows(tmp_path / "test.jsonl", [{"question": "q", "answer": "none"}])
    assert "####" in error_of(load_data, "gsm8k", "test", str(tmp_path))


def test_aokvqa_takes_choice_direct_answers_rationales_and_unpacks_images(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", tmp_path)
    row = {"image": {"bytes": png("RGB", (3, 3))}, "question": "?", "rationales": ["One.", "Two."]}
    row |= {"direct_answers": "['car', 'bus', 'bus']"}
    asked = {**row, "choices": ["skater", "cab"], "correct_choice_idx": 1}
    bad = [{**asked, "correct_choice_idx": 2}, {**row, "direct_answers": "['car'"}]
    bad += [{**row, "image": {"bytes": b"GIF"}}, {**row, "image": None}]
    for name, lines in (("train/0000", [asked]), ("train/0001", [row]), ("validation/0000", bad)):
        path = tmp_path / "default" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(lines), path)
    first, second = load_data("aokvqa", "train", str(tmp_path))
    assert (first.answer, first.options, first.trace) == ("cab", ["skater", "cab"], "One. Two.")
    assert first.answers == ["cab", "bus", "car"] and second.answers == ["bus", "car"]
    assert (first.id, second.id) == ("aokvqa/train/1", "aokvqa/train/2")
    assert open_image(second).size == (3, 3)
    assert "row 1: " in (told := error_of(load_data, "aokvqa", "val", str(tmp_path)))
    assert "4 of 4 rows are bad" in told
    assert "no examples" in error_of(load_data, "aokvqa", "test")
    path.write_bytes(b"torn")
    assert "0000.parquet: " in error_of(load_data, "aokvqa", "val", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "0000.parquet: pip install pyarrow" in error_of(
        load_data, "aokvqa", "val", str(tmp_path)
    )


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_an_image_is_turned_as_its_exif_says(tmp_path, suffix):
    upright, exif = Image.new("RGB", (32, 16), "white"), Image.Exif()
    upright.paste("red", (0, 0, 16, 8))
    for turn, name in ((2, "FLIP_LEFT_RIGHT"), (6, "ROTATE_90"), (7, "TRANSVERSE")):
        exif[0x0112] = turn
        upright.transpose(Image.Transpose[name]).save(tmp_path / f"x.{suffix}", exif=exif)
        shown = open_image(tmp_path / f"x.{suffix}")
        red = [shown.getpixel(place)[1] < 60 for place in ((3, 3), (28, 3), (3, 12), (28, 12))]
        assert shown.size == (32, 16) and red == [True, False, False, False]


@pytest.mark.parametrize(
    "kind, values, seen",
    [
        ("uint16", [0, 0x8000, 65535], [0, 128, 255]),
        ("int32", [0, 100, 255], [0, 100, 255]),
        ("float32", [0, 0.5, 1], [0, 127, 255]),
    ],
)
def test_grey_of_any_depth_is_shown_in_its_range_or_refused(kind, values, seen):
    image = Image.fromarray(np.array([values], kind))
    assert [open_image(image).getpixel((x, 0))[0] for x in range(3)] == seen
    for kind, values in (("int32", [0, -1, 2**30]), ("float32", [0, 1, float("nan")])):
        assert "can't be shown" in error_of(open_image, Image.fromarray(np.array([values], kind)))


@pytest.mark.parametrize("size", [(400, 100), (5000, 1), (1, 5000), (10, 10), (101, 20_000)])
def test_max_pixels_caps_the_size_and_keeps_the_aspect_that_processors_take(size):
    width, height = open_image(Image.new("RGB", size), max_pixels=1000).size
    assert 1 <= width * height <= 1000 and max(width, height) <= 200 * min(width, height)
    assert size != (400, 100) or (width, height) == (63, 15)


HOSTILE = {
    "too large": png("1", (9000, 9000)),
    "1 x 300 pixels: a side is over 200 times the other": png("L", (1, 300)),
    "broken image": png("RGB", (64, 64))[:60],
    "not an image": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
}


@pytest.mark.parametrize("reason", HOSTILE)
def test_hostile_images_are_one_line_naming_file_and_example(tmp_path, monkeypatch, reason):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as others set it
    file = tmp_path / "bad\x1b[31m.png"
    file.write_bytes(HOSTILE[reason])
    message = error_of(open_image, Example(str(file), id="set/train/7"))
    assert reason in message and ".png" in message and "set/train/7" in message
    assert "\n" not in message and "\x1b" not in message
