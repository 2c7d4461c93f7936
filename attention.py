"""Who sees whom: the language model's attention inside an update's packed row, and in a rollout.

In both, G responses share one prompt, whose keys and values are there once. Both are functions in
transformers' AttentionInterface form; language_attention switches one of them on.
"""

from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from transformers import AttentionInterface


@contextmanager
def language_attention(model, name: str):
    """Inside, the language model alone, not the vision tower, attends by the function `name`."""
    text_config = model.config.get_text_config()
    before = text_config._attn_implementation
    in_vlm = text_config is not model.config
    try:
        model.set_attn_implementation({"text_config": name} if in_vlm else name)
        yield
    finally:
        model.set_attn_implementation({"text_config": before} if in_vlm else before)


def packed_attention(
    module, query, key, value, attention_mask, *, scaling, segments, masks, **kwargs
):
    """Attention inside a packed row [p1, c11 .. c1G, p2, c21 ..] of T tokens.

    query (1, H, T, D), key and value (1, K, T, D) with K <= H key heads. segments: for each prompt
    its length and its completions' lengths. A prompt sees itself, causally; a completion's token i
    sees the prompt and the completion's own first i + 1. No T x T mask, and no pair of siblings, is
    ever computed. masks: a dict, filled by the first layer, shared by all. Returns (1, T, H, D).
    """
    attend = partial(F.scaled_dot_product_attention, scale=scaling)
    heads, key_heads = query.shape[1], key.shape[1]
    repeats = heads // key_heads
    lengths = [length for group in segments for length in group]
    # one split, not many slices: its backward is one concatenation
    parts = zip(*(part.split(lengths, dim=2) for part in (query, key, value)))
    outputs = []
    for group in segments:
        own_query, prompt_key, prompt_value = next(parts)
        gqa = {"enable_gqa": repeats > 1}
        outputs.append(attend(own_query, prompt_key, prompt_value, is_causal=True, **gqa))
        for length in group[1:]:
            own_query, own_key, own_value = next(parts)
            size = (length, group[0] + length)
            if size not in masks:
                masks[size] = completion_mask(query, *size).repeat(repeats, 1)[:, : size[1]]
            # the query heads of one key head become further query rows: no key is repeated
            out = attend(
                own_query.reshape(1, key_heads, repeats * length, -1),
                torch.cat([prompt_key, own_key], dim=2),
                torch.cat([prompt_value, own_value], dim=2),
                attn_mask=masks[size],
            )
            outputs.append(out.reshape(1, heads, length, -1))
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def completion_mask(query, length: int, seen: int) -> torch.Tensor:
    """What a completion of C tokens sees of [prompt, itself], added to its scores: (C, P + C)."""
    # given a bool mask, or on CUDA one whose rows aren't aligned to 16, each layer would make a
    # copy and keep it for backward
    mask = query.new_full((length, -(-seen // 16) * 16), -torch.inf)
    return mask.triu(seen - length + 1)


def decode_attention(
    module, query, key, value, attention_mask, *, scaling, prompt_cache, prompt_bias, **kwargs
):
    """Attention of one new token per row; rows are the G responses to each of P prompts.

    query (P * G, H, 1, D); key, value (P * G, K, S, D): the rows' own suffixes, new token included.
    prompt_cache (layers, 2, P, K, L, D): keys and values that the G rows of a prompt share;
    prompt_bias (P, 1, 1, L): 0, and the lowest finite value at padding. Returns (P * G, 1, H, D).
    """
    prompt_key, prompt_value = prompt_cache[module.layer_idx]  # (P, K, L, D) each
    prompts, key_heads, length, _ = prompt_key.shape
    rows, heads, _, dim = query.shape
    shape = (prompts, rows // prompts, key_heads, heads // key_heads)  # (P, G, K, H / K)

    # (P * G, K, H/K, x) -> (P, K, G * H/K, x): all that read the same prompt keys
    def by_prompt(x):
        return x.view(*shape, -1).transpose(1, 2).flatten(2, 3)

    # back: (P, K, G * H/K, x) -> (P * G, K, H/K, x)
    def by_row(x):
        return x.unflatten(2, (shape[1], shape[3])).transpose(1, 2).flatten(0, 1)

    query = query.reshape(rows, key_heads, -1, dim) * scaling
    prompt_scores = by_prompt(query) @ prompt_key.transpose(2, 3) + prompt_bias  # (P, K, .., L)
    own_scores = query @ key.transpose(2, 3)  # (P * G, K, H/K, S)
    scores = torch.cat([prompt_scores, by_prompt(own_scores)], dim=-1)
    # one softmax over prompt and suffix
    probs = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    out = by_row(probs[..., :length] @ prompt_value) + by_row(probs[..., length:]) @ value
    return out.reshape(rows, 1, heads, dim), None


AttentionInterface.register("packed", packed_attention)
AttentionInterface.register("decode", decode_attention)
