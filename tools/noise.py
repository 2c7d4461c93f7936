"""Reference traces of the charts that are wrong in one way, to ask whether a result depends on it.

    python -m tools.noise names names.jsonl && python train.py --refiner off --traces names.jsonl

Half of the facts of the training traces are wrong: "names", of bars, or "arithmetic", the numbers
of the Reasoning clause alone, over true facts; for values there is train.py --trace_noise. The
answers are right. Left out: other levels.
"""

import json
import sys

import numpy as np

from data.charts import COLOURS, corrupt, load_charts, write_trace
from data.example import InputError
from data.reading import write_whole
from lib.log import run_program

NOISE = 0.5  # the share of facts that are wrong


def rename(rng, stated: list) -> list:
    """Each name replaced by another one with probability NOISE; no name twice."""
    found, free = [], [name for name in COLOURS if name not in dict(stated)]
    for name, value in stated:
        wrong = free.pop(int(rng.integers(len(free))))
        found.append((wrong if rng.random() < NOISE else name, value))
    return found


def main(argv: list[str]) -> None:
    """The command line."""
    if len(argv) != 2 or argv[0] not in ("names", "arithmetic"):
        raise InputError("usage: python -m tools.noise names|arithmetic OUT.jsonl")
    lines = ""
    for index, example in enumerate(load_charts("train")):
        rng, facts = np.random.default_rng([0, index]), list(map(tuple, example.needed))
        stated = rename(rng, facts) if argv[0] == "names" else facts
        concluded = corrupt(rng, facts, NOISE) if argv[0] == "arithmetic" else facts
        trace = write_trace(example.task, stated, example.answer, concluded)
        lines += json.dumps({"id": example.id, "trace": trace}) + "\n"
    write_whole(argv[1], lines)


if __name__ == "__main__":
    run_program(main, sys.argv[1:])
