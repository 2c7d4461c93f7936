"""Benchmarks as VLMEvalKit's TSV files: MathVerse, MMBench, MMVet, MathVision, MathVista, DynaMath.

Columns: index, question, image (base64, or the index of the row that holds it) or image_path; hint,
A, B, C .. (options), answer, and what a row is about. A question that holds its choices wants a
letter. Left out: several images to a question, circular evaluation (MMBench's).
"""

import base64
import csv
import io
import re
from pathlib import Path

from data.example import OPTION_LETTERS, Example, InputError, NoSplit, choose, split_marked
from data.own import find_image, keep_image, say_moved
from data.reading import parse_file, read_rows, text, texts, write_whole

# the column of a row's category, the first that is there: MathVista's, MMBench's, DynaMath's ..
CATEGORIES = ("task", "category", "subject", "problem_version")
PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{4,}|<")  # in a free answer, not in a mathematical one
CHOICES = {"multi_choice", "multi-choice", "multiple choice"}  # of question_type or answer_type
INSIDE = r"(?:[^{}]|\{%s\})*"  # what is between braces, here with braces in it 3 deep
BOXED = re.compile(r"\\boxed\{(%s)\}" % (INSIDE % INSIDE % INSIDE % "[^{}]*"))


def read_tsv(file: Path, folder, skip_bad_rows: bool = False) -> list[Example]:
    """The Examples of a TSV, whose image_path starts from `folder`; an unknown answer is ""."""
    rows = parse_file(file, lambda row, number: (number, row))
    images = {row.get("index"): row.get("image", "") for _, row in rows}
    seen, moved = set(), {}

    def parse(row, number):
        index, image = text(row, "index"), row.get("image", "")
        if None in row or index in seen:
            raise InputError(f"index {index}: is there twice, or its row has too many cells")
        seen.add(index)
        try:
            content = "".join(images.get(image, image).split()).strip("[]'\"")  # a list of one
            content = base64.b64decode(content, validate=True)
            if image in images and not content:
                raise ValueError("that row has none")
        except ValueError as error:
            told = f"neither one image in base64 nor the index of a row with one ({error})"
            raise InputError(f"image: {image[:64]!r} is {told}") from error
        named = texts(row, "image_path")
        if named and named[0].startswith("["):  # a list, as Python writes it
            named = re.findall(r"['\"]([^'\"]+)['\"]", named[0])
        path = keep_image(content) if content else find_image(named, folder, moved)
        return tsv_row(row, path, f"{file.stem}/{index}")

    examples = parse_file(file, parse, skip_bad_rows, rows)
    say_moved(moved, file, folder)
    if not examples:
        raise NoSplit(f"{file}: has no rows that can be read")
    return examples


def tsv_row(row: dict, image: str | None, name: str) -> Example:
    """An Example of a row; where its question, not a column, holds choices a letter is wanted."""
    question = f"{text(row, 'hint', '')}\n{text(row, 'question')}".strip()
    cells = [text(row, letter, "").strip() for letter in OPTION_LETTERS]
    options = list(filter(None, cells))
    if options != cells[: len(options)]:
        raise InputError("an option is empty and a later one isn't")
    chosen = row.get("choices", "[]") != "[]"
    chosen = chosen or CHOICES & {row.get("question_type"), row.get("answer_type")}
    answer, kind = text(row, "answer", "").strip(), "text"
    if options:
        answer = choose(answer, options)
        if answer and answer not in options:
            raise InputError(f"the answer {answer!r} is none of the options")
    elif answer and chosen:
        kind, answer = "letters", row.get("answer_option", answer).strip("() .")
        if not re.fullmatch("[A-Z]", answer):
            raise InputError(f"the answer {answer!r} is no letter")
    elif answer.lower() in ("yes", "no"):
        kind, answer = "decision", answer.lower()
    elif re.search(r"\d|\\[a-z]", answer) and not PROSE.search(answer):
        kind = "math"
    task = next((row[name] for name in CATEGORIES if name in row), "")
    return Example(image, question, answer, task=task, kind=kind, id=name, options=options or None)


def final_answer(response: str) -> str:
    """What is behind the answer marker; without one, in the last \\boxed{} or the last line."""
    marked = split_marked(response)[1]
    found = BOXED.findall(response) or response.strip().splitlines() or [""]
    return found[-1].strip() if marked is None else marked


def write_predictions(source: Path, out: Path, responses: dict[str, str]) -> None:
    """The TSV without its images, with responses by id, for `vlmutil eval <dataset> <out>`."""
    rows = [(f"{source.stem}/{row['index']}", row) for _, row in read_rows(source)]
    rows = [{**row, "prediction": responses[name]} for name, row in rows if name in responses]
    names = [name for name in rows[0] if name not in ("image", None)]
    form = {"delimiter": "\t", "quoting": csv.QUOTE_ALL, "lineterminator": "\n"}
    writer = csv.DictWriter(lines := io.StringIO(), names, extrasaction="ignore", **form)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(out, lines.getvalue())
