"""Reading what comes from outside and may be wrong or hostile: images, rows, downloads.

Every bad row is reported before training starts; images are opened only when used and never
decoded when too large; nothing is unpickled or run as code, and no name leaves its folder.
All that goes wrong is an InputError. Left out: which data sets there are (load_data).
"""

import functools
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
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import numpy as np
from PIL import Image, ImageOps

from data.example import InputError, shorten

MAX_LINE = 10 * 2**20  # bytes of one .jsonl line, one table
MAX_FILE = 2**29  # bytes of a .json list: it is read whole
MAX_IMAGE_PIXELS = 64 * 2**20  # ours, so that nobody's Image.MAX_IMAGE_PIXELS = None matters
MAX_ASPECT = 200  # the longer side by the shorter: what Qwen's processors take
MAX_LISTED = 20  # bad rows printed; all are counted
# PIL's other readers are seldom met and widely attackable (EPS starts a program).
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
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


# ---- images -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ZipImage:
    """An image inside a zip file, opened when used."""

    zip_path: str
    member: str

    def __str__(self):
        return f"{self.zip_path}:{self.member}"


@functools.lru_cache(maxsize=4)
def open_zip(path: str, pid: int) -> zipfile.ZipFile:
    """The open zip file of a process: reading the index of 60,000 names takes a second."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a zip file that can be read ({error})") from error
    for name in archive.namelist():
        if leaves_folder(name) or os.path.isabs(name):
            raise InputError(f"{path}: the entry {name!r} points outside the zip; it is refused")
    return archive


def open_stream(image):
    """The bytes of an image, a path or a ZipImage, as an open file."""
    if isinstance(image, ZipImage):
        return open_zip(image.zip_path, os.getpid()).open(image.member)
    if not os.path.isfile(image):
        raise InputError("no such image file")
    return open(image, "rb")


def check_image(image):
    """InputError, naming it, for an image whose header says that it can't be used."""
    try:
        read_image(image, header_only=True)
    except InputError as error:
        raise InputError(f"{image}: {error}") from error


def read_image(image, header_only: bool = False) -> Image.Image:
    """The PIL image at a path or in a zip; header_only: checked for kind and size, not decoded."""
    try:
        with open_stream(image) as stream:
            opened = Image.open(stream, formats=IMAGE_FORMATS)
            size = f"{opened.width} x {opened.height} pixels"
            if math.prod(opened.size) > MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(size)
            if max(opened.size) > MAX_ASPECT * min(opened.size):
                raise InputError(f"{size}: a side is over {MAX_ASPECT} times the other; crop it")
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


def open_image(example, max_pixels: int | None = None) -> Image.Image | None:
    """RGB image of an Example (or of what its `image` may be), None where it has none.

    As viewers show it: turned as its EXIF says, grey of any depth in its range, transparency on
    white. `max_pixels`: a larger image is shrunk to at most so many pixels, aspect kept. InputError
    names the file and the example when it is missing, no image, broken, can't be shown or is over
    MAX_IMAGE_PIXELS.
    """
    image, name = getattr(example, "image", example), getattr(example, "id", "")
    if image is None:
        return None
    try:
        shown = show(image if isinstance(image, Image.Image) else read_image(image))
    except InputError as error:
        where = "an image" if isinstance(image, Image.Image) else image
        raise InputError(f"{where}{name and f' (example {name})'}: {error}") from error
    return shrink(shown, max_pixels) if max_pixels else shown


def show(image: Image.Image) -> Image.Image:
    """The image in RGB as a viewer shows it; InputError for one that has no such form."""
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF, a dozen types: viewers show such an image as it is
        pass
    try:
        if image.mode == "F" or image.mode.startswith("I"):
            image = show_grey(np.asarray(image))
        if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except ValueError as error:  # a mode that PIL can't convert
        raise InputError(f"can't be shown: {error}; save it as an RGB PNG") from error


def show_grey(values: np.ndarray) -> Image.Image:
    """Grey values as 8 bits: floats to 1, values to 255 as they are, 16 bits; convert() clips."""
    low, high = values.min(), values.max()
    if not 0 <= low <= high < 2**16:  # also NaN
        raise ValueError(f"grey values from {low} to {high}, not in 0 to 65535")
    if values.dtype.kind == "f" and high <= 1:
        values = values * 255
    elif high > 255:
        values = values / 256
    return Image.fromarray(values.astype(np.uint8))


def shrink(image: Image.Image, max_pixels: int) -> Image.Image:
    """The image with at most so many pixels; its aspect is kept, but for MAX_ASPECT's sake."""
    if image.width * image.height <= max_pixels:
        return image
    scale = math.sqrt(max_pixels / (image.width * image.height))
    height = max(1, int(image.height * scale))
    width = max(1, min(int(image.width * scale), max_pixels // height, MAX_ASPECT * height))
    height = min(height, max_pixels // width, MAX_ASPECT * width)
    return image.resize((width, height), Image.Resampling.BICUBIC)


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
