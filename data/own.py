"""A row of one's own .jsonl or .json, or of DyME's published lists, as an Example.

Besides what other data sets share with them: cutting a trace's answer off, facts in several forms.
Left out: the files (files.py) and how they are read safely (reading.py).
"""

import ntpath
import os
import re
from pathlib import Path

from data.example import OPTION_LETTERS, Example, InputError
from data.images import check_image
from data.reading import decode, leaves_folder, say, text, texts

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
    # not splitlines: U+2028 and its like are characters of a label
    return thinking, re.split(r"[\r\n]", tail.strip(WRAPPING), maxsplit=1)[0]


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


# ---- a row of one's own -------------------------------------------------------------------------

KNOWN = (
    "image images question question_wo_prompt problem answer answers solution trace hint facts "
    "visual_fact options choices task human_or_machine"
).split()
EMPTY = (None, "", [], {})  # nothing
# An unknown field is an error where it may hold what belongs to the prompt or to the target: by the
# beginning of a word of its name, unless that ends on the id, kind or size of such a thing ...
MATTERS = re.compile(
    "img|imag|pict|photo|figure|video|audio|quest|query|problem|prompt|instruct|input|answer|label"
    "|ans$|target|gold|gt$|truth|expect|result|refer|output|respon|assist|solution|complet|convers"
    "|messag|dialog|option|choice|candidate|fact|trace|ration|reason|explan|think|thought|cot$|conte"
    "|passage|document|table|caption|descri|text$|b?box"
)
ABOUT = re.compile(
    "ids?|idx|index|types?|kind|size|width|height|count|num|source|license|lang.*|hash|categor.*"
    "|topic|subject|level|difficulty|length|format"
)
# ... and by what it holds.
MEDIA = r"\.(png|jpe?g|webp|gif|bmp|tiff?|heic|svg|pdf|mp4|webm|avi|mov|wav|mp3)\b"
HOLDS = re.compile(MEDIA + r"|data:image|base64|[\w+/]{200}", re.IGNORECASE)


def matters(name: str, value) -> bool:
    """Whether an unknown field seems to hold what a question, its image or its answer needs."""
    if isinstance(value, bool) or value in EMPTY:
        return False
    words = [word.casefold() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)]
    named = any(map(MATTERS.match, words)) and not ABOUT.fullmatch(words[-1])
    if named or len(name) == 1 or HOLDS.search(str(value)):  # A, B, C, D: options
        return True
    if isinstance(value, dict):
        return any(matters(*item) for item in value.items())
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)  # turns


def filled_in(row: dict, *names: str) -> list[str]:
    """Which of the fields hold something."""
    return [name for name in names if row.get(name) not in EMPTY]


def one_of(row: dict, *names: str) -> str:
    """Which of the fields is filled in, the first where none is; InputError where two differ."""
    filled = filled_in(row, *names)
    if any(row[name] != row[filled[0]] for name in filled):
        raise InputError(f"{' and '.join(filled)} differ: keep one of them")
    return (filled or names)[0]


def read_answers(row: dict) -> tuple[list[str], str | None]:
    """(all right answers, the thinking that is written before the first)."""
    written = []
    for name in filled_in(row, "answer", "answers") or [one_of(row, "answer", "solution")]:
        values = row[name] if row.get(name) and isinstance(row[name], list) else [row.get(name)]
        written += [split_marked(text({name: value}, name).strip()) for value in values]
    right = [thinking if bare is None else bare for thinking, bare in written]
    if "" in right:
        raise InputError("there is nothing behind the answer's marker")
    return list(dict.fromkeys(right)), None if written[0][1] is None else written[0][0]


def read_options(row: dict) -> list[str] | None:
    """The texts that are to be chosen from, without letters of their own."""
    name = one_of(row, "options", "choices")
    value = row.get(name)
    if isinstance(value, dict) and list(value) == list(OPTION_LETTERS[: len(value)]):
        value = list(value.values())
    options = texts({name: value}, name)
    if options and len(options) > len(OPTION_LETTERS):
        raise InputError(f"{name} has {len(options)} entries, over {len(OPTION_LETTERS)}")
    pairs = list(zip(OPTION_LETTERS, options or []))
    written = [re.match(rf"\(?{letter}[).:]\s*(?=\S)", option) for letter, option in pairs]
    if options and all(written):
        options = [option[match.end() :] for option, match in zip(options, written)]
    return options


