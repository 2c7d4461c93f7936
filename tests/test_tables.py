"""tools/compare.py: what is run, what is kept of it, and what the tables make of it."""

import json
import re
from pathlib import Path

import pytest

from data import InputError
from tools import compare, growth
from tools.tables import paired, read_records, table

README = Path("results/README.md").read_text()
COMMANDS = re.findall(r"`python -m tools\.compare\s(--table[^`]+)`", README)


def record(row, seed, test, **changed):
    final = {"test": dict.fromkeys(("greedy", "sampled"), {"accuracy": test})}
    about = {"base_seed": 0, "trace_noise": 0.5, "base_format_rate": 0, "base": {}}
    return {"row": row, "seed": seed, **about, "final": final, **changed}


@pytest.mark.parametrize("argv", [*COMMANDS, "--table results/curr_reft.json"])
def test_results_readme_has_the_table_that_its_command_prints(argv, capsys):
    compare.main(argv.split())
    *_, last = capsys.readouterr().out.strip().split("\n\n")
    assert last in README


def test_results_readme_has_what_growth_prints(capsys):
    growth.main([])
    assert {*capsys.readouterr().out.splitlines()} <= {*README.splitlines()}


def test_rows_of_one_name_with_other_bases_or_lengths_are_told_apart():
    records = [record("a", 0, 0.5, steps=9), record("a", 1, 0.7, base_format_rate=0.1)]
    lines = table(records, {"s": (1, "seed")}).splitlines()
    assert lines[2] == "| a, base_format_rate 0, steps 9 | 0.5 | 1 | 0 |"


def test_paired_differences_compare_equal_seeds_of_rows_that_there_are():
    records = [record("a", 0, 0.9), record("b", 0, 0.8), record("a", 1, 0.6), record("b", 1, 0.7)]
    records += [record("a", 2, 0.0), record("b", 2, 1.0, base_seed=1), record("c", 9, 0.1)]
    first = paired(records, "a", "b", "c").splitlines()[2]
    assert "| b | test | +0.0 | [-127.1, +127.1] | [-254.5, +254.5] | 1 of 2 |" in first
    with pytest.raises(InputError, match="a, b, c"):
        paired(records, "a", "d")


def test_a_run_given_twice_counts_once_and_two_results_of_one_run_are_an_error(tmp_path):
    for name, test in (("a", 0.5), ("b", 0.5), ("c", 0.9)):
        (tmp_path / name).write_text(json.dumps({"records": [record("a", 0, test)]}))
    paths = [str(tmp_path / name) for name in "abc"]
    assert len(read_records(paths[:2])) == 1
    with pytest.raises(InputError, match="row a, .* seed 0: another result"):
        read_records(paths)


def test_a_finished_run_is_read_and_kept_unless_flags_or_code_differ(tmp_path, monkeypatch):
    told = ("seed", "base_seed", "trace_noise", "base_format_rate", "max_steps")
    result = {"config": dict.fromkeys(told, 1), "seconds": 1.0, "base": {}, "final": {}}
    result["val"] = [{"step": 1, "accuracy": accuracy} for accuracy in (0.2, 0.6, 0.5)]
    lines = [{"step": 0, "reward": 0.0, "frac_reward_zero_std": share} for share in (1.0, 0.5)]
    asked = {"asked": ["train.py", "seed 0", "code one"], "commit": "abc"}
    for name, content in {"result.json": result, "asked.json": asked}.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    monkeypatch.setattr(compare, "code_version", lambda: "one")
    compare.run("sft", ["train.py", "--seed", "0", "--no-eval_base"], tmp_path, str(tmp_path))
    kept = json.loads((tmp_path / f"{tmp_path.name}.json").read_text())
    assert (kept["command"], kept["commit"]) == ("train.py --seed 0", "abc")
    found = kept["records"][0]
    assert (found["row"], found["share_equal"], found["largest_fall"]) == ("sft", 0.75, 0.1)
    monkeypatch.setattr(compare, "code_version", lambda: "two")
    with pytest.raises(InputError, match="code one, code two, seed 0, seed 1"):
        compare.run("sft", ["train.py", "--seed", "1"], tmp_path)
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
    assert all(flags[flags.index("--eval_size") + 1] == "9" for flags in runs)


@pytest.mark.parametrize("argv", ["nothing", "sft --paired a", "--table {tmp}/x", "--table {tmp}"])
def test_what_cannot_be_compared_is_one_line_and_code_2(argv, tmp_path, refused):
    refused(compare.main, argv.format(tmp=tmp_path))
