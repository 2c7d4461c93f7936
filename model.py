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
from dataclasses import dataclass, field
from string import ascii_uppercase
from types import SimpleNamespace

import torch
from torch.nn.utils.rnn import pad_sequence

from attention import language_attention
from data.example import THINK, Example, InputError
from data.images import open_image

PREFILL_TOKENS = 4096  # prompts are prefilled in packed rows of about this many tokens
TEXT_INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids")


@dataclass
class Prompt:
    """One encoded prompt of P tokens."""

    input_ids: torch.Tensor  # (1, P), with the image's placeholder tokens
    images: dict = field(default_factory=dict)  # pixel_values and the processor's other tensors
    token_types: torch.Tensor | None = None  # (1, P), where the family has them
    features: list | None = None  # see image_features; made once for rollout and update
    size: tuple[int, int] | None = None  # width, height of the image as the data has it

    def to(self, device) -> "Prompt":
        """The same prompt with its tensors on `device`."""
        images = {name: tensor.to(device) for name, tensor in self.images.items()}
        types = None if self.token_types is None else self.token_types.to(device)
        return Prompt(self.input_ids.to(device), images, types, self.features, self.size)


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


def prompt_text(processor, example: Example, has_image: bool) -> str:
    """Instruction (the example's own, or THINK) and question in the model's own chat template."""
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


def encode_prompt(processor, example: Example, max_pixels: int | None = None) -> Prompt:
    """encode_prompts of one example; InputError where it can't be asked."""
    (prompt,) = encode_prompts(processor, [example], max_pixels)
    if isinstance(prompt, InputError):
        raise prompt
    return prompt


def encode_prompts(
    processor, examples: Sequence[Example], max_pixels: int | None = None
) -> list[Prompt | InputError]:
    """THE prompts, of training and of evaluation. Images of one size are processed in one batch.

    max_pixels caps an image's area before the processor sees it; nothing is ever truncated. What
    can't be asked has in its place an InputError that names the example.
    """
    found, batches = {}, {}  # place -> prompt; size of the image -> what is processed together
    for place, example in enumerate(examples):
        try:
            image = open_image(example)
            text = prompt_text(processor, example, image is not None)
        except InputError as error:
            found[place] = error
            continue
        shown = open_image(image, max_pixels) if max_pixels else image
        batch = batches.setdefault(shown and shown.size, [])
        batch.append((place, shown, text, image and image.size))
    for shown_size, batch in batches.items():
        places, images, texts, sizes = map(list, zip(*batch))
        try:
            prompts = process(processor, images, texts, sizes)
        except Exception as error:  # each processor has its own limits of size and shape
            reason = str(error).partition("\n")[0][:200]
            told = f"its image of {shown_size} pixels can't be processed ({reason})"
            prompts = [InputError(f"{examples[i].id or 'example'}: {told}") for i in places]
        found.update(zip(places, prompts))
    return [found[place] for place in range(len(examples))]


def process(processor, images: list, texts: list[str], sizes: list) -> list[Prompt]:
    """Prompts with an image each, all of one size, or all without one. sizes: see Prompt.size."""
    if images[0] is None:
        rows = get_tokenizer(processor)(texts, add_special_tokens=False)["input_ids"]
        return [Prompt(torch.tensor([ids])) for ids in rows]
    pixels = {"return_tensors": "pt"}
    inputs = processor(images=images, text=texts, images_kwargs=pixels, add_special_tokens=False)
    tensors = {name: inputs[name] for name in inputs if name not in TEXT_INPUTS}
    prompts = []
    for i, ids in enumerate(inputs["input_ids"]):
        types = inputs.get("mm_token_type_ids")
        types = None if types is None else torch.tensor([types[i]])
        own = {name: share(values, i, len(texts)) for name, values in tensors.items()}
        prompts.append(Prompt(torch.tensor([ids]), own, types, size=sizes[i]))
    return prompts


def share(whole, i: int, count: int):
    """The i-th of `count` equal parts of a tensor or a list: of a batch of images of one size."""
    size = len(whole) // count
    return whole[i * size : (i + 1) * size]


# ---- its image ----------------------------------------------------------------------------------


def image_features(model, prompts: list[Prompt]) -> list[list | None]:
    """What tower and projector make of each prompt's image (None without one): what takes the
    placeholders' place and, in Qwen3-VL, what is added to the first layers' hidden states. Images
    of one size go through in one batch. With a frozen tower the graph is the projector's alone.
    """
    found, batches = [None] * len(prompts), {}  # batches: shape of the pixels -> places
    for place, prompt in enumerate(prompts):
        if prompt.images:
            batches.setdefault(prompt.images["pixel_values"].shape, []).append(place)
    for places in batches.values():
        images = [prompts[place].images for place in places]
        images = {name: torch.cat([each[name] for each in images]) for name in images[0]}
        output = model.model.get_image_features(**images, return_dict=True)
        levels = [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]
        for i, place in enumerate(places):
            found[place] = [share(level, i, len(places)) for level in levels]
    return found


