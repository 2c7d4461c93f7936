"""
Train a small vision-language model to think: DyME, its baselines, one loop.

    python train.py                                   charts and a tiny model, on a CPU, in minutes
    python train.py --dataset chartqa                 LLaVA-OneVision-0.5B on ChartQA, on one GPU
    torchrun --nproc_per_node 4 train.py ...          the same on several

The loop in `train` is Algorithm 1 of DyME (arXiv 2506.23061): sample, score, switch, one update.
The other methods are the same loop with another switch: SFT always memorises, GRPO always
explores, two-stage does one after the other; Curr-ReFT (stages.py) runs it once for each of its
stages, with a Task of the stage's questions and rewards. Left out: learned rewards, value
networks, several updates per batch of rollouts, LoRA.
"""

import math
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict

import torch
from tqdm import tqdm

import checkpoint
import dyme
from checker import refine
from data import InputError
from evaluate import evaluate
from families import save_model
from grpo import group_advantages
from judge import request_trace, take_counts
from knobs import Config, parse
from metrics import group_lines, means, rollout_sums, seconds
from model import THINK, encode_prompt, image_features, prompt_to
from optim import lr_at
from prepare import Run, Task, make_base, prepare_run, read_finals
from ranks import Interrupt, Ranks, cleanup, reduce_sums, setup_distributed, shard, sum_gradients
from rewards import (
    apply_judge,
    as_ready,
    ask_judge,
    closing_judge,
    evolve_template,
    open_calls,
    score_group,
)
from rollout import rollout


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
    """
    The prompts of [(place, Example)], on the model's device: (places, examples, prompts), too long
    ones left out.
    """
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
    """
    Whether a prompt is short enough; InputError when it isn't and --skip_long_prompts is off.
    Nothing is truncated.
    """
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
    """
    Whether the method memorises at this step whatever the samples would be, so that none are
    drawn.
    """
    return config.method == "sft" or (
        config.method == "two_stage" and step < config.max_steps // 2
    )


def choose(config: Config, correct: torch.Tensor) -> torch.Tensor:
    """
    The mode of each group, (P,), from correct (P, G): DyME's switch; GRPO explores whatever comes.
    """
    if config.method == "dyme":
        return dyme.switch(correct)
    return torch.full((len(correct),), dyme.EXPLORE)


def reference_trace(config: Config, example, call=None) -> str | None:
    """
    The thinking that is memorised: the visual refiner's, the judge's where there is one, or the
    data set's own.
    """
    if example.instruction is not None:
        return None  # it asks for no thinking: the answer alone is memorised
    if config.refiner == "off" and example.trace is not None:
        return example.trace
    written = call.trace.result() if call is not None else None
    return written or refine(example)


def normalizer(config: Config, responses: list, ranks: Ranks) -> float:
    """
    What the loss of the whole step is divided by: all P * G sequences, skipped ones included, or
    their tokens.
    """
    sequences = config.prompts_per_step * config.num_generations
    if config.loss_type == "dr_grpo":
        return sequences * config.max_completion_length
    if config.loss_type == "grpo":
        return sequences
    tokens = sum(len(response.token_ids) for group in responses for response in group)
    return max(reduce_sums({"tokens": tokens}, ranks)["tokens"], 1.0)


def memorize_advantage(config: Config, step: int) -> float:
    """The advantage of a memorised sequence; in plain SFT each weighs a whole group."""
    weight = "one" if only_memorizes(config, step) else config.memorize_weight
    return dyme.memorize_advantage(weight, config.num_generations, step / config.max_steps)


def optimizer_step(model, optimizer, config: Config, step: int, loss: float) -> dict:
    """
    Clip and apply the accumulated gradient, unless it or the loss isn't finite: then the step is
    left out.
    """
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm).item()
    learning_rate = lr_at(
        step, config.max_steps, config.learning_rate, config.warmup_steps, config.lr_schedule
    )
    for param_group in optimizer.param_groups:
        param_group["lr"] = learning_rate
    finite = math.isfinite(grad_norm) and math.isfinite(loss)
    if finite:
        optimizer.step()
    optimizer.zero_grad()
    return {"grad_norm": grad_norm, "learning_rate": learning_rate, "finite": finite}


