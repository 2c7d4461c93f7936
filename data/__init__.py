"""load_data: a split of any data set as a list of Examples."""

from data import charts, published
from data.example import SPLITS, Example, InputError, NoSplit
from data.own import attach_traces, load_own
from data.reading import ZipImage, open_image

__all__ = ["Example", "InputError", "NoSplit", "ZipImage", "load_data", "open_image"]

# To add a data set: a function that returns a split as a list of Example (published.py has three),
# its name here, a line for it at the end of load_data, and where its knobs differ from ChartQA's,
# an entry in config.DEFAULTS. A file of one's own needs none of this: --dataset mine.jsonl.
NAMED = ("charts", "chartqa", "gsm8k", "aokvqa")


def load_data(
    name,
    split,
    data_dir=None,
    *,
    size=None,
    data_seed=0,
    trace_noise=0.0,
    questions="human",
    traces=None,
    cache_dir=None,
    tasks=("chart",),
):
    """A list-like of Example: split "train", "val" or "test" (charts also "ood") of a data set.

    name: charts, chartqa, gsm8k, aokvqa, or a path ending in .jsonl or .json. data_dir: where the
    files lie (see published.py, load_own). size: the first so many; for charts how many are drawn.
    data_seed, trace_noise, tasks (charts.TASKS): charts only. questions: "human", "augmented" or
    "all", where the data tells them apart. traces: a .jsonl of reference traces. Raises InputError,
    with every bad row.
    """
    if questions not in ("human", "augmented", "all"):
        raise InputError(f"--questions {questions}: must be human, augmented or all")
    if size is not None and size < 1:
        raise InputError(f"{name}: size {size} must be 1 or more")
    own = name.lower().endswith((".jsonl", ".json"))
    if name not in NAMED and not own:
        raise InputError(
            f"--dataset {name}: not known; known are {', '.join(NAMED)} "
            "and a path ending in .jsonl or .json"
        )
    if name in NAMED and name != "charts" and split not in SPLITS:
        raise NoSplit(f"{name} has no split {split}: it has {', '.join(SPLITS)}")
    if name == "charts":
        examples = charts.load_charts(split, size, data_seed, trace_noise, tasks)
    elif name == "chartqa":
        examples = published.load_chartqa(split, data_dir, questions, cache_dir)[:size]
    elif name == "gsm8k":
        examples = published.load_gsm8k(split, data_dir, cache_dir)[:size]
    elif name == "aokvqa":
        examples = published.load_aokvqa(split, data_dir, cache_dir)[:size]
    else:
        examples = load_own(name, split, data_dir, questions)[:size]
    if not len(examples):
        raise NoSplit(f"{name}: no examples in the split {split}")
    return attach_traces(examples, traces) if traces else examples
