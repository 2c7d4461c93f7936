"""
What a run needs before its first step: model, data, optimizer, rewards, logs, and where it stands
if it is resumed.

Kept out of train.py so that the loop there stays the paper's algorithm box. Left out: anything
that happens at a step.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from lib import checkpoint
from checker import score
from data import InputError, NoSplit, load_data
from evaluate import evaluate_all
from lib.families import checkpoint_activations, load_vlm, parameter_counts
from judge import open_judge
from config import Config
from lib.memory import memory_estimate, report_memory, shape_of
from lib.log import Log, summary
from model import encode_prompt
from lib.optim import build_optimizer
from lib.ranks import Ranks, broadcast_object
from rewards import load_reward
from template import restore_template, save_template
from lib.tiny import base_model

# flags that may change when a run is resumed
FREE_TO_CHANGE = {
    "resume",
    "overwrite",
    "output_dir",
    "save_steps",
    "save_total_limit",
    "num_threads",
    "data_dir",
}


@dataclass
class Task:
    """
    What a run learns from, is watched on and is measured by, lists of Examples; and how responses
    are scored.
    """

    train: Sequence
    val: Sequence
    finals: dict[str, Sequence]
    score: Callable = score  # checker.score, or a stage's, see curr_reft.py


@dataclass
class Run:
    """Everything that the loop holds on to. state is what a checkpoint remembers of it, JSON."""

    config: Config
    ranks: Ranks
    log: Log
    model: torch.nn.Module
    processor: object
    task: Task
    optimizer: torch.optim.Optimizer
    ref_model: torch.nn.Module | None
    own_reward: Callable | None
    judge: object | None
    state: dict

    def settings(self, *names: str) -> dict:
        """Some of the knobs, as keyword arguments."""
        return {name: getattr(self.config, name) for name in names}


def prepare_run(config: Config, ranks: Ranks, task: Task | None = None) -> Run:
    """
    Load everything, resume if asked to, read the starting model; InputError before anything is
    written over.
    """
    log = Log(config.output_dir, ranks.rank == 0)
    own_reward = load_reward(config.reward)
    found = broadcast_object(find_run(config) if log.active else None, ranks)
    log.open(fresh=found is None)
    model, processor = load_model(config, ranks.device)
    task = task or load_task(config, log)
    finish_config(config, model, ranks, len(task.train))
    ref_model = None
    if config.beta > 0:
        reference = replace(config, model=config.ref_model or config.model)
        ref_model = load_model(reference, ranks.device)[0].requires_grad_(False)
    betas = (config.adam_beta1, config.adam_beta2)
    optimizer = build_optimizer(
        model, config.optim, config.learning_rate, config.weight_decay, betas, seed=config.seed
    )
    judge = None
    if config.judge_url:
        knobs = {"parallel": config.judge_parallel, "timeout": config.judge_timeout}
        judge = open_judge(
            config.judge_url, config.judge_model, output_dir=config.output_dir, **knobs
        )
    log.say(
        "{}: {:,} parameters train, {:,} are frozen".format(config.model, *parameter_counts(model))
    )
    log.say(
        f"{len(task.train)} training examples, {config.max_steps} steps of "
        f"{config.prompts_per_step} prompts"
    )

    state = {"step": 0, "seconds": 0.0, "bad_steps": 0, "val": [], "base": {}}
    run = Run(
        config, ranks, log, model, processor, task, optimizer, ref_model, own_reward, judge, state
    )
    if found:
        run.state.update(resume(config, found, model, optimizer, log))
        if judge:
            restore_template(judge, run.state["step"])
    if judge and log.active:
        save_template(judge)
    for line in estimate_memory(run):
        log.say(line)
    if log.active:
        checkpoint.clean_checkpoints(config.output_dir, run.state["step"])
    if config.eval_base and not run.state["base"]:
        run.state["base"] = read_finals(run, "base")
    return run


def estimate_memory(run: Run) -> list[str]:
    """
    memory.py's estimate for the longest of the first prompts, as lines; on CUDA with a warning if
    it won't fit.
    """
    config = run.config
    first = [run.task.train[i] for i in range(min(8, len(run.task.train)))]
    prompts = [
        encode_prompt(run.processor, example, max_pixels=config.max_pixels) for example in first
    ]
    longest = max(prompts, key=lambda prompt: prompt.input_ids.shape[1])
    knobs = run.settings(
        "num_generations", "max_completion_length", "micro_batch_prompts", "head_chunk_tokens"
    )
    knobs |= run.settings("gradient_checkpointing", "beta")
    share = -(-config.prompts_per_step // run.ranks.world_size)
    shape = shape_of(run.model, longest, prompts_per_step=share, **knobs)
    return report_memory(memory_estimate(run.model, shape), run.ranks.device)


def read_finals(run: Run, title: str) -> dict[str, dict]:
    """evaluate_all on each of the last evaluation's splits, said as lines."""
    readings = {}
    for split, examples in run.task.finals.items():
        settings = run.settings("max_completion_length", "max_pixels", "seed")
        readings[split] = evaluate_all(
            run.model, run.processor, examples, score=run.task.score, **settings
        )
        run.log.say(summary(f"{title}, {split}", readings[split]))
    return readings


