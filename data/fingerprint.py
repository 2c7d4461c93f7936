"""A fingerprint of a run's examples: what a resumed run says about data that changed meanwhile."""

import base64
import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Sequence

from PIL import Image

from data.example import Example, InputError
from data.images import ZipImage, open_zip

DIGEST = 3  # bytes per row and field: one change of 16 million goes unseen
PEEK = 4096  # bytes read of an image's file at either end


def fingerprint(examples: Sequence[Example]) -> dict[str, str]:
    """{field: a digest of each row} in base64, JSON: about 100 KB for 5,000 rows.

    Of an image's file its length and its two ends are read, so that it takes seconds for 30,000
    rows, and not its path, so that data may move.
    """
    digests = {
        name: bytearray() for name in ("id", "question", "answer", "facts", "trace", "image")
    }
    for index in range(len(examples)):
        example = examples[index]
        parts = {
            "id": example.id,
            "question": (example.question, example.options),
            "answer": (example.answer, example.answers),
            "facts": (example.facts, example.needed),
            "trace": example.trace,
            "image": look(example.image),
        }
        for name, value in parts.items():
            digests[name] += hashlib.sha256(repr(value).encode("utf-8", "replace")).digest()[
                :DIGEST
            ]
    return {name: base64.b64encode(rows).decode() for name, rows in digests.items()}


def look(image):
    """What tells an image from another, without decoding it."""
    if image is None:
        return None
    if isinstance(image, Image.Image):
        return image.mode, image.size, zlib.crc32(image.tobytes())
    try:
        if isinstance(image, ZipImage):
            return open_zip(image.zip_path, os.getpid()).getinfo(image.member).CRC
        with open(image, "rb") as file:
            size, start = os.fstat(file.fileno()).st_size, file.read(PEEK)
            file.seek(max(0, size - PEEK))
            return size, zlib.crc32(start + file.read())
    except (OSError, KeyError):
        return "gone"


def changes(old: dict[str, str], new: dict[str, str]) -> str:
    """What differs between two fingerprints, in a line: "" for nothing.

    InputError where it is another data set: fewer than half of the rows have a question and image,
    or a question and id, that were there.
    """
    then, now = ({name: rows(text) for name, text in side.items()} for side in (old, new))
    counts = len(then["id"]), len(now["id"])

    def common(*names):
        sides = [Counter(zip(*(side[name] for name in names))) for side in (then, now)]
        return (sides[0] & sides[1]).total()

    if max(common("question", "image"), common("question", "id")) < min(counts) / 2:
        raise InputError(
            f"this is another data set than the run's: of its {counts[0]} rows fewer than half are "
            f"among the {counts[1]} here; give the run's --dataset, or start anew with --overwrite"
        )
    same_length = counts[0] == counts[1]
    told = [] if same_length else [f"{counts[0]} rows then, {counts[1]} now"]
    for name in ("question", "answer", "facts", "trace", "image"):
        if same_length:
            changed = sum(a != b for a, b in zip(then[name], now[name]))
        else:  # rows came or went: which is which isn't known
            changed = min(counts) - common(name)
        told += [f"{name} of {changed} rows"] if changed else []
    return ", ".join(told)


def rows(text: str) -> list[bytes]:
    """The digests of a field."""
    raw = base64.b64decode(text)
    return [raw[i : i + DIGEST] for i in range(0, len(raw), DIGEST)]
