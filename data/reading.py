"""Reading what comes from outside and may be wrong or hostile: rows of files, downloads.

Every bad row is reported before training starts; nothing is unpickled or run as code, and no name
leaves its folder. All that goes wrong is an InputError. Left out: images (images.py), and which
data sets there are (load_data).
"""

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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import huggingface_hub

from data.example import InputError, shorten

MAX_LINE = 10 * 2**20  # bytes of one .jsonl line, one table
MAX_FILE = 2**29  # bytes of a .json list: it is read whole
MAX_LISTED = 20  # bad rows printed; all are counted
BROKEN = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)  # files, zip members


def say(message: str):
    """Prints a line, once whatever the number of processes."""
    if os.environ.get("RANK", "0") == "0":
        print(shorten(message), file=sys.stderr)


def leaves_folder(name: str) -> bool:
    """Whether a name from outside climbs out of its folder, by .. or a drive letter."""
    return ".." in re.split(r"[/\\]", name) or bool(re.match("[A-Za-z]:", name))


def is_plain(name: str) -> bool:
    """Whether a name from outside is a file's name alone, without a folder."""
    return not re.search(r"[/\\]", name) and not leaves_folder(name)


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


# ---- rows of a file -----------------------------------------------------------------------------


def decode(raw: bytes):
    """The JSON value of bytes; InputError says why not."""

    def not_a_number(name):
        raise ValueError(f"{name} is not a value")

    try:
        return json.loads(raw.decode("utf-8-sig"), parse_constant=not_a_number)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}") from error


def read_rows(name: str, stream) -> Iterator[tuple[str, int, object]]:
    """(where, number, row) of a binary stream: bytes per line of a .jsonl, values of a .json."""
    if name.lower().endswith(".jsonl"):
        lines = enumerate(stream, start=1)
        yield from ((f"line {number}", number, line) for number, line in lines if line.strip())
        return
    raw = stream.read(MAX_FILE + 1)
    try:
        rows = decode(raw) if len(raw) <= MAX_FILE else None
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    if not isinstance(rows, list):
        raise InputError(f"{name}: must be a list of objects of at most {MAX_FILE >> 20} MB")
    yield from ((f"[{number}]", number, row) for number, row in enumerate(rows))


def parse_rows(name: str, rows: Iterable, parse: Callable, skip_bad_rows: bool = False) -> list:
    """[parse(row, number)] of (where, number, row). One InputError lists every row refused.

    skip_bad_rows: these are left out and counted in a line instead.
    """
    parsed, problems = [], []
    for where, number, row in rows:
        try:
            if isinstance(row, bytes) and len(row) > MAX_LINE:
                raise InputError(f"longer than {MAX_LINE >> 20} MB")
            row = decode(row) if isinstance(row, bytes) else row
            if not isinstance(row, dict):
                raise InputError("not an object with fields")
            parsed.append(parse(row, number))
        except InputError as error:
            problems.append(f"{where}: {error}")
    if problems and skip_bad_rows:
        total = len(problems) + len(parsed)
        say(f"{name}: {len(problems)} of {total} rows are bad and left out; {problems[0]}")
    elif len(problems) == 1:
        raise InputError(f"{name}: {problems[0]} (--skip_bad_rows leaves it out)")
    elif problems:
        more = [f"... and {len(problems) - MAX_LISTED} more"] * (len(problems) > MAX_LISTED)
        found = f"{name}: {len(problems)} bad rows (--skip_bad_rows leaves them out)"
        raise InputError(found, problems[:MAX_LISTED] + more)
    return parsed


def parse_file(path, parse: Callable, skip_bad_rows: bool = False) -> list:
    """parse_rows of a pathlib.Path or zipfile.Path."""
    try:
        with path.open("rb") as stream:
            rows = read_rows(str(path), stream)
            return parse_rows(str(path), rows, parse, skip_bad_rows)
    except BROKEN as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def text(row: dict, *names: str, required: bool = True) -> str | None:
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


def texts(row: dict, *names: str) -> list[str] | None:
    """The first of the named lists of texts, None without one."""
    value = next((row[name] for name in names if row.get(name) is not None), None)
    if value is not None and not (isinstance(value, list) and value):
        raise InputError(f"{names[0]} must be a list of texts")
    return value and [text({names[0]: item}, names[0]) for item in value]


# ---- downloads ----------------------------------------------------------------------------------


def hub_file(repo: str, filename: str, cache_dir, way_out: str, revision: str | None = None) -> str:
    """Path of a file of a hub data set, from the cache or downloaded; InputError: why, way_out."""
    wanted = dict(repo_id=repo, filename=filename, repo_type="dataset", cache_dir=cache_dir)
    wanted["revision"] = revision
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


def hub_rows(repo: str, filenames: Iterable[str], cache_dir, way_out: str, revision=None):
    """The rows, as dicts, of a hub data set's parquet files. InputError without pyarrow."""
    try:
        import pyarrow.parquet  # optional: nothing else here needs it
    except ImportError as error:
        raise InputError(f"{repo}: pip install pyarrow to read it, or {way_out}") from error
    for filename in filenames:
        path = hub_file(repo, filename, cache_dir, way_out, revision)
        try:
            for batch in pyarrow.parquet.ParquetFile(path).iter_batches(64):
                yield from batch.to_pylist()
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: {error}; download it again, or {way_out}") from error
