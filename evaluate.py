"""Evaluation: what a model answers on a split, in numbers.

    python evaluate.py --ckpt out/charts-dyme                     every test question, once
    python evaluate.py --ckpt FOLDER --dataset mine.jsonl --split val --out answers.jsonl
    python evaluate.py --ckpt FOLDER --pass_at_k 64 --size 48 --batch_size 1024
    python evaluate.py --ckpt FOLDER --data MathVista_MINI.tsv --max_completion_length 1024

Every response is a line of --out; a command that was stopped goes on where it was. Left out: free
answers to a benchmark and circular evaluation, which VLMEvalKit scores (`vlmutil eval`).
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from checker import score
from config import Parser, eval_settings, least
from data import load_data, open_image
from data.example import DIRECT, Example, InputError
from data.reading import read_lines
from data.tsv import final_answer, read_tsv, write_predictions
from lib.answers import matches, split_response
from lib.checkpoint import find_model, load
from lib.claims import claimed_facts
from lib.log import Log, progress, run_program
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
    word by word no longer looks well; direct; `looks`, of half of the questions. The first three
    with CPU seconds per question.
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
) -> dict[str, float]:
    """{"pass@k": the chance that of k samples at least one has the right marked answer}, for k = 1,
    2, 4 .. samples (unbiased: Chen et al. 2021, arXiv 2107.03374, eq. 1).
    """
    groups, right = respond(model, processor, examples, num_generations=samples, **asked), []
    for group in progress(groups, "pass@k", total=len(examples), unit="question"):
        scored = score([r.text for r in group.responses], group.example, tolerance=tolerance)
        right.append(int((scored["accuracy"] > 0.5).sum()))
    found = {}
    for k in (2**i for i in range(samples.bit_length())):
        wrong = [math.comb(samples - n, k) / math.comb(samples, k) for n in right]
        found[f"pass@{k}"] = 1 - mean(wrong)
    return found


def predict(
    model, processor, examples: Sequence[Example], path: Path, how: dict, *, tolerance=0.0, **asked
) -> list[dict]:
    """One response to each example, a line of the jsonl file at `path`, which isn't asked for again
    by the same `how` (which data, which weights) and `asked` (see respond).
    """
    how = {**how, **asked, "tolerance": tolerance}
    how.pop("batch_size", None)
    keys, lines = [(e.id, e.question, e.answer) for e in examples], read_lines(path)
    done = {(x["id"], x["question"], x["answer"]): x for x in lines if x.get("how") == how}
    todo = [i for i, key in enumerate(keys) if key not in done]
    groups, log = respond(model, processor, examples, places=todo, **asked), Log(path.parent, True)
    for group in progress(groups, "evaluate", total=len(todo), unit="question"):
        example, (response,) = group.example, group.responses
        line = {name: getattr(example, name) for name in ("id", "question", "answer")}
        line |= {"response": response.text, "prediction": split_response(response.text)[1]}
        line |= {"marks": marks(group, tolerance), "how": how}
        log.append(path.name, line)
        done[keys[group.place]] = line
    return [done[key] for key in keys]


def parse(argv: list[str], about: str, flags: dict[str, dict]) -> argparse.Namespace:
    """The command line of this program or of sample.py; args.asked is for evaluate. InputError."""
    parser = Parser(description=about, allow_abbrev=False)
    add = parser.add_argument
    add("--ckpt", default="out/charts-dyme", help="a run's folder, a checkpoint, or a hub name")
    add("--dataset", help="as for train.py (default: as trained, else chartqa)")
    add("--data_dir", help="its folder or zip (default: as trained)")
    add("--split", default="test", help="of the data set (default: test)")
    add("--skip_bad_rows", action="store_true", help="leave out, and count, what can't be read")
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
    args.asked = {**eval_settings(args), "temperature": args.temperature}
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
    asked, source = {**args.asked, "batch_size": args.batch_size}, Path(args.dataset)
    folder = args.ckpt if Path(args.ckpt).is_dir() else f"out/{args.ckpt.replace('/', '--')}"
    name = "predictions.jsonl"
    if args.data:
        name = f"{Path(folder).resolve().name}_{source.stem}.tsv"
        examples = read_tsv(source, args.data_dir or source.parent, args.skip_bad_rows)[: args.size]
        if args.instruction:
            args.instruction = Path(args.instruction).read_text("utf-8", "replace").strip()
            examples = [replace(example, instruction=args.instruction) for example in examples]
    elif args.instruction:
        raise InputError("--instruction: has an effect only with --data; leave it out")
    else:
        some = {"size": args.size, "skip_bad_rows": args.skip_bad_rows}
        examples = load_data(args.dataset, args.split, args.data_dir, **some)
    if args.pass_at_k:
        asked["temperature"] = args.temperature or 1.0
        found = pass_at_ks(*load(args.model), examples, args.pass_at_k, **asked)
        print(", ".join(f"{name} {100 * share:.1f} %" for name, share in found.items()))
        return
    path, ending = Path(args.out or f"{folder}/{name}"), Path(name).suffix
    if path.suffix != ending or path.resolve() == source.resolve():
        raise InputError(f"--out {path}: must be a {ending}, and not the data")
    path.parent.mkdir(parents=True, exist_ok=True)
    how = {name: getattr(args, name) for name in ("ckpt", "dataset", "split", "instruction")}
    how["weights"] = sorted(file.stat().st_mtime for file in Path(args.model).glob("*.safetensors"))
    lines = predict(*load(args.model), examples, path.with_suffix(".jsonl"), how, **asked)
    if not args.data:
        rows = [line["marks"] for line in lines]
        show_accuracies(rows)
        names = ("format", "fact_precision", "fact_f1", "grounded", "truncated")
        found = {name: readings(rows)[name] for name in names}
        print(", ".join(f"{k} {v:.3f}" for k, v in found.items() if v is not None), path, sep="\n")
        return
    responses = {line["id"]: line["response"] for line in lines}
    write_predictions(source, path, responses)
    # letters, numbers, yes and no are scored here; a free answer takes a judge
    some = [e for e in examples if e.answer and (e.kind != "text" or e.options)]
    right = [matches(e, final_answer(responses[e.id]), asked["tolerance"]) for e in some]
    show_accuracies([{"task": e.task, "accuracy": float(r)} for e, r in zip(some, right)])
    told = f"{len(examples) - len(some)} answers are free or unknown, and not scored here"
    print(f"{told}; each row counts by itself: never beside circular evaluation")
    print(f"{path}: vlmutil eval {source.stem} {path}")


if __name__ == "__main__":
    run_program(ask_split, sys.argv[1:])
