"""
Speed and memory, ours against the usual way: one command, one table.

    python bench.py --size p700                 on one CPU thread; --prompts 4 for four prompts to a step
    python bench.py --size 0.5b --json out.json on a GPU; 0.5b and 2b have the published models' shapes
    python bench.py --judge_overlap             what a judge that takes a second costs a step

Every row is from one run: the same random weights, prompts, G and C on both sides, the sides taken
in turn, medians. Every response has exactly C tokens: the end token is banned. Memory is the peak
beyond the loaded model, of each side in a process of its own. A ratio is the reference's figure
divided by ours.

The references: `generate`; an update on padded rows [G, P + C] as TRL does it, the vision tower
run G times, the head on completion rows alone; a whole step of TRL's GRPOTrainer, when TRL is
installed, its head treated likewise. Left out: quality (evaluate.py), several GPUs, engines that
hold a second copy of the weights.
"""

import argparse
import copy
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from transformers import (
    AutoModelForImageTextToText,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessorPil,
)
from transformers import (
    LlavaOnevisionProcessor,
    Qwen2VLConfig,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
)

import dyme
import judge
from data import Example
from families import checkpoint_activations, prepare, without_video
from grpo import group_advantages, grpo_loss
from model import (
    THINK,
    completion_logprobs,
    encode_prompt,
    image_features,
    prompt_to,
    token_logprobs,
)
from optim import build_optimizer
from rollout import rollout
from tiny import tiny_tokenizer

# -------------------------------------------------------------------------------------------------
# the shapes


@dataclass
class Size:
    text: tuple  # width, layers, heads, key heads, MLP width, vocabulary
    vision: dict  # the tower's configuration, in transformers' names
    image: tuple[int, int]  # width and height in pixels: they settle the length of the prompt
    tiles: list[
        tuple[int, int]
    ]  # LLaVA-OneVision's choice of rows x columns of tiles; empty: Qwen2-VL
    completion_length: int
    prompts: int
    dtype: torch.dtype


def siglip(width, layers, heads, mlp, image_size):
    """A SigLIP tower with 14 x 14 patches."""
    sizes = dict(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=mlp,
    )
    return {**sizes, "image_size": image_size, "patch_size": 14, "vision_use_head": False}


QUARTER = (
    256,
    6,
    4,
    1,
    1408,
    11_264,
)  # LLaVA-OneVision-0.5B with a quarter of the width and of the layers
QUARTER_TOWER = siglip(288, 9, 4, 1076, 252)
QWEN_TOWER = dict(depth=32, embed_dim=1280, hidden_size=1536, num_heads=16)
CHART = (800, 557)  # ChartQA's usual image
GRID = [(rows, columns) for rows in range(1, 7) for columns in range(1, 7)]
FP32, BF16 = torch.float32, torch.bfloat16
SIZES = {
    "small": Size(
        (64, 2, 4, 1, 128, 1024), siglip(32, 1, 4, 64, 28), (28, 28), [(1, 1)], 6, 2, FP32
    ),
    "p700": Size(QUARTER, QUARTER_TOWER, (252, 252), [(1, 1)], 128, 1, FP32),
    "p3000": Size(QUARTER, QUARTER_TOWER, (1008, 504), [(2, 4)], 128, 1, FP32),
    # llava-hf/llava-onevision-qwen2-0.5b-ov-hf
    "0.5b": Size(
        (896, 24, 14, 2, 4864, 152_000), siglip(1152, 26, 16, 4304, 384), CHART, GRID, 256, 4, BF16
    ),
    # Qwen/Qwen2-VL-2B-Instruct
    "2b": Size((1536, 28, 12, 2, 8960, 151_936), QWEN_TOWER, CHART, [], 256, 4, BF16),
}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_model(size: Size, device, freeze_vision: bool = True):
    """
    A model of the given shape with random weights, and its processor, with the tiny tokenizer.
    """
    width, layers, heads, key_heads, mlp, vocabulary = size.text
    text = dict(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
    )
    text.update(
        intermediate_size=mlp,
        vocab_size=vocabulary,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )
    tokenizer = tiny_tokenizer()
    if size.tiles:
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
        processor = without_video(LlavaOnevisionProcessor)(
            LlavaOnevisionImageProcessorPil(
                size={"height": side, "width": side}, image_grid_pinpoints=pinpoints
            ),
            tokenizer,
            num_image_tokens=(side // 14) ** 2,
            vision_feature_select_strategy="full",
            chat_template=TEMPLATE.replace("IMAGE", "<image>"),
        )
    else:
        tokens = ["<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>"]
        names = [
            "vision_start_token_id",
            "image_token_id",
            "video_token_id",
            "vision_end_token_id",
        ]
        tokenizer.add_special_tokens({"additional_special_tokens": tokens})
        eighth = (
            width // heads // 16
        )  # of the rotary frequencies: 2, 3 and 3 for time, height and width
        sections = [2 * eighth, 3 * eighth, 3 * eighth]
        text["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": sections,
        }
        ids = dict(zip(names, tokenizer.convert_tokens_to_ids(tokens)))
        config = Qwen2VLConfig(
            text_config=text, vision_config=size.vision, tie_word_embeddings=True, **ids
        )
        template = TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
        processor = without_video(Qwen2VLProcessor)(
            Qwen2VLImageProcessorPil(), tokenizer, chat_template=template
        )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=size.dtype).to(device)
    model = prepare(model, freeze_vision)
    # no response may end early, so the end token is banned like the image placeholders
    model.forbidden_ids = sorted({*model.forbidden_ids, tokenizer.eos_token_id})
    return model, processor


