"""Speed and memory, ours against the usual way: one command, one table.

    python -m tools.bench --size p700                   on one CPU thread
    python -m tools.bench --size p700 --prompts 4       four prompts to a step
    python -m tools.bench --size 0.5b --json out.json   on a GPU; 0.5b and 2b: published shapes
    python -m tools.bench --table out.json              the table of kept results
    python -m tools.bench --memory                      what a step needs, computed
    python -m tools.bench --judge 1.0                   what a judge that takes a second costs a step

Every row is from one run: the same random weights, prompts, G and C on both sides (tools/sides.py),
the sides taken in turn, medians. Every response has exactly C tokens: the end token is banned.
Memory is the peak beyond the loaded model, of each side in a process of its own. A ratio is the
other side's figure divided by ours. Left out: quality (tools/compare.py), several GPUs.
"""

import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from data import Example, InputError
from judge import Judge
from lib.memory import memory_estimate, shape_of
from model import completion_logprobs, encode_prompt
from tools import sides
from tools.sides import SIZES, Case, build_case, now


def pair(case: Case) -> Case:
    """The case with at least two prompts, so that half of them can be skipped."""
    if len(case.groups) > 1:
        return case
    twice = {"groups": case.groups * 2, "completions": case.completions * 2}
    return replace(case, **twice, weights=case.weights.repeat(2, 1))


