"""The published data sets as lists of Examples: ChartQA, GSM8K, A-OKVQA.

Labels as published; facts (DyME's I_c) from ChartQA's tables, GSM8K's equations, A-OKVQA's
`visual_fact` where there is one. Left out: their test labels where these are not published.
"""

import ast
import csv
import functools
import http.client
import io
import json
import os
import re
import urllib.request
import zipfile
from collections import Counter
from itertools import zip_longest
from pathlib import Path

import huggingface_hub

from data.example import SPLITS, Example, InputError, NoSplit
from data.own import clean_trace, hold_out, object_facts, pairs
from data.reading import (
    BROKEN,
    MAX_FILE,
    MAX_LINE,
    ZipImage,
    hub_file,
    leaves_folder,
    open_zip,
    parse_file,
    say,
    text,
    texts,
)

GSM8K_URL = (
    "https://raw.githubusercontent.com/openai/grade-school-math/"
    "3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data/"
)
AOKVQA = "HuggingFaceM4/A-OKVQA"
AOKVQA_PARTS = {"train": ("train", 2), "val": ("validation", 1)}


# ---- ChartQA (Masry et al. 2022, arXiv 2203.10244)


def find_chartqa(path):
    """The folder that holds train/, val/, test/, as a pathlib.Path or a zipfile.Path.

    path: that folder, its parent, the zip, or the folder that the zip lies in.
    """
    path = Path(path)
    zipped = path / "ChartQA Dataset.zip" if path.is_dir() else path
    for root in (path, zipped):
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


def table_facts(raw):
    """[(name, value)] of a table's cells: (row, value), or ("row column", value) of many columns.

    raw: the bytes of a .csv whose first row and column are headers. Empty and nan cells are none.
    """
    lines = io.StringIO(raw.decode("utf-8-sig", "replace"), newline="")
    header, *rows = list(filter(None, csv.reader(lines))) or [[]]
    facts = []
    for row in rows:
        for column, value in zip_longest(header[1:], row[1:], fillvalue=""):
            name = f"{row[0].strip()} {column.strip()}" if len(header) > 2 else row[0]
            if value.strip().lower() not in ("", "nan"):
                facts.append((name.strip(), value.strip()))
    return facts


def chartqa_rows(root, split, kind):
    """Examples of <split>_<kind>.json, [] without it; facts are None where a table is missing."""

    @functools.lru_cache(maxsize=64)  # the questions about a chart stand together
    def facts(name):
        table = root / split / "tables" / f"{name.removesuffix('.png')}.csv"
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

    def parse(row, number):
        name = text(row, "imgname")
        if os.path.basename(name) != name or leaves_folder(name) or "\\" in name:
            raise InputError(f"imgname {name!r} is not a plain file name")
        image = root / split / "png" / name
        if not image.is_file():
            raise InputError(f"the image {split}/png/{name} is missing")
        in_zip = isinstance(image, zipfile.Path)
        return Example(
            ZipImage(image.root.filename, image.at) if in_zip else str(image),
            text(row, "query"),
            text(row, "label"),
            facts(name),
            task=kind,
            id=f"chartqa/{split}/{kind}/{number}",
        )

    file = root / split / f"{split}_{kind}.json"
    return parse_file(file, parse) if file.is_file() else []


def load_chartqa(split, data_dir, questions, cache_dir):
    """Labels as published. The published data has no traces: `trace` is None."""
    root = find_chartqa(
        data_dir
        or hub_file(
            "ahmed-masry/ChartQA",
            "ChartQA Dataset.zip",
            cache_dir,
            "give --data_dir the ChartQA zip or folder, or take --dataset charts",
        )
    )
    kinds = ("human", "augmented") if questions == "all" else (questions,)
    examples = [example for kind in kinds for example in chartqa_rows(root, split, kind)]
    if not examples:
        there = [
            f"{s} {k}" for s in SPLITS for k in ("human", "augmented") if chartqa_rows(root, s, k)
        ]
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


# ---- GSM8K (Cobbe et al. 2021, arXiv 2110.14168)


def gsm8k_row(split, row, number):
    """The trace without its <<annotations>>; they are the facts: ("48/2", "24")."""
    solution, marker, answer = text(row, "answer").rpartition("####")
    if not marker or not answer.strip():
        raise InputError("answer has no '#### result'")
    facts = [
        tuple(side.strip() for side in equation.rpartition("=")[::2])
        for equation in re.findall(r"<<([^<>]*=[^<>]*)>>", solution)
    ]
    # 1,200: the comma is removed from a prediction where it is read, so here too.
    return Example(
        None,
        text(row, "question"),
        answer.strip().replace(",", ""),
        facts,
        trace=clean_trace(solution),
        id=f"gsm8k/{split}/{number}",
    )


