"""Speed and memory, ours against the usual way: one command, one table.

    python -m tools.bench --size p700                     on one CPU thread
    python -m tools.bench --size p700 --prompts 4         four prompts to a step
    python -m tools.bench --num_generations 32 --num_iterations 4 --sides grpo_step trl_step
    python -m tools.bench --size 0.5b --json out.json     on a GPU; 0.5b and 2b: published shapes
    python -m tools.bench --table out.json                the table of kept results

All sides have the same random weights, prompts, G and C, and take turns; of each the least of its
repeats counts, on a CPU in CPU seconds, so that what else the machine does is left out. Every
response has exactly C tokens: the end token is banned. Memory is the peak of all tensors beyond the
loaded model. A ratio is the other side's figure divided by ours. Left out: quality
(tools/compare.py), several GPUs, engines that hold a second copy of the weights.
"""

import argparse
import copy
import gc
import importlib.util
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm
from transformers import PrinterCallback

import dyme
from config import Config, Parser, least
from data.example import THINK, Example
from data.reading import written_here
from grpo import grpo_loss
from lib.log import run_program
from lib.optim import build_optimizer
from model import image_features, token_logprobs
from rollout import EXPLORE, SKIP, Group, Row, make_groups, rollout
from tools.shapes import SIZES, build_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def build_case(args: argparse.Namespace) -> SimpleNamespace:
    """What the sides work on, the same at every call: model, processor, config, P groups of G rows,
    random completions of C tokens, optimizer.
    """
    torch.set_num_threads(1)
    size = SIZES[args.size]
    model, processor = build_model(size, DEVICE, not args.train_vision)
    config = Config(
        num_generations=args.num_generations,
        num_iterations=args.num_iterations,
        max_completion_length=size.completion_length,
        prompts_per_step=args.prompts or size.prompts,
        micro_batch_prompts=1,
        freeze_vision=not args.train_vision,
    )
    rng = np.random.default_rng(0)
    shape = (config.prompts_per_step, config.num_generations, config.max_completion_length)
    pixels = rng.integers(0, 256, (shape[0], *size.image[::-1], 3), dtype=np.uint8)
    examples = [Example(Image.fromarray(p), "What is the value of red", "1") for p in pixels]
    groups = make_groups(model, processor, examples)
    for group, completions in zip(groups, rng.integers(500, size.text[-1], shape).tolist()):
        group.rows = [Row(ids, rng.standard_normal()) for ids in completions]  # as advantages
    # at learning rate 0 every step starts from the same weights
    optim = "adamw_bf16" if model.dtype == torch.bfloat16 else "adamw"
    optimizer = build_optimizer(model, optim, learning_rate=0.0)
    case = SimpleNamespace(
        model=model, processor=processor, config=config, groups=groups, optimizer=optimizer
    )
    case.sequences = shape[0] * shape[1]
    case.lengths = dict(num_generations=shape[1], max_completion_length=shape[2])
    return case


# ---- our sides ----------------------------------------------------------------------------------


def update(case: SimpleNamespace) -> None:
    """Forward and backward of packed rows."""
    dyme.update(case.model, case.groups, case.sequences, case.config)
    case.model.zero_grad()


def own_rollout(
    case: SimpleNamespace, groups: list[Group], temperature: float = 1.0
) -> list[list[int]]:
    """Our decode loop; gives token ids (P * G, C)."""
    rollout(case.model, case.processor, groups, temperature=temperature, **case.lengths)
    return [response.token_ids for group in groups for response in group.responses]


def reward(completion_ids: list[list[int]], **kwargs) -> list[float]:
    """A reward that costs nothing and differs within a group, in the form that TRL calls."""
    return [float(sum(ids) % 97) for ids in completion_ids]


def step(case: SimpleNamespace, skip: bool = False) -> None:
    """A whole step from the image to the optimizer. skip: every second group is all right."""
    model, config = case.model, case.config
    groups = make_groups(model, case.processor, [group.example for group in case.groups])
    for group in groups if config.freeze_vision else []:
        (group.prompt.features,) = image_features(model, [group.prompt])
    own_rollout(case, groups)
    for group in groups:
        rewards = reward([response.token_ids for response in group.responses])
        group.rewards = {"total": torch.tensor(rewards)}
        group.mode = SKIP if skip and group.place % 2 else EXPLORE
        group.rows = dyme.rows(config, 0, group, None, case.processor)
    for _ in range(config.num_iterations):
        dyme.update(model, groups, case.sequences, config)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        case.optimizer.step()
        case.optimizer.zero_grad()


# ---- the usual sides ----------------------------------------------------------------------------


