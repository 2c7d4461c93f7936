"""What a step costs, on paper: seconds from formulas, checked against the bench; memory by model.

    python -m tools.growth        the formulas against kept results, and what a 24 GB card would do

Nothing here is measured but what the bench's files hold. Left out: the optimizer's step, drawing
from the distribution, scoring, and whatever the machine does between two matrix products.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from data.example import Example
from lib.log import run_program
from lib.memory import memory_estimate, shape_of
from model import encode_prompt
from tools.shapes import CHART, SIZES, build_model

RESULTS = Path(__file__).parent.parent / "results"


@dataclass
class Model:
    """The sizes that cost: of the language model, of the vision tower, and of a usual prompt."""

    text: tuple  # width, layers, heads, key heads, MLP's width, vocabulary: shapes.TEXT
    tower: tuple  # width, layers, MLP's width
    patches: int  # that the tower sees of an image
    tile: int  # patches that see each other
    prompt: int = 0  # tokens
    image: float = 0.0  # seconds of the image processor, on one CPU core


@dataclass
class Machine:
    """How fast: matrix products of a prompt or an update, those of one decode step, and memory."""

    rate: float  # FLOP per second
    decode_rate: float
    bandwidth: float  # bytes per second; infinite where the decode rate holds it
    per_layer: float  # seconds of a layer in a decode step that do no arithmetic
    size: int  # bytes of a number


def parts(model: Model, machine: Machine, prompt: int, P: int, G: int, C: int) -> dict[str, float]:
    """Seconds of a step's parts, for P prompts of `prompt` tokens and G responses of C to each.

    padded: an update from G rows [prompt, response], the tower run for each. An update costs three
    forwards; a token's product with a matrix of n numbers 2n FLOP, attention 4 * width * keys.
    """
    width, layers, heads, key_heads, mlp, vocabulary = model.text
    key_width = width // heads * key_heads
    numbers = layers * width * (2 * width + 2 * key_width + 3 * mlp)
    head = vocabulary * width
    attention = 4 * layers * width  # per query and key
    own = 2 * numbers * prompt + attention * prompt**2 / 2  # one prompt, once
    token = 2 * numbers + attention * (prompt + C / 2) + 2 * head  # one token of a response

    tower_width, tower_layers, tower_mlp = model.tower
    patch = 2 * (4 * tower_width**2 + 2 * tower_width * tower_mlp) + 4 * tower_width * model.tile
    tower = tower_layers * patch * model.patches

    cached = 2 * layers * key_width * machine.size  # bytes of a token's keys and values
    read = machine.size * (numbers + head) + cached * P * prompt
    read += 3 * cached * P * G * C / 2  # what the responses have said is read, and moved once
    step = layers * machine.per_layer + P * G * token / machine.decode_rate
    return {
        "tower": P * tower / machine.rate,
        "prefill": P * own / machine.rate,
        "decode": C * (step + read / machine.bandwidth),
        "update": 3 * P * (own + G * C * token) / machine.rate,
        "padded": P * G * (3 * own + 3 * C * token + tower) / machine.rate,
    }


# ---- against the bench --------------------------------------------------------------------------

# one core of the bench's machine: three constants, set by hand
CORE = Machine(76e9, 52e9, float("inf"), 1.0e-3, 4)
SIDES = {
    "update": ("tower", "update"),
    "update_padded": ("padded",),
    "rollout": ("tower", "prefill", "decode"),
    "grpo_step": ("tower", "prefill", "decode", "update"),
}


def compare() -> list[tuple[str, float, float]]:
    """(what, seconds measured, seconds computed) of each side of the bench's kept results."""
    found = []
    for name in ("p700", "p700x4", "p3000"):
        result = json.loads((RESULTS / f"bench-{name}.json").read_text())
        size = SIZES[result["size"]]
        width, layers, _, mlp, side = size.tower
        tile = (side // 14) ** 2
        rows, columns = size.tiles[0]
        model = Model(size.text, (width, layers, mlp), tile * (rows * columns + 1), tile)
        shape = (result["P"], result["prompts"], result["G"], result["C"])
        seconds = parts(model, CORE, *shape)
        for side, named in SIDES.items():
            computed = sum(seconds[part] for part in named)
            found.append((f"{name}, {side}", min(result["seconds"][side]), computed))
    return found


# ---- a 24 GB card -------------------------------------------------------------------------------

# an RTX 4090 by its data sheet, 165 TFLOP/s (bf16) and 1008 GB/s, at 40 and 60 %
CARD = Machine(66e12, 66e12, 605e9, 1.0e-3, 2)
CHARTQA = 28_299  # training questions
FAMILIES = {  # by their config.json, and what a chart of 800 x 557 pixels is to them
    "LLaVA-OneVision-0.5B": Model(SIZES["0.5b"].text, (1152, 26, 4304), 7290, 729, 4972, 0.055),
    "InternVL3-1B": Model(
        (896, 24, 14, 2, 4864, 151_674), (1024, 24, 4096), 7175, 1025, 1830, 0.066
    ),
    "SmolVLM-500M": Model(
        (960, 32, 15, 5, 2560, 49_280), (768, 12, 3072), 13_312, 1024, 930, 0.205
    ),
    "Qwen2-VL-2B": Model(SIZES["2b"].text, (1280, 32, 5120), 2240, 2240, 613, 0.022),
}


def seconds_table(prompts: int = 32, G: int = 8, C: int = 150) -> str:
    """Seconds per step and hours of ten epochs on CARD, computed, all groups explored."""
    heads = (
        "model | prompt, tokens | images | tower | prefill | decode | update | s per step | hours"
    )
    lines = [f"| {heads} |", "| --- " * 9 + "|"]
    for name, model in FAMILIES.items():
        seconds = parts(model, CARD, model.prompt, prompts, G, C)
        del seconds["padded"]
        seconds = {"images": prompts * model.image, **seconds}
        step = sum(seconds.values())
        cells = [name, str(model.prompt), *(f"{value:.1f}" for value in seconds.values())]
        hours = step * 10 * CHARTQA / prompts / 3600
        lines.append(f"| {' | '.join([*cells, f'{step:.0f}', f'{hours:.0f}'])} |")
    return "\n".join(lines)


def memory_table() -> str:
    """The peak of a step, computed by lib/memory.py for published shapes without weights: a chart
    of 800 x 557 pixels, G 8, C 300, bf16.
    """
    heads = "model | parameters | prompt, tokens | prompts per step | peak, GiB"
    lines = [f"| {heads} | with --gradient_checkpointing |", "| --- " * 6 + "|"]
    example = Example(Image.new("RGB", CHART), "What is the highest value?", "1")
    for size, name in (("0.5b", "LLaVA-OneVision-0.5B"), ("2b", "Qwen2-VL-2B")):
        with torch.device("meta"):
            model, processor = build_model(SIZES[size], "meta")
        prompt = encode_prompt(processor, example)
        count = sum(p.numel() for p in model.parameters()) / 1e9
        about = f"| {name} | {count:.2f}B | {prompt.input_ids.shape[1]}"
        for prompts in (8, 32):
            settings = dict(num_generations=8, max_completion_length=300, prompts_per_step=prompts)
            shapes = [
                shape_of(model, prompt, **settings, gradient_checkpointing=on) for on in (0, 1)
            ]
            peaks = [memory_estimate(model, shape)["peak"] / 2**30 for shape in shapes]
            lines.append(f"{about} | {prompts} | {peaks[0]:.1f} | {peaks[1]:.1f} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """The command line."""
    for what, measured, computed in compare():
        print(f"{what}: {measured:.2f} s, computed {computed:.2f}, {computed / measured:.2f}")
    print(seconds_table())
    print(memory_table())


if __name__ == "__main__":
    run_program(main, sys.argv[1:])
