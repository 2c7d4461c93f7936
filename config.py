"""Every flag of train.py with its default and its help: one dataclass.

A default may differ by data set; "*" are the published hyperparameters, for ChartQA. An unknown
flag, a wrong type or a value out of range ends in one line before anything is loaded. Left out:
configuration files; a shell script is one.
"""

import argparse
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from pathlib import Path

from data.example import InputError

# behind the first four variants.py's
METHODS = ("dyme", "sft", "grpo", "two_stage", "dyme_reward", "dyme_grounded", "dyme_keep")
METHODS += ("dyme_always", "dyme_buffer", "hpt", "chord_mu", "chord_phi", "luffy", "relift")
SFT_UPDATES = ("sft", "two_stage", "dyme_buffer", "relift")  # have updates without samples
LLAVA, SMOL = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "HuggingFaceTB/SmolLM2-135M-Instruct"
MOST = 1e9  # no number of a run is greater
# what is above a flag in --help
HEADINGS = {"dataset": "data", "model": "model", "method": "method", "reward_weights": "rewards"}
HEADINGS |= {"max_steps": "optimization", "output_dir": "output", "base_tasks": "stages"}

# when a flag has an effect: in words, and as a test of all flags
CHARTS = ("with --dataset charts", lambda c: c.dataset == "charts")
FILES = ("with data from files, not with the charts", lambda c: c.dataset != "charts")
IMAGES = ("with images, and gsm8k has none", lambda c: c.dataset != "gsm8k")
TINY = ("with --model tiny", lambda c: c.model == "tiny")
LOADED = ("with another --model than tiny", lambda c: c.model != "tiny")
RULED = ("with another method than sft and grpo", lambda c: c.method not in ("sft", "grpo"))
MEMORIZES = ("with a method that memorizes", lambda c: c.method not in ("grpo", "curr_reft"))
SAMPLES = ("with sampling", lambda c: c.method != "sft" and vars(c).get("stages") != ["reject"])
REPEATS = ("with --num_iterations above 1", lambda c: c.num_iterations > 1)
RAW = ("with --refiner off", lambda c: c.refiner == "off")
KNOWN = ("charts", "chartqa")  # whose facts are known: traces are made of them
TRACED = ("with --refiner off", lambda c: c.refiner == "off" or c.dataset not in KNOWN)
ASKS = ("with sampling, or --refiner local", lambda c: c.method != "sft" or c.refiner != "off")
JUDGED = ("with --judge_url", lambda c: c.judge_url is not None)
EPOCHS = ("without --max_steps, which the charts have", lambda c: c.max_steps is None)
NEW = ("without --resume", lambda c: not c.resume)


def knob(default, text: str, *when: tuple, choices=None, **limits: float):
    """A flag: its default, or those of the data sets, its help ("": it is none), which of the
    conditions above must hold for it to have an effect, and what it may be; limits: see least.
    """
    metadata = dict(help=text, when=when, choices=choices, limits=limits)
    metadata["defaults"] = default if isinstance(default, dict) else {"*": default}
    return field(default=None if isinstance(default, dict | list) else default, metadata=metadata)


def least(
    low: float = -MOST, kind: type = int, high: float = MOST, above: float = -MOST
) -> Callable:
    """An argparse type: an int or a float from `low` to `high`, and greater than `above`."""

    def read(text: str) -> float:
        if not (low <= kind(text) <= high and kind(text) > above):
            limits = {"at least": low, "above": above, "at most": high}
            told = [f"{words} {limit:g}" for words, limit in limits.items() if limit != -MOST]
            raise argparse.ArgumentTypeError(f"{text}: must be {', '.join(told)}")
        return kind(text)

    read.__name__ = kind.__name__  # for argparse's own message
    return read


