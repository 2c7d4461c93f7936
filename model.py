"""The model: write its prompt, and read log-probabilities off ONE packed forward.

DyME needs the log-probabilities of G completions of the same prompt. Padded rows [G, P + C] would
push the image prompt, nearly all of the tokens, through the model G times. Here the row is
[prompt, c1, c2, .. cG]: the prompt once, each completion attending to the prompt and to itself
alone, its positions restarting where the prompt ends. A causal model can't tell the difference
(test_core.py), and an update is several times faster and smaller (tools/bench.py).

What differs between model families is in lib/families.py, the tiny model in lib/tiny.py.
Left out: several images in one prompt, video, tensor parallelism.
"""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from string import ascii_uppercase
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from data.example import THINK, Example, InputError
from data.images import open_image

PREFILL_TOKENS = 4096  # prompts are prefilled in packed rows of about this many tokens


@dataclass
class Prompt:
    """One encoded prompt. input_ids (1, P) with the image's placeholder tokens; images: the
    processor's other tensors (pixel_values, image_sizes, image_grid_thw, ...), empty for text;
    token_types (1, P) where the family has them; features: see image_features, made once for
    rollout and update, or None.
    """

    input_ids: torch.Tensor
    images: dict = field(default_factory=dict)
    token_types: torch.Tensor | None = None
    features: object | None = None

    def to(self, device) -> "Prompt":
        """The same prompt with its tensors on `device`."""
        images = {name: tensor.to(device) for name, tensor in self.images.items()}
        types = None if self.token_types is None else self.token_types.to(device)
        return Prompt(self.input_ids.to(device), images, types, self.features)


# ---- the prompt ---------------------------------------------------------------------------------


def get_tokenizer(processor):
    """The tokenizer of a processor; a text-only model's processor is the tokenizer itself."""
    return getattr(processor, "tokenizer", processor)


def question_text(example: Example) -> str:
    """The question as it is asked: with its options, where it has any, lettered."""
    options = [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, example.options or [])]
    return "\n".join([example.question, *options])


def special_token(processor, example: Example) -> str | None:
    """A special token in the question or its options: the model would take it for a real one."""
    text = question_text(example)
    return next((t for t in get_tokenizer(processor).all_special_tokens if t in text), None)


def encode_prompt(processor, example: Example, max_pixels: int | None = None) -> Prompt:
    """encode_prompts of one example; raises the InputError of one that can't be asked."""
    (prompt,) = encode_prompts(processor, [example], max_pixels)
    if isinstance(prompt, InputError):
        raise prompt
    return prompt


def encode_prompts(
    processor, examples: Sequence[Example], max_pixels: int | None = None
) -> list[Prompt | InputError]:
    """THE prompts: image, instruction (the example's own, or THINK), question, through the model's
    own chat template; for training and evaluation. Images of one size are processed in one batch.

    max_pixels caps an image's area (in pixels) before the processor sees it; nothing is ever
    truncated. What can't be asked has in its place an InputError that names the example.
    """
    found, alike = {}, {}  # place -> prompt; size of the image -> what goes in one batch
    for place, example in enumerate(examples):
        try:
            image = open_image(example, max_pixels)
            text = prompt_text(processor, example, image is not None)
            alike.setdefault(image and image.size, []).append((place, image, text))
        except InputError as error:
            found[place] = error
    for size, batch in alike.items():
        places, images, texts = map(list, zip(*batch))
        if size is None:
            rows = get_tokenizer(processor)(texts, add_special_tokens=False)["input_ids"]
            found.update((place, Prompt(torch.tensor([ids]))) for place, ids in zip(places, rows))
            continue
        try:
            found.update(zip(places, process(processor, images, texts)))
        except Exception as error:  # each processor has its own limits of size and shape
            reason = str(error).partition("\n")[0][:200]
            told = f"the image, {size[0]} x {size[1]} pixels, can't be processed ({reason})"
            for place in places:
                found[place] = InputError(f"{examples[place].id or 'example'}: {told}")
    return [found[place] for place in range(len(examples))]


def prompt_text(processor, example: Example, has_image: bool) -> str:
    """What the chat template writes for an example; InputError for what it can't ask."""
    name = example.id or "example"
    if token := special_token(processor, example):
        raise InputError(f"{name}: take {token} out of the question: to the model it isn't text")
    content = f"{example.instruction or THINK}\n{question_text(example)}"
    if hasattr(processor, "image_processor"):
        content = [{"type": "image"}] * has_image + [{"type": "text", "text": content}]
    elif has_image:
        raise InputError(f"{name}: has an image, the model is text only; choose a VLM with --model")
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def process(processor, images: list, texts: list[str]) -> list[Prompt]:
    """Prompts with an image each, all of one size."""
    pixels = {"return_tensors": "pt"}
    inputs = processor(images=images, text=texts, images_kwargs=pixels, add_special_tokens=False)
    inputs = dict(inputs)
    rows, types = inputs.pop("input_ids"), inputs.pop("mm_token_type_ids", None)
    del inputs["attention_mask"]
    prompts = []
    for i, ids in enumerate(rows):
        own = {name: share(values, i, len(rows)) for name, values in inputs.items()}
        own_types = None if types is None else torch.tensor([types[i]])
        prompts.append(Prompt(torch.tensor([ids]), own, own_types))
    return prompts


def share(whole, i: int, count: int):
    """The i-th of `count` equal parts of a tensor or a list: of a batch of images of one size."""
    size = len(whole) // count
    return whole[i * size : (i + 1) * size]


