"""Rollout: G responses to each prompt, sampled from the model as it is; and Group, what one prompt
brings to a step.

One decode loop for all P prompts of a step. Two things make it fast. A prompt is prefilled once,
and its keys and values are kept once: a decode step's G query rows read them together, as one
matrix product. What the rows add is in a suffix cache of their own, and one softmax runs over both
parts (attention.py). And rows that have ended leave.

    prompt cache (P, K, L, D)     image and question of p1 | of p2 | ..      written once, read by G
    suffix cache (P * G, K, t, D) what each response has said so far         one slot more per step

Nothing comes from the model's generation_config (its hidden defaults make rollouts near-greedy):
temperature is the only knob, top_p is 1, top_k is off. A response's random numbers depend on
(seed, step, prompt, g) alone, so that neither batching nor the number of processes changes what is
sampled (DyME, section 4: sampling at temperature 1).

Left out: continuous batching, speculative decoding, compiled or captured decode steps, a separate
inference engine with its copy of the weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from transformers import DynamicCache

from attention import language_attention
from data.example import Example, InputError
from lib.families import box_scale
from model import PREFILL_TOKENS, Prompt, encode_prompts, forbid, get_tokenizer, pack

SKIP, MEMORIZE, EXPLORE = 0, 1, 2  # a group's mode
MODE_NAMES = ("skip", "memorize", "explore")


@dataclass
class Response:
    """One sampled response."""

    token_ids: list[int]  # the end token included
    text: str  # without it
    truncated: bool  # it never ended


@dataclass
class Row:
    """One sequence of an update."""

    token_ids: list[int]
    weight: float  # a sampled one's advantage, or what a memorized one weighs
    loss: str = "grpo"  # "grpo" or "sft"
    # of a memorized one: (tokens,) probabilities -> what each token weighs; None: 1
    token_weight: Callable[[torch.Tensor], torch.Tensor] | None = None
    logprobs: torch.Tensor | None = None  # (tokens,) at the step's first update: the old ones


@dataclass
class Group:
    """What one prompt brings to a step; filled from top to bottom."""

    place: int  # in the whole step, over all processes: it keys the random numbers
    example: Example
    prompt: Prompt
    responses: list[Response | None] = field(default_factory=list)  # (G,) None: not ended yet
    rewards: dict[str, torch.Tensor] = field(default_factory=dict)  # (G,) each, see checker.score
    mode: int | None = None
    advantages: torch.Tensor | None = None  # (G,), of skipped groups too
    target: str | None = None  # the text that is memorized
    rows: list[Row] = field(default_factory=list)


def make_groups(
    model,
    processor,
    examples: Sequence[Example],
    *,
    places: Sequence[int] | None = None,
    max_pixels: int | None = None,
) -> list[Group]:
    """A Group for each example, its prompt encoded and on the model's device.

    places: the prompts' places in the whole step, by default 0 .. P-1. max_pixels: see
    model.encode_prompts. InputError, naming the example, for a prompt that can't be made.
    """
    places = range(len(examples)) if places is None else places
    prompts = encode_prompts(processor, examples, max_pixels)
    for prompt in prompts:
        if isinstance(prompt, InputError):
            raise prompt
    return [make_group(model, *each) for each in zip(places, examples, prompts)]


def make_group(model, place: int, example: Example, prompt: Prompt) -> Group:
    """The Group of an encoded example; where a box is asked for, with the scale of its answer."""
    if example.kind == "box" and prompt.images:
        example = replace(example, scale=box_scale(model.config, prompt.size, prompt.images))
    return Group(place, example, prompt.to(model.device))


@torch.no_grad()
def rollout(
    model,
    processor,
    groups: list[Group],
    *,
    num_generations: int,
    max_completion_length: int,
    temperature: float = 1.0,
    seed: int = 0,
    step: int = 0,
    on_response: Callable[[Group, int], None] | None = None,
    on_token: Callable[[Group, int, int], None] | None = None,
) -> None:
    """Fill group.responses with G = num_generations responses of at most max_completion_length
    tokens, for each of the P groups. temperature 0 is greedy. on_response(group, g) is called as
    soon as a response has ended, on_token(group, g, token id) as soon as one is drawn.
    """
    if not groups:
        return
    for group in groups:
        group.responses = [None] * num_generations
    rows = [(group, g, []) for group in groups for g in range(num_generations)]  # N = P * G
    cache, bias, logits, position = prefill(model, [group.prompt for group in groups])
    logits = logits.repeat_interleave(num_generations, dim=0)  # (N, V)
    position = position.repeat_interleave(num_generations, dim=0)  # (N, A): the next token's
    suffix = DynamicCache(config=model.config.get_text_config())
    dice = [np.random.default_rng((seed, step, group.place, g)) for group, g, _ in rows]
    uniforms = np.stack([die.random(max_completion_length) for die in dice])  # (N, C)
    uniforms = torch.from_numpy(uniforms).to(logits.device)
    with language_attention(model, "decode"):
        for t in range(max_completion_length):
            tokens = sample(logits, uniforms[:, t], temperature)  # (N,)
            for (group, g, ids), token in zip(rows, tokens.tolist()):
                if group.responses[g]:  # it has ended, and only fills the rectangle
                    continue
                ids.append(token)
                if on_token:
                    on_token(group, g, token)
                ended = token in model.end_ids
                if ended or len(ids) == max_completion_length:
                    group.responses[g] = make_response(processor, ids, not ended)
                    if on_response:
                        on_response(group, g)
            alive = torch.tensor([group.responses[g] is None for group, g, _ in rows])
            if not alive.any():
                return
            kept = compact(alive.view(len(bias), -1))
            if kept is not None:
                kept_prompts, kept = (index.to(logits.device) for index in kept)
                rows = [rows[i] for i in kept.tolist()]
                tokens, position, uniforms = tokens[kept], position[kept], uniforms[kept]
                if t > 0:
                    suffix.batch_select_indices(kept)
                if len(kept_prompts) < len(bias):
                    cache, bias = cache[:, :, kept_prompts], bias[kept_prompts]
            logits = decode_step(model, tokens, position, suffix, cache, bias)
            position = position + 1


def make_response(processor, ids: list[int], truncated: bool) -> Response:
    """Sampled tokens with their text, the end token, if there is one, left out of it."""
    said = ids if truncated else ids[:-1]
    text = get_tokenizer(processor).decode(said, skip_special_tokens=False)
    return Response(ids, text, truncated)


def sample(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float) -> torch.Tensor:
    """One token per row of logits (N, V) by inverting the cumulative distribution at uniforms (N,);
    temperature 0: argmax.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = (logits.float() / temperature).softmax(dim=-1).double().cumsum(dim=-1)  # (N, V)
    target = uniforms[:, None] * cumulative[:, -1:]
    # right=True: the first whose cumulative probability exceeds the target, never one of 0
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logits.shape[1] - 1)


