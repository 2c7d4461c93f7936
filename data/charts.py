"""The embedded data set: bar charts drawn on the fly, and the tiny model's base texts about them.

Four bars without labels: a bar's name is its colour, its value (1 to 9) its height. Questions have
no question mark: a tiny model learns best from a name at their end. An item is a pure function of
(data_seed, split, index). `trace_noise` makes pseudo thinking traces in the sense of DyME (arXiv
2506.23061): stated facts are wrong, the conclusion is right all the same.
"""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel

from data.example import DIRECT, TASK_KINDS, THINK, Example

SIDE, UNIT = 32, 3  # pixels: of the image, of height for a value of 1
COLOURS = {"black": (0, 0, 0), "red": (220, 20, 30), "green": (20, 150, 40), "blue": (30, 60, 230)}
COLOURS |= {"yellow": (245, 225, 30), "orange": (255, 140, 0), "purple": (150, 30, 200)}
COLOURS |= {"cyan": (0, 205, 220)}

TASKS = ("chart", "detection", "classification")  # Curr-ReFT's three
KINDS = ("value", "max", "min", "difference", "sum", "comparison")  # of the task "chart"
GOALS = {"value": "find value", "max": "find highest", "min": "find lowest"}
GOALS |= {"difference": "find difference", "sum": "find sum", "comparison": "compare"}
GOALS |= {"detection": "find box", "classification": "find colours"}
# Only `ood` asks a kind about its colour here, or has it as the answer of max and min.
# Classification names every colour: nothing can be held out of it.
HELD_OUT = {"value": "purple", "max": "orange", "min": "cyan", "difference": "green"}
HELD_OUT |= {"sum": "red", "comparison": "blue", "detection": "yellow", "classification": None}

SIZES = {"train": 1000, "val": 300, "test": 600, "ood": 600}
SPLIT_IDS = {"train": 0, "val": 1, "test": 2, "ood": 3, "base": 4}
# The bars of a chart decide which splits may show it (its checksum modulo 10), so that no chart of
# val, test or ood is ever seen in training, whatever the seeds.
HOMES = {"train": range(7), "base": range(7), "val": (7,), "test": (8,), "ood": (9,)}


def sample_chart(rng, homes, count: int = 4) -> tuple[dict, dict]:
    """({colour: value}, {colour: box}) of a random chart at home in `homes`, from left to right."""
    names, home = list(COLOURS), None
    while home not in homes:
        colours, values = rng.permutation(len(names))[:count], rng.permutation(9)[:count]
        bars = [(names[c], int(v) + 1) for c, v in zip(colours, values)]
        home = zlib.crc32(repr(bars).encode()) % 10
    dx, dy = rng.integers(-1, 2, 2).tolist()  # jitter
    # with four bars each stays inside one column of 8 pixel patches, jitter included
    slot, floor = SIDE // count, SIDE - 3 + dy
    boxes = {}  # (left, top, right, bottom) in pixels, right and bottom exclusive
    for left, (colour, value) in zip(range(1 + dx, SIDE, slot), bars):
        boxes[colour] = (left, floor - UNIT * value, left + slot - 2, floor)
    return dict(bars), boxes


def draw(boxes: dict[str, tuple]) -> Image.Image:
    """The chart as a 32 x 32 RGB image: bars on a grey line, on white."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    floor = max(bottom for *_, bottom in boxes.values())
    image.paste((205, 205, 205), (0, floor, SIDE, floor + 1))
    for colour, box in boxes.items():
        image.paste(COLOURS[colour], box)
    return image


def pose(rng, kind: str, value: dict, boxes: dict) -> tuple[str, list[str], str]:
    """A question of `kind`: (question, names of the bars it needs in the order stated, answer)."""
    names = list(value)
    a, b = (names[i] for i in rng.permutation(len(names))[:2])
    low, top = sorted((a, b), key=value.get)
    question, needed, answer = {
        "value": (f"What is the value of {a}", [a], value[a]),
        "max": ("Which bar is highest", names, max(names, key=value.get)),
        "min": ("Which bar is lowest", names, min(names, key=value.get)),
        "difference": (f"How much higher is {top} than {low}", [top, low], value[top] - value[low]),
        "sum": (f"What is the sum of {a} and {b}", [a, b], value[a] + value[b]),
        "comparison": (f"Is {a} higher than {b}", [a, b], "yes" if a == top else "no"),
        "detection": (f"What is the box of {a}", [a], ",".join(map(str, boxes[a]))),
        "classification": ("Which colours are there", names, ", ".join(names)),
    }[kind]
    return question, needed, str(answer)


def sample_item(rng, kind: str, homes, count: int = 4, unseen: bool = False) -> Example:
    """The Example of a random chart, asking about HELD_OUT's colour if `unseen`, else never."""
    while True:
        value, boxes = sample_chart(rng, homes, count)
        question, names, answer = pose(rng, kind, value, boxes)
        asked = [answer] if kind in ("max", "min") else names
        if (HELD_OUT[kind] in asked) == unseen:
            break
    facts = [(name, str(height)) for name, height in value.items()]
    needed = [(name, str(value[name])) for name in names]
    trace, answered = write_trace(kind, needed, answer), TASK_KINDS.get(kind, "text")
    return Example(draw(boxes), question, answer, facts, needed, trace, task=kind, kind=answered)


