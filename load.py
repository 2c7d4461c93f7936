"""What a run is made of: its data, checked before the first step, its model, a step's prompts.

Left out: how a data set is read (data/), and what differs between model families (lib/families.py).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from checker import thinking_lines, unmatchable
from config import Config, tolerances
from data import load_data
from data.example import DIRECT, Example, InputError, NoSplit
from lib.families import load_vlm, prepare
from lib.log import Log
from lib.ranks import Ranks, broadcast_object
from lib.tiny import base_folder, tiny_vlm
from model import Prompt, image_features, special_token
from rollout import Group, make_group


@dataclass
class Task:
    """What a run learns from, is watched on and is measured by: lists of Examples."""

    train: Sequence[Example]
    val: Sequence[Example]
    finals: dict[str, Sequence[Example]]


def load_task(config: Config, log: Log) -> Task:
    """The splits that the flags name."""
    train = load_split(config, "train", config.train_size)
    return Task(train, load_split(config, "val", config.eval_size), load_finals(config, log))


def load_split(
    config: Config, split: str, size: int | None, tasks: Sequence[str] = ("chart",)
) -> Sequence[Example]:
    """A split of the configured data set; of the training split alone traces and facts."""
    names = ["data_dir", "trace_noise", "skip_bad_rows"]
    names += ["traces", "facts"] if split == "train" else []
    asked = {name: getattr(config, name) for name in names}
    examples = load_data(config.dataset, split, size=size, tasks=tasks, **asked)
    if config.thinking == "on":
        return examples
    return [replace(example, instruction=DIRECT) for example in examples]


def load_finals(config: Config, log: Log) -> dict[str, Sequence[Example]]:
    """What the last evaluation reads: the splits asked for; else test, and charts' ood, or val."""
    finals = {}
    usual = ["test", "ood"] if config.dataset == "charts" else ["test"]
    for split in config.final_splits or usual:
        try:
            finals[split] = load_split(config, split, config.eval_size)
        except NoSplit as error:
            if config.final_splits:
                raise
            log.say(f"{error}; evaluating val in its place")
            finals["val"] = load_split(config, "val", config.eval_size)
    return finals


def check_task(config: Config, task: Task, processor, log: Log) -> Task:
    """The task without the rows that are known to be bad, said in lines. A question that can't be
    asked is an InputError, or left out with --skip_bad_rows. A label that no response could match
    would be memorized for ever, so its row is left out of training.
    """
    if config.dataset == "charts":  # drawn here
        return task

    def without(bad: list[Example], examples: Sequence[Example], why: str, skip=True):
        told = f"{len(bad)} examples, {', '.join(example.id or '?' for example in bad[:3])}: {why}"
        if bad and not skip:
            raise InputError(f"{told}; take it out, or give --skip_bad_rows")
        if bad:
            log.say(f"warning: left out: {told}")
        ids = {id(example) for example in bad}
        return [example for example in examples if id(example) not in ids]

    def askable(examples: Sequence[Example]) -> list[Example]:
        bad = [example for example in examples if special_token(processor, example)]
        why = "the question or an option has a special token of the model"
        return without(bad, examples, why, config.skip_bad_rows)

    train = askable(task.train)
    bad = unmatchable(train, tolerances(config)[0])
    labels = ", ".join(repr(example.answer[:40]) for example in bad[:3])
    train = without(bad, train, f"no response could match the label ({labels})")
    if not train:
        raise InputError(f"{config.dataset}: no row is left to train on; see the warnings above")
    for line in thinking_lines(train) if config.thinking == "on" else ():
        log.say(line)
    if hasattr(processor, "image_processor") and not any(e.image is not None for e in train):
        log.say("warning: the model sees images, and not one example has any")
    finals = {split: askable(examples) for split, examples in task.finals.items()}
    return Task(train, askable(task.val), finals)


def first_load(config: Config, ranks: Ranks, processor=None):
    """load_model; of several processes the first makes the tiny base: the others can't save one."""
    if config.model == "tiny" and ranks.world_size > 1:
        if ranks.rank == 0:
            load_model(config, ranks.device)
        broadcast_object(None, ranks)
    return load_model(config, ranks.device, processor)


def load_model(config: Config, device: torch.device, processor=None):
    """The model to train and its processor, the given one if it is loaded already: from the hub, a
    folder, or the tiny one after its base stage. On the device "meta" its sizes alone.
    """
    name, bf16 = config.model, config.dtype == "bf16"
    if name == "tiny":
        if device.type == "meta":
            model, processor = tiny_vlm()
            return prepare(model, config.freeze_vision), processor
        flags = {flag: value for flag, value in vars(config).items() if flag.startswith("base_")}
        name, bf16, processor = str(base_folder(**flags)), False, None
    elif config.dtype is None:
        bf16 = device.type == "cuda"
    dtype = torch.bfloat16 if bf16 else torch.float32
    how = dict(dtype=dtype, device=device, freeze_vision=config.freeze_vision)
    return load_vlm(name, processor=processor, **how)


@lru_cache(maxsize=2)
def shuffled(count: int, seed: int) -> list[int]:
    """0 .. count - 1 in the seed's order."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def step_examples(data: Sequence[Example], config: Config, step: int) -> list[Example]:
    """The P examples of a step, shuffled anew each epoch: a pure function of (seed, step)."""
    first, seed = step * config.prompts_per_step, config.seed * 1_000_003
    counts = range(first, first + config.prompts_per_step)
    places = [divmod(count, len(data)) for count in counts]
    return [data[shuffled(len(data), seed + epoch)[place]] for epoch, place in places]


def made_ahead(make: Callable, items: Iterable) -> Iterator:
    """make(item) of each, the next one being made by a thread while the last one is used.

    An image processor takes 1 to 6 s for a step's images, during which a GPU would wait.
    """
    coming = None
    with ThreadPoolExecutor(1) as thread:
        for item in items:
            made, coming = coming, thread.submit(make, item)
            if made:
                yield made.result()
        if coming:
            yield coming.result()


def step_groups(
    config: Config,
    model,
    share: Sequence[tuple[int, Example]],
    prompts: Sequence[Prompt | InputError],
    log: Log,
) -> list[Group]:
    """Examples, each with its place in the step, and their prompts as Groups, with their image's
    features where the vision tower is frozen. InputError for a row that only now turns out to be
    bad; with --skip_bad_rows its slot stays empty, so that the order of the others never moves.
    """
    groups = []
    most = model.config.get_text_config().max_position_embeddings - config.max_completion_length
    for (place, example), prompt in zip(share, prompts):
        if isinstance(prompt, Prompt) and (length := prompt.input_ids.shape[1]) > most:
            prompt = InputError(  # nothing is ever truncated
                f"{example.id}: its prompt has {length} tokens, the model has room for {most} "
                "before --max_completion_length; lower --max_pixels, or give --skip_bad_rows"
            )
        if isinstance(prompt, Prompt):
            groups.append(make_group(model, place, example, prompt))
        elif config.skip_bad_rows:
            log.say(f"warning: left out: {prompt}")
        else:
            raise prompt
    for group in groups if config.freeze_vision else []:  # once, for rollout and first update
        (group.prompt.features,) = image_features(model, [group.prompt])
    return groups
