"""
Speed and memory, ours against the usual way: one command, one table.

    python bench.py --size p700                 on one CPU thread; --prompts 4 for four prompts to a step
    python bench.py --size 0.5b --json out.json on a GPU; 0.5b and 2b have the published models' shapes

Every row is from one run: the same random weights, prompts, G and C on both sides, the sides taken in turn, medians.
Every response has exactly C tokens: the end token is banned. Memory is the peak beyond the loaded model, of each side
in a process of its own. The ratios are the reference's figure divided by ours.

The references: `generate`; an update on padded rows [G, P + C] as TRL does it, the vision tower run G times, the head
on completion rows alone; a whole step of TRL's GRPOTrainer, when TRL is installed, its head treated likewise.
Left out: quality (evaluate.py), several GPUs, engines that hold a second copy of the weights.
"""

import argparse
import copy
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, LlavaOnevisionConfig, LlavaOnevisionImageProcessorPil
from transformers import LlavaOnevisionProcessor, Qwen2VLConfig, Qwen2VLImageProcessorPil, Qwen2VLProcessor

import dyme
from data import Example
from families import checkpoint_activations, prepare, without_video
from grpo import group_advantages, grpo_loss
from model import THINK, completion_logprobs, encode_prompt, image_features, prompt_to, token_logprobs
from optim import build_optimizer
from rollout import rollout
from tiny import tiny_tokenizer

# ---------------------------------------------------------------------------------------------------------------
# the shapes


@dataclass
class Size:
    text: tuple  # width, layers, heads, key heads, MLP width, vocabulary
    vision: dict
    image: tuple[int, int]  # width and height in pixels: they settle the length of the prompt
    tiles: list[tuple[int, int]]  # LLaVA-OneVision's rows x columns of tiles to choose from
    completion_length: int
    prompts: int
    dtype: torch.dtype


def siglip(width, layers, heads, mlp, image_size):
    """A SigLIP tower with 14 x 14 patches, in transformers' names."""
    sizes = dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=mlp)
    return {**sizes, "image_size": image_size, "patch_size": 14, "vision_use_head": False}


