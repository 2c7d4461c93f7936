"""One's own .jsonl or .json, DyME's published lists, and reference traces from a file of their own.

Besides: what other data sets share with them, cutting a trace's answer off, facts in several forms,
holding examples out. Left out: how files are read safely (reading.py).
"""

import functools
import os
import re
from dataclasses import replace
from pathlib import Path

from data.example import Example, InputError, NoSplit
from data.reading import decode, leaves_folder, parse_file, read_image, say, text, texts

# "Answer: 3", "**Answer**: 3", "<answer>3</answer>"; not the end of another word
MARKER = re.compile(r"<answer>|(?<![\w/<])answer[*_ \t]*:", re.IGNORECASE)
CLOSING = re.compile(r"</answer>", re.IGNORECASE)
WRAPPING = " \t\r\n*_`\"'“”‘’"


def split_marked(response: str) -> tuple[str, str | None]:
    """(thinking, answer): the text before the one answer marker, and the line behind it as it is.

    Markers are "Answer: x" (to the end of its line) and "<answer>x</answer>". Without a marker, or
    with several, the answer is None: one that says everything has said nothing.
    """
    markers = list(MARKER.finditer(response))
    if len(markers) != 1:
        return response, None
    thinking = response[: markers[0].start()].rstrip(WRAPPING + "#")
    tail = response[markers[0].end() :]
    if markers[0].group().startswith("<"):
        closing = CLOSING.search(tail)
        tail = tail[: closing.start()] if closing else ""
    lines = tail.strip(WRAPPING).splitlines()
    return thinking, lines[0] if lines else ""


def clean_trace(trace: str | None) -> str | None:
    """The thinking alone: no answer (the memorized target adds its own), no GSM8K annotations."""
    trace = re.sub(r"<<[^<>]*>>|\n#### .*", "", trace or "")
    return MARKER.split(trace)[0].strip(" \t\r\n*") or None


def read_facts(value) -> list[tuple]:
    """Facts from an object, or a list of [name, value] or [row, column, value], as strings."""
    items = list(value.items()) if isinstance(value, dict) else value or []
    if not isinstance(items, list) or any(
        not isinstance(item, list | tuple) or len(item) not in (2, 3) for item in items
    ):
        raise InputError("facts must be an object or a list of [name, value], [row, column, value]")
    part = "a part of a fact"
    return [tuple(text({part: value}, part) for value in item) for item in items]


def object_facts(value) -> list[tuple]:
    """Facts from DyME's `visual_fact`: objects with attributes, as JSON or as its text.

    [{"name" or "object": "bag", "attributes": ["red"], "position": "left"}], also below "objects",
    gives ("bag", "red") and ("bag", "left"). Anything else (a failed answer of the LLM): none.
    """
    if isinstance(value, str):
        try:
            value = decode(value.encode("utf-8", "replace"))
        except InputError:
            return []
    things = value.get("objects") if isinstance(value, dict) else value
    facts = []
    for thing in things if isinstance(things, list) else []:
        name = thing.get("name", thing.get("object")) if isinstance(thing, dict) else None
        if isinstance(name, str):
            seen = thing.get("attributes")
            seen = [*seen] if isinstance(seen, list) else [seen]
            facts += [(name, str(item)) for item in [*seen, thing.get("position")] if item]
    return facts


def hold_out(examples: list, split: str, path, most: int | None = None) -> list:
    """The last tenth (at most `most`) for val, the others for train."""
    held = max(1, len(examples) // 10) if len(examples) > 1 else 0
    cut = len(examples) - min(held, most or held)
    kept = examples[:cut] if split == "train" else examples[cut:]
    if not kept:
        raise InputError(f"{path}: {len(examples)} examples are too few to hold some out for val")
    return kept


# ---- a file of one's own ------------------------------------------------------------------------


def find_image(name: str, folder) -> str:
    """The path of a row's image: below `folder`, or there by its bare name if it was moved."""
    if not os.path.isabs(name) and leaves_folder(name):
        raise InputError(f"the image {name!r} leaves the folder of the data")
    path = os.path.join(folder, name)  # an absolute path stays as it is
    moved = os.path.join(folder, os.path.basename(name))
    path = path if os.path.isfile(path) or not os.path.isfile(moved) else moved
    try:
        read_image(path, header_only=True)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return path


def own_row(path: Path, folder, row: dict, number: int) -> Example:
    """An Example from image, question, answer and, where given, facts, trace, options, task.

    DyME's published lists are read as they are: `question_wo_prompt` before `question`, `hint` is
    the trace, `visual_fact` the facts, `choices` the options, `human_or_machine` the task; an
    answer written as "thinking \n Answer: x" is taken apart.
    """
    answer = text(row, "answer").strip()
    thinking, bare = split_marked(answer)
    trace = text(row, "trace", "hint", required=False) or (thinking if bare else None)
    image = text(row, "image", required=False)
    machine = {0: "human", 1: "augmented"}.get(row.get("human_or_machine"), "")
    return Example(
        image and find_image(image, folder),
        text(row, "question_wo_prompt", "question").strip(),
        bare or answer,
        read_facts(row.get("facts")) or object_facts(row.get("visual_fact")),
        trace=clean_trace(trace),
        task=text(row, "task", required=False) or machine,
        id=f"{path.name}/{number}",
        options=texts(row, "options", "choices"),
    )


def beside(path: Path, split: str) -> Path | None:
    """The file of another split: own.val.jsonl or own_val.jsonl, val.json beside train.json."""
    stems = [f"{path.stem}.{split}", f"{path.stem}_{split}"]
    stems += [path.stem.removesuffix("train") + split] if path.stem.endswith("train") else []
    files = [path.with_name(stem + path.suffix) for stem in stems]
    return next((file for file in files if file.is_file()), None)


def load_own(path: str, split: str, data_dir, questions: str) -> list[Example]:
    """A split of one's own file: the file is train; val and test are files beside it.

    Without a val file the last tenth is held out. Relative images start from `data_dir`, else from
    the file's folder; one that is gone is looked for there by its name.
    """
    path = Path(path)
    file = path if split == "train" else beside(path, split)
    if file is None and split != "val":
        raise NoSplit(
            f"{path}: no {split} split: put it into {path.stem}.{split}{path.suffix} "
            "beside it, or evaluate another with --eval_split"
        )
    file = file or path
    examples = parse_file(file, functools.partial(own_row, file, data_dir or path.parent))
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

    As `judge.py refine` writes it; an example's last line counts. What doesn't fit is counted.
    """

    def names(question, image):
        image = getattr(image, "member", image)
        return question, os.path.basename(image) if isinstance(image, str) else ""

    def parse(row, number):
        key = text(row, "id", required=False)
        key = key or names(text(row, "question"), text(row, "image", required=False))
        return key, clean_trace(text(row, "trace"))

    traces = dict(parse_file(Path(path), parse))
    attached, used = [], set()
    for example in examples:
        keys = example.id, names(example.question, example.image)
        key = next((key for key in keys if key in traces), None)
        attached.append(replace(example, trace=traces[key]) if key else example)
        used.add(key)
    used.discard(None)
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
