"""Every flag of train.py with its default and its help: one dataclass.

A None means "what DEFAULTS says for the data set". An unknown flag, a wrong type or a value out of
range ends in one line before anything is loaded. Left out: configuration files; a shell script is
one.
"""

import argparse
import math
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

from data import InputError

METHODS = ("dyme", "sft", "grpo", "two_stage")


def knob(default, group: str, text: str, *, low=None, high=None, above=None, choices=None):
    """A flag: its default, the heading that --help shows it under, its help, and what it may be.

    low, high: the least and the greatest number; above: a number that it must exceed.
    """
    limits = {"low": low, "high": high, "above": above}
    metadata = {"group": group, "help": text, "choices": choices, **limits}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Config:
    # ---- data ----
    dataset: str = knob(
        "charts", "data", "charts, chartqa, gsm8k, aokvqa, or a .jsonl / .json file"
    )
    data_dir: str | None = knob(None, "data", "folder or zip of the data set; default: download")
    questions: str = knob(
        "human", "data", "ChartQA's questions", choices=("human", "augmented", "all")
    )
    train_size: int | None = knob(None, "data", "use the first so many training examples", low=1)
    eval_size: int | None = knob(None, "data", "and so many of each evaluated split", low=1)
    eval_split: str = knob("val", "data", "split to evaluate on the way")
    final_splits: list[str] | None = knob(
        None, "data", "splits to evaluate at the end; default: test, and charts' ood"
    )
    data_seed: int = knob(0, "data", "charts: draws fresh ones", low=0)
    trace_noise: float = knob(
        0.5, "data", "charts: share of wrong facts in the training traces", low=0, high=1
    )
    traces: str | None = knob(None, "data", "jsonl of reference traces, see judge.py refine")
    recipe: str | None = knob(
        None, "data", "set what the authors' scripts set, see RECIPES", choices=("published",)
    )
    max_prompt_length: int | None = knob(
        None, "data", "most tokens of a prompt, image included; longer is an error", low=1
    )
    skip_bad_rows: bool = knob(
        False, "data", "leave out, and count, what can't be read, asked or answered"
    )
    max_pixels: int | None = knob(
        None,
        "data",
        "an image with more is scaled down first; Idefics3, SmolVLM and InternVL scale it up again",
        low=1,
    )

    # ---- model ----
    model: str | None = knob(None, "model", "hub name, folder, or 'tiny'")
    freeze_vision: bool = knob(True, "model", "no gradient for the vision tower")
    base_steps: int = knob(1600, "model", "tiny: length of its base stage", low=1)
    base_format_rate: float = knob(
        0.0, "model", "tiny: how often the base stage shows the format", low=0, high=1
    )
    base_seed: int = knob(0, "model", "tiny: seed of its weights and base stage", low=0)
    dtype: str | None = knob(
        None, "model", "of the weights; default: bf16 on CUDA, else fp32", choices=("fp32", "bf16")
    )
    gradient_checkpointing: bool = knob(False, "model", "recompute activations: slower, smaller")

    # ---- method ----
    method: str = knob(
        "dyme", "method", "what decides between memorizing and exploring", choices=METHODS
    )
    num_generations: int = knob(
        8, "method", "G: responses to a prompt; a group compares with itself", low=2
    )
    max_completion_length: int | None = knob(None, "method", "most tokens of a response", low=1)
    temperature: float = knob(1.0, "method", "of sampling", above=0)
    memorize_weight: str = knob(
        "group",
        "method",
        "a memorized row weighs 1/G of a group, a whole one, or falls from one to the other",
        choices=("group", "one", "cosine"),
    )
    num_iterations: int = knob(1, "method", "updates per batch of rollouts", low=1)
    loss_type: str = knob(
        "grpo",
        "method",
        "what a token weighs; dr_grpo also leaves advantages unscaled",
        choices=("grpo", "bnpo", "dapo", "dr_grpo"),
    )
    epsilon_low: float = knob(
        0.2, "method", "clipping of the ratio from below, at num_iterations > 1", low=0, high=1
    )
    epsilon_high: float = knob(0.2, "method", "and from above", low=0)
    beta: float = knob(0.0, "method", "KL to ref_model, which is then kept in memory", low=0)
    ref_model: str | None = knob(
        None, "method", "what the KL compares with; default: the model that the run starts from"
    )

    # ---- rewards ----
    reward_weights: list[float] | None = knob(
        None, "rewards", "of format, accuracy, thinking", low=0
    )
    tolerance: float | None = knob(
        None,
        "rewards",
        "relative error that a right number may have; default: 0, and 0.05 where ChartQA is "
        "evaluated",
        low=0,
    )
    reward: str | None = knob(
        None,
        "rewards",
        "a .py file with your `def reward(response, example) -> float`, in accuracy's place",
    )
    refiner: str | None = knob(
        None,
        "rewards",
        "rewrite the memorized trace from the facts (local), or keep the data's (off)",
        choices=("local", "off"),
    )
    judge_url: str | None = knob(
        None,
        "rewards",
        "LLM behind checker and refiner, http://host:port/v1; its key in DYME_JUDGE_KEY",
    )
    judge_model: str | None = knob(None, "rewards", "its model name")
    judge_parallel: int = knob(8, "rewards", "requests to it at a time", low=1)
    judge_optional: bool = knob(
        False, "rewards", "go on by the rules where the judge does not answer at the start"
    )

    # ---- optimization ----
    max_steps: int | None = knob(
        None, "optimization", "batches of rollouts; default: num_train_epochs' worth", low=1
    )
    num_train_epochs: float | None = knob(
        None, "optimization", "passes over the training data, without max_steps", above=0
    )
    prompts_per_step: int | None = knob(None, "optimization", "P, over all processes", low=1)
    micro_batch_prompts: int | None = knob(
        None, "optimization", "groups in one packed forward", low=1
    )
    learning_rate: float | None = knob(None, "optimization", "peak", above=0)
    lr_scheduler_type: str = knob(
        "linear", "optimization", "decay", choices=("linear", "cosine", "constant")
    )
    warmup_steps: int = knob(0, "optimization", "batches until the peak", low=0)
    weight_decay: float = knob(0.01, "optimization", "AdamW's", low=0)
    adam_beta2: float | None = knob(
        None, "optimization", "AdamW's memory of the squared gradient", low=0, high=0.99999
    )
    max_grad_norm: float = knob(1.0, "optimization", "gradient clipping", above=0)
    seed: int = knob(0, "optimization", "of sampling and of the order of examples", low=0)
    num_threads: int = knob(0, "optimization", "CPU threads; 0: torch's choice", low=0)

    # ---- output ----
    output_dir: str | None = knob(None, "output", "default: out/<dataset>-<method>")
    save_steps: int | None = knob(
        None, "output", "a checkpoint every so many; default: at the end", low=1
    )
    save_minutes: float = knob(15.0, "output", "and whenever so many have passed", above=0)
    save_total_limit: int = knob(2, "output", "checkpoints kept besides the best one", low=1)
    eval_steps: int | None = knob(
        None, "output", "evaluate on eval_split every so many; default: ten times a run", low=1
    )
    eval_base: bool | None = knob(
        None, "output", "evaluate the starting model on final_splits too; default: tiny only"
    )
    log_groups_every: int = knob(
        25, "output", "log a few groups for the report every so many steps; 0: never", low=0
    )
    resume: str | None = knob(
        None,
        "output",
        "go on from the last complete checkpoint of output_dir, or from the given one",
    )
    overwrite: bool = knob(False, "output", "start over where output_dir holds a run")