@dataclass
class Config:
    dataset: str = knob("charts", "charts, chartqa, gsm8k, aokvqa, or a file")
    data_dir: str | None = knob(None, "its folder or zip; default: download", FILES)
    train_size: int | None = knob(None, "use the first so many training examples", low=1)
    eval_size: int | None = knob({"charts": 200}, "and so many of each evaluated split", low=1)
    final_splits: list[str] | None = knob(None, "what the end evaluates: test, on charts ood too")
    trace_noise: float = knob(0.5, "share of wrong facts in traces", CHARTS, RAW, low=0, high=1)
    traces: str | None = knob(None, "jsonl of reference traces, see judge.py refine", TRACED)
    facts: str | None = knob(None, "jsonl of visual facts, see judge.py facts", FILES)
    recipe: str | None = knob(None, "what the authors' scripts set", choices=("published",))
    skip_bad_rows: bool = knob(False, "leave out what can't be read, asked or answered", FILES)
    # Idefics3, SmolVLM and InternVL scale it up again
    max_pixels: int | None = knob(None, "an image with more is scaled down", IMAGES, low=1)

    model: str | None = knob(
        {"charts": "tiny", "gsm8k": SMOL, "*": LLAVA}, "hub name, folder, or 'tiny'"
    )
    freeze_vision: bool = knob(True, "no gradient for the vision tower", IMAGES)
    base_steps: int | None = knob(None, "train the tiny model's base anew, so long", TINY, low=1)
    base_format_rate: float = knob(0.0, "how often that shows the format", TINY, low=0, high=1)
    base_seed: int = knob(0, "seed of its weights and base stage; not 0: anew", TINY, low=0)
    dtype: str | None = knob(None, "bf16 on CUDA, else fp32", LOADED, choices=("fp32", "bf16"))
    gradient_checkpointing: bool = knob(False, "recompute activations: slower, smaller")

    method: str = knob("dyme", "when to memorize and to explore", choices=METHODS)
    method_args: list[str] | None = knob(None, "name=number ...: see dyme.py, variants.py", RULED)
    thinking: str = knob("on", "off: ask for, and learn, the bare answer", choices=("on", "off"))
    num_generations: int = knob(8, "G: responses to a prompt", SAMPLES, low=2)
    max_completion_length: int | None = knob(
        {"charts": 48, "*": 300}, "tokens to a response", low=1
    )
    temperature: float = knob(1.0, "of sampling", above=0)
    num_iterations: int = knob(1, "updates per batch of rollouts", low=1)
    loss_type: str = knob("grpo", "see grpo.py", choices=("grpo", "bnpo", "dapo", "dr_grpo"))
    epsilon_low: float = knob(0.2, "clips the ratio from below", SAMPLES, REPEATS, low=0, high=1)
    epsilon_high: float = knob(0.2, "and from above", SAMPLES, REPEATS, low=0)
    beta: float = knob(0.0, "KL to the starting model, kept in memory", SAMPLES, low=0)
    ref_model: str | None = None  # what the KL compares with; None: the starting model

    # ours on the charts: a tiny model's right answer must outweigh fluent wrong thinking
    reward_weights: list[float] | None = knob(
        {"charts": [0.5, 1, 0.5], "*": [1, 1, 1]}, "of format, accuracy, thinking", SAMPLES, low=0
    )
    tolerance: float | None = knob(None, "of a right number; 0, evaluating ChartQA 0.05", low=0)
    reward: str | None = knob(None, "file with `def reward(response, example)`: accuracy", SAMPLES)
    refiner: str | None = knob(
        {"gsm8k": "off", "*": "local"}, "off: its own traces", MEMORIZES, choices=("local", "off")
    )
    judge_url: str | None = knob(None, "LLM behind both; its key in DYME_JUDGE_KEY", ASKS)
    judge_model: str | None = knob(None, "its model name", JUDGED)

    # on the charts where val flattens, see results/README.md
    max_steps: int | None = knob({"charts": 200}, "batches of rollouts", low=1)
    num_train_epochs: float | None = knob({"gsm8k": 1, "*": 10}, "data passes", EPOCHS, above=0)
    prompts_per_step: int | None = knob({"charts": 16, "*": 32}, "P, over all processes", low=1)
    micro_batch_prompts: int | None = knob({"charts": 16, "*": 1}, "groups in a forward", low=1)
    learning_rate: float | None = knob({"charts": 1e-3, "*": 1e-5}, "peak", above=0)
    lr_scheduler_type: str = knob("linear", "decay", choices=("linear", "cosine", "constant"))
    warmup_steps: int = knob(0, "batches until the peak", low=0)
    weight_decay: float = 0.01  # AdamW's, no flag
    # 200 updates are too few for 0.999 to forget the first, large gradients
    adam_beta2: float | None = knob({"charts": 0.99, "*": 0.999}, "")
    max_grad_norm: float = 1.0  # gradients are clipped to it, no flag
    seed: int = knob(0, "of sampling and of the order of examples", low=0)

    output_dir: str | None = knob(None, "default: out/<dataset>-<method>")
    save_steps: int | None = knob(None, "a checkpoint every so many, and 15 minutes", low=1)
    eval_steps: int | None = knob(None, "val every so many; default: 10 times, on charts 5", low=1)
    eval_base: bool | None = knob({"charts": True, "*": False}, "evaluate the starting model too")
    log_groups_every: int = knob(25, "show some groups every so many steps; 0: never", low=0)
    report_to: str = knob(
        "none", "metrics go there too", choices=("tensorboard", "wandb", "trackio", "none")
    )
    resume: bool = knob(False, "go on from output_dir's last checkpoint")
    dry_run: bool = knob(False, "show a prompt, its target, what it earns; one step, and stop", NEW)
    force: bool = knob(False, "go on with too little memory or disk, or a judge that is silent")
    overwrite: bool = knob(False, "start over where output_dir holds a run", NEW)


