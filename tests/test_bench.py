"""bench.py: that it compares like with like. Small shapes, seconds in all."""

import argparse
import json
from dataclasses import replace

import pytest
import torch

from tools import bench
import overlap
from tools import shapes
from tools import sides

LLAVA = shapes.SIZES["small"]
QWEN_TOWER = dict(depth=1, embed_dim=32, hidden_size=64, num_heads=2)
QWEN = replace(LLAVA, text=(64, 2, 4, 2, 128, 1024), vision=QWEN_TOWER, image=(56, 84), tiles=[])


def arguments(**changed):
    """main's arguments for the small size, as it would parse them."""
    plain = dict(size="small", prompts=None, num_generations=4, completion_length=None)
    plain |= dict(device="cpu", repeats=1, threads=1, rows=None, no_memory=True)
    plain |= dict(train_vision=False, gradient_checkpointing=False, judge_seconds=0.01)
    return argparse.Namespace(**{**plain, **changed})


@pytest.mark.parametrize("size", [LLAVA, QWEN], ids=["llava", "qwen2vl"])
def test_both_sides_compute_the_same(monkeypatch, size):
    monkeypatch.setitem(shapes.SIZES, "small", size)
    found = bench.exactness(sides.build_case(arguments()))
    logprobs, gradients, greedy = found.values()
    assert logprobs < 5e-6 and gradients < 1e-5 and greedy == 1


def test_every_response_has_exactly_c_tokens_on_both_sides():
    case = sides.build_case(arguments())
    banned = {case.processor.tokenizer.eos_token_id, *case.model.forbidden_ids}
    ours = [response.token_ids for group in sides.own_rollout(case)() for response in group]
    for ids in (
        ours,
        sides.generate(case, repeat=True)().tolist(),
        sides.generate(case, repeat=False)().tolist(),
    ):
        assert [len(row) for row in ids] == [case.completion_length] * 8  # 2 prompts, G 4
        assert not banned & {token for row in ids for token in row}


@pytest.mark.parametrize("size", ["0.5b", "2b"])
def test_the_large_sizes_are_the_published_ones(size):
    text = shapes.SIZES[size].text
    with torch.device("meta"):
        model, _ = shapes.build_model(shapes.SIZES[size], "meta")
    assert (
        model.config.get_text_config().hidden_size,
        model.config.get_text_config().vocab_size,
    ) == (text[0], text[-1])
    billions = sum(p.numel() for p in model.parameters()) / 1e9
    assert billions == pytest.approx({"0.5b": 0.89, "2b": 2.21}[size], abs=0.01)


def test_a_step_moves_no_weight():
    case = sides.build_case(arguments())
    before = [p.clone() for p in case.model.parameters()]
    sides.step(case, skip=True)()
    assert all(torch.equal(a, b) for a, b in zip(before, case.model.parameters()))


def test_a_row_states_both_sides_and_the_ratio(tmp_path, capsys):
    argv = "--size small --repeats 1 --num_generations 4 --no_memory --device cpu".split()
    bench.main([*argv, "--rows", "update", "rollout", "--json", str(tmp_path / "out.json")])
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert {row["against"] for row in rows} >= {"padded rows", "generate, repeated prompts", "4 G"}
    assert all(row["ours_seconds"] > 0 and row["against_seconds"] > 0 for row in rows)
    assert capsys.readouterr().out.count("x |") == len(rows)
    bench.main(["--table", str(tmp_path / "out.json")])
    assert capsys.readouterr().out.count("x |") == len(rows)
    with pytest.raises(SystemExit, match="no-such-folder"):
        bench.main([*argv, "--json", str(tmp_path / "no-such-folder" / "out.json")])
    bench.main([*argv, "--measure", "update"])
    assert json.loads(capsys.readouterr().out)["bytes"] >= 0


def test_a_judge_is_asked_about_every_response(monkeypatch):
    asked = []
    monkeypatch.setattr(
        overlap, "judge_thinking", lambda judging, thinking, example: asked.append(thinking) or 0.5
    )
    found = bench.judge_overlap(arguments())
    assert len(set(asked)) == 16  # 8 that end here and there, 8 that end together
    assert found["the calls alone, s"] == pytest.approx(0.01)


def test_memory_is_the_childs_own_peak_not_its_parents():
    held = torch.ones(2**27)  # 512 MB here, which a child process must not count
    bytes_of_update = bench.peak_elsewhere("update", ["--size", "small", "--device", "cpu"])
    assert 0 < bytes_of_update < held.nbytes / 4