def choose(answer: str, options: list[str]) -> str | None:
    """The option that an answer names: by its text, its letter, or both ("B", "(B)", "B. cab")."""
    places = {option.casefold(): place for place, option in reversed([*enumerate(options)])}
    named = re.fullmatch(r"\(?([A-Z])[).:]*(?:\s+(.*))?", answer, re.IGNORECASE | re.DOTALL)
    place = places.get(answer.casefold())
    if place is None and named:
        letter = OPTION_LETTERS.index(named[1].upper())
        place = letter if not named[2] or places.get(named[2].casefold()) == letter else None
    return options[place] if place is not None and place < len(options) else None


def read_path(row: dict) -> str | None:
    """The image of a row as it is written, also as a list of one; None without one."""
    name = one_of(row, "image", "images")
    images = row[name] if isinstance(row.get(name), list) else [row.get(name)]
    if len(images) > 1:
        raise InputError(f"{name} has {len(images)} entries: one image per question is supported")
    return text({name: images[0]}, name, required=False) if images else None


# The images that were found: the file's path to the paths that rows gave for it, in all files that
# this process read, so that two splits can't show one picture for two either.
FOUND: dict[str, set[str]] = {}


def find_image(name: str, folder) -> str:
    """The path of a row's image; a gone absolute one is looked for in the folder by its bare name.

    InputError for a URL, a relative path that leaves the folder, and what is no image.
    """
    if re.match(r"[A-Za-z][\w+.-]+:", name):
        raise InputError(f"the image {name[:80]!r} is a URL: download it and give its path")
    absolute = os.path.isabs(name) or ntpath.isabs(name)
    if not absolute and leaves_folder(name):
        raise InputError(f"the image {name!r} leaves the folder of the data")
    wanted = path = os.path.join(folder, name)  # an absolute path stays as it is
    if absolute and not os.path.isfile(path):
        moved = os.path.join(folder, ntpath.basename(name))
        path = moved if os.path.isfile(moved) else path
    check_image(path)
    FOUND.setdefault(os.path.normpath(path), set()).add(os.path.normpath(wanted))
    return path


def check_moved(file: Path, folder, examples: list[Example]):
    """Says how many images were found by their names alone; InputError where it can't be right."""
    paths = {os.path.normpath(example.image) for example in examples if example.image}
    moved = [path for path in sorted(paths) if FOUND[path] != {path}]
    for path in moved:
        if len(FOUND[path]) > 1:
            first, second = sorted(FOUND[path])[:2]
            raise InputError(
                f"{file}: for two images, {first} and {second}, there is one file, {path}; "
                "put them where their paths say, or make the paths relative to --data_dir"
            )
    if moved:
        say(f"{file}: {len(moved)} images are not where it says; found in {folder} by their names")


def own_row(path: Path, folder, row: dict, number: int) -> Example:
    """An Example from image, question, answer and, where given, facts, trace, options, task.

    Other names that are read, DyME's published lists among them: `images` (a list of one),
    `question_wo_prompt` before `question`, `problem`; `solution` is the answer, or beside an
    answer the trace, and so is `hint`; `visual_fact` the facts, `choices` the options,
    `human_or_machine` the task. Several right answers are a list. An answer written as
    "thinking \n Answer: x" is taken apart, an option's letter becomes its text.
    """
    for name in row:
        if name not in KNOWN and matters(name, row[name]):
            known = ", ".join(KNOWN)
            raise InputError(
                f"the field {name!r} is not known: rename or remove it; known: {known}"
            )
    question = text(row, "question_wo_prompt", one_of(row, "question", "problem")).strip()
    answers, thinking = read_answers(row)
    options = read_options(row)
    if options:
        answers = [choose(answer, options) or answer for answer in answers]
        if answers[0] not in options:
            raise InputError(f"the answer {answers[0]!r} is none of the options")
    image = read_path(row)
    worked = ["solution"] if filled_in(row, "answer", "answers") else []
    trace = text(row, one_of(row, "trace", "hint", *worked), required=False) or thinking
    machine = text(row, "human_or_machine", required=False)
    machine = {"0": "human", "1": "augmented"}.get(machine, "")
    return Example(
        image and find_image(image, folder),
        question,
        answers[0],
        read_facts(row.get("facts")) or object_facts(row.get("visual_fact")),
        trace=clean_trace(trace),
        task=text(row, "task", required=False) or machine,
        id=f"{path.name}/{number}",
        options=options,
        answers=answers,
    )
