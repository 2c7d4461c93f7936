"""The report says what the runs logged, and trusts nobody."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tools import curves, gallery, report
from tools.curves import COLOURS, group_seeds, line_of, mean_line, read_run

FACTS = [["black", "3"], ["yellow", "5"], ["red", "6"]]
HOSTILE = "</script><script>document.title='stolen'</script><img src=x onerror=alert(1)>"
HOSTILE += "\x1b[2J\u202e$footer \" ' & ${about}"
PNG = "data:image/png;base64,iVBORw0KGgo="
READING = {"accuracy": 0.5, "fact_precision": 0.9, "grounded": 0.4}
READINGS = {"val": dict.fromkeys(("greedy", "sampled", "direct", "other", "blank"), READING)}


def write_run(folder, method="dyme", seed=0, said="black 3, red 5", image=PNG, **config) -> str:
    """A run's folder as train.py writes it: rewards rise to seed + 1; two groups."""
    result = {"config": {"method": method, "seed": seed, **config}}
    result |= {"val": [{"step": 40, **READING}], "base": READINGS, "final": READINGS}
    shares = {"share_memorize": 0.5, "share_explore": 0.25, "share_skip": 0.25}
    steps = [{"step": s, **shares, "reward": (seed + 1) * s / 39} for s in range(40)]
    told = {"format": 1.0, "accuracy": 0.0, "thinking": 0.5, "text": said, "pushes": [[said, 1.0]]}
    right, wrong = ({**told, "advantage": x, "correct": x, "total": x} for x in (1.0, 0.0))
    group = {"question": said, "answer": said, "facts": [*FACTS, [said, said]], "image": image}
    memorized = {"step": 0, "mode": "memorize", "target": said, "target_pushes": [[said, 2.0]]}
    explored = {"step": 25, "mode": "explore", "target": None}
    explored["responses"] = [right, {**wrong, "text": "yellow 5"}]
    groups = [{**group, **memorized, "responses": [wrong, wrong]}, {**group, **explored}]
    folder.mkdir()
    for name, lines in (("metrics.jsonl", steps), ("groups.jsonl", groups)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "result.json").write_text(json.dumps(result))
    return str(folder)


def write_records(path, *noises) -> str:
    """Kept results as tools.compare --out writes them: a run per noise."""
    record = {"row": "dyme", "base_seed": 0, "base_format_rate": 0, "seed": 0, "steps": 20}
    record |= {"val": [0.1, 0.4], "on_the_way": [{"step": 4}, {"step": 20}], "base": {}}
    record |= {"final": READINGS}
    path.write_text(json.dumps({"records": [{**record, "trace_noise": n} for n in noises]}))
    return str(path)


def variants_of(*folders):
    return group_seeds([read_run(folder) for folder in folders])


class Elements(HTMLParser):
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
    image = 'data:image/png;base64,"onerror=alert(1)'
    wild = write_run(tmp_path / "wild", HOSTILE, 0, HOSTILE, image)
    page = Elements(report.page(variants_of(wild)))
    assert {tag for tag, _ in page.found} <= {tag for tag, _ in tame.found} - {"script"}
    assert not [a for _, names in page.found for a in names if a.startswith("on")]
    sources = [a["src"] for tag, a in page.found if tag == "img"]
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert "\\x1b[2J\\u202e$footer" in page.text and not {"\x1b", "\u202e"} & set(page.text)


def test_stated_facts_are_marked_where_they_are_right_or_wrong():
    html = gallery.marked("so: black 3, yellow 6 and red 5.\nAnswer: 3 & 3", FACTS)
    true, false = '<mark class="is-true">', '<mark class="is-false">'
    assert html.startswith(f"so: black {true}3<i>✓</i></mark>, yellow {false}6<i>✗</i></mark>")
    assert html.count(true) == 1 and html.count(false) == 2
    assert "\nAnswer: 3 &amp; 3</b>" in html
    facts = [("a", "x", "3"), ("b", "x", "4")]  # one value, stated of two names
    assert "is-true" in gallery.marked("a x is 3", facts)
    assert "is-false" in gallery.marked("both a x and b x are 3", facts)


