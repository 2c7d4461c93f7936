"""Speed and memory, ours against the usual way: one command, one table.

    python -m tools.bench --size p700                   on one CPU thread
    python -m tools.bench --size p700 --prompts 4       four prompts to a step
    python -m tools.bench --size 0.5b --json out.json   on a GPU; 0.5b and 2b: published shapes
    python -m tools.bench --table out.json              the table of kept results
    python -m tools.bench --memory                      what a step needs, computed

Both sides have the same random weights, prompts, G and C, and take turns; medians count. Every
response has exactly C tokens: the end token is banned. Memory is the peak beyond the loaded model,
of each side in a process of its own. A ratio is the other side's figure divided by ours. Left out:
quality (tools/compare.py), several GPUs, engines that hold a second copy of the weights.
"""

import argparse
import copy
import importlib.util
import json
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from lib.log import run_program
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from transformers import PrinterCallback

import dyme
from config import Config
from data import Example, InputError
from grpo import grpo_loss
from lib.memory import memory_estimate, shape_of
from lib.optim import build_optimizer
from model import THINK, Prompt, completion_logprobs, encode_prompt, image_features, token_logprobs
from rollout import EXPLORE, SKIP, Group, Row, make_groups, rollout
from tools.shapes import CHART, SIZES, build_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
G = 8


@dataclass
class Case:
    """What the sides work on. Each of the P groups has G rows, random completions of C tokens."""

    model: torch.nn.Module
    processor: object
    config: Config
    groups: list[Group]
    optimizer: torch.optim.Optimizer
    trainer: object = None  # TRL's


def build_case(args: argparse.Namespace, names: list[str]) -> Case:
    """What the command line asks for, for the sides of these names; the same at every call."""
    torch.set_num_threads(1)
    size = SIZES[args.size]
    model, processor = build_model(size, DEVICE, not args.train_vision)
    config = Config(
        num_generations=G,
        max_completion_length=size.completion_length,
        prompts_per_step=args.prompts or size.prompts,
        micro_batch_prompts=1,
        freeze_vision=not args.train_vision,
    )
    rng = np.random.default_rng(0)
    shape = (config.prompts_per_step, G, config.max_completion_length)
    pixels = rng.integers(0, 256, (shape[0], *size.image[::-1], 3), dtype=np.uint8)
    examples = [
        Example(Image.fromarray(image), "What is the value of red", "1") for image in pixels
    ]
    groups = make_groups(model, processor, examples)
    for group, completions in zip(groups, rng.integers(500, size.text[-1], shape).tolist()):
        group.rows = [Row(ids, rng.standard_normal()) for ids in completions]  # as advantages
    # at learning rate 0 every step starts from the same weights
    optim = "adamw_bf16" if model.dtype == torch.bfloat16 else "adamw"
    optimizer = build_optimizer(model, optim, learning_rate=0.0)
    case = Case(model, processor, config, groups, optimizer)
    if "trl_step" in names:
        case.trainer = trl_trainer(case)
    return case


# ---- our sides ----------------------------------------------------------------------------------


def update(case: Case, copies: tuple[int, ...] = (1,)) -> None:
    """Forward and backward of packed rows. copies: for each number, all groups with that many times
    their rows.
    """
    groups = [replace(group, rows=group.rows * n) for n in copies for group in case.groups]
    dyme.update(case.model, groups, len(groups) * G, case.config)
    case.model.zero_grad()


def own_rollout(case: Case, groups: list[Group], temperature: float = 1.0) -> list[list[int]]:
    """Our decode loop; gives token ids (P * G, C)."""
    settings = {"max_completion_length": case.config.max_completion_length}
    settings |= {"num_generations": G, "temperature": temperature}
    rollout(case.model, case.processor, groups, **settings)
    return [response.token_ids for group in groups for response in group.responses]


def reward(completion_ids: list[list[int]], **kwargs) -> list[float]:
    """A reward that costs nothing and differs within a group, in the form that TRL calls."""
    return [float(sum(ids) % 97) for ids in completion_ids]


