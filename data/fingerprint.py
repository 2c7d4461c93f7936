"""A fingerprint of a run's examples: what a resumed run says about data that changed meanwhile."""

import hashlib
import os
import zipfile
from collections.abc import Sequence

from data.example import Example

FIELDS = ("question", "options", "answers", "facts", "needed", "trace", "image")


def fingerprint(examples: Sequence[Example]) -> dict:
    """{"rows": their number, field: a digest of it over all rows}; no paths: data may move."""
    digests = {"rows": len(examples)}
    for name in FIELDS:
        values = [getattr(example, name) for example in examples]
        values = map(look, values) if name == "image" else values
        text = "".join(map(repr, values))
        digests[name] = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
    return digests


def look(image) -> object:
    """What tells an image from another, without decoding it: files end on data or checksums."""
    if isinstance(image, zipfile.Path):
        return image.root.getinfo(image.at).CRC
    if not isinstance(image, str | os.PathLike):
        return image and image.tobytes()
    with open(image, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - 4096))
        return size, file.read()


def changes(old: dict, new: dict) -> str:
    """What differs between two fingerprints, in a line: "" for nothing."""
    told = ", ".join(name for name in FIELDS if old.get(name) != new[name])
    return told and f"{told} ({old.get('rows')} rows then, {new['rows']} now)"
