"""Images from outside, which may be wrong or hostile, in the form in which a viewer shows them.

All that goes wrong is an InputError. Left out: several frames, colour profiles.
"""

import base64
import io
import math
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data.example import InputError

MAX_PIXELS = 64 * 2**20  # ours, so that nobody's Image.MAX_IMAGE_PIXELS = None matters
MAX_ASPECT = 200  # the longer side by the shorter: what Qwen's processors take
# PIL's other readers are seldom met and widely attackable (EPS starts a program).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def read_image(image, header_only: bool = False, example: str = "") -> Image.Image:
    """The RGB image at a path, a str or a zipfile.Path; header_only: checked and not decoded."""
    try:
        if isinstance(image, Image.Image):
            return show(image)
        with (image if isinstance(image, zipfile.Path) else Path(image)).open("rb") as file:
            opened = Image.open(file, formats=FORMATS)
            told = f"{opened.width} x {opened.height} pixels: "
            if math.prod(opened.size) > MAX_PIXELS:
                raise InputError(f"{told}too large, of at most {MAX_PIXELS}")
            if max(opened.size) > MAX_ASPECT * min(opened.size):
                raise InputError(f"{told}a side is over {MAX_ASPECT} times the other; crop it")
            return opened if header_only else show(opened)
    except FileNotFoundError:
        reason = "no such image file"
    except Image.UnidentifiedImageError:
        reason = f"not an image ({', '.join(FORMATS)})"
    except Exception as error:  # a broken file: the decoders raise a dozen types
        reason = error if isinstance(error, InputError) else f"broken image: {error}"
    raise InputError(f"{image}{example and f' (example {example})'}: {reason}")


def open_image(example, max_pixels: int | None = None) -> Image.Image | None:
    """RGB image of an Example, or of what its `image` may be, of at most `max_pixels`; or None."""
    image = getattr(example, "image", example)
    if image is None:
        return None
    shown = read_image(image, example=getattr(example, "id", ""))
    if not max_pixels or math.prod(shown.size) <= max_pixels:
        return shown
    scale = math.sqrt(max_pixels / math.prod(shown.size))
    width, height = (max(1, int(side * scale)) for side in shown.size)
    size = min(width, MAX_ASPECT * height), min(height, MAX_ASPECT * width)
    return shown.resize(size, Image.Resampling.BICUBIC)


def data_url(image: Image.Image) -> str:
    """The image as a data: address, a PNG: small print stays sharp."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def show(image: Image.Image) -> Image.Image:
    """In RGB, turned as its EXIF says, grey of any depth in its range, transparency on white."""
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF, a dozen types: viewers show such an image as it is
        pass
    if image.mode == "F" or image.mode.startswith("I"):  # floats to 1, values to 255, or 16 bits
        grey = np.asarray(image)
        low, high = grey.min(), grey.max()
        if not 0 <= low <= high < 2**16:  # also NaN
            raise InputError(f"can't be shown: grey values from {low} to {high}, not in 0 to 65535")
        scale = 255 if image.mode == "F" and high <= 1 else 1 if high <= 255 else 1 / 256
        image = Image.fromarray((grey * scale).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