def step(case: Case, skip: bool = False) -> None:
    """A whole step from the image to the optimizer. skip: every second group is all right."""
    model = case.model
    groups = make_groups(model, case.processor, [group.example for group in case.groups])
    for group in groups if case.config.freeze_vision else []:
        group.prompt.features = image_features(model, group.prompt)
    own_rollout(case, groups)
    for group in groups:
        rewards = reward([response.token_ids for response in group.responses])
        group.rewards = {"total": torch.tensor(rewards)}
        group.mode = SKIP if skip and group.place % 2 else EXPLORE
        group.rows = dyme.rows(case.config, 0, group, None, case.processor)
    dyme.update(model, groups, len(groups) * G, case.config)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    case.optimizer.step()
    case.optimizer.zero_grad()


# ---- the usual sides ----------------------------------------------------------------------------


def batch(prompts: list[Prompt]) -> dict[str, torch.Tensor]:
    """Prompts of one length as transformers takes them, one to a row."""
    rows = [{"input_ids": p.input_ids, "mm_token_type_ids": p.token_types} for p in prompts]
    rows = [row | prompt.images for row, prompt in zip(rows, prompts)]
    names = [name for name, tensor in rows[0].items() if tensor is not None]
    return {name: torch.cat([row[name] for row in rows]) for name in names}


def padded_logprobs(model, group: Group) -> torch.Tensor:
    """Log-probabilities (G, C) of a group's rows from G rows [prompt, completion], the way TRL does
    it: the vision tower runs G times, the head on completions alone.
    """
    inputs = batch([group.prompt] * G)
    start = inputs["input_ids"].shape[1]
    completions = torch.tensor([row.token_ids for row in group.rows], device=model.device)  # (G, C)
    more = {"input_ids": completions, "mm_token_type_ids": torch.zeros_like(completions)}
    for name in {*inputs} & {*more}:
        inputs[name] = torch.cat([inputs[name], more[name]], dim=1)
    hidden = model.model(**inputs, use_cache=False).last_hidden_state  # (G, P + C, width)
    predictors = hidden[:, start - 1 : -1].flatten(0, 1)
    return token_logprobs(model, predictors, completions.flatten())[0].view_as(completions)


def update_padded(case: Case) -> None:
    """The same update from padded rows, one prompt after the other."""
    for group in case.groups:
        logprobs = padded_logprobs(case.model, group)
        weights = torch.tensor([row.weight for row in group.rows], device=logprobs.device)
        mask = torch.ones_like(logprobs)
        loss, _ = grpo_loss(logprobs, None, weights, mask, normalizer=len(case.groups) * G)
        loss.backward()
    case.model.zero_grad()


def generate(case: Case, repeat: bool, top_k: int = 0) -> torch.Tensor:
    """transformers' generate: prompts repeated G times, or num_return_sequences. Gives token ids
    (P * G, C). top_k: 1 is greedy.
    """
    inputs = batch([group.prompt for group in case.groups for _ in range(G if repeat else 1)])
    length = case.config.max_completion_length
    tokens = case.model.generate(
        **inputs,
        attention_mask=torch.ones_like(inputs["input_ids"]),
        num_return_sequences=1 if repeat else G,
        max_new_tokens=length,
        min_new_tokens=length,
        suppress_tokens=case.model.forbidden_ids,
        pad_token_id=case.processor.tokenizer.pad_token_id,
        do_sample=True,
        top_k=top_k,
    )
    return tokens[:, -length:]


