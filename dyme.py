"""DyME: memorize or explore, decided anew at every step for every prompt (arXiv 2506.23061,
section 3 and Algorithm 1).

A small model's own samples are often all wrong, and then GRPO learns nothing; a reference always
teaches something, but a model that only copies references learns to talk like them (pseudo
thinking traces). So look at the G samples:

    none correct       memorize: one SFT sequence, the reference thinking and answer
    some correct       explore: GRPO on the G samples
    all correct        skip: nothing to learn, so it has no forward and no backward

Both losses have one form (see sft.py), so one update holds memorized and explored groups side by
side: a group brings rows, sequences with their weights. The loss is divided by all P * G responses
of the step, skipped ones too. An explored group brings G rows, a memorized one brings 1, so it
weighs 1/G of an explored one: a push towards the reference where nothing else teaches anything,
soon outweighed once a group has its own right answers to learn from.

Left out: where rewards and reference come from (checker.py, judge.py).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import torch

import variants
from attention import language_attention
from data.example import InputError
from grpo import group_advantages, grpo_loss
from lib.ranks import Ranks, reduce_sums
from model import completion_hidden, pad_rows, token_logprobs
from rollout import EXPLORE, MEMORIZE, SKIP, Group, Row
from sft import Reference, sft_loss
from variants import knobs, memorized, sampled

HEAD_CHUNK = 256  # completion tokens whose logits exist at a time


# ---- the switch ---------------------------------------------------------------------------------


def switch(correct: torch.Tensor) -> torch.Tensor:
    """The dynamic switch (DyME, section 3.2). correct (P, G) bool: right answer in the right
    format.

    Returns (P,) of SKIP, MEMORIZE, EXPLORE. G right answers in the wrong format (bare ones, without
    thinking) count as none correct: memorized, where accuracy alone would skip them for ever.
    """
    count = correct.sum(dim=1)  # (P,)
    modes = torch.full_like(count, EXPLORE)
    modes[count == 0] = MEMORIZE
    modes[count == correct.shape[1]] = SKIP
    return modes


def choose(config, step: int, group: Group) -> int | None:
    """A group's mode: DyME's switch looks at which responses are correct, SFT and GRPO don't; other
    rules are in variants.py.

    It can be asked while some responses are still being decoded: EXPLORE is then final.
    """
    if group.mode is not None or memorizes(config, step):
        return MEMORIZE
    if config.method in variants.RULES:
        return variants.mode(config, step, group)
    if config.method != "dyme":
        return EXPLORE
    heard = [g for g, response in enumerate(group.responses) if response is not None]
    return int(switch(group.rewards["correct"][None, heard])[0])


def memorizes(config, step: int) -> bool:
    """Whether the method memorizes at this step whatever the responses would be."""
    if config.method == "two_stage":
        return two_stage(config, step, **knobs(config, two_stage))
    return config.method == "sft"


def two_stage(config, step: int, *, sft_share: float = 0.5) -> bool:
    """The baseline SFT, then GRPO: whether this step is in its first share, of SFT."""
    return step < int(sft_share * config.max_steps)


def dyme_weight(config, step: int, *, weight: float = 1.0, falls_from=None) -> float:
    """What a memorized row weighs: 1, that is 1/G of a group, is published. falls_from: what it
    weighs at the start, from where it falls to `weight` by cosine (ours).
    """
    more = (falls_from or weight) - weight
    return weight + more * variants.falling(step, config.max_steps)


def check_method(config) -> None:
    """InputError for --method_args that the method doesn't take, or a judge that it can't use."""
    own = {"dyme": dyme_weight, "two_stage": two_stage, **variants.RULES}
    knobs(config, own.get(config.method, lambda: None))
    if config.judge_url and config.method in variants.NO_JUDGE:
        told = "its switch needs the scores that it decides to ask for, so it takes no --judge_url"
        raise InputError(f"--method {config.method}: {told}")


# ---- what a group brings to the update ----------------------------------------------------------


def rows(config, step: int, group: Group, scorer, processor) -> list[Row]:
    """The rows of a group by its mode; fills in its advantages and its target.

    Explored: its G responses, weighed by their advantages, unless these are all 0 (advantage
    collapse). Memorized: the reference. Skipped: none. Another rule: see variants.py.
    """
    reference = Reference(group, scorer, processor)
    if group.rewards:
        scale = config.loss_type != "dr_grpo"
        group.advantages = group_advantages(group.rewards["total"], scale)  # (G,)
    found = []
    if config.method in variants.RULES:
        found = variants.rows(config, step, group, reference)
    elif group.mode == EXPLORE:
        found = sampled(group, group.advantages, config)
    elif group.mode == MEMORIZE and config.method == "dyme":
        found = memorized(reference, dyme_weight(config, step, **knobs(config, dyme_weight)))
    elif group.mode == MEMORIZE:  # as much as a whole group: here nothing else is learned
        found = memorized(reference, float(config.num_generations))
    group.target = reference.text if any(row.loss == "sft" for row in found) else None
    return found


def normalizer(config, groups: list[Group], ranks: Ranks) -> float:
    """What the loss of the whole step is divided by, over all processes: its P * G sequences,
    skipped ones too; with loss_type bnpo or dapo all sampled tokens; with dr_grpo a constant.
    """
    sequences = config.prompts_per_step * config.num_generations
    if config.loss_type == "grpo":
        return sequences
    if config.loss_type == "dr_grpo":
        return sequences * config.max_completion_length
    tokens = sum(len(response.token_ids) for group in groups for response in group.responses)
    return max(reduce_sums({"tokens": tokens}, ranks)["tokens"], 1.0)


# ---- the packed update --------------------------------------------------------------------------


def update(model, groups: list[Group], divisor: float, config, ref_model=None) -> Counter:
    """Add the gradient of the groups' rows to the parameters' .grad, `micro_batch_prompts` groups
    to a packed forward. Returns sums for the log: loss, tokens, entropy, kl, clip_low, ...

    divisor: see normalizer. ref_model: what the KL term of beta > 0 compares with. The head is the
    largest matrix, so its logits exist for about HEAD_CHUNK tokens at a time. The backward is cut
    in two for that: each chunk of `detached`, a copy of the hidden states, goes through head and
    loss and back at once; detached.grad then goes through the model in one backward.
    """
    sums = Counter()
    groups = [group for group in groups if group.rows]
    for start in range(0, len(groups), config.micro_batch_prompts):
        batch = groups[start : start + config.micro_batch_prompts]
        prompts = [group.prompt for group in batch]
        completions = [[row.token_ids for row in group.rows] for group in batch]
        hidden = completion_hidden(model, prompts, completions)  # (tokens, width)
        detached = hidden.detach().requires_grad_()
        if config.beta > 0:  # features are the policy's: a reference projects the image by itself
            prompts = [replace(prompt, features=None) for prompt in prompts]
            with torch.no_grad():
                reference = completion_hidden(ref_model, prompts, completions)

        begin = 0  # first token of the chunk
        for chunk in chunks([row for group in batch for row in group.rows], HEAD_CHUNK):
            tokens = slice(begin, begin + sum(len(row.token_ids) for row in chunk))
            begin = tokens.stop
            logprobs, mask, entropy = row_logprobs(model, detached[tokens], chunk, config)
            ref_logprobs = None
            if config.beta > 0:
                with torch.no_grad():
                    ref_logprobs = row_logprobs(ref_model, reference[tokens], chunk, config)[0]
            loss, stats = rows_loss(chunk, logprobs, mask, divisor, config, ref_logprobs)
            loss.backward()
            sums.update(stats, loss=loss.item(), tokens=len(entropy), entropy=entropy.sum().item())
        with language_attention(model, "packed"):  # checkpointed layers run once more in here
            hidden.backward(detached.grad)
        for group in batch:
            group.prompt.features = None  # their graph is used up, and the weights will move
    return sums


def rows_loss(
    rows: list[Row],
    logprobs: torch.Tensor,
    mask: torch.Tensor,
    divisor: float,
    config,
    ref_logprobs: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """SFT on the memorized rows, GRPO on the sampled ones; logprobs, mask, ref_logprobs (N, C).

    Returns the loss and its sums for the log. The first update of a step notes the rows' logprobs:
    later ones (--num_iterations) clip the ratio to them. A memorized row was sampled from nothing,
    so it has no ratio, and no KL term.
    """
    probs = logprobs.detach().exp()  # (N, C)
    for row, values in zip(rows, logprobs.detach()):
        if row.logprobs is None:
            row.logprobs = values[: len(row.token_ids)].clone()
    old, _ = pad_rows(torch.cat([row.logprobs for row in rows]), mask.sum(1).tolist())  # (N, C)
    weights = torch.tensor([row.weight for row in rows], device=mask.device)  # (N,)
    is_sft = torch.tensor([row.loss == "sft" for row in rows], device=mask.device)  # (N,)
    shared = {"loss_type": config.loss_type, "normalizer": divisor}
    loss, sums = logprobs.new_zeros(()), {}
    if is_sft.any():
        one = torch.ones_like
        by_token = [(row.token_weight or one)(p) for row, p in zip(rows, probs)]  # N of (C,)
        part, nll = sft_loss(
            logprobs[is_sft],
            mask[is_sft],
            weights=weights[is_sft],
            token_weights=torch.stack(by_token)[is_sft],
            **shared,
        )
        loss = loss + part
        sums.update(nll=nll, memorized_rows=int(is_sft.sum()))
    if not is_sft.all():
        part, stats = grpo_loss(
            logprobs[~is_sft],
            old[~is_sft],
            weights[~is_sft],
            mask[~is_sft],
            epsilon_low=config.epsilon_low,
            epsilon_high=config.epsilon_high,
            beta=config.beta,
            ref_logprobs=None if ref_logprobs is None else ref_logprobs[~is_sft],
            **shared,
        )
        loss = loss + part
        count = int(mask[~is_sft].sum())
        sums.update({name: value * count for name, value in stats.items()}, sampled_tokens=count)
    return loss, sums


def row_logprobs(model, hidden: torch.Tensor, rows: list[Row], config):
    """The head on the hidden states (tokens, width) that predict the tokens of N rows: their
    logprobs (N, C), C the longest, completion_mask (N, C), and the entropy (tokens,).
    """
    targets = torch.tensor([t for row in rows for t in row.token_ids], device=hidden.device)
    flat, entropy = token_logprobs(model, hidden, targets, config.temperature)  # (tokens,)
    logprobs, mask = pad_rows(flat, [len(row.token_ids) for row in rows])
    return logprobs, mask, entropy


def chunks(rows: list[Row], budget: int) -> Iterator[list[Row]]:
    """Consecutive rows of at most `budget` tokens together, at least one row each."""
    chunk, size = rows[:1], len(rows[0].token_ids)
    for row in rows[1:]:
        size += len(row.token_ids)
        if size > budget:
            yield chunk
            chunk, size = [], len(row.token_ids)
        chunk.append(row)
    yield chunk
