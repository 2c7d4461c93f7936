"""
Ask a model: one question with the answer streaming, or a whole split with every prediction written
down.

    python sample.py --ckpt out/charts-dyme                a random test question of its data set
    python sample.py --ckpt out/charts-dyme --image chart.png --question "Which bar is highest"
    python sample.py --ckpt out/charts-dyme --eval test    predictions.jsonl, accuracy and interval

--ckpt is a run's folder, one of its checkpoints, or a hub name. The prompt, the sampler and the
metric are training's own. A whole split is predict.py's. Left out: conversations (chat.py),
accuracy at several samples.
"""

import argparse
import random
import sys
from dataclasses import fields
from pathlib import Path

import torch
from transformers import DynamicCache

from lib.checkpoint import find_checkpoint
from checker import split_response
from lib.claims import claimed_facts
from data import Example, InputError, open_image
from config import Config, resolve
from model import encode_prompt, get_tokenizer, language_attention, prompt_to
from tools.predict import accuracies, predict, score_one
from rollout import Response, decode_step, prefill, random_numbers, sample
from lib.log import read_state, visible
from run import load_model, load_split


# -------------------------------------------------------------------------------------------------
# what to ask


def find_model(ckpt: str) -> tuple[str, dict]:
    """What to load for --ckpt, and the config it was trained with; ({} for a hub name)."""
    folder = Path(ckpt)
    if not folder.is_dir():
        if len(folder.parts) != 2 or folder.parts[0] in ("out", ".", "..", "/"):
            raise InputError(
                f"--ckpt {ckpt}: no such folder; "
                "give a run's folder, a checkpoint or a hub name (org/name)"
            )
        return ckpt, {}
    run = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    if run != folder or not (folder / "config.json").is_file():
        folder = find_checkpoint(folder)  # of a run that hasn't ended: its newest
    if folder is None:
        raise InputError(f"--ckpt {ckpt}: holds no model and no complete checkpoint")
    return str(folder), read_state(run)["config"]


def settle(args) -> Config:
    """The training config behind --ckpt, with what the command line says instead."""
    path, trained = find_model(args.ckpt)
    known = {field.name for field in fields(Config)}
    config = Config(**{name: value for name, value in trained.items() if name in known})
    config.dataset = args.dataset or trained.get("dataset") or "chartqa"
    if config.dataset != trained.get("dataset"):
        config.data_dir = config.max_completion_length = config.reward_weights = None
    config.model = path
    for name in ("data_dir", "max_completion_length", "max_pixels"):
        if getattr(args, name) is not None:
            setattr(config, name, getattr(args, name))
    return resolve(config)


def pick(config: Config, args, seed: int) -> Example:
    """The question to ask: the one given, or a random one of the split."""
    if args.image is None and args.question is None:
        examples = load_split(config, args.split, None)
        return examples[random.Random(seed).randrange(len(examples))]
    if args.question is None:
        raise InputError("--image: needs a --question")
    example = Example(args.image, args.question)
    try:
        open_image(example)
    except InputError as error:
        raise InputError(f"--image {args.image}: {error}") from None
    return example


# -------------------------------------------------------------------------------------------------
# one question


def stream(
    model, processor, start, uniforms: torch.Tensor, temperature: float, on_text
) -> Response:
    """
    One response, as rollout samples it with random numbers uniforms (C,); on_text(piece) sees it
    grow.

    start: what rollout.prefill has returned for its prompt. A piece waits while its last character
    lacks bytes.
    """
    tokenizer = get_tokenizer(processor)
    prompt_cache, logits, position = start
    suffix = DynamicCache(config=model.config.get_text_config())
    ids, shown = [], ""
    while True:
        token = sample(logits, uniforms[None, len(ids)], temperature)  # (1,)
        ids.append(token.item())
        truncated = ids[-1] != tokenizer.eos_token_id
        text = tokenizer.decode(ids if truncated else ids[:-1], skip_special_tokens=False)
        ended = not truncated or len(ids) == len(uniforms)
        if ended or not text.endswith("\ufffd"):
            on_text(text[len(shown) :])
            shown = text
        if ended:
            return Response(ids, text, truncated)
        with torch.no_grad(), language_attention(model, "decode"):
            logits = decode_step(model, token, position, suffix, prompt_cache)
        position = position + 1


def verdict(response: Response, example: Example, config: Config) -> str:
    """
    What the rewards say of a response, and which of its stated facts are true; nothing on a
    question of one's own.
    """
    cut = "(cut off)\n" if response.truncated else ""
    if not example.answer:
        return cut
    scored = score_one(response, example, config)
    parts = ", ".join(f"{name} {scored[name]:.2f}" for name in ("format", "accuracy", "thinking"))
    verdict = "✓ right" if scored["accuracy"] else "✗ wrong"
    text = f"{cut}{verdict}    reward {scored['total']:.2f}: {parts}\n"
    facts = [(str(name), str(value)) for name, value in example.facts]
    claims = claimed_facts(split_response(response.text)[0], facts)
    stated = ", ".join(
        f"{name} {value} {'✓' if (name, value) in facts else '✗'}" for name, value in claims
    )
    return text + (f"states     {stated}\n" if claims else "")


