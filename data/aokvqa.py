"""A-OKVQA (Schwenk et al. 2022, arXiv 2206.01718) from its files, or from the hub.

The right choice is the answer (as DyME has it), else the commonest direct answer, and right is each
direct answer; the rationales, joined, are the trace; facts are there where a row has `visual_fact`.
Left out: test, its labels are unpublished.
"""

import ast
import json
from collections import Counter
from pathlib import Path

import huggingface_hub

from data.example import Example, InputError, NoSplit
from data.images import check_image
from data.own import clean_trace, object_facts, read_facts
from data.reading import hub_rows, is_plain, parse_file, text, texts, write_whole

REPO, REVISION = "HuggingFaceM4/A-OKVQA", "refs/convert/parquet"
PARTS = {
    "train": ("default/train/0000.parquet", "default/train/0001.parquet"),
    "val": ("default/validation/0000.parquet",),
}


def unpack(split: str, cache_dir) -> Path:
    """The folder of a split in the layout of the published files, made once from the hub's parquet.

    The annotations come last: where they are, the images are complete.
    """
    folder = Path(cache_dir or huggingface_hub.constants.HF_HUB_CACHE, "unpacked-aokvqa")
    annotations = folder / f"aokvqa_v1p0_{split}.json"
    if annotations.exists():
        return folder
    way_out = (
        f"give --data_dir a folder with {annotations.name} (from "
        f"github.com/allenai/aokvqa) and COCO's {split}2017/"
    )
    images, rows = folder / f"{split}2017", []
    images.mkdir(parents=True, exist_ok=True)
    for row in hub_rows(REPO, PARTS[split], cache_dir, way_out, REVISION):
        try:
            row["image_id"] = len(rows)
            picture = row.pop("image")["bytes"]
            write_whole(images / f"{len(rows):012d}.jpg", picture, fsync=False)
            if isinstance(row.get("direct_answers"), str):  # "['a', 'b']", a literal
                row["direct_answers"] = ast.literal_eval(row["direct_answers"])
        except (OSError, ValueError, SyntaxError, TypeError, LookupError) as error:
            raise InputError(f"{REPO}: row {len(rows)}: {error}; {way_out}") from error
        rows.append(row)
    write_whole(annotations, json.dumps(rows))
    return folder


def load_aokvqa(
    split: str, data_dir, cache_dir=None, questions=None, skip_bad_rows: bool = False
) -> list[Example]:
    """A split, from `data_dir` (the annotations; images below it as COCO has them) or the hub."""
    if split not in PARTS:
        raise NoSplit(f"aokvqa: the labels of {split} are not published")
    data_dir = Path(data_dir or unpack(split, cache_dir))
    folders = [data_dir / below / f"{split}2017" for below in ("", "coco", "images")]
    folders += [data_dir / "images", data_dir]

    def parse(row, number):
        file = text(row, "image_id").zfill(12) + ".jpg"
        if not is_plain(file):
            raise InputError(f"image_id {file!r} is not a plain name")
        image = next((folder / file for folder in folders if (folder / file).is_file()), None)
        if image is None:
            raise InputError(f"the image {split}2017/{file} is missing")
        check_image(image)
        options, right = texts(row, "choices"), row.get("correct_choice_idx")
        answers = [
            answer for answer, _ in Counter(texts(row, "direct_answers") or []).most_common()
        ]
        if options and isinstance(right, int) and 0 <= right < len(options):
            answers = list(dict.fromkeys([options[right], *answers]))
        if not answers:
            raise InputError("no correct_choice_idx and no direct_answers (test has none)")
        return Example(
            str(image),
            text(row, "question"),
            answers[0],
            object_facts(row.get("visual_fact")) or read_facts(row.get("facts")),
            trace=clean_trace(" ".join(texts(row, "rationales") or [])),
            id=f"aokvqa/{split}/{number}",
            options=options,
            answers=answers,
        )

    return parse_file(data_dir / f"aokvqa_v1p0_{split}.json", parse, skip_bad_rows)
