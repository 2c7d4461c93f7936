"""The model: write its prompt, and read log-probabilities off ONE packed forward.

DyME needs the log-probabilities of G completions of the same prompt. Padded rows [G, P + C] would
push the image prompt, nearly all of the tokens, through the model G times. Here the row is
[prompt, c1, c2, .. cG]: the prompt once, each completion attending to the prompt and to itself
alone, its positions restarting where the prompt ends. A causal model can't tell the difference
(test_core.py), and an update is several times faster and smaller (bench.py).

What differs between model families is in lib/families.py, the tiny model in lib/tiny.py.
Left out: several images in one prompt, video, tensor parallelism.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field
from string import ascii_uppercase
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from data import Example, InputError, open_image
from data.example import THINK

PREFILL_TOKENS = 4096  # prompts are prefilled in packed rows of about this many tokens


@dataclass
class Prompt:
    """One encoded prompt. input_ids (1, P) with the image's placeholder tokens; images: the
    processor's other tensors (pixel_values, image_sizes, image_grid_thw, ...), empty for text;
    token_types (1, P) where the family has them; features: the vision tower's output, computed
    once and used by rollout and update alike, or None.
    """

    input_ids: torch.Tensor
    images: dict = field(default_factory=dict)
    token_types: torch.Tensor | None = None
    features: object | None = None


# ---- the prompt ---------------------------------------------------------------------------------


def get_tokenizer(processor):
    """The tokenizer of a processor; a text-only model's processor is the tokenizer itself."""
    return getattr(processor, "tokenizer", processor)


def question_text(example: Example) -> str:
    """The question as it is asked: with its options, where it has any, lettered."""
    options = [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, example.options or [])]
    return "\n".join([example.question, *options])


def special_token(processor, example: Example) -> str | None:
    """A special token inside the question or its options: the model would take it for a real
    one.
    """
    text = question_text(example)
    return next((t for t in get_tokenizer(processor).all_special_tokens if t in text), None)


def encode_prompt(
    processor, example: Example, instruction: str | None = None, max_pixels: int | None = None
) -> Prompt:
    """THE prompt: image, instruction, question, through the model's own chat template; for training
    and evaluation.

    instruction: by default the example's own, or THINK. max_pixels caps the image's area (in
    pixels) before the processor sees it; nothing is ever truncated. InputError, naming the
    example, for what can't be asked.
    """
    name = example.id or "example"
    image = open_image(example, max_pixels)
    if token := special_token(processor, example):
        raise InputError(f"{name}: take {token} out of the question: to the model it isn't text")
    text = f"{instruction or example.instruction or THINK}\n{question_text(example)}"
    if hasattr(processor, "image_processor"):
        content = [{"type": "text", "text": text}]
        if image is not None:
            content.insert(0, {"type": "image"})
        messages = [{"role": "user", "content": content}]
    elif image is None:
        messages = [{"role": "user", "content": text}]
    else:
        raise InputError(f"{name}: has an image, the model is text only; choose a VLM with --model")
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    if image is None:
        tokens = get_tokenizer(processor)(prompt, return_tensors="pt", add_special_tokens=False)
        return Prompt(tokens["input_ids"])
    try:
        inputs = processor(
            images=[image], text=[prompt], return_tensors="pt", add_special_tokens=False
        )
    except Exception as error:  # each processor has its own limits of size and shape
        size = f"{image.width} x {image.height} pixels"
        reason = str(error).partition("\n")[0][:200]
        raise InputError(f"{name}: the image, {size}, can't be processed ({reason})") from error
    inputs = dict(inputs)
    inputs.pop("attention_mask")
    types = inputs.pop("mm_token_type_ids", None)
    return Prompt(inputs.pop("input_ids"), token_types=types, images=inputs)


def prompt_to(prompt: Prompt, device) -> Prompt:
    """The same prompt with its tensors on `device`."""
    images = {
        name: value.to(device) if torch.is_tensor(value) else value
        for name, value in prompt.images.items()
    }
    types = None if prompt.token_types is None else prompt.token_types.to(device)
    return Prompt(prompt.input_ids.to(device), images, types, prompt.features)


def image_features(model, prompt: Prompt):
    """The vision tower and projector on one prompt's image, in the form that
    model.model(pixel_values=) takes instead of pixels (see families.take_features).

    With a frozen tower the graph kept is the projector's alone, so that one call serves rollout
    and update. Returns None for a prompt without an image.
    """
    if prompt.features is not None or not prompt.images:
        return prompt.features
    output = model.model.get_image_features(**prompt.images, return_dict=True)
    features = {"pooler_output": output.pooler_output}
    if hasattr(output, "deepstack_features"):
        features["deepstack_features"] = output.deepstack_features
    return SimpleNamespace(**features)


