"""Rollout: G responses to each prompt, sampled from the model as it is; and Group, what one prompt
brings to a step.

One decode loop for all P prompts of a step. Two things make it fast. Each prompt is prefilled
once, and its keys and values are kept once, not G times: a decode step's G query rows read them
together, as one matrix product. What the rows add is in a suffix cache of their own, and one
softmax runs over both parts. And rows that have ended leave.

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
import torch.nn.functional as F
from transformers import AttentionInterface, DynamicCache

from data.example import Example, InputError
from data.images import open_image
from lib.families import box_scale
from model import PREFILL_TOKENS, Prompt, encode_prompts, forbid, get_tokenizer
from model import language_attention, pack

SKIP, MEMORIZE, EXPLORE = 0, 1, 2  # a group's mode
MODE_NAMES = ("skip", "memorize", "explore")


@dataclass
class Response:
    """One sampled response: its tokens, the end token included; its text without it; truncated:
    it never ended.
    """

    token_ids: list[int]
    text: str
    truncated: bool


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
    groups = []
    prompts = encode_prompts(processor, examples, max_pixels)
    places = range(len(examples)) if places is None else places
    for place, example, prompt in zip(places, examples, prompts):
        if isinstance(prompt, InputError):
            raise prompt
        groups.append(make_group(model, place, example, prompt))
    return groups


def make_group(model, place: int, example: Example, prompt: Prompt) -> Group:
    """The Group of an encoded example; where a box is asked for, with the scale of its answer."""
    if example.kind == "box" and prompt.images:
        size = open_image(example).size
        example = replace(example, scale=box_scale(model.config, size, prompt.images))
    return Group(place, example, prompt.to(model.device))


@dataclass
class PromptCache:
    """The prompts' keys and values, once per prompt: keys[layer], values[layer] (P, K, L, D), K key
    heads, L the longest prompt; bias (P, 1, 1, L) is 0 on real tokens and the lowest finite value
    on padding.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    bias: torch.Tensor

    def select(self, index: torch.Tensor) -> "PromptCache":
        """The same for some of the prompts."""
        return PromptCache(
            [k[index] for k in self.keys], [v[index] for v in self.values], self.bias[index]
        )


def decode_attention(module, query, key, value, attention_mask, *, scaling, prompt_cache, **kwargs):
    """Attention of one new token per row, in transformers' AttentionInterface form.

    query (N, H, 1, D) with N = P * G rows, prompt by prompt; key, value (N, K, S, D): the rows'
    own suffixes, new token included; prompt_cache: what the G rows of a prompt share. Returns (N,
    1, H, D).
    """
    rows, heads, _, dim = query.shape
    prompt_key = prompt_cache.keys[module.layer_idx]  # (P, K, L, D)
    prompt_value = prompt_cache.values[module.layer_idx]
    prompts, key_heads, length, _ = prompt_key.shape
    width = rows // prompts  # G rows a prompt
    repeats = heads // key_heads  # H / K query heads a key head

    def by_prompt(x):  # (N, K, H/K, x) -> (P, K, G * H/K, x): all that read the same prompt keys
        x = x.view(prompts, width, key_heads, repeats, -1).transpose(1, 2)
        return x.reshape(prompts, key_heads, width * repeats, -1)

    def by_row(x):  # back: (P, K, G * H/K, x) -> (N, K, H/K, x)
        x = x.view(prompts, key_heads, width, repeats, -1).transpose(1, 2)
        return x.reshape(rows, key_heads, repeats, -1)

    query = query.reshape(rows, key_heads, repeats, dim) * scaling
    prompt_scores = by_prompt(query) @ prompt_key.transpose(2, 3)  # (P, K, G * H/K, L)
    prompt_scores = prompt_scores + prompt_cache.bias
    own_scores = query @ key.transpose(2, 3)  # (N, K, H/K, S)
    scores = torch.cat([prompt_scores, by_prompt(own_scores)], dim=-1)
    # one softmax over prompt and suffix
    probs = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    out = by_row(probs[..., :length] @ prompt_value) + by_row(probs[..., length:]) @ value
    return out.reshape(rows, 1, heads, dim), None


