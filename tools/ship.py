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


def card(folder: Path, seed: int, second: int, losses: list[float]) -> str:
    """The README of a base: how it was made, what it answers, how the loss fell. second: steps on
    all tasks and question forms, 0 for the one that knows the charts alone.
    """
    tasks = TASKS if second else ("chart",)
    model, processor = load_vlm(str(folder))

    def read(size: int, direct: bool) -> dict:
        examples, about = load_charts("test", size, tasks=tasks), {"direct": direct}
        return evaluate(model, processor, examples, max_completion_length=48, **about)

    rows = [f"| {LOG_STEPS * i} | {loss:.4f} |\n" for i, loss in enumerate(losses, start=1)]
    stages = "1600 steps of 32 texts"
    stages += f", then {second} on all tasks and question forms" if second else ""
    made_by = f"torch {torch.__version__}, transformers {version('transformers')}"
    return f"""# The tiny model after its base stage

Written by `python -m tools.ship`, one thread: a model of \
{sum(p.numel() for p in model.parameters()):,} parameters (`lib/tiny.py`), no data from anywhere else.
{stages}, seed {seed}; {made_by}, {platform.machine()}.

Answering directly it is right on {round(60 * read(60, True)["accuracy"])} of the first 60 questions \
of the test split, and on {100 * read(600, True)["accuracy"]:.1f} % of all 600;
tasks: {", ".join(tasks)}. Asked to think it follows the format in \
{100 * read(600, False)["format"]:.1f} % of them.

Mean loss of the {"second stage's" if second else "last 100"} steps, nats per token:

| step | loss |
| --- | --- |
{"".join(rows)}"""


def ship(argv: list[str]) -> None:
    """Train, copy, measure."""
    torch.set_num_threads(1)
    for (_, seed, *more), name in SHIPPED.items():
        made, folder = base_folder(1600, seed, *more), ASSETS / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, folder, ignore=shutil.ignore_patterns("losses.json"))
        losses = json.loads((made / "losses.json").read_text())
        (folder / "README.md").write_text(card(folder, seed, more[-1], losses))
        print(f"{folder}: written")


if __name__ == "__main__":
    run_program(ship, sys.argv[1:])