def row_features(model, prompts: list[Prompt]):
    """The features of a row's images, made where a prompt has none yet, as model.model takes them
    in place of pixel_values (families.take_features); None without an image.
    """
    fresh = iter(image_features(model, [prompt for prompt in prompts if prompt.features is None]))
    features = [next(fresh) if p.features is None else p.features for p in prompts]
    row = []
    for level in zip(*(each for each in features if each is not None)):
        tensors = torch.is_tensor(level[0])  # or a list with a tensor per image
        row.append(torch.cat(level) if tensors else [image for part in level for image in part])
    return SimpleNamespace(pooler_output=row[0], deepstack_features=row[1:]) if row else None


# ---- the packed row -----------------------------------------------------------------------------


def prompt_positions(model, prompt: Prompt) -> torch.Tensor:
    """Rotary positions (A, P): A = 1 axis, or 3 (time, height, width) in families with M-RoPE."""
    rope = getattr(model.model, "get_rope_index", None)
    if rope and prompt.token_types is not None:
        grid = prompt.images["image_grid_thw"]
        types = prompt.token_types
        return rope(prompt.input_ids, mm_token_type_ids=types, image_grid_thw=grid)[0][:, 0]
    length = prompt.input_ids.shape[1]
    return torch.arange(length, device=prompt.input_ids.device).expand(3 if rope else 1, length)


def pack(model, prompts: list[Prompt], completions: list[list[list[int]]]):
    """One row [p1, c11 .. c1G, p2, c21 ..] of prompts and their completions' token ids, T in all.

    Returns the keyword arguments of model.model(...), and for each completion token the index of
    the position whose hidden state predicts it: the prompt's last predicts a completion's first.
    """
    device = prompts[0].input_ids.device
    ids, positions, segments, predictors, offset = [], [], [], [], 0
    for prompt, group in zip(prompts, completions):
        lengths = [prompt.input_ids.shape[1], *map(len, group)]
        # a prompt with one completion is an ordinary causal sequence
        segments.append([sum(lengths)] if len(group) == 1 else lengths)
        ids.append(prompt.input_ids[0])
        positions.append(prompt_positions(model, prompt))  # (A, P)
        axes, after = len(positions[-1]), positions[-1].max() + 1
        offset += lengths[0]
        last_of_prompt = offset - 1
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


# ---- log-probabilities --------------------------------------------------------------------------


def completion_hidden(
    model, prompts: list[Prompt], completions: list[list[list[int]]]
) -> torch.Tensor:
    """The hidden states that predict the completions' tokens, from one packed forward: (tokens,
    width), all completions in order, with gradient. The rows of the prompts never reach the head.
    """
    inputs, predictors = pack(model, prompts, completions)
    with language_attention(model, "packed"):
        hidden = model.model(**inputs, use_cache=False).last_hidden_state  # (1, T, width)
    return hidden[0].index_select(0, predictors)


def token_logprobs(
    model, hidden: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The head on hidden (n, width): log p of the targets (n,), in nats, with gradient, and the
    entropy (n,) without, of the distribution that rollout.py samples from.
    """
    logits = model.get_output_embeddings()(hidden).float()  # (n, V)
    if temperature != 1:
        logits = logits / temperature
    every = forbid(model, logits).log_softmax(dim=-1)  # (n, V)
    with torch.no_grad():
        entropy = -(every.exp() * every).sum(dim=-1)
    return every.gather(1, targets[:, None])[:, 0], entropy


def forbid(model, logits: torch.Tensor) -> torch.Tensor:
    """logits (n, V), lowest where ids belong to an image: never sampled, never scored."""
    if not model.forbidden_ids:
        return logits
    index = torch.tensor(model.forbidden_ids, device=logits.device)
    return logits.index_fill(-1, index, torch.finfo(logits.dtype).min)


def completion_logprobs(
    model, prompt: Prompt, completions: list[list[int]], temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (G, C) of G completions of one prompt, in nats, with gradient, 0 at the
    padding on the right, and completion_mask (G, C): what dyme.update does in chunks.
    """
    hidden = completion_hidden(model, [prompt], [completions])  # (tokens, width)
    targets = torch.tensor(sum(completions, []), device=hidden.device)
    flat, _ = token_logprobs(model, hidden, targets, temperature)
    return pad_rows(flat, [len(completion) for completion in completions])


def pad_rows(flat: torch.Tensor, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """flat (tokens,) as rows (N, C) padded on the right with 0, and their mask (N, C)."""
    rows = pad_sequence(list(flat.split(lengths)), batch_first=True)
    places = torch.arange(rows.shape[1], device=flat.device)  # (C,)
    return rows, places < torch.tensor(lengths, device=flat.device)[:, None]
