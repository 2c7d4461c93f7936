"""The report says what the runs logged, and trusts nobody."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lib.log import visible
from lib.log import run_program
from tools import curves, gallery, report
from tools.curves import COLOURS, group_seeds, line_of, read_run

FACTS = [["black", "3"], ["yellow", "5"], ["red", "6"]]
HOSTILE = "</script><script>document.title='stolen'</script><img src=x onerror=alert(1)>"
HOSTILE += "\x1b[2J\u202e{{footer}} \" ' & $x^"
PICTURE = "data:image/png;base64,iVBORw0KGgo="
TEXTS = ("black 3, red 5\nAnswer: red", "yellow 5")


def response(text, total=0.0, advantage=0.0, correct=0.0):
    rewards = {"format": 1.0, "accuracy": correct, "thinking": 0.5, "total": total}
    return {"text": text, "advantage": advantage, "correct": correct, **rewards}


def write_run(folder, method="dyme", seed=0, reward=1.0, texts=TEXTS, asked={}, **config) -> str:
    """A run's folder as train.py writes it: reward rising to `reward`, a memorized and an explored
    group.
    """
    config = {"method": method, "seed": seed, "dataset": "charts", "model": "tiny", **config}
    reading = {"accuracy": 0.5, "format": 1.0, "fact_precision": 0.9, "grounded": 0.4, "count": 100}
    readings = {"val": {name: reading for name in ("greedy", "sampled", "direct")}}
    result = {"config": config, "val": [{"step": 40, **reading}], "base": readings}
    shares = {"share_memorize": 0.5, "share_explore": 0.25, "share_skip": 0.25}
    steps = [{"step": s, **shares, "reward": reward * s / 39} for s in range(40)]
    asked = {"question": "Which?", "answer": "red", "facts": FACTS, "image": PICTURE, **asked}
    memorized = {"mode": "memorize", "target": "black 4", "responses": [*map(response, texts)]}
    explored = {"mode": "explore", "responses": [response(texts[0], 2, 1, 1.0), response("no")]}
    groups = [{"step": 0, **asked, **memorized}, {"step": 25, **asked, **explored}]
    folder.mkdir(parents=True)
    for name, lines in (("metrics.jsonl", steps), ("groups.jsonl", groups)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "result.json").write_text(json.dumps({**result, "final": readings}))
    return str(folder)


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


@pytest.fixture
def no_matplotlib(monkeypatch):
    monkeypatch.setattr(curves, "matplotlib", None)


def test_nothing_a_model_or_a_file_says_becomes_part_of_the_page(tmp_path):
    tame = Elements(report.page(variants_of(write_run(tmp_path / "tame"))))
    image = 'data:image/png;base64,"onerror=alert(1)'
    asked = {"question": HOSTILE, "answer": HOSTILE, "facts": [[HOSTILE, HOSTILE]], "image": image}
    config = {"lr_schedule": HOSTILE[-30:], "model": HOSTILE, "dataset": HOSTILE}
    wild = write_run(
        tmp_path / "wild", HOSTILE, texts=(HOSTILE, HOSTILE + "1"), asked=asked, **config
    )
    page = Elements(report.page(variants_of(wild)))
    assert {tag for tag, _ in page.found} <= {tag for tag, _ in tame.found} - {"script"}
    assert not [a for _, names in page.found for a in names if a.startswith("on")]
    sources = {a["src"] for tag, a in page.found if tag == "img"}
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert "\\x1b[2J\\u202e{{footer}}" in page.text and not {"\x1b", "\u202e"} & set(page.text)


def test_stated_facts_are_marked_where_they_are_right_or_wrong():
    html = gallery.marked("so: black 3, yellow 6 and red 5.\nAnswer: 3 & 3", FACTS)
    true, false = '<mark class="is-true">', '<mark class="is-false">'
    assert html.startswith(f"so: black {true}3<i>✓</i></mark>, yellow {false}6<i>✗</i></mark>")
    assert html.count(true) == 1 and html.count(false) == 2
    assert "\nAnswer: 3 &amp; 3</b>" in html
    facts = [("a", "x", "3"), ("b", "x", "4")]  # one value, stated of two names
    assert "is-true" in gallery.marked("a x is 3", facts)
    assert "is-false" in gallery.marked("both a x and b x are 3", facts)


def test_visible_spells_out_what_acts_and_keeps_what_reads():
    assert visible("a\x1b[31m\r\x00\u202e\ud800") == "a\\x1b[31m\\r\\x00\\u202e\\ud800"
    assert visible("Grüße\t1\u00a0000 ✓\n→ 图") == "Grüße\t1\u00a0000 ✓\n→ 图"


def test_seeds_are_one_line_with_their_spread_and_a_row_for_each_run(tmp_path, no_matplotlib):
    runs = [write_run(tmp_path / f"s{s}", seed=s, reward=s + 1.0, eval_steps=s) for s in (0, 1)]
    runs.append(write_run(tmp_path / "w", memorize_weight="one", seed=5))
    runs.append(write_run(tmp_path / "v", memorize_weight="group", seed=5))
    variants = variants_of(*runs)
    labels = ["dyme", "dyme, memorize_weight one", "dyme, memorize_weight group"]
    assert [(v.label, len(v.runs)) for v in variants] == list(zip(labels, (2, 1, 1)))
    steps, _, smooth = line_of(variants[0], "reward")
    assert smooth[:, steps.index(20)] == pytest.approx([20 / 39, 40 / 39])
    page = Elements(report.page(variants)).text
    assert "± 0.000" in page and "0.404 to 0.596" in page and all(run in page for run in runs)


def test_one_method_has_one_colour_whatever_is_beside_it(tmp_path):
    runs = [write_run(tmp_path / method, method) for method in ("mine", "grpo", "dyme")]
    weighed = write_run(tmp_path / "one", memorize_weight="one")
    for folders in ([runs[2]], [*runs, weighed]):
        variants = variants_of(*folders)
        assert f"--c:{COLOURS['dyme']}" in report.results_table(variants)
        assert len({variant.colour for variant in variants}) == len(variants)


def test_a_moving_mean_has_no_shift_and_readings_are_not_smoothed(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    run.steps = [{"step": s, "reward": float(s), "odd": float(s == 100)} for s in range(200)]
    variant = curves.Variant("x", COLOURS["dyme"], [run])
    steps, raw, smooth = line_of(variant, "reward")
    assert smooth[0, 20:180] == pytest.approx(raw[0, 20:180]) and steps == list(range(200))
    assert line_of(variant, "odd")[2].max() == pytest.approx(1 / 11)
    assert line_of(variant, "val/accuracy")[2].tolist() == [[0.5]]


def test_a_run_that_is_still_writing_can_be_read(tmp_path):
    folder = tmp_path / "run"
    write_run(folder)
    (folder / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text()[:-20])
    (folder / "checkpoints" / "step-000032").mkdir(parents=True)
    (folder / "result.json").rename(folder / "checkpoints" / "step-000032" / "state.json")
    run = read_run(folder)
    assert len(run.steps) == 39 and run.config["method"] == "dyme" and run.val


@pytest.mark.parametrize(
    ("argv", "written", "said"),
    [
        ("", {}, "give the folders"),
        ("{tmp}/no", {}, "no/metrics.jsonl"),
        ("{run} --out /no/where", {}, "/no/where"),
        ("{run} --png {tmp}/p", {}, "pip install matplotlib"),
        ("{run} {again}", {}, "again: has the flags and seed of"),
        ("{run}", {"metrics.jsonl": '{"step": 0}\n[1]\n'}, "metrics.jsonl, line 2"),
        ("{run}", {"groups.jsonl": '{"step": 3, "mode": "<b>"}\n'}, "groups.jsonl, step 3"),
        ("{run}", {"result.json": "[]"}, "result.json"),
    ],
)
def test_bad_input_is_one_line_that_names_it(argv, written, said, tmp_path, capsys, no_matplotlib):
    run, again = write_run(tmp_path / "run"), write_run(tmp_path / "again", output_dir="again")
    for name, text in written.items():
        (tmp_path / "run" / name).write_text(text)
    with pytest.raises(SystemExit) as stop:
        run_program(report.main, argv.format(tmp=tmp_path, run=run, again=again).split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert said in error


def test_the_readmes_pictures_are_the_pages(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    run = write_run(tmp_path / "a$b", "$b^")
    report.main([run, "--png", str(tmp_path / "png"), "--noise", "results/noise.json"])
    paths = [Path(line) for line in capsys.readouterr().out.split()]
    names = ["accuracy", "true_facts", "reward", "modes", "noise"]
    assert [path.stem for path in paths] == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    found = Elements(report.page(variants_of(run))).found
    assert sum(tag == "figure" for tag, _ in found) == 4  # all but the noise


def test_without_matplotlib_the_page_has_tables_and_rollouts(tmp_path, no_matplotlib):
    page = Elements(report.page(variants_of(write_run(tmp_path / "run"))))
    assert "pip install matplotlib" in page.text and "✓ correct" in page.text
    assert not [tag for tag, _ in page.found if tag == "figure"]
