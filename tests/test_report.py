"""
What a person sees (report.py and the files behind it, sample.py, predict.py) is right, and trusts
nobody.
"""

import base64
import io
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from tools import figures
from tools import pictures
from tools import gallery
from tools import predict
from tools import report
import rollout as rollout_file
import sample
from data.charts import load_charts
from data import InputError
from config import parse
from model import encode_prompt
from rollout import prefill, random_numbers, rollout
from tools.runs import group_seeds, read_run, visible
from lib.tiny import tiny_vlm

torch.set_num_threads(1)
FACTS = [["black", "3"], ["yellow", "5"], ["red", "6"]]
HOSTILE = "</script><script>document.title='stolen'</script><img src=x onerror=alert(1)>\x1b[2J\u202e{{footer}} \" ' &"
BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


def picture() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def response(text, total=0.0, advantage=0.0, correct=0.0):
    rewards = {
        "format": 1.0,
        "accuracy": correct,
        "thinking": 0.5,
        "total": total,
        "correct": correct,
    }
    return {"text": text, "advantage": advantage, **rewards}


TEXTS = ("black 3, red 5\nAnswer: red", "yellow 5")


def write_run(folder, method="dyme", seed=0, reward=1.0, texts=TEXTS, **config) -> str:
    """
    A run's folder as train.py writes it: reward rising to `reward`, a memorised and an explored
    group.
    """
    folder.mkdir(parents=True)
    config = {
        "method": method,
        "seed": seed,
        "dataset": "charts",
        "model": "tiny",
        "eval_split": "val",
        **config,
    }
    reading = {"accuracy": 0.5, "format": 1.0, "fact_precision": 0.9, "grounded": 0.4, "count": 100}
    readings = {name: reading for name in ("greedy", "sampled", "direct")}
    shares = {"share_memorize": 0.5, "share_explore": 0.25, "share_skip": 0.25, "share_equal": 0.1}
    steps = [
        {"step": s, **shares, "reward": reward * s / 39, "seconds": 1.0, "entropy": None}
        for s in range(40)
    ]
    group = {"question": "Which?", "answer": "red", "facts": FACTS, "image": picture()}
    groups = [
        {
            "step": 0,
            **group,
            "mode": "memorize",
            "target": "black 4\nAnswer: red",
            "responses": [*map(response, texts)],
        },
        {
            "step": 25,
            **group,
            "mode": "explore",
            "responses": [response(texts[0], 2, 1, 1.0), response("no")],
        },
    ]
    result = {
        "config": config,
        "val": [{"step": 40, **reading}],
        "base": {"val": readings},
        "final": {"val": readings},
    }
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    (folder / "groups.jsonl").write_text("".join(json.dumps(line) + "\n" for line in groups))
    (folder / "result.json").write_text(json.dumps(result))
    return str(folder)


