"""Readings: from what each response is worth (evaluate.marks) to the numbers of a split."""

import math

GROUNDED = 0.8  # what the visual checker gives thinking with which a right answer is grounded
# readings by marks: means over responses, and shares of the facts that are stated
MEANS = [("format", "format"), ("fact_f1", "thinking"), ("completion_length", "length")]
MEANS += [("truncated", "truncated")]
SHARES = {"fact_precision": "true", "true_of_own": "true_of_own", "true_of_neither": "untrue"}


def readings(rows: list[dict]) -> dict[str, float]:
    """Shares in [0, 1] of some `marks`, completion_length (tokens), count; None: nothing stated."""
    stated = sum(row["stated"] for row in rows)
    found = {name: mean([row[mark] for row in rows]) for name, mark in MEANS}
    for name, mark in SHARES.items():
        found[name] = sum(row[mark] for row in rows) / stated if stated else None
    found["grounded"] = mean([row["thinking"] >= GROUNDED for row in rows if row["accuracy"] > 0.5])
    found["count"] = len(rows)
    return found | {name: mean(right) for name, right in accuracies(rows).items()}


def accuracies(rows: list[dict]) -> dict[str, list[float]]:
    """The accuracies of some `marks`, and by task where there are several."""
    found = {"accuracy": [row["accuracy"] for row in rows]}
    tasks = sorted({row["task"] for row in rows})
    for task in tasks if len(tasks) > 1 else ():
        found[f"accuracy/{task}"] = [row["accuracy"] for row in rows if row["task"] == task]
    return found


def show_accuracies(rows: list[dict]) -> None:
    """Print the accuracies of some `marks`, each with its 95 % interval."""
    for name, right in accuracies(rows).items() if rows else ():
        low, high = interval(mean(right), len(right))
        print(f"{name} {mean(right):.3f} [{low:.3f}, {high:.3f}], {len(right)} questions")


def summary(title: str, ways: dict[str, dict]) -> str:
    """evaluate_all's result in one line."""
    greedy, sampled, direct = ways["greedy"], ways["sampled"], ways["direct"]
    low, high = interval(greedy["accuracy"], greedy["count"])
    true = sampled["fact_precision"]  # None where nothing is stated
    tasks = [name for name in greedy if name.startswith("accuracy/")]
    each = [f"{name.removeprefix('accuracy/')} {greedy[name]:.3f}" for name in tasks]
    parts = [
        f"accuracy {greedy['accuracy']:.3f} [{low:.3f}, {high:.3f}] greedy"
        + (f" ({', '.join(each)})" if len(each) == 2 else ""),  # ChartQA's human and augmented
        f"{sampled['accuracy']:.3f} at temperature 1",
        f"{direct['accuracy']:.3f} answering directly; format {greedy['format']:.3f}",
        "no facts stated" if true is None else f"stated facts true {true:.3f}",
        f"right answers grounded {greedy['grounded']:.3f} ({greedy['count']} questions)",
    ]
    return f"{title}: {', '.join(parts)}"


def mean(values: list) -> float:
    """The mean, 0 of nothing."""
    return sum(values) / max(len(values), 1)


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share that was counted on `count` items."""
    z = 1.96
    width = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / width
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / width
    return max(0.0, centre - half), min(1.0, centre + half)
