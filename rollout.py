"""
Rollout: G responses to each prompt, sampled from the model as it is.

One decode loop for all P prompts of a step. Two things make it fast. Each prompt is prefilled
once, and its keys and values are kept once, not G times: a decode step's G query rows read them
together, as one matrix product. What the rows add lies in a suffix cache of their own, and one
softmax runs over both parts. And rows that have ended leave.

    prompt cache (P, K, L, D)     image and question of p1 | of p2 | ..      written once, read by G
    suffix cache (P * G, K, t, D) what each response has said so far         one slot more a step

Nothing comes from the model's generation_config (its hidden defaults make rollouts near-greedy):
temperature is the only knob, top_p is 1, top_k is off. A response's random numbers depend on
(seed, step, prompt, g) alone, so that neither batching nor the number of processes changes what is
sampled (DyME, section 4: sampling at temperature 1).

Left out: continuous batching, speculative decoding, a separate inference engine with its copy of
the weights.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AttentionInterface, DynamicCache, StaticCache

from model import (
    PREFILL_TOKENS,
    Prompt,
    forbid,
    get_tokenizer,
    language_attention,
    pack,
    prompt_positions,
)

SKIP, MEMORIZE, EXPLORE = 0, 1, 2  # a group's mode
MODE_NAMES = ("skip", "memorize", "explore")
BUCKET = 128  # with compile, prompt lengths are padded to a multiple: few shapes to compile


@dataclass
class Response:
    """
    One sampled response: its tokens, the end token included; its text without it; truncated =
    never ended.
    """

    token_ids: list[int]
    text: str
    truncated: bool


@dataclass
class PromptCache:
    """
    The prompts' keys and values, once per prompt: keys[layer], values[layer] (P, K, L, D), K key
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


def decode_attention(
    module, query, key, value, attention_mask, *, scaling, prompt_cache, suffix_bias=None, **kwargs
):
    """
    Attention of one new token per row, in transformers' AttentionInterface form.

    query (N, H, 1, D) with N = P * G rows, prompt by prompt; key, value (N, K, S, D): the rows'
    own suffixes, new token included; prompt_cache: what the G rows of a prompt share. suffix_bias
    (S,): 0 on filled slots of a static cache. Returns (N, 1, H, D).
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
    if suffix_bias is not None:
        own_scores = own_scores + suffix_bias
    scores = torch.cat([prompt_scores, by_prompt(own_scores)], dim=-1)
    # one softmax over prompt and suffix
    probs = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    out = by_row(probs[..., :length] @ prompt_value) + by_row(probs[..., length:]) @ value
    return out.reshape(rows, 1, heads, dim), None


AttentionInterface.register("decode", decode_attention)


def rollout(
    model,
    processor,
    prompts: list[Prompt],
    num_generations: int,
    max_completion_length: int,
    temperature: float = 1.0,
    seed: int = 0,
    step: int = 0,
    *,
    prompt_indices: list[int] | None = None,
    on_response=None,
    compile: bool = False,
) -> list[list[Response]]:
    """
    G = num_generations responses of at most max_completion_length tokens to each of P prompts:
    lists (P) of lists (G).

    temperature 0 is greedy. prompt_indices: the prompts' places within the whole step, when
    several processes share it (default 0 .. P-1). on_response(p, g, response), if given, is called
    as soon as a response has ended. compile: run torch.compile's version of the decode step, on
    caches of fixed size; rows then stay to the end.
    """
    if not prompts:
        return []
    tokenizer = get_tokenizer(processor)
    end_id = tokenizer.eos_token_id
    device = prompts[0].input_ids.device
    indices = range(len(prompts)) if prompt_indices is None else prompt_indices
    uniforms = random_numbers(seed, step, indices, num_generations, max_completion_length)
    uniforms = torch.from_numpy(uniforms).to(device)  # (P * G, C)
    sampled = [[] for _ in range(len(prompts) * num_generations)]
    responses = [[None] * num_generations for _ in prompts]

    def finish(row: int, truncated: bool):
        p, g = divmod(row, num_generations)
        ids = sampled[row]
        text = tokenizer.decode(ids if truncated else ids[:-1], skip_special_tokens=False)
        responses[p][g] = Response(ids, text, truncated)
        if on_response is not None:
            on_response(p, g, responses[p][g])

    with torch.no_grad():
        prompt_cache, logits, position = prefill(model, prompts, BUCKET if compile else 1)
        logits = logits.repeat_interleave(num_generations, dim=0)  # (P * G, V)
        position = position.repeat_interleave(num_generations, dim=0)  # (P * G, A): the next one's
        rows = torch.arange(len(sampled), device=device)  # which response each live row is
        done = torch.zeros(len(sampled), dtype=torch.bool)
        config = model.config.get_text_config()
        suffix = (
            StaticCache(config=config, max_cache_len=max_completion_length)
            if compile
            else DynamicCache(config=config)
        )
        step_function = compiled_decode_step() if compile else decode_step
        slots = torch.arange(max_completion_length, device=device)
        with language_attention(model, "decode"):
            for t in range(max_completion_length):
                tokens = sample(logits, uniforms[rows, t], temperature)  # (N,)
                for row, token in zip(rows.tolist(), tokens.tolist()):
                    if not done[row]:
                        sampled[row].append(token)
                        if token == end_id or t == max_completion_length - 1:
                            done[row] = True
                            finish(row, truncated=token != end_id)
                if done.all():
                    break
                keep_prompts, keep = None, None
                if not compile:
                    keep_prompts, keep = compact(done[rows.cpu()], prompt_cache.bias.shape[0])
                if keep is not None:
                    rows, tokens, position = rows[keep], tokens[keep], position[keep]
                    if t > 0:
                        suffix.batch_select_indices(keep.to(device))
                    if len(keep_prompts) < prompt_cache.bias.shape[0]:
                        prompt_cache = prompt_cache.select(keep_prompts.to(device))
                suffix_bias = None
                if compile:  # a static cache's slots after t are still empty
                    suffix_bias = torch.zeros_like(slots, dtype=prompt_cache.bias.dtype)
                    suffix_bias.masked_fill_(slots > t, torch.finfo(suffix_bias.dtype).min)
                logits = step_function(model, tokens, position, suffix, prompt_cache, suffix_bias)
                position = position + 1
    return responses


def random_numbers(
    seed: int, step: int, prompt_indices, generations: int, length: int
) -> np.ndarray:
    """
    Uniform numbers (P * G, C), each row from a generator of its own: keyed by (seed, step, prompt,
    g).
    """
    keys = [(seed, step, p, g) for p in prompt_indices for g in range(generations)]
    return np.stack([np.random.default_rng(key).random(length) for key in keys])


def sample(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float) -> torch.Tensor:
    """
    One token per row of logits (N, V) by inverting the cumulative distribution at uniforms (N,);
    temperature 0: argmax.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = (logits.float() / temperature).softmax(dim=-1).double().cumsum(dim=-1)  # (N, V)
    target = uniforms[:, None] * cumulative[:, -1:]
    # right=True: the first token whose cumulative probability exceeds the target, never one of
    # probability 0
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logits.shape[1] - 1)


