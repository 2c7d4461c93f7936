"""The log of a run: what a step looked like, in one line of <output_dir>/metrics.jsonl.

Sums first, so that several processes can add theirs up; then means, under TRL's names where TRL
has one. What to watch, and why, is in the README.
"""

import importlib
import json
import math
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from data.example import InputError
from data.reading import write_whole

try:
    import fcntl
except ImportError:  # Windows has no such lock
    fcntl = None

# of a step's responses: summed up, and divided by their number
PER_RESPONSE = {
    "total": "reward",
    "format": "rewards/format/mean",
    "accuracy": "rewards/accuracy/mean",
    "thinking": "rewards/thinking/mean",
    "correct": "correct",  # right and in the right format: what the switch counts
    "length": "completions/mean_length",  # tokens
    "truncated": "completions/clipped_ratio",
    "distinct": "distinct",
    "advantage": "advantage",  # its size
}
# of the groups, of which MODE_NAMES' shares are logged too
PER_GROUP = {"equal": "frac_reward_zero_std", "all_wrong": "all_wrong", "all_right": "all_right"}
# of the tokens that were sampled and learned from
PER_TOKEN = {"kl": "kl", "ratio": "ratio", "approx_kl": "approx_kl"}
PER_TOKEN |= {"clip_low": "clip_ratio/low_mean", "clip_high": "clip_ratio/high_mean"}


def group_sums(groups: list, mode_names: tuple[str, ...]) -> dict[str, float]:
    """Sums over some Groups and their responses, to be added up over processes; see `means`."""
    sums = dict.fromkeys([*mode_names, *PER_GROUP, *PER_RESPONSE, "responses"], 0.0)
    sums["groups"] = float(len(groups))
    for group in groups:
        sums[mode_names[group.mode]] += 1
        if not group.responses:
            continue
        total, correct = group.rewards["total"], group.rewards["correct"]
        sums["equal"] += float((total == total[0]).all())
        sums["all_wrong"] += float(not correct.any())
        sums["all_right"] += float(correct.all())
        for name in ("total", "format", "accuracy", "thinking", "correct"):
            sums[name] += group.rewards[name].sum().item()
        sums["responses"] += len(group.responses)
        sums["length"] += sum(len(response.token_ids) for response in group.responses)
        sums["truncated"] += sum(response.truncated for response in group.responses)
        sums["distinct"] += len({tuple(response.token_ids) for response in group.responses})
        sums["advantage"] += group.advantages.abs().sum().item()
    return sums


def means(sums: dict[str, float], mode_names: tuple[str, ...]) -> dict[str, float]:
    """A metrics line's shares and means from the step's sums."""
    groups = max(sums["groups"], 1)
    line = {f"share_{name}": sums[name] / groups for name in mode_names}
    if sums["responses"]:
        line |= {shown: sums[name] / groups for name, shown in PER_GROUP.items()}
        line |= {shown: sums[name] / sums["responses"] for name, shown in PER_RESPONSE.items()}
    sampled = max(sums.get("sampled_tokens", 0), 1)
    line |= {shown: sums.get(name, 0.0) / sampled for name, shown in PER_TOKEN.items()}
    line["entropy"] = sums.get("entropy", 0.0) / max(sums.get("tokens", 0), 1)
    if sums.get("memorized_rows"):
        line["nll"] = sums["nll"] / sums["memorized_rows"]
    line["loss"] = sums.get("loss", 0.0)
    line["skipped_prompts"] = sums["skipped"]
    asked = {name: sums[name] for name in sums if name.startswith(("judge_", "refiner_"))}
    return {**line, **asked}


