"""What tools/bench.py times: our way and the usual way to do the same work, on the same Case.

Each side is a function of a Case that returns the function to be timed. The usual ways:
transformers' `generate`; an update on padded rows [G, P + C] as TRL does it, the vision tower run
G times, the head on completion rows alone; a whole step of TRL's GRPOTrainer. The models have
published shapes and random weights: time and memory don't depend on what the weights say. Left
out: engines that hold a second copy of the weights.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    Qwen2VLConfig,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
)

import dyme
from config import Config
from data import Example
from grpo import grpo_loss
from judge import Judge
from lib.families import checkpoint_activations, prepare, without_video
from lib.optim import build_optimizer
from lib.ranks import Ranks
from lib.tiny import tiny_tokenizer
from model import THINK, image_features, token_logprobs
from rollout import EXPLORE, SKIP, Group, Row, make_groups, rollout

CHART = (800, 557)  # ChartQA's usual image, pixels
FP32, BF16 = torch.float32, torch.bfloat16


# ---- models of published shapes ------------------------------------------------------------------


@dataclass
class Size:
    """What --size names. `image`, with `tiles`, settles the length of the prompt."""

    text: tuple  # width, layers, heads, key heads, MLP width, vocabulary
    vision: dict  # the tower's configuration, in transformers' names
    image: tuple[int, int]  # width and height in pixels
    tiles: list  # LLaVA-OneVision's choice of (rows, columns) of tiles; empty: Qwen2-VL
    completion_length: int
    prompts: int
    dtype: torch.dtype


def siglip(width: int, layers: int, heads: int, mlp: int, image_size: int) -> dict:
    """A SigLIP tower with 14 x 14 patches."""
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    patches = {"image_size": image_size, "patch_size": 14, "vision_use_head": False}
    return {**sizes, "intermediate_size": mlp, **patches}


# LLaVA-OneVision-0.5B with a quarter of the width and of the layers
QUARTER, QUARTER_TOWER = (256, 6, 4, 1, 1408, 11_264), siglip(288, 9, 4, 1076, 252)
# llava-hf/llava-onevision-qwen2-0.5b-ov-hf
HALF_B, HALF_B_TOWER = (896, 24, 14, 2, 4864, 152_000), siglip(1152, 26, 16, 4304, 384)
GRID = [(rows, columns) for rows in range(1, 7) for columns in range(1, 7)]
# Qwen/Qwen2-VL-2B-Instruct
TWO_B = (1536, 28, 12, 2, 8960, 151_936)
TWO_B_TOWER = {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16}
SMALL, SMALL_TOWER = (64, 2, 4, 1, 128, 1024), siglip(32, 1, 4, 64, 28)

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


def build_model(size: Size, device: str, freeze_vision: bool = True):
    """A model of the given shape and its processor, with the tiny model's tokenizer."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    text = dict(zip((*names, "intermediate_size", "vocab_size"), size.text))
    text.update(max_position_embeddings=32768, tie_word_embeddings=True)
    tokenizer = tiny_tokenizer()
    config, processor = (llava_onevision if size.tiles else qwen2_vl)(size, text, tokenizer)
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
    images = Qwen2VLImageProcessorPil()
    return config, without_video(Qwen2VLProcessor)(images, tokenizer, chat_template=template)


# ---- the case ------------------------------------------------------------------------------------


@dataclass
class Case:
    """A model, the flags of a step, P groups; random completions (P) x (G) x C token ids."""

    args: argparse.Namespace
    model: torch.nn.Module
    processor: object
    config: Config
    groups: list[Group]
    completions: list
    weights: torch.Tensor  # (P, G), as advantages