def prefill(
    model, prompts: list[Prompt], multiple: int = 1
) -> tuple[PromptCache, torch.Tensor, torch.Tensor]:
    """
    Each prompt through the model once, several in one packed row; the cache's length is a multiple
    of `multiple`.

    Returns the prompt cache, the logits (P, V) after each prompt, and the positions (P, A) of its
    first response token.
    """
    lengths = [prompt.input_ids.shape[1] for prompt in prompts]
    keys, values, logits = [], [], []  # keys[prompt][layer] (1, K, length, D)
    start = 0
    while start < len(prompts):
        end = start + 1
        while end < len(prompts) and sum(lengths[start : end + 1]) <= PREFILL_TOKENS:
            end += 1
        inputs, _ = pack(model, prompts[start:end], [[]] * (end - start))
        cache = DynamicCache(config=model.config.get_text_config())
        with language_attention(model, "packed"):
            hidden = model.model(**inputs, past_key_values=cache, use_cache=True).last_hidden_state[
                0
            ]  # (T, width)
        row_lengths = lengths[start:end]
        last = torch.tensor(row_lengths, device=hidden.device).cumsum(0) - 1
        logits.append(forbid(model, model.get_output_embeddings()(hidden[last])))
        keys.append([layer.keys.split(row_lengths, dim=2) for layer in cache.layers])
        values.append([layer.values.split(row_lengths, dim=2) for layer in cache.layers])
        start = end

    longest = -(-max(lengths) // multiple) * multiple

    def padded(parts, layer):  # (P, K, L, D)
        split = [prompt[0] for row in parts for prompt in row[layer]]  # each (K, length, D)
        return torch.stack(
            [torch.nn.functional.pad(s, (0, 0, 0, longest - s.shape[1])) for s in split]
        )

    layers = range(len(keys[0]))
    cache_keys = [padded(keys, layer) for layer in layers]
    cache_values = [padded(values, layer) for layer in layers]
    real = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]  # (P, L)
    bias = torch.zeros(real.shape).masked_fill(~real, torch.finfo(cache_keys[0].dtype).min)
    bias = bias[:, None, None].to(cache_keys[0])
    first = torch.stack([prompt_positions(model, p).max() + 1 for p in prompts])  # (P,)
    axes = len(prompt_positions(model, prompts[0]))
    return (
        PromptCache(cache_keys, cache_values, bias),
        torch.cat(logits),
        first[:, None].expand(-1, axes),
    )


def decode_step(model, tokens, position, suffix, prompt_cache, suffix_bias=None) -> torch.Tensor:
    """
    tokens (N,) at position (N, A) -> the logits (N, V) of the next ones; `suffix` takes one slot
    more.
    """
    axes = position.shape[1]
    position_ids = position if axes == 1 else position.T[..., None]  # (N, 1) or (3, N, 1)
    hidden = model.model(
        input_ids=tokens[:, None],
        position_ids=position_ids,
        past_key_values=suffix,
        use_cache=True,
        prompt_cache=prompt_cache,
        suffix_bias=suffix_bias,
    ).last_hidden_state  # (N, 1, width)
    return forbid(model, model.get_output_embeddings()(hidden[:, -1]))


@functools.cache
def compiled_decode_step():
    """decode_step as one compiled graph; compiled anew for each new shape."""
    return torch.compile(decode_step, dynamic=False)


def compact(done: torch.Tensor, prompts: int):
    """
    Which rows to go on with. done (N,) bool, N = prompts * width.

    The rows stay a rectangle, so the new width is the largest number of live rows that a prompt
    has; prompts without one leave. Returns (indices of the kept prompts, indices of the kept
    rows), or (None, None) while less than an eighth of the rows would go: moving the cache isn't
    free.
    """
    alive = ~done.view(prompts, -1)  # (P, G)
    width = int(alive.sum(dim=1).max())
    keep_prompts = alive.any(dim=1).nonzero()[:, 0]
    if len(keep_prompts) * width > 0.875 * len(done):
        return None, None
    # live rows first; the rest of a prompt's rectangle is filled with its ended ones
    order = (
        alive[keep_prompts].to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
    )
    return keep_prompts, (keep_prompts[:, None] * alive.shape[1] + order).flatten()