def train(config: Config, ranks: Ranks, task: Task | None = None) -> dict:
    """
    One run, from loading to the last evaluation. Returns what it writes to
    <output_dir>/result.json.
    """
    run = prepare_run(config, ranks, task)
    model, processor, judge = run.model, run.processor, run.judge
    sampling = run.settings(
        "num_generations", "max_completion_length", "temperature", "seed", "compile"
    )
    steps = tqdm(
        range(run.state["step"], config.max_steps),
        desc=config.method,
        unit="step",
        disable=None if run.log.active else True,
    )
    proposal = None  # of a better template for the judge's refiner, under way

    with Interrupt() as interrupt, out_of_memory(run), closing_judge(judge):
        for step in steps:
            clock = [time.perf_counter()]
            # ---- P prompts, of which this process takes its share
            share = shard(step_examples(run.task.train, config, step), ranks)
            places, examples, prompts = encode_share(model, processor, config, share)
            calls = open_calls(judge, examples, config)

            # ---- G responses to each, and which are right
            if only_memorizes(config, step):
                responses, scores = [], []
                clock.append(time.perf_counter())
                modes = torch.full((len(prompts),), dyme.MEMORIZE)
                for call in calls:
                    request_trace(judge, call)
            else:
                on_response = (
                    ask_judge(judge, calls, config, run.own_reward, run.task.score)
                    if judge
                    else None
                )
                responses = rollout(
                    model,
                    processor,
                    prompts,
                    step=step,
                    prompt_indices=places,
                    on_response=on_response,
                    **sampling,
                )
                clock.append(time.perf_counter())
                scores = [
                    score_group(group, example, config, run.own_reward, run.task.score)
                    for group, example in zip(responses, examples)
                ]
                correct = (
                    torch.stack([scored["correct"] for scored in scores])
                    if scores
                    else torch.zeros(0, 1).bool()
                )
                # ---- the switch: memorise, explore or skip
                modes = choose(config, correct)  # (P,)
            clock.append(time.perf_counter())

            # ---- one update on memorised and explored groups together; with a judge, each when its answers are there
            divisor = normalizer(config, responses, ranks)
            advantages = torch.zeros(len(prompts), config.num_generations)  # (P, G)
            targets, update = {}, dict.fromkeys(dyme.UPDATE_SUMS, 0.0)
            model.train(config.gradient_checkpointing)
            for ready in as_ready(judge, calls, len(prompts)):
                for p in ready:
                    if scores:
                        apply_judge(judge, calls, p, scores, config)
                        advantages[p] = group_advantages(
                            scores[p]["total"][None], config.scale_rewards
                        )[0]
                    if modes[p] == dyme.MEMORIZE:
                        if judge:
                            request_trace(judge, calls[p])  # unless it is under way
                        trace = reference_trace(config, examples[p], calls[p] if judge else None)
                        targets[p] = dyme.target_ids(processor, trace, examples[p].answer)
                groups = dyme.build_groups(
                    ready, modes, responses, advantages, targets, memorize_advantage(config, step)
                )
                done = packed_update(run, prompts, groups, divisor)
                update = {name: update[name] + value for name, value in done.items()}
            model.eval()
            sum_gradients(model, ranks)

            sums = {
                **update,
                **rollout_sums(responses, scores, advantages, modes),
                "skipped": len(share) - len(prompts),
            }
            sums = reduce_sums({**sums, **(take_counts(judge) if judge else {})}, ranks)
            moved = optimizer_step(model, run.optimizer, config, step, sums["loss"])
            clock.append(time.perf_counter())

            # ---- log, evaluate, save
            run.state["step"] = step + 1
            run.state["seconds"] += clock[-1] - clock[0]
            run.state["bad_steps"] = 0 if moved["finite"] else run.state["bad_steps"] + 1
            line = {"step": step, **means(sums), **moved, **seconds(clock)}
            line["tokens_per_second"] = sums["length"] / line["seconds_rollout"]
            run.log.append("metrics.jsonl", line)
            steps.set_postfix(
                {name: f"{line[name]:.2f}" for name in ("reward", "correct") if name in line}
            )
            if config.log_groups_every and step % config.log_groups_every == 0:
                for shown in group_lines(
                    step, examples, responses, scores, advantages, modes, targets, processor
                ):
                    run.log.append("groups.jsonl", shown)
            proposal = evolve_template(judge, calls, proposal, step, ranks)
            look_and_save(run, step + 1)
            if signal := interrupt.agreed(ranks):
                run.log.say(f"interrupted: {save(run)}; go on with --resume")
                raise SystemExit(128 + signal)

    result = {"config": asdict(config), **run.state, "final": read_finals(run, config.method)}
    if run.log.active:
        save_model(config.output_dir, model, processor)
        run.log.write("result.json", result)
        run.log.say(f"model, metrics and result are in {config.output_dir}")
    return result


