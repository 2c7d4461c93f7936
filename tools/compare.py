"""
Comparing methods: the same base, the same prompts, the same traces, several seeds; one table.

    python evaluate.py --compare sft grpo two_stage dyme --seeds 0 1 2
    python evaluate.py --table results/compare.json

Each run is `train.py` in a process of its own, so that what is compared is what a user runs. A run
that is finished is not run again. What the table is printed from is kept in results/<name>.json.
Left out: the tables themselves (tables.py).
"""

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

import torch
import transformers
from tqdm import tqdm

from data import InputError
from config import parse
from run import load_model
from tools.tables import forms_table, paired, table

# Every row: train.py's flags. Without "refined", all methods memorise the data's own (noisy)
# traces.
ROWS = {
    "sft": ["--method", "sft", "--refiner", "off"],
    "grpo": ["--method", "grpo", "--refiner", "off"],
    "two_stage": ["--method", "two_stage", "--refiner", "off"],
    "dyme": ["--method", "dyme", "--refiner", "off"],
    "sft_refined": ["--method", "sft"],
    "two_stage_refined": ["--method", "two_stage"],
    "dyme_refined": ["--method", "dyme"],
    "dyme_one": ["--method", "dyme", "--refiner", "off", "--memorize_weight", "one"],
    "dyme_cosine": ["--method", "dyme", "--refiner", "off", "--memorize_weight", "cosine"],
    "curr_reft": ["--method", "curr_reft"],  # on a base of its own, see stages.py
    "curr_reft_no_curriculum": ["--method", "curr_reft", "--stages", "open", "reject"],
    "curr_reft_no_reject": ["--method", "curr_reft", "--stages", "judge", "choice", "open"],
}
LONG = "sft_long"  # SFT for as many seconds as DyME took
BESIDE = [LONG, "sft_refined", "dyme_refined"]