QUARTER = (256, 6, 4, 1, 1408, 11_264)  # LLaVA-OneVision-0.5B with a quarter of the width and of the layers
QUARTER_TOWER = siglip(288, 9, 4, 1076, 252)
GRID = [(rows, columns) for rows in range(1, 7) for columns in range(1, 7)]
SIZES = {
    "small": Size((64, 2, 4, 1, 128, 1024), siglip(32, 1, 4, 64, 28), (28, 28), [(1, 1)], 6, 2, torch.float32),
    "p700": Size(QUARTER, QUARTER_TOWER, (252, 252), [(1, 1)], 128, 1, torch.float32),
    "p3000": Size(QUARTER, QUARTER_TOWER, (1008, 504), [(2, 4)], 128, 1, torch.float32),
    # llava-hf/llava-onevision-qwen2-0.5b-ov-hf and Qwen/Qwen2-VL-2B-Instruct, on an image of ChartQA's usual size
    "0.5b": Size(
        (896, 24, 14, 2, 4864, 152_000), siglip(1152, 26, 16, 4304, 384), (800, 557), GRID, 256, 4, torch.bfloat16
    ),
    "2b": Size(
        (1536, 28, 12, 2, 8960, 151_936),
        dict(depth=32, embed_dim=1280, hidden_size=1536, num_heads=16, mlp_ratio=4, patch_size=14),
        (800, 557), [], 256, 4, torch.bfloat16,
    ),
}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_model(size: Size, device):
    """A model of the given shape with random weights, and its processor, with the tiny tokenizer."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size")
    text = {**dict(zip(names, size.text)), "max_position_embeddings": 32768, "tie_word_embeddings": True}
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
            LlavaOnevisionImageProcessorPil(size={"height": side, "width": side}, image_grid_pinpoints=pinpoints),
            tokenizer,
            num_image_tokens=(side // 14) ** 2,
            vision_feature_select_strategy="full",
            chat_template=TEMPLATE.replace("IMAGE", "<image>"),
        )
    else:
        marks = ("vision_start", "image", "video", "vision_end")
        tokens = ["<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>"]
        tokenizer.add_special_tokens({"additional_special_tokens": tokens})
        ids = {f"{mark}_token_id": tokenizer.convert_tokens_to_ids(token) for mark, token in zip(marks, tokens)}
        text["rope_parameters"] = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
        config = Qwen2VLConfig(text_config=text, vision_config=size.vision, tie_word_embeddings=True, **ids)
        template = TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
        processor = without_video(Qwen2VLProcessor)(Qwen2VLImageProcessorPil(), tokenizer, chat_template=template)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=size.dtype).to(device)
    model = prepare(model, freeze_vision=True)
    # no response may end early, so the end token is banned like the image placeholders
    model.forbidden_ids = sorted({*model.forbidden_ids, tokenizer.eos_token_id})
    return model, processor


@dataclass
class Case:
    """A model, P examples and their prompts; random completions for updates: (P) lists of (G) lists of C token ids."""

    model: torch.nn.Module
    processor: object
    examples: list
    prompts: list
    completions: list
    advantages: torch.Tensor  # (P, G)
    num_generations: int
    completion_length: int
    gradient_checkpointing: bool


def build_case(args, num_generations: int | None = None) -> Case:
    """What the command line asks for; the same whenever it is called with the same arguments."""
    size = SIZES[args.size]
    model, processor = build_model(size, args.device)
    if args.gradient_checkpointing:
        checkpoint_activations(model)
    prompts, width, height = args.prompts or size.prompts, *size.image
    shape = (prompts, num_generations or args.num_generations, args.completion_length or size.completion_length)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for _ in range(prompts)]
    examples = [Example(image=image, question="What is the value of red") for image in images]
    return Case(
        model,
        processor,
        examples,
        [prompt_to(encode_prompt(processor, example), args.device) for example in examples],
        rng.integers(len(processor.tokenizer), size.text[-1], shape).tolist(),
        torch.from_numpy(rng.standard_normal(shape[:2])).float().to(args.device),
        *shape[1:],
        args.gradient_checkpointing,
    )


# ---------------------------------------------------------------------------------------------------------------
# the sides: each takes a Case and returns the function that is timed


def update(case: Case, groups: list[int] | None = None):
    """Forward and backward of the explored groups (default: one per prompt) as packed rows."""
    groups = range(len(case.prompts)) if groups is None else groups
    explored = [dyme.Group(p, dyme.EXPLORE, case.completions[p], case.advantages[p]) for p in groups]

    def run():
        case.model.train(case.gradient_checkpointing)
        dyme.packed_update(case.model, case.prompts, explored, normalizer=case.advantages.numel())
        case.model.eval()
        case.model.zero_grad()

    return run


def pair(case: Case) -> Case:
    """The case with at least two prompts, so that half of them can be skipped."""
    if len(case.prompts) > 1:
        return case
    return replace(
        case, prompts=case.prompts * 2, completions=case.completions * 2, advantages=case.advantages.repeat(2, 1)
    )


def padded_logprobs(case: Case, p: int) -> torch.Tensor:
    """The log-probabilities (G, C) of prompt p's completions from G rows [prompt, completion] of P + C tokens."""
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
        case.model.train(case.gradient_checkpointing)
        for p in range(len(case.prompts)):
            logprobs = padded_logprobs(case, p)
            mask = torch.ones_like(logprobs)
            loss, _ = grpo_loss(logprobs, None, case.advantages[p], mask, normalizer=case.advantages.numel())
            loss.backward()
        case.model.eval()
        case.model.zero_grad()

    return run


def own_rollout(case: Case, length: int | None = None, temperature: float = 1.0):
    """Our decode loop; length 1 is the prefill alone."""
    length = length or case.completion_length
    sizes = (case.num_generations, length, temperature)
    return lambda: rollout(case.model, case.processor, case.prompts, *sizes)