def build_case(args: argparse.Namespace, num_generations: int | None = None) -> Case:
    """What the command line asks for; the same whenever it is called with the same arguments."""
    size = SIZES[args.size]
    model, processor = build_model(size, args.device, not args.train_vision)
    if args.gradient_checkpointing:
        checkpoint_activations(model)
    config = Config(
        method="grpo",
        num_generations=num_generations or args.num_generations,
        max_completion_length=args.completion_length or size.completion_length,
        prompts_per_step=args.prompts or size.prompts,
        micro_batch_prompts=1,
    )
    rng = np.random.default_rng(0)
    width, height = size.image
    shape = (config.prompts_per_step, config.num_generations)
    pixels = rng.integers(0, 256, (shape[0], height, width, 3), dtype=np.uint8)
    question = "What is the value of red"
    examples = [Example(Image.fromarray(image), question, answer="1") for image in pixels]
    completions = rng.integers(
        len(processor.tokenizer), size.text[-1], (*shape, config.max_completion_length)
    )
    weights = torch.from_numpy(rng.standard_normal(shape)).float().to(args.device)
    groups = make_groups(model, processor, examples)
    return Case(args, model, processor, config, groups, completions.tolist(), weights)


def now(model) -> float:
    """Seconds on the clock, once the device has finished what it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# ---- our sides -----------------------------------------------------------------------------------


def update(case: Case, every: int = 1) -> Callable:
    """Forward and backward of all groups, or of every second one, as packed rows."""

    def run():
        groups = []
        for group, completions, weights in zip(case.groups, case.completions, case.weights):
            rows = [Row(ids, weight) for ids, weight in zip(completions, weights.tolist())]
            groups.append(replace(group, prompt=replace(group.prompt), rows=rows))
        case.model.train(case.args.gradient_checkpointing)
        dyme.update(case.model, groups[::every], case.weights.numel(), case.config)
        case.model.eval()
        case.model.zero_grad()

    return run


def own_rollout(case: Case, temperature: float = 1.0) -> Callable:
    """Our decode loop; gives token ids (P * G, C)."""

    def run():
        rollout(
            case.model,
            case.processor,
            case.groups,
            num_generations=case.config.num_generations,
            max_completion_length=case.config.max_completion_length,
            temperature=temperature,
        )
        return [response.token_ids for group in case.groups for response in group.responses]

    return run


def reward(completion_ids: list[list[int]], **kwargs) -> list[float]:
    """A reward that costs nothing and differs within a group, in the form that TRL calls."""
    return [float(sum(ids) % 97) for ids in completion_ids]


def step(case: Case, skip: bool = False, judge: Judge | None = None) -> Callable:
    """A whole step from the image to the optimizer. skip: every second group is all right. judge:
    it is asked about every response.
    """
    config, model = case.config, case.model
    optim = "adamw_bf16" if model.dtype == BF16 else "adamw"
    # at learning rate 0 every step starts from the same weights
    optimizer = build_optimizer(model, optim, learning_rate=0.0)
    examples = [group.example for group in case.groups]

    def hear(group: Group, g: int) -> None:
        if judge:  # of the right form, and no two alike
            text = f"Now it is {time.time()}.\nAnswer: 1"
            group.responses[g] = replace(group.responses[g], text=text, truncated=False)
            judge.hear(group, g)
        else:
            total = group.rewards.setdefault("total", torch.zeros(config.num_generations))
            total[g] = reward([group.responses[g].token_ids])[0]

    def run():
        groups = make_groups(model, case.processor, examples)
        for group in groups if not case.args.train_vision else []:
            group.prompt.features = image_features(model, group.prompt)
        rollout(
            model,
            case.processor,
            groups,
            num_generations=config.num_generations,
            max_completion_length=config.max_completion_length,
            on_response=hear,
        )
        for group in groups:
            group.mode = SKIP if skip and group.place % 2 else EXPLORE
        model.train(case.args.gradient_checkpointing)
        for ready in judge.ready(groups) if judge else [groups]:
            for group in ready:
                group.rows = dyme.rows(config, 0, group, judge, case.processor)
            dyme.update(model, ready, case.weights.numel(), config)
        model.eval()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if judge:
            judge.end_step(0, groups, Ranks())

    return run


# ---- the usual sides -----------------------------------------------------------------------------


def padded_logprobs(case: Case, p: int) -> torch.Tensor:
    """Log-probabilities (G, C) of prompt p's completions from G rows [prompt, completion]."""
    prompt, rows = case.groups[p].prompt, case.config.num_generations
    completions = torch.tensor(case.completions[p], device=prompt.input_ids.device)  # (G, C)
    inputs = {"input_ids": torch.cat([prompt.input_ids.expand(rows, -1), completions], dim=1)}
    inputs.update({name: torch.cat([value] * rows) for name, value in prompt.images.items()})
    if prompt.token_types is not None:
        types = torch.cat([prompt.token_types, torch.zeros_like(completions[:1])], dim=1)
        inputs["mm_token_type_ids"] = types.expand(rows, -1)
    hidden = case.model.model(**inputs, use_cache=False).last_hidden_state  # (G, P + C, width)
    predictors = hidden[:, prompt.input_ids.shape[1] - 1 : -1].flatten(0, 1)
    logprobs, _ = token_logprobs(case.model, predictors, completions.flatten())
    return logprobs.view_as(completions)