AttentionInterface.register("decode", decode_attention)


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
    tokens, for each of the P groups.

    temperature 0 is greedy. on_response(group, g) is called as soon as a response has ended,
    on_token(group, g, token id) as soon as one is drawn.
    """
    if not groups:
        return
    tokenizer = get_tokenizer(processor)
    device = groups[0].prompt.input_ids.device
    keys = [(seed, step, group.place, g) for group in groups for g in range(num_generations)]
    uniforms = torch.from_numpy(random_numbers(keys, max_completion_length)).to(device)  # (N, C)
    sampled, ended = [[] for _ in keys], set()  # ended: the rows, as numbers of responses
    for group in groups:
        group.responses = [None] * num_generations

    def take(row: int, token: int) -> None:
        """One more token of a response, if it hasn't ended."""
        if row in ended:
            return
        group, g = groups[row // num_generations], row % num_generations
        ids = sampled[row]
        ids.append(token)
        if on_token is not None:
            on_token(group, g, token)
        truncated = token not in model.end_ids
        if truncated and len(ids) < max_completion_length:
            return
        text = tokenizer.decode(ids if truncated else ids[:-1], skip_special_tokens=False)
        group.responses[g] = Response(ids, text, truncated)
        ended.add(row)
        if on_response is not None:
            on_response(group, g)

    with torch.no_grad():
        prompt_cache, logits, position = prefill(model, [group.prompt for group in groups])
        logits = logits.repeat_interleave(num_generations, dim=0)  # (N, V), N = P * G
        position = position.repeat_interleave(num_generations, dim=0)  # (N, A): the next one's
        rows = list(range(len(keys)))  # which response each live row is
        suffix = DynamicCache(config=model.config.get_text_config())
        with language_attention(model, "decode"):
            for t in range(max_completion_length):
                tokens = sample(logits, uniforms[:, t], temperature)  # (N,)
                for row, token in zip(rows, tokens.tolist()):
                    take(row, token)
                alive = torch.tensor([row not in ended for row in rows])
                if not alive.any():
                    break
                keep_prompts, keep = compact(alive.view(len(prompt_cache.bias), -1))
                if keep is not None:
                    keep = keep.to(device)
                    rows = [rows[i] for i in keep.tolist()]
                    tokens, position, uniforms = tokens[keep], position[keep], uniforms[keep]
                    if t > 0:
                        suffix.batch_select_indices(keep)
                    if len(keep_prompts) < len(prompt_cache.bias):
                        prompt_cache = prompt_cache.select(keep_prompts.to(device))
                logits = decode_step(model, tokens, position, suffix, prompt_cache)
                position = position + 1


def random_numbers(keys: list[tuple[int, ...]], length: int) -> np.ndarray:
    """Uniform numbers (N, length), each row from a generator of its own, seeded by its key."""
    return np.stack([np.random.default_rng(key).random(length) for key in keys])


def sample(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float) -> torch.Tensor:
    """One token per row of logits (N, V) by inverting the cumulative distribution at uniforms (N,);
    temperature 0: argmax.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = (logits.float() / temperature).softmax(dim=-1).double().cumsum(dim=-1)  # (N, V)
    target = uniforms[:, None] * cumulative[:, -1:]
    # right=True: the first token whose cumulative probability exceeds the target, never one of
    # probability 0
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logits.shape[1] - 1)


def prefill(model, prompts: list[Prompt]) -> tuple[PromptCache, torch.Tensor, torch.Tensor]:
    """Each prompt through the model once, several in one packed row.

    Returns the prompt cache, the logits (P, V) after each prompt, and the positions (P, A) of its
    first response token.
    """
    lengths = [prompt.input_ids.shape[1] for prompt in prompts]
    config = model.config.get_text_config()
    keys, values = ([[] for _ in range(config.num_hidden_layers)] for _ in "kv")
    logits, positions = [], []
    start = 0
    while start < len(prompts):
        end = start + 1
        while end < len(prompts) and sum(lengths[start : end + 1]) <= PREFILL_TOKENS:
            end += 1
        own = lengths[start:end]
        inputs, _ = pack(model, prompts[start:end], [[]] * len(own))
        cache = DynamicCache(config=config)
        inputs |= {model.cache_name: cache, "use_cache": True}
        with language_attention(model, "packed"):
            hidden = model.model(**inputs).last_hidden_state[0]  # (T, width)
        last = torch.tensor(own, device=hidden.device).cumsum(0) - 1
        logits.append(forbid(model, model.get_output_embeddings()(hidden[last])))
        position = inputs["position_ids"].view(-1, len(hidden))  # (A, T)
        positions += [(part.max() + 1).expand(len(part)) for part in position.split(own, dim=1)]
        for i, layer in enumerate(cache.layers):
            keys[i] += padded(layer.keys.split(own, dim=2), max(lengths))
            values[i] += padded(layer.values.split(own, dim=2), max(lengths))
        start = end
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # (P, L)
    lowest = torch.finfo(model.dtype).min
    bias = torch.zeros(real.shape, dtype=model.dtype).masked_fill(~real, lowest)
    bias = bias[:, None, None].to(hidden.device)
    cache = PromptCache(list(map(torch.stack, keys)), list(map(torch.stack, values)), bias)
    return cache, torch.cat(logits), torch.stack(positions)


def padded(parts: Sequence[torch.Tensor], length: int) -> list[torch.Tensor]:
    """Each (1, K, l, D) as (K, length, D), zeros behind."""
    return [F.pad(part[0], (0, 0, 0, length - part.shape[2])) for part in parts]


def decode_step(model, tokens, position, suffix, prompt_cache) -> torch.Tensor:
    """tokens (N,) at position (N, A) -> the logits (N, V) of the next ones; `suffix` takes one slot
    more.
    """
    hidden = model.model(
        input_ids=tokens[:, None],
        position_ids=position if position.shape[1] == 1 else position.T[..., None],  # or (3, N, 1)
        use_cache=True,
        prompt_cache=prompt_cache,
        **{model.cache_name: suffix},
    ).last_hidden_state  # (N, 1, width)
    return forbid(model, model.get_output_embeddings()(hidden[:, -1]))


def compact(alive: torch.Tensor):
    """Which rows to go on with. alive (P, G) bool.

    The rows stay a rectangle, so the new width is the largest number of live rows that a prompt
    has; prompts without one leave. Returns (indices of the kept prompts, indices of the kept
    rows), or (None, None) while less than an eighth of the rows would go: moving the cache isn't
    free.
    """
    width = int(alive.sum(dim=1).max())
    prompts = alive.any(dim=1).nonzero()[:, 0]
    if len(prompts) * width > 0.875 * alive.numel():
        return None, None
    # live rows first; the rest of a prompt's rectangle is filled with its ended ones
    order = alive[prompts].to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
    return prompts, (prompts[:, None] * alive.shape[1] + order).flatten()
