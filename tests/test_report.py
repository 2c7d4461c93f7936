"""The report says what the runs logged, and trusts nobody."""

import base64
import io
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from data import InputError
from lib.log import visible
from tools import curves, gallery, report
from tools.curves import group_seeds, read_run

FACTS = [["black", "3"], ["yellow", "5"], ["red", "6"]]
HOSTILE = "</script><script>document.title='stolen'</script><img src=x onerror=alert(1)>"
HOSTILE += "\x1b[2J\u202e{{footer}} \" ' & $x^"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
TEXTS = ("black 3, red 5\nAnswer: red", "yellow 5")


def picture() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def response(text, total=0.0, advantage=0.0, correct=0.0):
    rewards = {"format": 1.0, "accuracy": correct, "thinking": 0.5}
    rewards |= {"total": total, "correct": correct}
    return {"text": text, "advantage": advantage, **rewards}


def write_run(folder, method="dyme", seed=0, reward=1.0, texts=TEXTS, **config) -> str:
    """A run's folder as train.py writes it: reward rising to `reward`, a memorized and an explored
    group.
    """
    folder.mkdir(parents=True)
    plain = {"dataset": "charts", "model": "tiny", "eval_split": "val"}
    config = {"method": method, "seed": seed, **plain, **config}
    reading = {"accuracy": 0.5, "format": 1.0, "fact_precision": 0.9, "grounded": 0.4, "count": 100}
    readings = {"val": {name: reading for name in ("greedy", "sampled", "direct")}}
    shares = {"share_memorize": 0.5, "share_explore": 0.25, "share_skip": 0.25}
    shares |= {"frac_reward_zero_std": 0.1, "completions/mean_length": 9.0, "step_time": 1.0}
    steps = [{"step": s, **shares, "reward": reward * s / 39} for s in range(40)]
    steps[0]["entropy"] = None
    asked = {"question": "Which?", "answer": "red", "facts": FACTS, "image": picture()}
    memorized = {"mode": "memorize", "target": "black 4\nAnswer: red"}
    groups = [{"step": 0, **asked, **memorized, "responses": [*map(response, texts)]}]
    explored = [response(texts[0], 2, 1, 1.0), response("no")]
    groups.append({"step": 25, **asked, "mode": "explore", "responses": explored})
    result = {"config": config, "val": [{"step": 40, **reading}]}
    result |= {"base": readings, "final": readings}
    for name, lines in (("metrics.jsonl", steps), ("groups.jsonl", groups)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "result.json").write_text(json.dumps(result))
    return str(folder)


def variants_of(*folders):
    return group_seeds([read_run(folder) for folder in folders])


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
    tame = Elements(report.page(variants_of(write_run(tmp_path / "tame"))))
    config = {"lr_schedule": HOSTILE, "model": HOSTILE, "dataset": HOSTILE}
    wild = write_run(tmp_path / "wild", texts=(HOSTILE, HOSTILE + "1"), **config)
    path = tmp_path / "wild" / "groups.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line.update(question=HOSTILE, answer=HOSTILE, facts=[[HOSTILE, HOSTILE]])
        line["image"] = 'data:image/png;base64,"onerror=alert(1)'
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    other = write_run(tmp_path / "other", lr_schedule="linear")  # then the label names the setting
    page = Elements(report.page(variants_of(other, wild), HOSTILE))
    assert {tag for tag, _ in page.found} <= {tag for tag, _ in tame.found} - {"script"}
    assert not [a for _, names in page.found for a in names if a.startswith("on")]
    sources = {a["src"] for tag, a in page.found if tag == "img"} - {picture()}
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert "\\x1b[2J\\u202e{{footer}}" in page.text and not {"\x1b", "\u202e"} & set(page.text)


@pytest.fixture
def no_pictures(monkeypatch):
    """Pages without pictures, which take most of the time."""
    monkeypatch.setattr(report, "has_matplotlib", lambda: False)


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")
def test_a_browser_opens_the_page_without_an_error(tmp_path):
    runs = [write_run(tmp_path / "tame"), write_run(tmp_path / "wild", texts=(HOSTILE, HOSTILE))]
    report.main([*runs, "--out", str(tmp_path / "out.html")])
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync dump-dom"
    flags += " disable-background-networking disable-component-update enable-logging=stderr"
    command = [BROWSER, *(f"--{flag}" for flag in flags.split())]
    command += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "out.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "CONSOLE" not in done.stderr
    found = Elements(done.stdout).found
    assert sum(tag == "details" and "open" in a for tag, a in found) == 1  # an explored group
    assert "<title>What the runs learned</title>" in done.stdout  # and no other


def test_stated_facts_are_marked_where_they_are_right_or_wrong():
    html = gallery.marked("so: black 3, yellow 6 and red 5.\nAnswer: 3 & 3", FACTS)
    true, false = '<mark class="is-true" title="', '<mark class="is-false" title="'
    assert html.startswith(f'so: black {true}black is 3">3<i>✓</i></mark>, yellow {false}yellow is')
    assert html.count(true) == 1 and html.count(false) == 2 and html.count("<i>✗</i>") == 2
    assert html.endswith("\nAnswer: 3 &amp; 3</b>")


def test_a_value_of_two_names_is_right_for_both_or_wrong():
    facts = [("a", "x", "3"), ("b", "x", "4")]
    assert "is-true" in gallery.marked("a x is 3", facts)
    assert 'title="a x is 3, b x is 4">3<i>✗</i>' in gallery.marked("both a x and b x are 3", facts)