SIDES = {
    "update": sides.update,
    "update_padded": sides.update_padded,
    "rollout": sides.own_rollout,
    "generate_repeated": lambda case: sides.generate(case, repeat=True),
    "generate_sequences": lambda case: sides.generate(case, repeat=False),
    "grpo_step": sides.step,
    "dyme_step": lambda case: sides.step(case, skip=True),
    "trl_step": sides.trl_step,
    "update_all": lambda case: sides.update(pair(case)),
    "update_half": lambda case: sides.update(pair(case), every=2),
    "update_4g": lambda case: sides.update(
        sides.build_case(case.args, 4 * case.config.num_generations)
    ),
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


# ---- measuring -----------------------------------------------------------------------------------


def times(names: list[str], case: Case) -> dict[str, list[float]]:
    """Seconds of each side, `repeats` of them, the sides taken in turn. A side that doesn't fit in
    memory is left off.
    """
    runs = {name: SIDES[name](case) for name in names}
    seconds = {name: [] for name in names}
    for name in tqdm(names * case.args.repeats, desc="bench", unit="run"):
        if name not in runs:
            continue
        start = now(case.model)
        try:
            own_clock = runs[name]()
        except torch.OutOfMemoryError:
            del runs[name], seconds[name]
            continue
        elapsed = now(case.model) - start
        seconds[name].append(own_clock if isinstance(own_clock, float) else elapsed)
    return seconds


def peak(name: str, args: argparse.Namespace) -> int:
    """Bytes at a side's peak beyond what the loaded model takes; for a process of its own."""
    run = SIDES[name](build_case(args))
    cuda = torch.device(args.device).type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the resident set's peak
    before = read_peak(cuda)
    run()
    if "step" in name:
        run()  # with the optimizer's state there from the start
    return read_peak(cuda) - before


def read_peak(cuda: bool) -> int:
    """The most bytes in use since the reset: the allocator's on CUDA, else the resident set."""
    if cuda:
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def peak_elsewhere(name: str, argv: list[str]) -> int | None:
    """`peak` in a process of its own; None where it failed (no /proc, out of memory)."""
    command = [sys.executable, "-m", "tools.bench", *argv, "--measure", name]
    # glibc else keeps freed blocks of up to 32 MB, by chance more or less of them
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    root = Path(__file__).parent.parent
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=root)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def exactness(case: Case) -> dict[str, float]:
    """Packed against padded: the largest difference of a log-probability, in nats, and of a
    gradient, as a share of the largest. Our greedy tokens against generate's: the share that is
    the same.
    """
    packed, _ = completion_logprobs(case.model, case.groups[0].prompt, case.completions[0])
    logprobs, gradients = [packed, sides.padded_logprobs(case, 0)], []
    for values in logprobs:
        case.model.zero_grad()
        (values * case.weights[0][:, None]).mean().backward()
        found = [p.grad.flatten() for p in case.model.parameters() if p.grad is not None]
        gradients.append(torch.cat(found))
    case.model.zero_grad()
    ours = sides.own_rollout(case, temperature=0.0)()[:: case.config.num_generations]
    single = replace(case, config=replace(case.config, num_generations=1))
    theirs = sides.generate(single, repeat=True, greedy=True)().tolist()
    same = [a == b for mine, row in zip(ours, theirs) for a, b in zip(mine, row, strict=True)]
    difference = (gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max()
    return {
        "log-probs, largest difference": (logprobs[0] - logprobs[1]).abs().max().item(),
        "gradients, largest difference / largest": difference.item(),
        "greedy tokens that are the same": sum(same) / len(same),
    }


def bench(args: argparse.Namespace, argv: list[str]) -> dict:
    """Everything that was asked for: the case in numbers, exactness, rows."""
    case = build_case(args)
    rows = [row for row in ROWS if not args.rows or {*row[2:]} & {*args.rows}]
    if importlib.util.find_spec("trl") is None:
        print("TRL is not installed, its rows are left off; pip install trl", file=sys.stderr)
        rows = [row for row in rows if "trl_step" not in row]
    if len(case.groups) == 1:
        rows = [row for row in rows if "dyme_step" not in row]  # there is no half of one group
    names = list(dict.fromkeys(name for row in rows for name in row[2:]))
    result = {
        "size": args.size,
        "P": case.groups[0].prompt.input_ids.shape[1],
        "prompts": len(case.groups),
        "G": case.config.num_generations,
        "C": case.config.max_completion_length,
        "dtype": str(case.model.dtype),
        "device": args.device,
        "threads": args.threads,
        "train_vision": args.train_vision,
        "torch": torch.__version__,
    }
    if case.model.dtype == sides.FP32:
        result["exactness"] = exactness(case)
    result["all_seconds"] = times(names, case)
    seconds = {name: statistics.median(laps) for name, laps in result["all_seconds"].items()}
    del case
    memory = {}
    for name in tqdm([] if args.no_memory else names, desc="memory", unit="side"):
        memory[name] = peak_elsewhere(name, argv)
    result["rows"] = []
    for what, against, ours, theirs in rows:
        row = {"ours": what, "ours_seconds": seconds.get(ours), "ours_bytes": memory.get(ours)}
        row.update(against=against, against_seconds=seconds.get(theirs))
        result["rows"].append({**row, "against_bytes": memory.get(theirs)})
    return result


# ---- a judge beside the step ---------------------------------------------------------------------


class Sleeper(BaseHTTPRequestHandler):
    """A judge that takes server.seconds for a rating, which depends on what it is asked."""

    def do_POST(self):
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.server.seconds)
        message = {"role": "assistant", "content": ("low", "medium", "high")[sum(asked) % 3]}
        body = json.dumps({"choices": [{"message": message}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *parts):
        pass


def serve(seconds: float, ports) -> None:
    """The sleeping judge's process; says its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sleeper)
    server.seconds = seconds
    ports.put(server.server_port)
    server.serve_forever()


def judge_overlap(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step without a judge, and with one that takes args.judge seconds for each of the
    P * G responses: with responses that end here and there, at C / 2 tokens on average, and, the
    worst case, that all end together, so that only updates are left to hide the calls behind.
    """
    ports = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(args.judge, ports), daemon=True)
    server.start()  # a process of its own, as a judge is
    case = build_case(args)
    config = replace(case.config, judge_url=f"http://127.0.0.1:{ports.get()}/v1", judge_model="x")
    config = replace(config, output_dir=tempfile.mkdtemp(), refiner="off", reward_weights=[1, 1, 1])
    judge, found = Judge(config), {}
    for ends in ("together", "here and there"):
        if ends == "here and there":
            end_responses(case)
        runs = {"without": sides.step(case), "with": sides.step(case, judge=judge)}
        laps = {name: [] for name in runs}
        for name in tqdm([*runs] * args.repeats, desc=f"judge, ends {ends}", unit="run"):
            start = now(case.model)
            runs[name]()
            laps[name].append(now(case.model) - start)
        medians = {name: statistics.median(seconds) for name, seconds in laps.items()}
        for name, median in medians.items():
            found[f"responses end {ends}, step {name} a judge, s"] = median
        found[f"responses end {ends}, ratio"] = medians["with"] / medians["without"]
    found["the calls alone, s"] = args.judge * case.weights.numel() / config.judge_parallel
    judge.close()
    server.terminate()
    return found


def end_responses(case: Case) -> None:
    """Let the end token be sampled again, so that responses end after C / 2 tokens on average."""
    model, end = case.model, case.processor.tokenizer.eos_token_id
    model.forbidden_ids = [token for token in model.forbidden_ids if token != end]
    odds = math.log(max(case.config.max_completion_length / 2, 2) - 1)

    def favour_end(module, inputs, logits):
        others = logits.index_fill(-1, torch.tensor([end], device=logits.device), -torch.inf)
        return others.index_copy(
            -1, torch.tensor([end], device=logits.device), others.logsumexp(-1, True) - odds
        )

    model.get_output_embeddings().register_forward_hook(favour_end)


# ---- tables --------------------------------------------------------------------------------------


def table(results: list[dict]) -> str:
    """One or more results: their rows as markdown, and what else was measured."""
    head = "| P x prompts | what | s | MB | against | s | MB | time ratio | memory ratio |"
    lines = [head, "| --- " * 9 + "|"]
    for result in results:
        trained = ", tower trained" if result.get("train_vision") else ""
        for row in result.get("rows", []):
            cells = [f"{result['P']} x {result['prompts']}{trained}"]
            for what in ("ours", "against"):
                seconds, size = row[f"{what}_seconds"], row[f"{what}_bytes"]
                cells += [row[what], f"{seconds:.2f}" if seconds else "-"]
                cells.append(f"{size / 2**20:,.0f}" if size else "-")
            for figure in ("seconds", "bytes"):
                ours, theirs = row[f"ours_{figure}"], row[f"against_{figure}"]
                cells.append(f"{theirs / ours:.2f}x" if ours and theirs else "-")
            lines.append("| " + " | ".join(cells) + " |")
    if not any("rows" in result for result in results):
        lines = []
    for result in results:
        for title in ("exactness", "judge"):
            measured = result.get(title, {}).items()
            lines += [f"{title}: {name}: {value:.3g}" for name, value in measured]
    return "\n".join(lines)


def memory_table() -> str:
    """The peak of a step, computed by lib/memory.py for published shapes without weights: a chart
    of 800 x 557 pixels, G 8, C 300, bf16.
    """
    heads = ("model", "parameters", "prompt, tokens", "prompts per step", "peak, GiB")
    heads += ("with --gradient_checkpointing",)
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for size, name in (("0.5b", "LLaVA-OneVision-0.5B"), ("2b", "Qwen2-VL-2B")):
        with torch.device("meta"):
            model, processor = sides.build_model(SIZES[size], "meta")
        example = Example(Image.new("RGB", sides.CHART), "What is the highest value?", "1")
        prompt = encode_prompt(processor, example)
        count = sum(p.numel() for p in model.parameters()) / 1e9
        for prompts in (8, 32):
            cells = [name, f"{count:.2f}B", str(prompt.input_ids.shape[1]), str(prompts)]
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
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# ---- the command line ----------------------------------------------------------------------------


def read_results(paths: list[str]) -> list[dict]:
    """Kept results; InputError for a file that isn't one."""
    results = []
    for path in paths:
        try:
            results.append(json.loads(Path(path).read_text()))
            table(results)
        except OSError as error:
            raise InputError(f"--table {path}: {error.strerror}") from None
        except (ValueError, LookupError, TypeError, AttributeError):
            raise InputError(f"--table {path}: is not a result of --json") from None
    return results


def arguments(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="tools.bench", description="Time and memory against the usual way."
    )
    add = parser.add_argument
    add("--size", choices=SIZES, default="p700", help="of the model and its image (%(default)s)")
    add("--prompts", type=int, help="prompts to a step; default: the size's")
    add("--num_generations", type=int, default=8, help="G (%(default)s)")
    add("--completion_length", type=int, help="C, tokens; default: the size's")
    add("--repeats", type=int, default=5, help="runs of each side, the median counts (%(default)s)")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    add("--train_vision", action="store_true", help="the vision tower isn't frozen, on both sides")
    add("--gradient_checkpointing", action="store_true", help="on both sides")
    add("--rows", nargs="*", choices=SIDES, help="only the rows with these sides")
    add("--no_memory", action="store_true", help="leave the memory columns empty")
    add("--json", metavar="FILE", help="keep all figures in this file")
    add("--table", nargs="+", metavar="FILE", help="print the rows of such files")
    add("--memory", action="store_true", help="print the computed peaks of published models")
    add("--judge", type=float, metavar="S", help="what a judge that takes S seconds costs a step")
    add("--measure", choices=SIDES, help=argparse.SUPPRESS)  # one side's peak, see peak_elsewhere
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """The command line; bad input ends in one line and exit code 2."""
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    try:
        if args.table or args.memory:
            print(memory_table() if args.memory else table(read_results(args.table)))
        elif args.measure:
            print(peak(args.measure, args))
        else:
            if args.json:
                open(args.json, "a").close()  # said now, and not after all has been measured
            result = {"judge": judge_overlap(args)} if args.judge else bench(args, argv)
            names = ("size", "P", "G", "C", "prompts", "dtype", "device", "threads")
            print(", ".join(f"{name} {result[name]}" for name in names if name in result))
            print(table([result]))
            if args.json:
                Path(args.json).write_text(json.dumps(result, indent=1))
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