@dataclass
class Case:
    """
    A model, P examples and their prompts; random completions for updates: (P) lists of (G) lists
    of C token ids.
    """

    args: argparse.Namespace
    model: torch.nn.Module
    processor: object
    examples: list
    prompts: list
    completions: list
    advantages: torch.Tensor  # (P, G)
    num_generations: int
    completion_length: int


def build_case(args, num_generations: int | None = None) -> Case:
    """What the command line asks for; the same whenever it is called with the same arguments."""
    size = SIZES[args.size]
    model, processor = build_model(size, args.device, not args.train_vision)
    if args.gradient_checkpointing:
        checkpoint_activations(model)
    count, width, height = args.prompts or size.prompts, *size.image
    shape = (
        count,
        num_generations or args.num_generations,
        args.completion_length or size.completion_length,
    )
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for _ in range(count)
    ]
    examples = [
        Example(image=image, question="What is the value of red", answer="1") for image in images
    ]
    prompts = [prompt_to(encode_prompt(processor, example), args.device) for example in examples]
    completions = rng.integers(len(processor.tokenizer), size.text[-1], shape).tolist()
    advantages = torch.from_numpy(rng.standard_normal(shape[:2])).float().to(args.device)
    return Case(args, model, processor, examples, prompts, completions, advantages, *shape[1:])


# -------------------------------------------------------------------------------------------------
# the sides: each takes a Case and returns the function that is timed


def update(case: Case, groups: range | None = None):
    """Forward and backward of the explored groups (default: all) as packed rows."""
    groups = range(len(case.prompts)) if groups is None else groups
    explored = [
        dyme.Group(p, dyme.EXPLORE, case.completions[p], case.advantages[p]) for p in groups
    ]

    def run():
        case.model.train(case.args.gradient_checkpointing)
        dyme.packed_update(case.model, case.prompts, explored, normalizer=case.advantages.numel())
        case.model.eval()
        case.model.zero_grad()

    return run


def padded_logprobs(case: Case, p: int) -> torch.Tensor:
    """
    The log-probabilities (G, C) of prompt p's completions from G rows [prompt, completion] of P +
    C tokens.
    """
    prompt, rows = case.prompts[p], case.num_generations
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


def update_padded(case: Case):
    """The same update from padded rows, one prompt after the other."""

    def run():
        case.model.train(case.args.gradient_checkpointing)
        for p in range(len(case.prompts)):
            logprobs = padded_logprobs(case, p)
            mask = torch.ones_like(logprobs)
            loss, _ = grpo_loss(
                logprobs, None, case.advantages[p], mask, normalizer=case.advantages.numel()
            )
            loss.backward()
        case.model.eval()
        case.model.zero_grad()

    return run


def own_rollout(case: Case, length: int | None = None, temperature: float = 1.0):
    """Our decode loop; length 1 is the prefill alone."""
    sizes = (case.num_generations, length or case.completion_length, temperature)
    return lambda: rollout(case.model, case.processor, case.prompts, *sizes)


