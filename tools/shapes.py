"""Models of published shapes with random weights, for tools/bench.py: time and memory don't depend
on what the weights say.
"""

from dataclasses import dataclass

import torch
import transformers

from lib.families import FAMILIES, prepare, processor_classes
from lib.tiny import tiny_tokenizer

HEADS = ("hidden_size", "num_hidden_layers", "num_attention_heads")
TEXT = (*HEADS, "num_key_value_heads", "intermediate_size", "vocab_size")
SIGLIP = (*HEADS, "intermediate_size", "image_size")
QWEN_TOWER = ("embed_dim", "depth", "num_heads", "hidden_size")


@dataclass
class Size:
    """What --size names. `image`, with `tiles`, settles the length of the prompt."""

    text: tuple  # as TEXT says
    tower: tuple  # as SIGLIP says, or QWEN_TOWER
    image: tuple[int, int]  # width and height in pixels
    tiles: list  # LLaVA-OneVision's choice of (rows, columns) of tiles; empty: Qwen2-VL
    completion_length: int
    prompts: int
    dtype: torch.dtype = torch.float32


CHART = (800, 557)  # ChartQA's usual image, pixels
GRID = [(rows, columns) for rows in range(1, 7) for columns in range(1, 7)]
# a quarter of LLaVA-OneVision-0.5B's width and layers
QUARTER, QUARTER_TOWER = (256, 6, 4, 1, 1408, 11_264), (288, 9, 4, 1076, 252)
# llava-hf/llava-onevision-qwen2-0.5b-ov-hf
HALF_B, HALF_B_TOWER = (896, 24, 14, 2, 4864, 152_000), (1152, 26, 16, 4304, 384)
# Qwen/Qwen2-VL-2B-Instruct
TWO_B, TWO_B_TOWER = (1536, 28, 12, 2, 8960, 151_936), (1280, 32, 16, 1536)
SIZES = {
    "small": Size((64, 2, 4, 1, 128, 1024), (32, 1, 4, 64, 28), (28, 28), [(1, 1)], 6, 2),
    "p700": Size(QUARTER, QUARTER_TOWER, (252, 252), [(1, 1)], 128, 1),
    "p3000": Size(QUARTER, QUARTER_TOWER, (1008, 504), [(2, 4)], 128, 1),
    "0.5b": Size(HALF_B, HALF_B_TOWER, CHART, GRID, 256, 4, torch.bfloat16),
    "2b": Size(TWO_B, TWO_B_TOWER, CHART, [], 256, 4, torch.bfloat16),
}


def build_model(size: Size, device: str, freeze_vision: bool = True):
    """A model of the given shape and its processor, with the tiny model's tokenizer."""
    tokenizer = tiny_tokenizer()
    text = dict(zip(TEXT, size.text), tie_word_embeddings=True)
    if size.tiles:
        name, placeholder, tokens = "llava_onevision", "<image>", ["<image>", "<video>"]
        tower = dict(zip(SIGLIP, size.tower), patch_size=14, vision_use_head=False)
        tower["model_type"], text["model_type"] = "siglip_vision_model", "qwen2"
        side = tower["image_size"]
        tiles = {"image_grid_pinpoints": [[side * rows, side * cols] for rows, cols in size.tiles]}
        images = {"size": {"height": side, "width": side}, **tiles}
        texts = {"num_image_tokens": (side // 14) ** 2, "vision_feature_select_strategy": "full"}
    else:
        name, placeholder = "qwen2_vl", "<|vision_start|><|image_pad|><|vision_end|>"
        tokens = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
        tokenizer.add_special_tokens({"additional_special_tokens": tokens})
        tower, tiles, images, texts = dict(zip(QWEN_TOWER, size.tower)), {}, {}, {}
        head = size.text[0] // size.text[2]  # rotary frequencies of time, height and width:
        sections = [head // 8, 3 * head // 16, 3 * head // 16]
        rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
        text["rope_parameters"] = rope
    roles = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = dict(zip(roles, tokenizer.convert_tokens_to_ids(tokens)))
    config = transformers.AutoConfig.for_model(
        name, text_config=text, vision_config=tower, tie_word_embeddings=True, **ids, **tiles
    )
    processor_class, image_class = processor_classes(FAMILIES[name])
    template = tokenizer.chat_template.replace("<image>", placeholder)
    processor = processor_class(image_class(**images), tokenizer, chat_template=template, **texts)
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=size.dtype)
    model = prepare(model.to(device), freeze_vision)
    # no response may end early, so the end token is banned like the image placeholders
    model.forbidden_ids = sorted({*model.forbidden_ids, tokenizer.eos_token_id})
    return model, processor
