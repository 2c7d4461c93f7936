"""Every flag of train.py with its default and its help: one dataclass.

A None means "what DEFAULTS says for the data set". An unknown flag, a wrong type or a value out of
range ends in one line before anything is loaded. Left out: configuration files; a shell script is
one.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path

from data.example import InputError

METHODS = ("dyme", "sft", "grpo", "two_stage")
# variants.py's
METHODS += ("dyme_reward", "dyme_grounded", "dyme_keep", "dyme_always", "dyme_buffer")
METHODS += ("hpt", "chord_mu", "chord_phi", "luffy", "relift")
SFT_UPDATES = ("sft", "two_stage", "dyme_buffer", "relift")  # have updates without samples

MOST = 1e9  # no number of a run is greater

# when a flag has an effect: in words, and as a test of the others
CHARTS = ("with --dataset charts", lambda c: c.dataset == "charts")
FILES = ("with data from files, not with the charts", lambda c: c.dataset != "charts")
IMAGES = ("with images, and gsm8k has none", lambda c: c.dataset != "gsm8k")
TINY = ("with --model tiny", lambda c: c.model == "tiny")
LOADED = ("with another --model than tiny", lambda c: c.model != "tiny")
RULED = ("with another method than sft and grpo", lambda c: c.method not in ("sft", "grpo"))
MEMORIZES = ("with a method that memorizes", lambda c: c.method not in ("grpo", "curr_reft"))
SAMPLES = (
    "with a method that samples",
    lambda c: c.method != "sft" and getattr(c, "stages", None) != ["reject"],
)
REPEATS = ("with --num_iterations above 1", lambda c: c.num_iterations > 1)
UNREFINED = ("with --refiner off", lambda c: c.refiner == "off")
TRACED = (
    "with --refiner off, where facts are known",
    lambda c: c.refiner == "off" or c.dataset not in ("charts", "chartqa"),
)
ASKS = (
    "with a method that samples, or with --refiner local",
    lambda c: c.method != "sft" or c.refiner != "off",
)
JUDGED = ("with --judge_url", lambda c: c.judge_url is not None)
EPOCHS = ("without --max_steps, which the charts have", lambda c: c.max_steps is None)


def knob(default, text: str, *when: tuple, group=None, choices=None, **limits: float):
    """A flag: its default, its help, and what it may be.

    when: the conditions above that must hold for it to have an effect. group: the heading in --help
    of it and of those behind it. limits: low and high, the least and the greatest number; above,
    which it must exceed.
    """
    metadata = dict(help=text, when=when, group=group, choices=choices, limits=limits)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Config:
    dataset: str = knob("charts", "charts, chartqa, gsm8k, aokvqa, or a file", group="data")
    data_dir: str | None = knob(None, "its folder or zip; default: download", FILES)
    train_size: int | None = knob(None, "use the first so many training examples", low=1)
    eval_size: int | None = knob(None, "and so many of each evaluated split", low=1)
    final_splits: list[str] | None = knob(None, "what the end evaluates: test, on charts ood too")
    trace_noise: float = knob(
        0.5, "share of wrong facts in training traces", CHARTS, MEMORIZES, UNREFINED, low=0, high=1
    )
    traces: str | None = knob(None, "jsonl of reference traces, see judge.py refine", TRACED)
    facts: str | None = knob(None, "jsonl of visual facts, see judge.py facts", FILES)
    recipe: str | None = knob(None, "what the authors' scripts set", choices=("published",))
    skip_bad_rows: bool = knob(False, "leave out what can't be read, asked or answered", FILES)
    # Idefics3, SmolVLM and InternVL scale it up again
    max_pixels: int | None = knob(None, "an image with more is scaled down", IMAGES, low=1)

    model: str | None = knob(None, "hub name, folder, or 'tiny'", group="model")
    freeze_vision: bool = knob(True, "no gradient for the vision tower", IMAGES)
    base_steps: int | None = knob(None, "train the tiny model's base anew, so long", TINY, low=1)
    base_format_rate: float = knob(0.0, "how often that shows the format", TINY, low=0, high=1)
    base_seed: int = knob(0, "seed of its weights and base stage; not 0: anew", TINY, low=0)
    dtype: str | None = knob(
        None, "of weights; default: bf16 on CUDA, else fp32", LOADED, choices=("fp32", "bf16")
    )
    gradient_checkpointing: bool = knob(False, "recompute activations: slower, smaller")

    method: str = knob("dyme", "when to memorize and to explore", choices=METHODS, group="method")
    method_args: list[str] | None = knob(None, "name=number ...: see dyme.py, variants.py", RULED)
    thinking: str = knob("on", "off: ask for, and learn, the bare answer", choices=("on", "off"))
    num_generations: int = knob(8, "G: responses to a prompt", SAMPLES, low=2)
    max_completion_length: int | None = knob(None, "most tokens of a response", low=1)
    temperature: float = knob(1.0, "of sampling", above=0)
    num_iterations: int = knob(1, "updates per batch of rollouts", low=1)
    loss_type: str = knob(
        "grpo", "dr_grpo: advantages unscaled, too", choices=("grpo", "bnpo", "dapo", "dr_grpo")
    )
    epsilon_low: float = knob(0.2, "clips the ratio from below", SAMPLES, REPEATS, low=0, high=1)
    epsilon_high: float = knob(0.2, "and from above", SAMPLES, REPEATS, low=0)
    beta: float = knob(0.0, "KL to the starting model, kept in memory", SAMPLES, low=0)
    ref_model: str | None = None  # what the KL compares with; None: the starting model

    reward_weights: list[float] | None = knob(
        None, "of format, accuracy, thinking", SAMPLES, low=0, group="rewards"
    )
    tolerance: float | None = knob(
        None, "relative error of a right number; default: 0, evaluating ChartQA 0.05", low=0
    )
    reward: str | None = knob(
        None, "a .py file with `def reward(response, example)`, in accuracy's place", SAMPLES
    )
    refiner: str | None = knob(
        None,
        "memorize a trace made of the facts, or the data's",
        MEMORIZES,
        choices=("local", "off"),
    )
    judge_url: str | None = knob(
        None, "LLM behind both, http://host:port/v1; its key in DYME_JUDGE_KEY", ASKS
    )
    judge_model: str | None = knob(None, "its model name", JUDGED)

    max_steps: int | None = knob(
        None, "batches of rollouts; default: the epochs'", low=1, group="optimization"
    )
    num_train_epochs: float | None = knob(None, "passes over the training data", EPOCHS, above=0)
    prompts_per_step: int | None = knob(None, "P, over all processes", low=1)
    micro_batch_prompts: int | None = knob(None, "groups in one packed forward", low=1)
    learning_rate: float | None = knob(None, "peak", above=0)
    lr_scheduler_type: str = knob("linear", "decay", choices=("linear", "cosine", "constant"))
    warmup_steps: int = knob(0, "batches until the peak", low=0)
    weight_decay: float = 0.01  # AdamW's, no flag
    adam_beta2: float | None = None  # its memory of the squared gradient: DEFAULTS says it
    max_grad_norm: float = knob(1.0, "gradient clipping", above=0)
    seed: int = knob(0, "of sampling and of the order of examples", low=0)

    output_dir: str | None = knob(None, "default: out/<dataset>-<method>", group="output")
    save_steps: int | None = knob(None, "a checkpoint every so many, and 15 minutes", low=1)
    eval_steps: int | None = knob(None, "read val every so many; default: ten times a run", low=1)
    eval_base: bool | None = knob(None, "evaluate the starting model too; default: tiny's")
    log_groups_every: int = knob(25, "show some groups every so many steps; 0: never", low=0)
    report_to: str = knob(
        "none", "metrics go there too", choices=("tensorboard", "wandb", "trackio", "none")
    )
    resume: str | None = knob(None, "go on from output_dir's last checkpoint, or the one given")
    dry_run: bool = knob(False, "show a prompt, its target, what it earns; one step, and stop")
    force: bool = knob(False, "go on with too little memory or disk, or a judge that is silent")
    overwrite: bool = knob(False, "start over where output_dir holds a run")


# what a None above means; "*" are the published hyperparameters, for ChartQA
DEFAULTS = {
    "charts": dict(
        model="tiny",
        max_completion_length=48,
        # ours: a tiny model's right answer must outweigh fluent wrong thinking
        reward_weights=[0.5, 1.0, 0.5],
        max_steps=200,  # where val flattens, see results/README.md
        prompts_per_step=16,
        learning_rate=1e-3,
        # 200 updates are too few for 0.999 to forget the first, large gradients
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
        "curr_reft": dict(
            model="Qwen/Qwen2.5-VL-3B-Instruct",
            freeze_vision=False,
            stage_generations=[4, 2, 4],
            prompts_per_step=8,
            reject_learning_rate=2e-7,
            reject_epochs=3.0,
            reject_warmup=0.05,
            reject_steps=2000,
        ),
    }
}


def least(low: float, kind: type = int) -> Callable:
    """An argparse type of the other programs: a number from `low` to MOST."""

    def read(text: str) -> float:
        if not low <= kind(text) <= MOST:
            raise argparse.ArgumentTypeError(f"{text}: must be at least {low}, at most {MOST:g}")
        return kind(text)

    read.__name__ = kind.__name__  # for argparse's own message
    return read


class Parser(argparse.ArgumentParser):
    """argparse whose errors are InputErrors: one line, without the usage."""

    def error(self, message: str):
        raise InputError(f"{message}; --help lists the flags")


def parse(argv: list[str], kind: type = Config, defaults: dict | None = None, **about: str):
    """The command line as a Config, or as another dataclass of knobs; InputError, one line, for an
    unknown flag, a wrong type, a number out of range, or a flag that has no effect beside the
    others.

    Behind a "--" a flag may have none: a comparison gives the same to all of its methods. defaults:
    what a None means, in DEFAULTS' form, before DEFAULTS itself. about: argparse's prog and
    description.
    """
    about = about or {"prog": "train.py", "description": "Teach a small VLM to think."}
    if kind is Config and "curr_reft" in argv:
        raise InputError("--method curr_reft: is a program of its own: python curr_reft.py")
    parser = Parser(allow_abbrev=False, argument_default=argparse.SUPPRESS, **about)
    headings, heading = {}, ""
    for flag in knobs(kind):
        heading = flag.metadata["group"] or heading
        if heading not in headings:
            headings[heading] = parser.add_argument_group(heading)
        options = {"help": flag.metadata["help"] + default_text(flag, defaults or {})}
        written = str(flag.type)
        if "bool" in written:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = next((t for t in (float, int) if t.__name__ in written), str)
            options["choices"] = flag.metadata["choices"]
            if "list" in written:
                options["nargs"] = "+"
            if flag.name == "resume":
                options.update(nargs="?", const="last")
        headings[heading].add_argument(f"--{flag.name}", **options)
    end = argv.index("--") if "--" in argv else len(argv)
    typed = vars(parser.parse_args(argv[:end]))
    given = {**vars(parser.parse_args(argv[end + 1 :])), **typed}
    config = kind(**given)
    if config.recipe:
        name = "curr_reft" if config.method == "curr_reft" else config.dataset
        table = RECIPES[config.recipe]
        if name not in table:
            raise InputError(f"--recipe {config.recipe}: is for {', '.join(table)}, not {name}")
        config = kind(**{**table[name], **given})
    resolve(config, defaults or {})
    for flag in knobs(kind):
        for words, holds in flag.metadata["when"] if flag.name in typed else ():
            if not holds(config):
                raise InputError(f"--{flag.name}: has an effect only {words}; leave it out")
    return config


def knobs(kind) -> list[Field]:
    """The fields of a Config that are flags."""
    return [flag for flag in fields(kind) if flag.metadata]


def default_text(flag: Field, own: dict) -> str:
    """What --help says of a default: the flag's, or where it is None the data sets'."""
    if flag.default is not None:
        return f" (default: {flag.default_factory() if flag.default is MISSING else flag.default})"
    tables = {data: {**DEFAULTS.get(data, {}), **own.get(data, {})} for data in {**DEFAULTS, **own}}
    said = {data: table[flag.name] for data, table in tables.items() if flag.name in table}
    told = "; ".join(f"{data}: {value}" for data, value in said.items()).replace("*", "others")
    return f" ({told})" if said else ""


def resolve(config, own: dict) -> None:
    """Fill in what is None by the data set's defaults and check every number's range:
    InputError.
    """
    defaults = {**DEFAULTS["*"], **DEFAULTS.get(config.dataset, {})}
    defaults |= own.get(config.dataset, own.get("*", {}))
    for name, value in defaults.items():
        if hasattr(config, name) and getattr(config, name) is None:
            setattr(config, name, value)
    config.output_dir = config.output_dir or f"out/{Path(config.dataset).stem}-{config.method}"
    for flag in knobs(config):
        check_range(flag, getattr(config, flag.name))
    if len(config.reward_weights) != 3 or not any(config.reward_weights):
        raise InputError(
            "--reward_weights: three numbers, for format, accuracy, thinking; not all 0"
        )
    if config.resume and config.dry_run:
        raise InputError("--dry_run: takes the first step of a new run; leave --resume out")
    if config.resume and config.overwrite:
        raise InputError("--resume and --overwrite: give one of the two")
    if config.loss_type in ("bnpo", "dapo") and config.method in SFT_UPDATES:
        raise InputError(
            f"--loss_type {config.loss_type}: divides by sampled tokens, and --method "
            f"{config.method} has updates without any; take grpo"
        )


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


def check_range(flag: Field, value) -> None:
    """InputError for a number that isn't within its knob's limits, and for any above MOST."""
    limits = {"high": MOST, **flag.metadata["limits"]}
    low, above = limits.get("low", -MOST), limits.get("above", -math.inf)
    for number in value if isinstance(value, list) else [value]:
        known = type(number) in (int, float)
        if known and not (low <= number <= limits["high"] and number > above):
            told = {"low": "at least", "high": "at most", "above": "above"}
            wanted = " and ".join(f"{told[name]} {limit:g}" for name, limit in limits.items())
            raise InputError(f"--{flag.name} {number}: must be {wanted}")
