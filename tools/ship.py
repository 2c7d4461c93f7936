"""The tiny model's two bases that come with the repository: train them, and write their cards.

    python -m tools.ship        into assets/, one thread; git diff says whether anything differs

The same code, torch and kind of CPU make the same weights, bit for bit.
"""

import json
import platform
import shutil
import sys
from importlib.metadata import version

import torch

from config import Parser
from data.charts import TASKS, load_charts
from evaluate import evaluate
from lib.families import load_vlm
from lib.log import run_program
from lib.tiny import ASSETS, LOG_STEPS, SHIPPED, base_folder

FEW, MANY = 60, 600  # questions to a shipped base, of the tasks that it was taught:
ASKED = {name: [t for t in tasks if t in TASKS] for (*_, tasks, _), name in SHIPPED.items()}


def read(name: str, size: int, direct: bool = True) -> dict:
    """evaluate's reading of a shipped base on so many test questions."""
    model, processor = load_vlm(str(ASSETS / name))
    examples = load_charts("test", size, tasks=ASKED[name])
    return evaluate(model, processor, examples, max_completion_length=48, direct=direct)


def write_card(name: str, stages: str, losses: list[float]) -> None:
    """README.md of a base's folder: how it was made, and what it can do."""
    right = round(FEW * read(name, FEW)["accuracy"])
    share, form = read(name, MANY)["accuracy"], read(name, MANY, direct=False)["format"]
    card = f"""# The tiny model after its base stage

Written by `python -m tools.ship`, one thread, no data from anywhere else: {stages};
torch {torch.__version__}, transformers {version("transformers")}, {platform.machine()}.

Answering directly it is right on {right} of the first {FEW} questions of the test split, and on
{100 * share:.1f} % of all {MANY}; tasks: {", ".join(ASKED[name])}. Asked to think it follows the
format in {100 * form:.1f} % of them.

Mean loss of every {LOG_STEPS} steps of the last stage, nats per token:
{", ".join(f"{loss:.4f}" for loss in losses)}
"""
    (ASSETS / name / "README.md").write_text(card)


def main(argv: list[str]) -> None:
    """Train, copy, measure."""
    Parser("tools.ship", description=__doc__.partition("\n")[0]).parse_args(argv)
    torch.set_num_threads(1)
    for (_, seed, *more), name in SHIPPED.items():
        made = base_folder(1600, seed, *more)
        shutil.rmtree(ASSETS / name, ignore_errors=True)
        shutil.copytree(made, ASSETS / name, ignore=shutil.ignore_patterns("losses.json"))
        then = f", then {more[2]} on all tasks and question forms" if more[2] else ""
        stages = f"1600 steps of 32 texts{then}, seed {seed}"
        write_card(name, stages, json.loads((made / "losses.json").read_text()))


if __name__ == "__main__":
    run_program(main, sys.argv[1:])