def load_model(config: Config, device):
    """
    The model to train and its processor: from the hub, from a folder, or the tiny one after its
    base stage.
    """
    if config.model == "tiny":
        taught = (
            config.base_format_rate,
            config.freeze_vision,
            config.base_tasks,
            config.base_task_steps,
        )
        model, processor = base_model(config.base_steps, config.base_seed, *taught)
        return model.to(device), processor
    dtype = config.dtype or ("bf16" if device.type == "cuda" else "fp32")
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    return load_vlm(config.model, dtype=dtype, device=device, freeze_vision=config.freeze_vision)


def make_base(config: Config, ranks: Ranks) -> None:
    """
    The tiny model's base stage, by the first process alone: transformers saves a whole model on no
    other.
    """
    if config.model == "tiny" and ranks.world_size > 1:
        if ranks.rank == 0:
            load_model(config, ranks.device)
        broadcast_object(None, ranks)  # the others wait here, and then find it made


def load_split(config: Config, split: str, size: int | None, tasks=("chart",)):
    """
    One split of the configured data set; of the training split alone the noise, the choice and the
    traces.
    """
    training = split == "train"
    return load_data(
        config.dataset,
        split,
        config.data_dir,
        size=size,
        data_seed=config.data_seed,
        trace_noise=config.trace_noise,
        questions=config.questions if training else "all",
        traces=config.traces if training else None,
        tasks=tasks,
    )


def load_finals(config: Config, log: Log) -> dict:
    """
    The splits of the last evaluation: those asked for; else test and ood as far as the data has
    them, or eval_split.
    """
    if config.final_splits is not None:
        return {split: load_split(config, split, config.eval_size) for split in config.final_splits}
    finals = {}
    for split in ("test", "ood") if config.dataset == "charts" else ("test",):
        try:
            finals[split] = load_split(config, split, config.eval_size)
        except NoSplit as error:
            log.say(f"{error}; evaluating {config.eval_split} in its place")
    return finals or {config.eval_split: load_split(config, config.eval_split, config.eval_size)}


def load_task(config: Config, log: Log) -> Task:
    """The configured data set's splits, scored by the answer metric."""
    train_split = load_split(config, "train", config.train_size)
    return Task(
        train_split,
        load_split(config, config.eval_split, config.eval_size),
        load_finals(config, log),
    )


def find_run(config: Config):
    """
    The checkpoint to go on from, or None for a new run; InputError rather than writing over
    another run.
    """
    if config.resume:
        found = checkpoint.find_checkpoint(
            config.output_dir if config.resume == "last" else config.resume
        )
        if found is None:
            raise InputError(
                f"--resume: no complete checkpoint in {config.output_dir}; start without --resume"
            )
        return found
    if (Path(config.output_dir) / "metrics.jsonl").exists() and not config.overwrite:
        raise InputError(
            f"{config.output_dir}: holds a run; --resume it, --overwrite it, "
            "or give another --output_dir"
        )
    return None


def resume(config: Config, found, model, optimizer, log: Log) -> dict:
    """
    Put a checkpoint into model, optimizer and logs; returns the loop's state. Says which flags
    have changed.
    """
    state = checkpoint.load_checkpoint(found, model, optimizer)
    for change in checkpoint.changed_flags(state.pop("config"), asdict(config), FREE_TO_CHANGE):
        log.say(f"warning: resumed with another {change}")
    log.cut(state)
    log.say(f"resumed from {found} at step {state['step']}")
    best = max(state["val"], key=lambda reading: reading["accuracy"], default={"step": None})
    if log.active and best["step"] == state["step"]:  # a kill can fall between checkpoint and name
        checkpoint.name_best(config.output_dir, state["step"])
    return {name: state[name] for name in ("step", "seconds", "bad_steps", "val", "base")}


def finish_config(config: Config, model, ranks: Ranks, examples: int) -> None:
    """The knobs that depend on the model or on the number of training examples."""
    if config.prompts_per_step < ranks.world_size:
        raise InputError(
            f"--prompts_per_step {config.prompts_per_step}: "
            f"{ranks.world_size} processes need at least one each"
        )
    if config.max_steps is None:
        config.max_steps = max(1, int(config.num_train_epochs * examples / config.prompts_per_step))
    config.eval_steps = config.eval_steps or max(1, config.max_steps // 10)
    config.save_steps = config.save_steps or config.max_steps
    config.eval_base = config.model == "tiny" if config.eval_base is None else config.eval_base
    if config.optim is None:
        config.optim = "adamw_bf16" if next(model.parameters()).dtype == torch.bfloat16 else "adamw"
    if config.gradient_checkpointing:
        checkpoint_activations(model)
