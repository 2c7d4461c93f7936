"""Records, dicts of what is known of a run: read from where they are kept, and printed as tables.

Left out: running anything (tools/compare.py), pictures (tools/curves.py).
"""

from itertools import accumulate, groupby
from operator import itemgetter, sub
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from data.example import InputError
from data.forms import FORMS
from data.reading import read_lines, written_here
from lib.checkpoint import read_json

TASKS = ("math", "detection", "classification")
FIRST = ("final", None)  # the readings of a record's first split
# columns by title: what a value is multiplied by, and the names that lead to it in a record
LOOKS = {  # whose image is looked at, T = 1
    "own image": (100, *FIRST, "sampled", "accuracy"),
    "another": (100, *FIRST, "other", "accuracy"),
    "blank": (100, *FIRST, "blank", "accuracy"),
    "own: stated facts true": (100, *FIRST, "sampled", "fact_precision"),
    "another: true of it": (100, *FIRST, "other", "fact_precision"),
    "true of the own": (100, *FIRST, "other", "true_of_own"),
    "of neither": (100, *FIRST, "other", "true_of_neither"),
}
PRICE = {  # what thinking costs: tokens, and CPU ms, per question
    "thinking": (100, *FIRST, "greedy", "accuracy"),
    "tokens": (1, *FIRST, "greedy", "completion_length"),
    "ms": (1000, *FIRST, "greedy", "seconds"),
    "direct": (100, *FIRST, "direct", "accuracy"),
    "direct, tokens": (1, *FIRST, "direct", "completion_length"),
    "direct, ms": (1000, *FIRST, "direct", "seconds"),
}


def read_run(folder: str | Path) -> dict:
    """A run of train.py as its folder has it: result.json or else the last checkpoint's state, and
    as "lines" those of metrics.jsonl and val's readings, as "val/..". InputError where it has none.
    """
    folder, run = Path(folder), dict.fromkeys(("config", "base", "final"), {})
    lines = read_lines(folder / "metrics.jsonl", ("step",), cut=False)
    if not lines:
        raise InputError(f"{folder}/metrics.jsonl: no step is logged; give folders of train.py")
    paths = sorted(folder.glob("checkpoints/step-*[0-9]/state.json"))
    for path in [*paths, *folder.glob("result.json")][-1:]:
        with written_here(path):
            found = read_json(path)
            run = {**found, **{name: dict(found.get(name, {})) for name in run}}
            for reading in found["val"]:
                line = {f"val/{name}": value for name, value in reading.items()}
                lines.append({**line, "step": reading["step"]})
    return {**run, "folder": folder, "lines": lines}


def read_record(row: str, folder: Path) -> dict:
    """What the tables need of a finished run."""
    run = read_run(folder)
    config, lines = run["config"], run["lines"]
    sampled = [line for line in lines if "reward" in line and line.get("stage") != "reject"]
    accuracies = [reading["accuracy"] for reading in run["val"]]
    falls = map(sub, accumulate(accuracies, max), accuracies)  # below the running best
    on_the_way = []  # beside the accuracies, those with other images
    for reading in run["val"]:
        seen = {name: reading[name]["accuracy"] for name in ("other", "blank") if name in reading}
        on_the_way.append({"step": reading["step"], **seen})
    told = ("seed", "base_seed", "trace_noise", "base_format_rate", "base_tasks")
    return {
        "row": row,
        **{name: config[name] for name in told if name in config},
        "steps": config["max_steps"],
        "cpu_seconds": sum(line.get("seconds_cpu", 0.0) for line in lines),
        "share_equal": mean(line["frac_reward_zero_std"] for line in sampled) if sampled else None,
        "largest_fall": max(falls, default=None),
        "val": accuracies,
        "on_the_way": on_the_way,
        **{name: run.get(name) for name in ("seconds", "base", "final", "stages")},
    }


def read_records(paths: list[str]) -> list[dict]:
    """The records of kept results, files or folders of them, each run once. InputError for a file
    that isn't one, or where two say different things of one run.
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


def by_row(records: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """The records of each row and noise, by noise; rows of one name are told apart."""
    found = {}
    for record in sorted(records, key=itemgetter("trace_noise")):
        label = record["row"]
        # Curr-ReFT's steps depend on what its rejected sampling keeps
        for name in ("base_format_rate", *(() if record.get("stages") else ("steps",))):
            if len({other.get(name) for other in records if other["row"] == record["row"]}) > 1:
                label += f", {name} {record.get(name)}"
        found.setdefault((label, f"{record['trace_noise']:g}"), []).append(record)
    return found


def markdown(titles: list[str], rows: list[list[str]]) -> str:
    """A markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def find(record: dict, names: tuple) -> float | None:
    """What the names lead to in a record, None standing for the first one; None for nothing."""
    for name in names:
        record = (record or {}).get(next(iter(record or {}), None) if name is None else name)
    return record


def cells(records: list[dict], columns: dict[str, tuple]) -> list[str]:
    """A cell per column: the mean ± standard deviation of the records' values, None left out."""
    line = []
    for title, (scale, *names) in columns.items():
        found = [find(record, names) for record in records]
        values, digits = [scale * x for x in found if x is not None], 0 if title == "s" else 1
        spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
        line.append(f"{mean(values):.{digits}f}{spread}" if values else "")
    return line


