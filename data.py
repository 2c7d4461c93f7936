"""Examples: a question about an image, its answer, its visual facts and a reference trace.

Reads ChartQA, GSM8K, A-OKVQA, one's own .jsonl / .json and DyME's published lists; draws nothing
(charts.py does). Whatever comes from outside may be wrong or hostile: every bad row is reported
before training starts, images are opened only when used and never decoded when too large, nothing
is unpacked, unpickled or evaluated, and no name leaves its folder. Left out: parquet, streaming.
The visual facts of an image are I_c of DyME (arXiv 2506.23061, section 3.3).
"""
import csv
import functools
import http.client
import io
import json
import math
import os
import re
import socket
import sys
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

import huggingface_hub
import numpy as np
from PIL import Image

MAX_LINE = 10 * 2**20  # bytes of one .jsonl line, one table
MAX_FILE = 2**29  # bytes of a .json list: it is read whole
MAX_IMAGE_PIXELS = 64 * 2**20  # ours, so that nobody's Image.MAX_IMAGE_PIXELS = None matters
MAX_LISTED = 20  # bad rows printed; all are counted
# PIL's other readers are seldom met and widely attackable (EPS starts a program).
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
BROKEN = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)  # files, zip members
SPLITS = ("train", "val", "test")
GSM8K_URL = ("https://raw.githubusercontent.com/openai/grade-school-math/"
             "3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data/")


class InputError(ValueError):
    """Bad input from outside (a file, a flag): what is wrong and what to do, in one line."""

    def __init__(self, message):
        # A file name may hold terminal escapes; line breaks separate the rows of a list.
        super().__init__("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in message))


@dataclass(frozen=True)
class ZipImage:
    """An image inside a zip file, opened when used."""
    zip_path: str
    member: str

    def __str__(self):
        return f"{self.zip_path}:{self.member}"


@dataclass
class Example:
    image: object = None  # a PIL image, a path, a ZipImage, or None (text only)
    question: str = ""
    answer: str = ""
    facts: list = field(default_factory=list)  # [(name, value)] strings: the visual facts I_c
    needed: list | None = None  # the facts that the question needs; None: not known
    trace: str | None = None  # the reference thinking, without the answer line
    task: str = ""  # "human" / "augmented" for ChartQA, else the data's own
    id: str = ""  # stable and unique, e.g. chartqa/train/human/12
    options: list | None = None


def say(message):
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr)


# ---- images


