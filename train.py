"""
Train a small vision-language model to think: DyME, its baselines, one loop.

    python train.py                                   charts and a tiny model, on a CPU, in minutes
    python train.py --dataset chartqa                 LLaVA-OneVision-0.5B on ChartQA, on one GPU
    torchrun --nproc_per_node 4 train.py ...          the same on several

The loop in `train` is Algorithm 1 of DyME (arXiv 2506.23061): sample, score, switch, one update. The other methods are
the same loop with another switch: SFT always memorises, GRPO always explores, two-stage does one after the other.
Left out: learned rewards, value networks, several updates per batch of rollouts, LoRA.
"""

import math
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

import checkpoint
import dyme
from checker import refine, score
from data import InputError, load_data
from evaluate import evaluate, evaluate_all
from families import load_vlm, parameter_counts, save_model
from grpo import group_advantages
from knobs import Config, parse
from metrics import Log, group_lines, means, rollout_sums, seconds, summary
from model import THINK, encode_prompt, image_features, prompt_to
from optim import build_optimizer, lr_at
from rollout import rollout
from tiny import base_model

# flags that may change when a run is resumed
FREE_TO_CHANGE = {"resume", "overwrite", "output_dir", "save_steps", "save_total_limit", "num_threads", "data_dir"}


def load_model(config: Config, device):
    """The model to train and its processor: from the hub, from a folder, or the tiny one after its base stage."""
    if config.model == "tiny":
        model, processor = base_model(
            config.base_steps, config.base_seed, config.base_format_rate, config.freeze_vision
        )
        return model.to(device), processor
    dtype = config.dtype or ("bf16" if device.type == "cuda" else "fp32")
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    return load_vlm(config.model, dtype=dtype, device=device, freeze_vision=config.freeze_vision)


def load_split(config: Config, split: str, size: int | None):
    """One split of the configured data set; of the training split alone the noise, the choice and the traces."""
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
    )


def step_examples(data, config: Config, step: int) -> list:
    """
    The P examples of a step; a new shuffle each epoch.

    A pure function of (seed, step), so that a resumed run needs no state for it.
    """
    picked = []
    for p in range(config.prompts_per_step):
        epoch, place = divmod(step * config.prompts_per_step + p, len(data))
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        order = torch.randperm(len(data), generator=generator)
        picked.append(data[int(order[place])])
    return picked