def generate(case: Case, repeat: bool, greedy: bool = False):
    """transformers' generate: every prompt repeated G times, or num_return_sequences."""
    rows = case.num_generations if repeat else 1
    named = [{"input_ids": p.input_ids, "mm_token_type_ids": p.token_types, **p.images} for p in case.prompts]
    inputs = {
        name: torch.cat([prompt[name] for prompt in named for _ in range(rows)])
        for name, value in named[0].items() if value is not None
    }
    sampling = dict(do_sample=False) if greedy else dict(do_sample=True, temperature=1.0, top_p=1.0, top_k=0)
    copies = 1 if repeat or greedy else case.num_generations
    lengths = dict(max_new_tokens=case.completion_length, min_new_tokens=case.completion_length)
    banned = dict(suppress_tokens=case.model.forbidden_ids, pad_token_id=case.processor.tokenizer.pad_token_id)

    def run():
        with torch.no_grad():
            ids = case.model.generate(
                **inputs, attention_mask=torch.ones_like(inputs["input_ids"]), num_return_sequences=copies,
                **sampling, **lengths, **banned,
            )
        return ids[:, inputs["input_ids"].shape[1] :]

    return run


def reward(completion_ids, **kwargs):
    """A reward that costs nothing and differs within a group; in the form that TRL calls."""
    return [float(sum(ids) % 97) for ids in completion_ids]


def step(case: Case, skip: bool = False):
    """A whole step from image file to optimizer as train.py does it; skip: every second group turns out all right."""
    kind = "adamw_bf16" if case.model.dtype == torch.bfloat16 else "adamw"
    optimizer = build_optimizer(case.model, kind, learning_rate=0.0)  # every step starts from the same weights

    def run():
        prompts = [prompt_to(encode_prompt(case.processor, example), case.model.device) for example in case.examples]
        for prompt in prompts:
            prompt.features = image_features(case.model, prompt)
        responses = rollout(case.model, case.processor, prompts, case.num_generations, case.completion_length)
        rewards = torch.tensor([reward([response.token_ids for response in group]) for group in responses])
        modes = torch.full((len(prompts),), dyme.EXPLORE)
        if skip:
            modes[1::2] = dyme.SKIP
        groups = dyme.build_groups(modes, responses, group_advantages(rewards), {}, 1.0)
        case.model.train(case.gradient_checkpointing)
        dyme.packed_update(case.model, prompts, groups, normalizer=rewards.numel())
        case.model.eval()
        torch.nn.utils.clip_grad_norm_(case.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return run


def trl_step(case: Case):
    """A whole step of TRL's GRPOTrainer: one group to a micro-batch, no reference model, the same reward."""
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

    clock, count = Clock(), len(case.examples)
    rows = [
        {"prompt": [{"role": "user", "content": f"{THINK}\n{example.question}"}], "image": example.image}
        for example in case.examples
    ]
    settings = trl.GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=1,
        learning_rate=0.0,
        per_device_train_batch_size=case.num_generations,
        gradient_accumulation_steps=count,
        num_generations=case.num_generations,
        max_completion_length=case.completion_length,
        generation_kwargs=dict(min_new_tokens=case.completion_length, suppress_tokens=case.model.forbidden_ids),
        loss_type="grpo",
        bf16=case.model.dtype == torch.bfloat16,
        gradient_checkpointing=case.gradient_checkpointing,
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
        return clock.seconds

    return run


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
    "update_g4": update,  # of a Case with four times as many completions
}
ROWS = [  # what, against what, and their sides
    ("update, packed", "padded update", "update", "update_padded"),
    ("rollout", "generate, repeated prompts", "rollout", "generate_repeated"),
    ("rollout", "generate, num_return_sequences", "rollout", "generate_sequences"),
    ("GRPO step", "TRL's GRPOTrainer", "grpo_step", "trl_step"),
    ("DyME step, half of the groups skipped", "TRL's GRPOTrainer", "dyme_step", "trl_step"),
    ("update, half of the groups skipped", "all explored", "update_half", "update_all"),
    ("update, G", "4 G", "update", "update_g4"),
]

# ---------------------------------------------------------------------------------------------------------------
# measuring


CLOCKS = {"clock": time.perf_counter}


def now(model) -> float:
    """Seconds on the clock, when the device has finished what it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return CLOCKS["clock"]()


def build_side(name: str, args, case: Case | None = None):
    """(case, function to time) of a side."""
    if name == "update_g4":
        case = build_case(args, 4 * args.num_generations)
    case = case or build_case(args)
    return case, SIDES[name](case)


def times(names: list[str], args, case: Case) -> dict[str, list[float]]:
    """Seconds of every side, `repeats` each, the sides taken in turn. A side that doesn't fit in memory is left off."""
    sides = {name: build_side(name, args, case) for name in names}
    seconds = {name: [] for name in names}
    for name in tqdm([name for _ in range(args.repeats) for name in names], desc="bench", unit="run"):
        if name not in sides:
            continue
        side_case, run = sides[name]
        start = now(side_case.model)
        try:
            own_clock = run()
            elapsed = now(side_case.model) - start
            seconds[name].append(own_clock if isinstance(own_clock, float) else elapsed)
        except torch.OutOfMemoryError:
            del sides[name], seconds[name]
    return seconds


