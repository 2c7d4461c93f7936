"""Comparing methods: the same base, the same prompts, the same traces, several seeds; one table.

    python -m tools.compare sft grpo two_stage dyme --seeds 0 1 2 --out results/compare.json
    python -m tools.compare --table results/compare.json [--brief] [--paired dyme two_stage]

Each run is `train.py` in a process of its own, so that what is compared is what a user runs. A run
that is finished is not run again, as long as its flags and the code are the same. Left out:
choosing the better of two settings for you.
"""

import argparse
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from tqdm import tqdm

from data.example import InputError
from tools.tables import forms_table, paired, table

ROOT = Path(__file__).parent.parent
# Without "refined", all methods memorize the data's own (noisy) traces.
ROWS = {  # name: the program and its flags
    "sft": ["train.py", "--method", "sft", "--refiner", "off"],
    "grpo": ["train.py", "--method", "grpo", "--refiner", "off"],
    "two_stage": ["train.py", "--method", "two_stage", "--refiner", "off"],
    "dyme": ["train.py", "--method", "dyme", "--refiner", "off"],
    "sft_refined": ["train.py", "--method", "sft"],
    "two_stage_refined": ["train.py", "--method", "two_stage"],
    "dyme_refined": ["train.py", "--method", "dyme"],
    "dyme_one": ["train.py", "--method", "dyme", "--refiner", "off", "--memorize_weight", "one"],
    "dyme_cosine": ["train.py", "--refiner", "off", "--memorize_weight", "cosine"],
    "curr_reft": ["curr_reft.py"],
    "curr_reft_no_curriculum": ["curr_reft.py", "--stages", "open", "reject"],
    "curr_reft_no_reject": ["curr_reft.py", "--stages", "judge", "choice", "open"],
}
LONG = "sft_long"  # SFT for as many seconds as DyME took; needs the rows sft and dyme


# ---- runs ----------------------------------------------------------------------------------------


@dataclass
class Job:
    """One run: the row of the table, the program and its flags, where it goes, what it came to."""

    row: str
    flags: list[str]
    folder: Path
    record: dict | None = None


def compare(args: argparse.Namespace) -> list[dict]:
    """The records of all rows x base seeds x noises x seeds, `jobs` at a time; SFT at DyME's
    wall-clock time last, since it needs it.
    """
    jobs, firsts = [], {}
    for base_seed, noise, seed in itertools.product(args.base_seeds, args.noises, args.seeds):
        for row in args.rows:
            if row != LONG:
                flags = [*ROWS[row], "--num_threads", "1", *args.flags]
                flags += ["--base_seed", str(base_seed), "--trace_noise", f"{noise:g}"]
                flags += ["--seed", str(seed)]
                folder = f"base{base_seed}-noise{noise:g}-seed{seed}-{row}"
                jobs.append(Job(row, flags, Path(args.output_dir) / folder))
                firsts.setdefault((base_seed, flags[0]), jobs[-1])
    run_all(firsts.values(), args.jobs)  # the first run on a base makes it and reads it
    rest = [job for job in jobs if job.record is None]
    for job in rest:
        job.flags.append("--no-eval_base")
    run_all(rest, args.jobs)
    if LONG in args.rows:
        steps = str(long_steps([job.record for job in jobs]))
        for job in [job for job in jobs if job.row == "sft"]:
            folder = job.folder.with_name(job.folder.name.replace("-sft", f"-{LONG}"))
            flags = [*job.flags, "--no-eval_base", "--max_steps", steps]
            jobs.append(Job(LONG, flags, folder))
        run_all([job for job in jobs if job.record is None], args.jobs)
    return [job.record for job in jobs]


def run_all(jobs: Collection[Job], workers: int) -> None:
    """Fill in the jobs' records, `workers` processes at a time, with a progress bar."""
    version = code_version()
    with ThreadPoolExecutor(workers) as pool:
        records = pool.map(lambda job: run(job, version), jobs)
        records = tqdm(records, total=len(jobs), desc="runs", unit="run")
        for record, job in zip(records, jobs):
            job.record = record