def only_memorizes(config: Config, step: int) -> bool:
    """Whether the method memorises at this step whatever the samples would be, so that none are drawn."""
    return config.method == "sft" or (config.method == "two_stage" and step < config.max_steps // 2)


def choose(config: Config, correct: torch.Tensor) -> torch.Tensor:
    """The mode of each group, (P,), from correct (P, G): DyME's switch; GRPO explores whatever comes."""
    if config.method == "dyme":
        return dyme.switch(correct)
    return torch.full((len(correct),), dyme.EXPLORE)


def reference_trace(config: Config, example) -> str:
    """The thinking that is memorised: written by the visual refiner from the facts, or the data set's own."""
    if config.refiner == "off" and example.trace is not None:
        return example.trace
    return refine(example)


def normalizer(config: Config, tokens: float) -> float:
    """What the loss of the whole step is divided by: all P * G sequences, skipped ones included, or the tokens."""
    sequences = config.prompts_per_step * config.num_generations
    if config.loss_type == "dr_grpo":
        return sequences * config.max_completion_length
    return sequences if config.loss_type == "grpo" else max(tokens, 1.0)


def rewards_of(config: Config, group: list, example) -> dict[str, torch.Tensor]:
    """The rewards of one prompt's G responses, each (G,): format, accuracy, thinking, total, correct."""
    texts = [response.text for response in group]
    truncated = [response.truncated for response in group]
    scored = score(
        texts, example, truncated=truncated, reward_weights=config.reward_weights, tolerance=config.train_tolerance
    )
    if not torch.isfinite(scored["total"]).all():
        raise InputError(f"{example.id}: a reward is not finite: {scored['total'].tolist()}; mend the reward function")
    return scored


def find_run(config: Config):
    """The checkpoint to go on from, or None for a new run; InputError rather than writing over another run."""
    if config.resume:
        found = checkpoint.find_checkpoint(config.output_dir if config.resume == "last" else config.resume)
        if found is None:
            raise InputError(f"--resume: no complete checkpoint in {config.output_dir}; start without --resume")
        return found
    if (Path(config.output_dir) / "metrics.jsonl").exists() and not config.overwrite:
        raise InputError(f"{config.output_dir}: holds a run; --resume it, --overwrite it, or give another --output_dir")
    return None


def resume(config: Config, found, model, optimizer, log: Log) -> dict:
    """Put a checkpoint into model, optimizer and logs; returns the loop's state. Says which flags have changed."""
    state = checkpoint.load_checkpoint(found, model, optimizer)
    for change in checkpoint.changed_flags(state.pop("config"), asdict(config), FREE_TO_CHANGE):
        log.say(f"warning: resumed with another {change}")
    log.cut(state)
    log.say(f"resumed from {found} at step {state['step']}")
    return {name: state[name] for name in ("step", "seconds", "bad_steps", "val", "base")}


def finish_config(config: Config, model, examples: int) -> None:
    """The knobs that depend on the model or on the number of training examples."""
    if config.max_steps is None:
        config.max_steps = max(1, int(config.num_train_epochs * examples / config.prompts_per_step))
    config.eval_steps = config.eval_steps or max(1, config.max_steps // 10)
    config.save_steps = config.save_steps or config.max_steps
    config.eval_base = config.model == "tiny" if config.eval_base is None else config.eval_base
    if config.optim is None:
        config.optim = "adamw_bf16" if next(model.parameters()).dtype == torch.bfloat16 else "adamw"
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()


def train(config: Config, ranks: checkpoint.Ranks) -> dict:
    """One run, from loading to the last evaluation. Returns what it writes to <output_dir>/result.json."""
    log = Log(config.output_dir, ranks.rank == 0)
    found = find_run(config)
    log.open(fresh=found is None)
    model, processor = load_model(config, ranks.device)
    data = load_split(config, "train", config.train_size)
    val = load_split(config, config.eval_split, config.eval_size)
    finals = {split: load_split(config, split, config.eval_size) for split in config.final_splits}
    finish_config(config, model, len(data))
    ref_model = None
    if config.beta > 0:
        ref_model = load_model(config, ranks.device)[0].requires_grad_(False)
    betas = (config.adam_beta1, config.adam_beta2)
    optimizer = build_optimizer(
        model, config.optim, config.learning_rate, config.weight_decay, betas, seed=config.seed
    )
    log.say("{}: {:,} parameters train, {:,} are frozen".format(config.model, *parameter_counts(model)))
    log.say(f"{len(data)} training examples, {config.max_steps} steps of {config.prompts_per_step} prompts")

    state = {"step": 0, "seconds": 0.0, "bad_steps": 0, "val": [], "base": {}}
    if found:
        state.update(resume(config, found, model, optimizer, log))
    reading = {name: getattr(config, name) for name in ("max_completion_length", "max_pixels", "seed")}
    sampling = {name: getattr(config, name) for name in ("num_generations", "max_completion_length", "temperature", "seed")}
    names = ("temperature", "micro_batch_prompts", "head_chunk_tokens", "epsilon_low", "epsilon_high", "loss_type", "beta")
    updating = {name: getattr(config, name) for name in names}

    if config.eval_base and not state["base"]:
        for split, examples in finals.items():
            state["base"][split] = evaluate_all(model, processor, examples, **reading)
            log.say(summary(f"base, {split}", state["base"][split]))

    def save(step: int, best: bool = False):
        if ranks.rank == 0:
            content = {**state, **log.positions(), "config": asdict(config)}
            limit = config.save_total_limit
            checkpoint.save_checkpoint(
                config.output_dir, step, model, processor, optimizer, content, save_total_limit=limit, best=best
            )

    with checkpoint.Interrupt() as interrupt:
        progress = tqdm(range(state["step"], config.max_steps), desc=config.method, unit="step", disable=None if log.active else True)
        for step in progress:
            clock = [time.perf_counter()]
            # ---- P prompts, of which this process takes its share
            share = checkpoint.shard(step_examples(data, config, step), ranks)
            places, examples = [place for place, _ in share], [example for _, example in share]
            prompts = [encode_prompt(processor, example, THINK, config.max_pixels) for example in examples]
            prompts = [prompt_to(prompt, ranks.device) for prompt in prompts]
            if config.freeze_vision:
                for prompt in prompts:
                    prompt.features = image_features(model, prompt)

            responses, scores = [], []
            if only_memorizes(config, step):
                modes = torch.full((len(prompts),), dyme.MEMORIZE)
                advantages = torch.zeros(len(prompts), config.num_generations)
                memorize = float(config.num_generations)  # plain SFT: every sequence weighs a whole group
            else:
                # ---- G responses to each, their rewards, their advantages
                responses = rollout(model, processor, prompts, step=step, prompt_indices=places, **sampling)
                clock.append(time.perf_counter())
                scores = [rewards_of(config, group, example) for group, example in zip(responses, examples)]
                rewards = torch.stack([scored["total"] for scored in scores])  # (P, G)
                correct = torch.stack([scored["correct"] for scored in scores])  # (P, G)
                advantages = group_advantages(rewards, config.scale_rewards)  # (P, G)
                # ---- the switch: memorise, explore or skip
                modes = choose(config, correct)  # (P,)
                progress_made = step / config.max_steps
                memorize = dyme.memorize_advantage(config.memorize_weight, config.num_generations, progress_made)
            targets = {
                p: dyme.target_ids(processor, reference_trace(config, examples[p]), examples[p].answer)
                for p in (modes == dyme.MEMORIZE).nonzero()[:, 0].tolist()
            }
            groups = dyme.build_groups(modes, responses, advantages, targets, memorize)
            clock.append(time.perf_counter())

            # ---- one update on memorised and explored groups together
            sums = rollout_sums(responses, scores, advantages, modes)
            sums["update_tokens"] = float(sum(len(ids) for group in groups for ids in group.completions))
            sums = checkpoint.reduce_sums(sums, ranks)
            divisor = normalizer(config, sums["update_tokens"])
            model.train(config.gradient_checkpointing)
            update = dyme.packed_update(model, prompts, groups, normalizer=divisor, ref_model=ref_model, **updating)
            model.eval()
            sums.update(checkpoint.reduce_sums(update, ranks))
            checkpoint.sum_gradients(model, ranks)
            grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm).item()
            learning_rate = lr_at(step, config.max_steps, config.learning_rate, config.warmup_steps, config.lr_schedule)
            for param_group in optimizer.param_groups:
                param_group["lr"] = learning_rate
            if math.isfinite(grad_norm) and math.isfinite(sums["loss"]):
                optimizer.step()
                state["bad_steps"] = 0
            else:
                state["bad_steps"] += 1
            optimizer.zero_grad()
            clock.append(time.perf_counter())

            # ---- log, evaluate, save
            state["step"] = step + 1
            state["seconds"] += clock[-1] - clock[0]
            line = {"step": step, **means(sums), "grad_norm": grad_norm, "learning_rate": learning_rate}
            line.update(seconds(clock), tokens_per_second=sums["length"] / max(seconds(clock)["seconds_rollout"], 1e-9))
            log.append("metrics.jsonl", line)
            progress.set_postfix({name: f"{line[name]:.2f}" for name in ("reward", "correct") if name in line})
            if log.active and config.log_groups_every and step % config.log_groups_every == 0:
                for group_line in group_lines(step, examples, responses, scores, advantages, modes, targets, processor):
                    log.append("groups.jsonl", group_line)
            best = False
            if (step + 1) % config.eval_steps == 0:
                val_result = evaluate(model, processor, val, **reading)
                best = val_result["accuracy"] > max((v["accuracy"] for v in state["val"]), default=-1.0)
                state["val"].append({"step": step + 1, **val_result})
                log.say(f"step {step + 1}, {config.eval_split}: accuracy {val_result['accuracy']:.3f}, format {val_result['format']:.3f}")
            if best or (step + 1) % config.save_steps == 0:
                save(step + 1, best)
            if state["bad_steps"] >= config.max_bad_steps:
                save(step + 1)
                raise InputError(
                    f"--max_bad_steps: {state['bad_steps']} steps in a row had a gradient that isn't finite; the last good "
                    f"weights are saved, lower --learning_rate and --resume"
                )
            if signal := interrupt.agreed(ranks):
                save(step + 1)
                log.say(f"interrupted: step {step + 1} is saved in {config.output_dir}; go on with --resume")
                raise SystemExit(128 + signal)

    result = {"config": asdict(config), **state, "final": {}}
    for split, examples in finals.items():
        result["final"][split] = evaluate_all(model, processor, examples, **reading)
        log.say(summary(f"{config.method}, {split}", result["final"][split]))
    if log.active:
        save_model(config.output_dir, model, processor)
        log.write("result.json", result)
        log.say(f"model, metrics and result are in {config.output_dir}")
    return result


def main(argv: list[str]) -> None:
    """The command line; bad input ends in one line and exit code 2."""
    try:
        config = parse(argv)
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        ranks = checkpoint.setup_distributed()
        train(config, ranks)
        checkpoint.cleanup(ranks)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
