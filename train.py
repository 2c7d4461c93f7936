"""
Train a small vision-language model to think: DyME, its baselines, one loop.

    python train.py                                   charts and a tiny model, on a CPU, in minutes
    python train.py --dataset chartqa                 LLaVA-OneVision-0.5B on ChartQA, on one GPU
    torchrun --nproc_per_node 4 train.py ...          the same on several

The loop in `train` is Algorithm 1 of DyME (arXiv 2506.23061): sample, score, switch, one update. The other methods are
the same loop with another switch: SFT always memorises, GRPO always explores, two-stage does one after the other;
Curr-ReFT (stages.py) runs it once for each of its stages, with a Task of the stage's questions and rewards.
Left out: learned rewards, value networks, several updates per batch of rollouts, LoRA.
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

import checkpoint
import dyme
from checker import refine, score
from data import InputError, NoSplit, load_data
from evaluate import evaluate, evaluate_all
from families import load_vlm, parameter_counts, save_model
from grpo import group_advantages
from judge import Calls, apply_scores, close_judge, open_judge, request_template, request_trace, restore_template
from judge import take_counts, thinking_scores
from knobs import Config, parse
from metrics import Log, group_lines, means, rollout_sums, seconds, summary
from model import THINK, encode_prompt, image_features, prompt_to
from optim import build_optimizer, lr_at
from rewards import adopt_proposal, as_ready, ask_judge, load_reward, score_group
from rollout import rollout
from tiny import base_model

# flags that may change when a run is resumed
FREE_TO_CHANGE = {"resume", "overwrite", "output_dir", "save_steps", "save_total_limit", "num_threads", "data_dir"}


def load_model(config: Config, device):
    """The model to train and its processor: from the hub, from a folder, or the tiny one after its base stage."""
    if config.model == "tiny":
        model, processor = base_model(
            config.base_steps, config.base_seed, config.base_format_rate, config.freeze_vision, config.base_tasks
        )
        return model.to(device), processor
    dtype = config.dtype or ("bf16" if device.type == "cuda" else "fp32")
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    return load_vlm(config.model, dtype=dtype, device=device, freeze_vision=config.freeze_vision)


def load_split(config: Config, split: str, size: int | None, tasks=("chart",)):
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
        tasks=tasks,
    )


def load_finals(config: Config, log: Log) -> dict:
    """The splits of the last evaluation: those asked for; else test and ood as far as the data has them, or eval_split."""
    if config.final_splits is not None:
        return {split: load_split(config, split, config.eval_size) for split in config.final_splits}
    finals = {}
    for split in ("test", "ood") if config.dataset == "charts" else ("test",):
        try:
            finals[split] = load_split(config, split, config.eval_size)
        except NoSplit as error:
            log.say(f"{error}; evaluating {config.eval_split} in its place")
    return finals or {config.eval_split: load_split(config, config.eval_split, config.eval_size)}


@dataclass
class Task:
    """What a run learns from, is watched on and is measured by, lists of Examples; and how responses are scored."""

    train: Sequence
    val: Sequence
    finals: dict[str, Sequence]
    score: Callable = score  # checker.score, or a stage's, see curr_reft.py


def load_task(config: Config, log: Log) -> Task:
    """The configured data set's splits, scored by the answer metric."""
    train_split = load_split(config, "train", config.train_size)
    return Task(train_split, load_split(config, config.eval_split, config.eval_size), load_finals(config, log))


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


def encode_share(model, processor, config: Config, share: list) -> tuple[list, list, list]:
    """The prompts of [(place, Example)], on the model's device: (places, examples, prompts), too long ones left out."""
    places, examples, prompts = [], [], []
    for place, example in share:
        prompt = encode_prompt(processor, example, example.instruction or THINK, config.max_pixels)
        if fits(config, prompt, example):
            prompt = prompt_to(prompt, model.device)
            if config.freeze_vision:
                prompt.features = image_features(model, prompt)  # once, for rollout and update
            places.append(place)
            examples.append(example)
            prompts.append(prompt)
    return places, examples, prompts