def packed_update(run: Run, prompts: list, groups: list, divisor: float) -> dict[str, float]:
    """dyme.packed_update with the run's knobs: adds to the gradient, returns sums."""
    knobs = run.settings(
        "temperature",
        "micro_batch_prompts",
        "head_chunk_tokens",
        "epsilon_low",
        "epsilon_high",
        "loss_type",
        "beta",
    )
    return dyme.packed_update(
        run.model, prompts, groups, normalizer=divisor, ref_model=run.ref_model, **knobs
    )


def look_and_save(run: Run, step: int) -> None:
    """
    After `step` updates: validation and a checkpoint where they are due; the end of a run that
    only fails.
    """
    config, state, best = run.config, run.state, False
    if step % config.eval_steps == 0:
        settings = run.settings("max_completion_length", "max_pixels", "seed")
        reading = evaluate(
            run.model, run.processor, run.task.val, score=run.task.score, **settings
        )
        best = reading["accuracy"] > max(
            (earlier["accuracy"] for earlier in state["val"]), default=-1.0
        )
        state["val"].append({"step": step, **reading})
        run.log.say(
            "step {}, {}: accuracy {accuracy:.3f}, format {format:.3f}".format(
                step, config.eval_split, **reading
            )
        )
    stuck = state["bad_steps"] >= config.max_bad_steps
    due = step % config.save_steps == 0 or step == config.max_steps
    saved = save(run, best) if best or stuck or due else ""
    if stuck:
        raise InputError(
            f"--max_bad_steps: the gradient was not finite for {state['bad_steps']} steps in a row; {saved} with the last "
            f"good weights; lower --learning_rate and --resume"
        )


def save(run: Run, best: bool = False) -> str:
    """
    A checkpoint of the run as it stands, written by the first process; says whether it lies there.
    """
    written = True
    if run.log.active:
        state = {**run.state, **run.log.positions(), "config": asdict(run.config)}
        limit = run.config.save_total_limit
        written = checkpoint.save_checkpoint(
            run.config.output_dir,
            run.state["step"],
            run.model,
            run.processor,
            run.optimizer,
            state,
            save_total_limit=limit,
            best=best,
        )
    return (
        f"step {run.state['step']} is saved"
        if written
        else f"step {run.state['step']} could NOT be saved"
    )


@contextmanager
def out_of_memory(run: Run):
    """Memory that runs out ends the run in one line, after saving the last whole step."""
    try:
        yield
    except torch.OutOfMemoryError:
        run.optimizer.zero_grad()
        torch.cuda.empty_cache()
        raise InputError(
            f"out of memory; {save(run)}: --gradient_checkpointing, --micro_batch_prompts 1, "
            f"lower --max_pixels, --head_chunk_tokens, --prompts_per_step or --max_completion_length; then --resume"
        ) from None


def main(argv: list[str]) -> None:
    """The command line; bad input ends in one line and exit code 2."""
    try:
        config = parse(argv)
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        ranks = setup_distributed()
        make_base(config, ranks)
        if config.method == "curr_reft":
            from stages import run_stages  # here, since it runs this file's train

            run_stages(config, ranks)
        else:
            train(config, ranks)
        cleanup(ranks)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before the loop or after it; in it ranks.Interrupt saves first
        print("interrupted; what was saved goes on with --resume", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main(sys.argv[1:])
