"""A .jsonl or .json of one's own, or DyME's published lists: rows as Examples, splits, traces.

Besides what other data sets share with them: cutting a trace's answer off, facts in several forms.
Left out: how files are read safely (reading.py).
"""

import hashlib
import ntpath
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub

from data.boxes import FORM, read_box
from data.example import MARKER, OPTION_LETTERS, TASK_KINDS
from data.example import Example, InputError, NoSplit, choose, say, split_marked
from data.images import read_image
from data.reading import as_text, decode, filled, leaves_folder, parse_file, pick, text, texts
from data.reading import write_whole


def clean_trace(trace: str | None) -> str | None:
    """The thinking alone: no answer (the memorized target has its own), no annotations or tags."""
    trace = re.sub(r"<<[^<>]*>>|\n#### .*|</?think(?:ing)?>", "", trace or "")
    return MARKER.split(trace)[0].strip(" \t\r\n*") or None


def read_facts(value) -> list[tuple]:
    """Facts from an object, or a list of [name, value] or [row, column, value], as strings."""
    items = [list(item) for item in value.items()] if isinstance(value, dict) else value or []
    listed = isinstance(items, list) and all(isinstance(item, list) for item in items)
    if not listed or not all(len(item) in (2, 3) for item in items):
        raise InputError("facts must be an object or a list of [name, value], [row, column, value]")
    return [tuple(as_text(part, "a part of a fact") for part in item) for item in items]


def object_facts(value) -> list[tuple]:
    """Facts from DyME's `visual_fact`, as JSON or as its text; a failed answer of the LLM has none.

    [{"name" or "object": "bag", "attributes": ["red"], "position": "left"}], also below "objects",
    gives ("bag", "red") and ("bag", "left").
    """
    try:
        value = decode(value.encode()) if isinstance(value, str) else value
        facts = []
        for thing in value["objects"] if isinstance(value, dict) else value or []:
            seen = thing.get("attributes")
            seen = [*(seen if isinstance(seen, list) else [seen]), thing.get("position")]
            facts += [(str(thing.get("name") or thing["object"]), str(x)) for x in seen if x]
        return facts
    except (ValueError, TypeError, LookupError, AttributeError):
        return []


# ---- a row --------------------------------------------------------------------------------------

# what its value is meant by and not its text: a number, a fraction, LaTeX
MATHEMATICS = re.compile(r"\\[a-z]|\^|^\$.*\$$|^[-−]?[\d.,]*\d(?: ?%| ?/ ?\d+)?$")

# The names a field goes by, in DyME's published lists too. Two in one row must agree, but
# question_wo_prompt comes before question, answer and answers are all right, and a solution beside
# an answer is the trace.
NAMES = {
    "image": ("image", "images"),
    "question": ("question", "problem", "question_wo_prompt"),
    "answer": ("answer", "answers", "solution"),
    "trace": ("trace", "hint"),
    "facts": ("facts", "visual_fact"),
    "options": ("options", "choices"),
    "task": ("task", "human_or_machine"),
    "caption": ("caption",),
}
KNOWN = [name for names in NAMES.values() for name in names]
# The last word of a name that is about a row: such a field is not used, and that is said. Any other
# unknown field is an error, for it may hold what belongs to the prompt or to the target.
ABOUT = (
    "id ids idx index uuid number count type types kind format language category topic subject "
    "domain level difficulty size width height score source dataset split version license date"
).split()


def check_fields(row: dict):
    """InputError that names an unknown field that may matter."""
    for name in filled(row, *row):
        last = re.sub(r".*_|.*(?=[A-Z][a-z]+$)", "", name).lower()  # image_id, imageId
        if name not in KNOWN and last not in ABOUT and not isinstance(row[name], bool):
            known = ", ".join(KNOWN)
            raise InputError(f"unknown field {name!r}: rename or remove it; known: {known}")


