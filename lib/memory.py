"""
How much memory a training step takes, worked out before it is tried.

A step has two peaks, and the larger one counts. While it samples there are the caches: each
prompt's keys and values once (twice for a moment, as prefill pads them), those of every response,
and the logits of one decode step. While it learns there are the gradients, what the layers keep
for the backward pass, and the head's logits, a chunk at a time. Weights, optimizer states and the
image features of the step's prompts are there throughout.

The formulas count the tensors that this code's forward keeps, with the packed row of model.py;
test_models.py compares them with measured peaks. Left out: what CUDA takes for itself, about 0.5
GB, and the allocator's fragments: keep 10 % free.
"""

from dataclasses import dataclass

import torch

from model import PREFILL_TOKENS

FLAGS = (
    "--gradient_checkpointing, --micro_batch_prompts 1, a smaller --max_pixels, "
    "--prompts_per_step, --num_generations, --max_completion_length or --head_chunk_tokens"
)


@dataclass
class Shape:
    """What of the data and of the knobs decides over memory."""

    prompt_length: int  # tokens of the longest prompt
    image_tokens: int  # how many of them stand for the image
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
    """
    Bytes by part: weights, optimizer, features; caches, while sampling; gradients, activations,
    head, while learning; and "peak": what the step needs at most. The model may be on the meta
    device: only its sizes are looked at.
    """
    text = model.config.get_text_config()
    width, layers, heads, mlp = (
        text.hidden_size,
        text.num_hidden_layers,
        text.num_attention_heads,
        text.intermediate_size,
    )
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or width // heads
    query_width, key_width = heads * head_dim, key_heads * head_dim
    size = model.get_output_embeddings().weight.element_size()
    prompt, completion, generations = (
        shape.prompt_length,
        shape.max_completion_length,
        shape.num_generations,
    )
    rows = shape.prompts_per_step * generations
    trainable = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())

    vision_width, vision_kept = vision_sizes(model)
    frozen_tower = not any(
        p.requires_grad for name, p in model.named_parameters() if "patch_embed" in name
    )
    # the projector's graph: its input, and what stands before and after its activation function
    features = shape.patches * size * (vision_width + 2 * width) + shape.image_tokens * width * size

    # ---- sampling
    cached_token = 2 * layers * key_width * size
    prompt_cache = shape.prompts_per_step * prompt * cached_token
    prefill_row = max(prompt, min(shape.prompts_per_step * prompt, PREFILL_TOKENS))
    prefill = prompt_cache + max(prompt_cache, prefill_row * size * (3 * mlp + 4 * width))
    scores = rows * heads * (prompt + completion) * (3 * size + 4)
    suffix_cache = rows * completion * cached_token
    logits = (
        rows * text.vocab_size * (size + 16)
    )  # cumulative probabilities are float64, from another float64
    caches = max(prefill, prompt_cache + suffix_cache * (1 + 1 / layers) + max(logits, scores))

    # ---- learning: one packed row of `tokens`, of which `learnt` are completions
    learnt = shape.micro_batch_prompts * generations * completion
    tokens = shape.micro_batch_prompts * prompt + learnt
    seen = (
        shape.micro_batch_prompts * generations * (prompt + completion)
    )  # the keys that completions look at
    norms = 2 * (4 + size) * width * tokens  # a norm keeps its input as fp32
    if any("q_norm" in name for name, _ in model.named_parameters()):
        norms += (4 + size) * (query_width + key_width) * tokens
    linears = size * tokens * (4 * mlp + 2 * width + 3 * query_width + 3 * key_width)
    attention = size * (learnt * query_width + 2 * seen * key_width)
    masks = size * seen * completion * heads // key_heads  # shared by the layers
    layer = norms + linears + attention
    backward = size * tokens * (3 * mlp + 2 * width)  # gradients on their way through one layer
    kept = masks + size * width * (2 * tokens + 3 * learnt)
    if shape.gradient_checkpointing:
        kept += layers * size * tokens * width
        backward += layer
    else:
        kept += layers * layer
    if not frozen_tower:
        kept += shape.micro_batch_prompts * shape.patches * size * vision_kept
    chunk = min(learnt, max(shape.head_chunk_tokens, completion))  # at least one whole response
    # four fp32 copies of the logits, or three and one more gradient of the head's matrix
    head = text.vocab_size * max(16 * chunk, 12 * chunk + width * size)

    parts = {
        "weights": weights * (2 if shape.beta > 0 else 1),
        "optimizer": 2 * trainable,
        "features": features
        * (shape.prompts_per_step if frozen_tower else shape.micro_batch_prompts),
        "caches": int(caches),
        "gradients": trainable,
        "activations": kept + backward,
        "head": head,
    }
    always = parts["weights"] + parts["optimizer"] + parts["features"]
    parts["peak"] = always + max(parts["caches"], trainable + kept + max(head, backward))
    return parts


def vision_sizes(model) -> tuple[int, int]:
    """
    Width of the vision tower, and how many numbers its layers keep of a patch when it trains;
    without one, 0, 0.
    """
    config = getattr(model.config, "vision_config", None)
    if config is None:
        return 0, 0
    width = getattr(config, "embed_dim", None) or config.hidden_size
    mlp = getattr(config, "intermediate_size", None) or config.mlp_ratio * width
    layers = getattr(config, "depth", None) or config.num_hidden_layers
    return width, layers * (8 * width + 3 * mlp)


def report_memory(parts: dict[str, int], device=None) -> list[str]:
    """
    The estimate in lines of text; on CUDA a warning with the flags that help, where it is more
    than is free.
    """
    listed = ", ".join(f"{name} {value / 2**30:.2f}" for name, value in parts.items())
    lines = [f"memory of a step, estimated, in GiB: {listed}"]
    if device is not None and torch.device(device).type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        if parts["peak"] > 0.9 * free:
            lines.append(
                f"warning: {free / 2**30:.1f} GiB are there for it, likely too little; "
                f"what helps: {FLAGS}"
            )
    return lines
