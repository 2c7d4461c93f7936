"""tools/compare.py: what is run, what is kept of it, and what the tables make of it."""

import json
from pathlib import Path

import pytest

from data import InputError
from tools import compare
from tools.tables import main_columns, paired, table


def record(row, seed, test, **changed):
    reading = {"accuracy": test, "fact_precision": 1.0, "grounded": 1.0}
    final = {"test": {"greedy": reading, "sampled": reading, "direct": reading}}
    plain = {"row": row, "seed": seed, "base_seed": 0, "trace_noise": 0.5, "base_format_rate": 0}
    plain |= {"share_equal": None, "largest_fall": 0.1, "seconds": 9.0, "base": {}, "final": final}
    return {**plain, **changed}


def finish(folder, *asked):
    """A finished run in the folder."""
    told = ("seed", "base_seed", "trace_noise", "base_format_rate", "max_steps")
    result = {"config": dict.fromkeys(told, 1), "seconds": 1.0, "base": {}, "final": {}}
    result["val"] = [{"step": 1, "accuracy": accuracy} for accuracy in (0.2, 0.6, 0.5)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result))
    lines = [{"reward": 0.0, "frac_reward_zero_std": share} for share in (1.0, 0.5)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"loss": 0.0}])))
    (folder / "asked.json").write_text(json.dumps({"asked": asked, "commit": "abc"}))


def test_a_table_has_means_and_spreads_of_runs_of_equal_noise_base_and_length():
    records = [record("b", 0, 0.5), record("b", 1, 0.7), record("a", 0, 1.0, trace_noise=0.0)]
    records += [record("c", 0, 0.5, steps=9), record("c", 1, 0.7, base_format_rate=0.1)]
    heads, _, *lines = table(records, main_columns(records)).splitlines()
    assert lines[0].startswith("| a | 0 | 1 | 100.0 |")
    assert lines[1].startswith("| b | 0.5 | 2 | 60.0 ± 14.1 |") and lines[1].endswith("| 9 ± 0 |")
    assert lines[2].startswith("| c, base_format_rate 0, steps 9 | 0.5 | 1 | 50.0 |")
    assert "direct" in heads and "direct" not in main_columns(records, brief=True)


def test_paired_differences_compare_equal_seeds_alone():
    records = [record("a", 0, 0.9), record("b", 0, 0.8), record("a", 1, 0.6), record("b", 1, 0.7)]
    records += [record("a", 2, 0.0), record("b", 2, 1.0, base_seed=1)]  # no pair
    first = paired(records, "a", "b", "c").splitlines()[2]
    assert "| b | test | +0.0 | [-127.1, +127.1] | [-254.5, +254.5] | 1 of 2 |" in first


def test_a_run_given_twice_counts_once_and_two_results_of_one_run_are_an_error(tmp_path):
    for name, test in (("a", 0.5), ("b", 0.5), ("c", 0.9)):
        (tmp_path / name).write_text(json.dumps({"records": [record("a", 0, test)]}))
    paths = [str(tmp_path / name) for name in "abc"]
    assert len(compare.read_records(paths[:2])) == 1
    with pytest.raises(InputError, match="row a, .* seed 0: another result"):
        compare.read_records(paths)


KEPT = {  # what is printed: a line of it, which results/README.md has too
    "runs/main --brief": "| dyme | 0.5 | 5 | 96.4 ± 0.5 | 93.7 ± 1.8 | 55.8 ± 1.7 |",
    "runs/main --looks --price": "| dyme | 0.5 | 5 | 93.7 ± 1.8 | 21.1 ± 1.1 | 17.9 ± 1.9 |",
    "runs/main results/runs/bases --paired dyme sft": "| 0.5 | sft | test | +14.9 | [+11.3, +18.6]",
    "curr_reft.json": "| curr_reft after reject | test | 49.2 ± 1.3 | 49.7 ± 0.6 | 51.3 ± 2.3 |",
}


@pytest.mark.parametrize("argv, line", KEPT.items())
def test_kept_results_are_printed_as_results_readme_has_them(argv, line, capsys):
    compare.main(f"--table results/{argv}".split())
    assert line in capsys.readouterr().out and line in Path("results/README.md").read_text()


def test_a_finished_run_is_read_and_kept_unless_flags_or_code_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "code_version", lambda: "one")
    flags, folder = ["train.py", "--seed", "0", "--no-eval_base"], tmp_path / "run"
    finish(folder, "train.py", "seed 0", "code one")
    found = compare.run("sft", flags, folder, str(tmp_path))
    assert found["share_equal"] == 0.75 and found["largest_fall"] == pytest.approx(0.1)
    content = json.loads((tmp_path / "run.json").read_text())
    assert (content["command"], content["commit"]) == ("train.py --seed 0", "abc")
    assert content["records"][0]["row"] == "sft"
    finish(folder, "train.py", "seed 1", "code two")
    with pytest.raises(
        InputError, match="a run of code two, seed 1; asked for is code one, seed 0"
    ):
        compare.run("sft", flags, folder)
    with pytest.raises(InputError, match="code 2: .*no-such-flag"):
        compare.run("sft", ["train.py", "--no-such-flag"], tmp_path / "new")


def test_each_base_is_made_by_one_run_before_the_others_start(tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(compare, "run", lambda *job: runs.append(job[1]) or {"row": job[0]})
    argv = ["sft", "dyme", "--seeds", "0", "1", "--base_seeds", "0", "1", "--jobs", "1"]
    argv += ["--output_dir", str(tmp_path), "--", "--eval_size", "9"]
    found = compare.compare(compare.arguments(argv))
    assert [record["row"] for record in found] == ["sft"] * 4 + ["dyme"] * 4
    assert [flags[flags.index("--base_seed") + 1] for flags in runs[:2]] == ["0", "1"]
    assert ["--no-eval_base" in flags for flags in runs] == [False] * 2 + [True] * 6
    assert all(flags[flags.index("--eval_size") + 1] == "9" for flags in runs)


@pytest.mark.parametrize("argv", ["nothing", "--table {tmp}/x", "--table {tmp}"])
def test_what_cannot_be_compared_is_one_line_and_code_2(argv, tmp_path, refused):
    refused(compare.main, argv.format(tmp=tmp_path))