def read_answers(row: dict) -> tuple[list[str], str | None]:
    """(all right answers, the thinking that is written before the first)."""
    written = texts(row, "answer") + texts(row, "answers") or texts(row, "solution")
    pairs = [split_marked(answer.strip()) for answer in written]
    right = [thinking if bare is None else bare for thinking, bare in pairs]
    if not right or not all(right):
        raise InputError("an answer is missing, empty, or not behind its marker")
    return list(dict.fromkeys(right)), None if pairs[0][1] is None else pairs[0][0]


def read_options(row: dict) -> list[str]:
    """The texts that are to be chosen from, without letters of their own."""
    name, value = pick(row, *NAMES["options"])
    if isinstance(value, dict) and list(value) == list(OPTION_LETTERS[: len(value)]):
        value = list(value.values())
    if not isinstance(value or [], list) or len(value or []) > len(OPTION_LETTERS):
        raise InputError(f"{name} must be a list of at most {len(OPTION_LETTERS)} texts")
    options = texts({name: value}, name)
    bare = [re.sub(rf"^\(?{x}[).:]\s*(?=\S)", "", y) for x, y in zip(OPTION_LETTERS, options)]
    return bare if all(a != b for a, b in zip(bare, options)) else options


def find_image(row: dict, folder, moved: dict) -> str | None:
    """The path of a row's image, checked; a gone absolute one is looked for in the folder by the
    longest end of its path that is there, and noted in `moved`.
    """
    name, *more = texts(row, *NAMES["image"]) or [None]
    if more:
        raise InputError(f"the image has {len(more) + 1} entries: one image per question")
    if name is None:
        return None
    if re.match(r"[A-Za-z][\w+.-]+:", name):
        raise InputError(f"the image {name[:80]!r} is a URL: download it and give its path")
    path = os.path.join(folder, name)  # an absolute path stays as it is
    if os.path.isabs(name) or ntpath.isabs(name):
        parts = re.split(r"[/\\]", name) * (".." not in name)
        ends = [os.path.join(folder, *parts[i:]) for i in range(1, len(parts))]
        found = next(filter(os.path.isfile, ends), None)
        if found and not os.path.isfile(path):
            path = moved[name] = found
    elif leaves_folder(name):
        raise InputError(f"the image {name!r} leaves the folder of the data")
    read_image(path, header_only=True)
    return path


def keep_image(raw: bytes) -> str:
    """The path of an image that came as bytes: a file in the hub's cache, written once."""
    folder = Path(huggingface_hub.constants.HF_HUB_CACHE, "unpacked-images")
    path = folder / hashlib.sha256(raw).hexdigest()
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, raw, fsync=False)
    read_image(path, header_only=True)
    return str(path)


def own_row(row: dict, name: str, folder, moved: dict) -> Example:
    """An Example, its id `name`, from the fields of NAMES; folder, moved: see find_image.

    An answer that is written as "thinking \n Answer: x" is taken apart, an option's letter becomes
    its text, and an <image> at the head of a question, as in Curr-ReFT's data, goes.
    """
    check_fields(row)
    question = text(row, "question_wo_prompt", required=False) or text(row, "question", "problem")
    answers, thinking = read_answers(row)
    options = read_options(row)
    answers = [choose(answer, options) for answer in answers]
    if options and answers[0] not in options:
        raise InputError(f"the answer {answers[0]!r} is none of the options")
    worked = ["solution"] if filled(row, "answer", "answers") else []
    trace = text(row, *NAMES["trace"], *worked, required=False) or thinking
    machine = text(row, "human_or_machine", required=False)
    task = text(row, "task", required=False) or {"0": "human", "1": "augmented"}.get(machine, "")
    chartqa = task in ("human", "augmented")  # which has a metric of its own
    plain = "math" if MATHEMATICS.search(answers[0]) and not chartqa else "text"
    kind = "text" if options else TASK_KINDS.get(task.split("-")[0], plain)
    if kind == "box" and not all(map(read_box, answers)):
        raise InputError(f"{answers[0]!r} is not one box: left, top, right, bottom")
    image = find_image(row, folder, moved)
    question = (re.sub(r"^\s*<image>", "", question) if image else question).strip()
    return Example(
        image,
        f"{question}\n{FORM}" if kind == "box" else question,
        answers[0],
        read_facts(row.get("facts")) or object_facts(row.get("visual_fact")),
        trace=clean_trace(trace),
        task=task,
        kind=kind,
        id=name,
        options=options or None,
        answers=answers,
        caption=text(row, "caption", required=False),
    )