def image_features(model, prompts: list[Prompt]) -> list:
    """What the vision tower and the projector make of each prompt's image, in the form that
    model.model(pixel_values=) takes instead of pixels (families.take_features); None without one.

    Images of one size go through in one batch. With a frozen tower the graph kept is the
    projector's alone.
    """
    found, alike = [None] * len(prompts), {}  # alike: shape of the pixels -> places of prompts
    for place, prompt in enumerate(prompts):
        if prompt.images:
            alike.setdefault(prompt.images["pixel_values"].shape, []).append(place)
    for places in alike.values():
        images = [prompts[place].images for place in places]
        images = {name: torch.cat([each[name] for each in images]) for name in images[0]}
        output = model.model.get_image_features(**images, return_dict=True)
        for i, place in enumerate(places):
            part = SimpleNamespace(pooler_output=share(output.pooler_output, i, len(places)))
            if hasattr(output, "deepstack_features"):
                levels = output.deepstack_features
                part.deepstack_features = [share(level, i, len(places)) for level in levels]
            found[place] = part
    return found


def row_features(model, prompts: list[Prompt]):
    """Several prompts' image features as those of one row, made where a prompt has none yet; None
    where no prompt has an image.
    """
    fresh = image_features(model, [prompt for prompt in prompts if prompt.features is None])
    features = [fresh.pop(0) if p.features is None else p.features for p in prompts]
    features = [each for each in features if each is not None]
    if not features:
        return None

    def join(parts):
        parts = list(parts)
        if torch.is_tensor(parts[0]):
            return torch.cat(parts)
        return [image for part in parts for image in part]

    row = SimpleNamespace(pooler_output=join(each.pooler_output for each in features))
    if hasattr(features[0], "deepstack_features"):
        row.deepstack_features = list(map(join, zip(*(f.deepstack_features for f in features))))
    return row


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
        lengths = [prompt.input_ids.shape[1], *map(len, group)]
        # a prompt with one completion is an ordinary causal sequence
        segments.append([sum(lengths)] if len(group) == 1 else lengths)
        ids.append(prompt.input_ids[0])
        positions.append(prompt_positions(model, prompt))  # (A, P)
        after = positions[-1].max() + 1
        axes = len(positions[-1])
        last_of_prompt = offset + lengths[0] - 1
        offset += lengths[0]
        for completion in group:
            ids.append(torch.tensor(completion, device=device))
            restarted = torch.arange(len(completion), device=device) + after
            positions.append(restarted.expand(axes, -1))
            predictors += [last_of_prompt, *range(offset, offset + len(completion) - 1)]
            offset += len(completion)
    position_ids = torch.cat(positions, dim=1)  # (A, T)
    inputs = {
        "input_ids": torch.cat(ids)[None],  # (1, T)
        "position_ids": position_ids if axes == 1 else position_ids[:, None],  # or (3, 1, T)
        "segments": segments,
        "masks": {},  # filled by the first layer, shared by all
    }
    if (features := row_features(model, prompts)) is not None:
        inputs["pixel_values"] = features
    return inputs, torch.tensor(predictors, device=device)


def packed_attention(
    module, query, key, value, attention_mask, *, scaling, segments, masks, **kwargs
):
    """Attention inside a packed row, in transformers' AttentionInterface form.

    query (1, H, T, D), key and value (1, K, T, D) with K <= H key heads. segments: for each prompt
    its length and its completions' lengths. A prompt sees itself, causally. A completion's keys
    are [prompt, itself]: its token i sees the prompt and its own first i + 1. No T x T mask, and
    no pair of siblings, is ever computed. masks: the row's own cache of the completions' masks.
    Returns (1, T, H, D).
    """
    heads, key_heads = query.shape[1], key.shape[1]
    repeats = heads // key_heads
    lengths = [length for group in segments for length in group]
    # one split, not many slices: its backward is one concatenation
    parts = zip(*(part.split(lengths, dim=2) for part in (query, key, value)))
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
    """Inside, the language model alone, not the vision tower, attends by the function `name`."""
    text_config = model.config.get_text_config()
    before = text_config._attn_implementation

    def switch(name):
        in_vlm = text_config is not model.config
        model.set_attn_implementation({"text_config": name} if in_vlm else name)

    switch(name)
    try:
        yield
    finally:
        switch(before)


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


def token_logprobs(
    model, hidden: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
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
    """logits (n, V) with the ids that belong to an image at the dtype's lowest finite value: never
    sampled, never scored.
    """
    if not model.forbidden_ids:
        return logits
    index = torch.tensor(model.forbidden_ids, device=logits.device)
    return logits.index_fill(-1, index, torch.finfo(logits.dtype).min)


def completion_logprobs(
    model, prompt: Prompt, completions: list[list[int]], temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of G completions of one prompt from ONE packed forward, with gradient.

    Returns logprobs (G, C) in nats, 0 at the padding on the right, and completion_mask (G, C), C
    the longest completion. The plain form of what dyme.update does in chunks.
    """
    hidden = completion_hidden(model, [prompt], [completions])  # (tokens, width)
    targets = torch.tensor(sum(completions, []), device=hidden.device)
    flat, _ = token_logprobs(model, hidden, targets, temperature)
    return pad_rows(flat, [len(completion) for completion in completions])


def pad_rows(flat: torch.Tensor, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """flat (tokens,) as rows (N, C) padded on the right with 0, and their mask (N, C)."""
    rows = torch.nn.utils.rnn.pad_sequence(list(flat.split(lengths)), batch_first=True)
    places = torch.arange(rows.shape[1], device=flat.device)  # (C,)
    return rows, places < torch.tensor(lengths, device=flat.device)[:, None]
