"""A-OKVQA (Schwenk et al. 2022, arXiv 2206.01718), with its images, from the hub's parquet files.

The right choice is the answer (as DyME has it), else the commonest direct answer, and right is each
direct answer; the rationales, joined, are the trace. Left out: test, its labels are unpublished.
"""

import ast
from collections import Counter

from data.example import Example, InputError, NoSplit
from data.own import clean_trace, keep_image
from data.reading import hub_rows, parse_file, text, texts

REPO, REVISION = "HuggingFaceM4/A-OKVQA", "refs/convert/parquet"
PARTS = {
    "train": ("default/train/0000.parquet", "default/train/0001.parquet"),
    "val": ("default/validation/0000.parquet",),
}


def load_aokvqa(split: str, data_dir, skip_bad_rows: bool = False) -> list[Example]:
    """A split, from PARTS below `data_dir` or from the hub; images are unpacked into its cache."""
    if split not in PARTS:
        raise NoSplit(f"aokvqa: the labels of {split} are not published")

    def parse(row, number):
        if isinstance(row["direct_answers"], str):  # "['a', 'b']", a literal
            row["direct_answers"] = ast.literal_eval(row["direct_answers"])
        answers = [answer for answer, _ in Counter(texts(row, "direct_answers")).most_common()]
        options, right = texts(row, "choices"), row["correct_choice_idx"]
        if right is not None and options:
            answers = list(dict.fromkeys([options[right], *answers]))
        if not answers:
            raise InputError("no correct_choice_idx and no direct_answers")
        return Example(
            keep_image(row["image"]["bytes"]),
            text(row, "question"),
            answers[0],
            trace=clean_trace(" ".join(texts(row, "rationales"))),
            id=f"aokvqa/{split}/{number}",
            options=options or None,
            answers=answers,
        )

    way_out = f"give --data_dir a folder with {' and '.join(PARTS[split])}"
    rows = hub_rows(REPO, PARTS[split], data_dir, way_out, REVISION)
    return parse_file(REPO, parse, skip_bad_rows, rows)