def batch(groups: list[Group]) -> dict[str, torch.Tensor]:
    """Prompts of one length as transformers takes them, one to a row."""
    rows = []
    for group in groups:
        rows.append({"input_ids": group.prompt.input_ids, **group.prompt.images})
        if group.prompt.token_types is not None:
            rows[-1]["mm_token_type_ids"] = group.prompt.token_types
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def padded_logprobs(model, group: Group) -> torch.Tensor:
    """Log-probabilities (G, C) of a group's rows from G rows [prompt, completion], the way TRL does
    it: the vision tower runs G times, the head on completions alone.
    """
    inputs = batch([group] * len(group.rows))
    start = inputs["input_ids"].shape[1]
    completions = torch.tensor([row.token_ids for row in group.rows], device=model.device)  # (G, C)
    more = {"input_ids": completions, "mm_token_type_ids": torch.zeros_like(completions)}
    for name in {*inputs} & {*more}:
        inputs[name] = torch.cat([inputs[name], more[name]], dim=1)
    hidden = model.model(**inputs, use_cache=False).last_hidden_state  # (G, P + C, width)
    predictors = hidden[:, start - 1 : -1].flatten(0, 1)
    return token_logprobs(model, predictors, completions.flatten())[0].view_as(completions)


def update_padded(case: SimpleNamespace) -> None:
    """The same update from padded rows, one prompt after the other."""
    for group in case.groups:
        logprobs = padded_logprobs(case.model, group)
        weights = torch.tensor([row.weight for row in group.rows], device=logprobs.device)
        mask = torch.ones_like(logprobs)
        grpo_loss(logprobs, None, weights, mask, normalizer=case.sequences)[0].backward()
    case.model.zero_grad()


def generate(case: SimpleNamespace, top_k: int = 0) -> torch.Tensor:
    """transformers' generate with num_return_sequences. Gives token ids (P * G, C). top_k: 1 is
    greedy.
    """
    inputs = batch(case.groups)
    length = case.config.max_completion_length
    tokens = case.model.generate(
        **inputs,
        attention_mask=torch.ones_like(inputs["input_ids"]),
        num_return_sequences=case.config.num_generations,
        max_new_tokens=length,
        min_new_tokens=length,
        suppress_tokens=case.model.forbidden_ids,
        pad_token_id=case.processor.tokenizer.pad_token_id,
        do_sample=True,
        top_k=top_k,
    )
    return tokens[:, -length:]


def trl_trainer(case: SimpleNamespace):
    """TRL's GRPOTrainer: one group to a micro-batch, no reference model, the same reward."""
    import datasets
    import trl

    # on a CPU TRL's head runs over every position; here as on a GPU, over the completions' alone
    trl.trainer.utils._use_triton = lambda device: True
    length, updates = case.config.max_completion_length, case.config.num_iterations
    examples = [group.example for group in case.groups]
    chats = [[{"role": "user", "content": f"{THINK}\n{e.question}"}] for e in examples]
    data = {"image": [e.image for e in examples], "prompt": chats}
    settings = trl.GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=updates,
        num_iterations=updates,
        learning_rate=0.0,
        per_device_train_batch_size=case.config.num_generations,
        gradient_accumulation_steps=len(examples),
        generation_kwargs={"min_new_tokens": length, "suppress_tokens": case.model.forbidden_ids},
        loss_type="grpo",
        bf16=case.model.dtype == torch.bfloat16,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **case.lengths,
    )
    trainer = trl.GRPOTrainer(
        model=copy.deepcopy(case.model),
        reward_funcs=reward,
        args=settings,
        train_dataset=datasets.Dataset.from_dict(data),
        processing_class=case.processor,
    )
    trainer.remove_callback(PrinterCallback)
    # with several updates TRL 1.16 hands an argument on to where it isn't known
    logprobs = trainer._get_per_token_logps_and_entropies
    trainer._get_per_token_logps_and_entropies = lambda *args, batch_num_images=None, **kwargs: (
        logprobs(*args, **kwargs)
    )
    return trainer


# ---- measuring ----------------------------------------------------------------------------------

SIDES = {
    "update": update,
    "update_padded": update_padded,
    "rollout": lambda case: own_rollout(case, case.groups),
    "generate_sequences": generate,
    "grpo_step": step,
    "dyme_step": lambda case: step(case, skip=True),
    "trl_step": lambda case: case.trainer.train(),
}
ROWS = [  # what, against what, and the names of their sides
    ("update, packed", "padded rows", "update", "update_padded"),
    ("rollout", "generate, num_return_sequences", "rollout", "generate_sequences"),
    ("GRPO step", "TRL's GRPOTrainer", "grpo_step", "trl_step"),
    ("DyME step, half of the groups skipped", "TRL's GRPOTrainer", "dyme_step", "trl_step"),
]


