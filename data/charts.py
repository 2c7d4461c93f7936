"""The embedded data set: charts drawn on the fly (bars.py), and the tiny model's base texts.

An item is a pure function of (data_seed, split, index), and its facts and thinking are known
exactly. `trace_noise` makes the training traces pseudo thinking traces in the sense of DyME (arXiv
2506.23061): stated facts are wrong, the conclusion is right all the same.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

from data.bars import COLOURS, GOALS, KINDS, conclude, corrupt, sample_item, write_trace
from data.example import DIRECT, TASK_KINDS, THINK, Example, InputError

TASKS = ("chart", "detection", "classification")  # Curr-ReFT's three, "chart" being all of KINDS

SIZES = {"train": 1000, "val": 300, "test": 600, "ood": 600}
SPLIT_IDS = {"train": 0, "val": 1, "test": 2, "ood": 3, "base": 4}
# The bars of a chart decide which splits may show it (its checksum modulo 10), so that no chart of
# val, test or ood is ever seen in training, whatever the seeds.
HOMES = {"train": range(7), "base": range(7), "val": (7,), "test": (8,), "ood": (9,)}

CAPTION = "Describe the chart."
EXPLAIN = "Think step by step in your own words."
GOAL = "What is the goal?"
CAPTION_QUESTION = "What are the bars"
BASE_MIX = {"caption": 0.1, "direct": 0.2, "explain": 0.35, "goal": 0.05, "think": 0.1}
BASE_MIX |= {"sums": 0.05, "text": 0.15}
# A working with fixed words is copied and not reasoned, so the base stage's words vary.
# It has met the words of the required format, as any language model has, but never in that order.
OPENERS = ("I see", "there is", "look,", "we have", "first", "Observation:")
JOINERS = (", ", " and ", "; ", ", then ", ", also ")
LINKS = (", so ", ". hence ", "; then ", ", which means ", " and thus ", ".\nReasoning: ")
THEREFORE = ("so", "hence", "thus", "then")


def explain(rng, kind: str, stated: list, answer: str) -> str:
    """An informal working for the base stage: the facts and the conclusion in varying words."""
    text = f"{pick(rng, OPENERS)} {stated[0][0]} {stated[0][1]}"
    for name, value in stated[1:]:
        text += f"{pick(rng, JOINERS)}{name} {value}"
    text += pick(rng, LINKS) + conclude(kind, stated, answer, so=pick(rng, THEREFORE))
    return f"{text}.\nAnswer: {answer}" if rng.random() < 0.5 else text


def pick(rng, options):
    """One of a sequence, at random."""
    return options[rng.integers(len(options))]


def to_example(kind, image, bars, question, names, answer, noise_rng=None, noise=0.0) -> Example:
    """The Example of an item: its trace may be noisy, its facts and answer are true."""
    facts = [(colour, str(value)) for colour, value in bars.items()]
    needed = [(name, dict(facts)[name]) for name in names]
    stated = corrupt(noise_rng, needed, noise) if noise else needed
    trace = write_trace(kind, stated, answer)
    answered = TASK_KINDS.get(kind, "text")
    return Example(image, question, answer, facts, needed, trace, task=kind, kind=answered)


def load_charts(
    split: str,
    size: int | None = None,
    data_seed: int = 0,
    trace_noise: float = 0.0,
    tasks: Sequence[str] = ("chart",),
) -> list[Example]:
    """Examples, each a pure function of (data_seed, split, index) and `tasks`.

    Splits: train, val, test, and ood, which alternates between charts of five bars (task
    "<kind>-5bars") and HELD_OUT's questions about four (task "<kind>-unseen"). Kinds take turns.
    tasks: see TASKS; a detection's answer is a box of sample_chart's. trace_noise: the share of
    wrong facts in the train split's traces. A misread value goes on into the Reasoning clause,
    whose result is right all the same ("7 - 4 = 2"), as in traces of a model that knew the answer.
    """
    if split not in SIZES:
        raise InputError(f"charts: no split {split!r}; there are {', '.join(SIZES)}")
    if not tasks or not set(tasks) <= set(TASKS):
        raise InputError(f"charts: tasks {tasks} must be some of {', '.join(TASKS)}")
    kinds = turns(tasks)
    examples = []
    for index in range(SIZES[split] if size is None else size):
        kind = kinds[index % len(kinds)]
        task, count, unseen = kind, 4, False
        if split == "ood":
            unseen = index // len(kinds) % 2 == 1 and kind != "classification"
            task, count = (f"{kind}-unseen", 4) if unseen else (f"{kind}-5bars", 5)
        seed = [data_seed, SPLIT_IDS[split], index]
        item = sample_item(np.random.default_rng(seed), kind, HOMES[split], count, unseen)
        # the noise has random numbers of its own: its level changes the trace and nothing else
        noise = trace_noise if split == "train" else 0.0
        example = to_example(kind, *item, np.random.default_rng([*seed, 1]), noise)
        examples.append(replace(example, task=task, id=f"charts-{data_seed}-{split}-{index}"))
    return examples


def turns(tasks: Sequence[str]) -> list[str]:
    """The kinds in the order they take turns: tasks equally often, "chart" going through KINDS."""
    return [kind if task == "chart" else task for kind in KINDS for task in tasks]


# ---- the tiny model's base stage ----------------------------------------------------------------


def text_question(rng) -> tuple[str, str, str]:
    """Arithmetic without an image: (question, answer, answer with its working)."""
    a, b = rng.integers(1, 10, 2).tolist()
    sign = pick(rng, "+-")
    a, b = (max(a, b), min(a, b)) if sign == "-" else (a, b)
    result = a + b if sign == "+" else a - b
    return f"What is {a} {sign} {b}", str(result), f"{a} {sign} {b} = {result}"


def base_batch(
    data_seed: int,
    step: int,
    batch_size: int,
    base_format_rate: float = 0.0,
    tasks: Sequence[str] = ("chart",),
) -> list[tuple[Example, str, str]]:
    """A batch of the tiny model's base stage: [(Example, instruction, target text)], pure.

    BASE_MIX of captions, direct answers, informal workings, the same and sums in text alone, and
    thinking prompts, which get a bare answer: the paper's weak instruction follower.
    base_format_rate: the share of thinking prompts that get the required format instead.
    """
    rng = np.random.default_rng([data_seed, SPLIT_IDS["base"], step])
    kinds = turns(tasks)
    batch = []
    for mode in rng.choice(list(BASE_MIX), batch_size, p=list(BASE_MIX.values())).tolist():
        kind = pick(rng, kinds)
        formatted = rng.random() < base_format_rate
        if mode == "sums":
            question, answer, working = text_question(rng)
            example = Example(question=question, answer=answer, task="text")
            worked = rng.random() < 0.5
            batch.append((example, EXPLAIN if worked else DIRECT, working if worked else answer))
            continue
        example = to_example(kind, *sample_item(rng, kind, HOMES["base"]))
        stated = ", ".join(f"{name} {value}" for name, value in example.facts)
        instruction, target = DIRECT, example.answer
        if mode == "caption":
            example = Example(example.image, CAPTION_QUESTION, stated, example.facts, task=mode)
            instruction, target = CAPTION, stated
        elif mode == "goal":
            instruction, target = GOAL, f"Goal: {GOALS[kind]}."
        elif mode == "think":
            instruction = THINK
            target = f"{example.trace}\nAnswer: {example.answer}" if formatted else target
        elif mode == "explain" or mode == "text" and kind != "detection":
            instruction, target = EXPLAIN, explain(rng, kind, example.needed, example.answer)
            if mode == "text":  # the chart in words: names are learnt far sooner without a picture
                question = f"{stated}. {example.question}"
                example = replace(example, image=None, question=question)
        batch.append((example, instruction, target))
    return batch


@lru_cache
def vocabulary() -> list[str]:
    """The pieces, sorted, that a word-level tokenizer needs here; " red" is one, with its space."""
    texts = [THINK, DIRECT, CAPTION, EXPLAIN, GOAL, CAPTION_QUESTION, "\nAnswer: x"]
    texts += ["system\nuser\nassistant\n", "<answer>x</answer>"]
    # the words of the judge and choice questions, see forms.py
    texts += ["Is the answer right or wrong? yes no", "Choose all right letters. A: B, C. D"]
    for word in [*COLOURS, *range(41), *"ABCDEF"]:
        texts += [f"{word}", f" {word}"]
    rng = np.random.default_rng(0)
    for kind in turns(TASKS) * 20:
        _, bars, question, names, answer = sample_item(rng, kind, range(10))
        stated = [(name, bars[name]) for name in names]
        texts += [question, answer, write_trace(kind, stated, answer)]
        texts += [explain(rng, kind, stated, answer), *text_question(rng)]
    split = ByteLevel(add_prefix_space=False, use_regex=True).pre_tokenize_str
    return sorted({text[start:end] for text in texts for _, (start, end) in split(text)})