@dataclass
class Log:
    """The files of a run's folder; only the first process (active) writes and speaks."""

    output_dir: str
    active: bool
    held: IO | None = None  # the open lock file
    tracker: Callable[[int, dict], None] | None = None  # see open_tracker

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        if self.active:
            tqdm.write(text)

    def lock(self) -> None:
        """Make the folder and keep it until this process ends; InputError where another does."""
        if not self.active:
            return
        try:
            Path(self.output_dir).mkdir(parents=True, exist_ok=True)
            self.held = open(Path(self.output_dir) / ".lock", "w")
            if fcntl:
                fcntl.flock(self.held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            told = "another process is at work in it; wait for its end or give another --output_dir"
            raise InputError(f"{self.output_dir}: {told}") from None
        except OSError as error:
            told = f"can't be written to ({error.strerror}); give another"
            raise InputError(f"--output_dir {self.output_dir}: {told}") from None

    def open(self, fresh: bool) -> None:
        """Begin: a fresh run without what an earlier one logged."""
        for name in ("metrics.jsonl", "groups.jsonl", "result.json"):
            if fresh and self.active:
                (Path(self.output_dir) / name).unlink(missing_ok=True)

    def append(self, name: str, line: dict) -> None:
        """One JSON line to a file of the run; NaN and infinity, which JSON lacks, as null."""
        if self.active:
            unsaid = {k: None for k, v in line.items() if v != v or v in (math.inf, -math.inf)}
            text = json.dumps({**line, **unsaid}, ensure_ascii=False)
            # of control characters JSON escapes only some: the others would act on a terminal
            text = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
            with open(Path(self.output_dir) / name, "a", encoding="utf-8") as file:
                file.write(text + "\n")
            if name == "metrics.jsonl":
                self.track(**line)

    def track(self, step: int, **scalars) -> None:
        """What metrics.jsonl gets for a step, to the tracker too, if there is one."""
        if self.active and self.tracker:
            self.tracker(step, scalars)

    def write(self, name: str, content: dict) -> None:
        """A whole JSON file of the run."""
        if self.active:
            text = json.dumps(content, indent=1, ensure_ascii=False)
            write_whole(Path(self.output_dir) / name, text)

    def positions(self) -> dict[str, int]:
        """How far the line files are written, in bytes: what a checkpoint remembers of them."""
        paths = [Path(self.output_dir) / name for name in ("metrics.jsonl", "groups.jsonl")]
        return {path.name: path.stat().st_size if path.exists() else 0 for path in paths}

    def cut(self, positions: dict[str, int]) -> None:
        """Back to a checkpoint's positions, so that no step is twice in a file."""
        for name, position in positions.items() if self.active else ():
            path = Path(self.output_dir) / name
            if path.exists() and path.stat().st_size > position:
                os.truncate(path, position)


def open_tracker(name: str, folder: str, config: dict) -> Callable[[int, dict], None] | None:
    """A function that gives a step's scalars to tensorboard, wandb or trackio, under their names
    in metrics.jsonl; None for "none". InputError where it isn't installed.

    No step is there twice after --resume: TensorBoard forgets, in this folder, what is at and
    behind the step that the run goes on from; in the other two a new run goes on from there.
    """
    if name == "none":
        return None
    try:
        module = "torch.utils.tensorboard" if name == "tensorboard" else name
        library = importlib.import_module(module)
    except ImportError:
        raise InputError(f"--report_to {name}: is not installed; pip install {name}") from None
    run = None

    def track(step: int, scalars: dict) -> None:
        nonlocal run
        if name == "tensorboard":
            run = run or library.SummaryWriter(folder, purge_step=step)
            for key, value in scalars.items():
                run.add_scalar(key, value, step)
            run.flush()
        else:
            about = f"{folder}, from step {step}"
            run = run or library.init(project="dyme", name=about, config=config)
            run.log(scalars, step=step)

    return track


class Lines:
    """Standard error without a terminal: what a bar writes over itself becomes a line."""

    def write(self, text: str) -> None:
        text = text.replace("\x1b[A", "").strip()  # a bar below another one moves the cursor up
        if text:
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(items: Iterable, what: str, **about) -> tqdm:
    """tqdm over the items, with the seconds that are left, by the first process: a bar on a
    terminal, elsewhere a line every 30 seconds.
    """
    about.update(desc=what, miniters=1, disable=os.environ.get("RANK", "0") != "0")
    if not sys.stderr.isatty():
        about.update(file=Lines(), mininterval=30, maxinterval=30, delay=30, ascii=True, ncols=120)
    return tqdm(items, **about)


def visible(text: str) -> str:
    """Text with what could act on a terminal or hide in a page spelled out: \\x1b, \\u202e; line
    ends, tabs and blanks of any kind stay.
    """

    def spell(c: str) -> str:
        fine = c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs"
        return c if fine else c.encode("unicode_escape").decode()

    return "".join(map(spell, text))


def run_program(
    program: Callable, argv: list[str], advice: str = "the same command goes on from here"
) -> None:
    """Run program(argv); bad input ends in one line and exit code 2, Ctrl-C in 130."""
    try:
        program(argv)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"interrupted; {advice}", file=sys.stderr)
        sys.exit(130)
