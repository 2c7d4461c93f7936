"""The report says what the runs logged, and trusts nobody."""

import json
from html.parser import HTMLParser

import pytest

from tools import curves, report
from tools.curves import group_seeds, lines_of
from tools.tables import read_run

FACTS = [["black", "3"], ["yellow", "5"], ["red", "6"]]
HOSTILE = "</script><script>document.title='stolen'</script><img src=x onerror=alert(1)>"
HOSTILE += "\x1b[2J\u202e$footer \" ' & ${about}"
READING = {"accuracy": 0.5, "fact_precision": 0.9, "grounded": 0.4}
READINGS = {"val": dict.fromkeys(("greedy", "sampled", "direct", "other", "blank"), READING)}


def write_run(folder, said="black 3, red 5", image="iVBORw0=", seed=0, **config):
    """A run's folder as train.py writes it: two groups, rewards that rise to seed + 1."""
    result = {"config": {"method": "dyme", "seed": seed, **config}, "base": READINGS}
    result |= {"val": [{"step": 40, **READING}], "final": READINGS}
    told = dict.fromkeys(("format", "accuracy", "thinking", "correct", "advantage", "total"), 1.0)
    response = {**told, "text": said, "pushes": [[said, 1.0]]}
    group = {"question": said, "answer": said, "facts": [*FACTS, [said, said]]}
    group |= {"image": f"data:image/png;base64,{image}", "responses": [response] * 2}
    groups = [{**group, "step": 0, "mode": "memorize", "target": said}]
    groups += [{**group, "step": 25, "mode": "explore", "target": None}]
    shares = dict.fromkeys((f"share_{mode}" for mode in curves.MODES), 0.3)
    steps = [{"step": s, **shares, "reward": (seed + 1) * s / 39} for s in range(40)]
    folder.mkdir()
    for name, lines in (("metrics", steps), ("groups", groups)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def read_page(*folders):
    """The elements of the page about runs, [(tag, attributes)], and its text."""
    parser, tags, texts = HTMLParser(), [], []
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.handle_data = texts.append
    parser.feed(report.page(group_seeds([read_run(folder) for folder in folders])))
    return tags, "".join(texts)


def test_nothing_a_model_or_a_file_says_becomes_part_of_the_page(tmp_path):
    tame, _ = read_page(write_run(tmp_path / "tame"))
    wild = write_run(tmp_path / "wild", HOSTILE, '"onerror=alert(1)', method=HOSTILE)
    tags, text = read_page(wild)
    assert {tag for tag, _ in tags} <= {tag for tag, _ in tame}
    assert not [a for _, names in tags for a in names if a.startswith("on")]
    assert all(a["src"].startswith("data:image/") for tag, a in tags if tag == "img")
    assert "\\x1b[2J\\u202e$footer" in text and not {"\x1b", "\u202e"} & set(text)


def test_stated_facts_are_marked_where_they_are_right_or_wrong():
    html = report.marked("so: black 3, yellow 6 and red 5.\nAnswer: 3 & 3", FACTS)
    true, false = '<mark class="is-true">', '<mark class="is-false">'
    assert html.startswith(f"so: black {true}3<i>✓</i></mark>, yellow {false}6<i>✗</i></mark>")
    assert html.count(true) == 1 and html.count(false) == 2
    assert "\nAnswer: 3 &amp; 3</b>" in html
    both = [("a", "x", "3"), ("b", "x", "4")]  # one value, stated of two names
    assert "is-false" in report.marked("both a x and b x are 3", both)


def test_a_tokens_push_has_colour_and_sign_by_its_size():
    html = report.pushed([["red", -4.0], ["\n", 1.0], [" <b>", 0.01]], largest=4.0)
    assert '<span class="down" style="--s:1.00">red<small>−4.0</small></span>' in html
    assert '<span class="up" style="--s:0.25">⏎<small>+1.0</small></span><br>' in html
    assert " &lt;b&gt;<small></small>" in html and report.pushed([], 4.0) == ""


def test_seeds_are_one_variant_with_their_spread_and_a_method_keeps_its_colour(tmp_path):
    runs = [read_run(write_run(tmp_path / f"s{seed}", seed=seed)) for seed in (0, 1)]
    large = read_run(write_run(tmp_path / "large", num_generations=16))
    (label, colour, both), *others = variants = group_seeds(runs)
    assert (label, colour, both, others) == ("dyme", curves.COLOURS["dyme"], runs, [])
    assert lines_of(both, "reward")[-1][20] == pytest.approx(30 / 39)
    assert "<td>50.0 ± 0.0</td>" in report.results_table(variants)
    (label, same, _), (other, spare, _) = group_seeds([*runs, large])
    assert (label, other) == ("s0", "large") and same == colour != spare


def test_a_moving_mean_has_no_shift_and_readings_are_not_smoothed():
    lines = [{"step": s, "reward": float(s), "odd": float(s == 100)} for s in range(200)]
    runs = [{"lines": [*lines, {"step": 40, "val/accuracy": 0.5}]}]
    line, odd, read = (lines_of(runs, name)[0] for name in ("reward", "odd", "val/accuracy"))
    assert [line[s] for s in range(20, 180)] == pytest.approx(list(range(20, 180)))
    assert max(odd.values()) == pytest.approx(1 / 11) and read == {40: 0.5}


def test_a_run_that_is_still_writing_can_be_read(tmp_path):
    folder = write_run(tmp_path / "run")
    torn = (folder / "metrics.jsonl").read_text()[:-20]
    (folder / "metrics.jsonl").write_text(torn)
    (folder / "checkpoints" / "step-000032").mkdir(parents=True)
    (folder / "result.json").rename(folder / "checkpoints" / "step-000032" / "state.json")
    run = read_run(folder)
    assert (folder / "metrics.jsonl").read_text() == torn
    assert len(run["lines"]) == 39 + 1 and run["config"]["method"] == "dyme"


BAD = [("metrics.jsonl", ""), ("metrics.jsonl", '{"step": 0}\n[1]\n'), ("result.json", "{}")]
BAD += [("groups.jsonl", '{"step": 3, "mode": "<b>"}\n'), ("result.json", '{"config": 5}')]
BAD += [("metrics.jsonl", '{"step": 0, "reward": "x"}\n')]


@pytest.mark.parametrize("name, text", BAD)
def test_a_bad_file_of_a_run_is_one_line_that_names_it(name, text, tmp_path, refused):
    if '"x"' in text:  # read where it is drawn
        pytest.importorskip("matplotlib")
    (write_run(tmp_path / "run") / name).write_text(text)
    assert name in refused(report.main, str(tmp_path / "run"))


def test_pictures_are_of_runs_of_kept_readings_and_of_noise(tmp_path):
    pytest.importorskip("matplotlib")
    run = write_run(tmp_path / "a$b", method="$b^")
    record = {"row": "dyme", "base_seed": 0, "base_format_rate": 0, "seed": 0, "steps": 20}
    record |= {"val": [0.1, 0.4], "on_the_way": [{"step": 4}, {"step": 20}], "base": {}}
    records = [{**record, "final": READINGS, "trace_noise": noise} for noise in (0.2, 0.5)]
    for name, kept in {"kept": records[1:], "noise": records}.items():
        (tmp_path / name).write_text(json.dumps({"records": kept}))
    curves.main([*map(str, (run, tmp_path / "kept", tmp_path / "noise")), "--out", str(tmp_path)])
    names = ["accuracy", "kept_accuracy", "kept_looks", "modes", "noise", "reward", "true_facts"]
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == names
    line = curves.draw_records("kept", records[1:])["kept_Accuracy"].axes[0].lines[-1]
    assert line.get_xydata().tolist() == [[4, 0.1], [20, 0.4]]
    assert sum(tag == "figure" for tag, _ in read_page(run)[0]) == 4


def test_without_matplotlib_the_page_has_tables_and_rollouts(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "matplotlib", None)
    tags, text = read_page(write_run(tmp_path / "run"))
    assert "pip install matplotlib" in text and "✓ correct" in text
    assert "figure" not in dict(tags)