# ---- a file, its splits, traces and facts -------------------------------------------------------


def read_own(file: Path, folder, skip_bad_rows: bool = False) -> list[Example]:
    """The Examples of a file; says which fields aren't used and which images are elsewhere."""
    unused, moved = set(), {}

    def parse(row, number):
        unused.update(name for name in row if name not in KNOWN)
        return own_row(row, f"{file.name}/{number}", folder, moved)

    examples = parse_file(file, parse, skip_bad_rows)
    if len(set(moved.values())) < len(moved):
        told = "of the images that are not where it says, several have one name; mend their paths"
        raise InputError(f"{file}: {told}")
    if moved:
        say(f"{file}: {len(moved)} images are not where it says; found in {folder} by their names")
    if unused:
        say(f"{file}: not used are the fields {', '.join(sorted(unused))}")
    return examples


def hold_out(examples: list, split: str, path, most: int | None = None) -> list:
    """The last tenth (at least one, at most `most`) for val, the others for train."""
    if len(examples) < 2:
        raise InputError(f"{path}: {len(examples)} examples are too few to hold some out for val")
    held = max(1, len(examples) // 10)
    cut = len(examples) - min(held, most or held)
    return examples[:cut] if split == "train" else examples[cut:]


def beside(path: Path, split: str) -> Path | None:
    """The file of another split: own.val.jsonl or own_val.jsonl, val.json beside train.json."""
    stems = (f"{path.stem}.{split}", f"{path.stem}_{split}")
    stems += (split,) if path.stem == "train" else ()
    files = [path.with_name(stem + path.suffix) for stem in stems]
    return next(filter(Path.is_file, files), None)


def load_own(
    path: str, split: str, data_dir, skip_bad_rows: bool = False, read: Callable = read_own
) -> list[Example]:
    """A split of one's own file: the file is train; val and test are files beside it.

    Without a val file the last tenth is held out. Relative images start from `data_dir`, else from
    the file's folder; where an absolute one is gone, it is looked for there by its name.
    """
    path = Path(path)
    file = path if split == "train" else beside(path, split)
    if file is None and split != "val":
        told = f"put it into {path.stem}.{split}{path.suffix}, or choose others by --final_splits"
        raise NoSplit(f"{path}: no {split} split: {told}")
    examples = read(file or path, data_dir or path.parent, skip_bad_rows)
    held_out = split in ("train", "val") and not beside(path, "val")
    return hold_out(examples, split, path) if held_out else examples


def attach(examples, name: str, path: str) -> list[Example]:
    """The examples with the field `name`, "trace" or "facts", of judge.py's .jsonl of {"id", name}.

    An example's last line counts. An id whose "question" is another one (the data changed) fits
    none; how many do is said.
    """

    def parse(row, number):
        asked = text(row, "question", required=False)
        value = read_facts(row.get(name)) if name == "facts" else clean_trace(text(row, name))
        return text(row, "id"), (asked, value)

    found = dict(parse_file(Path(path), parse))
    attached = []
    for example in examples:
        asked, value = found.get(example.id, (None, None))
        fits = value and asked in (None, example.question)
        attached.append(replace(example, **{name: value}) if fits else example)
    used = sum(new is not old for new, old in zip(attached, examples))
    told = f"{path}: {name} for {used} of {len(attached)} examples, {len(found) - used} fit none"
    if not used:
        raise InputError(f"{told}; write it with judge.py from the same --dataset and split")
    say(told)
    return attached
