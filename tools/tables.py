"""
What comparisons have kept (results/*.json), as markdown tables: means, spreads, paired intervals.

Left out: running anything (compare.py), choosing the better of two settings for you.
"""

import math
from statistics import mean, stdev

from curr_reft import FORMS, kind_of

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


def columns_of(records: list[dict]) -> dict:
    """The table's columns: title -> (what it reads of a record, digits, scale)."""
    columns = {}
    splits = list(records[0]["final"])

    def reading(split, which, name):
        return lambda record: record["final"][split][which][name]

    for split in splits:
        columns[split] = (reading(split, "greedy", "accuracy"), 1, 100)
        columns[f"{split}, T = 1"] = (reading(split, "sampled", "accuracy"), 1, 100)
    columns["direct"] = (reading(splits[0], "direct", "accuracy"), 1, 100)
    columns["facts true"] = (reading(splits[0], "sampled", "fact_precision"), 1, 100)
    columns["grounded"] = (reading(splits[0], "greedy", "grounded"), 1, 100)
    columns["equal rewards"] = (lambda record: record["share_equal"], 1, 100)
    columns["largest fall"] = (lambda record: record["largest_fall"], 1, 100)
    columns["s"] = (lambda record: record["seconds"], 0, 1)
    return columns


def table(records: list[dict], brief: bool = False) -> str:
    """
    Markdown: a line per row and setting, a column per reading; mean ± standard deviation over the
    runs, in percent. brief: the columns that differ most between methods alone.
    """
    columns = columns_of(records)
    if brief:
        left_out = ("direct", "equal rewards", "s")
        columns = {title: how for title, how in columns.items() if title not in left_out}
    titles = ["row", "noise", "runs", *columns]
    lines = ["| " + " | ".join(titles) + " |", "| --- " * len(titles) + "|"]

    def line(row, noise, runs):
        cells = []
        for read, digits, scale in columns.values():
            cells.append(cell([read(r) for r in runs], digits, scale))
        lines.append("| " + " | ".join([row, noise, str(len(runs)), *cells]) + " |")

    bases = {}  # by what the base stage taught, then by its seed
    unknown = {"share_equal": None, "largest_fall": None, "seconds": None}
    for r in records:
        if r["base"]:
            about = f"format rate {r['base_format_rate']:g}"
            if len(r.get("base_tasks", [])) > 1:
                about += ", all tasks and forms"
            bases.setdefault(about, {})[r["base_seed"]] = {**unknown, "final": r["base"]}
    for about, found in bases.items():
        line(f"base, before fine-tuning ({about})", "", list(found.values()))
    settings = {(r["trace_noise"], r["row"]) for r in records}
    rows = [r["row"] for r in records]  # in the order in which they were asked for
    for noise, row in sorted(settings, key=lambda setting: (setting[0], rows.index(setting[1]))):
        runs = [r for r in records if (r["trace_noise"], r["row"]) == (noise, row)]
        line(row, f"{noise:g}", runs)
    return "\n".join(lines)


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
                pairs = []
                for key, theirs in by_key.items():
                    ours = by_key.get((a, *key[1:]))
                    if key[0] == b and key[1] == noise and ours:
                        of = [r["final"][split][reading]["accuracy"] for r in (ours, theirs)]
                        pairs.append(100 * (of[0] - of[1]))
                if len(pairs) < 2:
                    continue
                student = STUDENT[max(k for k in STUDENT if k < len(pairs))]
                half = student * stdev(pairs) / math.sqrt(len(pairs))
                centre = mean(pairs)
                name = split if reading == "greedy" else f"{split}, T = 1"
                wins = sum(p > 0 for p in pairs)
                found = f"{centre:+.1f} [{centre - half:+.1f}, {centre + half:+.1f}]"
                lines.append(f"| {noise:g} | {name} | {found} | {len(pairs)} | {wins} |")
    return "\n".join(lines)


def forms_table(records: list[dict]) -> str:
    """
    Markdown for compare.py: greedy accuracy by form and task, in percent, before and after; mean ±
    standard deviation over the runs.
    """
    rows = {}  # (row, after which stage): its readings by split, one for each run
    for record in records:
        if record.get("base") and record.get("stages"):
            rows.setdefault(("base", ""), []).append(record["base"])
        for stage, result in (record.get("stages") or {}).items():
            if result.get("final"):
                rows.setdefault((record["row"], f"after {stage}"), []).append(result["final"])
    splits = list(next(iter(rows.values()))[0])
    tasks = ("math", "detection", "classification")
    names = [f"{form}, {task}" for form in FORMS for task in tasks]
    lines = [f"| row | split | {' | '.join(names)} |", "| --- " * (len(names) + 2) + "|"]
    for (row, stage), readings in rows.items():
        for split in splits:
            cells = []
            for name in names:
                form, task = name.split(", ")
                found = [task_accuracy(reading[split][form], task) for reading in readings]
                cells.append(cell(found))
            lines.append(f"| {row} {stage} | {split} | {' | '.join(cells)} |")
    return "\n".join(lines)


def task_accuracy(reading: dict, task: str) -> float | None:
    """
    The mean of evaluate's "accuracy/<task>" that belong to one of the paper's three tasks; None
    where the data has none of them.
    """
    found = {name: value for name, value in reading.items() if name.startswith("accuracy/")}
    own = [name for name in found if kind_of("open", name.removeprefix("accuracy/")) == task]
    return mean(found[name] for name in own) if own else None