def peak(name: str, args) -> int:
    """Bytes at the peak of a side beyond what the loaded model takes, in this process, which does nothing else."""
    case, run = build_side(name, args)
    cuda = case.model.device.type == "cuda"

    def highest():
        unit = 1 if sys.platform == "darwin" else 1024
        return torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before = highest()
    run()
    run()  # the second step has the optimizer's state from the start
    return highest() - before


def peak_elsewhere(name: str, argv: list[str]) -> int | None:
    """`peak` in a process of its own; None where it failed."""
    command = [sys.executable, __file__, *argv, "--measure", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])["bytes"] if done.returncode == 0 else None


def exactness(case: Case) -> dict:
    """
    Packed against padded: the largest difference of a log-probability in nats, and of a gradient, as a share of the
    largest gradient. Our greedy tokens against generate's: the share that is the same.
    """
    logprobs, gradients = {}, {}
    for side in ("packed", "padded"):
        case.model.zero_grad()
        if side == "packed":
            logprobs[side], _ = completion_logprobs(case.model, case.prompts[0], case.completions[0])
        else:
            logprobs[side] = padded_logprobs(case, 0)
        (logprobs[side] * case.advantages[0][:, None]).mean().backward()
        gradients[side] = [p.grad.clone() for p in case.model.parameters() if p.grad is not None]
    case.model.zero_grad()
    largest = max(g.abs().max().item() for g in gradients["padded"])
    pairs = zip(gradients["packed"], gradients["padded"])
    ours = own_rollout(case, temperature=0.0)()
    theirs = generate(replace(case, num_generations=1), repeat=True, greedy=True)().tolist()
    same = [a == b for group, row in zip(ours, theirs) for r in group for a, b in zip(r.token_ids, row, strict=True)]
    return {
        "log-probs, largest difference": (logprobs["packed"] - logprobs["padded"]).abs().max().item(),
        "gradients, largest difference / largest": max((a - b).abs().max().item() for a, b in pairs) / largest,
        "greedy tokens that are the same": sum(same) / len(same),
    }