def conclude(kind: str, stated: list, answer: str, so: str = "so") -> str:
    """One clause: what is done with the stated facts, [(name, value)], to reach the answer."""
    goal, values = GOALS[kind].split()[-1], [value for _, value in stated]
    if kind in ("max", "min"):
        return f"{goal} is {dict(stated)[answer]} {so} {answer}"
    if kind in ("difference", "sum"):
        return f"{values[0]} {'-' if kind == 'difference' else '+'} {values[1]} = {answer}"
    if kind == "comparison":
        relation = "more" if answer == "yes" else "less"
        return f"{values[0]} is {relation} than {values[1]} {so} {answer}"
    return f"{goal} {'are' if kind == 'classification' else 'is'} {answer}"


def write_trace(kind: str, stated: list, answer: str, concluded: list | None = None) -> str:
    """The reference thinking in DyME's form; its Reasoning is from `concluded`, else `stated`."""
    observed = ", ".join(f"{name} {value}" for name, value in stated)
    reasoning = conclude(kind, concluded or stated, answer)
    return f"Goal: {GOALS[kind]}.\nObservation: {observed}.\nReasoning: {reasoning}."


def corrupt(rng, stated: list, noise: float) -> list:
    """Each stated value replaced by another one of 1 to 9 with probability `noise`."""
    noisy = []  # what is wrong at noise 0.25 is wrong at 0.5 too, in the same way: comparable
    for name, value in stated:
        chance, step = rng.random(), int(rng.integers(1, 9))
        wrong = (int(value) - 1 + step) % 9 + 1
        noisy.append((name, str(wrong) if chance < noise else value))
    return noisy


def turns(tasks: Sequence[str]) -> list[str]:
    """The kinds in the order they take turns: tasks equally often, "chart" going through KINDS."""
    return [kind if task == "chart" else task for kind in KINDS for task in tasks]


def load_charts(
    split: str,
    size: int | None = None,
    data_seed: int = 0,
    trace_noise: float = 0.0,
    tasks: Sequence[str] = ("chart",),
) -> list[Example]:
    """Examples of train, val, test, or ood: charts of five bars (task "<kind>-5bars"), HELD_OUT's
    questions about four ("<kind>-unseen"). tasks: of TASKS. trace_noise: the share of wrong facts
    in train's traces; these go on into the Reasoning, whose result is right all the same.
    """
    kinds, examples = turns(tasks), []
    for index in range(SIZES[split] if size is None else size):
        kind, seed = kinds[index % len(kinds)], [data_seed, SPLIT_IDS[split], index]
        odd = index // len(kinds) % 2 == 1 and kind != "classification"
        shift = "" if split != "ood" else "-unseen" if odd else "-5bars"
        rng, count = np.random.default_rng(seed), 5 if shift == "-5bars" else 4
        example = sample_item(rng, kind, HOMES[split], count, shift == "-unseen")
        if split == "train":  # noise has a stream of its own: its level changes the trace alone
            stated = corrupt(np.random.default_rng([*seed, 1]), example.needed, trace_noise)
            example.trace = write_trace(kind, stated, example.answer)
        example.task, example.id = kind + shift, f"charts-{data_seed}-{split}-{index}"
        examples.append(example)
    return examples


# ---- the tiny model's base stage ----------------------------------------------------------------