def fits(config: Config, prompt, example) -> bool:
    """Whether a prompt is short enough; InputError when it isn't and --skip_long_prompts is off. Nothing is truncated."""
    length = prompt.input_ids.shape[1]
    if config.max_prompt_length is None or length <= config.max_prompt_length:
        return True
    if not config.skip_long_prompts:
        raise InputError(
            f"{example.id}: its prompt has {length} tokens, --max_prompt_length is {config.max_prompt_length}; "
            f"lower --max_pixels, raise the limit, or give --skip_long_prompts"
        )
    return False


def only_memorizes(config: Config, step: int) -> bool:
    """Whether the method memorises at this step whatever the samples would be, so that none are drawn."""
    return config.method == "sft" or (config.method == "two_stage" and step < config.max_steps // 2)


def choose(config: Config, correct: torch.Tensor) -> torch.Tensor:
    """The mode of each group, (P,), from correct (P, G): DyME's switch; GRPO explores whatever comes."""
    if config.method == "dyme":
        return dyme.switch(correct)
    return torch.full((len(correct),), dyme.EXPLORE)


def reference_trace(config: Config, example, call=None) -> str | None:
    """The thinking that is memorised: the visual refiner's, the judge's where there is one, or the data set's own."""
    if example.instruction is not None:
        return None  # it asks for no thinking: the answer alone is memorised
    if config.refiner == "off" and example.trace is not None:
        return example.trace
    return refine(example) if call is None else call.trace.result()


def normalizer(config: Config, responses: list, ranks: checkpoint.Ranks) -> float:
    """What the loss of the whole step is divided by: all P * G sequences, skipped ones included, or their tokens."""
    sequences = config.prompts_per_step * config.num_generations
    if config.loss_type == "dr_grpo":
        return sequences * config.max_completion_length
    if config.loss_type == "grpo":
        return sequences
    tokens = sum(len(response.token_ids) for group in responses for response in group)
    return max(checkpoint.reduce_sums({"tokens": tokens}, ranks)["tokens"], 1.0)


def optimizer_step(model, optimizer, config: Config, step: int, loss: float) -> dict:
    """Clip and apply the accumulated gradient, unless it or the loss isn't finite: then the step is left out."""
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm).item()
    learning_rate = lr_at(step, config.max_steps, config.learning_rate, config.warmup_steps, config.lr_schedule)
    for param_group in optimizer.param_groups:
        param_group["lr"] = learning_rate
    finite = math.isfinite(grad_norm) and math.isfinite(loss)
    if finite:
        optimizer.step()
    optimizer.zero_grad()
    return {"grad_norm": grad_norm, "learning_rate": learning_rate, "finite": finite}


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


