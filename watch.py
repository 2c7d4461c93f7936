"""
What happens beside the loop: validation on the way, checkpoints, and an end that loses nothing.

Left out: how a checkpoint is written so that it is whole or not there (checkpoint.py).
"""

from contextlib import contextmanager
from dataclasses import asdict

import torch

from lib import checkpoint
from data import InputError
from evaluate import evaluate
from lib.memory import FLAGS
from run import Run


def look_and_save(run: Run, step: int) -> None:
    """
    After `step` updates: validation and a checkpoint where they are due; the end of a run that
    only fails.
    """
    config, state, best = run.config, run.state, False
    if step % config.eval_steps == 0:
        settings = run.settings("max_completion_length", "max_pixels", "seed")
        settings["score"] = run.task.score
        reading = evaluate(run.model, run.processor, run.task.val, **settings)
        best = reading["accuracy"] > max((past["accuracy"] for past in state["val"]), default=-1.0)
        state["val"].append({"step": step, **reading})
        found = "accuracy {accuracy:.3f}, format {format:.3f}".format(**reading)
        run.log.say(f"step {step}, {config.eval_split}: {found}")
    stuck = state["bad_steps"] >= config.max_bad_steps
    due = step % config.save_steps == 0 or step == config.max_steps
    saved = save(run, best) if best or stuck or due else ""
    if stuck:
        raise InputError(
            f"--max_bad_steps: the gradient was not finite for {state['bad_steps']} steps in a "
            f"row; {saved} with the last good weights; lower --learning_rate and --resume"
        )


def save(run: Run, best: bool = False) -> str:
    """
    A checkpoint of the run as it stands, written by the first process; says whether it lies there.
    """
    config, step, written = run.config, run.state["step"], True
    if run.log.active:
        state = {**run.state, **run.log.positions(), "config": asdict(config)}
        written = checkpoint.save_checkpoint(
            config.output_dir,
            step,
            run.model,
            run.processor,
            run.optimizer,
            state,
            save_total_limit=config.save_total_limit,
            best=best,
        )
    return f"step {step} is saved" if written else f"step {step} could NOT be saved"


@contextmanager
def out_of_memory(run: Run):
    """Memory that runs out ends the run in one line, after saving the last whole step."""
    try:
        yield
    except torch.OutOfMemoryError:
        run.optimizer.zero_grad()
        torch.cuda.empty_cache()
        raise InputError(
            f"out of memory; {save(run)}; what helps: {FLAGS}; then --resume"
        ) from None
