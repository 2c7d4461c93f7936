"""Boxes as models write them: bare numbers, [[..]], (x,y),(x,y), with tokens around, or JSON.

One box per question. Left out: boxes by centre and size, polygons.
"""

import math
import re

from data.example import WRAPPING, Example

FORM = "A box is written [left, top, right, bottom]."
BETWEEN = re.compile(r"<\|box_(?:start|end)\|>|<\|object_ref_start\|>.*?<\|object_ref_end\|>")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
KEYED = re.compile(r"""["'](?:bbox_2d|bbox|box)["']\s*:\s*\[([^\[\]]*)\]""")
BRACKETS = re.compile(r"[\[\](){}<>,;\s]*")


def read_box(text: str) -> tuple[float, ...] | None:
    """(left, top, right, bottom), the last two exclusive; None for none, several, or no area."""
    keyed = KEYED.findall(text)
    text = keyed[0] if len(keyed) == 1 else BETWEEN.sub(" ", text).strip(WRAPPING + ".")
    numbers = NUMBER.findall(text[:999])
    if len(numbers) != 4 or not BRACKETS.fullmatch(NUMBER.sub(" ", text)):
        return None
    left, top, right, bottom = box = tuple(map(float, numbers))
    return box if left < right and top < bottom and all(map(math.isfinite, box)) else None


def scaled(text: str, scale: tuple[float, float]) -> str:
    """A box with its x times scale[0] and its y times scale[1]; as it is where nothing changes."""
    if tuple(scale) == (1, 1) or (box := read_box(text)) is None:
        return text
    return f"[{', '.join(f'{round(x * s, 1):g}' for x, s in zip(box, (*scale, *scale)))}]"


def asked_answer(example: Example) -> str:
    """The answer as the model is to write it: a box in its own coordinates, see Example.scale."""
    x, y = example.scale
    return scaled(example.answer, (1 / x, 1 / y)) if example.kind == "box" else example.answer


def iou(a: tuple, b: tuple) -> float:
    """Intersection over union of two boxes that read_box gave."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)