CAPTION, CAPTION_QUESTION = "Describe the chart.", "What are the bars"
EXPLAIN, GOAL = "Think step by step in your own words.", "What is the goal?"
# captions, direct answers, informal workings; sums and workings in text alone
BASE_MIX = {"caption": 0.1, "direct": 0.2, "explain": 0.35, "goal": 0.05, "think": 0.1}
BASE_MIX |= {"sums": 0.05, "text": 0.15}
# A working with fixed words is copied and not reasoned, so the base stage's words vary.
# It has met the words of the required format, as any language model has, but never in that order.
OPENERS = ("I see", "there is", "look,", "we have", "first", "Observation:")
JOINERS = (", ", " and ", "; ", ", then ", ", also ")
LINKS = (", so ", ". hence ", "; then ", ", which means ", " and thus ", ".\nReasoning: ")
THEREFORE = ("so", "hence", "thus", "then")


def pick(rng, options):
    """One of a sequence, at random."""
    return options[rng.integers(len(options))]


def explain(rng, kind: str, stated: list, answer: str) -> str:
    """An informal working for the base stage: the facts and the conclusion in varying words."""
    text = pick(rng, OPENERS)
    for i, (name, value) in enumerate(stated):
        text += f"{pick(rng, JOINERS) if i else ' '}{name} {value}"
    text += pick(rng, LINKS) + conclude(kind, stated, answer, so=pick(rng, THEREFORE))
    return f"{text}.\nAnswer: {answer}" if rng.random() < 0.5 else text


def base_batch(
    data_seed: int,
    step: int,
    batch_size: int,
    base_format_rate: float = 0.0,
    tasks: Sequence[str] = ("chart",),
) -> list[tuple[Example, str, str]]:
    """A batch of the tiny model's base stage, of BASE_MIX: [(Example, instruction, target)], pure.
    Thinking prompts get a bare answer, or at base_format_rate the required format.
    """
    rng, kinds = np.random.default_rng([data_seed, SPLIT_IDS["base"], step]), turns(tasks)
    modes = rng.choice(list(BASE_MIX), batch_size, p=list(BASE_MIX.values())).tolist()
    return [base_text(rng, mode, pick(rng, kinds), base_format_rate) for mode in modes]


def base_text(rng, mode: str, kind: str, format_rate: float) -> tuple[Example, str, str]:
    """(Example, instruction, target text) of one of BASE_MIX's modes."""
    formatted = rng.random() < format_rate
    if mode == "sums":
        a, b = rng.integers(1, 10, 2).tolist()
        term, answer = f"{a} + {b}", str(a + b)
        if pick(rng, "+-") == "-":
            term, answer = f"{max(a, b)} - {min(a, b)}", str(abs(a - b))
        asked = (EXPLAIN, f"{term} = {answer}") if rng.random() < 0.5 else (DIRECT, answer)
        return Example(question=f"What is {term}", answer=answer, task="text"), *asked
    example = sample_item(rng, kind, HOMES["base"])
    stated = ", ".join(f"{name} {value}" for name, value in example.facts)
    if mode == "caption":
        example = Example(example.image, CAPTION_QUESTION, stated, example.facts, task=mode)
        return example, CAPTION, stated
    if mode == "goal":
        return example, GOAL, f"Goal: {GOALS[kind]}."
    if mode == "think":
        written = f"{example.trace}\nAnswer: {example.answer}"
        return example, THINK, written if formatted else example.answer
    if mode == "direct" or mode == "text" and kind == "detection":
        return example, DIRECT, example.answer
    target = explain(rng, kind, example.needed, example.answer)
    if mode == "text":  # the chart in words: names are learnt far sooner without a picture
        example = replace(example, image=None, question=f"{stated}. {example.question}")
    return example, EXPLAIN, target


@lru_cache
def vocabulary() -> list[str]:
    """The pieces, sorted, that a word-level tokenizer needs here; " red" is one, with its space."""
    texts = ["system\nuser\nassistant\n", "\nAnswer: x", "<answer>x</answer>", "no"]
    # the words of the judge and choice questions, see forms.py
    texts += ["Is the answer right or wrong? yes no", "Choose all right letters. A: B, C. D"]
    texts += [f"{blank}{x}" for x in [*COLOURS, *range(41), *"ABCDEF"] for blank in ("", " ")]
    for example, instruction, target in base_batch(0, 0, 600, 1.0, TASKS):
        if example.image:  # a question behind a chart in words begins with a space
            texts += [instruction, example.question, target]
    split = ByteLevel(add_prefix_space=False, use_regex=True).pre_tokenize_str
    return sorted({text[start:end] for text in texts for _, (start, end) in split(text)})
