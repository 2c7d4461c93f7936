"""load_data: a split of any data set as a list of Examples."""

from collections.abc import Sequence

from data.aokvqa import load_aokvqa
from data.chartqa import load_chartqa
from data.charts import load_charts
from data.example import SPLITS, Example, InputError, NoSplit
from data.gsm8k import load_gsm8k
from data.images import open_image
from data.own import attach, load_own
from data.tsv import read_tsv

__all__ = ["Example", "InputError", "NoSplit", "load_data", "open_image"]

# To add a data set: load(split, data_dir, skip_bad_rows), which returns a list of Examples, its
# line here, and where its knobs differ from ChartQA's an entry in config.DEFAULTS. --dataset
# mine.jsonl needs no code.
PUBLISHED = {"chartqa": load_chartqa, "gsm8k": load_gsm8k, "aokvqa": load_aokvqa}


def load_data(
    name: str,
    split: str,
    data_dir: str | None = None,
    *,
    size: int | None = None,
    data_seed: int = 0,
    trace_noise: float = 0.0,
    traces: str | None = None,
    facts: str | None = None,
    tasks: Sequence[str] = ("chart",),
    skip_bad_rows: bool = False,
) -> Sequence[Example]:
    """The Examples of a split: "train", "val" or "test" (charts also "ood") of a data set.

    name: charts, chartqa, gsm8k, aokvqa, or a path ending in .jsonl, .json, .tsv. data_dir: where
    its files are. size: the first so many; of charts, how many are drawn. data_seed, trace_noise,
    tasks (charts.TASKS): charts only. traces, facts: a .jsonl of reference traces, of visual facts.
    skip_bad_rows: they are left out and counted, not an InputError.
    """
    if size is not None and size < 1:
        raise InputError(f"{name}: size {size} must be 1 or more")
    if name in PUBLISHED and split not in SPLITS:
        raise NoSplit(f"{name} has no split {split}: it has {', '.join(SPLITS)}")
    if name == "charts":
        examples = load_charts(split, size, data_seed, trace_noise, tasks)
    elif name in PUBLISHED:
        examples = PUBLISHED[name](split, data_dir, skip_bad_rows)[:size]
    elif name.lower().endswith((".jsonl", ".json")):
        examples = load_own(name, split, data_dir, skip_bad_rows)[:size]
    elif name.lower().endswith(".tsv"):
        examples = load_own(name, split, data_dir, skip_bad_rows, read_tsv)[:size]
    else:
        known = ", ".join(["charts", *PUBLISHED])
        raise InputError(
            f"--dataset {name}: must be {known}, or a path ending in .jsonl, .json, .tsv"
        )
    if not examples:
        raise NoSplit(f"{name}: no examples in the split {split}")
    for field, path in (("trace", traces), ("facts", facts)):
        examples = attach(examples, field, path) if path else examples
    return examples
