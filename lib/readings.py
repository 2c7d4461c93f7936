"""Readings: from what each response is worth (evaluate.marks) to the numbers of a split."""

import math

# a right answer counts as grounded when the visual checker gives its thinking at least this
GROUNDED = 0.8


def readings(rows: list[dict]) -> dict[str, float]:
    """Shares in [0, 1] of some `marks`, completion_length (tokens) and count.

    fact_precision: stated facts that are true, None where nothing is stated; fact_f1: the visual
    checker; grounded: of the right answers, those with thinking of at least GROUNDED.
    """
    stated = sum(row["stated"] for row in rows)
    found = {
        "accuracy": mean([row["accuracy"] for row in rows]),
        "format": mean([row["format"] for row in rows]),
        "fact_precision": sum(row["true"] for row in rows) / stated if stated else None,
        "fact_f1": mean([row["thinking"] for row in rows]),
        "grounded": mean([row["thinking"] >= GROUNDED for row in rows if row["accuracy"] > 0.5]),
        "true_of_own": sum(row["true_of_own"] for row in rows) / stated if stated else None,
        "true_of_neither": sum(row["untrue"] for row in rows) / stated if stated else None,
        "completion_length": mean([row["length"] for row in rows]),
        "truncated": mean([row["truncated"] for row in rows]),
        "count": len(rows),
    }
    return found | {f"accuracy/{task}": mean(own) for task, own in by_task(rows).items()}


def by_task(rows: list[dict]) -> dict[str, list[float]]:
    """The accuracies of some `marks` by task, where there are several."""
    tasks = sorted({row["task"] for row in rows})
    own = {task: [row["accuracy"] for row in rows if row["task"] == task] for task in tasks}
    return own if len(own) > 1 else {}


def show_accuracies(rows: list[dict]) -> None:
    """Prints the accuracy of some `marks`, and by task, with its 95 % interval."""
    every = {"all": [row["accuracy"] for row in rows]} if rows else {}
    for task, right in {**every, **by_task(rows)}.items():
        low, high = interval(mean(right), len(right))
        span = f"[{low:.3f}, {high:.3f}]"
        print(f"{task}: accuracy {mean(right):.3f} {span}, {len(right)} questions")


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


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The unbiased estimate of the chance that at least one of k samples is right, when `correct`
    of `samples` are, k <= samples (Chen et al. 2021, arXiv 2107.03374, eq. 1).
    """
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)
