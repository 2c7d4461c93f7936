"""
The knobs: every flag of train.py with its default and its help, one dataclass.

A None means "what DEFAULTS says for the data set". An unknown flag, a wrong type or a value that
can't work ends in one line before anything is loaded. Left out: configuration files; a shell
script is one.
"""

import argparse
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

from data import InputError

METHODS = ("dyme", "sft", "grpo", "two_stage", "curr_reft")
STAGES = ("judge", "choice", "open", "reject")


def knob(default, group: str, text: str, choices=None):
    """A flag: its default, the heading that --help shows it under, its help."""
    metadata = {"group": group, "help": text, "choices": choices}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Config:
    dataset: str = knob(
        "charts", "data", "charts, chartqa, gsm8k, aokvqa, or a .jsonl / .json file"
    )
    data_dir: str | None = knob(None, "data", "folder or zip of the data set; default: download")
    questions: str = knob("human", "data", "ChartQA's questions", ("human", "augmented", "all"))
    train_size: int | None = knob(None, "data", "use the first so many training examples")
    eval_size: int | None = knob(
        None, "data", "use the first so many examples of each evaluated split"
    )
    eval_split: str = knob("val", "data", "split to evaluate on the way")
    final_splits: list[str] | None = knob(
        None, "data", "splits to evaluate at the end; default: test, and charts' ood"
    )
    data_seed: int = knob(0, "data", "charts: draws fresh ones")
    trace_noise: float = knob(0.5, "data", "charts: share of wrong facts in the training traces")
    traces: str | None = knob(None, "data", "jsonl of reference traces, see judge.py refine")
    max_prompt_length: int | None = knob(
        None, "data", "most tokens of a prompt, image included; longer is an error"
    )
    skip_long_prompts: bool = knob(False, "data", "leave longer prompts out, and count them")
    max_pixels: int | None = knob(
        None,
        "data",
        "an image with more is scaled down first; Idefics3, SmolVLM and InternVL scale it up again",
    )

    model: str | None = knob(None, "model", "hub name, folder, or 'tiny'")
    freeze_vision: bool = knob(True, "model", "no gradient for the vision tower")
    base_steps: int = knob(1600, "model", "tiny: length of its base stage")
    base_format_rate: float = knob(0.0, "model", "tiny: how often the base stage shows the format")
    base_seed: int = knob(0, "model", "tiny: seed of its weights and base stage")
    base_tasks: list[str] = knob(
        ["chart"],
        "model",
        "tiny: what its base stage asks, and the forms it has met",
        ("chart", "detection", "classification", "judge", "choice"),
    )
    base_task_steps: int = knob(
        1200, "model", "tiny: length of a second base stage, where base_tasks are more than chart"
    )
    gradient_checkpointing: bool = knob(False, "model", "recompute activations: slower, smaller")

    method: str = knob("dyme", "method", "what decides between memorising and exploring", METHODS)
    num_generations: int = knob(8, "method", "G: responses to a prompt")
    max_completion_length: int | None = knob(None, "method", "most tokens of a response")
    temperature: float = knob(1.0, "method", "of sampling")
    memorize_weight: str = knob(
        "group", "method", "weight of a memorised group", ("group", "one", "cosine")
    )
    refiner: str | None = knob(
        None,
        "method",
        "rewrite the memorised trace from the facts (local), or keep the data's (off)",
        ("local", "off"),
    )
    reward_weights: list[float] | None = knob(None, "method", "of format, accuracy, thinking")
    reward: str | None = knob(
        None, "method", "a .py file with your own `def reward(response, example) -> float`"
    )
    reward_mode: str = knob(
        "replace", "method", "what it does to the accuracy reward", ("replace", "join")
    )
    judge_url: str | None = knob(
        None, "method", "LLM behind checker and refiner, http://host:port/v1; key in DYME_JUDGE_KEY"
    )
    judge_model: str | None = knob(None, "method", "its model name")
    judge_parallel: int = knob(8, "method", "requests to it at a time")
    judge_timeout: float = knob(60.0, "method", "seconds that one request may take")
    compile: bool = knob(False, "method", "torch.compile the decode step")
    train_tolerance: float = knob(
        0.0, "method", "relative error that counts as a right answer in training"
    )
    loss_type: str = knob(
        "grpo", "method", "what a token weighs", ("grpo", "bnpo", "dr_grpo", "dapo")
    )
    scale_rewards: bool = knob(
        True, "method", "divide advantages by the group's standard deviation"
    )
    epsilon_low: float = knob(0.2, "method", "clipping of the ratio from below")
    epsilon_high: float = knob(0.2, "method", "clipping of the ratio from above")
    beta: float = knob(0.0, "method", "KL to ref_model, which is then kept in memory")
    ref_model: str | None = knob(
        None, "method", "what the KL compares with; default: the model that the run starts from"
    )

    stages: list[str] = knob(
        list(STAGES), "curr_reft", "which, in this order; the first starts from --model", STAGES
    )
    reject_samples: int = knob(8, "curr_reft", "N: responses to a prompt in rejected sampling")
    reject_size: int | None = knob(
        None, "curr_reft", "sample for the first so many training examples; default: for all"
    )
    reject_threshold: float = knob(
        85.0, "curr_reft", "a prompt's best response is kept above this, of 100"
    )
    reject_steps: int | None = knob(
        None, "curr_reft", "updates on what was kept; default: reject_epochs' worth"
    )
    reject_epochs: float = knob(2.0, "curr_reft", "passes over what was kept and mixed in")
    mix: str | None = knob(
        None,
        "curr_reft",
        "jsonl of other domains mixed into these; default: the tiny model's base texts, or none",
    )
    mix_share: float = knob(0.3, "curr_reft", "share of mixed-in examples")

    max_steps: int | None = knob(None, "optimisation", "updates; default: num_train_epochs' worth")
    num_train_epochs: float | None = knob(
        None, "optimisation", "passes over the training data, without max_steps"
    )
    prompts_per_step: int | None = knob(None, "optimisation", "P, over all processes")
    learning_rate: float | None = knob(None, "optimisation", "peak")
    lr_schedule: str = knob("linear", "optimisation", "decay", ("linear", "cosine", "constant"))
    warmup_steps: int = knob(0, "optimisation", "updates until the peak")
    weight_decay: float = knob(0.01, "optimisation", "AdamW's")
    adam_beta1: float = knob(0.9, "optimisation", "AdamW's memory of the gradient")
    adam_beta2: float | None = knob(None, "optimisation", "AdamW's memory of its square")
    max_grad_norm: float = knob(1.0, "optimisation", "gradient clipping")
    optim: str | None = knob(
        None, "optimisation", "default: adamw_bf16 for bf16", ("adamw_bf16", "adamw")
    )
    dtype: str | None = knob(
        None, "optimisation", "weights; default: bf16 on CUDA, fp32 else", ("fp32", "bf16")
    )
    micro_batch_prompts: int | None = knob(None, "optimisation", "groups in one packed forward")
    head_chunk_tokens: int = knob(
        256, "optimisation", "completion tokens whose logits exist at a time"
    )
    seed: int = knob(0, "optimisation", "of sampling and of the order of examples")
    num_threads: int = knob(0, "optimisation", "CPU threads; 0: torch's choice")

    output_dir: str | None = knob(None, "output", "default: out/<dataset>-<method>")
    save_steps: int | None = knob(None, "output", "a checkpoint every so many; default: at the end")
    eval_steps: int | None = knob(
        None, "output", "evaluate on eval_split every so many; default: ten times a run"
    )
    save_total_limit: int = knob(2, "output", "checkpoints kept besides the best one")
    log_groups_every: int = knob(
        25, "output", "log a few groups for report.py every so many steps; 0: never"
    )
    resume: str | None = knob(
        None,
        "output",
        "go on from the last complete checkpoint of output_dir, or from the given one",
    )
    overwrite: bool = knob(False, "output", "start over where output_dir holds a run")
    max_bad_steps: int = knob(
        5, "output", "stop after so many steps in a row with a gradient that isn't finite"
    )
    eval_base: bool | None = knob(
        None, "output", "evaluate the starting model on final_splits too; default: tiny only"
    )


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