def ask(config: Config, args) -> None:
    """One question, answered num_generations times."""
    seed = args.seed if args.seed is not None else random.randrange(10**6)
    example = pick(config, args, seed)
    model, processor = load(config)
    if example.answer:
        facts = ", ".join(f"{name} {value}" for name, value in example.facts)
        show(f"{example.id}  (--seed {seed} asks it again)\nquestion   {example.question}\n")
        show((f"facts      {facts}\n" if facts else "") + f"reference  {example.answer}\n")
    prompt = prompt_to(
        encode_prompt(processor, example, max_pixels=config.max_pixels), model.device
    )
    with torch.no_grad():
        start = prefill(model, [prompt])  # once for all responses
    uniforms = random_numbers(
        seed, 0, [0], args.num_generations, config.max_completion_length
    )  # (G, C)
    for row in torch.from_numpy(uniforms).to(model.device):
        show("\n")
        response = stream(model, processor, start, row, args.temperature, show)
        show(f"\n{verdict(response, example, config)}")


def show(text: str) -> None:
    """Print at once, control characters spelt out."""
    print(visible(text), end="", flush=True)


def load(config: Config):
    """The model, ready to be asked, and its processor."""
    model, processor = load_model(
        config, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    return model.eval(), processor


def ask_split(config: Config, args) -> None:
    """Every question of a split, once; accuracies at the end."""
    examples = load_split(config, args.eval, args.size)
    folder = (
        Path(args.ckpt) if Path(args.ckpt).is_dir() else Path("out", args.ckpt.replace("/", "--"))
    )
    path = Path(args.output or folder / "predictions.jsonl")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise InputError(f"--output {path}: {error.strerror}; give another file") from None
    how = {"ckpt": args.ckpt, "dataset": config.dataset, "split": args.eval}
    settings = dict(temperature=args.temperature, seed=args.seed or 0, batch_size=args.batch_size)
    lines = predict(*load(config), examples, config, path, how=how, **settings)
    for task, (accuracy, low, high, count) in accuracies(lines).items():
        show(f"{task}: accuracy {accuracy:.3f} [{low:.3f}, {high:.3f}], {count} questions\n")
    show(f"{path}\n")


def parse(argv: list[str]):
    """The command line."""
    parser = argparse.ArgumentParser(prog="sample.py", description="Ask a model.")
    group = parser.add_argument_group("model")
    group.add_argument(
        "--ckpt",
        default="out/charts-dyme",
        help="run's folder, checkpoint, or hub name (%(default)s)",
    )
    group.add_argument(
        "--max_completion_length", type=int, help="most tokens of a response (as trained)"
    )
    group.add_argument(
        "--max_pixels", type=int, help="an image with more is scaled down first (as trained)"
    )
    group.add_argument("--temperature", type=float, default=0.0, help="0: greedy (%(default)s)")
    group.add_argument(
        "--seed", type=int, help="of the question and of sampling (a random one; with --eval 0)"
    )
    group = parser.add_argument_group("one question")
    group.add_argument("--image", help="a picture")
    group.add_argument(
        "--question", help="what to ask; without it a random question of the data set"
    )
    group.add_argument(
        "--num_generations", type=int, default=1, help="responses to it (%(default)s)"
    )
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset", help="charts, chartqa, gsm8k, aokvqa, a .jsonl file (as trained; else chartqa)"
    )
    group.add_argument("--data_dir", help="folder or zip of the data set (as trained)")
    group.add_argument(
        "--split", default="test", help="that a random question is from (%(default)s)"
    )
    group = parser.add_argument_group("a whole split")
    group.add_argument("--eval", metavar="SPLIT", help="answer every question of a split")
    group.add_argument("--size", type=int, help="the first so many of its questions (all)")
    group.add_argument(
        "--batch_size", type=int, default=16, help="questions at a time (%(default)s)"
    )
    group.add_argument(
        "--output", help="where predictions go (predictions.jsonl in the checkpoint's folder)"
    )
    args = parser.parse_args(argv)
    if args.num_generations < 1 or args.batch_size < 1 or args.temperature < 0:
        raise InputError(
            "--num_generations and --batch_size: at least 1; --temperature: at least 0"
        )
    if args.num_generations > 1 and args.temperature == 0:
        raise InputError(
            "--num_generations: greedy responses are all the same; give --temperature 1 too"
        )
    return args


def main(argv: list[str]) -> None:
    """The command line; bad input ends in one line and exit code 2, Ctrl-C in 130."""
    try:
        args = parse(argv)
        config = settle(args)
        (ask_split if args.eval else ask)(config, args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            "interrupted" + ("; the same command goes on from here" if "--eval" in argv else ""),
            file=sys.stderr,
        )
        sys.exit(130)


if __name__ == "__main__":
    main(sys.argv[1:])
