"""Evaluation: what a model answers on a split, in numbers.

    python evaluate.py --ckpt out/charts-dyme                     every test question, once
    python evaluate.py --ckpt FOLDER --dataset mine.jsonl --split val --out mine.jsonl
    python evaluate.py --ckpt FOLDER --pass_at_k 64 --size 48 --batch_size 1024
    python evaluate.py --ckpt FOLDER --data MathVista_MINI.tsv --max_completion_length 1024

Every response is a line of --out; a command that was stopped goes on where it was. Besides
accuracy it counts what DyME is about: is the stated thinking true (precision and F1 of the stated
facts), are right answers reached by grounded thinking, is the ability to answer directly still
there. Left out: methods side by side (tools/compare.py).
"""

import argparse
import json
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
from lib.answers import split_response
from lib.benchmark import read_benchmark, score_benchmark
from lib.claims import claimed_facts
from lib.log import progress, run_program
from lib.readings import mean, pass_at_k, readings, show_accuracies
from lib.trained import find_model, load
from rollout import Group, make_groups, rollout

LOOKS = 300  # questions that are asked about images not their own, at the end

# ---- readings of a split ------------------------------------------------------------------------


def respond(
    model,
    processor,
    examples: Sequence[Example],
    *,
    places: Sequence[int] | None = None,
    batch_size: int = 64,
    num_generations: int = 1,
    temperature: float = 0.0,
    direct: bool = False,
    max_pixels: int | None = None,
    **sampling,
) -> Iterator[Group]:
    """The examples at `places` (all) as Groups with their responses, decoded batch_size at a time.

    direct: asked for the bare answer. sampling: rollout's max_completion_length and seed. A
    response's random numbers go by its place in the split: batches and restarts change none.
    """
    places = range(len(examples)) if places is None else places
    sampling.update(num_generations=num_generations, temperature=temperature)
    size = max(1, batch_size // num_generations)
    for start in range(0, len(places), size):
        batch = places[start : start + size]
        some = [examples[i] for i in batch]
        some = [replace(example, instruction=DIRECT) for example in some] if direct else some
        groups = make_groups(model, processor, some, places=batch, max_pixels=max_pixels)
        rollout(model, processor, groups, **sampling)
        yield from groups


def marks(group: Group, tolerance: float = 0.0, belongs: Example | None = None) -> dict:
    """What the one response of a Group is worth: checker.score's rewards, counts of its facts.

    belongs: the Example that the question is from, where the image shown, and with it the facts
    of group.example, is another one's; then "true_of_own" counts the facts that are true there.
    """
    example, (response,) = group.example, group.responses
    asked = replace(belongs or example, scale=example.scale)
    how = {"truncated": [response.truncated], "tolerance": tolerance}
    scored = score([response.text], asked, **how)
    thinking = split_response(response.text)[0]
    facts, own = (list(map(tuple, e.facts)) for e in (example, asked))
    stated = {fact for known in (facts, own) for fact in claimed_facts(thinking, known)}
    return {name: float(values[0]) for name, values in scored.items()} | {
        "task": example.task,
        "stated": len(stated),
        "true": len(stated & set(facts)),
        "true_of_own": len(stated & set(own)),
        "untrue": len(stated.difference(facts, own)),
        "length": len(response.token_ids),
        "truncated": float(response.truncated),
    }


def evaluate(
    model,
    processor,
    examples: Sequence[Example],
    *,
    tolerance: float = 0.0,
    belongs: Sequence[Example | None] | None = None,
    **asked,
) -> dict[str, float]:
    """`readings` of a response to each example; asked: see respond, belongs: see marks."""
    groups = respond(model, processor, examples, **asked)
    groups = progress(groups, "evaluate", total=len(examples), unit="question", leave=False)
    belongs = belongs or [None] * len(examples)
    return readings([marks(group, tolerance, own) for group, own in zip(groups, belongs)])


def evaluate_all(model, processor, examples: Sequence[Example], **asked) -> dict[str, dict]:
    """The readings of one split: greedy, the headline; at temperature 1, which shows what the
    model really believes (a trace memorized word by word looks well when greedy); direct; and
    `looks`. The first three have the seconds of CPU time per question too.
    """
    ways = {"greedy": {}, "sampled": {"temperature": 1.0}, "direct": {"direct": True}}
    found = {}
    for name, way in ways.items():
        start = time.process_time()
        found[name] = evaluate(model, processor, examples, **way, **asked)
        found[name]["seconds"] = (time.process_time() - start) / max(len(examples), 1)
    return found | looks(model, processor, examples, LOOKS, **asked)


# ---- does it look? ------------------------------------------------------------------------------


def looks(model, processor, examples: Sequence[Example], most: int, **asked) -> dict[str, dict]:
    """`readings` at temperature 1 of the first `most` examples, each shown an "other" item's image,
    or a "blank" one; nothing without images. The same without a change is the reading "sampled".

    The answer asked for is the question's own. Of the stated facts, fact_precision is the share
    true of the image shown, true_of_own of the one that the question belongs to: a model that
    doesn't look states the same whatever it is shown.
    """
    examples, found = [examples[i] for i in range(min(most, len(examples)))], {}
    asked["temperature"] = 1.0
    for image in ("other", "blank") if any(e.image is not None for e in examples) else ():
        shown = [shown_instead(examples, i, image) for i in range(len(examples))]
        found[image] = evaluate(model, processor, shown, belongs=examples, **asked)
    return found


def shown_instead(examples: Sequence[Example], i: int, image: str) -> Example:
    """examples[i] with another image and its facts: that of the next item, half the split on, whose
    facts differ; or a blank one, of the own one's size and without facts.
    """
    example, count = examples[i], len(examples)
    if image == "blank":
        own = open_image(example)
        blank = None if own is None else Image.new("RGB", own.size, "white")
        return replace(example, image=blank, facts=[], needed=[])
    others = (examples[(i + count // 2 + k) % count] for k in range(count))
    other = next((other for other in others if other.facts != example.facts), example)
    return replace(example, image=other.image, facts=other.facts, needed=[])


# ---- pass@k -------------------------------------------------------------------------------------


def pass_at_ks(
    model, processor, examples: Sequence[Example], samples: int, *, tolerance: float = 0.0, **asked
) -> dict:
    """pass@k for k = 1, 2, 4 .. samples: {"pass@k": share, ..., "right": counts}.

    right: how many of the samples of each example give the right marked answer; every k is
    computed from these counts alone. asked: how, see respond.
    """
    groups = respond(model, processor, examples, num_generations=samples, **asked)
    right = []
    for group in progress(groups, "pass@k", total=len(examples), unit="question"):
        texts = [response.text for response in group.responses]
        correct = score(texts, group.example, tolerance=tolerance)["accuracy"] > 0.5
        right.append(int(correct.sum()))
    ks = [2**i for i in range(samples.bit_length())]
    found = {f"pass@{k}": mean([pass_at_k(samples, count, k) for count in right]) for k in ks}
    return {**found, "right": right}


# ---- predictions, one line each -----------------------------------------------------------------


def predict(
    model, processor, examples: Sequence[Example], path: Path, how: dict, *, tolerance=0.0, **asked
) -> list[dict]:
    """One response to each example, a line of the jsonl file at `path`; in the examples' order.

    how: what the questions are. With what is asked (see respond) and a checksum of the weights it
    is part of every line: what is there isn't asked again, what came about otherwise left alone.
    """
    weights = 0
    for parameter in model.parameters():
        content = parameter.detach().cpu().flatten().view(torch.uint8)
        weights = zlib.crc32(content.numpy(), weights)
    told = {name: value for name, value in asked.items() if name != "batch_size"}
    how = {**how, **told, "tolerance": tolerance, "weights": weights}
    done = {line["id"]: line for line in read_lines(path) if line.get("how") == how}
    ids = [example.id for example in examples]
    todo = [i for i, name in enumerate(ids) if name not in done]
    groups = respond(model, processor, examples, places=todo, **asked)
    count = {"total": len(ids), "initial": len(ids) - len(todo)}
    with open(path, "a", encoding="utf-8") as file:
        for group in progress(groups, "evaluate", unit="question", **count):
            example, (response,) = group.example, group.responses
            done[example.id] = {
                "id": example.id,
                "question": example.question,
                "answer": example.answer,
                "response": response.text,
                "prediction": split_response(response.text)[1],
                "marks": marks(group, tolerance),
                "how": how,
            }
            file.write(json.dumps(done[example.id]) + "\n")
            file.flush()
    return [done[name] for name in ids]


# ---- the program --------------------------------------------------------------------------------


def parse(argv: list[str], about: str, flags: dict[str, dict]) -> argparse.Namespace:
    """The command line of this program or of sample.py: what model, what data, and `flags`.

    What is left open is as in training. args.model is what to load, args.asked are respond's
    settings. InputError for a --ckpt without a model, or a number too small.
    """
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
    args.model, trained = find_model(args.ckpt)
    args.dataset = getattr(args, "data", None) or args.dataset
    if args.dataset not in (None, trained.get("dataset")):
        trained = {"max_pixels": trained.get("max_pixels")}
    trained = {"dataset": "chartqa", "max_completion_length": 300, **trained}
    for name in ("dataset", "data_dir", "max_completion_length", "max_pixels", "tolerance"):
        if getattr(args, name) is None:
            setattr(args, name, trained.get(name))
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


def out_path(args: argparse.Namespace) -> Path:
    """Where what comes out goes: args.out, else a file in the run's folder, or below out/."""
    folder = Path(args.ckpt)
    folder = folder if folder.is_dir() else Path("out", args.ckpt.replace("/", "--"))
    benchmark = f"{folder.resolve().name}_{Path(args.data or '').stem}.tsv"
    name = benchmark if args.data else "predictions.jsonl"
    path = Path(args.out or folder / name)
    if args.data and (path.suffix != ".tsv" or path.resolve() == Path(args.data).resolve()):
        raise InputError(f"--out {path}: a benchmark's predictions are another .tsv")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def ask_split(argv: list[str]) -> None:
    """Ask a split, or a benchmark, and print what came out."""
    args = parse(argv, "Ask a whole split.", FLAGS)
    asked = {**args.asked, "tolerance": args.tolerance, "batch_size": args.batch_size}
    if args.instruction and not args.data:
        raise InputError("--instruction: has an effect only with --data; leave it out")
    path = None if args.pass_at_k else out_path(args)  # pass@k writes nothing
    if args.data:
        source = Path(args.data)
        examples = read_benchmark(source, args.data_dir or source.parent, args.instruction)
        examples = examples[: args.size]
        how = {"data": args.data, "instruction": examples[0].instruction}
    else:
        how = {"dataset": args.dataset, "split": args.split}
        examples = load_data(*how.values(), args.data_dir, size=args.size)
    if args.pass_at_k:
        asked["temperature"] = args.temperature or 1.0
        found = pass_at_ks(*load(args.model), examples, args.pass_at_k, **asked)
        print(", ".join(f"{k} {100 * v:.1f} %" for k, v in found.items() if k != "right"))
        return
    lines_path = path.with_suffix(".jsonl") if args.data else path
    how["ckpt"] = args.ckpt
    lines = predict(*load(args.model), examples, lines_path, how, **asked)
    if args.data:
        responses = [line["response"] for line in lines]
        rows = score_benchmark(source, path, examples, responses, args.tolerance)
        show_accuracies(rows)
        told = f"{len(examples) - len(rows)} answers are free or unknown, and not scored here"
        print(f"{told}; each row counts by itself: never beside circular evaluation")
        print(f"{path}: vlmutil eval {source.stem} {path}")
        return
    rows = [line["marks"] for line in lines]
    show_accuracies(rows)
    found = readings(rows)
    names = ("format", "fact_precision", "fact_f1", "grounded", "truncated")
    told = [f"{name} {found[name]:.3f}" for name in names if found[name] is not None]
    print(", ".join(told), path, sep="\n")


if __name__ == "__main__":
    run_program(ask_split, sys.argv[1:])
