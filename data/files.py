"""A file of one's own: its splits, beside it or held out of it; traces from another file."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from data.example import Example, InputError, NoSplit
from data.own import KNOWN, check_moved, clean_trace, own_row
from data.reading import parse_file, say, text


def hold_out(examples: list, split: str, path, most: int | None = None) -> list:
    """The last tenth (at most `most`) for val, the others for train."""
    held = max(1, len(examples) // 10) if len(examples) > 1 else 0
    cut = len(examples) - min(held, most or held)
    kept = examples[:cut] if split == "train" else examples[cut:]
    if not kept:
        raise InputError(f"{path}: {len(examples)} examples are too few to hold some out for val")
    return kept


def beside(path: Path, split: str) -> Path | None:
    """The file of another split: own.val.jsonl or own_val.jsonl, val.json beside train.json."""
    stems = [f"{path.stem}.{split}", f"{path.stem}_{split}"]
    stems += [path.stem.removesuffix("train") + split] if path.stem.endswith("train") else []
    files = [path.with_name(stem + path.suffix) for stem in stems]
    return next((file for file in files if file.is_file()), None)


def read_own(file: Path, folder, skip_bad_rows: bool = False) -> list[Example]:
    """The Examples of a file of one's own; says which fields aren't used, which images moved."""
    unused = set()

    def parse(row, number):
        unused.update(name for name in row if name not in KNOWN)
        return own_row(file, folder, row, number)

    examples = parse_file(file, parse, skip_bad_rows)
    check_moved(file, folder, examples)
    if unused:
        say(f"{file}: not used are the fields {', '.join(sorted(unused))}")
    return examples


def load_own(
    path: str, split: str, data_dir, questions: str, skip_bad_rows: bool = False
) -> list[Example]:
    """A split of one's own file: the file is train; val and test are files beside it.

    Without a val file the last tenth is held out. Relative images start from `data_dir`, else from
    the file's folder; where an absolute one is gone, it is looked for there by its name.
    """
    path = Path(path)
    file = path if split == "train" else beside(path, split)
    if file is None and split != "val":
        raise NoSplit(
            f"{path}: no {split} split: put it into {path.stem}.{split}{path.suffix} "
            "beside it, or evaluate another with --eval_split"
        )
    file = file or path
    examples = read_own(file, data_dir or path.parent, skip_bad_rows)
    if file == path and not beside(path, "val"):
        examples = hold_out(examples, split, path)
    other = {"human": "augmented", "augmented": "human"}.get(questions)
    kept = [example for example in examples if example.task != other]
    if len(kept) < len(examples):
        say(f"{file}: {len(examples) - len(kept)} {other} questions left out (--questions all)")
    return kept


# ---- traces from a file of their own ------------------------------------------------------------


def attach_traces(examples, path: str) -> list[Example]:
    """The examples with the traces of a .jsonl of {"id" or "question" and "image", "trace"}.

    As `judge.py refine` writes it; an example's last line counts. What doesn't fit is counted: an
    id whose question is another one (the data changed), an image's name that several have.
    """

    def names(question, image):
        image = getattr(image, "member", image)
        return question, os.path.basename(image) if isinstance(image, str) else ""

    def parse(row, number):
        key = text(row, "id", required=False)
        question = text(row, "question", required=key is None)
        key = key or names(question, text(row, "image", required=False))
        return key, (question, clean_trace(text(row, "trace")))

    traces = dict(parse_file(Path(path), parse))
    images = {(names(example.question, example.image), str(example.image)) for example in examples}
    counts = Counter(key for key, _ in images)
    attached, used = [], set()
    for example in examples:
        by_name = names(example.question, example.image)
        for key in [example.id] + [by_name] * (counts[by_name] == 1):
            question, trace = traces.get(key, ("", None))
            if trace and question in (None, example.question):
                example = replace(example, trace=trace)
                used.add(key)
                break
        attached.append(example)
    if not used:
        raise InputError(
            f"{path}: not one of its {len(traces)} traces fits an example; write it "
            "with judge.py refine from the same --dataset and split"
        )
    say(
        f"{path}: traces for {len(used)} of {len(examples)} examples, "
        f"{len(traces) - len(used)} fit none"
    )
    return attached