def bench(args: argparse.Namespace) -> dict:
    """The case in numbers, seconds (a list) and bytes of each side."""
    names = args.sides or [*SIDES]
    if importlib.util.find_spec("trl") is None:
        print("TRL is not installed, its rows are left off; pip install trl", file=sys.stderr)
        names = [name for name in names if name != "trl_step"]
    if (args.prompts or SIZES[args.size].prompts) == 1:  # there is no half of one group
        names = [name for name in names if name != "dyme_step"]
    case = build_case(args)
    result = {
        "size": args.size,
        "P": case.groups[0].prompt.input_ids.shape[1],
        "prompts": len(case.groups),
        "G": args.num_generations,
        "C": case.config.max_completion_length,
        "num_iterations": args.num_iterations,
        "dtype": str(case.model.dtype),
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE,
        "torch": torch.__version__,
        "train_vision": args.train_vision,
    }
    print(", ".join(f"{name} {value}" for name, value in result.items()))
    if "trl_step" in names:
        case.trainer = trl_trainer(case)
    result["bytes"] = {
        name: whole(peak, name, case) for name in tqdm(names, desc="memory", unit="side")
    }
    seconds = result["seconds"] = {name: [] for name in names}
    for name in tqdm(names * args.repeats, desc="seconds", unit="run"):
        seconds[name].append(whole(lap, name, case))
    return result


def whole(measure: Callable, name: str, case: SimpleNamespace) -> float:
    """What is measured of a side; nan where it doesn't fit in memory."""
    try:
        return measure(lambda: SIDES[name](case))
    except torch.OutOfMemoryError:
        return math.nan
    finally:
        case.optimizer.state.clear()


def lap(function: Callable[[], object]) -> float:
    """The seconds that a call takes; on a CPU those that this process had."""
    clock = time.perf_counter if DEVICE == "cuda" else time.process_time
    start = clock()
    function()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def peak(function: Callable[[], object]) -> int:
    """Bytes of tensors at the peak of a call, beyond what is there before it."""
    gc.collect()  # else what others left might be freed, and counted, in here
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        function()  # now with the optimizer's states
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
        function()
    events = profiler.profiler.kineto_results.events()
    events = [event for event in events if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


# ---- tables -------------------------------------------------------------------------------------


def table(results: list[dict]) -> str:
    """One or more results as markdown."""
    head = "| P x prompts, G | what | s | MB | against | s | MB | time ratio | memory ratio |"
    lines = [head, "| --- " * 9 + "|"]
    for result in results:
        case = f"{result['P']} x {result['prompts']}, {result['G']}"
        case += f", {result['num_iterations']} updates" * (result["num_iterations"] > 1)
        case += ", tower trained" * result["train_vision"]
        seconds = {name: min(laps) for name, laps in result["seconds"].items()}
        memory = {name: result["bytes"].get(name, math.nan) / 2**20 for name in seconds}
        for what, against, ours, theirs in ROWS:
            if ours in seconds and theirs in seconds:
                cells = [case, what, f"{seconds[ours]:.2f}", f"{memory[ours]:,.0f}"]
                cells += [against, f"{seconds[theirs]:.2f}", f"{memory[theirs]:,.0f}"]
                cells.append(f"{seconds[theirs] / seconds[ours]:.2f}x")
                cells.append(f"{memory[theirs] / memory[ours]:.2f}x")
                lines.append(f"| {' | '.join(cells).replace('nanx', '-').replace('nan', '-')} |")
    return "\n".join(lines)


def read_result(path: str) -> dict:
    """A kept result; InputError for a file that isn't one."""
    with written_here(path):
        result = json.loads(Path(path).read_text())
        table([result])
    return result


def main(argv: list[str]) -> None:
    """The command line."""
    parser = Parser(prog="tools.bench", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--size", choices=SIZES, default="p700", help="of the model and its image (%(default)s)")
    add("--prompts", type=least(1), help="prompts to a step; default: the size's")
    add("--num_generations", type=least(1), default=8, help="G (%(default)s)")
    add("--num_iterations", type=least(1), default=1, help="updates per rollouts (%(default)s)")
    add("--repeats", type=least(1), default=5, help="runs; a side's least counts (%(default)s)")
    add("--train_vision", action="store_true", help="the vision tower isn't frozen, on any side")
    add("--sides", nargs="*", choices=SIDES, help="what to measure; default: all")
    add("--json", metavar="FILE", help="keep all figures in this file")
    add("--table", nargs="+", metavar="FILE", help="print the rows of such files")
    args = parser.parse_args(argv)
    if args.table:
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