@functools.lru_cache(maxsize=4)
def _zip(path, pid):
    """The open zip file. Reading the index of 60,000 names takes a second: once a process."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a zip file that can be read ({error})") from error
    for name in archive.namelist():
        if leaves_folder(name) or os.path.isabs(name):
            raise InputError(f"{path}: the entry {name!r} points outside the zip; it is refused")
    return archive


def leaves_folder(name):
    """Whether a name from outside climbs out of its folder, by .. or a drive letter."""
    return ".." in re.split(r"[/\\]", name) or bool(re.match("[A-Za-z]:", name))


def read_image(image, header_only=False):
    """The PIL image at a path or in a zip; header_only: checked for kind and size, not decoded."""
    in_zip = isinstance(image, ZipImage)
    if not in_zip and not os.path.isfile(image):
        raise InputError("no such image file")
    try:
        with (_zip(image.zip_path, os.getpid()).open(image.member) if in_zip else
              open(image, "rb")) as stream:
            opened = Image.open(stream, formats=IMAGE_FORMATS)
            if math.prod(opened.size) > MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{opened.width} x {opened.height} pixels")
            if not header_only:
                opened.load()
            return opened
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"image too large, limit {MAX_IMAGE_PIXELS} pixels: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise InputError(f"not an image ({', '.join(IMAGE_FORMATS)})") from error
    except Exception as error:  # a broken file: the decoders raise a dozen types
        raise InputError(f"broken image: {' '.join(str(error).split())}") from error


def open_image(example, max_pixels=None):
    """RGB PIL image of an Example (or of what its `image` may be), None where it has none.

    Transparency is composited on white. `max_pixels`: a larger image is shrunk to at most so many
    pixels, aspect kept. InputError names the file and the example when it is missing, no image,
    broken, or over MAX_IMAGE_PIXELS.
    """
    image, name = (example.image, example.id) if isinstance(example, Example) else (example, "")
    if image is None:
        return None
    if not isinstance(image, Image.Image):
        try:
            image = read_image(image)
        except InputError as error:
            raise InputError(f"{image}{name and f' (example {name})'}: {error}") from error
    if image.mode.startswith("I"):  # 16-bit grey: convert() would clip it to white
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if max_pixels and image.width * image.height > max_pixels:
        scale = math.sqrt(max_pixels / (image.width * image.height))
        height = max(1, int(image.height * scale))
        width = max(1, min(int(image.width * scale), max_pixels // height))
        height = min(height, max_pixels // width)  # a strip of one pixel's width
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return image


# ---- rows of a file


def decode(raw):
    """The JSON value of bytes; InputError says why not."""
    def not_a_number(name):
        raise ValueError(f"{name} is not a value")
    try:
        return json.loads(raw.decode("utf-8-sig"), parse_constant=not_a_number)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}") from error


def read_rows(name, stream):
    """(where, number, row) of a .jsonl (row: bytes of a line) or .json list; `stream`: binary."""
    if not name.lower().endswith(".jsonl"):
        raw = stream.read(MAX_FILE + 1)
        if len(raw) > MAX_FILE:
            raise InputError(f"{name}: over {MAX_FILE >> 20} MB; use .jsonl")
        try:
            rows = decode(raw)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        if not isinstance(rows, list):
            raise InputError(f"{name}: must be a list of objects")
        yield from ((f"[{number}]", number, row) for number, row in enumerate(rows))
        return
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        too_long = len(line) > MAX_LINE
        rest = line
        while too_long and rest and not rest.endswith(b"\n"):
            rest = stream.readline(MAX_LINE)
        if line.strip():
            yield f"line {number}", number, None if too_long else line


def parse_rows(name, stream, parse):
    """[parse(row, number)] of all rows. One InputError lists every row that parse refused."""
    parsed, problems, bad = [], [], 0
    for where, number, row in read_rows(name, stream):
        try:
            if row is None:
                raise InputError(f"longer than {MAX_LINE >> 20} MB")
            row = decode(row) if isinstance(row, bytes) else row
            if not isinstance(row, dict):
                raise InputError("not an object with fields")
            parsed.append(parse(row, number))
        except InputError as error:
            bad += 1
            problems += [f"{where}: {error}"] if bad <= MAX_LISTED else []
    if bad == 1:
        raise InputError(f"{name}: {problems[0]}")
    if bad:
        problems += [f"... and {bad - MAX_LISTED} more"] if bad > MAX_LISTED else []
        raise InputError("\n  ".join([f"{name}: {bad} bad rows", *problems]))
    return parsed


def parse_file(path, parse):
    """parse_rows of a pathlib.Path or zipfile.Path."""
    try:
        with path.open("rb") as stream:
            return parse_rows(str(path), stream, parse)
    except BROKEN as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def text(row, *names, required=True):
    """The first of the named fields that is filled in, as a string, unchanged."""
    for name in names:
        value = row.get(name)
        finite = type(value) is int or type(value) is float and math.isfinite(value)
        if value is not None and not isinstance(value, str) and not finite:
            raise InputError(f"{name} must be a text or a number, not {type(value).__name__}")
        if value is not None and str(value).strip():
            if re.search("[\ud800-\udfff]", str(value)):
                raise InputError(f"{name} has half of a surrogate pair")
            return str(value)
    if required:
        raise InputError(f"{names[-1]} is missing or empty")
    return None


def texts(row, *names):
    """The first of the named lists of texts, None without one."""
    value = next((row[name] for name in names if row.get(name) is not None), None)
    if value is not None and not (isinstance(value, list) and value):
        raise InputError(f"{names[0]} must be a list of texts")
    return value and [text({names[0]: item}, names[0]) for item in value]


def clean_trace(trace):
    """The thinking alone: no answer (the memorised target adds its own), no GSM8K annotations."""
    from checker import MARKER  # checker imports this module's Example
    trace = re.sub(r"<<[^<>]*>>|\n#### .*", "", trace or "")
    return MARKER.split(trace)[0].strip(" \t\r\n*") or None


def pairs(value):
    """[(name, value)] of strings, from a list of pairs or an object."""
    items = list(value.items()) if isinstance(value, dict) else value or []
    if not (isinstance(items, list) and all(isinstance(p, list | tuple) and len(p) == 2
                                            for p in items)):
        raise InputError("facts must be a list of [name, value] or an object")
    name, fact = "the name of a fact", "the value of a fact"
    return [(text({name: first}, name), text({fact: second}, fact)) for first, second in items]


def object_facts(value):
    """Facts from DyME's `visual_fact`: objects with attributes, as JSON or as its text.

    [{"name" or "object": "bag", "attributes": ["red"], "position": "left"}], also below "objects",
    gives ("bag", "red") and ("bag", "left"). Anything else (a failed answer of the LLM): none.
    """
    if isinstance(value, str):
        try:
            value = decode(value.encode("utf-8", "replace"))
        except InputError:
            return []
    things = value.get("objects") if isinstance(value, dict) else value
    facts = []
    for thing in things if isinstance(things, list) else []:
        name = thing.get("name", thing.get("object")) if isinstance(thing, dict) else None
        if isinstance(name, str):
            seen = thing.get("attributes")
            seen = [*seen] if isinstance(seen, list) else [seen]
            facts += [(name, str(item)) for item in [*seen, thing.get("position")] if item]
    return facts


# ---- ChartQA (Masry et al. 2022, arXiv 2203.10244)


def hub_file(repo, filename, cache_dir, way_out):
    """Path of a file of a hub data set, from the cache or downloaded; InputError: why, way_out."""
    wanted = dict(repo_id=repo, filename=filename, repo_type="dataset", cache_dir=cache_dir)
    try:
        return huggingface_hub.hf_hub_download(**wanted, local_files_only=True)
    except OSError:
        pass
    try:
        # Without a network the client would retry for half a minute.
        host = urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT)
        if not urllib.request.getproxies() and not huggingface_hub.constants.HF_HUB_OFFLINE:
            socket.create_connection((host.hostname, host.port or 443), timeout=10).close()
        return huggingface_hub.hf_hub_download(**wanted)
    except Exception as error:  # the HTTP library below the hub client varies with its version
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{repo}: can't be downloaded ({reason}); {way_out}") from error


def find_chartqa(path):
    """The folder that holds train/, val/, test/, as a pathlib.Path or a zipfile.Path.

    path: that folder, its parent, the zip, or the folder that the zip lies in.
    """
    path = Path(path)
    zipped = path / "ChartQA Dataset.zip" if path.is_dir() else path
    for root in (path, zipped):
        if root.is_file():
            root = zipfile.Path(_zip(str(root), os.getpid()))
        below = sorted((p for p in root.iterdir() if p.is_dir()), key=str) if root.is_dir() else []
        for folder in (root, *below):
            if any((folder / split).is_dir() for split in SPLITS):
                return folder
    raise InputError(f"{path}: not ChartQA; --data_dir names the published zip or its unpacked "
                     "folder, with train/, val/ and test/ in it")


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
        return Example(ZipImage(image.root.filename, image.at) if in_zip else str(image),
                       text(row, "query"), text(row, "label"), facts(name), task=kind,
                       id=f"chartqa/{split}/{kind}/{number}")

    file = root / split / f"{split}_{kind}.json"
    return parse_file(file, parse) if file.is_file() else []


def load_chartqa(split, data_dir, questions, cache_dir):
    """Labels as published. The published data has no traces: `trace` is None."""
    root = find_chartqa(data_dir or hub_file(
        "ahmed-masry/ChartQA", "ChartQA Dataset.zip", cache_dir,
        "give --data_dir the ChartQA zip or folder, or take --dataset charts"))
    kinds = ("human", "augmented") if questions == "all" else (questions,)
    examples = [example for kind in kinds for example in chartqa_rows(root, split, kind)]
    if not examples:
        there = [f"{s} {k}" for s in SPLITS for k in ("human", "augmented")
                 if chartqa_rows(root, s, k)]
        raise InputError(f"{root}: the split {split} has no {questions} questions here; there are "
                         f"{', '.join(there) or 'none at all'} (another split: --eval_split)")
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
    facts = [tuple(side.strip() for side in equation.rpartition("=")[::2])
             for equation in re.findall(r"<<([^<>]*=[^<>]*)>>", solution)]
    # 1,200: the comma is removed from a prediction where it is read, so here too.
    return Example(None, text(row, "question"), answer.strip().replace(",", ""), facts,
                   trace=clean_trace(solution), id=f"gsm8k/{split}/{number}")


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


def hold_out(examples, split, path, most=None):
    """The last tenth (at most `most`) for val, the others for train."""
    held = max(1, len(examples) // 10) if len(examples) > 1 else 0
    held = min(held, most or held)
    kept = examples[:len(examples) - held] if split == "train" else examples[len(examples) - held:]
    if not kept:
        raise InputError(f"{path}: {len(examples)} examples are too few to hold some out for val")
    return kept


# ---- A-OKVQA (Schwenk et al. 2022, arXiv 2206.01718)


def load_aokvqa(split, data_dir):
    """The right choice is the answer (as DyME has it), the choices the options, else the commonest
    direct answer; the rationales, joined, the trace; facts where a row has `visual_fact`."""
    if data_dir is None:
        raise InputError("aokvqa: the hub has it as parquet only, which is not read here; give "
                         f"--data_dir a folder with aokvqa_v1p0_{split}.json (from "
                         f"github.com/allenai/aokvqa) and COCO's {split}2017/")
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
        return Example(str(image), text(row, "question"), answer,
                       object_facts(row.get("visual_fact")) or pairs(row.get("facts")),
                       trace=clean_trace(" ".join(texts(row, "rationales") or [])),
                       id=f"aokvqa/{split}/{number}", options=options)

    return parse_file(Path(data_dir) / f"aokvqa_v1p0_{split}.json", parse)


# ---- one's own data


def own_row(path, folder, row, number):
    """An Example from image, question, answer and, where given, facts, trace, options, task.

    DyME's published lists are read as they are: `question_wo_prompt` before `question`, `hint` is
    the trace, `visual_fact` the facts, `choices` the options, `human_or_machine` the task; an
    answer written as "thinking \n Answer: x" is taken apart.
    """
    from checker import split_response
    answer = text(row, "answer").strip()
    thinking, bare = split_response(answer)
    trace = text(row, "trace", "hint", required=False) or (thinking if bare else None)
    image = text(row, "image", required=False)
    if image is not None:
        if not os.path.isabs(image) and leaves_folder(image):
            raise InputError(f"the image {image!r} leaves the folder of the data")
        below = os.path.join(folder, image)  # an absolute path stays as it is
        moved = os.path.join(folder, os.path.basename(image))
        image = below if os.path.isfile(below) or not os.path.isfile(moved) else moved
        try:
            read_image(image, header_only=True)
        except InputError as error:
            raise InputError(f"{image}: {error}") from error
    machine = {0: "human", 1: "augmented"}.get(row.get("human_or_machine"), "")
    return Example(image, text(row, "question_wo_prompt", "question").strip(), bare or answer,
                   pairs(row.get("facts")) or object_facts(row.get("visual_fact")),
                   trace=clean_trace(trace),
                   task=text(row, "task", required=False) or machine,
                   id=f"{path.name}/{number}", options=texts(row, "options", "choices"))


def load_own(path, split, data_dir, questions):
    """The file is train; val and test lie beside it: own.jsonl, own.val.jsonl or own_val.jsonl.

    (train.json, val.json too.) Without a val file the last tenth is held out. Relative images
    start from `data_dir`, else from the file's folder; an absolute one that is gone is looked for
    there by its name.
    """
    path = Path(path)

    def beside(split):
        stems = [f"{path.stem}.{split}", f"{path.stem}_{split}"]
        stems += [path.stem.removesuffix("train") + split] if path.stem.endswith("train") else []
        files = [path.with_name(stem + path.suffix) for stem in stems]
        return next((file for file in files if file.is_file()), None)

    file = path if split == "train" else beside(split)
    if file is None and split != "val":
        raise InputError(f"{path}: no {split} split: put it into {path.stem}.{split}{path.suffix} "
                         "beside it, or evaluate another with --eval_split")
    file = file or path
    examples = parse_file(file, functools.partial(own_row, file, data_dir or path.parent))
    if file == path and not beside("val"):
        examples = hold_out(examples, split, path)
    other = {"human": "augmented", "augmented": "human"}.get(questions)
    kept = [example for example in examples if example.task != other]
    if len(kept) < len(examples):
        say(f"{file}: {len(examples) - len(kept)} {other} questions left out (--questions all)")
    return kept


# ---- everything


def attach_traces(examples, path):
    """The examples with the traces of a .jsonl of {"id" or "question" and "image", "trace"}.

    As `judge.py refine` writes it; an example's last line counts. What doesn't fit is counted.
    """
    def names(question, image):
        image = getattr(image, "member", image)
        return question, os.path.basename(image) if isinstance(image, str) else ""

    def parse(row, number):
        key = text(row, "id", required=False)
        key = key or names(text(row, "question"), text(row, "image", required=False))
        return key, clean_trace(text(row, "trace"))

    traces = dict(parse_file(Path(path), parse))
    examples = [examples[index] for index in range(len(examples))]
    used = set()
    for index, example in enumerate(examples):
        for key in (example.id, names(example.question, example.image)):
            if key in traces:
                examples[index] = replace(example, trace=traces[key])
                used.add(key)
                break
    if not used:
        raise InputError(f"{path}: not one of its {len(traces)} traces fits an example; write it "
                         "with judge.py refine from the same --dataset and split")
    say(f"{path}: traces for {len(used)} of {len(examples)} examples, "
        f"{len(traces) - len(used)} fit none")
    return examples


def load_data(name, split, data_dir=None, *, size=None, data_seed=0, trace_noise=0.0,
              questions="human", traces=None, cache_dir=None):
    """A list-like of Example: split "train", "val" or "test" (charts also "ood") of a data set.

    name: charts, chartqa, gsm8k, aokvqa, or a path ending in .jsonl or .json. data_dir: where the
    files lie (see each load_*). size: the first so many; for charts how many are drawn. data_seed,
    trace_noise: charts only. questions: "human", "augmented" or "all", where the data tells them
    apart. traces: a .jsonl of reference traces. Raises InputError, with every bad row in it.
    """
    if questions not in ("human", "augmented", "all"):
        raise InputError(f"--questions {questions}: must be human, augmented or all")
    if size is not None and size < 1:
        raise InputError(f"{name}: size {size} must be 1 or more")
    own = name.lower().endswith((".jsonl", ".json"))
    if name not in ("charts", "chartqa", "gsm8k", "aokvqa") and not own:
        raise InputError(f"--dataset {name}: not known; known are charts, chartqa, gsm8k, aokvqa "
                         "and a path ending in .jsonl or .json")
    if name in ("chartqa", "gsm8k", "aokvqa") and split not in SPLITS:
        raise InputError(f"{name} has no split {split}: it has {', '.join(SPLITS)}")
    if name == "charts":
        import charts  # it imports Example from here
        examples = charts.load_charts(split, size, data_seed, trace_noise)
    elif name == "chartqa":
        examples = load_chartqa(split, data_dir, questions, cache_dir)[:size]
    elif name == "gsm8k":
        examples = load_gsm8k(split, data_dir, cache_dir)[:size]
    elif name == "aokvqa":
        examples = load_aokvqa(split, data_dir)[:size]
    else:
        examples = load_own(name, split, data_dir, questions)[:size]
    if not len(examples):
        raise InputError(f"{name}: no examples in the split {split}")
    return attach_traces(examples, traces) if traces else examples
