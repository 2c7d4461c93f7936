"""Comparing methods: the same base, the same prompts, the same traces, several seeds; one table.

    python -m tools.compare sft grpo two_stage dyme --seeds 0 1 2 --out results/mine
    python -m tools.compare --table results/mine [--brief] [--paired dyme two_stage sft]

Each run is `train.py` in a process of its own. One that is finished is not run again, as long as
flags and code are the same. --out keeps each run's result as a file as soon as it has ended.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import product
from pathlib import Path

from tqdm import tqdm

from config import METHODS, Config, Parser, least
from data.example import InputError
from data.reading import written_here
from lib.checkpoint import read_json
from lib.log import run_program
from tools.tables import LOOKS, PRICE, forms_table, main_columns, paired, read_record
from tools.tables import read_records, table

ROOT = Path(__file__).parent.parent
# Beside these each of train.py's methods is a row, memorizing the data's own (noisy) traces, or
# with "_refined" behind it refined ones; with settings: "two_stage:sft_share=0.25:beta=0.01"
ROWS = {  # name: the program and its flags
    "curr_reft": ["curr_reft.py"],
    "curr_reft_no_curriculum": ["curr_reft.py", "--stages", "open", "reject"],
    "curr_reft_no_reject": ["curr_reft.py", "--stages", "judge", "choice", "open"],
}


def row_flags(row: str) -> list[str]:
    """The program and flags of a row, behind "--" those that not every method uses; InputError."""
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
    """The record of a run, or of the finished one in its folder; a file in `out`, if that is given.
    InputError if it fails, with the last line it said, or if that one had other flags or code.
    """
    told = " ".join(flags).removesuffix(" --no-eval_base")
    asked = [*told.split(" --"), f"code {code_version()}"]
    note, log = folder / "asked.json", folder / "log.txt"
    if not (folder / "result.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        # with a plus where tracked files differ from the commit
        git = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=7", "--dirty=+"]
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
        note.write_text(json.dumps({"asked": asked, "commit": commit}))
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
        if differ := sorted({*noted["asked"]} ^ {*asked}):
            other = f"its run had other flags or another code ({', '.join(differ)})"
            raise InputError(f"{folder}: {other}; give another --output_dir, or remove the folder")
    record = read_record(row, folder)
    if out:
        kept = {
            "command": told,
            "commit": noted["commit"],
            "machine": f"{os.uname().machine}, one thread",
            "versions": {name: version(name) for name in ("torch", "transformers")},
            "records": [record],
        }
        rounded = json.loads(json.dumps(kept), parse_float=lambda text: round(float(text), 5))
        Path(out, f"{folder.name}.json").write_text(json.dumps(rounded) + "\n")
    return record


def code_version() -> str:
    """A hash of all that a run can import."""
    paths = [path for at in (".", "data", "lib") for path in sorted((ROOT / at).glob("*.py"))]
    texts = [path.read_bytes() for path in paths if not path.name.startswith("test_")]
    return hashlib.sha256(b"".join(texts)).hexdigest()[:12]


def arguments(argv: list[str]) -> argparse.Namespace:
    """The command line; what is behind -- is for every run."""
    about = "Compare methods, or print the table of kept results. Flags behind -- are every run's."
    parser = Parser("tools.compare", description=about, allow_abbrev=False)
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
    add("--paired", nargs="+", metavar="ROW", default=[], help="the first's difference from others")
    end = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:end])
    args.flags, args.rows = argv[end + 1 :], list(dict.fromkeys(args.rows))
    if bool(args.rows) == bool(args.table):
        parser.error("give rows to run, or --table")
    if args.rows and args.paired and not {args.paired[0]} < {*args.paired} <= {*args.rows}:
        parser.error(f"--paired: give two or more of {', '.join(args.rows)}")
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
