"""Reading what comes from outside and may be wrong or hostile: rows of files, downloads.

Every bad row is reported before training starts; nothing is unpickled or run as code, and no name
leaves its folder. All that goes wrong is an InputError. Left out: images (images.py).
"""

import itertools
import json
import math
import os
import pickle
import re
import socket
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub

from data.example import InputError, say

MAX_LINE = 10 * 2**20  # bytes of one .jsonl line, one table
MAX_FILE = 2**29  # bytes of a .json list: it is read whole
MAX_LISTED = 20  # bad rows printed; all are counted
FOREIGN = (LookupError, TypeError, ValueError, AttributeError, RecursionError, RuntimeError)
FOREIGN += (EOFError, pickle.UnpicklingError)  # what reading a file as what it isn't raises
BROKEN = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)  # files, zip members


def leaves_folder(name: str) -> bool:
    """Whether a name from outside leads out of its folder: absolute, with a drive, or by `..`."""
    return ".." in re.split(r"[/\\]", name) or bool(re.match(r"[/\\]|[A-Za-z]:", name))


def write_whole(path: str | Path, content: bytes | str, fsync: bool = True):
    """Writes a file that is all there or not at all, also when several processes write it."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    with open(temporary, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        if fsync:  # else a power cut can leave the new name without the content
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, path)


@contextmanager
def written_here(path: str | Path) -> Iterator[None]:
    """Around what reads a file of this project's own: where it fails, InputError: it isn't one."""
    try:
        yield
    except InputError:
        raise
    except FOREIGN:
        told = "was not written here; remove the file, or give another"
        raise InputError(f"{path}: {told}") from None


# ---- rows of a file -----------------------------------------------------------------------------


def decode(raw: bytes):
    """The JSON value of bytes; InputError says why not. NaN is a float, which as_text refuses."""
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}") from error


def read_rows(path) -> Iterator[tuple[str, int, object]]:
    """(where, number, row) of a file: bytes per line of a .jsonl, values of a .json list."""
    with path.open("rb") as stream:
        if path.name.lower().endswith(".jsonl"):
            lines = enumerate(stream, start=1)
            yield from ((f"line {number}", number, line) for number, line in lines if line.strip())
            return
        raw = stream.read(MAX_FILE + 1)
    rows = decode(raw) if len(raw) <= MAX_FILE else None
    if not isinstance(rows, list):
        raise InputError(f"must be a list of objects of at most {MAX_FILE >> 20} MB")
    yield from ((f"[{number}]", number, row) for number, row in enumerate(rows))


def parse_file(path, parse: Callable, skip_bad_rows: bool = False, rows=None) -> list:
    """[parse(row, number)] of a pathlib.Path or zipfile.Path. One InputError lists every bad row;
    with skip_bad_rows they are left out and counted in a line. rows: read_rows's by default.
    """
    parsed, problems = [], []
    try:
        for where, number, row in rows or read_rows(path):
            try:
                if isinstance(row, bytes) and len(row) > MAX_LINE:
                    raise InputError(f"longer than {MAX_LINE >> 20} MB")
                row = decode(row) if isinstance(row, bytes) else row
                if not isinstance(row, dict):
                    raise InputError("not an object with fields")
                parsed.append(parse(row, number))
            except InputError as error:
                problems.append(f"{where}: {error}")
    except (InputError, *BROKEN) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if problems and skip_bad_rows:
        total = len(problems) + len(parsed)
        say(f"{path}: {len(problems)} of {total} rows are bad and left out; {problems[0]}")
    elif len(problems) == 1:
        raise InputError(f"{path}: {problems[0]} (--skip_bad_rows leaves it out)")
    elif problems:
        more = [f"... and {len(problems) - MAX_LISTED} more"] * (len(problems) > MAX_LISTED)
        found = f"{path}: {len(problems)} bad rows (--skip_bad_rows leaves them out)"
        raise InputError(found, problems[:MAX_LISTED] + more)
    return parsed


def read_lines(path: Path, names: Sequence[str] = ("id",), cut: bool = True) -> list[dict]:
    """The objects of a jsonl file that a program goes on writing; a torn last line is cut off, or
    without `cut` left to who is writing it. InputError for a line without one of these names.
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


def filled(row: dict, *names: str) -> list[str]:
    """Which of the fields hold something."""
    empty = (None, [], {})
    return [name for name in names if row.get(name) not in empty and str(row[name]).strip()]


def pick(row: dict, *names: str) -> tuple[str, object]:
    """(name, value) of the field that is filled in, of several that mean the same, or None."""
    there = filled(row, *names)
    if any(row[name] != row[there[0]] for name in there[1:]):
        raise InputError(f"{' and '.join(there)} differ: keep one of them")
    return (there[0], row[there[0]]) if there else (names[0], None)


def as_text(value, name: str) -> str:
    """A text or a number as a text, unchanged; InputError, with the field's name, for all else."""
    number = type(value) is int or type(value) is float and math.isfinite(value)
    if not (number or isinstance(value, str)):
        raise InputError(f"{name} must be a text or a number, not {type(value).__name__}")
    if re.search("[\ud800-\udfff]", str(value)):
        raise InputError(f"{name} has half of a surrogate pair")
    return str(value)


def text(row: dict, *names: str, required: bool = True) -> str | None:
    """The field of these names as a text, None without it."""
    name, value = pick(row, *names)
    if value is None and required:
        raise InputError(f"{name} is missing or empty")
    return None if value is None else as_text(value, name)


def texts(row: dict, *names: str) -> list[str]:
    """The field of these names, a text or a list of them, as texts, [] without it."""
    name, value = pick(row, *names)
    items = value if isinstance(value, list) else [value] * (value is not None)
    return [as_text(item, name) for item in items]


# ---- downloads ----------------------------------------------------------------------------------


def hub_file(repo: str, filename: str, way_out: str, revision: str | None = None) -> str:
    """Path of a file of a hub data set, from the cache or downloaded; InputError: why, way_out."""
    wanted = {"repo_type": "dataset", "revision": revision}
    try:
        return huggingface_hub.hf_hub_download(repo, filename, **wanted, local_files_only=True)
    except OSError:
        pass
    try:
        # Without a network the client would retry for half a minute.
        host = urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT)
        if not urllib.request.getproxies() and not huggingface_hub.constants.HF_HUB_OFFLINE:
            socket.create_connection((host.hostname, host.port or 443), timeout=10).close()
        return huggingface_hub.hf_hub_download(repo, filename, **wanted)
    except Exception as error:  # the HTTP library below the hub client varies with its version
        raise InputError(f"{repo}: can't be downloaded ({error}); {way_out}") from error


def hub_rows(repo: str, filenames, data_dir, way_out: str, revision=None) -> Iterator:
    """The rows, as read_rows has them, of a hub data set's parquet files; it takes pyarrow."""
    try:
        import pyarrow.parquet  # optional: nothing else here needs it
    except ImportError as error:
        raise InputError(f"pip install pyarrow to read it, or {way_out}") from error
    numbers = itertools.count(1)
    for filename in filenames:
        path = data_dir and Path(data_dir, filename)
        path = path or hub_file(repo, filename, way_out, revision)
        try:
            for batch in pyarrow.parquet.ParquetFile(path).iter_batches(64):
                for row, number in zip(batch.to_pylist(), numbers):
                    yield f"row {number}", number, row
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: {error}; download it again, or {way_out}") from error
