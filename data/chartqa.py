"""ChartQA (Masry et al. 2022, arXiv 2203.10244) from its zip or folder.

Labels are as published, facts (DyME's I_c) are the cells of the charts' tables. The published data
has no traces.
"""

import csv
import functools
import io
import itertools
import os
import zipfile
from pathlib import Path

from data.example import SPLITS, Example, InputError, NoSplit
from data.images import ZipImage, check_image, open_zip
from data.reading import BROKEN, MAX_LINE, hub_file, is_plain, parse_file, say, text

ZIP = "ChartQA Dataset.zip"
WAY_OUT = "give --data_dir the ChartQA zip or folder, or take --dataset charts"


def find_chartqa(path: str):
    """The folder that holds train/, val/, test/, as a pathlib.Path or a zipfile.Path.

    path: that folder, its parent, the zip, or the folder that the zip is in.
    """
    path = Path(path)
    for root in (path, path / ZIP):
        if root.is_file():
            root = zipfile.Path(open_zip(str(root), os.getpid()))
        below = sorted((p for p in root.iterdir() if p.is_dir()), key=str) if root.is_dir() else []
        for folder in (root, *below):
            if any((folder / split).is_dir() for split in SPLITS):
                return folder
    raise InputError(
        f"{path}: not ChartQA; --data_dir names the published zip or its unpacked "
        "folder, with train/, val/ and test/ in it"
    )


def table_facts(raw: bytes) -> list[tuple]:
    """The cells of a .csv: (row, column, value), or (row, value) of a table of two columns.

    Its first row and column are headers. Empty and nan cells are no facts.
    """
    lines = io.StringIO(raw.decode("utf-8-sig", "replace"), newline="")
    header, *rows = list(filter(None, csv.reader(lines))) or [[]]
    facts = []
    for row in rows:
        for column, value in itertools.zip_longest(header[1:], row[1:], fillvalue=""):
            name = (row[0], column) if len(header) > 2 else (row[0],)
            if value.strip().lower() not in ("", "nan"):
                facts.append(tuple(part.strip() for part in (*name, value)))
    return facts


def read_table(table) -> list[tuple] | None:
    """The facts of a table's file, None where it is missing."""
    if not table.is_file():
        return None
    try:
        with table.open("rb") as stream:
            raw = stream.read(MAX_LINE + 1)
        if len(raw) > MAX_LINE:
            raise csv.Error(f"longer than {MAX_LINE >> 20} MB")
        return table_facts(raw)
    except (csv.Error, *BROKEN) as error:
        raise InputError(f"{table}: not a table ({error})") from error


def read_questions(root, split: str, kind: str, skip_bad_rows: bool = False) -> list[Example]:
    """Examples of <split>_<kind>.json, [] without it; facts are None where a table is missing."""

    @functools.lru_cache(maxsize=64)  # a chart's questions are neighbours
    def read_chart(name):
        if not is_plain(name):
            raise InputError(f"imgname {name!r} is not a plain file name")
        image = root / split / "png" / name
        if not image.is_file():
            raise InputError(f"the image {split}/png/{name} is missing")
        in_zip = isinstance(image, zipfile.Path)
        image = ZipImage(image.root.filename, image.at) if in_zip else str(image)
        check_image(image)
        return image, read_table(root / split / "tables" / f"{name.removesuffix('.png')}.csv")

    def parse(row, number):
        image, facts = read_chart(text(row, "imgname"))
        name = f"chartqa/{split}/{kind}/{number}"
        return Example(image, text(row, "query"), text(row, "label"), facts, task=kind, id=name)

    file = root / split / f"{split}_{kind}.json"
    return parse_file(file, parse, skip_bad_rows) if file.is_file() else []


def load_chartqa(
    split: str, data_dir, cache_dir=None, questions: str = "human", skip_bad_rows: bool = False
) -> list[Example]:
    """A split's human or augmented questions, or all. Charts without a table are counted."""
    root = find_chartqa(data_dir or hub_file("ahmed-masry/ChartQA", ZIP, cache_dir, WAY_OUT))
    kinds = ("human", "augmented") if questions == "all" else (questions,)
    parts = [read_questions(root, split, kind, skip_bad_rows) for kind in kinds]
    examples = sum(parts, [])
    if not examples:
        pairs = itertools.product(SPLITS, ("human", "augmented"))
        there = [" ".join(pair) for pair in pairs if read_questions(root, *pair, True)]
        raise NoSplit(
            f"{root}: the split {split} has no {questions} questions here; there are "
            f"{', '.join(there) or 'none at all'} (another split: --eval_split)"
        )
    bare = [example for example in examples if example.facts is None]
    for example in bare:
        example.facts = []
    if bare:
        say(f"chartqa {split}: {len(bare)} of {len(examples)} questions have no table: no facts")
    return examples
