"""
DyME: memorise or explore, decided anew at every step for every prompt (arXiv 2506.23061, section 3
and Algorithm 1).

A small model's own samples are often all wrong, and then GRPO learns nothing; a reference always
teaches something, but a model that only copies references learns to talk like them (pseudo
thinking traces). So look at the G samples:

    none correct       memorise: one SFT sequence, the reference trace and answer, with advantage 1
    some correct       explore: GRPO on the G samples
    all correct        skip: nothing to learn, so it has no forward and no backward

Both are one loss (see sft.py), so one update holds memorised and explored groups side by side: a
group is a list of sequences with their advantages. The loss is divided by all P * G responses of
the step, skipped ones too. An explored group brings G sequences, a memorised one brings 1, so it
weighs 1/G of an explored one: a push towards the reference where nothing else teaches anything,
soon outweighed once a group has its own right answers to learn from.

Left out: where rewards come from (checker.py) and where the reference does (checker.refine,
judge.py).
"""

import math
from dataclasses import dataclass

import torch

from grpo import grpo_loss
from model import completion_hidden, get_tokenizer, language_attention, pad_rows, token_logprobs
from rollout import EXPLORE, MEMORIZE, SKIP

UPDATE_SUMS = ("loss", "tokens", "entropy", "kl", "clip_low", "clip_high")


def switch(correct: torch.Tensor) -> torch.Tensor:
    """
    The dynamic switch (DyME, section 3.2). correct (P, G) bool: right answer in the right format.

    Returns (P,) of SKIP, MEMORIZE, EXPLORE. G right answers in the wrong format (bare ones, without
    thinking) count as none correct: memorised, where accuracy alone would skip them for ever.
    """
    count = correct.sum(dim=1)  # (P,)
    modes = torch.full_like(count, EXPLORE)
    modes[count == 0] = MEMORIZE
    modes[count == correct.shape[1]] = SKIP
    return modes


@dataclass
class Group:
    """What one prompt brings to an update: N sequences of token ids, and their advantages (N,)."""

    prompt: int  # its index in the step
    mode: int
    completions: list[list[int]]
    advantages: torch.Tensor


def target_ids(processor, trace: str | None, answer: str) -> list[int]:
    """
    The memorised sequence: trace, answer line, end token; without a trace the bare answer and the
    end token.
    """
    tokenizer = get_tokenizer(processor)
    text = answer if trace is None else f"{trace}\nAnswer: {answer}"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids + [tokenizer.eos_token_id]


def memorize_advantage(weight: str, num_generations: int, progress: float) -> float:
    """
    The advantage of a memorised sequence. An explored group has G sequences, a memorised one has
    1, so

    "group": advantage 1, the sequence weighs 1/G of a group (published). "one": advantage G, it
    weighs a whole group. "cosine": from G down to 1 with the run's progress in [0, 1] (ours).
    """
    if weight == "cosine":
        return 1 + (num_generations - 1) * 0.5 * (1 + math.cos(math.pi * progress))
    return {"group": 1.0, "one": float(num_generations)}[weight]


def build_groups(
    ready: list[int],
    modes: torch.Tensor,
    responses: list,
    advantages: torch.Tensor,
    targets: dict[int, list[int]],
    memorize_advantage: float = 1.0,
    keep_equal: bool = False,
) -> list[Group]:
    """
    The sequences and advantages of the prompts `ready` (indices), for one update.

    modes (P,); responses: lists (P) of lists (G) of Response; advantages (P, G); targets: token
    ids of the memorised sequence for each prompt that is to be memorised; memorize_advantage: its
    advantage. A skipped group is not in the result, nor is an explored one whose rewards are all
    equal: all advantages are 0, and so is its gradient (advantage collapse). keep_equal: keep it
    all the same, for a KL term.
    """
    groups = []
    for p in ready:
        mode = int(modes[p])
        if mode == MEMORIZE:
            groups.append(Group(p, mode, [targets[p]], torch.tensor([memorize_advantage])))
        elif mode == EXPLORE and (keep_equal or advantages[p].any()):
            completions = [response.token_ids for response in responses[p]]
            groups.append(Group(p, mode, completions, advantages[p]))
    return groups


