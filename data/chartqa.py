"""ChartQA (Masry et al. 2022, arXiv 2203.10244) from its zip or folder.

Labels are as published, facts (DyME's I_c) are the cells of the charts' tables. The published data
has no traces.
"""

import csv
import functools
import io
import itertools
import zipfile
from pathlib import Path

from data.example import SPLITS, Example, InputError, NoSplit, say
from data.images import read_image
from data.reading import BROKEN, MAX_LINE, hub_file, leaves_folder, parse_file, text

ZIP = "ChartQA Dataset.zip"
WAY_OUT = "give --data_dir the ChartQA zip or folder, or take --dataset charts"


@functools.lru_cache(maxsize=4)  # reading the index of 60,000 names takes a second
def open_zip(path: str) -> zipfile.ZipFile:
    """The open zip file; InputError for a broken one, and for names that leave it."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a zip file that can be read ({error})") from error
    for name in archive.namelist():
        if leaves_folder(name):
            raise InputError(f"{path}: the entry {name!r} points outside the zip; it is refused")
    return archive


def find_chartqa(path: str):
    """The folder that holds train/, val/, test/, as a pathlib.Path or a zipfile.Path.

    path: that folder, its parent, the zip, or the folder that the zip is in.
    """
    for root in (Path(path), Path(path, ZIP)):
        root = zipfile.Path(open_zip(str(root))) if root.is_file() else root
        below = sorted((p for p in root.iterdir() if p.is_dir()), key=str) if root.is_dir() else []
        for folder in (root, *below):
            if any((folder / split).is_dir() for split in SPLITS):
                return folder
    raise InputError(f"{path}: has no folders train, val and test of ChartQA; {WAY_OUT}")


def read_table(table) -> list[tuple]:
    """The cells of a .csv: (row, column, value), or (row, value) of a table of two columns.

    Its first row and column are headers. Empty and nan cells are no facts; nor is a missing file.
    """
    if not table.is_file():
        return []
    try:
        with table.open("rb") as stream:
            raw = stream.read(MAX_LINE + 1)
        if len(raw) > MAX_LINE:
            raise csv.Error(f"longer than {MAX_LINE >> 20} MB")
        lines = io.StringIO(raw.decode("utf-8-sig", "replace"), newline="")
        header, *rows = list(filter(None, csv.reader(lines))) or [[]]
    except (csv.Error, *BROKEN) as error:
        raise InputError(f"{table}: not a table ({error})") from error
    facts = []
    for row in rows:
        for column, value in itertools.zip_longest(header[1:], row[1:], fillvalue=""):
            name = (row[0], column) if len(header) > 2 else (row[0],)
            if value.strip().lower() not in ("", "nan"):
                facts.append(tuple(part.strip() for part in (*name, value)))
    return facts


def read_questions(file, skip_bad_rows: bool = False) -> list[Example]:
    """Examples of <split>/<split>_<kind>.json, a pathlib.Path or a zipfile.Path."""
    folder, (split, kind) = file.parent, file.name.removesuffix(".json").split("_")

    @functools.lru_cache(maxsize=64)  # a chart's questions are neighbours
    def read_chart(name):
        if leaves_folder(name):
            raise InputError(f"imgname {name!r} leaves its folder")
        image = folder / "png" / name
        image = image if isinstance(image, zipfile.Path) else str(image)
        read_image(image, header_only=True)
        return image, read_table(folder / "tables" / f"{name.removesuffix('.png')}.csv")

    def parse(row, number):
        image, facts = read_chart(text(row, "imgname"))
        name = f"chartqa/{split}/{kind}/{number}"
        return Example(image, text(row, "query"), text(row, "label"), facts, task=kind, id=name)

    return parse_file(file, parse, skip_bad_rows)


def load_chartqa(split: str, data_dir, skip_bad_rows: bool = False) -> list[Example]:
    """The human questions of train, as DyME takes them, or all of another split."""
    root = find_chartqa(data_dir or hub_file("ahmed-masry/ChartQA", ZIP, WAY_OUT))
    kinds = ("human",) if split == "train" else ("human", "augmented")
    files = [root / split / f"{split}_{kind}.json" for kind in kinds]
    examples = [e for file in files if file.is_file() for e in read_questions(file, skip_bad_rows)]
    if not examples:
        found = f"{root}: the split {split} has no {' or '.join(kinds)} questions here"
        raise NoSplit(f"{found} (another split: --final_splits)")
    bare = sum(not example.facts for example in examples)
    if bare:
        say(f"chartqa {split}: {bare} of {len(examples)} questions have no table: no facts")
    return examples
