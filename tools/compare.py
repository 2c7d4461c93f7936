"""Comparing methods: the same base, the same prompts, the same traces, several seeds; one table.

    python -m tools.compare sft grpo two_stage dyme --seeds 0 1 2 --out results/mine
    python -m tools.compare --table results/mine [--brief] [--paired dyme two_stage sft]

Each run is `train.py` in a process of its own, so that what is compared is what a user runs. A run
that is finished is not run again, as long as its flags and the code are the same. --out keeps each
run's result as a file as soon as it has ended. Left out: choosing the better of two settings.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import accumulate, product
from operator import sub
from pathlib import Path
from statistics import mean

from tqdm import tqdm

from config import METHODS, Config, Parser, least
from data.example import InputError
from data.reading import read_lines, written_here
from lib.checkpoint import read_json
from lib.log import run_program
from tools.tables import LOOKS, PRICE, forms_table, main_columns, paired, table

ROOT = Path(__file__).parent.parent
# Beside these each of train.py's methods is a row, memorizing the data's own (noisy) traces, or
# with "_refined" behind it refined ones; with settings: "two_stage:sft_share=0.25:beta=0.01"
ROWS = {  # name: the program and its flags
    "curr_reft": ["curr_reft.py"],
    "curr_reft_no_curriculum": ["curr_reft.py", "--stages", "open", "reject"],
    "curr_reft_no_reject": ["curr_reft.py", "--stages", "judge", "choice", "open"],
}


def row_flags(row: str) -> list[str]:
    """The program and flags of a row, those that not every method uses behind a "--". InputError
    for an unknown one.
    """
    name, *settings = row.split(":")
    method = name.removesuffix("_refined")
    if name not in ROWS and method not in METHODS:
        raise InputError(f"{row}: unknown row; there are {', '.join([*ROWS, *METHODS])}")
    flags, arguments = [*ROWS.get(name, ["train.py", "--method", method])], []
    for setting in settings:
        key, _, value = setting.partition("=")
        if key in Config.__dataclass_fields__:
            flags += [f"--{key}", value]
        else:
            arguments.append(setting)
    flags += ["--method_args", *arguments] if arguments else []
    return [*flags, "--", *(["--refiner", "off"] if name in METHODS else [])]


# ---- runs ---------------------------------------------------------------------------------------


def compare(args: argparse.Namespace) -> list[dict]:
    """The records of all rows x base seeds x noises x seeds, `jobs` runs at a time."""
    firsts, others = {}, []  # the first run on a base makes it and reads it, before the others
    for base_seed, noise, seed, row in product(args.base_seeds, args.noises, args.seeds, args.rows):
        flags = [*row_flags(row), *args.flags, "--base_seed", str(base_seed)]
        flags += ["--trace_noise", f"{noise:g}", "--seed", str(seed)]
        name = f"base{base_seed}-noise{noise:g}-seed{seed}-{row}"
        folder = Path(args.output_dir, name.replace(":", "-"))  # not every disk takes a colon
        job = (row, flags, folder)
        if firsts.setdefault((base_seed, flags[0]), job) is not job:
            others.append((row, [*flags, "--no-eval_base"], folder))
    records = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for what, jobs in (("bases", firsts.values()), ("runs", others)):
            found = pool.map(lambda job: run(*job, args.out), jobs)
            records += tqdm(found, what, len(jobs), unit="run")
    return sorted(records, key=lambda record: args.rows.index(record["row"]))


def run(row: str, flags: list[str], folder: Path, out: str | None = None) -> dict:
    """The record of one training run, or of the finished one that the folder has; written to a file
    of its own in `out`, where one is asked for, with what it needs to be run again.

    InputError, with the last line that it said, if it fails, or if the folder's run had other flags
    or another code.
    """
    told = " ".join(flags).removesuffix(" --no-eval_base")
    asked = [*told.split(" --"), f"code {code_version()}"]
    note, log = folder / "asked.json", folder / "log.txt"
    if not (folder / "result.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"asked": asked, "commit": commit()}))
        command = [sys.executable, str(ROOT / flags[0]), *flags[1:]]
        command += ["--output_dir", str(folder), "--overwrite"]
        with open(log, "w") as file:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            code = subprocess.run(command, stdout=file, stderr=file, env=environment).returncode
        if code != 0:
            last = " ".join(log.read_text().strip().splitlines()[-1:])
            raise InputError(f"{row}: {flags[0]} ended with code {code}: {last[:300]} (see {log})")
    with written_here(note):
        noted = read_json(note)
        was, now = set(noted["asked"]) - set(asked), set(asked) - set(noted["asked"])
    if was or now:
        differ = f"holds a run of {', '.join(sorted(was))}; asked for is {', '.join(sorted(now))}"
        raise InputError(f"{folder}: {differ}; give another --output_dir, or remove the folder")
    record = read_record(row, folder)
    if out:
        kept = {
            "command": told,
            "commit": noted["commit"],
            "machine": f"{platform.machine()}, one thread",
            "versions": {name: version(name) for name in ("torch", "transformers")},
            "records": [record],
        }
        rounded = json.loads(json.dumps(kept), parse_float=lambda text: round(float(text), 5))
        Path(out, f"{folder.name}.json").write_text(json.dumps(rounded) + "\n")
    return record


def commit() -> str:
    """The checkout's commit; with a plus where tracked files differ from it."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=7", "--dirty=+"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"