def row_features(model, prompts: list[Prompt]):
    """Several prompts' image features as those of one row; None where no prompt has an image."""
    fresh = [prompt.images for prompt in prompts if prompt.images and prompt.features is None]
    shapes = {tuple(images["pixel_values"].shape) for images in fresh}
    if len(fresh) > 1 and len(shapes) == 1 and not any(prompt.features for prompt in prompts):
        # images of one size go through the tower in one batch
        images = {name: torch.cat([images[name] for images in fresh]) for name in fresh[0]}
        return image_features(model, Prompt(None, images))
    features = [f for f in (image_features(model, prompt) for prompt in prompts) if f is not None]
    if not features:
        return None
    joined = {"pooler_output": join([f.pooler_output for f in features])}
    if hasattr(features[0], "deepstack_features"):
        joined["deepstack_features"] = [
            join(level) for level in zip(*(f.deepstack_features for f in features))
        ]
    return SimpleNamespace(**joined)


def join(parts: list):
    """Concatenate what families return: a tensor (tiles, tokens, width), or a sequence with a
    tensor an image.
    """
    if torch.is_tensor(parts[0]):
        return torch.cat(parts)
    return [image for part in parts for image in part]


def prompt_positions(model, prompt: Prompt) -> torch.Tensor:
    """Rotary positions (A, P): A = 1 axis, or 3 (time, height, width) in families with M-RoPE."""
    length = prompt.input_ids.shape[1]
    if prompt.token_types is None or not hasattr(model.model, "get_rope_index"):
        axes = 3 if hasattr(model.model, "get_rope_index") else 1
        return torch.arange(length, device=prompt.input_ids.device).expand(axes, length)
    positions, _ = model.model.get_rope_index(
        prompt.input_ids,
        mm_token_type_ids=prompt.token_types,
        image_grid_thw=prompt.images["image_grid_thw"],
    )
    return positions[:, 0]


# ---- the packed row -----------------------------------------------------------------------------


def pack(model, prompts: list[Prompt], completions: list[list[list[int]]]):
    """One row [p1, c11 .. c1G, p2, c21 ..] of the prompts and their completions (token ids, each
    not empty).

    Returns the keyword arguments of model.model(...), and for each completion token the index of
    the position whose hidden state predicts it: a completion's first token is predicted by the
    prompt's last. T = all tokens of the row.
    """
    device = prompts[0].input_ids.device
    ids, positions, segments, predictors = [], [], [], []
    offset = 0
    for prompt, group in zip(prompts, completions):
        length = prompt.input_ids.shape[1]
        prompt_position = prompt_positions(model, prompt)  # (A, P)
        start_position = int(prompt_position.max()) + 1
        ids.append(prompt.input_ids[0])
        positions.append(prompt_position)
        last_of_prompt = offset + length - 1
        offset += length
        for completion in group:
            ids.append(torch.tensor(completion, device=device))
            restarted = start_position + torch.arange(len(completion), device=device)
            positions.append(restarted.expand(len(prompt_position), -1))
            predictors.append(last_of_prompt)
            predictors.extend(range(offset, offset + len(completion) - 1))
            offset += len(completion)
        segments.append([length] + [len(completion) for completion in group])
    position_ids = torch.cat(positions, dim=1)  # (A, T)
    inputs = {
        "input_ids": torch.cat(ids)[None],  # (1, T)
        "position_ids": position_ids
        if len(position_ids) == 1
        else position_ids[:, None],  # (1, T) or (3, 1, T)
        "segments": segments,
        "masks": {},  # filled by the first layer, shared by all
    }
    features = row_features(model, prompts)
    if features is not None:
        inputs["pixel_values"] = features
    return inputs, torch.tensor(predictors, device=device)


