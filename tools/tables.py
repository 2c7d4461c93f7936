"""What comparisons have kept, as markdown tables: means, spreads, paired intervals.

Left out: running anything (tools/compare.py).
"""

import itertools
import math
from statistics import mean, stdev

TASKS = ("math", "detection", "classification")
# Student's t, two-sided 95 %, by degrees of freedom; between two of them the smaller one's counts
STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
STUDENT |= {10: 2.23, 11: 2.20, 12: 2.18, 13: 2.16, 14: 2.14, 15: 2.13, 19: 2.09, 24: 2.06}
STUDENT |= {29: 2.05, 60: 2.00}


def cell(values: list, digits: int = 1, scale: float = 100) -> str:
    """mean ± standard deviation over runs, in percent."""
    values = [scale * v for v in values if v is not None]
    if not values:
        return ""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def markdown(titles: list[str], rows: list[list[str]]) -> str:
    """A markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def columns_of(records: list[dict], brief: bool) -> dict:
    """The table's columns: title -> (what it reads of a record, digits, scale)."""

    def reading(split, which, name):
        return lambda record: record["final"][split][which][name], 1, 100

    columns, splits = {}, list(records[0]["final"])
    for split in splits:
        columns[split] = reading(split, "greedy", "accuracy")
        columns[f"{split}, T = 1"] = reading(split, "sampled", "accuracy")
    columns["direct"] = reading(splits[0], "direct", "accuracy")
    columns["facts true"] = reading(splits[0], "sampled", "fact_precision")
    columns["grounded"] = reading(splits[0], "greedy", "grounded")
    columns["equal rewards"] = (lambda record: record.get("share_equal"), 1, 100)
    columns["largest fall"] = (lambda record: record.get("largest_fall"), 1, 100)
    columns["s"] = (lambda record: record.get("seconds"), 0, 1)
    left_out = ("direct", "equal rewards", "s") if brief else ()
    return {title: how for title, how in columns.items() if title not in left_out}


def table(records: list[dict], brief: bool = False) -> str:
    """Markdown: a line per row and setting, a column per reading; mean ± standard deviation over
    the runs, in percent. brief: the columns that differ most between methods alone.
    """
    columns = columns_of(records, brief)

    def line(row, noise, runs):
        cells = [cell([read(r) for r in runs], *how) for read, *how in columns.values()]
        return [row, noise, str(len(runs)), *cells]

    bases = {}  # by what the base stage taught, then by its seed
    for r in records:
        if r["base"]:
            about = f"format rate {r['base_format_rate']:g}"
            about += ", all tasks and forms" if len(r.get("base_tasks") or []) > 1 else ""
            bases.setdefault(about, {})[r["base_seed"]] = {"final": r["base"]}
    lines = []
    for about, found in bases.items():
        lines.append(line(f"base, before fine-tuning ({about})", "", list(found.values())))
    rows = {label(r, records): None for r in records}  # in the order in which they were asked for
    for noise in sorted({r["trace_noise"] for r in records}):
        for row in rows:
            runs = [r for r in records if (r["trace_noise"], label(r, records)) == (noise, row)]
            lines += [line(row, f"{noise:g}", runs)] if runs else []
    return markdown(["row", "noise", "runs", *columns], lines)


def label(record: dict, records: list[dict]) -> str:
    """A record's row, with what tells it from other records of this row."""
    same = [r for r in records if r["row"] == record["row"]]
    told = [record["row"]]
    # Curr-ReFT's steps depend on what its rejected sampling keeps
    for name in ("base_format_rate",) if record.get("stages") else ("base_format_rate", "steps"):
        if len({r.get(name) for r in same}) > 1:
            told.append(f"{name} {record.get(name)}")
    return ", ".join(told)


def paired(records: list[dict], a: str, b: str) -> str:
    """a - b on the same base, noise and seed: mean difference in points with Student's 95 %
    interval, per noise and split.
    """
    lines, by_key = [], {}
    for r in records:
        about = (r["trace_noise"], r["base_seed"], r["seed"], r["base_format_rate"])
        by_key.setdefault(about, {})[r["row"]] = r["final"]
    both = {about: found for about, found in by_key.items() if a in found and b in found}
    for noise in sorted({about[0] for about in both}):
        for split, reading in itertools.product(records[0]["final"], ("greedy", "sampled")):
            differences = []
            for about, found in both.items():
                if about[0] == noise:
                    ours, theirs = (found[row][split][reading]["accuracy"] for row in (a, b))
                    differences.append(100 * (ours - theirs))
            if len(differences) > 1:
                student = STUDENT[max(k for k in STUDENT if k < len(differences))]
                half = student * stdev(differences) / math.sqrt(len(differences))
                centre, wins = mean(differences), sum(d > 0 for d in differences)
                found = f"{centre:+.1f} [{centre - half:+.1f}, {centre + half:+.1f}]"
                name = split if reading == "greedy" else f"{split}, T = 1"
                lines.append([f"{noise:g}", name, found, str(len(differences)), str(wins)])
    heads = ["noise", "split", f"{a} - {b}, points [95 %]", "pairs", f"{a} better in"]
    return markdown(heads, lines)


def forms_table(records: list[dict]) -> str:
    """Markdown for Curr-ReFT: greedy accuracy by form and task, in percent, before and after; mean
    ± standard deviation over the runs.
    """
    rows = {}  # (row, after which stage): its readings by split, one for each run
    for record in records:
        if record["base"] and record.get("stages"):
            rows.setdefault("base ", []).append(record["base"])
        for stage, result in (record.get("stages") or {}).items():
            if result.get("final"):
                rows.setdefault(f"{record['row']} after {stage}", []).append(result["final"])
    some = next(iter(rows.values()))[0]
    forms = [name for name in next(iter(some.values())) if name in ("judge", "choice", "open")]
    columns = list(itertools.product(forms, TASKS))
    lines = []
    for (row, readings), split in itertools.product(rows.items(), some):
        cells = []
        for form, task in columns:
            cells.append(cell([task_accuracy(reading[split][form], task) for reading in readings]))
        lines.append([row, split, *cells])
    return markdown(["row", "split", *(f"{form}, {task}" for form, task in columns)], lines)


def task_accuracy(reading: dict, task: str) -> float | None:
    """The mean of a reading's "accuracy/<task of the data>" that belong to one of the paper's three
    tasks: detection-*, classification-*, and math, which is all others; None without any.
    """
    own = []
    for name, value in reading.items():
        kind = name.removeprefix("accuracy/").split("-")[0]
        if name.startswith("accuracy/") and task == (kind if kind in TASKS else "math"):
            own.append(value)
    return mean(own) if own else None