# --recipe published: other defaults, by data set; curr_reft.py's are under its own name. A flag
# that is given comes before them. ChartQA's published settings are the "*" above.
RECIPE = {
    "chartqa": "",
    "gsm8k": "--num_generations 16 --max_completion_length 1024 --num_train_epochs 10",
    "aokvqa": "--num_generations 4",
    "curr_reft": "--model Qwen/Qwen2.5-VL-3B-Instruct --no-freeze_vision --prompts_per_step 8"
    " --stage_generations 4 2 4 --reject_learning_rate 2e-7 --reject_epochs 3"
    " --reject_warmup 0.05 --reject_steps 2000",
}


class Parser(argparse.ArgumentParser):
    """argparse whose errors are InputErrors: one line, without the usage."""

    def error(self, message: str):
        raise InputError(f"{message}; --help lists the flags")


def parse(argv: list[str], kind: type = Config, **about: str):
    """The command line as a Config, or another dataclass of knobs; about: argparse's prog and
    description. InputError, one line, for an unknown flag, a wrong type, a number out of range, or
    a flag without effect; behind a "--" it may have none: a comparison gives all methods the same.
    """
    about = about or {"prog": "train.py", "description": "Teach a small VLM to think."}
    if kind is Config and "curr_reft" in argv:
        raise InputError("--method curr_reft: is a program of its own: python curr_reft.py")
    parser = Parser(allow_abbrev=False, argument_default=argparse.SUPPRESS, **about)
    knobs = [flag for flag in fields(kind) if flag.metadata]
    for flag in knobs:
        if flag.name in HEADINGS:
            group = parser.add_argument_group(HEADINGS[flag.name])
        if flag.metadata["help"]:
            add_flag(group, flag)
    end = argv.index("--") if "--" in argv else len(argv)
    typed = vars(parser.parse_args(argv[:end]))
    given = vars(parser.parse_args(argv[end + 1 :])) | typed
    if "recipe" in given:
        name = given.get("dataset", "charts") if kind is Config else "curr_reft"
        if name not in RECIPE:
            raise InputError(f"--recipe published: is for {', '.join(RECIPE)}, not {name}")
        given = vars(parser.parse_args(RECIPE[name].split())) | given
    config = kind(**given)
    for flag in knobs:
        defaults = flag.metadata["defaults"]
        if getattr(config, flag.name) is None:
            setattr(config, flag.name, defaults.get(config.dataset, defaults.get("*")))
    config.output_dir = config.output_dir or f"out/{Path(config.dataset).stem}-{config.method}"
    for flag in knobs:
        for words, holds in flag.metadata["when"] if flag.name in typed else ():
            if not holds(config):
                raise InputError(f"--{flag.name}: has an effect only {words}; leave it out")
    if len(config.reward_weights) != 3 or not any(config.reward_weights):
        raise InputError("--reward_weights: must be three numbers, not all of them 0")
    if config.loss_type in ("bnpo", "dapo") and config.method in SFT_UPDATES:
        told = f"--method {config.method} has updates without any; take grpo"
        raise InputError(f"--loss_type {config.loss_type}: divides by sampled tokens, and {told}")
    return config


def add_flag(group, flag: Field) -> None:
    """A field of Config as a flag of an argparse group."""
    written, about = str(flag.type), flag.metadata
    said = [f"{data}: {value}".removeprefix("*: ") for data, value in about["defaults"].items()]
    text = f"{about['help']} (default: {'; '.join(said)})".removesuffix(" (default: None)")
    if "bool" in written:
        options = {"action": argparse.BooleanOptionalAction}
    else:
        kind = float if "float" in written else int if "int" in written else None
        read = least(kind=kind, **about["limits"]) if kind else str
        many = "+" if "list" in written else None
        options = {"type": read, "choices": about["choices"], "nargs": many}
    group.add_argument(f"--{flag.name}", help=text, **options)


def tolerances(config) -> tuple[float, float]:
    """The relative errors of a right number: in training, in evaluation (published: ChartQA's)."""
    if config.tolerance is not None:
        return config.tolerance, config.tolerance
    return 0.0, 0.05 if config.dataset == "chartqa" else 0.0


def eval_settings(config) -> dict:
    """evaluate.evaluate's keyword arguments that are flags."""
    names = ("max_completion_length", "max_pixels", "seed")
    return {name: getattr(config, name) for name in names} | {"tolerance": tolerances(config)[1]}
