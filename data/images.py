"""Images from outside, which may be wrong or hostile, in the form in which a viewer shows them.

They are opened only when used and never decoded when too large. All that goes wrong is an
InputError. Left out: several frames, colour profiles.
"""

import functools
import math
import os
import zipfile
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from data.example import InputError
from data.reading import leaves_folder

MAX_PIXELS = 64 * 2**20  # ours, so that nobody's Image.MAX_IMAGE_PIXELS = None matters
MAX_ASPECT = 200  # the longer side by the shorter: what Qwen's processors take
# PIL's other readers are seldom met and widely attackable (EPS starts a program).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


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
            opened = Image.open(stream, formats=FORMATS)
            size = f"{opened.width} x {opened.height} pixels"
            if math.prod(opened.size) > MAX_PIXELS:
                raise Image.DecompressionBombError(size)
            if max(opened.size) > MAX_ASPECT * min(opened.size):
                raise InputError(f"{size}: a side is over {MAX_ASPECT} times the other; crop it")
            if not header_only:
                opened.load()
            return opened
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"image too large, limit {MAX_PIXELS} pixels: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise InputError(f"not an image ({', '.join(FORMATS)})") from error
    except Exception as error:  # a broken file: the decoders raise a dozen types
        raise InputError(f"broken image: {' '.join(str(error).split())}") from error


def open_image(example, max_pixels: int | None = None) -> Image.Image | None:
    """RGB image of an Example (or of what its `image` may be), None where it has none.

    As viewers show it: turned as its EXIF says, grey of any depth in its range, transparency on
    white. `max_pixels`: a larger image is shrunk to at most so many pixels, aspect kept. InputError
    names the file and the example when it is missing, no image, broken, can't be shown or is over
    MAX_PIXELS.
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