def run(row: str, flags: list[str], folder: Path) -> dict:
    """
    One training run, or its result where it lies finished in `folder`. InputError with its last
    line if it fails.
    """
    if not (folder / "result.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        train = str(Path(__file__).parent.parent / "train.py")
        command = [sys.executable, train, *flags, "--output_dir", str(folder), "--overwrite"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with open(folder / "log.txt", "w") as log:
            code = subprocess.run(command, stdout=log, stderr=log, env=environment).returncode
        if code != 0:
            last = (folder / "log.txt").read_text().strip().splitlines()[-1:]
            raise InputError(
                f"{row}: train.py ended with code {code}: {' '.join(last)} "
                f"(all of it in {folder}/log.txt)"
            )
    return read_record(row, folder)


def read_record(row: str, folder: Path) -> dict:
    """What the tables need of a finished run."""
    result = json.loads((folder / "result.json").read_text())
    with open(folder / "metrics.jsonl") as file:
        lines = [json.loads(line) for line in file]
    sampled = [line for line in lines if "reward" in line and line.get("stage") != "reject"]
    accuracies = [reading["accuracy"] for reading in result["val"]]
    falls = [max(accuracies[: i + 1]) - a for i, a in enumerate(accuracies)]
    told = ("seed", "base_seed", "trace_noise", "base_format_rate", "base_tasks")
    return {
        "row": row,
        **{name: result["config"][name] for name in told},
        "steps": result["config"]["max_steps"],
        "seconds": result["seconds"],
        "share_equal": mean(line["share_equal"] for line in sampled) if sampled else None,
        "largest_fall": max(falls, default=None),
        "val": accuracies,
        "base": result["base"],
        "final": result["final"],
        "stages": result.get("stages"),
    }


def compare(args) -> list[dict]:
    """
    All rows x base seeds x noises x seeds, `jobs` at a time; SFT at DyME's wall-clock time last,
    since it needs it.
    """
    jobs = []
    for base_seed in args.base_seeds:
        common = ["--base_seed", str(base_seed), "--num_threads", "1", *args.flags]
        for row in args.rows:  # the base stage, once
            load_model(parse([*common, *ROWS.get(row, [])]), torch.device("cpu"))
        read_base = []  # each base is read by its first run alone
        for noise, seed in itertools.product(args.noises, args.seeds):
            flags = [*common, "--trace_noise", str(noise), "--seed", str(seed)]
            name = f"base{base_seed}-noise{noise:g}-seed{seed}"
            for row in args.rows:
                if row != LONG:
                    folder = Path(args.output_dir) / f"{name}-{row}"
                    jobs.append((row, [*flags, *read_base, *ROWS[row]], folder))
                    read_base = ["--no-eval_base"]
    records = run_all(jobs, args.jobs)
    if LONG in args.rows:
        steps = ["--max_steps", str(long_steps(records))]
        long_jobs = []
        for row, flags, folder in jobs:
            if row == "sft":
                long_folder = folder.with_name(folder.name.replace("-sft", f"-{LONG}"))
                long_jobs.append((LONG, [*flags, *steps], long_folder))
        records += run_all(long_jobs, args.jobs)
    return records


def run_all(jobs: list, workers: int) -> list[dict]:
    """The jobs (row, flags, folder) in `workers` processes at a time, with a progress bar."""
    with ThreadPoolExecutor(workers) as pool:
        return list(
            tqdm(pool.map(lambda job: run(*job), jobs), total=len(jobs), desc="runs", unit="run")
        )


def long_steps(records: list[dict]) -> int:
    """How many steps SFT makes in the seconds of a DyME run."""
    pace = {}  # seconds a step
    for row in ("sft", "dyme"):
        pace[row] = mean(r["seconds"] / r["steps"] for r in records if r["row"] == row)
    steps = mean(r["steps"] for r in records if r["row"] == "dyme")
    return max(1, round(steps * pace["dyme"] / pace["sft"]))


def main(argv: list[str]) -> None:
    """The command line of `python evaluate.py`."""
    parser = argparse.ArgumentParser(
        prog="evaluate.py", description="Compare methods, or print a table of kept results."
    )
    parser.add_argument(
        "--compare", nargs="+", metavar="ROW", help=f"rows: {', '.join([*ROWS, LONG])}"
    )
    parser.add_argument(
        "--only", action="store_true", help=f"without the rows beside it ({', '.join(BESIDE)})"
    )
    parser.add_argument(
        "--table", nargs="+", metavar="JSON", help="print the table of kept results"
    )
    parser.add_argument(
        "--png", metavar="FILE", help="with a table of several noises: a picture; needs matplotlib"
    )
    parser.add_argument("--brief", action="store_true", help="a table with fewer columns")
    parser.add_argument(
        "--paired", nargs=2, metavar=("A", "B"), help="with a table: paired differences of two rows"
    )
    parser.add_argument(
        "--pass_at_k",
        nargs="+",
        metavar="MODEL",
        help="pass@k of models or folders, in Curr-ReFT's three forms",
    )
    parser.add_argument(
        "--samples", type=int, default=64, help="n of pass@k, responses to a question (%(default)s)"
    )
    parser.add_argument("--size", type=int, default=48, help="questions of pass@k (%(default)s)")
    parser.add_argument("--split", default="test", help="of pass@k (%(default)s)")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], help="fine-tuning seeds (%(default)s)"
    )
    parser.add_argument(
        "--base_seeds",
        nargs="+",
        type=int,
        default=[0],
        help="seeds of the base model (%(default)s)",
    )
    parser.add_argument(
        "--noises", nargs="+", type=float, default=[0.5], help="trace noises (%(default)s)"
    )
    parser.add_argument(
        "--name", help="results/<name>.json (compare; curr_reft for rows of Curr-ReFT alone)"
    )
    parser.add_argument(
        "--output_dir", default="out/compare", help="where the runs go (%(default)s)"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count(),
        help="runs at a time, one thread each (%(default)s)",
    )
    parser.add_argument(
        "flags", nargs="*", help="after --: further flags of train.py, for every run"
    )
    args = parser.parse_args(argv)
    try:
        if args.pass_at_k:
            from stages import pass_at_k_table  # here, since it imports evaluate.py

            config = parse(["--method", "curr_reft", *args.flags])
            print(pass_at_k_table(config, args.pass_at_k, args.split, args.size, args.samples))
            return
        if args.table:
            records = [
                record
                for path in args.table
                for record in json.loads(Path(path).read_text())["records"]
            ]
        elif args.compare:
            alone = all(row.startswith("curr_reft") for row in args.compare)
            args.name = args.name or ("curr_reft" if alone else "compare")
            beside = [] if alone or args.only else BESIDE
            args.rows = list(dict.fromkeys([*args.compare, *beside]))
            unknown = [row for row in args.rows if row not in ROWS and row != LONG]
            if unknown:
                raise InputError(
                    f"--compare {unknown[0]}: unknown row; there are {', '.join([*ROWS, LONG])}"
                )
            if LONG in args.rows and not {"sft", "dyme"} <= set(args.rows):
                args.rows.remove(LONG)
            records = compare(args)
            keep(args, records)
        else:
            parser.error("give --compare, --table or --pass_at_k")
        if args.png:
            from tools.pictures import save_noise  # here, since few look at it

            save_noise(records, args.png)
    except (InputError, OSError, json.JSONDecodeError, KeyError) as error:
        sys.exit(f"error: {error}")
    print(table(records, args.brief))
    if any(record.get("stages") for record in records):
        print(f"\n{forms_table(records)}")
    if args.paired:
        print()
        print(paired(records, *args.paired))


def keep(args, records: list[dict]) -> None:
    """results/<name>.json: the records, the command, and what it ran on."""
    content = {
        "command": "python evaluate.py " + " ".join(sys.argv[1:]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {args.jobs} runs at a time",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "records": records,
    }
    Path("results").mkdir(exist_ok=True)
    Path(f"results/{args.name}.json").write_text(json.dumps(content, indent=1))