# what a None above means; "*" are the published hyperparameters, for ChartQA
DEFAULTS = {
    "charts": dict(
        model="tiny",
        max_completion_length=48,
        # ours: a tiny model's right answer must outweigh fluent wrong thinking
        reward_weights=[0.5, 1.0, 0.5],
        max_steps=300,
        prompts_per_step=16,
        learning_rate=1e-3,
        # 300 updates are too few for 0.999 to forget the first, large gradients
        adam_beta2=0.99,
        micro_batch_prompts=16,
    ),
    "gsm8k": dict(model="HuggingFaceTB/SmolLM2-135M-Instruct", num_train_epochs=1, refiner="off"),
    "*": dict(
        model="llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        refiner="local",
        max_completion_length=300,
        reward_weights=[1.0, 1.0, 1.0],
        prompts_per_step=32,
        learning_rate=1e-5,
        adam_beta2=0.999,
        micro_batch_prompts=1,
        num_train_epochs=10,
    ),
}


# --recipe: other defaults, by data set; curr_reft.py's are under its own name. A flag that is given
# comes before them. ChartQA's published settings are the "*" above.
RECIPES = {
    "published": {
        "chartqa": {},
        "gsm8k": dict(num_generations=16, max_completion_length=1024, num_train_epochs=10),
        "aokvqa": dict(num_generations=4),
    }
}


class Parser(argparse.ArgumentParser):
    """argparse whose errors are InputErrors: one line, without the usage."""

    def error(self, message: str):
        raise InputError(f"{message}; --help lists the flags")


