"""Evaluation: what a model answers on a split, in numbers.

    python evaluate.py --ckpt out/charts-dyme                     every test question, once
    python evaluate.py --ckpt FOLDER --dataset mine.jsonl --split val --out mine.jsonl
    python evaluate.py --ckpt FOLDER --pass_at_k 64 --size 48 --form judge

--ckpt is a run's folder, one of its checkpoints, or a hub name. Every response is a line of --out;
a command that was stopped goes on where it was.

Greedy decoding is the headline, temperature 1 shows what the model really believes: a trace
memorized word by word looks well when greedy. Besides accuracy it counts what DyME is about: is the
stated thinking true (precision and F1 of the stated facts), are right answers reached by grounded
thinking, and is the ability to answer directly still there. Left out: methods side by side
(tools/compare.py).
"""

import argparse
import json
import math
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from checker import score
from config import tolerances
from data import load_data
from data.charts import TASKS
from data.example import DIRECT, THINK, Example, InputError
from data.forms import FORMS, stage_questions
from lib.answers import grade, marked_answer, split_response
from lib.claims import claimed_facts
from lib.trained import find_model, load
from rollout import Group, make_groups, rollout

# a right answer counts as grounded when the visual checker gives its thinking at least this
GROUNDED = 0.8

# ---- readings of a split ------------------------------------------------------------------------


