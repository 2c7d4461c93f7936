"""How much memory a training step takes, worked out before it is tried.

A step has two peaks, and the larger one counts: sampling, and learning. Weights, optimizer states
and image features are there throughout. The formulas count the tensors of the packed row of
model.py; test_models.py compares them with measured peaks. Left out: what CUDA takes for itself,
about 0.5 GB, and fragments: keep 10 % free.
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
    text, named = model.config.get_text_config(), dict(model.named_parameters())
    width, mlp, layers = text.hidden_size, text.intermediate_size, text.num_hidden_layers
    head_dim = getattr(text, "head_dim", None) or width // text.num_attention_heads
    query, key = text.num_attention_heads * head_dim, text.num_key_value_heads * head_dim
    size = model.get_output_embeddings().weight.element_size()
    G, C, L = config.num_generations, config.max_completion_length, prompt.input_ids.shape[1]
    trainable = sum(p.nbytes for p in named.values() if p.requires_grad)

    # ---- sampling: a decode step's tensors, the suffix cache's last growth; or the prefill's
    rows, cached_token = prompts * G, 2 * layers * key * size
    scores = rows * text.num_attention_heads * (L + C) * (3 * size + 4)
    logits = rows * text.vocab_size * (size + 16)  # cumulative probabilities are float64, twice
    decode = rows * C * cached_token * (1 + 1 / layers) + max(logits, scores)
    prefill = max(L, min(prompts * L, PREFILL_TOKENS)) * size * (3 * mlp + 4 * width)
    prompt_cache = prompts * L * cached_token
    caches = int(prompt_cache + max(prompt_cache, prefill, decode))

    # ---- learning: what a packed row keeps of each layer, and once; the gradients of one layer
    micro = config.micro_batch_prompts
    learnt = micro * G * C
    tokens, seen = micro * L + learnt, micro * G * (L + C)  # seen: the keys completions look at
    normed = 2 * width + any("q_norm" in name for name in named) * (query + key)
    layer = (4 + size) * normed * tokens  # the norms' inputs as fp32
    layer += size * tokens * (4 * mlp + 2 * width + 3 * query + 3 * key)
    layer += size * (learnt * query + 2 * seen * key)
    once = size * (seen * C * query // key + width * (2 * tokens + 3 * learnt))  # masks, the ends
    backward = size * tokens * (3 * mlp + 2 * width)
    if config.gradient_checkpointing:
        backward, layer = backward + layer, size * width * tokens
    kept = once + layers * layer
    chunk = min(learnt, max(head_chunk, C))  # a whole response
    # four fp32 copies of the logits, or three and one more gradient of the head's matrix
    head = text.vocab_size * max(16 * chunk, 12 * chunk + width * size)

    # ---- the image: what the projector keeps, its input, before and after its activation
    image, frozen_tower, pixels = 0, True, prompt.images.get("pixel_values")
    if pixels is not None:
        embed = next(p for name, p in named.items() if "patch_embed" in name)  # (width, a patch)
        patches, frozen_tower = pixels.numel() // embed[0].numel(), not embed.requires_grad
        image_tokens = int((prompt.input_ids == model.config.image_token_id).sum())
        image = size * (patches * len(embed) + (2 * patches + image_tokens) * width)
        vision = model.config.vision_config
        tower = getattr(vision, "depth", None) or vision.num_hidden_layers
        # a layer of the tower keeps 8 widths, and 3 of its MLP, each of about 4 widths
        kept += (not frozen_tower) * micro * patches * size * tower * 20 * len(embed)
    parts = {"weights": sum(p.nbytes for p in named.values()) * (2 if config.beta > 0 else 1)}
    parts |= {"optimizer": 2 * trainable, "features": image * (prompts if frozen_tower else micro)}
    peak = sum(parts.values()) + max(caches, trainable + kept + max(head, backward))
    parts |= {"caches": caches, "gradients": trainable, "activations": kept + backward}
    return {**parts, "head": head, "peak": peak}


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
