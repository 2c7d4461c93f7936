"""Reading what comes from outside and may be wrong or hostile: rows of files, downloads.

Every bad row is reported before training starts; nothing is unpickled or run as code, and no name
leaves its folder. All that goes wrong is an InputError. Left out: images (images.py).
"""

import csv
import json
import math
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath

import huggingface_hub

from data.example import InputError, say

csv.field_size_limit(2**27)  # of an image in base64; Python's default is 128 kB
MAX_LISTED = 20  # bad rows told; all are counted
# what a broken file or part of a zip raises; what reading a file as what it isn't does
BROKEN = (OSError, EOFError, ValueError, RuntimeError, csv.Error, zipfile.BadZipFile, zlib.error)
FOREIGN = (LookupError, TypeError, AttributeError, SyntaxError, pickle.UnpicklingError)
FOREIGN += BROKEN[1:]


def leaves_folder(name: str) -> bool:
    """Whether a name from outside leads out of its folder: absolute, with a drive, or by `..`."""
    path = PureWindowsPath(name)  # knows both kinds of slashes
    return bool(path.anchor) or ".." in path.parts


def find_file(data_dir, repo: str, filename: str, revision: str | None = None) -> Path:
    """A file below `data_dir`, else of a hub data set, from its cache or downloaded."""
    if data_dir:
        return Path(data_dir, filename)
    asked = {"repo_type": "dataset", "revision": revision}
    try:  # what is there is not asked for again: without a network the client waits long
        path = huggingface_hub.try_to_load_from_cache(repo, filename, **asked)
        known = isinstance(path, str)
        return Path(path if known else huggingface_hub.hf_hub_download(repo, filename, **asked))
    except Exception as error:  # the HTTP library below the hub client varies with its version
        way_out = "give --data_dir where its files are, or take --dataset charts"
        raise InputError(f"{repo}: can't be downloaded ({error}); {way_out}") from error


def write_whole(path: str | Path, content: bytes | str):
    """Writes a file that is all there or not at all, also when several processes write it."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    with open(temporary, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())  # else a power cut can leave the new name without the content
    os.replace(temporary, path)


@contextmanager
def written_here(path: str | Path) -> Iterator[None]:
    """Around what reads a file of this project's own: where it fails, InputError: it isn't one."""
    try:
        yield
    except InputError:
        raise
    except FOREIGN:
        raise InputError(f"{path}: was not written here; remove it, or give another") from None


def read_lines(path: Path, names: Sequence[str] = ("id",), cut: bool = True) -> list[dict]:
    """The objects of a jsonl file that a program goes on writing, each with these names; a torn
    last line is cut off, or without `cut` left to who is writing it.
    """
    if not path.exists():
        return []
    rows = []
    *lines, torn = path.read_bytes().split(b"\n")
    if torn and not torn.startswith(b"{"):
        lines.append(torn)
    for number, line in enumerate(lines, start=1):
        with written_here(f"{path}, line {number}"):
            rows.append(json.loads(line))
            for name in names:
                rows[-1][name]
    if cut:
        os.truncate(path, sum(len(line) + 1 for line in lines))
    return rows


def decode(raw: bytes):
    """The JSON value of bytes; InputError says why not. NaN is a float, which as_text refuses."""
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}") from error


def read_rows(path) -> Iterator[tuple[int, object]]:
    """(number, row) of a .jsonl, as its lines, of a .tsv, of a .parquet (pyarrow), of a .json."""
    ending = path.suffix.lower()
    if ending == ".jsonl":
        with path.open("rb") as lines:
            yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    elif ending == ".tsv":
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            yield from enumerate(csv.DictReader(lines, delimiter="\t"), 1)
    elif ending == ".parquet":
        try:
            import pyarrow.parquet  # optional: nothing else here needs it
        except ImportError:
            raise InputError("pip install pyarrow to read it") from None
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(64)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
    else:
        rows = decode(path.read_bytes())
        yield from enumerate(rows if isinstance(rows, list) else [rows])


def parse_file(path, parse: Callable, skip_bad_rows: bool = False, rows=None) -> list:
    """[parse(row's filled fields, number)] of a path, also one in a zip. InputError lists the bad
    rows; with skip_bad_rows they are left out and counted. rows: the path's, if they are known.
    """
    parsed, problems, word = [], [], "line" if path.suffix == ".jsonl" else "row"
    try:
        for number, row in read_rows(path) if rows is None else rows:
            try:
                row = decode(row) if isinstance(row, bytes) else row
                if not isinstance(row, dict):
                    raise InputError("not an object with fields")
                parsed.append(parse({name: row[name] for name in row if filled(row[name])}, number))
            except FOREIGN as error:  # also an InputError, a ValueError; not a full disk
                problems.append(f"{word} {number}: {error}")
    except BROKEN as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    bad = f"{len(problems)} of {len(problems) + len(parsed)} rows are bad"
    if problems and skip_bad_rows:
        say(f"{path}: {bad} and left out; {problems[0]}")
    elif problems:
        told = f"{path}: {problems[0]} ({bad}, --skip_bad_rows leaves them out)"
        raise InputError(told, problems[1:MAX_LISTED])
    return parsed


def filled(value) -> bool:
    """Whether a field holds something."""
    return bool(value.strip()) if isinstance(value, str) else value not in (None, [], {})


def as_text(value, name: str) -> str:
    """A text or a number as a text, unchanged; InputError, with the field's name, for all else."""
    number = type(value) is int or type(value) is float and math.isfinite(value)
    if not (number or isinstance(value, str)):
        raise InputError(f"{name} must be a text or a number, not {type(value).__name__}")
    if re.search("[\ud800-\udfff]", str(value)):
        raise InputError(f"{name} has half of a surrogate pair")
    return str(value)


def texts(row: dict, name: str) -> list[str]:
    """A field, a text or a list of them, as texts, [] without it."""
    value = row.get(name, [])
    return [as_text(item, name) for item in (value if isinstance(value, list) else [value])]


def text(row: dict, name: str, default: str | None = None) -> str:
    """A field as a text; without it the default, or an InputError where there is none."""
    if name not in row and default is None:
        raise InputError(f"{name} is missing or empty")
    return as_text(row.get(name, default), name)
