"""tools/bench.py compares like with like. Small shapes, seconds in all."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rollout import rollout
from tools import bench, sides

LLAVA = sides.Size((64, 2, 4, 1, 128, 1024), (32, 1, 4, 64, 28), (28, 28), [(1, 1)], 6, 2)
QWEN = replace(LLAVA, text=(64, 2, 4, 2, 128, 1024), tower=(32, 1, 2, 64), image=(56, 84), tiles=[])
ARGS = Namespace(size="small", prompts=2, num_generations=4, num_iterations=2, train_vision=False)
sides.SIZES["small"] = LLAVA


@pytest.mark.parametrize("size", [LLAVA, QWEN], ids=["llava", "qwen2vl"])
def test_both_sides_compute_the_same(monkeypatch, size):
    monkeypatch.setitem(sides.SIZES, "small", size)
    case = sides.build_case(ARGS)
    rollout(case.model, case.processor, case.groups, temperature=0.0, **case.lengths)
    said = [response.token_ids for group in case.groups for response in group.responses]
    assert said == sides.generate(case, top_k=1).tolist()
    # what is sampled can't end before it has C tokens
    assert case.processor.tokenizer.eos_token_id in case.model.forbidden_ids

    trained, found = [p for p in case.model.parameters() if p.requires_grad], []
    monkeypatch.setattr(case.model, "zero_grad", lambda: found.append([p.grad for p in trained]))
    for side in (sides.update, sides.update_padded):
        torch.nn.Module.zero_grad(case.model)
        side(case)
    assert all(torch.allclose(a, b, atol=2e-6) for a, b in zip(*found))
    assert any(a.any() for a in found[0])


def test_a_step_updates_num_iterations_times_and_moves_no_weight(monkeypatch):
    norms = []
    clip = lambda p, _: norms.append(sum(q.grad.norm() for q in p if q.grad is not None))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    case = sides.build_case(ARGS)
    before = [p.clone() for p in case.model.parameters()]
    sides.step(case, skip=True)
    sides.step(case)
    half, again, whole, _ = norms
    assert half > 0 and whole > 0 and half == pytest.approx(again) != whole
    assert all(map(torch.equal, before, case.model.parameters()))


def test_a_row_says_both_sides_and_the_ratio_and_is_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "peak", lambda function: 2**20)
    argv = f"--size small --repeats 2 --sides update update_padded --json {tmp_path}/out.json"
    bench.main(argv.split())
    said = capsys.readouterr().out
    assert "| 41 x 2, 8 | update, packed |" in said and said.count("| 1.00x |") == 1
    bench.main(["--table", f"{tmp_path}/out.json", "results/bench-p700.json"])
    again = capsys.readouterr().out
    assert (
        again.startswith(said) and again.splitlines()[-1] in Path("results/README.md").read_text()
    )