def generate(case: Case, repeat: bool, greedy: bool = False):
    """
    transformers' generate: every prompt repeated G times, or num_return_sequences. Gives token ids
    (P * G, C).
    """
    rows = case.num_generations if repeat else 1
    each = [
        {"input_ids": p.input_ids, "mm_token_type_ids": p.token_types, **p.images}
        for p in case.prompts
    ]
    names = [name for name, value in each[0].items() if value is not None]
    inputs = {
        name: torch.cat([prompt[name] for prompt in each for _ in range(rows)]) for name in names
    }
    settings = dict(
        attention_mask=torch.ones_like(inputs["input_ids"]),
        num_return_sequences=case.num_generations // rows,
        max_new_tokens=case.completion_length,
        min_new_tokens=case.completion_length,
        suppress_tokens=case.model.forbidden_ids,
        pad_token_id=case.processor.tokenizer.pad_token_id,
        **(
            dict(do_sample=False)
            if greedy
            else dict(do_sample=True, temperature=1.0, top_p=1.0, top_k=0)
        ),
    )
    return lambda: case.model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]


def reward(completion_ids, **kwargs):
    """A reward that costs nothing and differs within a group, in the form that TRL calls."""
    return [float(sum(ids) % 97) for ids in completion_ids]


def step(case: Case, skip: bool = False, judging=None):
    """
    A whole step from the image to the optimizer, as train.py does it.

    skip: every second group turns out all right. judging: a judge.Judge that is asked about every
    response.
    """
    optim = "adamw_bf16" if case.model.dtype == BF16 else "adamw"
    optimizer = build_optimizer(
        case.model, optim, learning_rate=0.0
    )  # every step starts from the same weights
    sizes = (case.num_generations, case.completion_length)
    modes = torch.full((len(case.prompts),), dyme.EXPLORE)
    if skip:
        modes[1::2] = dyme.SKIP

    def run():
        prompts = [
            prompt_to(encode_prompt(case.processor, example), case.model.device)
            for example in case.examples
        ]
        if not case.args.train_vision:
            for prompt in prompts:
                prompt.features = image_features(case.model, prompt)
        calls = [
            judge.Calls(example, case.num_generations, switch=False) for example in case.examples
        ]

        def ask(p, g, response):
            judge.add_response(
                judging,
                calls[p],
                g,
                f"{time.time()} {p} {g}\nAnswer: 1",
                formatted=True,
                correct=True,
            )

        responses = rollout(
            case.model, case.processor, prompts, *sizes, on_response=ask if judging else None
        )
        rewards = torch.tensor(
            [reward([response.token_ids for response in group]) for group in responses]
        )  # (P, G)
        advantages = group_advantages(rewards)
        case.model.train(case.args.gradient_checkpointing)
        for p in judge.as_finished(judging, calls) if judging else range(len(prompts)):
            groups = dyme.build_groups([p], modes, responses, advantages, {}, 1.0)
            dyme.packed_update(case.model, prompts, groups, normalizer=rewards.numel())
        case.model.eval()
        torch.nn.utils.clip_grad_norm_(case.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return run


def trl_step(case: Case):
    """
    A whole step of TRL's GRPOTrainer: one group to a micro-batch, no reference model, the same
    reward.
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

    clock = Clock()
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{THINK}\n{example.question}"}],
            "image": example.image,
        }
        for example in case.examples
    ]
    settings = trl.GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=1,
        learning_rate=0.0,
        per_device_train_batch_size=case.num_generations,
        gradient_accumulation_steps=len(rows),
        num_generations=case.num_generations,
        max_completion_length=case.completion_length,
        generation_kwargs=dict(
            min_new_tokens=case.completion_length, suppress_tokens=case.model.forbidden_ids
        ),
        loss_type="grpo",
        bf16=case.model.dtype == BF16,
        gradient_checkpointing=case.args.gradient_checkpointing,
        use_cpu=case.model.device.type == "cpu",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
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
        return clock.seconds  # without what train() itself sets up

    return run


def pair(case: Case) -> Case:
    """The case with at least two prompts, so that half of them can be skipped."""
    if len(case.prompts) > 1:
        return case
    return replace(
        case,
        prompts=case.prompts * 2,
        completions=case.completions * 2,
        advantages=case.advantages.repeat(2, 1),
    )


SIDES = {
    "update": update,
    "update_padded": update_padded,
    "rollout": own_rollout,
    "prefill": lambda case: own_rollout(case, 1),
    "generate_repeated": lambda case: generate(case, repeat=True),
    "generate_sequences": lambda case: generate(case, repeat=False),
    "grpo_step": step,
    "dyme_step": lambda case: step(case, skip=True),
    "trl_step": trl_step,
    "update_all": lambda case: update(pair(case)),
    "update_half": lambda case: update(pair(case), range(0, len(pair(case).prompts), 2)),
    "update_4g": lambda case: update(build_case(case.args, 4 * case.num_generations)),
}
ROWS = [  # what, against what, and the names of their sides
    ("update, packed", "padded rows", "update", "update_padded"),
    ("rollout", "generate, repeated prompts", "rollout", "generate_repeated"),
    ("rollout", "generate, num_return_sequences", "rollout", "generate_sequences"),
    ("GRPO step", "TRL's GRPOTrainer", "grpo_step", "trl_step"),
    ("DyME step, half of the groups skipped", "TRL's GRPOTrainer", "dyme_step", "trl_step"),
    ("update, half of the groups skipped", "all explored", "update_half", "update_all"),
    ("update, G", "4 G", "update", "update_4g"),
]

# -------------------------------------------------------------------------------------------------
# measuring

CLOCK = {"now": time.perf_counter}


def now(model) -> float:
    """Seconds on the clock, once the device has finished what it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return CLOCK["now"]()


def times(names: list[str], case: Case) -> dict[str, list[float]]:
    """
    Seconds of each side, `repeats` of them, the sides taken in turn. A side that doesn't fit in
    memory is left off.
    """
    sides = {name: SIDES[name](case) for name in names}
    seconds = {name: [] for name in names}
    for name in tqdm(names * case.args.repeats, desc="bench", unit="run"):
        if name not in sides:
            continue
        start = now(case.model)
        try:
            own_clock = sides[name]()
        except torch.OutOfMemoryError:
            del sides[name], seconds[name]
            continue
        elapsed = now(case.model) - start
        seconds[name].append(own_clock if isinstance(own_clock, float) else elapsed)
    return seconds


def peak(name: str, args) -> int:
    """
    Bytes at the peak of a side beyond what the loaded model takes; for a process that does nothing
    else.
    """
    case = build_case(args)
    run = SIDES[name](case)
    cuda = case.model.device.type == "cuda"

    def highest():
        unit = 1 if sys.platform == "darwin" else 1024
        return (
            torch.cuda.max_memory_allocated()
            if cuda
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        )

    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before = highest()
    run()
    if "step" in name:
        run()  # with the optimizer's state there from the start
    return highest() - before


def peak_elsewhere(name: str, argv: list[str]) -> int | None:
    """`peak` in a process of its own; None where it failed."""
    command = [sys.executable, __file__, *argv, "--measure", name]
    # glibc else keeps freed blocks of up to 32 MB, by chance more or less of them
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])["bytes"] if done.returncode == 0 else None