def roofline(case: Case, seconds: dict) -> dict:
    """
    Which share of what the machine can do the decode loop and the update reach.

    A decode step must read the language model's weights and all keys and values once: its share is of the bandwidth of a
    copy. An update does 6 operations per weight and token: its share, the frozen tower not counted, is of a matmul's rate.
    """
    model, config = case.model, case.model.config.get_text_config()
    device, cuda = model.device, model.device.type == "cuda"
    a = torch.randn(8192 if cuda else 1024, 8192 if cuda else 1024, device=device, dtype=model.dtype)
    source = torch.ones(2**30 if cuda else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def fastest(run):
        laps = [now(model) for _ in range(8) if run() is not None]
        return min(b - a for a, b in zip(laps, laps[1:]))

    bandwidth = 2 * source.numel() / fastest(lambda: target.copy_(source))  # read and written
    arithmetic = 2 * len(a) ** 3 / fastest(lambda: a @ a)

    body = sum(p.numel() for p in model.model.language_model.layers.parameters())
    head = model.get_output_embeddings().weight.numel()
    tokens = case.num_generations * case.completion_length
    lengths = [prompt.input_ids.shape[1] for prompt in case.prompts]
    head_dim = config.hidden_size // config.num_attention_heads
    slot = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim  # keys and values of a token
    cached = sum(length + tokens / 2 for length in lengths)  # the suffixes are half full on average
    decode = (seconds["rollout"] - seconds["prefill"]) / (case.completion_length - 1)  # of one step
    read = (body + head + slot * cached) * model.dtype.itemsize
    # each query sees half of its own sequence and all of its prompt; a product with the keys and one with the values
    seen = sum(length**2 / 2 + tokens * (length + case.completion_length / 2) for length in lengths)
    attention = 4 * config.num_hidden_layers * config.hidden_size * seen
    operations = 6 * body * sum(length + tokens for length in lengths) + 6 * head * tokens * len(lengths) + 3 * attention
    return {
        "bandwidth of a copy, GB/s": bandwidth / 1e9,
        "arithmetic of a matmul, TFLOP/s": arithmetic / 1e12,
        "decode, tokens/s": len(lengths) * case.num_generations / decode,
        "decode, share of the bandwidth": read / decode / bandwidth,
        "update, share of the arithmetic": operations / seconds["update"] / arithmetic,
    }


def table(rows: list[dict]) -> str:
    """The rows as markdown."""
    lines = ["| what | s | MB | against | s | MB | time ratio | memory ratio |", "| --- " * 8 + "|"]

    def number(value, digits=1, scale=1.0):
        return "-" if value is None else f"{value / scale:,.{digits}f}"

    for row in rows:
        cells = [row["what"], number(row["seconds"], 2), number(row["bytes"], 0, 2**20)]
        cells += [row["against"], number(row["against_seconds"], 2), number(row["against_bytes"], 0, 2**20)]
        for kind in ("seconds", "bytes"):
            ours, theirs = row[kind], row[f"against_{kind}"]
            cells.append(f"{theirs / ours:.2f}x" if ours and theirs else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bench(args, argv: list[str]) -> dict:
    """Everything that was asked for: the case in numbers, exactness, rows, roofline."""
    case = build_case(args)
    rows = [row for row in ROWS if not args.rows or row[0].split(",")[0].split()[0].lower() in args.rows]
    if importlib.util.find_spec("trl") is None:
        print("bench.py: TRL is not installed, its rows are left off; pip install trl", file=sys.stderr)
        rows = [row for row in rows if "trl_step" not in row]
    if len(case.prompts) == 1:
        rows = [row for row in rows if "dyme_step" not in row]  # half of one group
    names = list(dict.fromkeys(name for row in rows for name in row[2:]))
    sizes = {"P": case.prompts[0].input_ids.shape[1], "prompts": len(case.prompts)}
    sizes.update(G=case.num_generations, C=case.completion_length, dtype=str(case.model.dtype))
    print(sizes, file=sys.stderr)
    result = {"size": args.size, **sizes, "device": str(case.model.device), "threads": args.threads}
    if case.model.dtype == torch.float32:
        result["exactness"] = exactness(case)
    seconds = times(names + ["prefill"], args, case)
    result["all_seconds"] = seconds
    medians = {name: statistics.median(laps) for name, laps in seconds.items()}
    if {"rollout", "update"} <= medians.keys():
        result["roofline"] = roofline(case, medians)
    sides = [] if args.no_memory else tqdm(names, desc="memory", unit="side")
    memory = {name: peak_elsewhere(name, argv) for name in sides}
    result["rows"] = [
        {
            "what": what, "seconds": medians.get(ours), "bytes": memory.get(ours),
            "against": against, "against_seconds": medians.get(theirs), "against_bytes": memory.get(theirs),
        }
        for what, against, ours, theirs in rows
    ]
    return result


def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time and memory against the usual way.")
    parser.add_argument("--size", choices=SIZES, default="p700")
    parser.add_argument("--prompts", type=int, help="prompts to a step; default: the size's")
    parser.add_argument("--num_generations", type=int, default=8, help="G")
    parser.add_argument("--completion_length", type=int, help="C, tokens; default: the size's")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side, of which the median counts")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="on both sides")
    parser.add_argument("--rows", nargs="*", help="rows that begin so: update rollout grpo dyme")
    parser.add_argument("--cpu_time", action="store_true", help="time this process's CPU: for a machine that others use")
    parser.add_argument("--no_memory", action="store_true", help="leave the memory columns empty")
    parser.add_argument("--json", help="write all figures to this file")
    parser.add_argument("--measure", choices=SIDES, help="print one side's peak memory as JSON, nothing else")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.cpu_time:
        CLOCKS["clock"] = time.process_time
    if args.measure:
        print(json.dumps({"name": args.measure, "bytes": peak(args.measure, args)}))
        return
    result = bench(args, argv)
    print(table(result["rows"]))
    for title in ("exactness", "roofline"):
        for name, value in result.get(title, {}).items():
            print(f"{title}: {name}: {value:.3g}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main(sys.argv[1:])
