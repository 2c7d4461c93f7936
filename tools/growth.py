"""What a step costs, on paper: seconds from formulas, memory by lib/memory.py, of published models.

    python -m tools.growth        what a 24 GB card would do

Left out: the optimizer's step, sampling, scoring, what is between two matrix products.
"""

import sys

import torch
from PIL import Image

from config import Config, Parser
from data.example import Example
from lib.log import run_program
from lib.memory import memory_estimate
from model import encode_prompt
from tools.sides import CHART, SIZES, build_model
from tools.tables import markdown

# an RTX 4090 by its data sheet, 165 TFLOP/s (bf16) and 1008 GB/s, at 40 and 60 %; and seconds of a
# layer in a decode step that do no arithmetic. With 76 GFLOP/s, 52 in decode steps, the formulas
# are within 14 % of all figures of one CPU core in results/bench-{p700,p700x4,p3000}.json.
RATE, BANDWIDTH, PER_LAYER = 66e12, 605e9, 1.0e-3
SIZE = 2  # bytes of a number
CHARTQA = 28_299  # training questions
P, G, C = 32, 8, 150  # prompts, responses to each, their tokens
INTERN, SMOL = (896, 24, 14, 2, 4864, 151_674), (960, 32, 15, 5, 2560, 49_280)
# By their config.json the language model (sides.TEXT) and the tower (width, layers, MLP's width);
# what a chart of 800 x 557 pixels is to them: patches, patches that see each other, tokens of the
# prompt, seconds of the image processor on one CPU core.
FAMILIES = {
    "LLaVA-OneVision-0.5B": (SIZES["0.5b"].text, (1152, 26, 4304), 7290, 729, 4972, 0.055),
    "InternVL3-1B": (INTERN, (1024, 24, 4096), 7175, 1025, 1830, 0.066),
    "SmolVLM-500M": (SMOL, (768, 12, 3072), 13_312, 1024, 930, 0.205),
    "Qwen2-VL-2B": (SIZES["2b"].text, (1280, 32, 5120), 2240, 2240, 613, 0.022),
}


def seconds_table() -> str:
    """Seconds per step and hours of ten epochs on that card, all groups explored.

    An update costs three forwards; a token's product with a matrix of n numbers 2n FLOP, its
    attention 4 * width * keys.
    """
    heads = ["model", "prompt, tokens", "images", "tower", "prefill", "decode", "update"]
    lines = []
    for name, (text, tower, patches, tile, prompt, image) in FAMILIES.items():
        width, layers, query_heads, key_heads, mlp, vocabulary = text
        key_width = width // query_heads * key_heads
        numbers = layers * width * (2 * width + 2 * key_width + 3 * mlp)
        head = vocabulary * width
        attention = 4 * layers * width  # per query and key
        own = 2 * numbers * prompt + attention * prompt**2 / 2  # one prompt, once
        token = 2 * numbers + attention * (prompt + C / 2) + 2 * head  # one token of a response
        tower_width, tower_layers, tower_mlp = tower
        patch = 2 * (4 * tower_width**2 + 2 * tower_width * tower_mlp) + 4 * tower_width * tile
        seen = tower_layers * patch * patches
        cached = 2 * layers * key_width * SIZE  # bytes of a token's keys and values
        read = SIZE * (numbers + head) + cached * P * prompt
        read += 3 * cached * P * G * C / 2  # what the responses have said is read, and moved once
        decode = C * (layers * PER_LAYER + P * G * token / RATE + read / BANDWIDTH)
        update = 3 * P * (own + G * C * token) / RATE
        seconds = [P * image, P * seen / RATE, P * own / RATE, decode, update]
        totals = [f"{sum(seconds):.0f}", f"{sum(seconds) * 10 * CHARTQA / P / 3600:.0f}"]
        lines.append([name, str(prompt), *(f"{value:.1f}" for value in seconds), *totals])
    return markdown([*heads, "s per step", "hours"], lines)


def memory_table() -> str:
    """The peak of a step for published shapes without weights: a CHART, G 8, C 300, bf16."""
    heads = ["model", "parameters", "prompt, tokens", "prompts per step", "peak, GiB"]
    example, lines = Example(Image.new("RGB", CHART), "What is the highest value?", "1"), []
    knobs = {"max_completion_length": 300, "micro_batch_prompts": 1}
    configs = [Config(**knobs, gradient_checkpointing=on) for on in (False, True)]
    for size, name in (("0.5b", "LLaVA-OneVision-0.5B"), ("2b", "Qwen2-VL-2B")):
        with torch.device("meta"):
            model, processor = build_model(SIZES[size], "meta")
        prompt = encode_prompt(processor, example)
        count = sum(p.numel() for p in model.parameters()) / 1e9
        for prompts in (8, 32):
            peaks = [memory_estimate(model, prompt, each, prompts)["peak"] for each in configs]
            about = [name, f"{count:.2f}B", str(prompt.input_ids.shape[1]), str(prompts)]
            lines.append([*about, *(f"{peak / 2**30:.1f}" for peak in peaks)])
    return markdown([*heads, "with --gradient_checkpointing"], lines)


def main(argv: list[str]) -> None:
    """The command line."""
    Parser("tools.growth", description=__doc__.partition("\n")[0]).parse_args(argv)
    print(seconds_table(), memory_table(), sep="\n")


if __name__ == "__main__":
    run_program(main, sys.argv[1:])
