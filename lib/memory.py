"""How much memory a training step takes, worked out before it is tried.

A step has two peaks, and the larger one counts. While it samples there are the caches: each
prompt's keys and values once (twice for a moment, as prefill pads them), those of every response,
and the logits of one decode step. While it learns there are the gradients, what the layers keep
for the backward pass, and the head's logits, a chunk at a time. Weights, optimizer states and the
image features are there throughout. The formulas count the tensors of the packed row of model.py;
test_models.py compares them with measured peaks. Left out: what CUDA takes for itself, about 0.5
GB, and the allocator's fragments: keep 10 % free.
"""

import os
from dataclasses import dataclass

import torch

from data.example import InputError
from model import PREFILL_TOKENS

FLAGS = (
    "--gradient_checkpointing, --micro_batch_prompts 1, a smaller --max_pixels, "
    "--prompts_per_step, --num_generations or --max_completion_length"
)


@dataclass
class Shape:
    """What of the data and of the knobs decides over memory."""

    prompt_length: int  # tokens of the longest prompt
    image_tokens: int  # how many of them are the image
    patches: int  # how many patches of it the vision tower sees
    prompts_per_step: int  # of this process
    num_generations: int
    max_completion_length: int
    micro_batch_prompts: int = 1
    head_chunk_tokens: int = 256
    gradient_checkpointing: bool = False
    beta: float = 0.0


def shape_of(model, prompt, **knobs) -> Shape:
    """The Shape of an encoded prompt, the longest at hand, and the knobs that Shape names."""
    pixels = prompt.images.get("pixel_values")
    patches = 0
    if pixels is not None:
        patch = model.config.vision_config.patch_size
        area = (patch if isinstance(patch, int) else patch[0]) ** 2
        # (patches, values) in Qwen-VL, (.., tiles, 3, height, width) else
        patches = len(pixels) if pixels.dim() == 2 else pixels[..., 0, :, :].numel() // area
    image_tokens = int((prompt.input_ids == getattr(model.config, "image_token_id", -1)).sum())
    return Shape(prompt.input_ids.shape[1], image_tokens, patches, **knobs)


def memory_estimate(model, shape: Shape) -> dict[str, int]:
    """Bytes by part: weights, optimizer, features; caches, while sampling; gradients, activations,
    head, while learning; "peak", the most at once. The model may be on the meta device.
    """
    text = model.config.get_text_config()
    width, mlp, layers = text.hidden_size, text.intermediate_size, text.num_hidden_layers
    heads = text.num_attention_heads
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or width // heads
    query_width, key_width = heads * head_dim, key_heads * head_dim
    size = model.get_output_embeddings().weight.element_size()
    named = dict(model.named_parameters())
    weights = sum(p.numel() * p.element_size() for p in named.values())
    trainable = sum(p.numel() * p.element_size() for p in named.values() if p.requires_grad)
    frozen_tower = not any(p.requires_grad for name, p in named.items() if "patch_embed" in name)
    vision = getattr(model.config, "vision_config", None)
    vision_width = getattr(vision, "embed_dim", None) or getattr(vision, "hidden_size", 0)
    prompts, prompt = shape.prompts_per_step, shape.prompt_length
    completion = shape.max_completion_length

    # ---- sampling
    rows = prompts * shape.num_generations
    cached_token = 2 * layers * key_width * size
    prompt_cache = prompts * prompt * cached_token
    prefill_row = max(prompt, min(prompts * prompt, PREFILL_TOKENS))
    prefill = prompt_cache + max(prompt_cache, prefill_row * size * (3 * mlp + 4 * width))
    scores = rows * heads * (prompt + completion) * (3 * size + 4)
    suffix_cache = rows * completion * cached_token
    logits = rows * text.vocab_size * (size + 16)  # cumulative probabilities are float64, twice
    caches = max(prefill, prompt_cache + suffix_cache * (1 + 1 / layers) + max(logits, scores))

    # ---- learning: one packed row of `tokens`, of which `learnt` are completions
    sequences = shape.micro_batch_prompts * shape.num_generations
    learnt = sequences * completion
    tokens = shape.micro_batch_prompts * prompt + learnt
    seen = sequences * (prompt + completion)  # the keys that completions look at
    norms = 2 * (4 + size) * width * tokens  # a norm keeps its input as fp32
    if any("q_norm" in name for name in named):
        norms += (4 + size) * (query_width + key_width) * tokens
    linears = size * tokens * (4 * mlp + 2 * width + 3 * query_width + 3 * key_width)
    attention = size * (learnt * query_width + 2 * seen * key_width)
    layer = norms + linears + attention
    masks = size * seen * completion * heads // key_heads  # shared by the layers
    kept = masks + size * width * (2 * tokens + 3 * learnt)
    backward = size * tokens * (3 * mlp + 2 * width)  # gradients on their way through one layer
    kept += layers * (size * tokens * width if shape.gradient_checkpointing else layer)
    backward += layer if shape.gradient_checkpointing else 0
    if shape.patches and not frozen_tower:
        vision_mlp = getattr(vision, "intermediate_size", None) or vision.mlp_ratio * vision_width
        vision_layers = getattr(vision, "depth", None) or vision.num_hidden_layers
        kept_patch = vision_layers * (8 * vision_width + 3 * vision_mlp)
        kept += shape.micro_batch_prompts * shape.patches * size * kept_patch
    chunk = min(learnt, max(shape.head_chunk_tokens, completion))  # at least one whole response
    # four fp32 copies of the logits, or three and one more gradient of the head's matrix
    head = text.vocab_size * max(16 * chunk, 12 * chunk + width * size)

    # ---- throughout. The projector's graph: its input, and what is before and after its activation
    image = shape.patches * size * (vision_width + 2 * width) + shape.image_tokens * width * size
    features = image * (prompts if frozen_tower else shape.micro_batch_prompts)
    weights *= 2 if shape.beta > 0 else 1
    always = weights + 2 * trainable + features
    return {
        "weights": weights,
        "optimizer": 2 * trainable,
        "features": features,
        "caches": int(caches),
        "gradients": trainable,
        "activations": kept + backward,
        "head": head,
        "peak": always + max(int(caches), trainable + kept + max(head, backward)),
    }


def machine_memory(device: torch.device) -> int:
    """Bytes that this process can have: the GPU's free ones, or the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def report_memory(parts: dict[str, int], there: int, force: bool = False) -> str:
    """The estimate in one line. InputError where its peak is more than what is there (bytes), with
    the flags that help, unless forced.
    """
    listed = ", ".join(f"{name} {value / 2**30:.2f}" for name, value in parts.items())
    told = f"{there / 2**30:.1f} are there"
    if parts["peak"] > there and not force:
        needed = f"a step is estimated to need {parts['peak'] / 2**30:.1f} GiB of memory, {told}"
        raise InputError(f"{needed}; what helps: {FLAGS}; or try it with --force")
    return f"memory of a step, estimated, in GiB: {listed}; {told}"
