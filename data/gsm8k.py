"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): text alone; a solution's equations are its facts."""

import functools
import re
from pathlib import Path

from data.example import Example, InputError
from data.files import hold_out
from data.own import clean_trace
from data.reading import hub_rows, parse_file, parse_rows, text


def parse_row(split: str, row: dict, number: int) -> Example:
    """The trace without its <<annotations>>; they are the facts: ("48/2", "24")."""
    solution, marker, answer = text(row, "answer").rpartition("####")
    if not marker or not answer.strip():
        raise InputError("answer has no '#### result'")
    facts = [
        tuple(side.strip() for side in equation.rpartition("=")[::2])
        for equation in re.findall(r"<<([^<>]*=[^<>]*)>>", solution)
    ]
    # 1,200: the comma is removed from a prediction where it is read, so here too.
    return Example(
        None,
        text(row, "question"),
        answer.strip().replace(",", ""),
        facts,
        trace=clean_trace(solution),
        id=f"gsm8k/{split}/{number}",
    )


def load_gsm8k(
    split: str, data_dir, cache_dir=None, questions=None, skip_bad_rows: bool = False
) -> list[Example]:
    """The published train and test; val is the last 500 of train, which train then lacks."""
    published = "test" if split == "test" else "train"
    parse = functools.partial(parse_row, published)
    if data_dir is not None:
        path = Path(data_dir) / f"{published}.jsonl"
        examples = parse_file(path, parse, skip_bad_rows)
    else:
        path = "gsm8k"
        way_out = f"give --data_dir a folder with {published}.jsonl, or take --dataset charts"
        file = f"main/{published}-00000-of-00001.parquet"
        rows = enumerate(hub_rows("openai/gsm8k", [file], cache_dir, way_out), start=1)
        rows = ((f"row {number}", number, row) for number, row in rows)
        examples = parse_rows(path, rows, parse, skip_bad_rows)
    return examples if split == "test" else hold_out(examples, split, path, most=500)
