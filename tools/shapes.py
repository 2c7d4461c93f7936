"""
Models of published shapes with random weights, for bench.py: time and memory don't depend on what
the weights say.

Left out: anything that needs the published weights or tokenizers (families.py loads those).
"""

from dataclasses import dataclass

import torch
from transformers import (
    AutoModelForImageTextToText,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    Qwen2VLConfig,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
)

from PIL import Image

from data import Example
from lib.families import prepare, without_video
from lib.memory import memory_estimate, shape_of
from lib.tiny import tiny_tokenizer
from model import encode_prompt

CHART = (800, 557)  # ChartQA's usual image, pixels
GRID = [(rows, columns) for rows in range(1, 7) for columns in range(1, 7)]
FP32, BF16 = torch.float32, torch.bfloat16


@dataclass
class Size:
    """
    What bench.py's --size stands for. `image`, with `tiles`, settles the length of the prompt.
    """

    text: tuple  # width, layers, heads, key heads, MLP width, vocabulary
    vision: dict  # the tower's configuration, in transformers' names
    image: tuple[int, int]  # width and height in pixels
    tiles: list  # LLaVA-OneVision's choice of (rows, columns) of tiles; empty: Qwen2-VL
    completion_length: int
    prompts: int
    dtype: torch.dtype


def siglip(width, layers, heads, mlp, image_size):
    """A SigLIP tower with 14 x 14 patches."""
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    patches = {"image_size": image_size, "patch_size": 14, "vision_use_head": False}
    return {**sizes, "intermediate_size": mlp, **patches}


SMALL = (64, 2, 4, 1, 128, 1024)
SMALL_TOWER = siglip(32, 1, 4, 64, 28)
# LLaVA-OneVision-0.5B with a quarter of the width and of the layers
QUARTER = (256, 6, 4, 1, 1408, 11_264)
QUARTER_TOWER = siglip(288, 9, 4, 1076, 252)
# llava-hf/llava-onevision-qwen2-0.5b-ov-hf
HALF_B = (896, 24, 14, 2, 4864, 152_000)
HALF_B_TOWER = siglip(1152, 26, 16, 4304, 384)
# Qwen/Qwen2-VL-2B-Instruct
TWO_B = (1536, 28, 12, 2, 8960, 151_936)
TWO_B_TOWER = {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16}

SIZES = {
    "small": Size(SMALL, SMALL_TOWER, (28, 28), [(1, 1)], 6, 2, FP32),
    "p700": Size(QUARTER, QUARTER_TOWER, (252, 252), [(1, 1)], 128, 1, FP32),
    "p3000": Size(QUARTER, QUARTER_TOWER, (1008, 504), [(2, 4)], 128, 1, FP32),
    "0.5b": Size(HALF_B, HALF_B_TOWER, CHART, GRID, 256, 4, BF16),
    "2b": Size(TWO_B, TWO_B_TOWER, CHART, [], 256, 4, BF16),
}
TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}\
{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def build_model(size: Size, device, freeze_vision: bool = True):
    """A model of the given shape and its processor, with the tiny model's tokenizer."""
    width, layers, heads, key_heads, mlp, vocabulary = size.text
    text = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "intermediate_size": mlp,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    }
    tokenizer = tiny_tokenizer()
    build = llava_onevision if size.tiles else qwen2_vl
    config, processor = build(size, text, tokenizer)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=size.dtype).to(device)
    model = prepare(model, freeze_vision)
    # no response may end early, so the end token is banned like the image placeholders
    model.forbidden_ids = sorted({*model.forbidden_ids, tokenizer.eos_token_id})
    return model, processor


def llava_onevision(size: Size, text: dict, tokenizer):
    """(config, processor) of LLaVA-OneVision: a SigLIP tower and Qwen2."""
    side = size.vision["image_size"]
    pinpoints = [[rows * side, columns * side] for rows, columns in size.tiles]
    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **text},
        vision_config={"model_type": "siglip_vision_model", **size.vision},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
        tie_word_embeddings=True,
    )
    images = LlavaOnevisionImageProcessorPil(
        size={"height": side, "width": side}, image_grid_pinpoints=pinpoints
    )
    processor = without_video(LlavaOnevisionProcessor)(
        images,
        tokenizer,
        num_image_tokens=(side // 14) ** 2,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )
    return config, processor


def qwen2_vl(size: Size, text: dict, tokenizer):
    """(config, processor) of Qwen2-VL, with its rotary positions for time, height and width."""
    tokens = ["<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>"]
    names = ["vision_start", "image", "video", "vision_end"]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(t) for name, t in zip(names, tokens)}
    eighth = text["hidden_size"] // text["num_attention_heads"] // 16  # of the frequencies
    rope = {"mrope_section": [2 * eighth, 3 * eighth, 3 * eighth]}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, **rope}
    config = Qwen2VLConfig(
        text_config=text, vision_config=size.vision, tie_word_embeddings=True, **ids
    )
    template = TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = without_video(Qwen2VLProcessor)(
        Qwen2VLImageProcessorPil(), tokenizer, chat_template=template
    )
    return config, processor


def memory_table() -> None:
    """
    The README's table, computed: published shapes without weights, a chart of 800 x 557 pixels, G
    8, C 300, bf16.
    """
    print(
        "| model | parameters | prompt, tokens | prompts a step | peak, GiB "
        "| with --gradient_checkpointing |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for size, name in (("0.5b", "LLaVA-OneVision-0.5B"), ("2b", "Qwen2-VL-2B")):
        with torch.device("meta"):
            model, processor = build_model(SIZES[size], "meta")
        prompt = encode_prompt(
            processor, Example(Image.new("RGB", CHART), "What is the highest value?", "1")
        )
        count = sum(p.numel() for p in model.parameters()) / 1e9
        for prompts in (8, 32):
            cells = []
            for checkpointing in (False, True):
                shape = shape_of(
                    model,
                    prompt,
                    prompts_per_step=prompts,
                    num_generations=8,
                    max_completion_length=300,
                    gradient_checkpointing=checkpointing,
                )
                cells.append(f"{memory_estimate(model, shape)['peak'] / 2**30:.1f}")
            length = prompt.input_ids.shape[1]
            print(f"| {name} | {count:.2f}B | {length} | {prompts} | {' | '.join(cells)} |")


if __name__ == "__main__":
    memory_table()
