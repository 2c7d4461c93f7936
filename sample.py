"""Ask a model one question; the answer appears as it is written.

    python sample.py --ckpt out/charts-dyme                a random test question of its data set
    python sample.py --ckpt out/charts-dyme --image chart.png --question "Which bar is highest"
    python sample.py --ckpt out/charts-dyme --num_generations 4 --temperature 1

Prompt, sampler and metric are training's own. Left out: conversations; a whole split (evaluate.py).
"""

import random
import sys

from config import least
from data import load_data, open_image
from data.example import Example, InputError
from evaluate import marks, parse
from lib.answers import split_response
from lib.checkpoint import load
from lib.claims import claimed_facts
from lib.log import run_program, visible
from model import get_tokenizer
from rollout import Group, make_groups, rollout

FLAGS = {
    "image": {"help": "a picture"},
    "question": {"help": "what to ask (default: a random question of the data set)"},
    "num_generations": {"type": least(1), "default": 1, "help": "responses to it (default: 1)"},
    "seed": {"type": least(0), "help": "of the question and of sampling (default: a random one)"},
}


def stream(model, processor, group: Group, on_text, **sampling) -> None:
    """One response to the group's prompt, as rollout samples it; on_text(piece) sees it grow. A
    piece comes one token late, without the end token, and waits while a character lacks bytes.
    """
    ids, shown = [], ""

    def on_token(group, g, token):
        nonlocal shown
        text = get_tokenizer(processor).decode(ids) if ids else ""
        ids.append(token)
        if not text.endswith("\ufffd"):
            on_text(text[len(shown) :])
            shown = text

    rollout(model, processor, [group], num_generations=1, on_token=on_token, **sampling)
    on_text(group.responses[0].text[len(shown) :])


def verdict(group: Group, tolerance: float = 0.0) -> str:
    """The rewards of a response and which of its stated facts are true, where these are known."""
    (response,), example = group.responses, group.example
    cut = "(cut off)\n" if response.truncated else ""
    if not example.answer:
        return cut
    row = marks(group, tolerance)
    parts = ", ".join(f"{name} {row[name]:.2f}" for name in ("format", "accuracy", "thinking"))
    told = f"{cut}{'✓ right' if row['accuracy'] > 0.5 else '✗ wrong'}    {parts}\n"
    facts = list(map(tuple, example.facts))
    claims = claimed_facts(split_response(response.text)[0], facts)
    stated = ", ".join(f"{' '.join(claim)} {'✓' if claim in facts else '✗'}" for claim in claims)
    return told + (f"states     {stated}\n" if stated else "")


def show(text: str) -> None:
    """Print at once, what could act on a terminal spelled out."""
    print(visible(text), end="", flush=True)


def ask(argv: list[str]) -> None:
    """One question, answered num_generations times."""
    args = parse(argv, "Ask a model.", FLAGS)
    if args.num_generations > 1 and args.temperature == 0:
        raise InputError("--num_generations: greedy responses are all alike; give --temperature 1")
    if args.seed is None:
        args.seed = random.randrange(10**6)
    sampling = {**args.asked, "seed": args.seed}
    tolerance, max_pixels = sampling.pop("tolerance"), sampling.pop("max_pixels")
    example = Example(args.image, args.question)
    if args.image is None and args.question is None:
        about = (args.dataset, args.split, args.data_dir)
        examples = load_data(*about, skip_bad_rows=args.skip_bad_rows)
        example = examples[random.Random(args.seed).randrange(len(examples))]
    elif not args.question:
        raise InputError("--question: is missing or empty; an image alone asks nothing")
    open_image(example)  # a bad one is found before a model is loaded
    model, processor = load(args.model)
    (group,) = make_groups(model, processor, [example], max_pixels=max_pixels)
    if example.answer:
        show(f"{example.id}  (--seed {args.seed} asks it again)\nquestion   {example.question}\n")
        show(f"facts      {', '.join(' '.join(fact) for fact in example.facts) or 'not known'}\n")
        show(f"reference  {example.answer}\n")
    for g in range(args.num_generations):
        show("\n")
        stream(model, processor, group, show, step=g, **sampling)  # other random numbers each
        show(f"\n{verdict(group, tolerance)}")


if __name__ == "__main__":
    run_program(ask, sys.argv[1:])
