"""What a run is begun with: what was asked for is checked, and an earlier run found.

No model is loaded, and nothing of an earlier run written over, before all of this has passed. Left
out: how data and model are found (load.py), and the Run that the loop holds on to (run.py).
"""

import json
import re
from dataclasses import asdict
from pathlib import Path

import torch

from checker import Rules
from config import Config
from data.example import Example, InputError
from data.fingerprint import changes
from data.reading import written_here
from dyme import HEAD_CHUNK, check_method, choose
from judge import Judge
from lib.checkpoint import check_room, find_checkpoint, read_json
from lib.log import Log, visible
from lib.memory import memory_estimate, report_memory
from lib.ranks import Ranks
from load import Task, check_task, load_model
from model import Prompt, encode_prompts
from rollout import Group
from sft import target_text

KEPT = 2  # checkpoints, besides the best one
# flags that may change when a run is resumed
FREE_TO_CHANGE = {"resume", "overwrite", "force", "output_dir", "data_dir"}
FREE_TO_CHANGE |= {"save_steps", "report_to"}
# and flags that may not: it would be another run under this one's name
FIXED = {"dataset", "method", "model", "seed", "trace_noise", "base_seed", "reader"}


def open_scorer(config: Config) -> Rules:
    """The rules, with a reward of the run's own, or the judge; InputError where it is silent."""
    return Judge(config, choose) if config.judge_url else Rules(config)


def check_input(config: Config, tasks: list[Task], ranks: Ranks, log: Log) -> tuple[list, object]:
    """What can be known to be wrong before any weights are downloaded or loaded, as InputErrors.
    Returns the tasks, each of a run at or below output_dir, without bad rows; and the processor.
    """
    check_method(config)
    model, processor = load_model(config, torch.device("meta"))
    tasks = [check_task(config, task, processor, log) for task in tasks]
    if not config.dry_run:
        check_room(config.output_dir, model, KEPT * len(tasks), config.force)
    log.say(estimate_memory(config, model, processor, tasks[0].train, ranks))
    return tasks, processor


def estimate_memory(config: Config, model, processor, examples, ranks: Ranks) -> str:
    """lib/memory.py's line, for the longest of the first prompts; InputError if it won't fit."""
    first = [examples[i] for i in range(min(8, len(examples)))]
    prompts = encode_prompts(processor, first, config.max_pixels)
    prompts = [prompt for prompt in prompts if isinstance(prompt, Prompt)]
    if not prompts:  # a step says why, or leaves them out
        return "memory of a step: not estimated, none of the first prompts can be made"
    longest = max(prompts, key=lambda prompt: prompt.input_ids.shape[1])
    share = -(-config.prompts_per_step // ranks.world_size)
    parts = memory_estimate(model, longest, config, share, HEAD_CHUNK)
    return report_memory(parts, ranks.device, config.force)


def finish_config(config: Config, ranks: Ranks, examples: int) -> None:
    """The flags that depend on the number of processes or of training examples."""
    if config.prompts_per_step < ranks.world_size:
        told = f"{ranks.world_size} processes need at least one each"
        raise InputError(f"--prompts_per_step {config.prompts_per_step}: {told}")
    if config.max_steps is None:
        steps = config.num_train_epochs * examples / config.prompts_per_step
        config.max_steps = max(1, int(steps))
    readings = 5 if config.dataset == "charts" else 10  # one takes as long as six steps there
    config.eval_steps = config.eval_steps or max(1, config.max_steps // readings)
    config.save_steps = config.save_steps or config.max_steps


def find_run(config: Config) -> Path | None:
    """The checkpoint to go on from, None for a new run; InputError where it is another's place."""
    folder, logged = Path(config.output_dir), Path(config.output_dir) / "metrics.jsonl"
    holds_run = logged.exists() and logged.stat().st_size > 0
    if not config.resume:
        if holds_run and not config.overwrite:
            way_out = "--resume it, --overwrite it, or give another --output_dir"
            raise InputError(f"{folder}: holds a run; {way_out}")
        return None
    if found := find_checkpoint(folder):
        return found
    way_out = "start over with --overwrite" if holds_run else "leave --resume away"
    raise InputError(f"--resume: no complete checkpoint in {folder}; {way_out}")


def refuse_another(found: Path, saved: dict, asked: dict, log: Log | None = None) -> None:
    """InputError where the saved flags are another run's; the log is told what else differs."""
    asked = json.loads(json.dumps(asked))  # as the saved ones: lists for tuples
    for name in sorted((saved.keys() | asked.keys()) - FREE_TO_CHANGE):
        if saved.get(name) != asked.get(name):
            told = f"--{name}: was {saved.get(name)!r}, is now {asked.get(name)!r}"
            if name in FIXED:
                raise InputError(f"--resume: {found} is of another run: {told}")
            if log:
                log.say(f"warning: resumed with another {told}")


def resume(config: Config, found: Path, fresh: dict, log: Log) -> dict:
    """The loop's state at a checkpoint. Says which flags, and which of the data, by its fingerprint
    in the fresh state, have changed; InputError for another run or reader of mathematics.
    """
    with written_here(found / "state.json"):
        saved = read_json(found / "state.json")
        state = {name: type(value)(saved[name]) for name, value in fresh.items()}
        flags = dict(saved["config"])
    was, now = state["data"], fresh["data"]
    if was and now and (changed := changes(was, now)):
        log.say(f"warning: the data has changed since: {changed}")
    flags["reader"] = was.get("reader")
    refuse_another(found, flags, {**asdict(config), "reader": now.get("reader")}, log)
    if state["step"] > config.max_steps:
        raise InputError(f"--max_steps {config.max_steps}: {found} is further")
    log.say(f"resumed from {found} at step {state['step']}")
    return state


def preview(example: Example, groups: list[Group], scorer: Rules, tokenizer) -> str:
    """An example as the model sees it, its memorized target, and what that would earn, as text."""
    if not groups:
        return f"{example.id}: is left out"
    (group,) = groups
    prompt = tokenizer.decode(group.prompt.input_ids[0])
    repeats = r"((<[^<>]{1,40}>)\2{3,})"  # an image's many placeholders as one
    prompt = re.sub(repeats, lambda m: f"{m[2]} x {len(m[1]) // len(m[2])}", prompt)
    target = target_text(scorer.trace(group), group.example)
    rewards = scorer.rewards(group.example, target)
    earned = {name: round(float(value), 2) for name, value in rewards.items()}
    lines = [f"---- prompt of {example.id}", prompt, "---- its memorized target", target]
    lines += ["---- what the target would earn", str(earned)]
    if not rewards["correct"]:
        lines.append("warning: it isn't correct: it has not the right format, or another answer")
    return visible("\n".join(lines))
