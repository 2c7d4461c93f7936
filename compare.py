"""
Comparing methods: the same base, the same prompts, the same traces, several seeds; one table.

    python evaluate.py --compare sft grpo two_stage dyme --seeds 0 1 2
    python evaluate.py --table results/compare.json

Each run is `train.py` in a process of its own, so that what is compared is what a user runs. A run
that is finished is not run again. What the table is printed from is kept in results/<name>.json.
Left out: choosing the better of two settings for you; the tables give means, spreads and paired
intervals.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

from data import InputError
from knobs import parse
from prepare import load_model

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
# Student's t, two-sided 95 %, by degrees of freedom; beyond the table the normal's 1.96 is a
# little narrow and used
STUDENT = {
    1: 12.71,
    2: 4.30,
    3: 3.18,
    4: 2.78,
    5: 2.57,
    6: 2.45,
    7: 2.36,
    8: 2.31,
    9: 2.26,
    10: 2.23,
    11: 2.20,
    12: 2.18,
    13: 2.16,
    14: 2.14,
    15: 2.13,
    19: 2.09,
    24: 2.06,
    29: 2.05,
}


def run(row: str, flags: list[str], folder: Path) -> dict:
    """
    One training run, or its result where it lies finished in `folder`. InputError with its last
    line if it fails.
    """
    if not (folder / "result.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            str(Path(__file__).with_name("train.py")),
            *flags,
            "--output_dir",
            str(folder),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with open(folder / "log.txt", "w") as log:
            code = subprocess.run(
                [*command, "--overwrite"], stdout=log, stderr=log, env=environment
            ).returncode
        if code != 0:
            last = (folder / "log.txt").read_text().strip().splitlines()[-1:]
            raise InputError(
                f"{row}: train.py ended with code {code}: {' '.join(last)} "
                f"(all of it in {folder}/log.txt)"
            )
    result = json.loads((folder / "result.json").read_text())
    with open(folder / "metrics.jsonl") as lines:
        lines = [line for line in map(json.loads, lines) if line.get("stage") != "reject"]
        equal = [
            line["share_equal"] for line in lines if "reward" in line
        ]  # of steps with rollouts
    accuracies = [reading["accuracy"] for reading in result["val"]]
    return {
        "row": row,
        "seed": result["config"]["seed"],
        "base_seed": result["config"]["base_seed"],
        "trace_noise": result["config"]["trace_noise"],
        "base_format_rate": result["config"]["base_format_rate"],
        "base_tasks": result["config"]["base_tasks"],
        "steps": result["config"]["max_steps"],
        "seconds": result["seconds"],
        "share_equal": sum(equal) / len(equal) if equal else None,
        "largest_fall": max(
            (max(accuracies[: i + 1]) - a for i, a in enumerate(accuracies)), default=None
        ),
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
        for row in args.rows:
            load_model(
                parse([*common, *ROWS.get(row, [])]), torch.device("cpu")
            )  # the base stage, once
        for noise in args.noises:
            for seed in args.seeds:
                flags = [*common, "--trace_noise", str(noise), "--seed", str(seed)]
                name = f"base{base_seed}-noise{noise:g}-seed{seed}"
                jobs += [
                    (row, [*flags, *ROWS[row]], Path(args.output_dir) / f"{name}-{row}")
                    for row in args.rows
                    if row != LONG
                ]
    with_base = {
        flags[1]: folder for _, flags, folder in reversed(jobs)
    }  # each base is read once, by its first run
    jobs = [
        (row, flags if with_base[flags[1]] == folder else [*flags, "--no-eval_base"], folder)
        for row, flags, folder in jobs
    ]
    records = run_all(jobs, args.jobs)
    if LONG in args.rows:
        steps = long_steps(records)
        long_jobs = [
            (
                LONG,
                [*flags, "--max_steps", str(steps)],
                folder.with_name(folder.name.replace("-sft", f"-{LONG}")),
            )
            for row, flags, folder in jobs
            if row == "sft"
        ]
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
    mean = {
        row: average([r["seconds"] / r["steps"] for r in records if r["row"] == row])
        for row in ("sft", "dyme")
    }
    steps = average([r["steps"] for r in records if r["row"] == "dyme"])
    return max(1, round(steps * mean["dyme"] / mean["sft"]))


# -------------------------------------------------------------------------------------------------
# tables


def average(values: list[float]) -> float:
    return sum(values) / len(values)


def deviation(values: list[float]) -> float:
    """Sample standard deviation; 0 of a single value."""
    centre = average(values)
    return math.sqrt(sum((v - centre) ** 2 for v in values) / max(len(values) - 1, 1))


def cell(values: list, digits: int = 1, scale: float = 100) -> str:
    """mean ± standard deviation over runs, in percent."""
    values = [scale * v for v in values if v is not None]
    if not values:
        return ""
    spread = f" ± {deviation(values):.{digits}f}" if len(values) > 1 else ""
    return f"{average(values):.{digits}f}{spread}"


def table(records: list[dict]) -> str:
    """
    Markdown: a line per row and setting, a column per reading; mean ± standard deviation over the
    runs, in percent.
    """
    splits = list(records[0]["final"])
    columns = ["row", "noise", "runs"]
    for split in splits:
        columns += [f"{split}", f"{split}, T = 1"]
    columns += [
        "direct",
        "stated facts true, T = 1",
        "right and grounded",
        "groups of equal reward",
        "largest fall",
        "s",
    ]
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]

    def line(row, noise, runs, readings, equal, falls, seconds):
        cells = [row, noise, str(runs)]
        for split in splits:
            cells += [
                cell([r[split]["greedy"]["accuracy"] for r in readings]),
                cell([r[split]["sampled"]["accuracy"] for r in readings]),
            ]
        main = splits[0]
        cells.append(cell([r[main]["direct"]["accuracy"] for r in readings]))
        cells.append(cell([r[main]["sampled"]["fact_precision"] for r in readings]))
        cells.append(cell([r[main]["greedy"]["grounded"] for r in readings]))
        cells += [cell(equal), cell(falls), cell(seconds, 0, 1)]
        lines.append("| " + " | ".join(cells) + " |")

    bases = {}  # by what the base stage taught, then by its seed
    for r in records:
        if r["base"]:
            about = f"format rate {r['base_format_rate']:g}" + (
                ", all tasks and forms" if len(r.get("base_tasks", [])) > 1 else ""
            )
            bases.setdefault(about, {})[r["base_seed"]] = r["base"]
    for about, readings in bases.items():
        line(
            f"base, before any training ({about})",
            "",
            len(readings),
            list(readings.values()),
            [],
            [],
            [],
        )
    for key in sorted(
        {(r["trace_noise"], r["row"]) for r in records}, key=lambda k: (k[0], order(k[1]))
    ):
        runs = [r for r in records if (r["trace_noise"], r["row"]) == key]
        line(
            key[1],
            f"{key[0]:g}",
            len(runs),
            [r["final"] for r in runs],
            [r["share_equal"] for r in runs],
            [r["largest_fall"] for r in runs],
            [r["seconds"] for r in runs],
        )
    return "\n".join(lines)


def order(row: str) -> int:
    return [*ROWS, LONG].index(row) if row in [*ROWS, LONG] else len(ROWS) + 1


def paired(records: list[dict], a: str, b: str) -> str:
    """
    a - b on the same base, noise and seed: mean difference in points with Student's 95 % interval,
    per noise and split.
    """
    lines = [
        f"| noise | split | {a} - {b}, points [95 %] | pairs | {a} better in |",
        "| --- | --- | --- | --- | --- |",
    ]
    by_key = {(r["row"], r["trace_noise"], r["base_seed"], r["seed"]): r for r in records}
    for noise in sorted({r["trace_noise"] for r in records}):
        for split in records[0]["final"]:
            for reading in ("greedy", "sampled"):
                pairs = [
                    100
                    * (
                        by_key[(a, *key[1:])]["final"][split][reading]["accuracy"]
                        - r["final"][split][reading]["accuracy"]
                    )
                    for key, r in by_key.items()
                    if key[0] == b and key[1] == noise and (a, *key[1:]) in by_key
                ]
                if len(pairs) < 2:
                    continue
                half = STUDENT.get(len(pairs) - 1, 1.96) * deviation(pairs) / math.sqrt(len(pairs))
                centre = average(pairs)
                name = split if reading == "greedy" else f"{split}, T = 1"
                wins = sum(p > 0 for p in pairs)
                found = f"{centre:+.1f} [{centre - half:+.1f}, {centre + half:+.1f}]"
                lines.append(f"| {noise:g} | {name} | {found} | {len(pairs)} | {wins} |")
    return "\n".join(lines)


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
        "--paired",
        nargs=2,
        metavar=("A", "B"),
        help="with a table: paired differences of two rows",
    )
    parser.add_argument(
        "--pass_at_k",
        nargs="+",
        metavar="MODEL",
        help="pass@k of models or folders, in Curr-ReFT's three forms",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=64,
        help="n of pass@k, responses to a question (%(default)s)",
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
    parser.add_argument("--name", default="compare", help="results/<name>.json (%(default)s)")
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
            from knobs import parse
            from stages import pass_at_k_table  # here, since they import evaluate.py

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
            alone = args.only or all(row.startswith("curr_reft") for row in args.compare)
            args.rows = list(dict.fromkeys([*args.compare, *([] if alone else BESIDE)]))
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
    except (InputError, OSError, json.JSONDecodeError, KeyError) as error:
        sys.exit(f"error: {error}")
    print(table(records))
    if any(record.get("stages") for record in records):
        from stages import forms_table

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
