"""Evaluation: what a model answers on a split, in numbers.

    python evaluate.py --ckpt out/charts-dyme                     every test question, once
    python evaluate.py --ckpt FOLDER --dataset mine.jsonl --split val --out mine.jsonl
    python evaluate.py --ckpt FOLDER --pass_at_k 64 --size 48 --batch_size 1024
    python evaluate.py --ckpt FOLDER --data MathVista_MINI.tsv --max_completion_length 1024

Every response is a line of --out; a command that was stopped goes on where it was. Left out:
methods side by side (tools/compare.py); free answers to a benchmark and circular evaluation, which
VLMEvalKit scores (`vlmutil eval`).
"""

import argparse
import json
import math
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from checker import score
from config import Parser, least, tolerances
from data import load_data, open_image
from data.example import DIRECT, Example, InputError
from data.reading import read_lines
from data.tsv import final_answer, read_tsv, write_predictions
from lib.answers import matches, split_response
from lib.checkpoint import find_model, load
from lib.claims import claimed_facts
from lib.log import progress, run_program
from lib.readings import mean, readings, show_accuracies
from rollout import Group, make_groups, rollout


def respond(
    model, processor, examples: Sequence[Example], *, places=None, batch_size=64, **asked
) -> Iterator[Group]:
    """The examples at `places` (all) as Groups with their responses, decoded batch_size at a time.

    asked: direct, for the bare answer; shown, see shown_instead; max_pixels; what rollout takes, by
    default one greedy response. Random numbers go by the place: batches and restarts change none.
    """
    asked = {"num_generations": 1, "temperature": 0.0, **asked}
    direct, shown = asked.pop("direct", False), asked.pop("shown", None)
    max_pixels = asked.pop("max_pixels", None)
    places = range(len(examples)) if places is None else places
    size = max(1, batch_size // asked["num_generations"])
    for start in range(0, len(places), size):
        batch = places[start : start + size]
        some = [shown_instead(examples, i, shown) if shown else examples[i] for i in batch]
        some = [replace(example, instruction=DIRECT) for example in some] if direct else some
        groups = make_groups(model, processor, some, places=batch, max_pixels=max_pixels)
        rollout(model, processor, groups, **asked)
        yield from groups


def marks(group: Group, tolerance: float = 0.0, belongs: Example | None = None) -> dict:
    """What the one response of a Group is worth: checker.score's rewards, counts of its facts;
    belongs: the question's own Example, where another's image is shown; see "true_of_own".
    """
    example, (response,) = group.example, group.responses
    asked = replace(belongs or example, scale=example.scale)
    cut, thinking = response.truncated, split_response(response.text)[0]
    scored = score([response.text], asked, truncated=[cut], tolerance=tolerance)
    facts, own = (set(map(tuple, e.facts)) for e in (example, asked))
    stated = {fact for known in (facts, own) for fact in claimed_facts(thinking, known)}
    return {name: float(values[0]) for name, values in scored.items()} | {
        "task": example.task,
        "stated": len(stated),
        "true": len(stated & facts),
        "true_of_own": len(stated & own),
        "untrue": len(stated - facts - own),
        "length": len(response.token_ids),
        "truncated": float(cut),
    }


def evaluate(
    model, processor, examples: Sequence[Example], *, tolerance: float = 0.0, **asked
) -> dict[str, float]:
    """`readings` of a response to each example; asked: see respond."""
    groups = respond(model, processor, examples, **asked)
    groups = progress(groups, "evaluate", total=len(examples), unit="question", leave=False)
    own = examples if asked.get("shown") else [None] * len(examples)
    return readings([marks(group, tolerance, own[group.place]) for group in groups])


def evaluate_all(model, processor, examples: Sequence[Example], **asked) -> dict[str, dict]:
    """The readings of one split: greedy, the headline; at temperature 1, where a trace memorized
    word by word no longer looks well; direct; of half of the questions `looks`. The first three with
    CPU seconds per question.
    """
    ways = {"greedy": {}, "sampled": {"temperature": 1.0}, "direct": {"direct": True}}
    found = {}
    for name, way in ways.items():
        start = time.process_time()
        found[name] = evaluate(model, processor, examples, **way, **asked)
        found[name]["seconds"] = (time.process_time() - start) / max(len(examples), 1)
    return found | looks(model, processor, examples, -(-len(examples) // 2), **asked)


def looks(model, processor, examples: Sequence[Example], most: int, **asked) -> dict[str, dict]:
    """`readings` at temperature 1 of the first `most` examples, each shown an "other" item's image,
    or a "blank" one; nothing without images. fact_precision is of the image shown.
    """
    examples = [examples[i] for i in range(min(most, len(examples)))]
    asked["temperature"] = 1.0
    shown = ("other", "blank") if any(e.image is not None for e in examples) else ()
    return {name: evaluate(model, processor, examples, shown=name, **asked) for name in shown}


def shown_instead(examples: Sequence[Example], i: int, image: str) -> Example:
    """examples[i] with a "blank" image and no facts, or an "other" item's, half the split on."""
    example, count = examples[i], len(examples)
    if image == "blank":
        own = open_image(example)
        own = own and Image.new("RGB", own.size, "white")
        return replace(example, image=own, facts=[], needed=[])
    others = (examples[(i + count // 2 + k) % count] for k in range(count))
    other = next((other for other in others if other.facts != example.facts), example)
    return replace(example, image=other.image, facts=other.facts, needed=[])


def pass_at_ks(
    model, processor, examples: Sequence[Example], samples: int, *, tolerance: float = 0.0, **asked
) -> dict:
    """{"right": how many samples of each example give the right marked answer, "pass@k": of k at
    least one, for k = 1, 2, 4 .. samples (unbiased: Chen et al. 2021, arXiv 2107.03374, eq. 1)}.
    """
    groups = respond(model, processor, examples, num_generations=samples, **asked)
    found = {"right": []}
    for group in progress(groups, "pass@k", total=len(examples), unit="question"):
        scored = score([r.text for r in group.responses], group.example, tolerance=tolerance)
        found["right"].append(int((scored["accuracy"] > 0.5).sum()))
    for k in (2**i for i in range(samples.bit_length())):
        wrong = [math.comb(samples - n, k) / math.comb(samples, k) for n in found["right"]]
        found[f"pass@{k}"] = 1 - mean(wrong)
    return found


def predict(
    model, processor, examples: Sequence[Example], path: Path, how: dict, *, tolerance=0.0, **asked
) -> list[dict]:
    """One response to each example, a line of the jsonl file at `path`, which isn't asked for again
    by the same weights, the same `how` (what the questions are) and `asked` (see respond).
    """
    weights = 0
    for parameter in model.parameters():
        weights = zlib.crc32(parameter.detach().cpu().flatten().view(torch.uint8).numpy(), weights)
    how = {**how, **asked, "tolerance": tolerance, "weights": weights}
    how.pop("batch_size", None)
    done = {line["id"]: line for line in read_lines(path) if line.get("how") == how}
    todo = [i for i, example in enumerate(examples) if example.id not in done]
    groups = respond(model, processor, examples, places=todo, **asked)
    with open(path, "a", encoding="utf-8") as file:
        for group in progress(groups, "evaluate", total=len(todo), unit="question"):
            example, (response,) = group.example, group.responses
            line = {name: getattr(example, name) for name in ("id", "question", "answer")}
            line |= {"response": response.text, "prediction": split_response(response.text)[1]}
            done[example.id] = {**line, "marks": marks(group, tolerance), "how": how}
            file.write(json.dumps(done[example.id]) + "\n")
            file.flush()
    return [done[example.id] for example in examples]


# ---- the program --------------------------------------------------------------------------------


def parse(argv: list[str], about: str, flags: dict[str, dict]) -> argparse.Namespace:
    """The command line of this program or of sample.py; args.asked is for respond. InputError."""
    parser = Parser(description=about, allow_abbrev=False)
    add = parser.add_argument
    add("--ckpt", default="out/charts-dyme", help="a run's folder, a checkpoint, or a hub name")
    add("--dataset", help="as for train.py (default: as trained, else chartqa)")
    add("--data_dir", help="its folder or zip (default: as trained)")
    add("--split", default="test", help="of the data set (default: test)")
    add("--max_completion_length", type=least(1), help="tokens to a response (default: as trained)")
    add("--max_pixels", type=least(1), help="a larger image is scaled down (default: as trained)")
    add("--tolerance", type=least(0, float), help="of a right number (default: train.py's)")
    add("--temperature", type=least(0, float), default=0.0, help="of sampling (default: 0, greedy)")
    for name, options in flags.items():
        add(f"--{name}", **options)
    args = parser.parse_args(argv)
    model, trained = find_model(args.ckpt)
    used = ["max_pixels", "max_completion_length", "tolerance", "dataset", "data_dir"]
    if (vars(args).get("data") or args.dataset) not in (None, trained.get("dataset")):
        used = ["max_pixels"]
    known = {"dataset": "chartqa", "max_completion_length": 300}
    known |= {name: trained[name] for name in used if trained.get(name) is not None}
    # before what is typed: so it is checked like it, and gives way to it
    args = parser.parse_args([*(f"--{name}={value}" for name, value in known.items()), *argv])
    args.model, args.dataset = model, vars(args).get("data") or args.dataset
    args.tolerance = tolerances(args)[1]
    asked = ("max_completion_length", "max_pixels", "temperature", "seed")
    args.asked = {name: getattr(args, name) for name in asked}
    return args


FLAGS = {
    "data": {"help": "a benchmark's TSV, VLMEvalKit's, in place of a data set"},
    "instruction": {"help": "with --data: a file with the prompt of a model of others"},
    "size": {"type": least(1), "help": "the first so many questions (default: all)"},
    "pass_at_k": {"metavar": "N", "type": least(1), "help": "pass@k, of N samples per question"},
    "out": {"help": "where responses go (default: predictions.jsonl in --ckpt)"},
    "seed": {"type": least(0), "default": 0, "help": "of sampling (default: 0)"},
    "batch_size": {"type": least(1), "default": 64, "help": "responses at a time (default: 64)"},
}


def ask_split(argv: list[str]) -> None:
    """Ask a split, or a benchmark, and print what came out."""
    args = parse(argv, "Ask a whole split.", FLAGS)
    asked = {**args.asked, "tolerance": args.tolerance, "batch_size": args.batch_size}
    if args.instruction and not args.data:
        raise InputError("--instruction: has an effect only with --data; leave it out")
    if args.data:
        source, told = Path(args.data), args.instruction
        told = told and Path(told).read_text("utf-8", "replace").strip()
        how = {"data": args.data, "instruction": told, "ckpt": args.ckpt}
        examples = read_tsv(source, args.data_dir or source.parent)[: args.size]
        examples = [replace(example, instruction=told) for example in examples]
    else:
        how = {"dataset": args.dataset, "split": args.split, "ckpt": args.ckpt}
        examples = load_data(args.dataset, args.split, args.data_dir, size=args.size)
    if args.pass_at_k:
        asked["temperature"] = args.temperature or 1.0
        found = pass_at_ks(*load(args.model), examples, args.pass_at_k, **asked)
        print(", ".join(f"{k} {100 * v:.1f} %" for k, v in found.items() if k != "right"))
        return
    folder = args.ckpt if Path(args.ckpt).is_dir() else f"out/{args.ckpt.replace('/', '--')}"
    name = f"{Path(folder).resolve().name}_{source.stem}.tsv" if args.data else "predictions.jsonl"
    path, wanted = Path(args.out or f"{folder}/{name}"), Path(name).suffix
    if path.suffix != wanted or path.resolve() == Path(args.data or "").resolve():
        raise InputError(f"--out {path}: must be a {wanted}, and not what --data is")
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = predict(*load(args.model), examples, path.with_suffix(".jsonl"), how, **asked)
    if args.data:
        responses = {line["id"]: line["response"] for line in lines}
        write_predictions(source, path, responses)
        # letters, numbers, yes and no are scored here; a free answer takes a judge
        some = [e for e in examples if e.answer and (e.kind != "text" or e.options)]
        right = [matches(e, final_answer(responses[e.id]), args.tolerance) for e in some]
        show_accuracies([{"task": e.task, "accuracy": float(r)} for e, r in zip(some, right)])
        told = f"{len(examples) - len(some)} answers are free or unknown, and not scored here"
        print(f"{told}; each row counts by itself: never beside circular evaluation")
        print(f"{path}: vlmutil eval {source.stem} {path}")
    else:
        rows = [line["marks"] for line in lines]
        show_accuracies(rows)
        names = ("format", "fact_precision", "fact_f1", "grounded", "truncated")
        found = {name: readings(rows)[name] for name in names}
        print(", ".join(f"{k} {v:.3f}" for k, v in found.items() if v is not None), path, sep="\n")


if __name__ == "__main__":
    run_program(ask_split, sys.argv[1:])
