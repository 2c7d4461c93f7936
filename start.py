"""What comes before a run's first step: what was asked for is checked, loaded, and resumed.

Nothing of an earlier run is written over, and no model is loaded, before all of the input was read.
Left out: how data and model are found (load.py), and the Run that the loop holds on to (run.py).
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch

from checker import Rules
from config import Config
from data import InputError
from data.fingerprint import changes, fingerprint
from data.reading import written_here
from dyme import HEAD_CHUNK, check_method
from judge import Judge
from lib import checkpoint
from lib.answers import reader
from lib.families import checkpoint_activations, parameter_counts
from lib.log import Log, open_tracker, visible
from lib.memory import FLAGS, machine_memory, memory_estimate, report_memory, shape_of
from lib.optim import allocate_states, build_optimizer
from lib.ranks import Interrupt, Ranks, broadcast_object
from load import Task, check_task, first_load, load_model, load_task
from model import Prompt, encode_prompts, get_tokenizer
from run import KEPT, Run, step_examples
from sft import target_text

# flags that may change when a run is resumed
FREE_TO_CHANGE = {"resume", "overwrite", "force", "output_dir", "data_dir"}
FREE_TO_CHANGE |= {"save_steps", "report_to"}
# and flags that may not: it would be another run under this one's name
FIXED = {"dataset", "method", "model", "seed", "trace_noise", "base_seed"}


@contextmanager
def start(config: Config, ranks: Ranks, task: Task | None = None) -> Iterator[Run]:
    """A Run, ready for its next step. Whatever error ends the loop, the last whole step is saved
    where the weights are still its, and memory that runs out ends it in one line.
    """
    # of a dry run nothing stays
    folder = tempfile.TemporaryDirectory() if config.dry_run else nullcontext(config.output_dir)
    with folder as config.output_dir:
        run = prepare(config, ranks, task)
        try:
            with Interrupt() as run.interrupt:
                yield run
        except Exception as error:
            run.optimizer.zero_grad()
            saved = run.save()
            if isinstance(error, torch.OutOfMemoryError):
                told = f"out of memory; {saved}; what helps: {FLAGS}; then --resume"
                raise InputError(told) from None
            run.log.say(f"ended by an error; {saved}")
            raise
        finally:
            run.scorer.close()


def prepare(config: Config, ranks: Ranks, task: Task | None) -> Run:
    """Load everything, resume if asked to, read the starting model; InputError before anything is
    written over.
    """
    log = Log(config.output_dir, ranks.rank == 0)
    log.lock()
    found = broadcast_object(find_run(config) if log.active else None, ranks)
    scorer = open_scorer(config)
    (task,) = check_input(config, [task or load_task(config, log)], ranks, log)
    finish_config(config, ranks, len(task.train))
    tracker = "none" if config.dry_run else config.report_to
    log.tracker = open_tracker(tracker, config.output_dir, asdict(config))
    model, processor = first_load(config, ranks)
    if config.gradient_checkpointing:
        checkpoint_activations(model)
    ref_model = None
    if config.beta > 0:
        reference = replace(config, model=config.ref_model or config.model)
        ref_model = load_model(reference, ranks.device)[0].requires_grad_(False)
    in_bf16 = next(model.parameters()).dtype == torch.bfloat16
    optimizer = build_optimizer(
        model,
        "adamw_bf16" if in_bf16 else "adamw",
        config.learning_rate,
        config.weight_decay,
        (0.9, config.adam_beta2),
        seed=config.seed,
    )
    counts = "{:,} parameters train, {:,} are frozen".format(*parameter_counts(model))
    log.say(f"{config.model}, from {model.name_or_path}: {counts}")
    log.say(
        f"{len(task.train)} training examples, {config.max_steps} steps of "
        f"{config.prompts_per_step} prompts"
    )
    log.open(fresh=found is None)
    state = {"step": 0, "seconds": 0.0, "updates": 0, "bad_steps": 0}
    state |= {"val": [], "base": {}, "data": {}, "buffer": []}
    if config.dataset != "charts":
        state["data"] = {**fingerprint(task.train), "reader": reader(task.train)}
    run = Run(config, ranks, log, model, processor, task, scorer, optimizer, ref_model, state)
    if found:
        state.update(resume(config, found, model, optimizer, state, log))
    allocate_states(optimizer)  # memory runs out before the first update, not inside it
    run.weights_step = state["step"]
    scorer.resume(state["step"])
    if log.active:
        checkpoint.clean_checkpoints(config.output_dir, state["step"])
    if config.dry_run:
        log.say(preview(run))
    elif config.eval_base and not state["base"]:
        state["base"] = run.read_finals("base")
    return run


def open_scorer(config: Config) -> Rules:
    """The rules, with the run's own reward function, or the judge, which answers a first question:
    InputError.
    """
    return Judge(config) if config.judge_url else Rules(config)


def check_input(config: Config, tasks: list[Task], ranks: Ranks, log: Log) -> list[Task]:
    """What can be known to be wrong before any weights are downloaded or loaded, as InputErrors:
    the method's arguments, rows, too little disk or memory. Returns the tasks, each of a run in a
    folder at or below output_dir, without bad rows.
    """
    check_method(config)
    model, processor = load_model(config, torch.device("meta"))
    tasks = [check_task(config, task, processor, log) for task in tasks]
    if not config.dry_run:
        checkpoint.check_room(config.output_dir, model, KEPT * len(tasks), config.force)
    log.say(estimate_memory(config, model, processor, tasks[0].train, ranks))
    return tasks


def finish_config(config: Config, ranks: Ranks, examples: int) -> None:
    """The flags that depend on the number of processes or of training examples."""
    if config.prompts_per_step < ranks.world_size:
        raise InputError(
            f"--prompts_per_step {config.prompts_per_step}: "
            f"{ranks.world_size} processes need at least one each"
        )
    if config.max_steps is None:
        steps = int(config.num_train_epochs * examples / config.prompts_per_step)
        config.max_steps = max(1, steps)
    config.eval_steps = config.eval_steps or max(1, config.max_steps // 10)
    config.save_steps = config.save_steps or config.max_steps
    if config.eval_base is None:
        config.eval_base = config.model == "tiny"


def estimate_memory(config: Config, model, processor, examples, ranks: Ranks) -> str:
    """lib/memory.py's estimate for the longest of the first prompts, as a line; InputError if it
    won't fit.
    """
    first = [examples[i] for i in range(min(8, len(examples)))]
    prompts = encode_prompts(processor, first, config.max_pixels)
    prompts = [prompt for prompt in prompts if isinstance(prompt, Prompt)]
    if not prompts:  # a step says why, or leaves them out
        return "memory of a step: not estimated, none of the first prompts can be made"
    names = ("num_generations", "max_completion_length", "micro_batch_prompts")
    flags = {name: getattr(config, name) for name in (*names, "gradient_checkpointing", "beta")}
    shape = shape_of(
        model,
        max(prompts, key=lambda prompt: prompt.input_ids.shape[1]),
        prompts_per_step=-(-config.prompts_per_step // ranks.world_size),
        head_chunk_tokens=HEAD_CHUNK,
        **flags,
    )
    there = machine_memory(ranks.device)
    return report_memory(memory_estimate(model, shape), there, config.force)


def preview(run: Run) -> str:
    """The first example of the first step as the model sees it, what would be memorized, and what
    that would earn, as text.
    """
    example = step_examples(run.task.train, run.config, 0)[0]
    groups = run.encode([(0, example)])
    if not groups:
        return f"{example.id}: is left out"
    (group,) = groups
    prompt = get_tokenizer(run.processor).decode(group.prompt.input_ids[0])
    # an image's many placeholders as one
    prompt = re.sub(
        r"((<[^<>]{1,40}>)\2{3,})", lambda m: f"{m[2]} x {len(m[1]) // len(m[2])}", prompt
    )
    target = target_text(run.scorer.trace(group), group.example)
    rewards = run.scorer.rewards(group.example, target)
    earned = {name: round(float(value), 2) for name, value in rewards.items()}
    lines = [f"---- prompt of {example.id}", prompt, "---- its memorized target", target]
    lines += ["---- what the target would earn", str(earned)]
    if not rewards["correct"]:
        lines.append("warning: it isn't correct: it has not the right format, or another answer")
    elif rewards["thinking"] < 1 and example.facts:
        lines.append("its thinking doesn't state all needed facts, or some that are not true")
    return visible("\n".join(lines))


def find_run(config: Config) -> Path | None:
    """The checkpoint to go on from, or None for a new run; InputError rather than writing over
    another run.
    """
    folder = Path(config.output_dir)
    holds_run = (folder / "metrics.jsonl").exists()
    if not config.resume:
        if holds_run and not config.overwrite:
            raise InputError(
                f"{folder}: holds a run; --resume it, --overwrite it, or give another --output_dir"
            )
        return None
    found = checkpoint.find_checkpoint(folder if config.resume == "last" else config.resume)
    if found is None:
        way_out = "start over with --overwrite" if holds_run else "leave --resume away"
        raise InputError(f"--resume: no complete checkpoint in {folder}; {way_out}")
    if holds_run and folder.resolve() not in found.resolve().parents:
        raise InputError(
            f"{folder}: holds another run than {found}; give a new --output_dir, or that run's"
        )
    return found


def refuse_another(found: Path, saved: dict, asked: dict) -> None:
    """InputError where the flags say that what was found is of another run than the asked one."""
    if fixed := checkpoint.changed_flags(saved, asked, ignore=asked.keys() - FIXED):
        raise InputError(f"--resume: {found} is of another run: {'; '.join(fixed)}")


def resume(config: Config, found: Path, model, optimizer, fresh: dict, log: Log) -> dict:
    """Put a checkpoint into model, optimizer and logs; returns the loop's state. Says which flags
    and which of the data, by its fingerprint in the fresh state, have changed; InputError for
    another run.
    """
    saved = checkpoint.load_checkpoint(found, model, optimizer)
    with written_here(found / "state.json"):
        state = {name: type(value)(saved[name]) for name, value in fresh.items()}
        positions, flags = dict(saved["positions"]), (dict(saved["config"]), asdict(config))
    was, now = state["data"], fresh["data"]
    if was and now and (changed := changes(was, now)):
        log.say(f"warning: the data has changed since: {changed}")
    refuse_another(found, *flags)
    for change in checkpoint.changed_flags(*flags, FREE_TO_CHANGE):
        log.say(f"warning: resumed with another {change}")
    if was.get("reader") != now.get("reader"):
        told = f"mathematics was read by {was.get('reader')}, here it is by {now.get('reader')}"
        raise InputError(f"--resume: {told}; install or remove math-verify")
    if state["step"] > config.max_steps:
        raise InputError(f"--max_steps {config.max_steps}: {found} is further")
    log.cut(positions)
    log.say(f"resumed from {found} at step {state['step']}")
    best = max(state["val"], key=lambda reading: reading["accuracy"], default={"step": None})
    if log.active and best["step"] == state["step"]:  # a kill can fall between checkpoint and name
        checkpoint.name_best(config.output_dir, state["step"])
    return state