def exactness(case: Case) -> dict[str, float]:
    """
    Packed against padded: the largest difference of a log-probability, in nats, and of a gradient,
    as a share of the largest gradient. Our greedy tokens against generate's: the share that is the
    same.
    """
    packed, _ = completion_logprobs(case.model, case.prompts[0], case.completions[0])
    logprobs, gradients = [packed, padded_logprobs(case, 0)], []
    for values in logprobs:
        case.model.zero_grad()
        (values * case.advantages[0][:, None]).mean().backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in case.model.parameters() if p.grad is not None])
        )
    case.model.zero_grad()
    ours = own_rollout(case, temperature=0.0)()
    theirs = generate(replace(case, num_generations=1), repeat=True, greedy=True)().tolist()
    same = [
        a == b
        for group, row in zip(ours, theirs)
        for r in group
        for a, b in zip(r.token_ids, row, strict=True)
    ]
    return {
        "log-probs, largest difference": (logprobs[0] - logprobs[1]).abs().max().item(),
        "gradients, largest difference / largest": (
            (gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max()
        ).item(),
        "greedy tokens that are the same": sum(same) / len(same),
    }


def roofline(case: Case, seconds: dict[str, float]) -> dict[str, float]:
    """
    Which share of what the machine can do the decode loop and the update reach.

    A decode step must read the language model's weights and the keys and values once: its share is
    of the bandwidth of a copy. An update does 6 operations per weight and token: its share, the
    vision tower not counted, is of a matmul's rate.
    """
    model, config = case.model, case.model.config.get_text_config()
    cuda = model.device.type == "cuda"
    side = 8192 if cuda else 1024
    a = torch.randn(side, side, device=model.device, dtype=model.dtype)
    source = torch.ones(2**30 if cuda else 2**28, dtype=torch.uint8, device=model.device)
    target = torch.empty_like(source)

    def fastest(run):
        laps = [now(model) for _ in range(8) if run() is not None]
        return min(end - start for start, end in zip(laps, laps[1:]))

    bandwidth = 2 * source.numel() / fastest(lambda: target.copy_(source))  # read and written
    arithmetic = 2 * side**3 / fastest(lambda: a @ a)

    body = sum(p.numel() for p in model.model.language_model.layers.parameters())
    head = model.get_output_embeddings().weight.numel()
    lengths = [prompt.input_ids.shape[1] for prompt in case.prompts]
    tokens, length = case.num_generations * case.completion_length, case.completion_length
    slot = (
        2
        * config.num_hidden_layers
        * config.num_key_value_heads
        * config.hidden_size
        // config.num_attention_heads
    )
    cached = sum(lengths) + len(lengths) * tokens / 2  # the suffixes are half full on average
    decode = (seconds["rollout"] - seconds["prefill"]) / (length - 1)  # of one step
    read = (body + head + slot * cached) * model.dtype.itemsize
    # (query, key) pairs: half of the own sequence, all of the prompt; 4 operations each way, three
    # times with the backward
    pairs = sum(prompt**2 / 2 + tokens * (prompt + length / 2) for prompt in lengths)
    attention = 12 * config.num_hidden_layers * config.hidden_size * pairs
    operations = (
        6 * body * sum(prompt + tokens for prompt in lengths)
        + 6 * head * tokens * len(lengths)
        + attention
    )
    return {
        "bandwidth of a copy, GB/s": bandwidth / 1e9,
        "arithmetic of a matmul, TFLOP/s": arithmetic / 1e12,
        "decode, tokens/s": len(lengths) * case.num_generations / decode,
        "decode, share of the bandwidth": read / decode / bandwidth,
        "update, share of the arithmetic": operations / seconds["update"] / arithmetic,
    }


def judge_overlap(args) -> dict[str, float]:
    """
    Seconds of a step without a judge, and with one that takes args.judge_seconds for each of the P
    * G responses.

    The worst case for the overlap: all responses end together, so that only the updates are left
    to hide the calls.
    """

    class Sleeper(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(args.judge_seconds)
            body = json.dumps(
                {"choices": [{"message": {"role": "assistant", "content": "medium"}}]}
            ).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *parts):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Sleeper)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    judging = judge.open_judge(f"http://127.0.0.1:{server.server_port}/v1", "sleeper")
    case = build_case(args)
    runs = {
        "step without a judge, s": step(case),
        "step with a judge, s": step(case, judging=judging),
    }
    seconds = {name: [] for name in runs}
    for name in tqdm([*runs] * args.repeats, desc="judge", unit="run"):
        start = now(case.model)
        runs[name]()
        seconds[name].append(now(case.model) - start)
    judge.close_judge(judging)
    server.shutdown()
    medians = {name: statistics.median(laps) for name, laps in seconds.items()}
    alone = args.judge_seconds * case.advantages.numel() / 8  # 8 requests at a time
    return {
        **medians,
        "the calls alone, s": alone,
        "ratio": medians["step with a judge, s"] / medians["step without a judge, s"],
    }


