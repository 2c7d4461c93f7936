"""What comparisons run, keep and print, and what the report says: of anybody's runs, safely."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from data import InputError
from tools import bench, compare, curves, growth, report
from tools.curves import group_seeds
from tools.tables import paired, read_records, read_run, table

README = Path("results/README.md").read_text()
COMMANDS = re.findall(r"`python -m tools\.compare\s(--table[^`]+)`", README)
FACTS = [["black", "3"], ["yellow", "5"], ["red", "6"]]
HOSTILE = "</script><script>document.title='stolen'</script><img src=x onerror=alert(1)>"
HOSTILE += "\x1b[2J\u202e$footer \" ' & ${about}"
READING = {"accuracy": 0.5, "fact_precision": 0.9, "grounded": 0.4}
READINGS = {"test": dict.fromkeys(("greedy", "sampled", "direct", "other", "blank"), READING)}


def record(row, seed, accuracy, **changed):
    final = {"test": {name: {**READING, "accuracy": accuracy} for name in READINGS["test"]}}
    about = {"base_seed": 0, "trace_noise": 0.5, "base_format_rate": 0, "base": {}}
    return {"row": row, "seed": seed, **about, "final": final, **changed}


def write_run(folder, said="black 3, red 5", image="iVBORw0=", **config):
    """A run's folder as train.py writes it: a group, rewards that rise to seed + 1."""
    config = {"method": "dyme", "seed": 0, "max_steps": 40, **config}
    val = [{"step": 40, "accuracy": accuracy} for accuracy in (0.2, 0.6, 0.5)]
    result = {"config": config, "base": READINGS, "final": READINGS, "val": val}
    told = dict.fromkeys(("format", "accuracy", "thinking", "correct", "advantage", "total"), 1.0)
    group = {"step": 0, "mode": "explore", **dict.fromkeys(("question", "answer", "target"), said)}
    group |= {"image": f"data:image/png;base64,{image}", "facts": [*FACTS, [said, said]]}
    group["responses"] = [{**told, "text": said, "pushes": [[said, 1.0]]}] * 2
    shares = dict.fromkeys((f"share_{mode}" for mode in curves.MODES), 0.3)
    shares["frac_reward_zero_std"] = 0.75
    steps = [{"step": s, **shares, "reward": (config["seed"] + 1) * s / 39} for s in range(40)]
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, steps)) + "\n")
    (folder / "groups.jsonl").write_text(json.dumps(group) + "\n")
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def read_page(folder):
    """The elements of the page about a run, [(tag, attributes)], and its text."""
    parser, tags, texts = HTMLParser(), [], []
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.handle_data = texts.append
    parser.feed(report.page(group_seeds([read_run(folder)])))
    return tags, "".join(texts)


@pytest.mark.parametrize("argv", [*COMMANDS, "--table results/curr_reft.json"])
def test_results_readme_has_the_tables_that_its_commands_print(argv, capsys):
    compare.main(argv.split())
    tables = capsys.readouterr().out.strip().split("\n\n")
    if "--paired" in argv or "curr_reft" in argv:  # the README leaves out what is before the last
        tables = tables[-1:]
    assert all(each in README for each in tables)


def test_results_readme_has_what_growth_prints(capsys):
    growth.main([])
    assert {*capsys.readouterr().out.splitlines()} <= {*README.splitlines()}


def test_rows_of_one_name_with_other_bases_or_lengths_are_told_apart():
    records = [record("a", 0, 0.5, steps=9), record("a", 1, 0.7, base_format_rate=0.1)]
    records += [record("curr", seed, 0.5, steps=seed, stages={"open": {}}) for seed in (2, 4)]
    _, _, *lines = table(records, {"s": (1, "seed")}).splitlines()
    assert lines[0] == "| a, base_format_rate 0, steps 9 | 0.5 | 1 | 0 |"
    assert lines[2] == "| curr | 0.5 | 2 | 3 ± 1 |"


def test_paired_differences_compare_equal_seeds_of_rows_that_there_are():
    records = [record("a", 0, 0.9), record("b", 0, 0.8), record("a", 1, 0.6), record("b", 1, 0.7)]
    records += [record("a", 2, 0.0), record("b", 2, 1.0, base_seed=1), record("c", 9, 0.1)]
    first = paired(records, "a", "b", "c").splitlines()[2]
    assert "| b | test | +0.0 | [-127.1, +127.1] | [-254.5, +254.5] | 1 of 2 |" in first
    with pytest.raises(InputError, match="a, b, c"):
        paired(records, "a", "d")


