"""tools/bench.py compares like with like. Small shapes, seconds in all."""

import json
from dataclasses import replace

import pytest
import torch

import judge
from tools import bench, sides

LLAVA = sides.SIZES["small"]
QWEN_TOWER = dict(depth=1, embed_dim=32, hidden_size=64, num_heads=2)
QWEN = replace(LLAVA, text=(64, 2, 4, 2, 128, 1024), vision=QWEN_TOWER, image=(56, 84), tiles=[])
ARGV = "--size small --num_generations 4 --repeats 1 --no_memory --device cpu".split()


@pytest.mark.parametrize("size", [LLAVA, QWEN], ids=["llava", "qwen2vl"])
def test_both_sides_compute_the_same(monkeypatch, size):
    monkeypatch.setitem(sides.SIZES, "small", size)
    found = bench.exactness(sides.build_case(bench.arguments(ARGV)))
    logprobs, gradients, greedy = found.values()
    assert logprobs < 5e-6 and gradients < 1e-5 and greedy == 1


def test_both_updates_leave_the_same_gradient(monkeypatch):
    case = sides.build_case(bench.arguments(ARGV))
    found = []
    keep = lambda: found.append(
        [p.grad.clone() for p in case.model.parameters() if p.requires_grad]
    )
    monkeypatch.setattr(case.model, "zero_grad", keep)
    sides.update(case)()
    torch.nn.Module.zero_grad(case.model)
    sides.update_padded(case)()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found))
    assert any(a.any() for a in found[0])


def test_every_response_has_exactly_c_tokens_on_both_sides():
    case = sides.build_case(bench.arguments(ARGV))
    banned = {case.processor.tokenizer.eos_token_id, *case.model.forbidden_ids}
    both = [sides.generate(case, repeat)().tolist() for repeat in (True, False)]
    for ids in (sides.own_rollout(case)(), *both):
        assert [len(row) for row in ids] == [LLAVA.completion_length] * 8  # 2 prompts, G 4
        assert not banned & {token for row in ids for token in row}


@pytest.mark.parametrize("size, billions", [("0.5b", 0.89), ("2b", 2.21)])
def test_the_large_sizes_are_the_published_ones(size, billions):
    with torch.device("meta"):
        model, _ = sides.build_model(sides.SIZES[size], "meta")
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)


def test_a_step_updates_and_moves_no_weight(monkeypatch):
    case = sides.build_case(bench.arguments(ARGV))
    before = [p.clone() for p in case.model.parameters()]
    norms = []
    monkeypatch.setattr(
        torch.nn.utils,
        "clip_grad_norm_",
        lambda p, n: norms.append(sum(q.grad.norm() for q in p if q.grad is not None)),
    )
    sides.step(case, skip=True)()
    sides.step(case)()
    assert norms[0] > 0 and norms[1] > 0 and norms[0] != norms[1]  # half of the groups, all
    assert all(torch.equal(a, b) for a, b in zip(before, case.model.parameters()))


def test_a_row_says_both_sides_and_the_ratio(tmp_path, capsys):
    out = str(tmp_path / "out.json")
    bench.main([*ARGV, "--rows", "update", "rollout", "--json", out])
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert {row["against"] for row in rows} >= {"padded rows", "generate, repeated prompts", "4 G"}
    assert all(row["ours_seconds"] > 0 and row["against_seconds"] > 0 for row in rows)
    assert capsys.readouterr().out.count("x |") == len(rows)
    bench.main(["--table", out, "results/bench-p700.json"])
    assert "| 697 x 1 | update, packed | 1.76 | 435 | padded rows |" in capsys.readouterr().out
    bench.main(["--table", "results/judge.json"])
    assert "judge: the calls alone, s: 8" in capsys.readouterr().out


@pytest.mark.parametrize("argv", ["--json {tmp}/no/o.json", "--table {tmp}", "--table README.md"])
def test_bad_files_are_one_line_and_code_2(argv, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(argv.format(tmp=tmp_path).split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1


def test_memory_is_the_childs_own_peak_not_its_parents():
    held = torch.ones(2**27)  # 512 MB here, which a child process must not count
    bytes_of_update = bench.peak_elsewhere("update", ["--size", "small", "--device", "cpu"])
    assert 0 < bytes_of_update < held.nbytes / 4


def test_a_judge_is_asked_about_every_response_of_every_step(monkeypatch):
    asked = []
    monkeypatch.setattr(
        judge, "judge_thinking", lambda chat, thinking, example: asked.append(thinking) or 0.5
    )
    args = bench.arguments([*ARGV, "--judge", "0.01"])
    found = bench.judge_overlap(args)
    assert len(set(asked)) == len(asked) == 16  # 2 steps of 8
    assert found["the calls alone, s"] == pytest.approx(0.01)
