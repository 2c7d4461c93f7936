"""What comparisons have kept, as markdown tables: means, spreads, paired intervals.

Left out: running anything (tools/compare.py).
"""

import functools
import itertools
import math
from statistics import mean, stdev

TASKS = ("math", "detection", "classification")


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


def table(records: list[dict], brief: bool = False) -> str:
    """Markdown: a line per row and setting, a column per reading; mean ± standard deviation over
    the runs, in percent. brief: the columns that differ most between methods alone.
    """
    columns, splits = {}, list(records[0]["final"])  # title: where a record has it
    for split in splits:
        columns[split] = ("final", split, "greedy", "accuracy")
        columns[f"{split}, T = 1"] = ("final", split, "sampled", "accuracy")
    columns["direct"] = ("final", splits[0], "direct", "accuracy")
    columns["facts true"] = ("final", splits[0], "sampled", "fact_precision")
    columns["grounded"] = ("final", splits[0], "greedy", "grounded")
    columns |= {"equal rewards": ("share_equal",), "largest fall": ("largest_fall",)}
    columns["s"] = ("seconds",)
    for title in ("direct", "equal rewards", "s") if brief else ():
        del columns[title]

    bases = {}  # what the base stage taught, base seed: reading
    for record in records:
        if record["base"]:
            about = f"base, before fine-tuning (format rate {record['base_format_rate']:g}"
            about += ", all tasks and forms)" if len(record.get("base_tasks") or []) > 1 else ")"
            bases.setdefault(about, {})[record["base_seed"]] = {"final": record["base"]}
    rows = [(about, "", list(found.values())) for about, found in bases.items()]
    for (row, noise), runs in sorted(by_row(records).items(), key=lambda group: group[0][1]):
        rows.append((row, f"{noise:g}", runs))
    lines = []
    for row, noise, runs in rows:
        lines.append([row, noise, str(len(runs))])
        for title, path in columns.items():
            found = [functools.reduce(dict.get, path, run) for run in runs]
            lines[-1].append(cell(found, 0, 1) if title == "s" else cell(found))
    return markdown(["row", "noise", "runs", *columns], lines)


# title: reading, name in it, what it is multiplied by; of the first split
LOOKS = {
    "own image": ("sampled", "accuracy", 100),
    "another": ("other", "accuracy", 100),
    "blank": ("blank", "accuracy", 100),
    "own: stated facts true": ("sampled", "fact_precision", 100),
    "another: true of it": ("other", "fact_precision", 100),
    "true of the own": ("other", "true_of_own", 100),
    "of neither": ("other", "true_of_neither", 100),
}
PRICE = {
    "thinking": ("greedy", "accuracy", 100),
    "tokens": ("greedy", "completion_length", 1),
    "ms": ("greedy", "seconds", 1000),
    "direct": ("direct", "accuracy", 100),
    "direct, tokens": ("direct", "completion_length", 1),
    "direct, ms": ("direct", "seconds", 1000),
}


def readings_table(records: list[dict], columns: dict[str, tuple[str, str, float]]) -> str:
    """Markdown: a line per row and noise, a column per reading of the first split, by LOOKS (whose
    image is looked at, T = 1) or PRICE (what thinking costs: tokens, and CPU ms, per question).
    """
    lines = []
    for (row, noise), runs in by_row(records).items():
        finals = [next(iter(run["final"].values())) for run in runs]
        lines.append([row, f"{noise:g}", str(len(runs))])
        for reading, name, scale in columns.values():
            values = [final.get(reading, {}).get(name) for final in finals]
            lines[-1].append(cell(values, 1, scale))
    return markdown(["row", "noise", "runs", *columns], lines)


def by_row(records: list[dict]) -> dict[tuple[str, float], list[dict]]:
    """The records of each row, by its label and its noise."""
    found = {}
    for record in records:
        found.setdefault((label(record, records), record["trace_noise"]), []).append(record)
    return found


def label(record: dict, records: list[dict]) -> str:
    """A record's row, with what tells it from other records of this row."""
    told = record["row"]
    # Curr-ReFT's steps depend on what its rejected sampling keeps
    for name in ("base_format_rate",) if record.get("stages") else ("base_format_rate", "steps"):
        if len({r.get(name) for r in records if r["row"] == record["row"]}) > 1:
            told += f", {name} {record.get(name)}"
    return told


def paired(records: list[dict], a: str, *others: str) -> str:
    """a minus each of the others on the same base, noise and seed: mean difference in points with
    Student's 95 % interval, and the same by Bonferroni's correction for so many comparisons.
    """
    runs, differences = {}, {}
    for r in records:
        about = (r["trace_noise"], r["base_seed"], r["seed"], r["base_format_rate"])
        runs.setdefault(about, {})[r["row"]] = r["final"]
    for b, ((noise, *_), found) in itertools.product(others, sorted(runs.items())):
        if a in found and b in found:
            for split, reading in itertools.product(found[a], ("greedy", "sampled")):
                ours, theirs = (found[row][split][reading]["accuracy"] for row in (a, b))
                name = split if reading == "greedy" else f"{split}, T = 1"
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
    """Student's t with so many degrees of freedom that two-sided has this confidence: bisection
    over its density, integrated with t = sqrt(freedom) tan(angle).
    """
    scale = math.gamma((freedom + 1) / 2) / math.sqrt(math.pi) / math.gamma(freedom / 2)
    low, high = 0.0, math.pi / 2
    for _ in range(40):
        angle = (low + high) / 2
        middles = [angle * (i + 0.5) / 1000 for i in range(1000)]
        inside = 2 * scale * angle * mean(math.cos(middle) ** (freedom - 1) for middle in middles)
        low, high = (angle, high) if inside < confidence else (low, angle)
    return math.sqrt(freedom) * math.tan(angle)


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
    columns = list(itertools.product(("judge", "choice", "open"), TASKS))
    lines = []
    for row, found in rows.items():
        for split in found[0]:
            cells = [
                cell([accuracy(r[split][form], task) for r in found]) for form, task in columns
            ]
            lines.append([row, split, *cells])
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
