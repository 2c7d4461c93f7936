"""ChartQA (arXiv 2203.10244), GSM8K (arXiv 2110.14168) and A-OKVQA (arXiv 2206.01718).

From the hub or from --data_dir, labels as published. Left out: A-OKVQA's test, it has no labels.
"""

import ast
import csv
import functools
import io
import itertools
import re
import zipfile
from collections import Counter
from pathlib import Path

from data.example import SPLITS, Example, InputError, NoSplit, say
from data.images import read_image
from data.own import hold_out, keep_image, own_row
from data.reading import BROKEN, hub_file, leaves_folder, parse_file, text, texts

CHARTQA = "ChartQA Dataset"
MAX_ENTRY = 2**26  # bytes of a file in it, unpacked
CHARTS_INSTEAD = "or take --dataset charts"
AOKVQA = "HuggingFaceM4/A-OKVQA", "refs/convert/parquet"
AOKVQA_PARTS = {"train": ("train/0000", "train/0001"), "val": ("validation/0000",)}


# ---- ChartQA ------------------------------------------------------------------------------------


def find_chartqa(path: Path):
    """The folder that holds train/, val/, test/, as a pathlib.Path or a zipfile.Path.

    path: that folder, its parent, the zip, or the folder that the zip is in. InputError for a
    broken or a hostile zip.
    """
    path = path / f"{CHARTQA}.zip" if (path / f"{CHARTQA}.zip").is_file() else path
    if path.is_file():
        try:
            archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: not a zip file that can be read ({error})") from error
        for entry in archive.infolist():
            if leaves_folder(entry.filename) or entry.file_size > MAX_ENTRY:
                told = "points outside the zip, or is too large: refused"
                raise InputError(f"{path}: the entry {entry.filename!r} {told}")
        path = zipfile.Path(archive)
    for folder in (path, path / CHARTQA):
        if any((folder / split).is_dir() for split in SPLITS):
            return folder
    raise InputError(f"{path}: has no folders train, val, test of ChartQA; {CHARTS_INSTEAD}")


def read_table(table) -> list[tuple]:
    """The cells of a .csv: (row, column, value), or (row, value) of a table of two columns.

    Its first row and column are headers. Empty and nan cells are no facts; nor is a missing file.
    """
    if not table.is_file():
        return []
    try:
        text = table.read_bytes().decode("utf-8-sig", "replace")
        header, *rows = list(filter(None, csv.reader(io.StringIO(text, newline="")))) or [[]]
    except (csv.Error, *BROKEN) as error:
        raise InputError(f"{table}: not a table ({error})") from error
    facts = []
    for row in rows:
        for column, value in itertools.zip_longest(header[1:], row[1:], fillvalue=""):
            name = (row[0], column) if len(header) > 2 else (row[0],)
            if value.strip().lower() not in ("", "nan"):
                facts.append(tuple(part.strip() for part in (*name, value)))
    return facts


def load_chartqa(split: str, data_dir, skip_bad_rows: bool = False) -> list[Example]:
    """The human questions of train, as DyME takes them, or all of another split; facts (DyME's I_c)
    are the cells of the charts' tables, and there are no traces.
    """
    way_out = f"give --data_dir the ChartQA zip or folder, {CHARTS_INSTEAD}"
    root = find_chartqa(
        Path(data_dir or hub_file("ahmed-masry/ChartQA", f"{CHARTQA}.zip", way_out))
    )

    @functools.lru_cache(maxsize=64)  # a chart's questions are neighbours
    def read_chart(name):
        if leaves_folder(name):
            raise InputError(f"imgname {name!r} leaves its folder")
        image = root / split / "png" / name
        read_image(image, header_only=True)
        facts = read_table(root / split / "tables" / f"{name.removesuffix('.png')}.csv")
        return image if isinstance(image, zipfile.Path) else str(image), facts

    examples = []
    for kind in ("human",) if split == "train" else ("human", "augmented"):

        def parse(row, number):
            image, facts = read_chart(text(row, "imgname"))
            name = f"chartqa/{split}/{kind}/{number}"
            return Example(image, text(row, "query"), text(row, "label"), facts, task=kind, id=name)

        file = root / split / f"{split}_{kind}.json"
        examples += parse_file(file, parse, skip_bad_rows) if file.is_file() else []
    if not examples:
        raise NoSplit(f"{root}: no questions of {split} here (another split: --final_splits)")
    if bare := sum(not example.facts for example in examples):
        say(f"chartqa {split}: {bare} of {len(examples)} questions have no table: no facts")
    return examples


# ---- GSM8K, A-OKVQA -----------------------------------------------------------------------------


def load_gsm8k(split: str, data_dir, skip_bad_rows: bool = False) -> list[Example]:
    """The published train and test; val is the last 500 of train, which train then lacks.

    The trace is the solution without its <<annotations>>, the facts are these: ("48/2", "24").
    """
    published = "test" if split == "test" else "train"
    path = Path(data_dir or ".", f"{published}.jsonl")
    if data_dir is None:
        file = f"main/{published}-00000-of-00001.parquet"
        path = hub_file("openai/gsm8k", file, f"give --data_dir a folder with {path}")

    def parse(row, number):
        solution, marker, answer = text(row, "answer").rpartition("####")
        if not marker:
            raise InputError("answer has no '#### result'")
        equations = re.findall(r"<<([^<>]*)=([^<>=]*)>>", solution)
        facts = [[part.strip() for part in equation] for equation in equations]
        # 1,200: the comma is removed from a prediction where it is read, so here too
        read = {"answer": answer.replace(",", ""), "facts": facts, "trace": solution}
        return own_row({"question": text(row, "question"), **read}, f"gsm8k/{published}/{number}")

    examples = parse_file(path, parse, skip_bad_rows)
    return examples if split == "test" else hold_out(examples, split, most=500)


def load_aokvqa(split: str, data_dir, skip_bad_rows: bool = False) -> list[Example]:
    """The right choice is the answer (as DyME has it), else the commonest direct answer, and right
    is each direct answer; the rationales, joined, are the trace. Images are unpacked (keep_image).
    """
    if split not in AOKVQA_PARTS:
        raise NoSplit(f"aokvqa: the labels of {split} are not published")
    numbers = itertools.count(1)  # through all parts

    def parse(row, _):
        name = f"aokvqa/{split}/{next(numbers)}"
        if isinstance(row.get("direct_answers"), str):  # "['a', 'b']", a literal
            row["direct_answers"] = ast.literal_eval(row["direct_answers"])
        direct = [answer for answer, _ in Counter(texts(row, "direct_answers")).most_common()]
        options = texts(row, "choices")
        right = [options[row["correct_choice_idx"]]] if options else []
        read = {"question": text(row, "question"), "answers": right + direct, "options": options}
        read["trace"] = " ".join(texts(row, "rationales"))
        return own_row(read, name, keep_image(row["image"]["bytes"]))

    examples = []
    for part in AOKVQA_PARTS[split]:
        file = f"default/{part}.parquet"
        path = Path(data_dir or "", file)
        if not data_dir:
            path = hub_file(AOKVQA[0], file, f"give --data_dir a folder with {file}", AOKVQA[1])
        examples += parse_file(path, parse, skip_bad_rows)
    return examples
