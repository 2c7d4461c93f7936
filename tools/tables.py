"""What comparisons have kept, as markdown tables: means, spreads, paired intervals.

Left out: running anything (tools/compare.py).
"""

import itertools
import math
from statistics import mean, stdev

import numpy as np

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


def markdown(titles: list[str], rows: list[list[str]]) -> str:
    """A markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(values: list, scale: float = 100, digits: int = 1) -> str:
    """The mean ± standard deviation of those that aren't None."""
    values = [scale * value for value in values if value is not None]
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}" if values else ""


def find(record: dict, names: tuple) -> float | None:
    """What the names lead to in a record, None standing for the first one; None for nothing."""
    for name in names:
        record = record or {}
        record = record.get(next(iter(record), None) if name is None else name)
    return record


def by_row(records: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """The records of each row and noise, by noise; a row is named with what tells it from others of
    its name.
    """
    found = {}
    for record in sorted(records, key=lambda record: record["trace_noise"]):
        label = record["row"]
        # Curr-ReFT's steps depend on what its rejected sampling keeps
        for name in ("base_format_rate", *(() if record.get("stages") else ("steps",))):
            if len({other.get(name) for other in records if other["row"] == record["row"]}) > 1:
                label += f", {name} {record.get(name)}"
        found.setdefault((label, f"{record['trace_noise']:g}"), []).append(record)
    return found


def main_columns(records: list[dict], brief: bool = False) -> dict[str, tuple]:
    """The columns of the usual table; brief: those that differ most between methods alone."""
    columns = {}
    for split in records[0]["final"]:
        columns[split] = (100, "final", split, "greedy", "accuracy")
        columns[f"{split}, T = 1"] = (100, "final", split, "sampled", "accuracy")
    more = {
        "direct": (100, *FIRST, "direct", "accuracy"),
        "facts true": (100, *FIRST, "sampled", "fact_precision"),
        "grounded": (100, *FIRST, "greedy", "grounded"),
        "equal rewards": (100, "share_equal"),
        "largest fall": (100, "largest_fall"),
        "s": (1, "seconds"),
    }
    long = ("direct", "equal rewards", "s") if brief else ()
    return columns | {title: column for title, column in more.items() if title not in long}


def table(records: list[dict], columns: dict[str, tuple]) -> str:
    """Markdown: a line per base, and per row and noise; in each column the mean ± standard
    deviation over the runs, in percent.
    """
    bases = {}  # what the base stage taught; base seed: readings
    for record in records:
        if record["base"]:
            about = f"base, before fine-tuning (format rate {record['base_format_rate']:g}"
            about += ", all tasks and forms)" if len(record.get("base_tasks") or []) > 1 else ")"
            bases.setdefault((about, ""), {})[record["base_seed"]] = {"final": record["base"]}
    rows = {about: list(found.values()) for about, found in bases.items()} | by_row(records)
    lines = []
    for about, runs in rows.items():
        lines.append([*about, str(len(runs))])
        for title, (scale, *names) in columns.items():
            values = [find(run, names) for run in runs]
            lines[-1].append(cell(values, scale, 0 if title == "s" else 1))
    return markdown(["row", "noise", "runs", *columns], lines)


def forms_table(records: list[dict]) -> str:
    """Markdown for Curr-ReFT: greedy accuracy by form and task, in percent, before and after; mean
    ± standard deviation over the runs.
    """
    rows = {}  # row and split: its readings by form, one for each run
    for record in records:
        stages = record.get("stages") or {}
        found = {"base ": record["base"]} if stages else {}
        found |= {f"{record['row']} after {s}": result.get("final") for s, result in stages.items()}
        for row, splits in found.items():
            for split, forms in (splits or {}).items():
                rows.setdefault((row, split), []).append(forms)
    columns = list(itertools.product(("judge", "choice", "open"), TASKS))
    lines = []
    for about, runs in rows.items():
        values = ([accuracy(run[form], task) for run in runs] for form, task in columns)
        lines.append([*about, *map(cell, values)])
    return markdown(["row", "split", *(f"{form}, {task}" for form, task in columns)], lines)


def accuracy(reading: dict, task: str) -> float | None:
    """The mean of a reading's "accuracy/<task of the data>" that belong to one of the paper's three
    tasks: detection-*, classification-*, and math, which is all others; None without any.
    """
    own = []
    for name, value in reading.items():
        kind = name.removeprefix("accuracy/").split("-")[0]
        if name.startswith("accuracy/") and task == (kind if kind in TASKS else "math"):
            own.append(value)
    return mean(own) if own else None


def paired(records: list[dict], a: str, *others: str) -> str:
    """a minus each of the others on the same base, noise and seed: mean difference in points with
    Student's 95 % interval, and the same by Bonferroni's correction for so many comparisons.
    """
    runs, differences = {}, {}
    for r in records:
        about = (r["trace_noise"], r["base_seed"], r["seed"], r["base_format_rate"])
        runs.setdefault(about, {})[r["row"]] = r["final"]
    for b, ((noise, *_), found) in itertools.product(others, sorted(runs.items())):
        for split in found[a] if a in found and b in found else ():
            for reading, name in (("greedy", split), ("sampled", f"{split}, T = 1")):
                ours, theirs = (found[row][split][reading]["accuracy"] for row in (a, b))
                differences.setdefault((noise, b, name), []).append(100 * (ours - theirs))
    lines = []
    for (noise, b, name), found in differences.items():
        if len(found) > 1:
            centre, error = mean(found), stdev(found) / math.sqrt(len(found))
            spans = []
            for miss in (0.05, 0.05 / len(others)):
                half = student(1 - miss, len(found) - 1) * error
                spans.append(f"[{centre - half:+.1f}, {centre + half:+.1f}]")
            better = f"{sum(difference > 0 for difference in found)} of {len(found)}"
            lines.append([f"{noise:g}", b, name, f"{centre:+.1f}", *spans, better])
    heads = ["noise", f"{a} minus", "split", "points", "95 %", "corrected", f"{a} better in"]
    return markdown(heads, lines)


def student(confidence: float, freedom: int) -> float:
    """Student's t with so many degrees of freedom that two-sided has this confidence.

    With t = sqrt(freedom) tan(angle) its density is cos(angle) ** (freedom - 1).
    """
    angles = np.linspace(0, math.pi / 2, 100_001)
    inside = np.cumsum(np.cos((angles[:-1] + angles[1:]) / 2) ** (freedom - 1))
    return math.sqrt(freedom) * math.tan(np.interp(confidence, inside / inside[-1], angles[1:]))