def table(rows: list[dict]) -> str:
    """The rows as markdown."""
    lines = [
        "| what | s | MB | against | s | MB | time ratio | memory ratio |",
        "| --- " * 8 + "|",
    ]
    for row in rows:
        cells = []
        for what in ("ours", "against"):
            seconds, size = row[f"{what}_seconds"], row[f"{what}_bytes"]
            cells += [
                row[what],
                f"{seconds:.2f}" if seconds else "-",
                f"{size / 2**20:,.0f}" if size else "-",
            ]
        for figure in ("seconds", "bytes"):
            ours, theirs = row[f"ours_{figure}"], row[f"against_{figure}"]
            cells.append(f"{theirs / ours:.2f}x" if ours and theirs else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bench(args, argv: list[str]) -> dict:
    """Everything that was asked for: the case in numbers, exactness, rows, roofline."""
    case = build_case(args)
    rows = [row for row in ROWS if not args.rows or {*row[2:]} & {*args.rows}]
    if importlib.util.find_spec("trl") is None:
        print(
            "bench.py: TRL is not installed, so its rows are left off; pip install trl",
            file=sys.stderr,
        )
        rows = [row for row in rows if "trl_step" not in row]
    if len(case.prompts) == 1:
        rows = [row for row in rows if "dyme_step" not in row]  # there is no half of one group
    names = list(dict.fromkeys(name for row in rows for name in row[2:]))
    result = {
        "size": args.size,
        "P": case.prompts[0].input_ids.shape[1],
        "prompts": len(case.prompts),
    }
    result.update(
        G=case.num_generations,
        C=case.completion_length,
        dtype=str(case.model.dtype),
        device=args.device,
    )
    result.update(threads=args.threads, torch=torch.__version__)
    if case.model.dtype == FP32:
        result["exactness"] = exactness(case)
    ends = {"rollout", "update"} <= {*names}
    result["all_seconds"] = times(names + ["prefill"] * ends, case)
    medians = {name: statistics.median(laps) for name, laps in result["all_seconds"].items()}
    if ends:
        result["roofline"] = roofline(case, medians)
    del case
    memory = {}
    for name in tqdm([] if args.no_memory else names, desc="memory", unit="side"):
        memory[name] = peak_elsewhere(name, argv)
    result["rows"] = []
    for what, against, ours, theirs in rows:
        row = {"ours": what, "ours_seconds": medians.get(ours), "ours_bytes": memory.get(ours)}
        row.update(
            against=against, against_seconds=medians.get(theirs), against_bytes=memory.get(theirs)
        )
        result["rows"].append(row)
    return result


def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time and memory against the usual way.")
    parser.add_argument("--size", choices=SIZES, default="p700")
    parser.add_argument("--prompts", type=int, help="prompts to a step; default: the size's")
    parser.add_argument("--num_generations", type=int, default=8, help="G")
    parser.add_argument("--completion_length", type=int, help="C, tokens; default: the size's")
    parser.add_argument(
        "--repeats", type=int, default=5, help="runs of each side, of which the median counts"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--train_vision", action="store_true", help="the vision tower isn't frozen, on both sides"
    )
    parser.add_argument("--gradient_checkpointing", action="store_true", help="on both sides")
    parser.add_argument("--rows", nargs="*", choices=SIDES, help="only the rows with these sides")
    parser.add_argument("--no_memory", action="store_true", help="leave the memory columns empty")
    parser.add_argument(
        "--cpu_time", action="store_true", help="count CPU seconds: for a machine that others use"
    )
    parser.add_argument("--json", help="write all figures to this file")
    parser.add_argument(
        "--judge_overlap",
        action="store_true",
        help="measure only what a sleeping judge costs a step",
    )
    parser.add_argument(
        "--judge_seconds", type=float, default=1.0, help="how long it takes to answer"
    )
    parser.add_argument(
        "--measure", choices=SIDES, help="print one side's peak memory as JSON, and nothing else"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    CLOCK["now"] = time.process_time if args.cpu_time else time.perf_counter
    if args.measure:
        print(json.dumps({"name": args.measure, "bytes": peak(args.measure, args)}))
        return
    result = {"judge": judge_overlap(args)} if args.judge_overlap else bench(args, argv)
    if "rows" in result:
        print(
            ", ".join(
                f"{name} {result[name]}"
                for name in ("size", "P", "G", "C", "prompts", "dtype", "device", "threads")
            )
        )
        print(table(result["rows"]))
    for title in ("exactness", "roofline", "judge"):
        for name, value in result.get(title, {}).items():
            print(f"{title}: {name}: {value:.3g}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main(sys.argv[1:])