def run(job: Job, version: str) -> dict:
    """One training run, or its result if it is finished in job.folder. InputError, with the last
    line that it said, if it fails, or if the folder's run had other flags or another code.
    """
    asked, note = {"flags": job.flags, "code": version}, job.folder / "asked.json"
    if (job.folder / "result.json").exists():
        check_same(job.folder, asked, json.loads(note.read_text()) if note.exists() else None)
        return read_record(job)
    job.folder.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(asked))
    command = [sys.executable, str(ROOT / job.flags[0]), *job.flags[1:]]
    command += ["--output_dir", str(job.folder), "--overwrite"]
    with open(job.folder / "log.txt", "w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, stdout=log, stderr=log, env=environment).returncode
    if code != 0:
        last = " ".join((job.folder / "log.txt").read_text().strip().splitlines()[-1:])
        raise InputError(
            f"{job.row}: {job.flags[0]} ended with code {code}: {last[:300]} "
            f"(all of it in {job.folder}/log.txt)"
        )
    return read_record(job)


def check_same(folder: Path, asked: dict, found: dict | None) -> None:
    """InputError, naming the difference, unless a finished run is the one that is asked for."""
    if found is None:
        difference = "by what flags and code is not known"
    elif given(found["flags"]) != given(asked["flags"]):
        olds, news = given(found["flags"]), given(asked["flags"])
        names = [name for name in {**olds, **news} if olds.get(name) != news.get(name)]
        told = [f"{name} {olds.get(name, '(default)')}" for name in names]
        difference = f"with {', '.join(told)}, where now it is "
        difference += ", ".join(f"{name} {news.get(name, '(default)')}" for name in names)
    elif found["code"] != asked["code"]:
        difference = f"by the code {found['code']}, which is now {asked['code']}"
    else:
        return
    raise InputError(
        f"{folder}: holds a run made {difference}; give another --output_dir, or remove the folder"
    )


def given(flags: list[str]) -> dict[str, str]:
    """Flags as name -> value, the last one counting; whether the base is read makes no difference."""
    named, name = {}, "program"
    for flag in flags:
        if flag.startswith("--"):
            name, flag = flag, ""
            named[name] = ""
        named[name] = f"{named.get(name, '')} {flag}".strip()
    named.pop("--no-eval_base", None)
    return named


def code_version() -> str:
    """A hash of all that a run can import."""
    paths = [path for folder in (".", "data", "lib") for path in (ROOT / folder).glob("*.py")]
    digest = hashlib.sha256()
    for path in sorted(path for path in paths if not path.name.startswith("test_")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def read_record(job: Job) -> dict:
    """What the tables need of a finished run."""
    result = json.loads((job.folder / "result.json").read_text())
    lines = map(json.loads, (job.folder / "metrics.jsonl").read_text().splitlines())
    sampled = [line for line in lines if "reward" in line and line.get("stage") != "reject"]
    accuracies = [reading["accuracy"] for reading in result["val"]]
    falls = [max(accuracies[: i + 1]) - a for i, a in enumerate(accuracies)]
    told = ("seed", "base_seed", "trace_noise", "base_format_rate", "base_tasks")
    return {
        "row": job.row,
        **{name: result["config"][name] for name in told if name in result["config"]},
        "steps": result["config"]["max_steps"],
        "seconds": result["seconds"],
        "share_equal": mean(line["frac_reward_zero_std"] for line in sampled) if sampled else None,
        "largest_fall": max(falls, default=None),
        "val": accuracies,
        "base": result["base"],
        "final": result["final"],
        "stages": result.get("stages"),
    }


def long_steps(records: list[dict]) -> int:
    """How many steps SFT makes in the seconds of a DyME run."""
    sft, dyme = ([r for r in records if r["row"] == row] for row in ("sft", "dyme"))
    pace = mean(r["seconds"] / r["steps"] for r in sft)
    return max(1, round(mean(r["seconds"] for r in dyme) / pace))


# ---- the command line ----------------------------------------------------------------------------


def read_records(paths: list[str]) -> list[dict]:
    """The records of kept results, each run once. InputError for a file that isn't one, or where
    two files say different things of one run.
    """
    runs = {}
    for path in paths:
        try:
            records = json.loads(Path(path).read_text())["records"]
            table(records)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise InputError(f"--table {path}: is not a result of --out") from None
        for record in records:
            names = ("row", "trace_noise", "base_seed", "base_format_rate", "steps", "seed")
            about = ", ".join(f"{name} {record.get(name)}" for name in names)
            if runs.setdefault(about, record)["final"] != record["final"]:
                raise InputError(f"--table {path}: {about}: another result than in another file")
            if runs[about] is not record:
                print(f"{path}: {about}: the same run again, counted once", file=sys.stderr)
    return list(runs.values())


def keep(path: str, argv: list[str], records: list[dict], jobs: int) -> None:
    """The records, the command, and what it ran on."""
    content = {
        "command": "python -m tools.compare " + " ".join(argv),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jobs} runs at a time",
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "code": code_version(),
        "records": records,
    }
    Path(path).write_text(json.dumps(content, indent=1))


def arguments(argv: list[str]) -> argparse.Namespace:
    """The command line; what is behind -- is for every run."""
    parser = argparse.ArgumentParser(
        prog="tools.compare",
        description="Compare methods, or print the table of kept results.",
        epilog="after --: further flags, for every run",
    )
    add = parser.add_argument
    add("rows", nargs="*", metavar="ROW", help=f"what to run: {', '.join([*ROWS, LONG])}")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of fine-tuning (%(default)s)")
    add("--base_seeds", nargs="+", type=int, default=[0], help="of the base model (%(default)s)")
    add("--noises", nargs="+", type=float, default=[0.5], help="trace noises (%(default)s)")
    add("--output_dir", default="out/compare", help="where the runs go (%(default)s)")
    add("--jobs", type=int, default=os.cpu_count(), help="runs at a time, one thread each")
    add("--out", metavar="JSON", help="keep the results in this file")
    add("--table", nargs="+", metavar="JSON", help="print the table of such files")
    add("--brief", action="store_true", help="a table with fewer columns")
    add("--paired", nargs=2, metavar=("A", "B"), help="paired differences of two rows besides")
    end = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:end])
    args.flags = argv[end + 1 :]
    if bool(args.rows) == bool(args.table):
        parser.error("give rows to run, or --table")
    return args


def main(argv: list[str]) -> None:
    """The command line; bad input ends in one line and exit code 2."""
    args = arguments(argv)
    try:
        if args.table:
            records = read_records(args.table)
        else:
            args.rows = list(dict.fromkeys(args.rows))
            unknown = [row for row in args.rows if row not in ROWS and row != LONG]
            if unknown:
                rows = ", ".join([*ROWS, LONG])
                raise InputError(f"{unknown[0]}: unknown row; there are {rows}")
            if LONG in args.rows and not {"sft", "dyme"} <= set(args.rows):
                raise InputError(f"{LONG}: needs the rows sft and dyme")
            if args.out:
                open(args.out, "a").close()  # said now, and not after all has run
            records = compare(args)
            if args.out:
                keep(args.out, argv, records, args.jobs)
        print(table(records, args.brief))
        if any(record.get("stages") for record in records):
            print(f"\n{forms_table(records)}")
        if args.paired:
            print(f"\n{paired(records, *args.paired)}")
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
