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

from data.charts import TASKS, load_charts
from evaluate import evaluate
from lib.families import load_vlm
from lib.log import run_program
from lib.tiny import ASSETS, LOG_STEPS, SHIPPED, base_folder

CARD = """# The tiny model after its base stage

Written by `python -m tools.ship`, one thread: a model of {parameters:,} parameters \
(`lib/tiny.py`), no data from anywhere else.
{stages}, seed {seed}; torch {torch}, transformers {transformers}, {machine}.

Answering directly it is right on {right} of the first {few} questions of the test split, \
and on {share:.1f} % of all {many};
tasks: {tasks}. Asked to think it follows the format in {format:.1f} % of them.

Mean loss of the {last} steps, nats per token:

| step | loss |
| --- | --- |
{losses}
"""
FEW, MANY = 60, 600  # questions


def tasks_of(name: str) -> tuple[str, ...]:
    """What a shipped base is asked about: charts' questions, or Curr-ReFT's three tasks."""
    return TASKS if name.endswith("curr") else ("chart",)


def read(folder: Path, tasks: tuple[str, ...], size: int, direct: bool = True) -> dict:
    """evaluate's reading of a base on so many test questions."""
    examples = load_charts("test", size, tasks=tasks)
    about = {"max_completion_length": 48, "direct": direct}
    return evaluate(*load_vlm(str(folder)), examples, **about)


def ship(argv: list[str]) -> None:
    """Train, copy, measure."""
    torch.set_num_threads(1)
    for (_, seed, *more), name in SHIPPED.items():
        made, folder, tasks = base_folder(1600, seed, *more), ASSETS / name, tasks_of(name)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, folder, ignore=shutil.ignore_patterns("losses.json"))
        losses = json.loads((made / "losses.json").read_text())
        rows = [f"| {LOG_STEPS * i} | {loss:.4f} |" for i, loss in enumerate(losses, start=1)]
        stages = "1600 steps of 32 texts"
        if more[2]:
            stages += f", then {more[2]} on all tasks and question forms"
        card = CARD.format(
            parameters=sum(p.numel() for p in load_vlm(str(folder))[0].parameters()),
            stages=stages,
            seed=seed,
            torch=torch.__version__,
            transformers=version("transformers"),
            machine=platform.machine(),
            right=round(FEW * read(folder, tasks, FEW)["accuracy"]),
            few=FEW,
            share=100 * read(folder, tasks, MANY)["accuracy"],
            many=MANY,
            tasks=", ".join(tasks),
            format=100 * read(folder, tasks, MANY, direct=False)["format"],
            last="second stage's" if more[2] else "last 100",
            losses="\n".join(rows),
        )
        (folder / "README.md").write_text(card)
        print(f"{folder}: written")


if __name__ == "__main__":
    run_program(ship, sys.argv[1:])
