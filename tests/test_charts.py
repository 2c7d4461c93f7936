"""The embedded charts: facts readable from the pixels, no leaking split, noise as told."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
from tokenizers.pre_tokenizers import ByteLevel

from data import charts
from data.charts import COLOURS, HELD_OUT, SIZES, TASKS, base_batch, load_charts
from data.example import TASK_KINDS, THINK


def read_bars(image):
    """{colour: box} from the pixels alone, left to right."""
    boxes = {}
    for name, rgb in COLOURS.items():
        y, x = np.nonzero((np.asarray(image) == rgb).all(-1))
        if len(y):
            boxes[name] = (int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1)
    return dict(sorted(boxes.items(), key=lambda item: item[1]))


def stated_facts(trace):
    observation = trace.split("Observation: ")[1].split(".\n")[0]
    return [tuple(fact.split()) for fact in observation.split(", ")]


def asked_names(example):
    """The colours in a question, behind the chart in words of the base stage's."""
    return [word for word in example.question.split(". ")[-1].split() if word in COLOURS]


@pytest.mark.parametrize("split", SIZES)
def test_facts_answers_and_traces_follow_from_the_pixels(split):
    examples = load_charts(split, 108, tasks=TASKS)
    kinds = [example.task.split("-")[0] for example in examples]
    assert {kinds.count(kind) for kind in charts.KINDS} == {6}  # they take turns
    for kind, example in zip(kinds, examples):
        boxes = read_bars(example.image)
        values = {name: (box[3] - box[1]) // 3 for name, box in boxes.items()}
        assert example.facts == [(name, str(value)) for name, value in values.items()]
        assert len(values) == (5 if example.task.endswith("5bars") else 4)
        names = asked_names(example)
        x, y = ([values[name] for name in names] + [0, 0])[:2]
        right = {
            "value": x,
            "max": max(values, key=values.get),
            "min": min(values, key=values.get),
            "difference": x - y,
            "sum": x + y,
            "comparison": "yes" if x > y else "no",
            "detection": ",".join(str(side) for name in names for side in boxes[name]),
            "classification": ", ".join(values),
        }
        assert example.answer == str(right[kind]) and example.kind == TASK_KINDS.get(kind, "text")
        assert example.needed == [(name, str(values[name])) for name in names or values]
        assert stated_facts(example.trace) == example.needed
        assert example.trace.endswith(f" {example.answer}.")


def test_an_item_depends_on_seed_split_and_index_alone():
    short = load_charts("train", 12)
    assert short == load_charts("train", 400)[:12]
    for other in (("train", 12, 1), ("val", 12), ("test", 12)):
        assert all(a.image != b.image for a, b in zip(short, load_charts(*other)))


def test_neither_a_chart_of_val_test_or_ood_nor_a_held_out_question_comes_up_in_training():
    splits, homes = {split: load_charts(split, 400, tasks=TASKS) for split in SIZES}, {}
    splits["base"] = [e for e, *_ in base_batch(0, 0, 600, tasks=TASKS) if e.facts]
    for split, examples in splits.items():
        for example in examples:
            kind, _, shift = example.task.partition("-")
            asked = [example.answer] if kind in ("max", "min") else asked_names(example)
            assert (HELD_OUT.get(kind, "none") in asked) == (shift == "unseen")
            bars = [(name, int(value)) for name, value in example.facts]
            homes.setdefault(split, set()).add(zlib.crc32(repr(bars).encode()) % 10)
    for split in ("val", "test", "ood"):
        assert all(not homes[split] & homes[other] for other in homes if other != split)


@pytest.mark.parametrize("noise", [0.25, 1.0])
def test_trace_noise_is_the_share_of_wrong_facts_in_training_traces_and_nothing_else(noise):
    for split in ("train", "val"):
        wrong = []
        for true, a, most in zip(*(load_charts(split, 400, 0, x) for x in (0.0, noise, 1.0))):
            assert replace(a, trace=true.trace) == true
            facts = zip(stated_facts(a.trace), a.needed, stated_facts(most.trace), strict=True)
            for fact, needed, worst in facts:
                assert fact in (needed, worst) and fact[0] == needed[0]  # wrong alike at all levels
                assert 1 <= int(fact[1]) <= 9
                wrong.append(fact != needed)
        share = noise if split == "train" else 0
        assert abs(np.mean(wrong) - share) <= 3 * (share * (1 - share) / len(wrong)) ** 0.5


def test_no_text_has_a_token_outside_the_vocabulary():
    texts = []
    for split in SIZES:
        for example in load_charts(split, 500, trace_noise=0.5, tasks=TASKS):
            texts += [example.question, f"{example.trace}\nAnswer: {example.answer}"]
    for example, instruction, target in base_batch(1, 0, 2000, 0.2, TASKS):
        texts += [f"{instruction}\n{example.question}", target]
    split = ByteLevel(add_prefix_space=False, use_regex=True).pre_tokenize_str
    # behind a chart in words a question begins with a space: these alone go byte by byte
    known = {*charts.vocabulary(), " Which", " What", " Is", " How"}
    assert {text[a:b] for text in texts for _, (a, b) in split(text)} <= known


def test_the_base_stage_is_pure_and_follows_the_format_as_often_as_told():
    def texts(*arguments):
        return [(e.question, target) for e, _, target in base_batch(*arguments)]

    assert texts(0, 3, 16) == texts(0, 3, 16)
    assert texts(0, 3, 16) not in (texts(0, 4, 16), texts(1, 3, 16))
    for rate in (0.0, 0.5):
        batch = base_batch(0, 0, 3000, base_format_rate=rate)
        thinking = [(e, target) for e, instruction, target in batch if instruction == THINK]
        formatted = [target.endswith(f".\nAnswer: {e.answer}") for e, target in thinking]
        assert all(done or target == e.answer for done, (e, target) in zip(formatted, thinking))
        assert abs(np.mean(formatted) - rate) <= 3 * rate / len(formatted) ** 0.5
        assert {example.image is None for example, *_ in batch} == {True, False}
