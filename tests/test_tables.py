"""compare.py and tables.py: what is kept of a run, and what the tables make of it."""

import json

import pytest

from tools import compare
from data import InputError
from tools.tables import paired, table


def record(row, seed, test, **changed):
    reading = {"accuracy": test, "fact_precision": 1.0, "grounded": 1.0}
    final = {"test": {"greedy": reading, "sampled": reading, "direct": reading}}
    plain = {"row": row, "seed": seed, "base_seed": 0, "trace_noise": 0.5, "base_format_rate": 0}
    plain |= {"share_equal": None, "largest_fall": 0.1, "seconds": 9.0, "base": {}, "final": final}
    return {**plain, **changed}


def test_paired_differences_compare_equal_seeds_alone():
    records = [record("a", 0, 0.9), record("b", 0, 0.8), record("a", 1, 0.6), record("b", 1, 0.7)]
    records += [record("a", 2, 0.0), record("b", 2, 1.0, base_seed=1)]  # no pair
    first = paired(records, "a", "b").splitlines()[2]
    assert "| test | +0.0 [-127.1, +127.1] | 2 | 1 |" in first  # 12.71 * stdev(10, -10) / sqrt 2


def test_a_table_has_means_and_spreads_by_row_and_noise():
    records = [record("b", 0, 0.5), record("b", 1, 0.7), record("a", 0, 1.0, trace_noise=0.0)]
    lines = table(records).splitlines()
    assert lines[2].startswith("| a | 0 | 1 | 100.0 |")
    assert lines[3].startswith("| b | 0.5 | 2 | 60.0 ± 14.1 |") and lines[3].endswith("| 9 ± 0 |")
    assert "direct" in lines[0] and "direct" not in table(records, brief=True)


def test_a_finished_run_is_not_run_again_and_a_failed_one_says_why(tmp_path):
    told = ("seed", "base_seed", "trace_noise", "base_format_rate", "base_tasks", "max_steps")
    result = {"config": dict.fromkeys(told, 1), "seconds": 1.0, "base": {}, "final": {}}
    result["val"] = [{"accuracy": accuracy} for accuracy in (0.2, 0.6, 0.5)]
    (tmp_path / "result.json").write_text(json.dumps(result))
    lines = [{"reward": 0.0, "share_equal": share} for share in (1.0, 0.5)] + [{"loss": 0.0}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = compare.run("sft", ["--no-such-flag"], tmp_path)
    assert found["share_equal"] == 0.75 and found["largest_fall"] == pytest.approx(0.1)
    with pytest.raises(InputError, match="code 2: .*no-such-flag"):
        compare.run("sft", ["--no-such-flag"], tmp_path / "new")
