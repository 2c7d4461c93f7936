"""The embedded charts: facts readable from the pixels, no leaking split, noise as told."""

import re
import zlib
from dataclasses import replace

import numpy as np
import pytest
from tokenizers.pre_tokenizers import ByteLevel

from data import charts
from data.charts import COLOURS, HELD_OUT, SIZES, TASKS, base_batch, load_charts
from data.example import DIRECT, THINK


def read_bars(image):
    """{colour: box} from the pixels alone, left to right."""
    boxes = {}
    for name, rgb in COLOURS.items():
        y, x = np.nonzero((np.asarray(image) == rgb).all(-1))
        if len(y):
            boxes[name] = (int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1)
    return dict(sorted(boxes.items(), key=lambda item: item[1]))


def names_in(text):
    return [word for word in re.findall(r"[a-z]+", text) if word in COLOURS]


def stated_facts(trace):
    observation = trace.split("Observation: ")[1].split(".\n")[0]
    return [tuple(fact.split()) for fact in observation.split(", ")]


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
        a, b = (names_in(example.question) + [None, None])[:2]
        needed = [a, b] if b else [a] if a else list(values)
        assert example.needed == [(name, str(values[name])) for name in needed]
        assert stated_facts(example.trace) == example.needed
        assert example.trace.endswith(f" {example.answer}.")
        x, y = values.get(a), values.get(b)
        right = {
            "value": lambda: str(x),
            "max": lambda: max(values, key=values.get),
            "min": lambda: min(values, key=values.get),
            "difference": lambda: str(x - y),
            "sum": lambda: str(x + y),
            "comparison": lambda: "yes" if x > y else "no",
            "detection": lambda: ",".join(map(str, boxes[a])),
            "classification": lambda: ", ".join(values),
        }
        assert example.answer == right[kind]()
        assert example.kind == charts.TASK_KINDS.get(kind, "text")


def test_an_item_depends_on_seed_split_and_index_alone():
    def key(example):
        return (example.question, example.facts, example.trace, example.image.tobytes())

    short, long = load_charts("train", 12), load_charts("train", 400)
    assert [key(e) for e in short] == [key(long[i]) for i in range(12)]
    others = load_charts("train", 12, data_seed=1), load_charts("val", 12), load_charts("test", 12)
    for other in others:
        assert all(key(a) != key(b) for a, b in zip(short, other))


def test_a_chart_of_val_test_or_ood_can_not_come_up_in_training():
    def home(example):
        bars = [(name, int(value)) for name, value in example.facts]
        return zlib.crc32(repr(bars).encode()) % 10

    seen = {split: {home(e) for e in load_charts(split, 120)} for split in SIZES}
    seen["base"] = {home(e) for e, *_ in base_batch(0, 0, 200) if e.image is not None}
    for split in ("val", "test", "ood"):
        assert all(not seen[split] & seen[other] for other in seen if other != split)


def test_held_out_questions_are_asked_in_ood_alone():
    def is_held_out(kind, example):
        asked = [example.answer] if kind in ("max", "min") else names_in(example.question)
        return HELD_OUT.get(kind) in asked

    for split in ("train", "val", "test"):
        for example in load_charts(split, 400, tasks=TASKS):
            assert not is_held_out(example.task, example)
    for example, *_ in base_batch(0, 0, 600, tasks=TASKS):
        example.question = example.question.split(". ")[-1]  # without the chart in words
        assert example.task == "caption" or not is_held_out(example.task, example)
    shifts = [example.task.split("-") for example in load_charts("ood", 72, tasks=TASKS)]
    assert {shift for _, shift in shifts} == {"5bars", "unseen"}
    for (kind, shift), example in zip(shifts, load_charts("ood", 72, tasks=TASKS)):
        assert is_held_out(kind, example) == (shift == "unseen")


@pytest.mark.parametrize("noise", [0.0, 0.25, 1.0])
def test_trace_noise_is_the_share_of_wrong_facts_in_training_traces_and_nothing_else(noise):
    for split in SIZES:
        wrong = []
        drawn = [load_charts(split, 400, 0, level) for level in (0.0, noise, 1.0)]
        for true, a, most in zip(*drawn):
            stated = stated_facts(a.trace)
            assert replace(a, trace=true.trace, image=true.image) == true
            assert a.image.tobytes() == true.image.tobytes()
            for fact, needed, worst in zip(stated, a.needed, stated_facts(most.trace), strict=True):
                assert fact in (needed, worst) and fact[0] == needed[0]  # wrong alike at all levels
                assert 1 <= int(fact[1]) <= 9
            wrong += [x != y for x, y in zip(stated, a.needed)]
        share = noise if split == "train" else 0
        assert abs(np.mean(wrong) - share) <= 3 * (share * (1 - share) / len(wrong)) ** 0.5


def test_no_text_has_a_token_outside_the_vocabulary():
    texts = [THINK, DIRECT, charts.CAPTION, charts.EXPLAIN, charts.GOAL]
    for split in SIZES:
        for example in load_charts(split, 500, trace_noise=0.5, tasks=TASKS):
            texts += [example.question, f"{example.trace}\nAnswer: {example.answer}"]
    for example, instruction, target in base_batch(1, 0, 2000, 0.2, TASKS):
        texts += [f"{instruction}\n{example.question}", target]
    known = set(charts.vocabulary())
    split = ByteLevel(add_prefix_space=False, use_regex=True).pre_tokenize_str
    # behind a chart in words a question begins with a space: these alone go byte by byte
    known |= {" Which", " What", " Is", " How"}
    assert {text[a:b] for text in texts for _, (a, b) in split(text)} <= known


def test_the_base_stage_is_pure_and_follows_the_format_as_often_as_told():
    def texts(*arguments):
        return [(e.question, target) for e, _, target in base_batch(*arguments)]

    assert texts(0, 3, 16) == texts(0, 3, 16)
    assert texts(0, 3, 16) != texts(0, 4, 16) and texts(0, 3, 16) != texts(1, 3, 16)
    for rate in (0.0, 0.5):
        batch = base_batch(0, 0, 3000, base_format_rate=rate)
        thinking = [(e, target) for e, instruction, target in batch if instruction == THINK]
        formatted = [target.endswith(f".\nAnswer: {e.answer}") for e, target in thinking]
        assert all(done or target == e.answer for done, (e, target) in zip(formatted, thinking))
        assert abs(np.mean(formatted) - rate) <= 3 * rate / len(formatted) ** 0.5
        assert {example.image is None for example, *_ in batch} == {True, False}
