"""
Train a small vision-language model to think: DyME, its baselines, one loop.

    python train.py                                   charts and a tiny model, on a CPU, in minutes
    python train.py --dataset chartqa                 LLaVA-OneVision-0.5B on ChartQA, on one GPU
    torchrun --nproc_per_node 4 train.py ...          the same on several

The loop in `train` is Algorithm 1 of DyME (arXiv 2506.23061): sample, score, switch, one update.
The other methods are the same loop with another switch (`choose`): SFT always memorises, GRPO
always explores, two-stage does one after the other; Curr-ReFT (stages.py) runs it once for each of
its stages, with a Task of the stage's questions and rewards. Left out: learned rewards, value
networks, several updates per batch of rollouts, LoRA.
"""

import math
import sys
import time
from dataclasses import asdict

import torch
from tqdm import tqdm

import dyme
from checker import refine
from data import InputError
from lib.families import save_model
from grpo import group_advantages
from judge import take_counts
from config import Config, parse
from lib.log import group_lines, means, rollout_sums, seconds
from model import THINK, encode_prompt, image_features, prompt_to
from lib.optim import lr_at
from overlap import apply_judge, as_ready, ask_judge, closing_judge, open_calls, request_trace
from run import Run, Task, make_base, prepare_run, read_finals
from lib.ranks import (
    Interrupt,
    Ranks,
    cleanup,
    reduce_sums,
    setup_distributed,
    shard,
    sum_gradients,
)
from rewards import score_group
from rollout import rollout
from template import evolve_template
from watch import look_and_save, out_of_memory, save


def train(config: Config, ranks: Ranks, task: Task | None = None) -> dict:
    """
    One run, from loading to the last evaluation. Returns what it writes to
    <output_dir>/result.json.
    """
    run = prepare_run(config, ranks, task)
    model, processor, judge = run.model, run.processor, run.judge
    steps = range(run.state["step"], config.max_steps)
    steps = tqdm(steps, desc=config.method, unit="step", disable=None if run.log.active else True)
    proposal = None  # of a better template for the judge's refiner, under way

    with Interrupt() as interrupt, out_of_memory(run), closing_judge(judge):
        for step in steps:
            clock = [time.perf_counter()]  # start, sampled, switched, updated: metrics.seconds
            # ---- data and prompts: P of them, of which this process takes its share
            # places: of the prompts in the whole step; they key the rollout's random numbers
            share = shard(step_examples(run.task.train, config, step), ranks)
            places, examples, prompts = encode_prompts(run, share)
            calls = open_calls(judge, examples, config)  # Nones, unless there is a --judge_url

            # ---- rollout: G responses to each, unless they would not be looked at
            responses = []
            if not only_memorizes(config, step):
                responses = rollout(
                    model,
                    processor,
                    prompts,
                    num_generations=config.num_generations,
                    max_completion_length=config.max_completion_length,
                    temperature=config.temperature,
                    seed=config.seed,
                    step=step,
                    prompt_indices=places,
                    on_response=ask_judge(run, calls),
                    compile=config.compile,
                )
            clock.append(time.perf_counter())

            # ---- rewards, and the switch: memorise, explore or skip
            scores = [
                score_group(group, example, config, run.own_reward, run.task.score)
                for group, example in zip(responses, examples)
            ]
            modes = choose(config, step, scores, len(prompts))  # (P,)
            clock.append(time.perf_counter())

            # ---- one packed update on memorised and explored groups together
            advantages, targets, sums = add_gradients(
                run, step, examples, prompts, responses, scores, modes, calls
            )
            sum_gradients(model, ranks)
            sums.update(rollout_sums(responses, scores, advantages, modes), **take_counts(judge))
            sums["skipped"] = len(share) - len(prompts)
            sums = reduce_sums(sums, ranks)
            moved = optimizer_step(model, run.optimizer, config, step, sums["loss"])
            clock.append(time.perf_counter())

            # ---- log, evaluate, save
            run.state["step"] = step + 1
            run.state["seconds"] += clock[-1] - clock[0]
            run.state["bad_steps"] = 0 if moved["finite"] else run.state["bad_steps"] + 1
            line = {"step": step, **means(sums), **moved, **seconds(clock)}
            line["tokens_per_second"] = sums["length"] / line["seconds_rollout"]
            run.log.append("metrics.jsonl", line)
            shown = {name: f"{line[name]:.2f}" for name in ("reward", "correct") if name in line}
            steps.set_postfix(shown)
            if config.log_groups_every and step % config.log_groups_every == 0:
                for group in group_lines(
                    step, examples, responses, scores, advantages, modes, targets, processor
                ):
                    run.log.append("groups.jsonl", group)
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


# -------------------------------------------------------------------------------------------------
# data and prompts


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


