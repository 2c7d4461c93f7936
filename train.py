"""Train a small vision-language model to think: DyME, its baselines, one loop.

    python train.py                                   charts and a tiny model, on a CPU, in minutes
    python train.py --dataset chartqa                 LLaVA-OneVision-0.5B on ChartQA, on one GPU
    torchrun --nproc_per_node 4 train.py ...          the same on several

The loop in `train` is Algorithm 1 of DyME (arXiv 2506.23061): sample, score, switch, update. SFT,
GRPO and two-stage are the same loop with another `choose` (dyme.py); ten more rules are in
variants.py. What is checked before the first step is in start.py, what the loop stands on in
run.py, every flag in config.py. Curr-ReFT is a program above this one: curr_reft.py. Left out:
learned rewards, value networks, LoRA.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable

import torch

from config import Config, parse
from dyme import choose, normalizer, rows, update
from lib.log import run_program
from lib.optim import lr_at
from lib.ranks import Ranks, cleanup, setup_distributed, sum_gradients
from load import Task
from rollout import rollout
from run import Run, start


def train(config: Config, ranks: Ranks, task: Task | None = None) -> dict:
    """One run, from loading to the last evaluation.

    task: what to learn from, by default what config names. Returns what is written to
    <output_dir>/result.json.
    """
    with start(config, ranks, task) as run:  # resumed if asked, evaluated at the end
        model, processor, scorer = run.model, run.processor, run.scorer
        for step, groups in run.steps():  # this process's share of the step's P prompts, encoded
            # ---- G responses to each, unless they would not be looked at; scored as they end
            rollout(
                model,
                processor,
                [group for group in groups if group.mode is None],
                num_generations=config.num_generations,
                max_completion_length=config.max_completion_length,
                temperature=config.temperature,
                seed=config.seed,
                step=step,
                on_response=scorer.hear,
            )
            run.tick("rollout")

            # ---- the switch: none correct, memorize; some, explore; all, skip
            for group in groups:
                group.mode = choose(config, step, group)

            # ---- the update: SFT on what is memorized, GRPO on what is explored
            stats = Counter()
            divisor = normalizer(config, groups, ranks)  # of the whole step, all processes
            model.train(config.gradient_checkpointing)  # transformers checkpoints in no other mode
            for iteration in range(config.num_iterations):
                # a group is ready when its rewards are final; by the rules all are, at once
                for ready in scorer.ready(groups) if iteration == 0 else [groups]:
                    if iteration == 0:
                        for group in ready:
                            group.rows = rows(config, step, group, scorer, processor)
                    stats.update(update(model, ready, divisor, config, run.ref_model))
                sum_gradients(model, ranks)
                moved = optimizer_step(run, step)
            model.eval()
            run.tick("update")

            # ---- log, evaluate, save
            stats.update(scorer.end_step(step, groups, ranks))
            run.end_step(step, groups, stats, moved)
    return run.result


def optimizer_step(run: Run, step: int) -> dict[str, float | bool]:
    """Clip and apply the accumulated gradient, unless it isn't finite: then it is left out.

    Returns its norm before clipping, the learning rate, and whether it was finite.
    """
    config = run.config
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), config.max_grad_norm).item()
    peak, warmup = config.learning_rate * run.rate, config.warmup_steps
    rate = lr_at(step, config.max_steps, peak, warmup, config.lr_scheduler_type)
    for param_group in run.optimizer.param_groups:
        param_group["lr"] = rate
    finite = math.isfinite(norm)
    if finite:
        run.weights_step = None  # until the step's end they are no step's
        run.optimizer.step()
        run.state["updates"] += norm > 0
    run.optimizer.zero_grad()
    return {"grad_norm": norm, "learning_rate": rate, "finite": finite}


def launch(program: Callable[[Config, Ranks], object], config: Config) -> None:
    """Run program(config, ranks) in this process, one of those that torchrun started."""
    if config.model == "tiny":  # two threads are slower where a core has other work to do
        torch.set_num_threads(1)
    ranks = setup_distributed()
    program(config, ranks)
    cleanup(ranks)


def main(argv: list[str]) -> None:
    """The command line."""
    launch(train, parse(argv))


if __name__ == "__main__":
    run_program(main, sys.argv[1:], "what was saved goes on with --resume")
