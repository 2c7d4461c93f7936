"""The files of a run's folder, and what a person sees while it goes on."""

import importlib
import json
import math
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import IO

from tqdm import tqdm

from data.example import InputError
from data.reading import read_lines, write_whole, written_here


@dataclass
class Log:
    """The files of a run's folder; only the first process (active) writes and speaks."""

    output_dir: str
    active: bool
    held: IO | None = None  # the open lock file
    track: Callable[[int, dict], None] = lambda step, scalars: None  # see open_tracker

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
            flock(self.held, LOCK_EX | LOCK_NB)
        except OSError as error:
            told = f"can't be written to ({error.strerror})"
            if isinstance(error, BlockingIOError):
                told = "another process is at work in it; wait for its end"
            raise InputError(f"--output_dir {self.output_dir}: {told}, or give another") from None

    def append(self, name: str, line: dict) -> None:
        """One JSON line, in ASCII, to a file of the run; NaN and infinity become null."""
        if self.active:
            unsaid = {k: None for k, v in line.items() if v != v or v in (math.inf, -math.inf)}
            with open(Path(self.output_dir) / name, "a") as file:
                file.write(json.dumps({**line, **unsaid}) + "\n")

    def write(self, name: str, content: dict) -> None:
        """A whole JSON file of the run."""
        if self.active:
            text = json.dumps(content, indent=1, ensure_ascii=False)
            write_whole(Path(self.output_dir) / name, text)

    def begin(self, step: int) -> None:
        """What an earlier run left goes, but for the lines of the steps before this one."""
        if not self.active:
            return
        for path in (Path(self.output_dir, name) for name in ("metrics.jsonl", "groups.jsonl")):
            with written_here(path):
                rows = read_lines(path, ("step",)) if step else []
                rows = [row for row in rows if row["step"] < step]
            write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
        Path(self.output_dir, "result.json").unlink(missing_ok=True)


def open_tracker(name: str, folder: str, config: dict, step: int) -> Callable[[int, dict], None]:
    """A function that gives a step's scalars to a tracker; InputError where it isn't installed.
    step: where the run starts: TensorBoard forgets what is behind it, in the others a run begins.
    """
    try:
        library = importlib.import_module(
            {"tensorboard": "torch.utils.tensorboard"}.get(name, name)
        )
    except ImportError:
        raise InputError(f"--report_to {name}: is not installed; pip install {name}") from None
    if name != "tensorboard":
        run = library.init(project="dyme", name=f"{folder}, from step {step}", config=config)
        return lambda step, scalars: run.log(scalars, step=step)
    writer = library.SummaryWriter(folder, purge_step=step)

    def track(step: int, scalars: dict) -> None:
        for key, value in scalars.items():
            writer.add_scalar(key, value, step)
        writer.flush()

    return track


class Lines:
    """Standard error without a terminal: what a bar writes over itself becomes a line."""

    def write(self, text: str) -> None:
        if text := text.replace("\x1b[A", "").strip():  # a bar below another moves the cursor up
            sys.stderr.write(text + "\n")


def progress(items: Iterable, what: str, **about) -> tqdm:
    """tqdm, by the first process: a bar on a terminal, elsewhere a line every 30 seconds."""
    about.update(desc=what, miniters=1, disable=os.environ.get("RANK", "0") != "0")
    if not sys.stderr.isatty():
        about.update(file=Lines(), mininterval=30, maxinterval=30, delay=30, ascii=True, ncols=120)
    return tqdm(items, **about)


def visible(text: str) -> str:
    """Text with what could act on a terminal or hide in a page spelled out: \\x1b, \\u202e; line
    ends, tabs and blanks of any kind stay.
    """
    fine = {c for c in text if c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs"}
    return "".join(c if c in fine else c.encode("unicode_escape").decode() for c in text)


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
