"""Signals, and several processes (`torchrun --nproc_per_node N train.py ...`).

Each holds the whole model and a share of the prompts; gradients are summed once per step. A process
may skip all of its groups while another explores them, so each function here makes the same calls
whatever the data, or the others would wait for ever. Left out: sharded models.
"""

import os
import signal
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from data.example import InputError, shorten

ROWS = 4096  # of a gradient summed in one call: a vocabulary in fp32 is 1 GB
TIMEOUT = timedelta(minutes=30)  # then a process gives up on the others; an evaluation takes less


@dataclass
class Ranks:
    """This process's number, the number of processes, and this process's device."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")


def setup_distributed() -> Ranks:
    """Joins the other processes that torchrun started, if it did. InputError with too few GPUs."""
    device, backend = torch.device("cpu"), "gloo"
    if torch.cuda.is_available():
        local_rank, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if local_rank >= count:
            raise InputError(f"torchrun: only {count} GPUs here; give --nproc_per_node {count}")
        device, backend = torch.device("cuda", local_rank), "nccl"
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return Ranks(device=device)
    with lost_peers():
        dist.init_process_group(backend, timeout=TIMEOUT)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def cleanup(ranks: Ranks) -> None:
    """Leaves the group, at an orderly end; after an error the process just exits."""
    if ranks.world_size > 1:
        dist.barrier()  # nobody leaves while another one still talks to it
        dist.destroy_process_group()


@contextmanager
def lost_peers():
    """Ends this process with exit code 1 and one line when another one died or doesn't answer."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        text = "another process of this job ended or doesn't answer; see what it said, then"
        print(f"error: {text} --resume ({shorten(str(error))})", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(1)  # an orderly exit would wait for, or abort in, what is left of the connection


def shard(items: list, ranks: Ranks) -> list[tuple[int, object]]:
    """This process's share of `items`, each with its place in the whole list."""
    return list(enumerate(items))[ranks.rank :: ranks.world_size]


def gather(value, ranks: Ranks) -> list:
    """Every process's value, the first process's first."""
    everyone = [value] * ranks.world_size
    if ranks.world_size > 1:
        with lost_peers():
            dist.all_gather_object(everyone, value)
    return everyone


def gather_lists(items: list, ranks: Ranks) -> list:
    """The items of all processes' lists, the first process's first."""
    return sum(gather(items, ranks), [])


def broadcast_object(value, ranks: Ranks):
    """The first process's value on all of them; the others' is ignored."""
    return gather(value, ranks)[0]


def reduce_sums(values: dict[str, float], ranks: Ranks) -> Counter:
    """Each value summed over the processes; a name that a process doesn't have counts as 0."""
    sums = Counter()
    for one in gather(values, ranks):
        sums.update(one)
    return sums


@torch.no_grad()
def sum_gradients(model, ranks: Ranks) -> None:
    """Adds up the gradients of all processes, in fp32; one that is missing here counts as zeros,
    one that is missing everywhere stays so.
    """
    if ranks.world_size == 1:
        return
    params = [param for param in model.parameters() if param.requires_grad]
    owned = gather([param.grad is not None for param in params], ranks)
    for param, owners in zip(params, zip(*owned)):
        if not any(owners):
            continue
        if param.grad is None:
            param.grad = torch.zeros_like(param)
        for piece in torch.atleast_1d(param.grad).split(ROWS):
            total = piece.float().contiguous()
            with lost_peers():
                dist.all_reduce(total)
            piece.copy_(total)


class Interrupt:
    """Inside `with`, the first SIGINT or SIGTERM asks the loop, which looks at `agreed` once per
    step, to save and end. A second one ends the process as ever, but not under torchrun, which
    passes on what a scheduler may have sent to every process too.
    """

    def __enter__(self):
        self.signal = 0
        kinds = (signal.SIGINT, signal.SIGTERM)
        self.previous = {kind: signal.signal(kind, self.handle) for kind in kinds}
        return self

    def __exit__(self, *_):
        for kind, handler in self.previous.items():
            signal.signal(kind, handler)

    def handle(self, number, frame):
        self.signal = number
        # os.write: a print can't be used where it may interrupt another print.
        os.write(2, b"\ninterrupted: saving after this step; once more to exit at once\n")
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            self.__exit__()

    def agreed(self, ranks: Ranks) -> int:
        """The signal that any process got, or 0: the same on all, so that they end together."""
        return max(gather(self.signal, ranks))
