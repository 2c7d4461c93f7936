"""Benchmarks as VLMEvalKit's TSV files: MathVerse, MMBench, MMVet, MathVision, MathVista, DynaMath.

Columns: index, question, image (base64, or the index of the row that holds it) or image_path; hint,
A, B, C .. (options), answer, and what a row is about. The questions of some hold their choices, as
VLMEvalKit asks them; these want a letter. Left out: several images to a question, circular
evaluation (MMBench's: a question is right only if it is in every order of its options).
"""

import ast
import base64
import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from data.example import OPTION_LETTERS, Example, InputError, choose
from data.own import find_image, keep_image
from data.reading import parse_file, text, write_whole

SHORT = 64  # characters: a longer image is one, a shorter one names a row
csv.field_size_limit(2**27)  # of an image in base64; Python's default is 128 kB
# the column of a row's category, the first that is there: MathVista's, MMBench's, DynaMath's ..
CATEGORIES = ("task", "category", "subject", "problem_version")
PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{4,}|<")  # in a free answer, not in a mathematical one
CHOICES = ("multi_choice", "multi-choice", "multiple choice")  # of question_type or answer_type


def table_rows(file: Path) -> Iterator[tuple[str, int, dict]]:
    """(where, number, row) of a TSV, as reading.read_rows has them; cells are texts."""
    with open(file, encoding="utf-8-sig", errors="replace", newline="") as stream:
        rows = csv.DictReader(stream, delimiter="\t")
        if absent := {"index", "question"} - set(rows.fieldnames or []):
            raise InputError(f"has no column {' and '.join(sorted(absent))}; is it VLMEvalKit's?")
        for number, row in enumerate(rows, start=1):
            yield f"row {number}", number, row


def read_tsv(file: Path, folder, skip_bad_rows: bool = False) -> list[Example]:
    """The Examples of a TSV; a row without an answer (a test split's) has the answer "".

    folder: where image_path starts. An id is the file's stem and the row's index.
    """
    held, seen = {}, set()  # index: path of its image

    def unpack(row, number):
        index, image = text(row, "index"), row.pop("image", None) or ""
        if None in row or index in seen:
            raise InputError(f"index {index}: is there twice, or its row has too many cells")
        seen.add(index)
        image = one_of(image, "image")
        if len(image) > SHORT:
            try:
                content = base64.b64decode("".join(image.split()), validate=True)
            except ValueError as error:
                raise InputError(f"image: not base64 ({error})") from error
            held[index], image = keep_image(content), index
        return {**row, "image": image}

    def parse(row, number):
        named, path = row.pop("image"), text(row, "image_path", required=False)
        if named and named not in held:
            raise InputError(f"image {named!r}: is neither base64 nor the index of a row with one")
        path = path and one_of(path, "image_path")
        image = held.get(named) or find_image({"image": path}, folder, {})
        return tsv_row(row, image, f"{file.stem}/{row['index']}")

    rows = parse_file(file, unpack, skip_bad_rows, table_rows(file))
    rows = [(f"row of index {row['index']}", n, row) for n, row in enumerate(rows)]
    return parse_file(file, parse, skip_bad_rows, rows)


def one_of(value: str, name: str) -> str:
    """A cell that may be a list of one, written in Python; InputError for several."""
    if not value.startswith("["):
        return value
    items = literal_list(value)
    if len(items) != 1:
        raise InputError(f"{name} has {len(items)} entries: one image per question")
    return items[0]


def literal_list(value: str | None) -> list[str]:
    """The texts of a list written in Python, [] for anything else."""
    try:
        items = ast.literal_eval(value or "[]")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    return list(map(str, items)) if isinstance(items, list) else []


def tsv_row(row: dict, image: str | None, name: str) -> Example:
    """An Example of a row; where its question, not a column, holds choices a letter is wanted."""
    hint, question = text(row, "hint", required=False), text(row, "question")
    answer = (text(row, "answer", required=False) or "").strip()
    cells = {letter: text(row, letter, required=False) for letter in OPTION_LETTERS}
    options = [cell.strip() for cell in cells.values() if cell]
    if options and not all(list(cells.values())[: len(options)]):
        raise InputError("an option is empty and a later one isn't")
    types = [row.get("question_type"), row.get("answer_type")]
    choices, kind = literal_list(row.get("choices")), "text"
    if options:
        answer = choose(answer, options)
        if answer and answer not in options:
            raise InputError(f"the answer {answer!r} is none of the options")
    elif answer and (choices or any(name in CHOICES for name in types)):
        kind, answer = "letters", text(row, "answer_option", required=False) or answer
        answer = dict(zip(choices, OPTION_LETTERS)).get(answer, answer).strip("() .")
        if not re.fullmatch("[A-Z]", answer):
            raise InputError(f"the answer {answer!r} is no letter, and none of the choices")
    elif answer.lower() in ("yes", "no"):
        kind, answer = "decision", answer.lower()
    elif re.search(r"\d|\\[a-z]", answer) and not PROSE.search(answer):
        kind = "math"
    return Example(
        image,
        f"{hint}\n{question}".strip() if hint else question.strip(),
        answer,
        task=next((row[name] for name in CATEGORIES if row.get(name)), ""),
        kind=kind,
        id=name,
        options=options or None,
    )


def write_predictions(source: Path, out: Path, responses: dict[str, str]) -> None:
    """The TSV without its images, with responses by index, for `vlmutil eval <dataset> <out>`."""
    lines = io.StringIO()
    writer = csv.writer(lines, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
    for _, number, row in table_rows(source):
        cells = {name: cell for name, cell in row.items() if name not in ("image", None)}
        if number == 1:
            writer.writerow([*cells, "prediction"])
        if row["index"] in responses:
            writer.writerow([*cells.values(), responses[row["index"]]])
    write_whole(out, lines.getvalue())
