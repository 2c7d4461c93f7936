"""
Speed and memory, ours against the usual way: one command, one table.

    python bench.py --size p700                   on one CPU thread
    python bench.py --size p700 --prompts 4       four prompts to a step
    python bench.py --size 0.5b --json out.json   on a GPU; 0.5b and 2b: the published shapes
    python bench.py --judge_overlap               what a judge that takes a second costs a step

Every row is from one run: the same random weights (shapes.py), prompts, G and C on both sides
(sides.py), the sides taken in turn, medians. Every response has exactly C tokens: the end token is
banned. Memory is the peak beyond the loaded model, of each side in a process of its own. A ratio
is the reference's figure divided by ours. Left out: quality (evaluate.py), several GPUs.
"""

import argparse
import contextlib
import importlib.util
import json
import math
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from tqdm import tqdm

import judge
from model import completion_logprobs
from tools.shapes import FP32, SIZES
from tools.sides import (
    ROWS,
    SIDES,
    Case,
    build_case,
    generate,
    now,
    own_rollout,
    padded_logprobs,
    step,
)

LINUX = sys.platform == "linux"


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
    before = reset_peak(args.device)
    run()
    if "step" in name:
        run()  # with the optimizer's state there from the start
    return read_peak(args.device) - before


def reset_peak(device: str) -> int:
    """Start a new peak; returns the bytes in use now."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif LINUX:
        with contextlib.suppress(OSError):  # a /proc without it: then it is the whole process's
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): the resident set's peak
    return read_peak(device)


def read_peak(device: str) -> int:
    """The most bytes in use since reset_peak: the allocator's on CUDA, else the resident set."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated()
    if not LINUX:  # macOS, in bytes; it can't be reset, and a child starts with its parent's
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


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


class Sleeper(BaseHTTPRequestHandler):
    """A judge that takes server.seconds to say "medium"."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.server.seconds)
        message = {"role": "assistant", "content": "medium"}
        body = json.dumps({"choices": [{"message": message}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *parts):
        pass


def judge_overlap(args) -> dict[str, float]:
    """
    Seconds of a step without a judge, and with one that takes args.judge_seconds for each of the
    P * G responses: once with responses that end here and there, at C / 2 tokens on average, and
    once, the worst case, with responses that all end together, so that nothing but updates is left
    to hide the calls behind.
    """
    ports = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(args.judge_seconds, ports), daemon=True)
    server.start()  # a process of its own, as a judge is
    judging = judge.open_judge(f"http://127.0.0.1:{ports.get()}/v1", "sleeper")
    found = {}
    for ends in ("here and there", "together"):
        case = build_case(args)
        if ends == "here and there":
            end_responses(case, case.completion_length / 2)
        runs = {"without": step(case), "with": step(case, judging=judging)}
        seconds = {name: [] for name in runs}
        for name in tqdm([*runs] * args.repeats, desc=f"judge, ends {ends}", unit="run"):
            start = now(case.model)
            runs[name]()
            seconds[name].append(now(case.model) - start)
        medians = {name: statistics.median(laps) for name, laps in seconds.items()}
        for name, median in medians.items():
            found[f"responses end {ends}, step {name} a judge, s"] = median
        found[f"responses end {ends}, ratio"] = medians["with"] / medians["without"]
    # judge.open_judge's 8 requests at a time
    found["the calls alone, s"] = args.judge_seconds * case.advantages.numel() / 8
    judge.close_judge(judging)
    server.terminate()
    return found


def serve(seconds: float, ports) -> None:
    """The sleeping judge's process; says its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sleeper)
    server.seconds = seconds
    ports.put(server.server_port)
    server.serve_forever()


def end_responses(case: Case, length: float) -> None:
    """Let the end token be sampled again, with probability 1 / length at each place."""
    model, end, length = case.model, case.processor.tokenizer.eos_token_id, max(length, 2)
    model.forbidden_ids = [token for token in model.forbidden_ids if token != end]

    def favour_end(module, inputs, logits):
        others = logits.index_fill(-1, torch.tensor([end], device=logits.device), -torch.inf)
        logits = others.clone()
        logits[..., end] = others.logsumexp(dim=-1) - math.log(length - 1)
        return logits

    model.get_output_embeddings().register_forward_hook(favour_end)


def table(results: list[dict]) -> str:
    """The rows of one or more results as markdown."""
    head = "| P x prompts | what | s | MB | against | s | MB | time ratio | memory ratio |"
    lines = [head, "| --- " * 9 + "|"]
    for result in results:
        trained = ", tower trained" if result.get("train_vision") else ""
        for row in result["rows"]:
            cells = [f"{result['P']} x {result['prompts']}{trained}"]
            for what in ("ours", "against"):
                seconds, size = row[f"{what}_seconds"], row[f"{what}_bytes"]
                cells += [row[what], f"{seconds:.2f}" if seconds else "-"]
                cells.append(f"{size / 2**20:,.0f}" if size else "-")
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
    result.update(threads=args.threads, train_vision=args.train_vision, torch=torch.__version__)
    if case.model.dtype == FP32:
        result["exactness"] = exactness(case)
    ends = {"rollout", "update"} <= {*names}
    result["all_seconds"] = times(names + ["prefill"] * ends, case)
    ends = {"rollout", "prefill", "update"} <= {*result["all_seconds"]}  # all fitted in memory
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
    parser.add_argument("--json", help="write all figures to this file")
    parser.add_argument(
        "--judge_overlap", action="store_true", help="measure what a sleeping judge costs a step"
    )
    parser.add_argument("--judge_seconds", type=float, default=1.0, help="until it answers")
    parser.add_argument("--table", nargs="+", metavar="JSON", help="print the rows of such files")
    parser.add_argument(
        "--measure", choices=SIDES, help="print one side's peak memory as JSON, and nothing else"
    )
    args = parser.parse_args(argv)
    try:
        if args.table:
            print(table([json.loads(Path(path).read_text()) for path in args.table]))
            return
        if args.json:
            open(args.json, "a").close()  # said now, and not after all has been measured
    except OSError as error:
        sys.exit(f"error: {error}")
    except (ValueError, LookupError, TypeError, AttributeError):
        sys.exit("error: --table: these are not all results of bench.py --json")
    torch.set_num_threads(args.threads)
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
        print(table([result]))
    for title in ("exactness", "roofline", "judge"):
        for name, value in result.get(title, {}).items():
            print(f"{title}: {name}: {value:.3g}")
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