# Curr-ReFT's own, in the place of the above. max_steps and epochs are those of all RL stages
# together, see stages.py
CURR_REFT = {
    "charts": dict(
        base_tasks=["chart", "detection", "classification", "judge", "choice"],
        # without memorising, a format that is never sampled is never learned
        base_format_rate=0.1,
        num_generations=4,
        max_completion_length=64,  # to name five colours twice
        reward_weights=[0.5, 1.0, 0.0],
        # a form that the model only guesses at gives noisy advantages: at 1e-3 they ruin it
        learning_rate=3e-4,
        beta=0.04,
        max_steps=200,
    ),
    "*": dict(
        num_generations=4,
        reward_weights=[1.0, 1.0, 0.0],
        learning_rate=1e-6,
        beta=0.04,
        num_train_epochs=4,
    ),
}


def parse(argv: list[str]) -> Config:
    """
    The command line as a Config. Unknown flags and wrong types end with argparse's own one-line
    message.
    """
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train a small vision-language model to think.",
        epilog="--method curr_reft has some defaults of its own: knobs.CURR_REFT.",
    )
    groups = {}
    for knob_field in fields(Config):
        name, metadata = knob_field.name, knob_field.metadata
        default = (
            knob_field.default_factory() if knob_field.default is MISSING else knob_field.default
        )
        group = groups.setdefault(metadata["group"], parser.add_argument_group(metadata["group"]))
        options = {"default": default, "help": metadata["help"] + default_text(name, default)}
        kind = str(knob_field.type)
        if "bool" in kind:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = next((t for t in (float, int) if t.__name__ in kind), str)
            options["choices"] = metadata["choices"]
            if "list" in kind:
                options["nargs"] = "*"
            if name == "resume":
                options.update(nargs="?", const="last")
        group.add_argument(f"--{name}", **options)
    args = parser.parse_args(argv)
    if args.method == "curr_reft":
        parser.set_defaults(**CURR_REFT.get(args.dataset, CURR_REFT["*"]))
        args = parser.parse_args(argv)
    return resolve(Config(**vars(args)))