def parse(argv: list[str], kind: type = Config, defaults: dict | None = None, **about: str):
    """The command line as a Config, or as another dataclass of knobs; InputError, one line, for a
    number out of range, an unknown flag or a wrong type.

    defaults: what a None means, in DEFAULTS' form, before DEFAULTS itself. about: argparse's
    prog and description.
    """
    about = about or {"prog": "train.py", "description": "Teach a small VLM to think."}
    if kind is Config and "curr_reft" in argv:
        raise InputError("--method curr_reft: is a program of its own: python curr_reft.py")
    parser = Parser(allow_abbrev=False, **about)
    headings = {}
    for flag in fields(kind):
        heading = flag.metadata["group"]
        if heading not in headings:
            headings[heading] = parser.add_argument_group(heading)
        default = flag.default_factory() if flag.default is MISSING else flag.default
        text = flag.metadata["help"] + default_text(flag.name, default, defaults or {})
        options = {"default": default, "help": text}
        written = str(flag.type)
        if "bool" in written:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = next((t for t in (float, int) if t.__name__ in written), str)
            options["choices"] = flag.metadata["choices"]
            if "list" in written:
                options["nargs"] = "*"
            if flag.name == "resume":
                options.update(nargs="?", const="last")
        headings[heading].add_argument(f"--{flag.name}", **options)
    config = kind(**vars(parser.parse_args(argv)))
    if config.recipe:
        name = "curr_reft" if config.method == "curr_reft" else config.dataset
        table = RECIPES[config.recipe]
        if name not in table:
            raise InputError(f"--recipe {config.recipe}: is for {', '.join(table)}, not {name}")
        parser.set_defaults(**table[name])
        config = kind(**vars(parser.parse_args(argv)))
    return resolve(config, defaults or {})


def default_text(name: str, default, own: dict) -> str:
    """What --help says of a default: the flag's, or where it is None the data sets'."""
    if default is not None:
        return f" (default: {default})".replace("%", "%%")
    tables = {data: {**DEFAULTS.get(data, {}), **own.get(data, {})} for data in {**DEFAULTS, **own}}
    said = [
        f"{'others' if data == '*' else data}: {table[name]}"
        for data, table in tables.items()
        if name in table
    ]
    return f" ({'; '.join(said)})" if said else ""


def resolve(config, own: dict | None = None):
    """Fill in what is None by the data set's defaults and check every number's range:
    InputError.
    """
    own = own or {}
    defaults = {**DEFAULTS["*"], **DEFAULTS.get(config.dataset, {})}
    defaults |= own.get(config.dataset, own.get("*", {}))
    for name, value in defaults.items():
        if hasattr(config, name) and getattr(config, name) is None:
            setattr(config, name, value)
    config.output_dir = config.output_dir or f"out/{Path(config.dataset).stem}-{config.method}"
    for flag in fields(config):
        check_range(flag, getattr(config, flag.name))
    if len(config.reward_weights) != 3 or not any(config.reward_weights):
        raise InputError(
            "--reward_weights: three numbers, for format, accuracy, thinking; not all 0"
        )
    if config.loss_type in ("bnpo", "dapo") and config.method in ("sft", "two_stage"):
        raise InputError(
            f"--loss_type {config.loss_type}: divides by sampled tokens, and --method "
            f"{config.method} samples none while it memorizes; take grpo"
        )
    return config


def tolerances(config) -> tuple[float, float]:
    """The relative errors of a right number in training and in evaluation (ChartQA's, as
    published).
    """
    if config.tolerance is not None:
        return config.tolerance, config.tolerance
    return 0.0, 0.05 if config.dataset == "chartqa" else 0.0


def eval_settings(config) -> dict:
    """evaluate.evaluate's keyword arguments that are flags."""
    names = ("max_completion_length", "max_pixels", "seed")
    settings = {name: getattr(config, name) for name in names}
    return {**settings, "tolerance": tolerances(config)[1]}


def check_range(flag, value) -> None:
    """InputError for a number that isn't finite or isn't in its knob's range."""
    low, high, above = (flag.metadata[name] for name in ("low", "high", "above"))
    for number in value if isinstance(value, list) else [value]:
        if not isinstance(number, int | float) or isinstance(number, bool):
            continue
        bounds = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
        bounds += [f"above {above}"] * (above is not None)
        fine = (
            math.isfinite(number)
            and (low is None or number >= low)
            and (high is None or number <= high)
            and (above is None or number > above)
        )
        if not fine:
            wanted = " and ".join(bounds) or "finite"
            raise InputError(f"--{flag.name} {number}: must be {wanted}")
