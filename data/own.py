"""A .jsonl or .json of one's own, or DyME's published lists: rows as Examples, splits, traces."""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path, PureWindowsPath

from huggingface_hub import constants

from data.boxes import FORM, read_box
from data.example import MARKER, OPTION_LETTERS, TASK_KINDS
from data.example import Example, InputError, NoSplit, choose, say, split_marked
from data.images import read_image
from data.reading import FOREIGN, as_text, decode, parse_file, text, texts, write_whole


def clean_trace(trace: str) -> str | None:
    """The thinking alone: no answer (the memorized target has its own), no annotations or tags."""
    trace = re.sub(r"<<[^<>]*>>|\n#### .*|</?think(?:ing)?>", "", trace)
    return MARKER.split(trace)[0].strip(" \t\r\n*") or None


def read_facts(value) -> list[tuple]:
    """Facts from an object, or a list of [name, value] or [row, column, value], as strings."""
    items = list(map(list, value.items())) if isinstance(value, dict) else value or []
    if isinstance(items, list) and all(isinstance(x, list) and len(x) in (2, 3) for x in items):
        return [tuple(as_text(part, "a part of a fact") for part in item) for item in items]
    raise InputError("facts must be an object or a list of [name, value], [row, column, value]")


def object_facts(value) -> list[tuple]:
    """Facts from DyME's `visual_fact`, JSON or its text, as an LLM wrote it, so there may be none:
    [{"name" or "object": "bag", "attributes": ["red"], "position": "left"}], also below "objects".
    """
    try:
        value, facts = decode(value.encode()) if isinstance(value, str) else value, []
        for thing in value["objects"] if isinstance(value, dict) else value or []:
            name, seen = thing.get("name") or thing["object"], thing.get("attributes")
            seen = [*(seen if isinstance(seen, list) else [seen]), thing.get("position")]
            facts += [(str(name), str(x)) for x in seen if x]
        return facts
    except FOREIGN:
        return []


# what its value is meant by and not its text: a number, a fraction, LaTeX
MATHEMATICS = re.compile(r"\\[a-z]|\^|^\$.*\$$|^[-−]?[\d.,]*\d(?: ?%| ?/ ?\d+)?$")
ALIASES = {"images": "image", "problem": "question", "hint": "trace", "choices": "options"}
KNOWN = "image question answer answers solution trace facts options task caption".split()
KNOWN += [*ALIASES, "question_wo_prompt", "visual_fact", "human_or_machine"]  # of DyME's lists
# The last word of a name that is about a row: such a field is not used. Any other unknown field is
# an error, for it may hold what belongs to the prompt or to the target.
ABOUT = (
    "id ids idx index uuid number count type types kind format language category topic subject "
    "domain level difficulty size width height score source dataset split version license date"
).split()


def known_fields(row: dict) -> dict:
    """The fields by the first of their names; InputError for what is unknown or contradictory."""
    fields = {}
    for name, value in row.items():
        last = re.sub(r".*_|.*(?=[A-Z][a-z]+$)", "", name).lower()  # image_id, imageId
        if name not in KNOWN and last not in ABOUT and not isinstance(value, bool):
            known = ", ".join(KNOWN)
            raise InputError(f"unknown field {name!r}: rename or remove it; known: {known}")
        beside = name == "solution" and {"answer", "answers"} & set(row)
        meant = "trace" if beside else ALIASES.get(name, name)
        if meant in fields and fields[meant] != value:
            raise InputError(f"{name} differs from another {meant} of the row: keep one of them")
        fields[meant] = value
    return fields


def find_image(names: list[str], folder, moved: dict) -> str | None:
    """The path of a row's image, checked; `moved` notes a gone absolute one found by its name."""
    if not names:
        return None
    if len(names) > 1:
        raise InputError(f"the image has {len(names)} entries: one image per question")
    path = os.path.join(folder, names[0])  # an absolute path stays as it is
    absolute, parts = PureWindowsPath(names[0]).anchor, PureWindowsPath(names[0]).parts
    if ".." in parts:
        if not absolute:
            raise InputError(f"the image {names[0]!r} leaves the folder of the data")
    elif absolute and not os.path.isfile(path):
        ends = (os.path.join(folder, *parts[i:]) for i in range(1, len(parts)))
        if found := next(filter(os.path.isfile, ends), None):
            path = moved[names[0]] = found
    read_image(path, header_only=True)
    return path


def keep_image(raw: bytes) -> str:
    """The path of an image that came as bytes: a file in the hub's cache, written once."""
    path = Path(constants.HF_HUB_CACHE, "unpacked-images", hashlib.sha256(raw).hexdigest())
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, raw)
    read_image(path, header_only=True)
    return str(path)


def read_options(value) -> list[str]:
    """The texts that are to be chosen from, without letters of their own."""
    value = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(value, list) or len(value) > len(OPTION_LETTERS):
        raise InputError(f"options must be a list of at most {len(OPTION_LETTERS)} texts")
    options = [as_text(option, "options") for option in value]
    bare = [re.sub(rf"^\(?{x}[).:]\s*(?=\S)", "", y) for x, y in zip(OPTION_LETTERS, options)]
    return bare if all(a != b for a, b in zip(bare, options)) else options