def test_a_run_given_twice_counts_once_and_two_results_of_one_run_are_an_error(tmp_path):
    for name, accuracy in {"a": 0.5, "b": 0.5, "c": 0.9}.items():
        (tmp_path / name).write_text(json.dumps({"records": [record("a", 0, accuracy)]}))
    assert len(read_records([tmp_path / "a", tmp_path / "b"])) == 1
    with pytest.raises(InputError, match="row a, .* seed 0: another result"):
        read_records([tmp_path / "a", tmp_path / "c"])


def test_a_finished_run_is_read_and_kept_unless_flags_or_code_differ(tmp_path, monkeypatch):
    folder, asked = write_run(tmp_path / "run"), ["train.py", "seed 0", "code one"]
    (folder / "asked.json").write_text(json.dumps({"asked": asked, "commit": "abc"}))
    monkeypatch.setattr(compare, "code_version", lambda: "one")
    compare.run("sft", ["train.py", "--seed", "0", "--no-eval_base"], folder, str(tmp_path))
    kept = json.loads((tmp_path / "run.json").read_text())
    told = {"row": "sft", "share_equal": 0.75, "largest_fall": 0.1, "val": [0.2, 0.6, 0.5]}
    assert told.items() <= kept["records"][0].items()
    assert {"command": "train.py --seed 0", "commit": "abc"}.items() <= kept.items()
    monkeypatch.setattr(compare, "code_version", lambda: "two")
    with pytest.raises(InputError, match="code one, code two, seed 0, seed 1"):
        compare.run("sft", ["train.py", "--seed", "1"], folder)
    with pytest.raises(InputError, match="code 2: .*no-such-flag"):
        compare.run("sft", ["train.py", "--no-such-flag"], tmp_path / "new")


def test_each_base_is_made_by_one_run_before_the_others_start(monkeypatch):
    runs = []
    monkeypatch.setattr(compare, "run", lambda *job: runs.append(job[1]) or {"row": job[0]})
    argv = "sft dyme --seeds 0 1 --base_seeds 0 1 --jobs 1 -- --eval_size 9"
    found = compare.compare(compare.arguments(argv.split()))
    assert [record["row"] for record in found] == ["sft"] * 4 + ["dyme"] * 4
    assert [flags[flags.index("--base_seed") + 1] for flags in runs[:2]] == ["0", "1"]
    assert ["--no-eval_base" in flags for flags in runs] == [False] * 2 + [True] * 6
    assert all("--eval_size 9" in " ".join(flags) for flags in runs)


BAD = [
    (compare, row) for row in ("nothing", "sft --paired a", "sft --paired sft", "--table {tmp}/x")
]
BAD += [(compare, "--table {tmp}"), (bench, "--json {tmp}/no/o.json"), (bench, "--table {tmp}")]


@pytest.mark.parametrize("tool, argv", [*BAD, (bench, "--table results/curr_reft.json")])
def test_bad_input_is_one_line_and_code_2(tool, argv, tmp_path, refused):
    refused(tool.main, argv.format(tmp=tmp_path))


@pytest.mark.parametrize("library", [curves.matplotlib, None])
def test_nothing_a_model_or_a_file_says_becomes_part_of_the_page(tmp_path, library, monkeypatch):
    monkeypatch.setattr(curves, "matplotlib", library)
    tame, _ = read_page(write_run(tmp_path / "tame"))
    wild = write_run(tmp_path / "wild", HOSTILE, '"onerror=alert(1)', method=HOSTILE)
    tags, text = read_page(wild)
    assert {tag for tag, _ in tags} <= {tag for tag, _ in tame}
    assert not [a for _, names in tags for a in names if a.startswith("on")]
    assert all(a["src"].startswith("data:image/") for tag, a in tags if tag == "img")
    assert "\\x1b[2J\\u202e$footer" in text and not {"\x1b", "\u202e"} & set(text)
    assert [tag for tag, _ in tags].count("figure") == (4 if library else 0)
    assert ("pip install matplotlib" in text) == (not library) and "✓ correct" in text


