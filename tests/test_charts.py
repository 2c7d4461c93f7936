"""The embedded charts: facts readable from the pixels, no leaking split, noise as told."""

import re
import zlib

import numpy as np
import pytest
from tokenizers.pre_tokenizers import ByteLevel

from data import charts
from data.charts import COLOURS, HELD_OUT, SIZES, TASKS, base_batch, load_charts
from data import InputError
from model import DIRECT, THINK

NAME_OF = {rgb: name for name, rgb in COLOURS.items()}


def read_bars(image):
    """{colour: box} from the pixels alone, left to right; white and grey are no bar's colour."""
    pixels = np.asarray(image.convert("RGB"))
    boxes = {}
    for x in range(pixels.shape[1]):
        for y in range(pixels.shape[0]):
            name = NAME_OF.get(tuple(pixels[y, x].tolist()))
            if name:
                left, top, right, bottom = boxes.get(name, (x, y, x, y))
                boxes[name] = (left, min(top, y), x + 1, max(bottom, y + 1))
    return boxes


def names_in(text):
    return [word for word in re.findall(r"[a-z]+", text) if word in COLOURS]


def stated_facts(trace):
    observation = trace.split("Observation: ")[1].split(".\n")[0]
    return [tuple(fact.split()) for fact in observation.split(", ")]