def update_padded(case: Case) -> Callable:
    """The same update from padded rows, one prompt after the other."""

    def run():
        case.model.train(case.args.gradient_checkpointing)
        for p, weights in enumerate(case.weights):
            logprobs = padded_logprobs(case, p)
            mask = torch.ones_like(logprobs)
            loss, _ = grpo_loss(logprobs, None, weights, mask, normalizer=case.weights.numel())
            loss.backward()
        case.model.eval()
        case.model.zero_grad()

    return run


def generate(case: Case, repeat: bool, greedy: bool = False) -> Callable:
    """transformers' generate: prompts repeated G times, or num_return_sequences. Gives token ids
    (P * G, C).
    """
    generations, length = case.config.num_generations, case.config.max_completion_length
    rows = generations if repeat else 1
    prompts = [group.prompt for group in case.groups]
    each = [{"input_ids": p.input_ids, "mm_token_type_ids": p.token_types} for p in prompts]
    each = [{**tensors, **prompt.images} for tensors, prompt in zip(each, prompts)]
    names = [name for name, value in each[0].items() if value is not None]
    inputs = {name: torch.cat([p[name] for p in each for _ in range(rows)]) for name in names}
    sampling = {"do_sample": not greedy}
    if not greedy:
        sampling.update(temperature=1.0, top_p=1.0, top_k=0)
    settings = dict(
        attention_mask=torch.ones_like(inputs["input_ids"]),
        num_return_sequences=generations // rows,
        max_new_tokens=length,
        min_new_tokens=length,
        suppress_tokens=case.model.forbidden_ids,
        pad_token_id=case.processor.tokenizer.pad_token_id,
        **sampling,
    )
    return lambda: case.model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]


def trl_step(case: Case) -> Callable:
    """A whole step of TRL's GRPOTrainer: one group to a micro-batch, no reference model, the same
    reward. Gives its own clock's seconds, without what train() sets up.
    """
    import datasets
    import trl
    from transformers import PrinterCallback, TrainerCallback

    # on a CPU TRL's head runs over every position; here as on a GPU, over the completions' alone
    trl.trainer.utils._use_triton = lambda device: True

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.start = now(case.model)

        def on_step_end(self, *args, **kwargs):
            self.seconds = now(case.model) - self.start

    examples = [group.example for group in case.groups]
    rows = [{"image": e.image, "prompt": f"{THINK}\n{e.question}"} for e in examples]
    rows = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    length = case.config.max_completion_length
    settings = trl.GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=1,
        learning_rate=0.0,
        per_device_train_batch_size=case.config.num_generations,
        gradient_accumulation_steps=len(rows),
        num_generations=case.config.num_generations,
        max_completion_length=length,
        generation_kwargs={"min_new_tokens": length, "suppress_tokens": case.model.forbidden_ids},
        loss_type="grpo",
        bf16=case.model.dtype == BF16,
        gradient_checkpointing=case.args.gradient_checkpointing,
        use_cpu=case.model.device.type == "cpu",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    clock = Clock()
    trainer = trl.GRPOTrainer(
        model=copy.deepcopy(case.model),
        reward_funcs=reward,
        args=settings,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=case.processor,
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)

    def run():
        trainer.train()
        return clock.seconds

    return run