def packed_update(
    model,
    prompts: list,
    groups: list[Group],
    *,
    normalizer: float,
    temperature: float = 1.0,
    micro_batch_prompts: int = 1,
    head_chunk_tokens: int = 256,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    loss_type: str = "grpo",
    beta: float = 0.0,
    ref_model=None,
) -> dict[str, float]:
    """
    Accumulate the gradient of one update in the parameters' .grad, `micro_batch_prompts` groups to
    a packed forward. Returns sums over the tokens: loss, tokens, entropy, kl, clip_low, clip_high.

    The head is the largest matrix, so its logits exist for about head_chunk_tokens tokens at a
    time. The backward is cut in two for that: `detached` is a copy of the hidden states that knows
    nothing of the model. Each chunk of it goes forward through head and loss and backward at once,
    which fills detached.grad; that then goes through the model in one backward. The chunks' losses
    add up to the whole step's, since `normalizer` is the whole step's. A memorised sequence is
    treated as a sampled one: divided by `temperature`, and with the KL term where beta > 0.
    """
    sums = dict.fromkeys(UPDATE_SUMS, 0.0)
    for start in range(0, len(groups), micro_batch_prompts):
        batch = groups[start : start + micro_batch_prompts]
        batch_prompts = [prompts[group.prompt] for group in batch]
        batch_completions = [group.completions for group in batch]
        hidden = completion_hidden(model, batch_prompts, batch_completions)  # (tokens, width)
        reference = None
        if beta > 0:
            with torch.no_grad():
                reference = completion_hidden(ref_model, batch_prompts, batch_completions)
        detached = hidden.detach().requires_grad_()
        rows = [ids for group in batch for ids in group.completions]  # (N) sequences
        advantages = torch.cat([group.advantages for group in batch]).to(hidden.device)  # (N,)

        begin = 0  # first token of the chunk
        for chunk in chunks([len(ids) for ids in rows], head_chunk_tokens):
            tokens = slice(begin, begin + sum(len(ids) for ids in rows[chunk]))
            begin = tokens.stop
            logprobs, mask, entropy = chunk_logprobs(
                model, detached[tokens], rows[chunk], temperature
            )
            ref_logprobs = None
            if beta > 0:
                with torch.no_grad():
                    ref_logprobs, _, _ = chunk_logprobs(
                        ref_model, reference[tokens], rows[chunk], temperature
                    )
            loss, stats = grpo_loss(
                logprobs,
                None,  # old_logprobs: one update per batch, so what sampled is what learns
                advantages[chunk],
                mask,
                epsilon_low=epsilon_low,
                epsilon_high=epsilon_high,
                beta=beta,
                ref_logprobs=ref_logprobs,
                loss_type=loss_type,
                normalizer=normalizer,
            )
            loss.backward()
            count = len(entropy)
            sums["loss"] += loss.item()
            sums["tokens"] += count
            sums["entropy"] += entropy.sum().item()
            for name, value in stats.items():
                sums[name] += value * count
        with language_attention(model, "packed"):  # checkpointed layers run once more in here
            hidden.backward(detached.grad)
    return sums


def chunk_logprobs(model, hidden: torch.Tensor, rows: list[list[int]], temperature: float):
    """
    The head on the hidden states (tokens, width) that predict some sequences' tokens.

    Returns logprobs (N', C) and completion_mask (N', C) of the N' sequences, C the longest, and
    the entropy (tokens,).
    """
    targets = torch.tensor([token for ids in rows for token in ids], device=hidden.device)
    flat, entropy = token_logprobs(model, hidden, targets, temperature)  # (tokens,)
    logprobs, mask = pad_rows(flat, [len(ids) for ids in rows])
    return logprobs, mask, entropy


def chunks(lengths: list[int], budget: int):
    """
    Slices of consecutive sequences of at most `budget` tokens together, at least one sequence
    each.
    """
    start = 0
    while start < len(lengths):
        end = start + 1
        while end < len(lengths) and sum(lengths[start : end + 1]) <= budget:
            end += 1
        yield slice(start, end)
        start = end