def default_text(name: str, default) -> str:
    """What --help says of a flag's default: one value, or those of the data sets."""
    if default is not None:
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        return f" (default: {shown})"
    of_data = {dataset: values[name] for dataset, values in DEFAULTS.items() if name in values}
    shown = [f"{dataset} {value}".replace("* ", "else ") for dataset, value in of_data.items()]
    return f" (default: {', '.join(shown)})" if shown else ""


def resolve(config: Config) -> Config:
    """
    Fill every None that DEFAULTS knows, and check what can be checked before anything is loaded.
    """
    defaults = {**DEFAULTS["*"], **DEFAULTS.get(config.dataset, {})}
    for name, value in defaults.items():
        if hasattr(config, name) and getattr(config, name) is None:
            setattr(config, name, value)
    stem = Path(config.dataset).stem
    config.output_dir = config.output_dir or f"out/{stem}-{config.method}"
    checks = [
        (
            config.num_generations >= 2,
            "--num_generations: at least 2, a group compares with itself",
        ),
        (config.prompts_per_step >= 1, "--prompts_per_step: at least 1"),
        (config.max_completion_length >= 1, "--max_completion_length: at least 1"),
        (config.max_steps is None or config.max_steps >= 1, "--max_steps: at least 1"),
        (config.temperature > 0, "--temperature: must be above 0 to sample different responses"),
        (config.learning_rate > 0, "--learning_rate: must be above 0"),
        (
            len(config.reward_weights) == 3,
            "--reward_weights: three numbers, for format, accuracy, thinking",
        ),
        (
            config.loss_type in ("grpo", "dr_grpo") or config.method not in ("sft", "two_stage"),
            f"--loss_type {config.loss_type}: divides by sampled tokens, and --method "
            f"{config.method} samples none while it memorises; take grpo",
        ),
        (config.method != "curr_reft" or config.stages, "--stages: at least one"),
        (config.reject_samples >= 1, "--reject_samples: at least 1"),
        (0 <= config.reject_threshold < 100, "--reject_threshold: 0 to below 100"),
        (0 <= config.mix_share < 1, "--mix_share: 0 to below 1"),
    ]
    for fine, message in checks:
        if not fine:
            raise InputError(message)
    return config
