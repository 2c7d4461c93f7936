"""load_data: a split of any data set as a list of Examples."""

from collections.abc import Sequence
from pathlib import Path

from data.charts import SIZES, load_charts
from data.example import SPLITS, Example, InputError, NoSplit
from data.images import open_image
from data.own import attach, load_own, read_own
from data.published import load_aokvqa, load_chartqa, load_gsm8k
from data.tsv import read_tsv

__all__ = ["Example", "InputError", "NoSplit", "load_data", "open_image"]

# To add a data set: load(split, data_dir, skip_bad_rows), which returns a list of Examples, a line
# here, and where its knobs differ from ChartQA's an entry in their defaults in config.py.
PUBLISHED = {"chartqa": load_chartqa, "gsm8k": load_gsm8k, "aokvqa": load_aokvqa}
OWN = {".jsonl": read_own, ".json": read_own, ".tsv": read_tsv}


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
    """The Examples of a split: "train", "val" or "test" (charts also "ood") of a data set: charts,
    one of PUBLISHED, or a path of OWN. data_dir: where its files are. size: the first so many.
    data_seed, trace_noise, tasks: of charts. traces, facts: .jsonl files of them. Bad rows are an
    InputError, or with skip_bad_rows left out and counted.
    """
    ending, splits = Path(name).suffix.lower(), SIZES if name == "charts" else SPLITS
    if split not in splits:
        raise NoSplit(f"{name} has no split {split}: it has {', '.join(splits)}")
    if name == "charts":
        examples = load_charts(split, size, data_seed, trace_noise, tasks)
    elif name in PUBLISHED:
        examples = PUBLISHED[name](split, data_dir, skip_bad_rows)[:size]
    elif ending in OWN:
        examples = load_own(name, split, data_dir, skip_bad_rows, OWN[ending])[:size]
    else:
        known = ", ".join(["charts", *PUBLISHED])
        raise InputError(f"--dataset {name}: must be {known}, or a path to {', '.join(OWN)}")
    if not examples:
        raise NoSplit(f"{name}: no examples in the split {split} (others: --final_splits)")
    for field, path in (("trace", traces), ("facts", facts)):
        if path:
            attach(examples, field, path, skip_bad_rows)
    return examples