def encode_prompts(run: Run, share: list) -> tuple[list, list, list]:
    """
    The prompts of [(place in the step, Example)], on the model's device, with their images'
    features where the vision tower is frozen: (places, examples, prompts), too long ones left out.
    """
    config, model = run.config, run.model
    places, examples, prompts = [], [], []
    for place, example in share:
        instruction = example.instruction or THINK
        prompt = encode_prompt(run.processor, example, instruction, config.max_pixels)
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
            f"{example.id}: its prompt has {length} tokens, --max_prompt_length is "
            f"{config.max_prompt_length}; lower --max_pixels, raise the limit, or give "
            "--skip_long_prompts"
        )
    return False


# -------------------------------------------------------------------------------------------------
# which method memorises, explores or skips when


def only_memorizes(config: Config, step: int) -> bool:
    """Whether the method memorises at this step whatever the responses would be."""
    first_stage = config.method == "two_stage" and step < config.max_steps // 2
    return config.method == "sft" or first_stage


def choose(config: Config, step: int, scores: list[dict], prompts: int) -> torch.Tensor:
    """
    The mode of each of the P prompts' groups, (P,): DyME's switch looks at which responses are
    correct; the other methods don't.
    """
    if only_memorizes(config, step):
        return torch.full((prompts,), dyme.MEMORIZE)
    if config.method == "dyme" and scores:
        return dyme.switch(torch.stack([scored["correct"] for scored in scores]))  # from (P, G)
    return torch.full((prompts,), dyme.EXPLORE)


def reference_trace(config: Config, example, call=None) -> str | None:
    """
    The thinking that is memorised: the data's own with --refiner off; else the judge's; else, or
    where the data has none, what checker.refine writes. None: the answer alone is memorised.
    """
    if example.instruction is not None:
        return None  # it asks for no thinking
    if config.refiner == "off" and example.trace is not None:
        return example.trace
    written = call.trace.result() if call is not None else None
    return written or refine(example)


# -------------------------------------------------------------------------------------------------
# the update


def add_gradients(run: Run, step, examples, prompts, responses, scores, modes, calls):
    """
    Add the step's gradient to the parameters': advantages for groups that are explored, targets
    for groups that are memorised, one packed update. With a judge it is made in parts, each as
    soon as its groups' answers are there.

    Returns advantages (P, G), targets {prompt: token ids}, and dyme.packed_update's sums.
    """
    config = run.config
    divisor = normalizer(config, responses, run.ranks)
    # in plain SFT a sequence weighs a whole group
    weight = "one" if only_memorizes(config, step) else config.memorize_weight
    advantage = dyme.memorize_advantage(weight, config.num_generations, step / config.max_steps)
    advantages = torch.zeros(len(prompts), config.num_generations)  # (P, G)
    targets, sums = {}, dict.fromkeys(dyme.UPDATE_SUMS, 0.0)
    for call, mode in zip(calls, modes):
        if mode == dyme.MEMORIZE:
            request_trace(run.judge, call)  # unless it is under way
    run.model.train(config.gradient_checkpointing)  # transformers checkpoints in no other mode
    for ready in as_ready(run.judge, calls):
        for p in ready:
            if scores:
                apply_judge(calls[p], scores[p], config.reward_weights)
                advantages[p] = group_advantages(scores[p]["total"], config.scale_rewards)
            if modes[p] == dyme.MEMORIZE:
                trace = reference_trace(config, examples[p], calls[p])
                targets[p] = dyme.target_ids(run.processor, trace, examples[p].answer)
        groups = dyme.build_groups(
            ready, modes, responses, advantages, targets, advantage, keep_equal=config.beta > 0
        )
        done = dyme.packed_update(
            run.model,
            prompts,
            groups,
            normalizer=divisor,
            temperature=config.temperature,
            micro_batch_prompts=config.micro_batch_prompts,
            head_chunk_tokens=config.head_chunk_tokens,
            epsilon_low=config.epsilon_low,
            epsilon_high=config.epsilon_high,
            loss_type=config.loss_type,
            beta=config.beta,
            ref_model=run.ref_model,
        )
        sums = {name: sums[name] + value for name, value in done.items()}
    run.model.eval()
    return advantages, targets, sums


def normalizer(config: Config, responses: list, ranks: Ranks) -> float:
    """
    What the loss of the whole step is divided by: all P * G sequences, skipped ones included, or
    their tokens.
    """
    sequences = config.prompts_per_step * config.num_generations
    if config.loss_type == "grpo":
        return sequences
    if config.loss_type == "dr_grpo":
        return sequences * config.max_completion_length
    tokens = sum(len(response.token_ids) for group in responses for response in group)
    return max(reduce_sums({"tokens": tokens}, ranks)["tokens"], 1.0)


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
