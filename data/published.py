"""ChartQA (arXiv 2203.10244), GSM8K (arXiv 2110.14168) and A-OKVQA (arXiv 2206.01718).

From the hub or from --data_dir, labels as published. Left out: A-OKVQA's test, it has no labels.
"""

import ast
import csv
import io
import itertools
import re
import zipfile
from collections import Counter
from pathlib import Path

from data.example import SPLITS, Example, InputError
from data.images import read_image
from data.own import hold_out, keep_image, own_row
from data.reading import find_file, leaves_folder, parse_file, text, texts

CHARTQA = "ChartQA Dataset"
MAX_ENTRY = 2**26  # bytes of a file in it, unpacked
AOKVQA, PARQUET = "HuggingFaceM4/A-OKVQA", "refs/convert/parquet"  # the hub's copy as parquet
AOKVQA_PARTS = {"train": ["train/0000", "train/0001"], "val": ["validation/0000"], "test": []}


def find_chartqa(path: Path):
    """The folder or zipfile.Path with train/, val/, test/; path: it, its parent, or a zip's."""
    path = path / f"{CHARTQA}.zip" if (path / f"{CHARTQA}.zip").is_file() else path
    if path.is_file():
        try:
            archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: not a zip file that can be read ({error})") from error
        for entry in archive.infolist():
            if leaves_folder(entry.filename) or entry.file_size > MAX_ENTRY:
                raise InputError(f"{path}: {entry.filename!r} leads outside or is huge: refused")
        path = zipfile.Path(archive)
    for folder in (path, path / CHARTQA):
        if any((folder / split).is_dir() for split in SPLITS):
            return folder
    raise InputError(f"{path}: has no folders train, val, test of ChartQA; give --data_dir its zip")


def read_table(table) -> list[tuple]:
    """A .csv's cells, but empty and nan ones: (row, column, value), of two columns (row, value)."""
    text = table.read_bytes().decode("utf-8-sig", "replace") if table.is_file() else ""
    header, *rows = list(filter(None, csv.reader(io.StringIO(text, newline="")))) or [[]]
    facts = []
    for row in rows:
        for column, value in itertools.zip_longest(header[1:], row[1:], fillvalue=""):
            if value.strip().lower() not in ("", "nan"):
                fact = (row[0], column, value) if len(header) > 2 else (row[0], value)
                facts.append(tuple(map(str.strip, fact)))
    return facts


def load_chartqa(split: str, data_dir, skip_bad_rows: bool = False) -> list[Example]:
    """The human questions of train, as DyME takes them, or all of val and test; tables as facts."""
    root = Path(data_dir) if data_dir else find_file(None, "ahmed-masry/ChartQA", f"{CHARTQA}.zip")
    folder, examples = find_chartqa(root) / split, []
    for kind in ("human",) if split == "train" else ("human", "augmented"):

        def parse(row, number):
            chart, name = text(row, "imgname"), f"chartqa/{split}/{kind}/{number}"
            if leaves_folder(chart):
                raise InputError(f"imgname {chart!r} leaves its folder")
            image = folder / "png" / chart
            read_image(image, header_only=True)
            facts = read_table(folder / "tables" / f"{chart.removesuffix('.png')}.csv")
            image = image if isinstance(image, zipfile.Path) else str(image)
            return Example(image, text(row, "query"), text(row, "label"), facts, task=kind, id=name)

        file = folder / f"{split}_{kind}.json"
        examples += parse_file(file, parse, skip_bad_rows) if file.is_file() else []
    return examples


def load_gsm8k(split: str, data_dir, skip_bad_rows: bool = False) -> list[Example]:
    """Val is the last 500 of train, which lacks them. <<48/2=24>> is a fact: ("48/2", "24")."""
    published = "test" if split == "test" else "train"
    file = f"{published}.jsonl" if data_dir else f"main/{published}-00000-of-00001.parquet"

    def parse(row, number):
        solution, marker, answer = text(row, "answer").rpartition("####")
        if not marker:
            raise InputError("answer has no '#### result'")
        equations = re.findall(r"<<([^<>]*)=([^<>=]*)>>", solution)
        facts = [list(map(str.strip, equation)) for equation in equations]
        # 1,200: the comma is removed from a prediction where it is read, so here too
        read = {"answer": answer.replace(",", ""), "facts": facts, "trace": solution}
        return own_row({"question": text(row, "question"), **read}, f"gsm8k/{published}/{number}")

    examples = parse_file(find_file(data_dir, "openai/gsm8k", file), parse, skip_bad_rows)
    return examples if split == "test" else hold_out(examples, split, most=500)


def load_aokvqa(split: str, data_dir, skip_bad_rows: bool = False) -> list[Example]:
    """The right choice is the answer (as DyME has it), else the commonest direct answer, and right
    is each direct answer; the rationales, joined, are the trace. Images are unpacked (keep_image).
    """
    numbers, examples = itertools.count(1), []  # of the rows of all parts

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

    for part in AOKVQA_PARTS[split]:
        path = find_file(data_dir, AOKVQA, f"default/{part}.parquet", PARQUET)
        examples += parse_file(path, parse, skip_bad_rows)
    return examples