def prefill(model, prompts: list[Prompt]) -> tuple[torch.Tensor, ...]:
    """Each prompt through the model once, several in one packed row.

    Returns the prompt cache (layers, 2, P, K, L, D), L the longest prompt; its bias (P, 1, 1, L),
    see decode_attention; the logits (P, V) after each prompt, and the positions (P, A) of its
    first response token.
    """
    lengths = [prompt.input_ids.shape[1] for prompt in prompts]
    longest = max(lengths)
    logits, positions, start = [], [], 0
    while start < len(prompts):
        end = start + 1
        while end < len(prompts) and sum(lengths[start : end + 1]) <= PREFILL_TOKENS:
            end += 1
        own = lengths[start:end]
        inputs, _ = pack(model, prompts[start:end], [[]] * len(own))
        row = DynamicCache(config=model.config.get_text_config())
        with language_attention(model, "packed"):
            output = model.model(**inputs, use_cache=True, **{model.cache_name: row})
        hidden = output.last_hidden_state[0]  # (T, width)
        ends = torch.tensor(own, device=hidden.device).cumsum(0) - 1
        logits.append(forbid(model, model.get_output_embeddings()(hidden[ends])))
        position = inputs["position_ids"].view(-1, len(hidden))  # (A, T)
        positions += [(part.max() + 1).expand(len(part)) for part in position.split(own, dim=1)]
        if start == 0:
            _, key_heads, _, dim = row.layers[0].keys.shape  # (1, K, T, D)
            cache = hidden.new_zeros(len(row.layers), 2, len(prompts), key_heads, longest, dim)
        for i, layer in enumerate(row.layers):
            for which, whole in enumerate((layer.keys[0], layer.values[0])):
                for place, part in enumerate(whole.split(own, dim=1), start):
                    cache[i, which, place, :, : part.shape[1]] = part
        start = end
    real = torch.arange(longest) < torch.tensor(lengths)[:, None]  # (P, L)
    bias = torch.zeros(real.shape, dtype=model.dtype)
    bias = bias.masked_fill(~real, torch.finfo(model.dtype).min)[:, None, None].to(hidden.device)
    return cache, bias, torch.cat(logits), torch.stack(positions)


def decode_step(model, tokens, position, suffix, cache, bias) -> torch.Tensor:
    """tokens (N,) at position (N, A) -> the logits (N, V) of the next ones; `suffix` takes one slot
    more.
    """
    hidden = model.model(
        input_ids=tokens[:, None],
        position_ids=position if position.shape[1] == 1 else position.T[..., None],  # or (3, N, 1)
        use_cache=True,
        prompt_cache=cache,
        prompt_bias=bias,
        **{model.cache_name: suffix},
    ).last_hidden_state  # (N, 1, width)
    return forbid(model, model.get_output_embeddings()(hidden[:, -1]))


def compact(alive: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Which prompts, and which rows, to go on with. alive (P, G) bool.

    The rows stay a rectangle, so the new width is the largest number of live rows that a prompt
    has; prompts without one leave. None while less than an eighth of the rows would go: moving the
    cache isn't free.
    """
    width = int(alive.sum(dim=1).max())
    prompts = alive.any(dim=1).nonzero()[:, 0]
    if len(prompts) * width > 0.875 * alive.numel():
        return None
    # live rows first; the rest of a prompt's rectangle is filled with its ended ones
    order = alive[prompts].to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
    return prompts, (prompts[:, None] * alive.shape[1] + order).flatten()
