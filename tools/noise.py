"""Reference traces of the charts that are wrong in one way, to ask whether a result depends on it.

    python -m tools.noise names names.jsonl && python train.py --refiner off --traces names.jsonl

Half of the facts of the training traces are wrong (`--trace_noise 0.5` makes values wrong too):
"values" as there, "names" of bars in place of their values, or "arithmetic", the numbers of the
Reasoning clause alone, over true facts. The answers are right. Left out: other levels.
"""

import json
import sys

import numpy as np

from data.bars import COLOURS, corrupt, write_trace
from data.charts import load_charts
from data.example import InputError
from data.reading import write_whole
from lib.log import run_program

NOISE = 0.5  # the share of facts that are wrong
WAYS = ("values", "names", "arithmetic")


def rename(rng, stated: list) -> list:
    """Each name replaced by another one with probability NOISE; no name twice."""
    found, free = [], [name for name in COLOURS if name not in dict(stated)]
    for name, value in stated:
        wrong = free.pop(int(rng.integers(len(free))))
        found.append((wrong if rng.random() < NOISE else name, value))
    return found


def noisy_trace(example, way: str, rng) -> str:
    """An example's trace, wrong in one of the WAYS."""
    observed = concluded = list(map(tuple, example.needed))
    if way == "names":
        observed = rename(rng, observed)
    else:
        concluded = corrupt(rng, concluded, NOISE)
        observed = concluded if way == "values" else observed
    return write_trace(example.task, observed, example.answer, concluded)


def main(argv: list[str]) -> None:
    """The command line."""
    if len(argv) != 2 or argv[0] not in WAYS:
        raise InputError(f"usage: python -m tools.noise {'|'.join(WAYS)} OUT.jsonl")
    lines = []
    for index, example in enumerate(load_charts("train")):
        trace = noisy_trace(example, argv[0], np.random.default_rng([0, index]))
        lines.append(json.dumps({"id": example.id, "trace": trace}) + "\n")
    write_whole(argv[1], "".join(lines))


if __name__ == "__main__":
    run_program(main, sys.argv[1:])