def respond(
    model,
    processor,
    examples: Sequence[Example],
    *,
    places: Sequence[int] | None = None,
    num_generations: int = 1,
    batch_size: int = 64,
    instruction: str | None = None,
    max_pixels: int | None = None,
    max_completion_length: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[Group]:
    """The examples at `places` (all) as Groups with their responses, batch_size to a rollout.

    A response's random numbers go by its place in the split: batches and restarts change none.
    """
    places = range(len(examples)) if places is None else places
    prompts = {"instruction": instruction, "max_pixels": max_pixels}
    sampling = {"temperature": temperature, "seed": seed, "num_generations": num_generations}
    sampling["max_completion_length"] = max_completion_length
    for start in range(0, len(places), batch_size):
        batch = places[start : start + batch_size]
        some = [examples[i] for i in batch]
        groups = make_groups(model, processor, some, places=batch, **prompts)
        rollout(model, processor, groups, **sampling)
        yield from groups


def marks(group: Group, instruction: str | None = None, tolerance: float = 0.0) -> dict:
    """What the one response of a Group is worth: checker.score's rewards, counts of its facts.

    Under an instruction of one's own, which may ask for no marker, an unmarked response is an
    answer as a whole; under DIRECT every one is.
    """
    (response,) = group.responses
    example, text, accuracy = group.example, response.text, None
    if instruction not in (None, THINK):
        marked = None if instruction == DIRECT else marked_answer(text)
        accuracy = [grade(example, text if marked is None else marked, tolerance)]
    scored = score(
        [text], example, truncated=[response.truncated], tolerance=tolerance, accuracy=accuracy
    )
    facts = [tuple(fact) for fact in example.facts]
    stated = set(claimed_facts(split_response(text)[0], facts))
    return {name: float(values[0]) for name, values in scored.items()} | {
        "stated": len(stated),
        "true": len(stated & set(facts)),
        "length": len(response.token_ids),
        "truncated": float(response.truncated),
    }


def readings(rows: list[dict], tasks: list[str]) -> dict[str, float]:
    """Shares in [0, 1] of some `marks` and their examples' tasks.

    accuracy (of the marked answer, by the kind of answer; "accuracy/<task>" too where there are
    several), format, fact_precision (stated facts that are true; None where nothing is stated),
    fact_f1 (the visual checker), grounded (of the right answers, those with thinking of at least
    GROUNDED), truncated; and completion_length (tokens), count.
    """
    right = [row["thinking"] >= GROUNDED for row in rows if row["accuracy"] == 1]
    stated = sum(row["stated"] for row in rows)
    found = {
        "accuracy": mean([row["accuracy"] for row in rows]),
        "format": mean([row["format"] for row in rows]),
        "fact_precision": sum(row["true"] for row in rows) / stated if stated else None,
        "fact_f1": mean([row["thinking"] for row in rows]),
        "grounded": mean(right),
        "completion_length": mean([row["length"] for row in rows]),
        "truncated": mean([row["truncated"] for row in rows]),
        "count": len(rows),
    }
    for task in sorted(set(tasks)) if len(set(tasks)) > 1 else []:
        own = [row["accuracy"] for row, other in zip(rows, tasks) if other == task]
        found[f"accuracy/{task or 'all'}"] = mean(own)
    return found


def evaluate(
    model,
    processor,
    examples: Sequence[Example],
    *,
    instruction: str | None = None,
    tolerance: float = 0.0,
    **asked,
) -> dict[str, float]:
    """`readings` of one response to each example; asked: how, see respond."""
    groups = respond(model, processor, examples, instruction=instruction, **asked)
    rows, tasks = [], []
    for group in groups:
        rows.append(marks(group, instruction, tolerance))
        tasks.append(group.example.task)
    return readings(rows, tasks)


def evaluate_all(model, processor, examples: Sequence[Example], **asked) -> dict[str, dict]:
    """The three readings of one split: greedy, at temperature 1, and answering directly."""
    return {
        "greedy": evaluate(model, processor, examples, **asked),
        "sampled": evaluate(model, processor, examples, temperature=1.0, **asked),
        "direct": evaluate(model, processor, examples, instruction=DIRECT, **asked),
    }


def mean(values: list) -> float:
    """The mean, 0 of nothing."""
    return sum(values) / max(len(values), 1)


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share that was counted on `count` items."""
    z = 1.96
    width = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / width
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / width
    return max(0.0, centre - half), min(1.0, centre + half)


# ---- pass@k -------------------------------------------------------------------------------------


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The unbiased estimate of the chance that at least one of k samples is right, when `correct`
    of `samples` are (Chen et al. 2021, arXiv 2107.03374, eq. 1). ValueError for k > samples:
    nothing is extrapolated.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass_at_k: k = {k} needs at least as many samples, there are {samples}")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def pass_at_ks(
    model,
    processor,
    examples: Sequence[Example],
    *,
    samples: int = 64,
    temperature: float = 1.0,
    tolerance: float = 0.0,
    batch_rows: int = 1024,
    **asked,
) -> dict:
    """pass@k for k = 1, 2, 4 .. samples: {"pass@k": share, ..., "samples": n, "right": counts}.

    right: how many of the samples of each example give the right marked answer; every k is
    computed from these counts alone. batch_rows: responses decoded at a time.
    """
    asked.update(temperature=temperature, batch_size=max(1, batch_rows // samples))
    groups = respond(model, processor, examples, num_generations=samples, **asked)
    right = []
    for group in tqdm(groups, desc="pass@k", total=len(examples), unit="question", disable=None):
        texts = [response.text for response in group.responses]
        scored = score(texts, group.example, tolerance=tolerance)
        right.append(int((scored["accuracy"] == 1).sum()))
    ks = [2**i for i in range(samples.bit_length()) if 2**i <= samples]
    found = {f"pass@{k}": mean([pass_at_k(samples, count, k) for count in right]) for k in ks}
    return {**found, "samples": samples, "right": right}


# ---- predictions, one line each -----------------------------------------------------------------


def predict(
    model, processor, examples: Sequence[Example], path: Path, how: dict, *, tolerance=0.0, **asked
) -> list[dict]:
    """One response to each example, a line of the jsonl file at `path`; in the examples' order.

    how: what the questions are. With what is asked (see respond) and a checksum of the weights it
    is part of every line: what is there already isn't asked again, what came about otherwise is
    left alone. InputError for a file of something else.
    """
    told = {name: value for name, value in asked.items() if name != "batch_size"}
    how = {**how, **told, "tolerance": tolerance, "weights": checksum(model)}
    ids = [example.id or str(i) for i, example in enumerate(examples)]
    done = {line["id"]: line for line in read_lines(path) if line.get("how") == how}
    todo = [i for i, name in enumerate(ids) if name not in done]
    progress = tqdm(total=len(ids), initial=len(ids) - len(todo), unit="question")
    with open(path, "a", encoding="utf-8") as file, progress:
        for group in respond(model, processor, examples, places=todo, **asked):
            example, (response,) = group.example, group.responses
            line = {
                "id": ids[group.place],
                "task": example.task,
                "question": example.question,
                "answer": example.answer,
                "response": response.text,
                "prediction": split_response(response.text)[1],
                "marks": marks(group, asked.get("instruction"), tolerance),
                "how": how,
            }
            file.write(json.dumps(line) + "\n")
            file.flush()
            done[line["id"]] = line
            progress.update()
    return [done[name] for name in ids]


def read_lines(path: Path) -> list[dict]:
    """The objects of a jsonl file that this program goes on writing; a torn last line is cut off.

    InputError, with its number, for any other line that isn't an object with an id.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
            rows[-1]["id"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise InputError(
                f"{path}, line {number}: was not written here; remove it, or give another file"
            ) from None
    with open(path, "rb+") as file:
        file.truncate(sum(len(line) + 1 for line in lines))
    return rows


def checksum(model) -> str:
    """Tells other weights under the same name."""
    value = 0
    for parameter in model.parameters():
        content = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8)
        value = zlib.crc32(content.numpy(), value)
    return f"{value:08x}"


def by_task(lines: list[dict]) -> list[str]:
    """Accuracy with Wilson's interval of all predictions, and of each task: lines to print."""
    tasks = sorted({line["task"] for line in lines})
    told = []
    for name in ["", *(tasks if len(tasks) > 1 else [])]:
        right = [line["marks"]["accuracy"] for line in lines if name in ("", line["task"])]
        low, high = interval(mean(right), len(right))
        span = f"[{low:.3f}, {high:.3f}]"
        told.append(f"{name or 'all'}: accuracy {mean(right):.3f} {span}, {len(right)} questions")
    return told


# ---- the program --------------------------------------------------------------------------------


def model_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that sample.py has too: what model, on what data."""
    add = parser.add_argument
    add("--ckpt", default="out/charts-dyme", help="a run's folder, a checkpoint, or a hub name")
    add("--dataset", help="as for train.py (default: as trained, else chartqa)")
    add("--data_dir", help="its folder or zip (default: as trained)")
    add("--split", default="test", help="of the data set (default: test)")
    add("--max_completion_length", type=int, help="most tokens of a response (default: as trained)")
    add("--max_pixels", type=int, help="a larger image is scaled down (default: as trained)")
    add("--tolerance", type=float, help="relative error of a right number (default: as train.py's)")
    add("--temperature", type=float, default=0.0, help="of sampling (default: 0, greedy)")


def settle(args: argparse.Namespace) -> None:
    """Fill in what the command line leaves open as it was in training, and what to load.

    InputError for a --ckpt that holds no model.
    """
    args.model, trained = find_model(args.ckpt)
    args.dataset = args.dataset or trained.get("dataset") or "chartqa"
    if args.dataset != trained.get("dataset"):
        trained = {"max_pixels": trained.get("max_pixels")}
    for name in ("data_dir", "max_pixels", "max_completion_length", "tolerance"):
        if getattr(args, name) is None:
            setattr(args, name, trained.get(name))
    args.max_completion_length = args.max_completion_length or 300
    args.data_seed = trained.get("data_seed", 0)
    args.tolerance = tolerances(args)[1]


def load_questions(args: argparse.Namespace) -> Sequence[Example]:
    """The split that is asked; with --form all of Curr-ReFT's tasks in that form."""
    tasks = TASKS if args.form else ("chart",)
    about = {"size": args.size, "data_seed": args.data_seed, "questions": "all", "tasks": tasks}
    examples = load_data(args.dataset, args.split, args.data_dir, **about)
    return stage_questions(args.form, examples, args.data_seed, grade) if args.form else examples


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; InputError for a number that is too small."""
    parser = argparse.ArgumentParser(description="Ask a whole split.", allow_abbrev=False)
    model_flags(parser)
    add = parser.add_argument
    add("--size", type=int, help="the first so many questions (default: all)")
    add("--form", choices=FORMS, help="all of Curr-ReFT's tasks, asked in this form")
    add("--instruction", metavar="FILE", help="how to answer, in place of thinking (a text file)")
    add("--pass_at_k", metavar="N", type=int, help="pass@k, of N samples per question")
    add("--out", help="where responses go (default: predictions.jsonl in --ckpt)")
    add("--seed", type=int, default=0, help="of sampling (default: 0)")
    add("--batch_size", type=int, default=64, help="questions at a time (default: 64)")
    args = parser.parse_args(argv)
    if min(args.batch_size, args.pass_at_k or 1) < 1 or args.temperature < 0:
        raise InputError("--batch_size and --pass_at_k: at least 1; --temperature: at least 0")
    return args


def ask_split(argv: list[str]) -> None:
    """Ask a split and print what came out."""
    args = parse(argv)
    settle(args)
    examples = load_questions(args)
    names = ("max_pixels", "max_completion_length", "tolerance", "seed")
    asked = {name: getattr(args, name) for name in names}
    if args.instruction:
        text = Path(args.instruction).read_text(encoding="utf-8", errors="replace").strip()
        if not text:
            raise InputError(f"--instruction {args.instruction}: is empty")
        asked["instruction"] = text
    if args.pass_at_k:
        sampling = {"samples": args.pass_at_k, "temperature": args.temperature or 1.0}
        found = pass_at_ks(*load(args.model), examples, **sampling, **asked)
        print(", ".join(f"{k} {100 * v:.1f} %" for k, v in found.items() if k.startswith("pass@")))
        return
    folder = Path(args.ckpt)
    folder = folder if folder.is_dir() else Path("out", args.ckpt.replace("/", "--"))
    path = Path(args.out or folder / "predictions.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open("a").close()  # fails before anything is loaded
    how = {name: getattr(args, name) for name in ("ckpt", "dataset", "split", "form")}
    asked.update(temperature=args.temperature, batch_size=args.batch_size)
    lines = predict(*load(args.model), examples, path, how, **asked)
    print("\n".join(by_task(lines)))
    found = readings([line["marks"] for line in lines], [line["task"] for line in lines])
    names = ("format", "fact_precision", "fact_f1", "grounded", "truncated")
    told = {name: found[name] for name in names if found[name] is not None}
    print(", ".join(f"{name} {value:.3f}" for name, value in told.items()))
    print(path)


def main(program, argv: list[str]) -> None:
    """Run program(argv); bad input ends in one line and exit code 2, Ctrl-C in 130."""
    try:
        program(argv)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main(ask_split, sys.argv[1:])
