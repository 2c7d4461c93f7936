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
    left, moments, ends = parser.parse_args(argv).kills, random.Random(0), 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        run(folder, "first", faults=(lively,))  # waits for the imports
        began = time.perf_counter()
        code, said = run(folder, "whole", faults=(lively,))
        took = time.perf_counter() - began
        assert code == 0, said
        while left:
            ends += 1
            name, code, again = f"run{ends}", -signal.SIGKILL, []
            while code == -signal.SIGKILL:
                process = start(folder, name, *again, faults=(lively,))
                process.join(moments.uniform(0, took) if left else None)
                process.kill()
                process.join()
                code = process.exitcode
                left -= code == -signal.SIGKILL
                found = find_checkpoint(folder / name)
                again = ["--resume" if found else "--overwrite"]
                print(f"{name}: ended with {code} at {found}; {left} kills are left", flush=True)
            assert code == 0, (folder / f"{name}.said").read_text()
            assert outcome(folder / name) == outcome(folder / "whole"), name
    print(f"{ends} runs resumed to their end, all equal to the unbroken one")


if __name__ == "__main__":
    main(sys.argv[1:])