def main_columns(records: list[dict], brief: bool = False) -> dict[str, tuple]:
    """The columns of the usual table; brief: those that differ most between methods alone."""
    columns = {}
    for split in records[0]["final"]:
        columns[split] = (100, "final", split, "greedy", "accuracy")
        columns[f"{split}, T = 1"] = (100, "final", split, "sampled", "accuracy")
    columns["direct"] = (100, *FIRST, "direct", "accuracy")
    columns["facts true"] = (100, *FIRST, "sampled", "fact_precision")
    columns["grounded"] = (100, *FIRST, "greedy", "grounded")
    columns["equal rewards"] = (100, "share_equal")
    columns["largest fall"] = (100, "largest_fall")
    columns["s"] = (1, "seconds")
    for title in ("direct", "equal rewards", "s") if brief else ():
        del columns[title]
    return columns


def table(records: list[dict], columns: dict[str, tuple]) -> str:
    """Markdown: a line per base, and per row and noise; means ± standard deviations over runs."""
    bases = {}  # what the base stage taught; base seed: readings
    for record in records:
        if record["base"]:
            about = f"base, before fine-tuning (format rate {record['base_format_rate']:g}"
            about += ", all tasks and forms)" if len(record.get("base_tasks") or []) > 1 else ")"
            bases.setdefault((about, ""), {})[record["base_seed"]] = {"final": record["base"]}
    rows = {about: list(found.values()) for about, found in bases.items()} | by_row(records)
    lines = [[*about, str(len(runs)), *cells(runs, columns)] for about, runs in rows.items()]
    return markdown(["row", "noise", "runs", *columns], lines)


def forms_table(records: list[dict]) -> str:
    """Markdown for Curr-ReFT: greedy accuracy by form and task, before and after."""
    columns = {f"{form}, {task}": (100, form, task) for form in FORMS for task in TASKS}
    rows = {}  # row and split: accuracies by form and task, of each run
    for record in records:
        found = {"base ": record["base"]} if record.get("stages") else {}
        for stage, result in (record.get("stages") or {}).items():
            found[f"{record['row']} after {stage}"] = result.get("final")
        for row, splits in found.items():
            for split, readings in (splits or {}).items():
                run = {form: by_task(readings[form]) for form in FORMS}
                rows.setdefault((row, split), []).append(run)
    lines = [[*about, *cells(runs, columns)] for about, runs in rows.items()]
    return markdown(["row", "split", *columns], lines)


def by_task(reading: dict) -> dict[str, float]:
    """The means of a reading's accuracy/detection-*, /classification-*, and all others: math."""
    found = {}
    for name, value in reading.items():
        if name.startswith("accuracy/"):
            kind = name.removeprefix("accuracy/").split("-")[0]
            found.setdefault(kind if kind in TASKS else "math", []).append(value)
    return {task: mean(values) for task, values in found.items()}


def paired(records: list[dict], a: str, *others: str) -> str:
    """a minus each of the others on the same base, noise and seed: mean difference in points, 95 %
    interval, and by Bonferroni's correction for so many comparisons. InputError for unknown rows.
    """
    rows, lines = {}, []
    for record in records:
        names = ("trace_noise", "base_seed", "seed", "base_format_rate")
        rows.setdefault(record["row"], {})[tuple(record[name] for name in names)] = record
    if not others or not {a, *others} <= {*rows}:
        raise InputError(f"--paired: give two or more rows of {', '.join(rows)}")
    for b in others:
        for noise, both in groupby(sorted(rows[a].keys() & rows[b]), itemgetter(0)):
            pairs = [(rows[a][about], rows[b][about]) for about in both]
            for title, (_, *names) in main_columns(pairs[0], brief=True).items():
                if names[-1] == "accuracy" and len(pairs) > 1:
                    points = [100 * (find(x, names) - find(y, names)) for x, y in pairs]
                    spans = [span(points, 0.05), span(points, 0.05 / len(others))]
                    better = f"{sum(point > 0 for point in points)} of {len(points)}"
                    lines.append([f"{noise:g}", b, title, f"{mean(points):+.1f}", *spans, better])
    heads = ["noise", f"{a} minus", "split", "points", "95 %", "corrected", f"{a} better in"]
    return markdown(heads, lines)


def span(values: list[float], miss: float) -> str:
    """Student's interval of a mean, which misses the true one with this probability. With
    t = sqrt(freedom) tan(angle) the density is cos(angle) ** (freedom - 1).
    """
    freedom, angles = len(values) - 1, np.linspace(0, np.pi / 2, 100_001)
    inside = np.cumsum(np.cos((angles[:-1] + angles[1:]) / 2) ** (freedom - 1))
    t = np.sqrt(freedom) * np.tan(np.interp(1 - miss, inside / inside[-1], angles[1:]))
    half = t * stdev(values) / np.sqrt(len(values))
    return f"[{mean(values) - half:+.1f}, {mean(values) + half:+.1f}]"