@pytest.mark.parametrize("split", SIZES)
def test_facts_are_read_back_from_the_pixels(split):
    for example in load_charts(split, 60):
        boxes = read_bars(example.image)
        assert example.image.size == (32, 32)
        read = [(name, str((box[3] - box[1]) // 3)) for name, box in boxes.items()]
        assert read == example.facts
        assert len(read) == (5 if example.task.endswith("5bars") else 4)


@pytest.mark.parametrize("split", SIZES)
def test_a_box_answer_is_the_bar_s_box_in_pixels(split):
    for example in load_charts(split, 40, tasks="detection"):
        box = tuple(map(int, example.answer.split(",")))
        assert box == read_bars(example.image)[names_in(example.question)[0]]
        crop = np.asarray(example.image.crop(box)).reshape(-1, 3).tolist()
        assert {NAME_OF.get(tuple(rgb)) for rgb in crop} == set(names_in(example.question))


def test_answers_follow_from_the_needed_facts():
    for example in load_charts("test", 120, tasks=TASKS):
        values = {name: int(value) for name, value in example.needed}
        asked = [values.get(name) for name in names_in(example.question)]
        right = {
            "value": lambda: str(asked[0]),
            "max": lambda: max(values, key=values.get),
            "min": lambda: min(values, key=values.get),
            "difference": lambda: str(asked[0] - asked[1]),
            "sum": lambda: str(asked[0] + asked[1]),
            "comparison": lambda: "yes" if asked[0] > asked[1] else "no",
            "detection": lambda: example.answer,  # has a test of its own
            "classification": lambda: ", ".join(values),
        }
        assert example.answer == right[example.task]()
        assert set(example.needed) <= set(example.facts)
        assert stated_facts(example.trace) == example.needed
        assert example.trace.endswith(f" {example.answer}.")
        if example.task in ("max", "min", "classification"):
            assert example.needed == example.facts


def test_every_kind_comes_equally_often():
    tasks = [example.task for example in load_charts("val", 60)]
    assert {tasks.count(kind) for kind in charts.KINDS} == {10}
    assert [e.task for e in load_charts("val", 9, tasks=TASKS)].count("detection") == 3


def test_an_item_depends_on_seed_split_and_index_alone():
    def key(example):
        return (example.question, example.facts, example.trace, example.image.tobytes())

    short, long = load_charts("train", 12), load_charts("train", 400)
    assert [key(e) for e in short] == [key(long[i]) for i in range(12)]
    assert key(long[-1]) == key(long[399]) == key(long[398:][1])
    others = load_charts("train", 12, data_seed=1), load_charts("val", 12), load_charts("test", 12)
    for other in others:
        assert all(key(a) != key(b) for a, b in zip(short, other))


def test_a_chart_of_val_test_or_ood_can_not_come_up_in_training():
    homes = {}
    for split in SIZES:
        for seed in (0, 1):
            for example in load_charts(split, 60, data_seed=seed):
                bars = [(name, int(value)) for name, value in example.facts]
                homes.setdefault(split, set()).add(zlib.crc32(repr(bars).encode()) % 10)
    homes["base"] = set()
    for example, _, _ in base_batch(0, 0, 200):
        if example.image is not None:
            bars = [(name, int(value)) for name, value in example.facts]
            homes["base"].add(zlib.crc32(repr(bars).encode()) % 10)
    for split in ("val", "test", "ood"):
        assert all(not homes[split] & homes[other] for other in homes if other != split)


def test_held_out_questions_are_asked_in_ood_alone():
    def is_held_out(kind, example):
        asked = [example.answer] if kind in ("max", "min") else names_in(example.question)
        return HELD_OUT.get(kind) in asked

    for split in ("train", "val", "test"):
        for example in load_charts(split, 400, tasks=TASKS):
            assert not is_held_out(example.task, example)
    for example, instruction, _ in base_batch(0, 0, 600, tasks=TASKS):
        example.question = example.question.split(". ")[-1]  # without the chart in words
        assert example.task == "caption" or not is_held_out(example.task, example)
    shifts = set()
    for example in load_charts("ood", 72, tasks=TASKS):
        kind, shift = example.task.split("-")
        shifts.add(shift)
        assert is_held_out(kind, example) == (shift == "unseen")
    assert shifts == {"5bars", "unseen"}


@pytest.mark.parametrize("noise", [0.0, 0.25, 0.5, 1.0])
def test_trace_noise_is_the_share_of_wrong_facts_in_training_traces(noise):
    wrong = []
    for example in load_charts("train", 600, trace_noise=noise):
        stated = stated_facts(example.trace)
        assert [name for name, _ in stated] == [name for name, _ in example.needed]
        assert all(1 <= int(value) <= 9 for _, value in stated)
        assert set(example.needed) <= set(example.facts)
        assert example.trace.endswith(f" {example.answer}.")
        wrong += [a != b for a, b in zip(stated, example.needed)]
    error = 3 * (noise * (1 - noise) / len(wrong)) ** 0.5
    assert abs(np.mean(wrong) - noise) <= error


def test_trace_noise_changes_nothing_but_training_traces():
    for split in SIZES:
        clean, noisy = load_charts(split, 30), load_charts(split, 30, trace_noise=0.9)
        same = [a.trace == b.trace for a, b in zip(clean, noisy)]
        assert all(same) == (split != "train")
        for a, b in zip(clean, noisy):
            assert a.image.tobytes() == b.image.tobytes()
            for name in ("question", "answer", "facts", "needed"):
                assert getattr(a, name) == getattr(b, name)


def test_a_fact_that_is_wrong_at_a_low_noise_is_wrong_alike_at_a_higher_one():
    low = load_charts("train", 60, trace_noise=0.25)
    high = load_charts("train", 60, trace_noise=0.5)
    for a, b in zip(low, high):
        for stated, more, true in zip(stated_facts(a.trace), stated_facts(b.trace), a.needed):
            assert stated == true or more == stated


def test_no_text_has_a_token_outside_the_vocabulary():
    texts = [THINK, DIRECT, charts.CAPTION, charts.EXPLAIN, charts.GOAL]
    for split in SIZES:
        for example in load_charts(split, 500, trace_noise=0.5, tasks=TASKS):
            texts += [example.question, example.answer]
            texts += [f"{example.trace}\nAnswer: {example.answer}"]
    for example, instruction, target in base_batch(1, 0, 2000, 0.2, TASKS):
        texts += [f"{instruction}\n{example.question}", target]
    known = set(charts.vocabulary())
    split = ByteLevel(add_prefix_space=False, use_regex=True).pre_tokenize_str
    # behind a chart in words a question begins with a space: these alone go byte by byte
    known |= {" Which", " What", " Is", " How"}
    assert {text[a:b] for text in texts for _, (a, b) in split(text)} <= known
    traces = [example.trace for example in load_charts("train", 500, trace_noise=0.5, tasks=TASKS)]
    assert max(len(split(trace)) for trace in traces) < 40


def test_base_stage_follows_the_format_as_often_as_told():
    asked = [(instruction, target) for _, instruction, target in base_batch(0, 0, 1000)]
    assert not any("Answer:" in target for instruction, target in asked if instruction == THINK)
    batch = base_batch(0, 0, 3000, base_format_rate=0.5)
    thinking = [(e, target) for e, instruction, target in batch if instruction == THINK]
    formatted = [target.endswith(f".\nAnswer: {example.answer}") for example, target in thinking]
    assert all(done or target == e.answer for done, (e, target) in zip(formatted, thinking))
    assert abs(np.mean(formatted) - 0.5) < 3 * 0.5 / len(formatted) ** 0.5
    assert {example.image is None for example, _, _ in batch} == {True, False}


def test_base_batches_are_pure_and_differ():
    def texts(*arguments):
        return [(e.question, target) for e, _, target in base_batch(*arguments)]

    assert texts(0, 3, 16) == texts(0, 3, 16)
    assert texts(0, 3, 16) != texts(0, 4, 16)
    assert texts(0, 3, 16) != texts(1, 3, 16)


@pytest.mark.parametrize(
    "flags",
    [{"split": "dev"}, {"size": 0}, {"trace_noise": 1.5}, {"data_seed": -1}, {"tasks": "ocr"}],
)
def test_a_bad_flag_is_an_error_of_one_line(flags):
    with pytest.raises(InputError) as error:
        load_charts(**{"split": "train", **flags})
    assert "\n" not in str(error.value)
    assert next(iter(flags)) in str(error.value)