def own_row(row: dict, name: str, image: str | None = None) -> Example:
    """An Example, its id `name`, from known_fields and the image's path."""
    question = text(row, "question_wo_prompt", "") or text(row, "question")
    question = (re.sub(r"^\s*<image>", "", question) if image else question).strip()
    options = read_options(row.get("options", []))
    # "thinking\nAnswer: x" is taken apart, an option's letter becomes its text
    written = texts(row, "answer") + texts(row, "answers") or texts(row, "solution")
    pairs = [split_marked(answer.strip()) for answer in written]  # thinking, answer
    right = [thinking if bare is None else bare for thinking, bare in pairs]
    if not right or not all(right):
        raise InputError("an answer is missing, empty, or not behind its marker")
    answers = list(dict.fromkeys(choose(answer, options) for answer in right))
    if options and answers[0] not in options:
        raise InputError(f"the answer {answers[0]!r} is none of the options")
    machine = text(row, "human_or_machine", "")
    task = text(row, "task", {"0": "human", "1": "augmented"}.get(machine, ""))
    plain = options or task in ("human", "augmented")  # ChartQA has a metric of its own
    meant = "math" if MATHEMATICS.search(answers[0]) else "text"
    kind = "text" if plain else TASK_KINDS.get(task.split("-")[0], meant)
    if kind == "box":
        question = f"{question}\n{FORM}"
        if not all(map(read_box, answers)):
            raise InputError(f"{answers[0]!r} is not one box: left, top, right, bottom")
    facts = read_facts(row.get("facts")) or object_facts(row.get("visual_fact"))
    trace = clean_trace(text(row, "trace", pairs[0][0] if pairs[0][1] else ""))
    read = {"trace": trace, "caption": text(row, "caption", "") or None, "task": task, "kind": kind}
    read |= {"options": options or None, "answers": answers, "id": name}
    return Example(image, question, answers[0], facts, **read)


def read_own(file: Path, folder, skip_bad_rows: bool = False) -> list[Example]:
    """The Examples of a file."""
    moved = {}

    def parse(row, number):
        row = known_fields(row)
        return own_row(row, f"{file.name}/{number}", find_image(texts(row, "image"), folder, moved))

    examples = parse_file(file, parse, skip_bad_rows)
    say_moved(moved, file, folder)
    return examples


def say_moved(moved: dict, file: Path, folder) -> None:
    """Says how many images find_image found elsewhere; InputError where two are one file."""
    told = f"{file}: {len(moved)} images are not where it says"
    if len(set(moved.values())) < len(moved):
        raise InputError(f"{told}, and several have one name; mend their paths")
    if moved:
        say(f"{told}; found in {folder} by their names")


def hold_out(examples: list, split: str, most: int = 10**9) -> list:
    """The last tenth (at least one, at most `most`) for val, the others for train."""
    cut = len(examples) - min(max(1, len(examples) // 10), most)
    return examples[:cut] if split == "train" else examples[cut:]


def load_own(path: str, split: str, data_dir, skip_bad_rows: bool, read: Callable) -> list[Example]:
    """A split of one's own file: the file is train, val and test are beside it, own.val.jsonl, or
    val.json beside train.json; without a val file the last tenth is held out.
    """
    path = Path(path)

    def beside(split):
        stems = [f"{path.stem}.{split}", f"{path.stem}_{split}", *[split] * (path.stem == "train")]
        files = [path.with_name(stem + path.suffix) for stem in stems]
        return next(filter(Path.is_file, files), None)

    file = path if split == "train" else beside(split)
    if split == "test" and not file:
        told = f"put it into {path.stem}.{split}{path.suffix}, or choose others by --final_splits"
        raise NoSplit(f"{path}: no {split} split: {told}")
    examples = read(file or path, data_dir or path.parent, skip_bad_rows)
    return examples if split == "test" or beside("val") else hold_out(examples, split)


def attach(examples: list[Example], name: str, path: str, skip_bad_rows: bool = False):
    """Sets the field `name`, "trace" or "facts", from judge.py's .jsonl of {"id", name}, of which
    an example's last line counts; an id with another "question" (the data changed) fits none.
    """

    def parse(row, number):
        value = read_facts(row.get(name)) if name == "facts" else clean_trace(text(row, name))
        return text(row, "id"), (text(row, "question", ""), value)

    found, used = dict(parse_file(Path(path), parse, skip_bad_rows)), 0
    for example in examples:
        asked, value = found.get(example.id, ("", None))
        if value and asked in ("", example.question):
            setattr(example, name, value)
            used += 1
    told = f"{path}: {name} for {used} of {len(examples)} examples, {len(found) - used} fit none"
    if not used:
        raise InputError(f"{told}; write it with judge.py from the same --dataset and split")
    say(told)
