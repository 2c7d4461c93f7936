"""Speed and memory, ours against the usual way: one command, one table.

    python -m tools.bench --size p700                     on one CPU thread
    python -m tools.bench --num_generations 32 --num_iterations 4 --sides grpo_step trl_step
    python -m tools.bench --size 0.5b --json out.json     on a GPU; 0.5b and 2b: published shapes
    python -m tools.bench --table out.json                the table of kept results

All sides have the same random weights, prompts, G and C, and take turns; every response has C
tokens. Seconds are a side's least, on a CPU of CPU time; memory is the peak of all tensors beyond
the loaded model; a ratio is theirs divided by ours. Left out: quality (tools/compare.py).
"""

import argparse
import gc
import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from config import Parser, least
from data.reading import written_here
from lib.checkpoint import read_json
from lib.log import run_program
from tools.sides import DEVICE, SIDES, SIZES, build_case, trl_trainer
from tools.tables import markdown

ROWS = [  # what, against what, and the names of their sides
    ("update, packed", "padded rows", "update", "update_padded"),
    ("rollout", "generate, num_return_sequences", "rollout", "generate_sequences"),
    ("GRPO step", "TRL's GRPOTrainer", "grpo_step", "trl_step"),
    ("DyME step, half of the groups skipped", "TRL's GRPOTrainer", "dyme_step", "trl_step"),
]


def bench(args: argparse.Namespace) -> dict:
    """The case in numbers, seconds (a list) and bytes of each side."""
    case, left_out = build_case(args), set()
    if len(case.groups) == 1:  # there is no half of one group
        left_out.add("dyme_step")
    if importlib.util.find_spec("trl") is None:
        print("TRL is not installed, its rows are left off; pip install trl", file=sys.stderr)
        left_out.add("trl_step")
    names = [name for name in args.sides or SIDES if name not in left_out]
    if "trl_step" in names:
        case.trainer = trl_trainer(case)
    G, C = case.lengths.values()
    result = {"size": args.size, "P": case.groups[0].prompt.input_ids.shape[1]}
    result |= {"prompts": len(case.groups), "G": G, "C": C, "num_iterations": args.num_iterations}
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE
    result |= {"dtype": str(case.model.dtype), "device": device, "torch": torch.__version__}
    result |= {"train_vision": args.train_vision, "bytes": {}, "seconds": {}}
    for name in tqdm(names, "memory", unit="side"):
        result["bytes"][name] = peak(lambda: SIDES[name](case))
    clock = time.perf_counter if DEVICE == "cuda" else time.process_time
    for name in tqdm(names * args.repeats, "seconds", unit="run"):
        start = clock()
        SIDES[name](case)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        result["seconds"].setdefault(name, []).append(clock() - start)
    return result


def peak(function: Callable[[], object]) -> int:
    """Bytes of tensors at the peak of two calls, beyond what is there before them."""
    gc.collect()  # else what others left might be freed, and counted, in here
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        function()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
        function()  # now TRL has its optimizer's states
    events = profiler.profiler.kineto_results.events()
    events = sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns())
    return int(np.cumsum([0, *(event.nbytes() for event in events)]).max())


def table(results: list[dict]) -> str:
    """One or more results as markdown."""
    lines = []
    for result in results:
        about = f"{result['P']} x {result['prompts']}, {result['G']}"
        about += f", {result['num_iterations']} updates" * (result["num_iterations"] > 1)
        about += ", tower trained" * result["train_vision"]
        for what, against, *sides in ROWS:
            if {*sides} <= {*result["seconds"]}:
                s, their_s = (min(result["seconds"][side]) for side in sides)
                mb, their_mb = (result["bytes"].get(side, math.nan) / 2**20 for side in sides)
                cells = [about, what, f"{s:.2f}", f"{mb:,.0f}", against, f"{their_s:.2f}"]
                cells += [f"{their_mb:,.0f}", f"{their_s / s:.2f}x", f"{their_mb / mb:.2f}x"]
                lines.append(["-" if cell.startswith("nan") else cell for cell in cells])
    heads = "P x prompts, G|what|s|MB|against|s|MB|time ratio|memory ratio"
    return markdown(heads.split("|"), lines)


def main(argv: list[str]) -> None:
    """The command line."""
    parser = Parser("tools.bench", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--size", choices=SIZES, default="p700", help="of the model and its image (%(default)s)")
    add("--prompts", type=least(1), help="prompts to a step; default: the size's")
    add("--num_generations", type=least(1), default=8, help="G (%(default)s)")
    add("--num_iterations", type=least(1), default=1, help="updates per rollouts (%(default)s)")
    add("--repeats", type=least(1), default=5, help="runs; a side's least counts (%(default)s)")
    add("--train_vision", action="store_true", help="the vision tower isn't frozen, on any side")
    add("--sides", nargs="*", choices=SIDES, help="what to measure; default: all")
    add("--json", metavar="FILE", help="keep all figures in this file")
    add("--table", nargs="+", metavar="FILE", help="print the rows of such files")
    args = parser.parse_args(argv)
    if args.table:
        with written_here(" ".join(args.table)):
            print(table([read_json(Path(path)) for path in args.table]))
        return
    if args.json:
        open(args.json, "a").close()  # said now, and not after all has been measured
    result = bench(args)
    print(table([result]))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    run_program(main, sys.argv[1:])
