"""Benchmarks as VLMEvalKit's TSV files: how they are asked, and what counts as an answer to them.

What letters, numbers, yes and no can score is scored here; VLMEvalKit scores the predictions
(`vlmutil eval <dataset> <file>`). Left out: free answers, which take a judge; circular evaluation.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data.example import Example, InputError, split_marked
from data.tsv import read_tsv, write_predictions
from lib.answers import matches


def read_benchmark(source: Path, folder: Path, instruction: str | None) -> list[Example]:
    """The questions of a TSV, to be asked as the file `instruction` says; images: see read_tsv."""
    if instruction:
        try:
            instruction = Path(instruction).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise InputError(f"--instruction {instruction}: {error}") from error
    return [replace(example, instruction=instruction) for example in read_tsv(source, folder)]


def final_answer(response: str) -> str:
    """What is behind the answer marker; without one, in the last \\boxed{} or the last line."""
    marked = split_marked(response)[1]
    if marked is not None:
        return marked
    start = response.rfind("\\boxed{")
    depth = 0
    for end in range(start, len(response) if start >= 0 else start):
        depth += (response[end] == "{") - (response[end] == "}")
        if response[end] == "}" and not depth:
            return response[start + 7 : end]
    return (response.strip().splitlines() or [""])[-1].strip()


def has_metric(example: Example) -> bool:
    """Whether letters, numbers, yes and no are enough to score it: a free answer needs a judge."""
    return bool(example.answer and (example.kind != "text" or example.options))


def score_benchmark(
    source: Path, out: Path, examples: Sequence[Example], responses: list[str], tolerance: float
) -> list[dict]:
    """Write the file `out` for VLMEvalKit; {"task", "accuracy"} of each that can be scored here."""
    pairs = list(zip(examples, responses))
    indices = [example.id.removeprefix(f"{source.stem}/") for example in examples]
    write_predictions(source, out, dict(zip(indices, responses)))
    rows = [(e.task, matches(e, final_answer(r), tolerance)) for e, r in pairs if has_metric(e)]
    return [{"task": task, "accuracy": float(right)} for task, right in rows]
