"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): text alone; a solution's equations are its facts."""

import re
from pathlib import Path

from data.example import Example, InputError
from data.own import clean_trace, hold_out
from data.reading import hub_rows, parse_file, text


def load_gsm8k(split: str, data_dir, skip_bad_rows: bool = False) -> list[Example]:
    """The published train and test; val is the last 500 of train, which train then lacks.

    The trace is the solution without its <<annotations>>, the facts are these: ("48/2", "24").
    """
    published = "test" if split == "test" else "train"

    def parse(row, number):
        solution, marker, answer = text(row, "answer").rpartition("####")
        if not marker or not answer.strip():
            raise InputError("answer has no '#### result'")
        equations = re.findall(r"<<([^<>]*)=([^<>=]*)>>", solution)
        return Example(
            question=text(row, "question"),
            # 1,200: the comma is removed from a prediction where it is read, so here too
            answer=answer.strip().replace(",", ""),
            facts=[(left.strip(), right.strip()) for left, right in equations],
            trace=clean_trace(solution),
            kind="math",
            id=f"gsm8k/{published}/{number}",
        )

    path, rows = Path(data_dir or ".", f"{published}.jsonl"), None
    if data_dir is None:
        way_out = f"give --data_dir a folder with {path}, or take --dataset charts"
        path, file = "openai/gsm8k", f"main/{published}-00000-of-00001.parquet"
        rows = hub_rows(path, [file], None, way_out)
    examples = parse_file(path, parse, skip_bad_rows, rows)
    return examples if split == "test" else hold_out(examples, split, path, most=500)
