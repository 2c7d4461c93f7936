"""What tools/bench.py measures: our update, rollout and step, and the usual way's, on models of
published shapes with random weights: time and memory don't depend on what these say.

Left out: engines that hold a second copy of the weights.
"""

import argparse
import copy
import tempfile
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
import transformers
from PIL import Image

import dyme
from config import Config
from data.example import THINK, Example
from grpo import grpo_loss
from lib.families import FAMILIES, prepare, processor_classes
from lib.optim import build_optimizer
from lib.tiny import tiny_tokenizer
from model import image_features, token_logprobs
from rollout import EXPLORE, SKIP, Group, Row, make_groups, rollout

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
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
        text["rope_parameters"] = {"rope_type": "default", "mrope_section": sections}
    roles = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = dict(zip(roles, tokenizer.convert_tokens_to_ids(tokens)))
    halves = {"text_config": text, "vision_config": tower, "tie_word_embeddings": True}
    config = transformers.AutoConfig.for_model(name, **halves, **ids, **tiles)
    processor_class, image_class = processor_classes(FAMILIES[name])
    template = tokenizer.chat_template.replace("<image>", placeholder)
    processor = processor_class(image_class(**images), tokenizer, chat_template=template, **texts)
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=size.dtype)
    model = prepare(model.to(device), freeze_vision)
    # no response may end early, so the end token is banned like the image placeholders
    model.forbidden_ids = sorted({*model.forbidden_ids, tokenizer.eos_token_id})
    return model, processor


def build_case(args: argparse.Namespace) -> SimpleNamespace:
    """What the sides work on: P groups of G rows of C random tokens, and what they are made of."""
    torch.set_num_threads(1)
    size, G = SIZES[args.size], args.num_generations
    P, C = args.prompts or size.prompts, size.completion_length
    case = SimpleNamespace(lengths={"num_generations": G, "max_completion_length": C})
    case.model, case.processor = build_model(size, DEVICE, not args.train_vision)
    settings = {"num_iterations": args.num_iterations, "freeze_vision": not args.train_vision}
    case.config = Config(**case.lengths, **settings, prompts_per_step=P, micro_batch_prompts=1)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (P, *size.image[::-1], 3), dtype=np.uint8)
    case.examples = [Example(Image.fromarray(p), "What is the value of red", "1") for p in pixels]
    case.groups = make_groups(case.model, case.processor, case.examples)
    for group in case.groups:
        completions = rng.integers(500, size.text[-1], (G, C)).tolist()
        group.rows = [Row(ids, rng.standard_normal()) for ids in completions]  # as advantages
    return case


def reward(completion_ids: list[list[int]], **kwargs) -> list[float]:
    """A reward that costs nothing and differs within a group, in the form that TRL calls."""
    return [float(sum(ids) % 97) for ids in completion_ids]


def update(case: SimpleNamespace) -> None:
    """Forward and backward of packed rows."""
    dyme.update(case.model, case.groups, case.config.num_generations, case.config)
    case.model.zero_grad()


def step(case: SimpleNamespace, skip: bool = False) -> None:
    """A whole step from the image to the optimizer. skip: every second group is all right."""
    model, config = case.model, case.config
    # its states count as memory; at learning rate 0 every step starts from the same weights
    optimizer = build_optimizer(model, learning_rate=0.0)
    groups = make_groups(model, case.processor, case.examples)
    for group in groups if config.freeze_vision else []:
        (group.prompt.features,) = image_features(model, [group.prompt])
    rollout(model, case.processor, groups, **case.lengths)
    for group in groups:
        rewards = reward([response.token_ids for response in group.responses])
        group.rewards = {"total": torch.tensor(rewards)}
        group.mode = SKIP if skip and group.place % 2 else EXPLORE
        group.rows = dyme.rows(config, 0, group, None, case.processor)
    for _ in range(config.num_iterations):
        dyme.update(model, groups, config.num_generations, config)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def batch(groups: list[Group]) -> dict[str, torch.Tensor]:
    """Prompts of one length as transformers takes them, one to a row."""
    prompts = [group.prompt for group in groups]
    rows = [
        {"input_ids": p.input_ids, "mm_token_type_ids": p.token_types} | p.images for p in prompts
    ]
    names = [name for name, value in rows[0].items() if value is not None]
    return {name: torch.cat([row[name] for row in rows]) for name in names}