def load_gsm8k(split, data_dir, cache_dir):
    """The published train and test; val is the last 500 of train, which train then lacks."""
    published = "test" if split == "test" else "train"
    way_out = f"give --data_dir a folder with {published}.jsonl, or take --dataset charts"
    if data_dir is None:  # the hub has parquet only, so from the authors' repository
        path = Path(cache_dir or huggingface_hub.constants.HF_HOME) / f"gsm8k-{published}.jsonl"
    else:
        path = Path(data_dir) / f"{published}.jsonl"
    if data_dir is None and not path.is_file():
        try:
            with urllib.request.urlopen(f"{GSM8K_URL}{published}.jsonl", timeout=20) as stream:
                raw = stream.read(MAX_FILE)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.{os.getpid()}")
            part.write_bytes(raw)
            part.replace(path)
        except (OSError, http.client.HTTPException) as error:
            raise InputError(f"gsm8k: can't be downloaded ({error}); {way_out}") from error
    examples = parse_file(path, functools.partial(gsm8k_row, published))
    return examples if split == "test" else hold_out(examples, split, path, most=500)


# ---- A-OKVQA (Schwenk et al. 2022, arXiv 2206.01718)


def unpack_aokvqa(split, cache_dir):
    """The folder of a split in the layout that load_aokvqa reads, made once from the hub's parquet.

    The annotations come last: where they lie, the images are complete.
    """
    folder = Path(cache_dir or huggingface_hub.constants.HF_HUB_CACHE, "unpacked-aokvqa")
    annotations = folder / f"aokvqa_v1p0_{split}.json"
    if annotations.exists():
        return folder
    way_out = (
        f"or give --data_dir a folder with {annotations.name} (from "
        f"github.com/allenai/aokvqa) and COCO's {split}2017/"
    )
    try:
        import pyarrow.parquet  # optional: nothing else here needs it
    except ImportError as error:
        raise InputError(
            f"aokvqa: the hub's files need pyarrow: pip install pyarrow, {way_out}"
        ) from error
    name, parts = AOKVQA_PARTS[split]
    images, rows = folder / f"{split}2017", []
    images.mkdir(parents=True, exist_ok=True)
    for part in range(parts):
        path = hub_file(
            AOKVQA,
            f"default/{name}/{part:04d}.parquet",
            cache_dir,
            way_out,
            revision="refs/convert/parquet",
        )
        try:
            for batch in pyarrow.parquet.ParquetFile(path).iter_batches(64):
                for row in batch.to_pylist():
                    row["image_id"] = len(rows)
                    write_whole(images / f"{len(rows):012d}.jpg", row.pop("image")["bytes"])
                    if isinstance(row.get("direct_answers"), str):  # "['a', 'b']", a literal
                        row["direct_answers"] = ast.literal_eval(row["direct_answers"])
                    rows.append(row)
        except (OSError, ValueError, SyntaxError, TypeError, LookupError) as error:
            raise InputError(
                f"{path}: row {len(rows)}: {error}; download it again, {way_out}"
            ) from error
    write_whole(annotations, json.dumps(rows).encode())
    return folder


def write_whole(path, content):
    """A file that is all there or not at all, several processes writing it at once or not."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def load_aokvqa(split, data_dir, cache_dir=None):
    """From `data_dir`, or unpacked from the hub. The right choice is the answer (as DyME has it),
    the choices the options, else the commonest direct answer; the rationales, joined, the trace;
    facts where a row has `visual_fact`."""
    if split not in AOKVQA_PARTS:
        raise NoSplit(f"aokvqa: the labels of {split} are not published")
    data_dir = data_dir or unpack_aokvqa(split, cache_dir)
    folders = [Path(data_dir, *below, f"{split}2017") for below in ((), ("coco",), ("images",))]
    folders += [Path(data_dir, "images"), Path(data_dir)]

    def parse(row, number):
        file = text(row, "image_id").zfill(12) + ".jpg"
        if os.path.basename(file) != file or leaves_folder(file):
            raise InputError(f"image_id {file!r} is not a plain name")
        image = next((folder / file for folder in folders if (folder / file).is_file()), None)
        if image is None:
            raise InputError(f"the image {split}2017/{file} is missing")
        options, right = texts(row, "choices"), row.get("correct_choice_idx")
        answers = texts(row, "direct_answers")
        if options and isinstance(right, int) and 0 <= right < len(options):
            answer = options[right]
        elif answers:
            answer = Counter(answers).most_common(1)[0][0]
        else:
            raise InputError("no correct_choice_idx and no direct_answers (test has none)")
        return Example(
            str(image),
            text(row, "question"),
            answer,
            object_facts(row.get("visual_fact")) or pairs(row.get("facts")),
            trace=clean_trace(" ".join(texts(row, "rationales") or [])),
            id=f"aokvqa/{split}/{number}",
            options=options,
        )

    return parse_file(Path(data_dir) / f"aokvqa_v1p0_{split}.json", parse)