class Elements(HTMLParser):
    """A page's elements with their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_nothing_a_model_or_a_file_says_becomes_part_of_the_page(tmp_path):
    tame = report.page(group_seeds([read_run(write_run(tmp_path / "tame"))]))
    folder = write_run(tmp_path / "wild", texts=(HOSTILE, HOSTILE + "1"), lr_schedule=HOSTILE)
    lines = [
        json.loads(line) for line in (tmp_path / "wild" / "groups.jsonl").read_text().splitlines()
    ]
    for line in lines:
        line.update(question=HOSTILE, answer=HOSTILE, facts=[[HOSTILE, HOSTILE]])
        line["image"] = 'data:image/png;base64,"onerror=alert(1)'
    (tmp_path / "wild" / "groups.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
    other = write_run(
        tmp_path / "other", lr_schedule="linear"
    )  # so that the setting is part of the other's label
    wild = Elements(report.page(group_seeds([read_run(other), read_run(folder)]), HOSTILE))
    scripts = [attributes for tag, attributes in wild.found if tag == "script"]
    assert [a for a in scripts if a != {"type": "application/json"}] == [
        {}
    ]  # the page's own, and data
    assert "lr_schedule \\u003c/script>" in wild.text
    assert {tag for tag, _ in wild.found} <= {tag for tag, _ in Elements(tame).found}
    assert not [
        name for _, attributes in wild.found for name in attributes if name.startswith("on")
    ]
    assert all(a["src"] == picture() for tag, a in wild.found if tag == "img")
    assert "\\x1b[2J\\u202e{{footer}}" in wild.text and not {"\x1b", "\u202e"} & set(wild.text)


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")
def test_a_browser_opens_the_page_without_an_error(tmp_path):
    runs = [
        write_run(tmp_path / "tame"),
        write_run(tmp_path / "wild", method="grpo", texts=(HOSTILE, HOSTILE)),
    ]
    report.main([*runs, "--out", str(tmp_path / "out.html")])
    quiet = [
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
    ]
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        *(f"--{flag}" for flag in quiet),
    ]
    command.append(f"--user-data-dir={tmp_path / 'profile'}")
    command += ["--enable-logging=stderr", "--dump-dom", (tmp_path / "out.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "CONSOLE" not in done.stderr
    found = Elements(done.stdout).found
    groups = [attributes for tag, attributes in found if tag == "article"]
    assert (
        len(groups) == 4 and sum("hidden" not in group for group in groups) == 1
    )  # the script ran
    assert "<title>What the runs learned</title>" in done.stdout  # and no other


def test_stated_facts_are_marked_where_they_stand_right_or_wrong():
    html = gallery.marked("so: black 3, yellow 6 and red 5.\nAnswer: 3 & 3", FACTS)
    assert html.startswith(
        'so: black <mark class="is-true" title="black is 3">3<i>✓</i></mark>, yellow <mark class="is-false"'
    )
    assert 'title="yellow is 5, not 6">6<i>✗</i></mark> and red <mark class="is-false"' in html
    assert html.endswith("\nAnswer: 3 &amp; 3</span>")
    assert html.count("<mark") == 3


def test_the_same_number_of_two_names_is_marked_for_each_alone():
    spans = gallery.stated_spans("black 3. yellow is 3, 3 + 3 = 6", FACTS)
    assert [(start, claim) for start, _, claim in spans] == [
        (6, ("black", "3")),
        (19, ("yellow", "3")),
    ]


def test_visible_spells_out_what_acts_and_keeps_what_reads():
    assert visible("a\x1b[31m\r\x00\u202e\ud800") == "a\\x1b[31m\\r\\x00\\u202e\\ud800"
    assert visible("Grüße\t1\u00a0000 ✓\n→ 图") == "Grüße\t1\u00a0000 ✓\n→ 图"


def test_seeds_are_one_line_with_their_range(tmp_path):
    runs = [
        write_run(tmp_path / f"s{seed}", seed=seed, reward=reward)
        for seed, reward in ((0, 1.0), (1, 2.0))
    ]
    runs += [
        write_run(tmp_path / "g", method="grpo"),
        write_run(tmp_path / "w", memorize_weight="one", seed=5),
    ]
    variants = group_seeds([read_run(folder) for folder in runs])
    assert [len(variant.runs) for variant in variants] == [2, 1, 1]
    assert (
        len({variant.label for variant in variants})
        == len({variant.colour for variant in variants})
        == 3
    )
    line = figures.lines_of(variants, figures.Curve("reward", "", ""))[0]
    middle = line.steps.index(20)
    low, high = 20 / 39, 40 / 39
    assert (line.low[middle], line.high[middle], line.mean[middle]) == pytest.approx(
        (low, high, (low + high) / 2)
    )


def test_a_run_that_is_still_writing_can_be_read_and_a_broken_one_is_named(tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    metrics = Path(folder) / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole[:-20])
    (Path(folder) / "result.json").unlink()
    assert len(read_run(folder).steps) == 39
    assert "unfinished" in report.page(group_seeds([read_run(folder)]))
    metrics.write_text("[1]\n" + whole)
    broken = [
        [folder],
        [str(tmp_path)],
        [str(tmp_path / "nothing")],
        [write_run(tmp_path / "b"), "--out", "/no/where"],
    ]
    for argv in broken:
        with pytest.raises(SystemExit) as stop:
            report.main(argv)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1


def test_a_group_that_is_not_one_is_an_error_with_its_file(tmp_path):
    folder = write_run(tmp_path / "run")
    (Path(folder) / "groups.jsonl").write_text(json.dumps({"step": 0, "mode": "<b>"}) + "\n")
    with pytest.raises(InputError, match="groups.jsonl, step 0"):
        report.page(group_seeds([read_run(folder)]))


def test_the_png_figures_are_of_the_same_curves(tmp_path):
    pytest.importorskip("matplotlib")
    variants = group_seeds([read_run(write_run(tmp_path / "a$b"))])
    written = pictures.save_png(variants, tmp_path / "png")
    assert [path.stem for path in written] == [curve.key for curve in figures.CURVES] + ["modes"]
    assert all(Image.open(path).size[0] > 500 for path in written)


# -------------------------------------------------------------------------------------------------
# sample.py, predict.py


@pytest.fixture(scope="module")
def vlm():
    """Untrained: it says anything, broken characters included."""
    return tiny_vlm(0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_streaming_says_what_rollout_says(vlm, temperature):
    model, processor = vlm
    prompt = encode_prompt(processor, load_charts("val", 1)[0])
    expected = rollout(model, processor, [prompt], 4, 24, temperature, seed=3)[0]
    with torch.no_grad():
        start = prefill(model, [prompt])
    for row, wanted in zip(torch.from_numpy(random_numbers(3, 0, [0], 4, 24)), expected):
        pieces = []
        assert sample.stream(model, processor, start, row, temperature, pieces.append) == wanted
        assert "".join(pieces) == wanted.text and len(pieces) > 1


def predictions(vlm, path, **settings):
    config = parse(["--max_completion_length", "6"])
    settings = {"temperature": 1.0, "seed": 1, "batch_size": 2, "how": {"split": "val"}, **settings}
    return predict.predict(*vlm, load_charts("val", 7), config, path, **settings)


def test_predictions_that_were_interrupted_end_as_unbroken_ones(vlm, tmp_path, monkeypatch):
    unbroken, broken = tmp_path / "unbroken.jsonl", tmp_path / "broken.jsonl"
    wanted = predictions(vlm, unbroken)
    calls = []

    def failing(*args, **kwargs):
        calls.append(kwargs)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return rollout_file.rollout(*args, **kwargs)

    monkeypatch.setattr(predict, "rollout", failing)
    with pytest.raises(KeyboardInterrupt):
        predictions(vlm, broken)
    broken.write_bytes(broken.read_bytes()[:-9])  # and its last line is torn
    assert predictions(vlm, broken) == wanted
    assert sorted(broken.read_text().splitlines()) == sorted(unbroken.read_text().splitlines())
    asked = len(calls)
    predictions(vlm, broken)
    assert len(calls) == asked  # nothing is asked twice


def test_other_weights_or_another_temperature_are_asked_anew(vlm, tmp_path):
    path = tmp_path / "predictions.jsonl"
    predictions(vlm, path)
    predictions(vlm, path, temperature=0.0)
    predictions(tiny_vlm(1), path, temperature=0.0)
    assert len(predict.read_predictions(path)) == 21


def test_accuracy_is_counted_by_task():
    lines = [
        {"task": task, "rewards": {"accuracy": a}}
        for task, a in [("human", 1), ("human", 0), ("augmented", 1)]
    ]
    found = predict.accuracies(lines)
    assert list(found) == ["all", "augmented", "human"]
    assert found["human"][0] == 0.5 and found["human"][3] == 2
    assert found["human"][1:3] == pytest.approx((0.0945, 0.9055), abs=1e-3)  # Wilson, 1 of 2


def test_no_escape_code_reaches_the_terminal(capsys):
    sample.show("\x1b]0;title\x07 fine\n")
    assert capsys.readouterr().out == "\\x1b]0;title\\x07 fine\n"


@pytest.mark.parametrize(
    "argv", ["--ckpt out/nothing", "--ckpt {tmp}", "--num_generations 4", "--batch_size 0"]
)
def test_what_cannot_be_asked_is_one_line_and_code_2(argv, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        sample.main(argv.format(tmp=tmp_path).split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
