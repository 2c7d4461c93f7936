"""
Runs: what train.py wrote into output folders, read back; and which of them are the same but for
the seed.

A run may still be going on: its result then comes from its last checkpoint, and a line that is
only half written is left out. Anything else that can't be read is an InputError with the file's
name, so that no picture lacks a piece unnoticed. For report.py, figures.py, gallery.py and
sample.py.
"""

import json
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data import InputError

# flags that don't change what is learned, or only by chance: runs that differ by these alone are
# one variant
SEEDS = {"seed", "base_seed", "data_seed"}
ASIDE = SEEDS | {
    *("output_dir", "data_dir", "overwrite", "resume", "num_threads"),
    *(
        "save_steps",
        "save_total_limit",
        "log_groups_every",
        "eval_steps",
        "eval_base",
        "final_splits",
    ),
}
NAMES = {"dyme": "DyME", "sft": "SFT", "grpo": "GRPO", "two_stage": "two-stage"}
COLOURS = 8  # figures.py has so many
FAVOURITE = {
    "dyme": 0,
    "grpo": 1,
    "sft": 2,
    "two_stage": 3,
}  # a method keeps its colour from report to report


@dataclass
class Run:
    """
    One output folder: its config, metrics by step, validation readings, and readings by split
    before and after.
    """

    folder: Path
    config: dict
    steps: list[dict]
    val: list[dict]
    base: dict
    final: dict

    @property
    def seconds(self) -> float:
        """What its steps have taken together."""
        return sum(line.get("seconds") or 0.0 for line in self.steps)


@dataclass
class Variant:
    """Runs that differ only by seed: the name that they go by and the index of their colour."""

    label: str
    colour: int
    runs: list[Run]


def read_lines(path: Path) -> list[dict]:
    """
    The objects of a jsonl file; a last line without its end is still being written, and left out.
    """
    rows = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            rows.append(None)
        if not isinstance(rows[-1], dict):
            raise InputError(f"{path}, line {number}: not a JSON object; remove the line")
    return rows


def read_run(folder) -> Run:
    """What a run has written so far; InputError, one line, for a folder that isn't a run's."""
    folder = Path(folder)
    if not (folder / "metrics.jsonl").is_file():
        raise InputError(
            f"{folder}: no metrics.jsonl; give folders that train.py wrote (its --output_dir)"
        )
    steps = read_lines(folder / "metrics.jsonl")
    if not steps:
        raise InputError(f"{folder}/metrics.jsonl: no step is logged yet; wait for the first one")
    state = read_state(folder)
    return Run(folder, state["config"], steps, state["val"], state["base"], state["final"])


def read_state(folder: Path) -> dict:
    """
    config, val, base and final of a run: from result.json, or from its last checkpoint while there
    is none.
    """
    state = {"config": {}, "val": [], "base": {}, "final": {}}
    checkpoints = [
        path for path in sorted(folder.glob("checkpoints/step-*")) if path.name[5:].isdigit()
    ]
    for path in [folder / "result.json", *(path / "state.json" for path in reversed(checkpoints))]:
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                wrong = [
                    name
                    for name in state
                    if not isinstance(found.get(name, state[name]), type(state[name]))
                ]
            except (ValueError, AttributeError, RecursionError):
                wrong = ["the file"]
            if wrong:
                raise InputError(
                    f"{path}: {', '.join(wrong)} isn't what train.py writes; remove the file"
                )
            return {name: found.get(name, empty) for name, empty in state.items()}
    return state


def visible(text: str) -> str:
    """
    Text with what could act on a terminal or hide in a page spelt out: \\x1b, \\u202e; line ends
    and tabs stay.
    """
    fine = ("\n", "\t")
    kept = (
        c if c.isprintable() or c in fine or unicodedata.category(c) == "Zs" else escape(c)
        for c in text
    )
    return "".join(kept)


def escape(character: str) -> str:
    """How Python writes a character that can't be shown."""
    return character.encode("unicode_escape").decode()


def group_seeds(runs: list[Run]) -> list[Variant]:
    """
    Runs that differ only by seed together, each variant named by what tells it from the others.
    """
    together = {}
    for run in runs:
        settings = {name: value for name, value in run.config.items() if name not in ASIDE}
        key = json.dumps(settings, sort_keys=True) if settings else str(run.folder)
        together.setdefault(key, []).append(run)
    usual = {}  # the commonest value of each setting: it needs no mention
    configs = [group[0].config for group in together.values()]
    for name in sorted(set().union(*configs) - ASIDE - {"method"}):
        written = [json.dumps(config[name]) for config in configs if name in config]
        usual[name] = Counter(written).most_common(1)[0][0]
    variants = []
    for group in together.values():
        config = group[0].config
        own = [
            f"{name} {config[name]}"
            for name in usual
            if name in config and json.dumps(config[name]) != usual[name]
        ]
        label = visible(", ".join([NAMES.get(config.get("method"), group[0].folder.name), *own]))
        if len(own) > 3 or label in [variant.label for variant in variants]:
            label = visible(group[0].folder.name)
        taken = [variant.colour for variant in variants]
        wanted = [FAVOURITE.get(config.get("method"), 4), *range(4, COLOURS), *range(4)]
        colour = next((colour for colour in wanted if colour not in taken), len(variants) % COLOURS)
        variants.append(Variant(label, colour, group))
    return variants
