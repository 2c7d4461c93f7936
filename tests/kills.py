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
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    args = parser.parse_args(argv)
    moments, count, ends = random.Random(args.seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        run(folder, "first", faults=(lively,))  # waits for the imports
        began = time.perf_counter()
        code, said = run(folder, "whole", faults=(lively,))
        took = time.perf_counter() - began
        assert code == 0, said
        whole = outcome(folder / "whole")
        print(f"seed {args.seed}; the unbroken run takes {took:.1f} s")
        while count < args.kills:
            ends += 1
            name, again = f"run{ends}", []
            while True:
                process = start(folder, name, *again, faults=(lively,))
                life = moments.uniform(0, took)
                process.join(life if count < args.kills else None)
                process.kill()
                process.join()
                if process.exitcode != -signal.SIGKILL:
                    break
                count += 1
                found = find_checkpoint(folder / name)
                again = ["--resume"] if found else ["--overwrite"]
                left = [path.name for path in (folder / name / "checkpoints").glob("*.tmp-*")]
                told = f"kill {count:2d}: {life:5.2f} s after a start; from {found and found.name}"
                print(told, *left, flush=True)
            assert process.exitcode == 0, (folder / f"{name}.said").read_text()
            ended = outcome(folder / name)
            different = [part for part in whole if whole[part] != ended[part]]
            assert not different, f"{name}: another {different} than the unbroken run's"
    print(f"{count} kills, {ends} runs resumed to their end, all equal to the unbroken one")


if __name__ == "__main__":
    main(sys.argv[1:])