def packed_attention(
    module, query, key, value, attention_mask, *, scaling, segments, masks, **kwargs
):
    """Attention inside a packed row, in transformers' AttentionInterface form.

    query (1, H, T, D), key and value (1, K, T, D) with K <= H key heads. segments: for each prompt
    its length and its completions' lengths. A prompt sees itself, causally. A completion's keys
    are [prompt, itself]: its token i sees the prompt and its own first i + 1. No T x T mask, and
    no pair of siblings, is ever computed. masks: the row's own cache of the completions' masks,
    (length of completion, of completion + prompt) -> mask. Returns (1, T, H, D).
    """
    heads, key_heads = query.shape[1], key.shape[1]
    repeats = heads // key_heads
    lengths = [length for group in segments for length in group]
    # one split, not many slices: its backward is one concatenation
    parts = zip(query.split(lengths, dim=2), key.split(lengths, dim=2), value.split(lengths, dim=2))
    outputs = []
    for group in segments:
        prompt_query, prompt_key, prompt_value = next(parts)
        outputs.append(
            F.scaled_dot_product_attention(
                prompt_query,
                prompt_key,
                prompt_value,
                is_causal=True,
                scale=scaling,
                enable_gqa=repeats > 1,
            )
        )
        for length in group[1:]:
            own_query, own_key, own_value = next(parts)
            size = (length, group[0] + length)
            if size not in masks:
                masks[size] = completion_mask(query, size, repeats)
            # the query heads of one key head become further query rows: no key is repeated
            out = F.scaled_dot_product_attention(
                own_query.reshape(1, key_heads, repeats * length, -1),
                torch.cat([prompt_key, own_key], dim=2),
                torch.cat([prompt_value, own_value], dim=2),
                attn_mask=masks[size],
                scale=scaling,
            )
            outputs.append(out.reshape(1, heads, length, -1))
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def completion_mask(query, size: tuple[int, int], repeats: int) -> torch.Tensor:
    """What a completion sees of [prompt, itself], added to its scores: (repeats * C, P + C), size =
    (C, P + C).

    Given a bool mask, or on CUDA one whose rows aren't aligned, each layer would make a copy and
    keep it for backward.
    """
    aligned = -(-size[1] // 16) * 16
    mask = torch.full((size[0], aligned), -torch.inf, dtype=query.dtype, device=query.device)
    return mask.triu(size[1] - size[0] + 1).repeat(repeats, 1)[:, : size[1]]


AttentionInterface.register("packed", packed_attention)


@contextmanager
def language_attention(model, name: str):
    """Inside, the language model (never the vision tower) attends by the registered function
    `name`.
    """
    text_config = model.config.get_text_config()
    before = text_config._attn_implementation
    in_vlm = text_config is not model.config
    model.set_attn_implementation({"text_config": name} if in_vlm else name)
    try:
        yield
    finally:
        model.set_attn_implementation({"text_config": before} if in_vlm else before)


def completion_hidden(
    model, prompts: list[Prompt], completions: list[list[list[int]]]
) -> torch.Tensor:
    """The hidden states that predict the completions' tokens, with gradient, from one packed
    forward.

    completions: per prompt a list of token-id lists. Returns (tokens, width), all completions in
    order: the rows of the prompts never reach the head.
    """
    inputs, predictors = pack(model, prompts, completions)
    with language_attention(model, "packed"):
        hidden = model.model(**inputs, use_cache=False).last_hidden_state  # (1, T, width)
    return hidden[0].index_select(0, predictors)


def token_logprobs(model, hidden: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0):
    """The head on hidden (n, width), and what it says of targets (n,).

    The distribution is the one that rollout.py samples from: divided by temperature, without the
    ids that a response can't contain. Returns log p of the targets (n,) with gradient, in nats,
    and the entropy (n,) without.
    """
    logits = model.get_output_embeddings()(hidden).float()  # (n, V)
    if temperature != 1:
        logits = logits / temperature
    every = forbid(model, logits).log_softmax(dim=-1)  # (n, V)
    with torch.no_grad():
        entropy = -(every.exp() * every).sum(dim=-1)
    return every.gather(1, targets[:, None])[:, 0], entropy


def forbid(model, logits: torch.Tensor) -> torch.Tensor:
    """logits (n, V) with the image placeholders' ids at the dtype's lowest finite value: never
    sampled, never scored.
    """
    ids = getattr(model, "forbidden_ids", None)
    if not ids:
        return logits
    index = torch.tensor(ids, device=logits.device)
    return logits.index_fill(-1, index, torch.finfo(logits.dtype).min)


def completion_logprobs(
    model, prompt: Prompt, completions: list[list[int]], temperature: float = 1.0
):
    """Log-probabilities of G completions of one prompt from ONE packed forward, with gradient.

    completions: G lists of token ids, end token included. Returns logprobs (G, C) in nats, 0 at
    the padding on the right, and completion_mask (G, C), C the longest completion. The plain form;
    train.py's update does the same in chunks.
    """
    hidden = completion_hidden(model, [prompt], [completions])  # (tokens, width)
    targets = torch.tensor(
        [token for completion in completions for token in completion], device=hidden.device
    )
    flat, _ = token_logprobs(model, hidden, targets, temperature)
    return pad_rows(flat, [len(completion) for completion in completions])


def pad_rows(flat: torch.Tensor, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """flat (tokens,) as rows (N, C) padded on the right with 0, and their mask (N, C)."""
    rows = torch.nn.utils.rnn.pad_sequence(list(flat.split(lengths)), batch_first=True)
    mask = (
        torch.arange(rows.shape[1], device=flat.device)[None]
        < torch.tensor(lengths, device=flat.device)[:, None]
    )
    return rows, mask