def update_padded(case: SimpleNamespace) -> None:
    """The same update as TRL does it, from G rows [prompt, completion]; the tower runs G times."""
    for group in case.groups:
        ids = torch.tensor([row.token_ids for row in group.rows], device=DEVICE)  # (G, C)
        inputs, length = batch([group] * len(ids)), ids.shape[1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
        if (types := inputs.get("mm_token_type_ids")) is not None:
            inputs["mm_token_type_ids"] = torch.nn.functional.pad(types, (0, length))
        hidden = case.model.model(**inputs, use_cache=False).last_hidden_state  # (G, P + C, width)
        predictors = hidden[:, -length - 1 : -1].flatten(0, 1)
        logprobs = token_logprobs(case.model, predictors, ids.flatten())[0].view_as(ids)
        weights = torch.tensor([row.weight for row in group.rows], device=DEVICE)
        loss, _ = grpo_loss(logprobs, None, weights, torch.ones_like(logprobs), normalizer=len(ids))
        loss.backward()
    case.model.zero_grad()


def generate(case: SimpleNamespace, top_k: int = 0) -> torch.Tensor:
    """transformers' generate. Gives token ids (P * G, C). top_k: 1 is greedy."""
    inputs, (G, C) = batch(case.groups), case.lengths.values()
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    lengths = {"num_return_sequences": G, "max_new_tokens": C, "min_new_tokens": C}
    drawn = {"do_sample": True, "top_k": top_k, "suppress_tokens": case.model.forbidden_ids}
    pad = case.processor.tokenizer.pad_token_id
    return case.model.generate(**inputs, **lengths, **drawn, pad_token_id=pad)[:, -C:]


def trl_trainer(case: SimpleNamespace):
    """TRL's GRPOTrainer: one group to a micro-batch, no reference model, the same reward."""
    import datasets
    import trl

    # on a CPU TRL's head runs over every position; here as on a GPU, over the completions' alone
    trl.trainer.utils._use_triton = lambda device: True
    (G, C), updates = case.lengths.values(), case.config.num_iterations
    chats = [[{"role": "user", "content": f"{THINK}\n{e.question}"}] for e in case.examples]
    images = [example.image for example in case.examples]
    data = datasets.Dataset.from_dict({"image": images, "prompt": chats})
    settings = {"output_dir": tempfile.mkdtemp(), "learning_rate": 0.0, "loss_type": "grpo"}
    settings |= {"per_device_train_batch_size": G, "gradient_accumulation_steps": len(chats)}
    settings |= {"max_steps": updates, "num_iterations": updates, "gradient_checkpointing": False}
    settings |= {"save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    settings |= {"bf16": case.model.dtype == torch.bfloat16, **case.lengths}
    exact = {"min_new_tokens": C, "suppress_tokens": case.model.forbidden_ids}
    config = trl.GRPOConfig(**settings, generation_kwargs=exact)
    about = (copy.deepcopy(case.model), reward, config, data)
    trainer = trl.GRPOTrainer(*about, processing_class=case.processor)
    trainer.remove_callback(transformers.PrinterCallback)
    # with several updates TRL 1.16 hands an argument on to where it isn't known
    asked = trainer._get_per_token_logps_and_entropies
    known = lambda *args, batch_num_images=None, **kwargs: asked(*args, **kwargs)
    trainer._get_per_token_logps_and_entropies = known
    return trainer


SIDES = {
    "update": update,
    "update_padded": update_padded,
    "rollout": lambda case: rollout(case.model, case.processor, case.groups, **case.lengths),
    "generate_sequences": generate,
    "grpo_step": step,
    "dyme_step": lambda case: step(case, skip=True),
    "trl_step": lambda case: case.trainer.train(),
}
