"""Kills runs of train.py at random moments and resumes them, and compares each end.

python -m tests.kills --kills 20
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from lib.checkpoint import find_checkpoint
from tests.test_resume import lively, outcome, run, start


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="tests.kills", description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="how many (%(default)s)")
    left, moments, ends, again = parser.parse_args(argv).kills, random.Random(0), 0, []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name in ("first", "whole"):  # the first one waits for the imports
            began = time.perf_counter()
            code, said = run(folder, name, faults=(lively,))
            assert code == 0, said
        took = time.perf_counter() - began
        while left or again:
            process = start(folder, f"run{ends}", *again, faults=(lively,))
            process.join(moments.uniform(0, took) if left else None)
            process.kill()
            process.join()
            if process.exitcode == -signal.SIGKILL:
                found = find_checkpoint(folder / f"run{ends}")
                again, left = ["--resume" if found else "--overwrite"], left - 1
                print(f"killed, goes on from {found}; {left} kills left", flush=True)
            else:
                assert outcome(folder / f"run{ends}") == outcome(folder / "whole")
                again, ends = [], ends + 1
    print(f"{ends} runs resumed to their end, all equal to the unbroken one")


if __name__ == "__main__":
    main(sys.argv[1:])