def test_a_value_of_a_name_that_is_not_there_is_wrong():
    html = gallery.mark("9", [("green", "9")], [("black", "3")])
    assert html == '<mark class="is-false" title="green is not there">9<i>✗</i></mark>'


def test_visible_spells_out_what_acts_and_keeps_what_reads():
    assert visible("a\x1b[31m\r\x00\u202e\ud800") == "a\\x1b[31m\\r\\x00\\u202e\\ud800"
    assert visible("Grüße\t1\u00a0000 ✓\n→ 图") == "Grüße\t1\u00a0000 ✓\n→ 图"


def test_seeds_are_one_line_with_their_range(tmp_path):
    runs = [write_run(tmp_path / f"s{s}", seed=s, reward=s + 1.0) for s in (0, 1)]
    runs.append(write_run(tmp_path / "w", memorize_weight="one", seed=5))
    variants = variants_of(*runs)
    assert [len(variant.runs) for variant in variants] == [2, 1]
    assert len({variant.label for variant in variants}) == 2
    steps, _, smooth = curves.line_of(variants[0], "reward")
    assert smooth[:, steps.index(20)] == pytest.approx([20 / 39, 40 / 39])


def test_a_run_given_again_is_no_other_seed(tmp_path, capsys, no_pictures):
    runs = [write_run(tmp_path / name, output_dir=name) for name in ("a", "b")]
    variant = variants_of(*runs)[0]
    assert len(variant.runs) == 1 and variant.again == [Path(runs[1])]
    report.main([*runs, "--out", str(tmp_path / "out.html")])
    assert f"{runs[1]}: the same flags and seed" in capsys.readouterr().err
    page = Elements((tmp_path / "out.html").read_text()).text
    assert (
        "1 run on charts" in page and "no other seed" in page and "±" not in page.split("Every")[0]
    )


def test_one_method_has_one_colour_whatever_is_beside_it(tmp_path):
    runs = [write_run(tmp_path / method, method) for method in ("mine", "grpo", "dyme")]
    weighed = write_run(tmp_path / "one", memorize_weight="one")
    alone, all_four = variants_of(runs[2]), variants_of(*runs, weighed)
    for variants in (alone, all_four):
        colour = curves.METHODS["dyme"][1]
        assert f"--c:{colour};" in report.results_table(variants)
    dyme = [variant for variant in all_four if variant.method == "dyme"]
    assert [variant.nth for variant in dyme] == [0, 1]  # told apart by their dashes
    methods = [variant.method for variant in all_four]
    assert len({pair for m in methods if (pair := curves.colours(methods)[m])}) == 3


def test_a_moving_mean_has_no_shift_and_readings_are_not_smoothed(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    run.steps = [{"step": s, "reward": float(s), "odd": float(s == 100)} for s in range(200)]
    variant = curves.Variant("x", "dyme", 0, [run])
    steps, raw, smooth = curves.line_of(variant, "reward")
    assert smooth[0, 20:180] == pytest.approx(raw[0, 20:180]) and steps == list(range(200))
    assert curves.line_of(variant, "odd")[2].max() == pytest.approx(1 / 11)
    assert curves.line_of(variant, "accuracy", of_val=True)[2].tolist() == [[0.5, 0.5]]


def test_a_run_that_is_still_writing_can_be_read_and_a_broken_one_is_named(
    tmp_path, capsys, no_pictures
):
    folder = tmp_path / "run"
    write_run(folder)
    whole = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(whole[:-20])
    (folder / "result.json").unlink()
    assert len(read_run(folder).steps) == 39
    assert "39, unfinished" in report.page(variants_of(folder))
    (folder / "metrics.jsonl").write_text("[1]\n" + whole)
    torn = write_run(tmp_path / "torn")
    (tmp_path / "torn" / "result.json").write_text('{"config": []}')
    fine = write_run(tmp_path / "fine")
    for argv in [
        *([], [str(folder)], [str(tmp_path)], [str(tmp_path / "nothing")], [torn]),
        *([fine, "--out", "/no/where"], [fine, "--png", "p", "--noise", "README.md"]),
    ]:
        with pytest.raises(SystemExit) as stop:
            report.main(argv)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1


def test_a_group_that_is_not_one_is_an_error_with_its_file(tmp_path, no_pictures):
    folder = write_run(tmp_path / "run")
    (Path(folder) / "groups.jsonl").write_text(json.dumps({"step": 0, "mode": "<b>"}) + "\n")
    with pytest.raises(InputError, match="groups.jsonl, step 0"):
        report.page(variants_of(folder))


def test_the_readmes_pictures_are_the_pages(tmp_path):
    pytest.importorskip("matplotlib")
    variants = variants_of(write_run(tmp_path / "a$b"))
    records = json.loads(Path("results/noise.json").read_text())["records"]
    written = curves.save_png(variants, records, tmp_path / "png")
    names = ["accuracy", "true_facts", "reward", "advantage_collapse", "length"]
    names.append("seconds_per_step")
    assert [path.stem for path in written] == [*names, "modes", "noise"]
    assert all(Image.open(path).size[0] > 500 for path in written)
    page = Elements(report.page(variants))
    assert sum(tag == "picture" for tag, _ in page.found) == len(names) + 1


def test_without_matplotlib_the_page_has_tables_and_rollouts(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    folder = write_run(tmp_path / "run")
    page = Elements(report.page(variants_of(folder)))
    assert "pip install matplotlib" in page.text and "✓ correct" in page.text
    assert not [tag for tag, _ in page.found if tag == "picture"]
    with pytest.raises(SystemExit):
        report.main([folder, "--png", str(tmp_path / "png")])
    assert "pip install matplotlib" in capsys.readouterr().err