def test_facts_are_marked_right_or_wrong_and_tokens_by_the_size_and_sign_of_their_push():
    html = report.marked("so: black 3, yellow 6 and red 5.\nAnswer: 3 & 3", FACTS)
    true, false = '<mark class="is-true">', '<mark class="is-false">'
    assert html.startswith(f"so: black {true}3<i>✓</i></mark>, yellow {false}6<i>✗</i></mark>")
    assert html.count(false) == 2 and "\nAnswer: 3 &amp; 3</b>" in html
    both = [("a", "x", "4"), ("b", "x", "3")]  # one value, stated of two names
    assert "is-false" in report.marked("both a x and b x are 3", both)
    html = report.pushed([["red", -4.0], ["\n", 1.0], [" <b>", 0.01]], largest=4.0)
    assert '<span class="down" style="--s:1.00">red<small>−4.0</small></span>' in html
    assert '<span class="up" style="--s:0.25">⏎<small>+1.0</small></span><br>' in html
    assert " &lt;b&gt;<small></small>" in html and report.pushed([], 4.0) == ""


def test_seeds_are_one_variant_with_their_spread_and_a_method_keeps_its_colour(tmp_path):
    folders = [write_run(tmp_path / f"s{i}", seed=i, resume=i > 0) for i in (0, 1)]
    runs = [read_run(folder) for folder in folders]
    large = read_run(write_run(tmp_path / "large", num_generations=16))
    assert group_seeds(runs) == [("dyme", curves.COLOURS["dyme"], runs)]
    assert curves.lines_of(runs, "reward")[-1][0] == pytest.approx(0.75 / 39)  # of steps 0 and 1
    assert "<td>50.0 ± 0.0</td>" in report.results_table(group_seeds(runs))
    (label, colour, _), (other, spare, _) = group_seeds([*runs, large])
    assert (label, other) == ("s0", "large") and colour == curves.COLOURS["dyme"] != spare
    again = read_run(write_run(tmp_path / "again", seed=1))  # no further seed
    assert [label for label, *_ in group_seeds([*runs, again])] == ["s0", "again"]


def test_a_run_that_is_still_writing_can_be_read(tmp_path):
    folder = write_run(tmp_path / "run")
    written, saved = folder / "metrics.jsonl", folder / "checkpoints" / "step-000032"
    written.write_text(written.read_text() + '{"step": 40, "rew')
    saved.mkdir(parents=True)
    (folder / "result.json").rename(saved / "state.json")
    assert len(read_run(folder)["lines"]) == 40 + 3 and written.read_text().endswith("rew")


TORN = [("metrics.jsonl", ""), ("metrics.jsonl", '{"step": 0}\n[1]\n'), ("result.json", "{}")]
TORN += [("groups.jsonl", '{"step": 3, "mode": "<b>"}\n'), ("result.json", '{"config": 5}')]
TORN += [("metrics.jsonl", '{"step": 0, "reward": "x"}\n')] * bool(curves.matplotlib)


@pytest.mark.parametrize("name, text", TORN)
def test_a_bad_file_of_a_run_is_one_line_that_names_it(name, text, tmp_path, refused):
    (write_run(tmp_path / "run") / name).write_text(text)
    assert name in refused(report.main, str(tmp_path / "run"))


def test_pictures_are_of_runs_of_kept_readings_and_of_noise(tmp_path):
    pytest.importorskip("matplotlib")
    about = {"val": [0.1, 0.4], "on_the_way": [{"step": 4}, {"step": 20}]}
    records = [record("dyme", 0, 0.5, **about, trace_noise=noise) for noise in (0.2, 0.5)]
    for name, kept in {"kept": records[1:], "noise": records}.items():
        (tmp_path / name).write_text(json.dumps({"records": kept}))
    sources = [write_run(tmp_path / "a$b", method="$b^$"), tmp_path / "kept", tmp_path / "noise"]
    curves.main([*map(str, sources), "--out", str(tmp_path)])
    names = "accuracy advantage_collapse kept_accuracy kept_looks modes noise reward"
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == names.split()
    line = curves.draw_records("kept", records[1:])["kept_Accuracy"].axes[0].lines[-1]
    assert line.get_xydata().tolist() == [[4, 0.1], [20, 0.4]]
