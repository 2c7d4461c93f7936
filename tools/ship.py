"""The tiny model's two bases that come with the repository: train them, and write their cards.

    python -m tools.ship        into assets/, one thread; git diff says whether anything differs

The same code, torch and kind of CPU make the same weights, bit for bit.
"""

import json
import platform
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from config import Parser
from data.charts import TASKS, load_charts
from evaluate import evaluate
from lib.families import load_vlm, parameter_counts
from lib.log import run_program
from lib.tiny import ASSETS, LOG_STEPS, SHIPPED, base_folder

FEW, MANY = 60, 600  # questions


def tasks_of(name: str) -> tuple[str, ...]:
    """What a shipped base is asked about: charts' questions, or Curr-ReFT's three tasks."""
    return TASKS if name.endswith("curr") else ("chart",)


def read(folder: Path, tasks: tuple[str, ...], size: int, direct: bool = True) -> dict:
    """evaluate's reading of a base on so many test questions."""
    examples = load_charts("test", size, tasks=tasks)
    about = {"max_completion_length": 48, "direct": direct}
    return evaluate(*load_vlm(str(folder)), examples, **about)


def write_card(folder: Path, tasks: tuple[str, ...], stages: str, losses: list[float]) -> None:
    """README.md of a base's folder: how it was made, and what it can do."""
    parameters = sum(parameter_counts(load_vlm(str(folder))[0]))
    right = round(FEW * read(folder, tasks, FEW)["accuracy"])
    share, form = read(folder, tasks, MANY), read(folder, tasks, MANY, direct=False)
    rows = [f"| {LOG_STEPS * i} | {loss:.4f} |" for i, loss in enumerate(losses, start=1)]
    card = f"""# The tiny model after its base stage

Written by `python -m tools.ship`, one thread: a model of {parameters:,} parameters \
(`lib/tiny.py`), no data from anywhere else.
{stages}; torch {torch.__version__}, transformers {version("transformers")}, {platform.machine()}.

Answering directly it is right on {right} of the first {FEW} questions of the test split, \
and on {100 * share["accuracy"]:.1f} % of all {MANY};
tasks: {", ".join(tasks)}. Asked to think it follows the format in {100 * form["format"]:.1f} % \
of them.

Mean loss of every {LOG_STEPS} steps of the last stage, nats per token:

| step | loss |
| --- | --- |
"""
    (folder / "README.md").write_text(card + "\n".join(rows) + "\n")
    print(f"{folder}: written")


def ship(argv: list[str]) -> None:
    """Train, copy, measure."""
    Parser("tools.ship", description=__doc__.partition("\n")[0]).parse_args(argv)
    torch.set_num_threads(1)
    for (_, seed, *more), name in SHIPPED.items():
        made, folder = base_folder(1600, seed, *more), ASSETS / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, folder, ignore=shutil.ignore_patterns("losses.json"))
        then = f", then {more[2]} on all tasks and question forms" if more[2] else ""
        stages = f"1600 steps of 32 texts{then}, seed {seed}"
        write_card(folder, tasks_of(name), stages, json.loads((made / "losses.json").read_text()))


if __name__ == "__main__":
    run_program(ship, sys.argv[1:])