def train(config: Config, ranks: checkpoint.Ranks, task: Task | None = None) -> dict:
    """One run, from loading to the last evaluation. Returns what it writes to <output_dir>/result.json."""
    log = Log(config.output_dir, ranks.rank == 0)
    found = find_run(config)
    log.open(fresh=found is None)
    model, processor = load_model(config, ranks.device)
    task = task or load_task(config, log)
    data, val, finals = task.train, task.val, task.finals
    finish_config(config, model, len(data))
    ref_model = None
    if config.beta > 0:
        reference = replace(config, model=config.ref_model or config.model)
        ref_model = load_model(reference, ranks.device)[0].requires_grad_(False)
    betas = (config.adam_beta1, config.adam_beta2)
    optimizer = build_optimizer(
        model, config.optim, config.learning_rate, config.weight_decay, betas, seed=config.seed
    )
    own_reward = load_reward(config.reward)
    judge = open_judge(config.judge_url, config.judge_model, output_dir=config.output_dir) if config.judge_url else None
    log.say("{}: {:,} parameters train, {:,} are frozen".format(config.model, *parameter_counts(model)))
    log.say(f"{len(data)} training examples, {config.max_steps} steps of {config.prompts_per_step} prompts")

    state = {"step": 0, "seconds": 0.0, "bad_steps": 0, "val": [], "base": {}}
    if found:
        state.update(resume(config, found, model, optimizer, log))
        if judge:
            restore_template(judge, state["step"])
    proposal = None  # of a better template for the refiner, under way
    reading = {name: getattr(config, name) for name in ("max_completion_length", "max_pixels", "seed")}
    reading["score"] = task.score
    sampling = {name: getattr(config, name) for name in ("num_generations", "max_completion_length", "temperature", "seed", "compile")}
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
            if judge:  # the first process owns the refiner's template and hands it to the others
                proposal = adopt_proposal(judge, proposal, step)
                judge.template = checkpoint.broadcast_object(judge.template, ranks)
            # ---- P prompts, of which this process takes its share
            share = checkpoint.shard(step_examples(data, config, step), ranks)
            places, examples, prompts = encode_share(model, processor, config, share)

            # ---- G responses to each, and what is right about them
            calls = [Calls(e, config.num_generations, config.method == "dyme") for e in examples] if judge else []
            advantages = torch.zeros(len(prompts), config.num_generations)  # (P, G)
            if only_memorizes(config, step):
                responses, scores = [], []
                clock.append(time.perf_counter())
                modes = torch.full((len(prompts),), dyme.MEMORIZE)
                memorize = float(config.num_generations)  # plain SFT: every sequence weighs a whole group
                for call in calls:
                    request_trace(judge, call)
            else:
                on_response = ask_judge(judge, calls, config, task.score) if judge else None
                responses = rollout(
                    model, processor, prompts, step=step, prompt_indices=places, on_response=on_response, **sampling
                )
                clock.append(time.perf_counter())
                scores = [score_group(group, e, config, own_reward, task.score) for group, e in zip(responses, examples)]
                # ---- the switch: memorise, explore or skip
                correct = torch.stack([scored["correct"] for scored in scores]) if scores else advantages.bool()  # (P, G)
                modes = choose(config, correct)  # (P,)
                progress_made = step / config.max_steps
                memorize = dyme.memorize_advantage(config.memorize_weight, config.num_generations, progress_made)
            clock.append(time.perf_counter())

            # ---- one update on memorised and explored groups together; a group takes part once its judge has answered
            divisor = normalizer(config, responses, ranks)
            update, targets = dict.fromkeys(dyme.UPDATE_SUMS, 0.0), {}
            model.train(config.gradient_checkpointing)
            for ready in as_ready(judge, calls, len(prompts)):
                for p in ready:
                    if judge and scores:
                        apply_scores(scores[p], thinking_scores(calls[p]), config.reward_weights)
                    if scores:
                        advantages[p] = group_advantages(scores[p]["total"][None], config.scale_rewards)[0]
                    if modes[p] == dyme.MEMORIZE:
                        trace = reference_trace(config, examples[p], calls[p] if judge else None)
                        targets[p] = dyme.target_ids(processor, trace, examples[p].answer)
                groups = dyme.build_groups(ready, modes, responses, advantages, targets, memorize)
                done = dyme.packed_update(model, prompts, groups, normalizer=divisor, ref_model=ref_model, **updating)
                update = {name: update[name] + value for name, value in done.items()}
            model.eval()
            checkpoint.sum_gradients(model, ranks)
            sums = {**update, **rollout_sums(responses, scores, advantages, modes), "skipped": len(share) - len(prompts)}
            sums = checkpoint.reduce_sums({**sums, **(take_counts(judge) if judge else {})}, ranks)
            moved = optimizer_step(model, optimizer, config, step, sums["loss"])
            state["bad_steps"] = 0 if moved["finite"] else state["bad_steps"] + 1
            clock.append(time.perf_counter())

            # ---- log, evaluate, save
            if judge and log.active and proposal is None:
                proposal = request_template(judge, calls)
            state["step"] = step + 1
            state["seconds"] += clock[-1] - clock[0]
            line = {"step": step, **means(sums), **moved, **seconds(clock)}
            line["tokens_per_second"] = sums["length"] / line["seconds_rollout"]
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

    if judge:
        close_judge(judge)
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
        if config.method == "curr_reft":
            from stages import run_stages  # here, since it runs this file's train

            run_stages(config, ranks)
        else:
            train(config, ranks)
        checkpoint.cleanup(ranks)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