def code_version() -> str:
    """A hash of all that a run can import."""
    paths = [path for at in (".", "data", "lib") for path in sorted((ROOT / at).glob("*.py"))]
    texts = [path.read_bytes() for path in paths if not path.name.startswith("test_")]
    return hashlib.sha256(b"".join(texts)).hexdigest()[:12]


def read_record(row: str, folder: Path) -> dict:
    """What the tables need of a finished run."""
    result = read_json(folder / "result.json")
    lines = read_lines(folder / "metrics.jsonl", (), cut=False)
    sampled = [line for line in lines if "reward" in line and line.get("stage") != "reject"]
    accuracies = [reading["accuracy"] for reading in result["val"]]
    told = ("seed", "base_seed", "trace_noise", "base_format_rate", "base_tasks")
    return {
        "row": row,
        **{name: result["config"][name] for name in told if name in result["config"]},
        "steps": result["config"]["max_steps"],
        "cpu_seconds": sum(line.get("seconds_cpu", 0.0) for line in lines),
        "share_equal": mean(line["frac_reward_zero_std"] for line in sampled) if sampled else None,
        # of accuracy below its running best
        "largest_fall": max(map(sub, accumulate(accuracies, max), accuracies), default=None),
        "val": accuracies,
        "on_the_way": [on_the_way(reading) for reading in result["val"]],
        **{name: result.get(name) for name in ("seconds", "base", "final", "stages")},
    }


def on_the_way(reading: dict) -> dict:
    """Beside the accuracy of a reading of val: its step, and the accuracies with other images."""
    seen = {image: reading[image]["accuracy"] for image in ("other", "blank") if image in reading}
    return {"step": reading.get("step"), **seen}


# ---- the command line ---------------------------------------------------------------------------


def read_records(paths: list[str]) -> list[dict]:
    """The records of kept results, each run once. InputError for a file that isn't one, or where
    two files say different things of one run.
    """
    runs, files = {}, []
    for path in map(Path, paths):
        files += sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{paths[0]}: has no results of --out")
    for path in files:
        with written_here(path):
            records = read_json(path)["records"]
            table(records, main_columns(records))
        for record in records:
            names = ("row", "trace_noise", "base_seed", "base_format_rate", "steps", "seed")
            about = ", ".join(f"{name} {record.get(name)}" for name in names)
            if runs.setdefault(about, record)["final"] != record["final"]:
                raise InputError(f"{path}: {about}: another result than in another file")
    return list(runs.values())


def arguments(argv: list[str]) -> argparse.Namespace:
    """The command line; what is behind -- is for every run."""
    about = "Compare methods, or print the table of kept results."
    epilog = "after --: further flags, for every run"
    parser = Parser("tools.compare", description=about, epilog=epilog, allow_abbrev=False)
    add = parser.add_argument
    add("rows", nargs="*", metavar="ROW", help=f"what to run: a method, or {', '.join(ROWS)}")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of fine-tuning (%(default)s)")
    add("--base_seeds", nargs="+", type=int, default=[0], help="of the base model (%(default)s)")
    add("--noises", nargs="+", type=float, default=[0.5], help="trace noises (%(default)s)")
    add("--output_dir", default="out/compare", help="where the runs go (%(default)s)")
    add("--jobs", type=least(1), default=os.cpu_count(), help="runs at a time, one thread each")
    add("--out", metavar="FOLDER", help="keep each run's result in it, a file each")
    add("--table", nargs="+", metavar="PATH", help="print the table of such folders, or of files")
    add("--brief", action="store_true", help="a table with fewer columns")
    add("--looks", action="store_true", help="and whose image the answers are about")
    add("--price", action="store_true", help="and what thinking costs")
    add("--paired", nargs="+", metavar="ROW", help="and the first one's differences from others")
    end = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:end])
    args.flags, args.rows = argv[end + 1 :], list(dict.fromkeys(args.rows))
    if bool(args.rows) == bool(args.table):
        parser.error("give rows to run, or --table")
    for row in args.rows:
        row_flags(row)
    return args


def main(argv: list[str]) -> None:
    """The command line."""
    args = arguments(argv)
    if args.out and not args.table:
        Path(args.out).mkdir(parents=True, exist_ok=True)
    records = read_records(args.table) if args.table else compare(args)
    tables = [table(records, main_columns(records, args.brief))]
    if any(record.get("stages") for record in records):
        tables.append(forms_table(records))
    if args.looks:
        tables.append(table(records, LOOKS))
    if args.price:
        tables.append(table(records, PRICE))
    if args.paired:
        tables.append(paired(records, *args.paired))
    print("\n\n".join(tables))


if __name__ == "__main__":
    run_program(main, sys.argv[1:])