def test_a_tokens_push_has_colour_and_sign_by_its_size():
    html = gallery.pushed([["red", -4.0], ["\n", 1.0], [" <b>", 0.01]], largest=4.0)
    assert '<span class="down" style="--s:1.00">red<small>−4.0</small></span>' in html
    assert '<span class="up" style="--s:0.25">⏎<small>+1.0</small></span><br>' in html
    assert " &lt;b&gt;<small></small>" in html and gallery.pushed([], 4.0) == ""


def test_seeds_are_one_variant_with_their_spread_and_a_method_keeps_its_colour(tmp_path):
    runs = [write_run(tmp_path / f"s{seed}", seed=seed) for seed in (0, 1)]
    variants = variants_of(*runs, write_run(tmp_path / "mine", "mine"))
    assert [(v.label, len(v.runs)) for v in variants] == [("dyme", 2), ("mine", 1)]
    assert mean_line(variants[0], "reward")[20] == pytest.approx(30 / 39)
    assert "<td>50.0 ± 0.0</td>" in report.results_table(variants)
    variants = variants_of(*runs, write_run(tmp_path / "large", num_generations=16))
    assert [(v.label, len(v.runs)) for v in variants] == [("s0", 2), ("large", 1)]
    assert variants[0].colour == COLOURS["dyme"] != variants[1].colour


def test_a_moving_mean_has_no_shift_and_readings_are_not_smoothed(tmp_path):
    lines = [{"step": s, "reward": float(s), "odd": float(s == 100)} for s in range(200)]
    run = curves.Run(tmp_path, [*lines, {"step": 40, "val/accuracy": 0.5}])
    line = line_of(run, "reward")
    assert [line[s] for s in range(20, 180)] == pytest.approx(list(range(20, 180)))
    assert max(line_of(run, "odd").values()) == pytest.approx(1 / 11)
    assert line_of(run, "val/accuracy") == {40: 0.5}


def test_a_run_that_is_still_writing_can_be_read(tmp_path):
    folder = tmp_path / "run"
    write_run(folder)
    torn = (folder / "metrics.jsonl").read_text()[:-20]
    (folder / "metrics.jsonl").write_text(torn)
    (folder / "checkpoints" / "step-000032").mkdir(parents=True)
    (folder / "result.json").rename(folder / "checkpoints" / "step-000032" / "state.json")
    run = read_run(folder)
    assert (folder / "metrics.jsonl").read_text() == torn
    assert len(run.lines) == 39 + 1 and run.config["method"] == "dyme"


BAD = [("metrics.jsonl", ""), ("metrics.jsonl", '{"step": 0}\n[1]\n'), ("result.json", "{}")]
BAD += [("groups.jsonl", '{"step": 3, "mode": "<b>"}\n'), ("result.json", '{"config": 5}')]
BAD += [("metrics.jsonl", '{"step": 0, "reward": "x"}\n')]


@pytest.mark.parametrize("name, text", BAD)
def test_a_bad_file_of_a_run_is_one_line_that_names_it(name, text, tmp_path, refused):
    if '"x"' in text:  # read where it is drawn
        pytest.importorskip("matplotlib")
    run = write_run(tmp_path / "run")
    (tmp_path / "run" / name).write_text(text)
    assert name in refused(report.main, run)


def test_pictures_of_runs_are_the_pages_and_kept_readings_are_at_their_steps(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    run = write_run(tmp_path / "a$b", "$b^")
    kept = write_records(tmp_path / "kept.json", 0.5)
    sources = [run, kept, write_records(tmp_path / "noise.json", 0.2, 0.5)]
    curves.main([*sources, "--out", str(tmp_path / "png")])
    paths = [Path(line) for line in capsys.readouterr().out.split()]
    names = ["kept_accuracy", "kept_looks", "noise", "modes", "accuracy", "true_facts", "reward"]
    assert [path.stem for path in paths] == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    found = Elements(report.page(variants_of(run))).found
    assert sum(tag == "figure" for tag, _ in found) == 4
    (record,) = curves.read_records([kept])
    assert line_of(curves.kept_run("dyme", record), "val/accuracy") == {4: 0.1, 20: 0.4}


def test_without_matplotlib_the_page_has_tables_and_rollouts(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "matplotlib", None)
    page = Elements(report.page(variants_of(write_run(tmp_path / "run"))))
    assert "pip install matplotlib" in page.text and "✓ correct" in page.text
    assert not [tag for tag, _ in page.found if tag == "figure"]