def trl_trainer(case: Case):
    """TRL's GRPOTrainer: one group to a micro-batch, no reference model, the same reward."""
    import datasets
    import trl

    # on a CPU TRL's head runs over every position; here as on a GPU, over the completions' alone
    trl.trainer.utils._use_triton = lambda device: True
    length = case.config.max_completion_length
    examples = [group.example for group in case.groups]
    chats = [[{"role": "user", "content": f"{THINK}\n{e.question}"}] for e in examples]
    data = {"image": [e.image for e in examples], "prompt": chats}
    settings = trl.GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=1,
        learning_rate=0.0,
        per_device_train_batch_size=G,
        gradient_accumulation_steps=len(examples),
        num_generations=G,
        max_completion_length=length,
        generation_kwargs={"min_new_tokens": length, "suppress_tokens": case.model.forbidden_ids},
        loss_type="grpo",
        bf16=case.model.dtype == torch.bfloat16,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = trl.GRPOTrainer(
        model=copy.deepcopy(case.model),
        reward_funcs=reward,
        args=settings,
        train_dataset=datasets.Dataset.from_dict(data),
        processing_class=case.processor,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


# ---- measuring ----------------------------------------------------------------------------------

SIDES = {
    "update": update,
    "update_padded": update_padded,
    "rollout": lambda case: own_rollout(case, case.groups),
    "generate_repeated": lambda case: generate(case, repeat=True),
    "generate_sequences": lambda case: generate(case, repeat=False),
    "grpo_step": step,
    "dyme_step": lambda case: step(case, skip=True),
    # TRL's own seconds, without what train() sets up
    "trl_step": lambda case: case.trainer.train().metrics["train_runtime"],
    "update_all": lambda case: update(case, (1, 1)),
    "update_half": lambda case: update(case, (1, 0)),
    "update_4g": lambda case: update(case, (4,)),
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


def times(names: list[str], case: Case, repeats: int) -> dict[str, list[float]]:
    """Seconds of each side, the sides taken in turn; nan for one that doesn't fit in memory."""
    seconds = {name: [] for name in names}
    for name in tqdm(names * repeats, desc="bench", unit="run"):
        start = time.perf_counter()
        try:
            own_clock = SIDES[name](case)
        except torch.OutOfMemoryError:
            own_clock = math.nan
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        elapsed = time.perf_counter() - start
        seconds[name].append(own_clock if isinstance(own_clock, float) else elapsed)
    return seconds


def peak_elsewhere(name: str, args: argparse.Namespace) -> float:
    """`peak` in a process of its own; nan where it doesn't fit in memory, or without /proc."""
    # glibc else keeps freed blocks of up to 32 MB, by chance more or less of them
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "1000000"
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(peak, name, args).result()
        except (BrokenProcessPool, torch.OutOfMemoryError, OSError):
            return math.nan


def peak(name: str, args: argparse.Namespace) -> int:
    """Bytes at a side's peak beyond what the loaded model takes."""
    case = build_case(args, [name])
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the resident set's peak
    before = read_peak()
    for _ in range(2 if "step" in name else 1):  # the second with the optimizer's state
        SIDES[name](case)
    return max(read_peak() - before, 1)


def read_peak() -> int:
    """The most bytes in use since the reset: the allocator's on CUDA, else the resident set."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated()
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def exactness(case: Case) -> dict[str, float]:
    """Packed against padded: the largest difference of a log-probability, in nats, and of a
    gradient, as a share of the largest. Our greedy tokens against generate's: the share that is
    the same.
    """
    model, group = case.model, case.groups[0]
    packed, _ = completion_logprobs(model, group.prompt, [row.token_ids for row in group.rows])
    padded, gradients = padded_logprobs(model, group), []
    weights = torch.tensor([[row.weight] for row in group.rows], device=packed.device)
    for logprobs in (packed, padded):
        (logprobs * weights).mean().backward()
        found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        gradients.append(torch.cat(found))
        model.zero_grad()
    theirs = generate(case, repeat=True, top_k=1)
    ours = torch.tensor(own_rollout(case, case.groups, temperature=0.0), device=theirs.device)
    difference = (gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max()
    return {
        "log-probs, largest difference": (packed - padded).abs().max().item(),
        "gradients, largest difference / largest": difference.item(),
        "greedy tokens that are the same": (ours == theirs).float().mean().item(),
    }


def bench(args: argparse.Namespace) -> dict:
    """Everything that was asked for: the case in numbers, exactness, rows."""
    rows = [row for row in ROWS if not args.rows or {*row[2:]} & {*args.rows}]
    if importlib.util.find_spec("trl") is None:
        print("TRL is not installed, its rows are left off; pip install trl", file=sys.stderr)
        rows = [row for row in rows if "trl_step" not in row]
    if (args.prompts or SIZES[args.size].prompts) == 1:
        rows = [row for row in rows if "dyme_step" not in row]  # there is no half of one group
    names = list(dict.fromkeys(name for row in rows for name in row[2:]))
    case = build_case(args, names)
    result = {
        "size": args.size,
        "P": case.groups[0].prompt.input_ids.shape[1],
        "prompts": len(case.groups),
        "G": G,
        "C": case.config.max_completion_length,
        "dtype": str(case.model.dtype),
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE,
        "torch": torch.__version__,
        "train_vision": args.train_vision,
    }
    print(", ".join(f"{name} {value}" for name, value in result.items()))
    if case.model.dtype == torch.float32:
        result["exactness"] = exactness(case)
    laps = result["all_seconds"] = times(names, case, args.repeats)
    del case
    seconds = {name: statistics.median(laps[name]) for name in names}
    memory = {name: peak_elsewhere(name, args) for name in tqdm(names, desc="memory", unit="side")}
    result["rows"] = []
    for what, against, ours, theirs in rows:
        row = {"ours": what, "ours_seconds": seconds[ours], "ours_bytes": memory[ours]}
        row |= {"against": against, "against_seconds": seconds[theirs]}
        result["rows"].append({**row, "against_bytes": memory[theirs]})
    return result


# ---- tables -------------------------------------------------------------------------------------


def table(results: list[dict]) -> str:
    """One or more results: their rows as markdown, and how exact they are."""
    head = "| P x prompts | what | s | MB | against | s | MB | time ratio | memory ratio |"
    lines = [head, "| --- " * 9 + "|"]
    for result in results:
        case = f"{result['P']} x {result['prompts']}" + ", tower trained" * result["train_vision"]
        for row in result["rows"]:
            cells = [case]
            for whose in ("ours", "against"):
                seconds, size = row[f"{whose}_seconds"], row[f"{whose}_bytes"]
                cells += [row[whose], f"{seconds:.2f}", f"{size / 2**20:,.0f}"]
            for figure in ("seconds", "bytes"):
                cells.append(f"{row[f'against_{figure}'] / row[f'ours_{figure}']:.2f}x")
            lines.append("| " + " | ".join(cells) + " |")
    for result in results:
        exact = result.get("exactness", {}).items()
        lines += [f"exactness: {name}: {value:.3g}" for name, value in exact]
    return "\n".join(lines)


def memory_table() -> str:
    """The peak of a step, computed by lib/memory.py for published shapes without weights: a chart
    of 800 x 557 pixels, G 8, C 300, bf16.
    """
    heads = ("model", "parameters", "prompt, tokens", "prompts per step", "peak, GiB")
    lines = [f"| {' | '.join(heads)} | with --gradient_checkpointing |", "| --- " * 6 + "|"]
    example = Example(Image.new("RGB", CHART), "What is the highest value?", "1")
    settings = dict(num_generations=G, max_completion_length=300)
    for size, name in (("0.5b", "LLaVA-OneVision-0.5B"), ("2b", "Qwen2-VL-2B")):
        with torch.device("meta"):
            model, processor = build_model(SIZES[size], "meta")
        prompt = encode_prompt(processor, example)
        count = sum(p.numel() for p in model.parameters()) / 1e9
        for prompts in (8, 32):
            cells = [name, f"{count:.2f}B", str(prompt.input_ids.shape[1]), str(prompts)]
            for less in (False, True):
                settings.update(prompts_per_step=prompts, gradient_checkpointing=less)
                shape = shape_of(model, prompt, **settings)
                cells.append(f"{memory_estimate(model, shape)['peak'] / 2**30:.1f}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# ---- the command line ---------------------------------------------------------------------------


def read_result(path: str) -> dict:
    """A kept result; InputError for a file that isn't one."""
    try:
        result = json.loads(Path(path).read_text())
        table([result])
    except (OSError, ValueError, LookupError, TypeError):
        raise InputError(f"--table {path}: is not a file that --json wrote") from None
    return result


def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tools.bench", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--size", choices=SIZES, default="p700", help="of the model and its image (%(default)s)")
    add("--prompts", type=int, help="prompts to a step; default: the size's")
    add("--repeats", type=int, default=5, help="runs of each side, the median counts (%(default)s)")
    add("--train_vision", action="store_true", help="the vision tower isn't frozen, on both sides")
    add("--rows", nargs="*", choices=SIDES, help="only the rows with these sides")
    add("--json", metavar="FILE", help="keep all figures in this file")
    add("--table", nargs="+", metavar="FILE", help="print the rows of such files")
    add("--memory", action="store_true", help="print the computed peaks of published models")
    args = parser.parse_args(argv)
    if args.memory:
        print(memory_table())
    elif args.table:
        print(table([read_result(path) for path in args.table]))
    else:
        if args.json:
            open(args.json, "a").close()  # said now, and not after all has been measured
        result = bench(args)
        print(table([result]))
        if args.json:
            Path(args.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    run_program(main, sys.argv[1:])
