"""How much memory a training step takes, worked out before it is tried.

A step has two peaks, and the larger one counts: sampling, with its caches and the logits of one
decode step; and learning, with gradients, what the layers keep for the backward pass, and the
head's logits, a chunk at a time. Weights, optimizer states and image features are there throughout.
The formulas count the tensors of the packed row of model.py; test_models.py compares them with
measured peaks. Left out: what CUDA takes for itself, about 0.5 GB, and fragments: keep 10 % free.
"""

import os

import torch

from data.example import InputError
from model import PREFILL_TOKENS

FLAGS = (
    "--gradient_checkpointing, --micro_batch_prompts 1, a smaller --max_pixels, "
    "--prompts_per_step, --num_generations or --max_completion_length"
)


def memory_estimate(model, prompt, config, prompts: int, head_chunk: int = 256) -> dict[str, int]:
    """Bytes by part, and "peak", the most at once. The model may be on the meta device. prompt: the
    longest, encoded. prompts: of a step, of this process. head_chunk: logits that exist at a time.
    """
    text, micro = model.config.get_text_config(), config.micro_batch_prompts
    size = model.get_output_embeddings().weight.element_size()
    named = dict(model.named_parameters())
    weights = sum(p.numel() * p.element_size() for p in named.values())
    trainable = sum(p.numel() * p.element_size() for p in named.values() if p.requires_grad)
    frozen_tower = not any(p.requires_grad for name, p in named.items() if "patch_embed" in name)
    patches, vision = image_patches(model, prompt), getattr(model.config, "vision_config", None)
    vision_width = getattr(vision, "embed_dim", None) or getattr(vision, "hidden_size", 0)

    lengths = (prompt.input_ids.shape[1], config.num_generations, config.max_completion_length)
    caches = sampling(text, size, prompts, *lengths)
    normed = any("q_norm" in name for name in named)
    layer, kept, backward = learning(text, size, normed, micro, *lengths)
    if config.gradient_checkpointing:
        backward += layer
        layer = size * text.hidden_size * micro * (lengths[0] + lengths[1] * lengths[2])
    kept += text.num_hidden_layers * layer
    if patches and not frozen_tower:
        mlp = getattr(vision, "intermediate_size", None) or vision.mlp_ratio * vision_width
        layers = getattr(vision, "depth", None) or vision.num_hidden_layers
        kept += micro * patches * size * layers * (8 * vision_width + 3 * mlp)
    chunk = min(micro * lengths[1] * lengths[2], max(head_chunk, lengths[2]))  # a whole response
    # four fp32 copies of the logits, or three and one more gradient of the head's matrix
    head = text.vocab_size * max(16 * chunk, 12 * chunk + text.hidden_size * size)

    # throughout. The projector's graph: its input, and what is before and after its activation
    image_tokens = int((prompt.input_ids == getattr(model.config, "image_token_id", -1)).sum())
    image = size * (patches * vision_width + (2 * patches + image_tokens) * text.hidden_size)
    parts = {
        "weights": weights * (2 if config.beta > 0 else 1),
        "optimizer": 2 * trainable,
        "features": image * (prompts if frozen_tower else micro),
    }
    always, learned = sum(parts.values()), trainable + kept + max(head, backward)
    parts.update(caches=caches, gradients=trainable, activations=kept + backward, head=head)
    return {**parts, "peak": always + max(caches, learned)}


def image_patches(model, prompt) -> int:
    """How many patches of a prompt's image the vision tower sees."""
    pixels = prompt.images.get("pixel_values")
    if pixels is None or pixels.dim() == 2:  # (patches, values) in Qwen-VL
        return 0 if pixels is None else len(pixels)
    patch = model.config.vision_config.patch_size
    area = (patch if isinstance(patch, int) else patch[0]) ** 2
    return pixels[..., 0, :, :].numel() // area  # (.., tiles, 3, height, width)


def head_widths(text) -> tuple[int, int, int]:
    """The widths of a token's queries and keys; how many query heads share a key head."""
    heads = text.num_attention_heads
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return heads * head_dim, key_heads * head_dim, heads // key_heads


def sampling(text, size: int, prompts: int, prompt: int, responses: int, length: int) -> int:
    """Bytes of the caches: of `responses` of `length` tokens to each prompt, of `prompt` tokens."""
    rows, layers = prompts * responses, text.num_hidden_layers
    cached_token = 2 * layers * head_widths(text)[1] * size
    prompt_cache, suffix_cache = prompts * prompt * cached_token, rows * length * cached_token
    row = max(prompt, min(prompts * prompt, PREFILL_TOKENS))
    prefill = row * size * (3 * text.intermediate_size + 4 * text.hidden_size)
    scores = rows * text.num_attention_heads * (prompt + length) * (3 * size + 4)
    logits = rows * text.vocab_size * (size + 16)  # cumulative probabilities are float64, twice
    decode = suffix_cache * (1 + 1 / layers) + max(logits, scores)
    return int(prompt_cache + max(prompt_cache, prefill, decode))


def learning(text, size: int, normed: bool, prompts: int, prompt: int, responses: int, length: int):
    """Bytes of one packed row: what a layer keeps, what is kept once, a layer's gradients."""
    width, mlp, (query, key, shared) = text.hidden_size, text.intermediate_size, head_widths(text)
    learnt = prompts * responses * length
    tokens = prompts * prompt + learnt
    seen = prompts * responses * (prompt + length)  # the keys that completions look at
    norms = (4 + size) * (2 * width + normed * (query + key)) * tokens  # their inputs as fp32
    linears = size * tokens * (4 * mlp + 2 * width + 3 * query + 3 * key)
    attention = size * (learnt * query + 2 * seen * key)
    masks = size * seen * length * shared  # one for all layers
    kept = masks + size * width * (2 * tokens + 3 * learnt)
    return norms + linears + attention, kept, size * tokens * (3 * mlp + 2 * width)


def report_memory(parts: dict[str, int], device: torch.device, force: bool = False) -> str:
    """The estimate in one line. InputError, unless forced, where its peak is more than there is."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.type == "cuda":
        there = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    peak, there = (f"{value / 2**30:.1f}" for value in (parts["peak"], there))
    if float(peak) > float(there) and not force:
        needed = f"a step is estimated to need {peak} GiB of memory, {there} are there"
        raise InputError(f"{needed}; what helps: {FLAGS}; or try it with --force")
    listed = ", ".join(f"{name} {value / 2**30:.2f}" for name, value in parts.items())
    return f"memory of a step, estimated, in GiB: {listed}; {there} are there"
