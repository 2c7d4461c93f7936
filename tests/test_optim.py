"""optim.py: the rounding, the update, the schedule."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from data.example import InputError
from lib import optim
from lib.optim import build_optimizer, lr_at, stochastic_round


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Linear(40, 30).to(dtype)


def train(model, optimizer, steps):
    """Updates along gradients that depend on the step alone."""
    for step in steps:
        for index, param in enumerate(model.parameters()):
            noise = torch.randn(param.shape, generator=generator(100 * step + index))
            param.grad = noise.to(param.dtype)
        optimizer.step()


def test_rounding_is_right_on_average_exact_where_it_can_be_and_never_further_than_a_neighbour():
    for values in torch.tensor([1.002, -2.7e20, 1e-39]).repeat(200_000, 1).T:
        rounded, value = stochastic_round(values, generator()).float(), values[0].item()
        low, high = rounded.unique().tolist()  # two bf16 neighbours, on either side
        assert low < value < high
        share = (rounded == high).float().mean().item()
        assert share == pytest.approx((value - low) / (high - low), abs=0.005)
    exact = torch.tensor([1.5, -3.0, 0.0, float("inf"), -float("inf")])
    assert torch.equal(stochastic_round(exact, generator()).float(), exact)


def test_in_fp32_it_is_torchs_adamw_whatever_the_chunks_and_biases_do_not_decay(monkeypatch):
    monkeypatch.setattr(optim, "CHUNK", 600)
    ours = linear()
    theirs = copy.deepcopy(ours)
    groups = [{"params": [theirs.weight]}, {"params": [theirs.bias], "weight_decay": 0.0}]
    train(ours, build_optimizer(ours, 1e-2, 0.1, (0.9, 0.95)), range(20))
    train(theirs, torch.optim.AdamW(groups, 1e-2, (0.9, 0.95), weight_decay=0.1), range(20))
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)


def test_the_rounding_is_keyed_by_its_seed_and_the_states_are_there_from_the_start():
    ends = []
    for seed in (1, 1, 2):
        model = linear(torch.bfloat16)
        optimizer = build_optimizer(model, 1e-3, seed=seed)
        states = [state["exp_avg"] for state in optimizer.state.values()]
        train(model, optimizer, range(3))
        assert all(own["exp_avg"] is old for own, old in zip(optimizer.state.values(), states))
        ends.append(model.weight)
    assert torch.equal(*ends[:2]) and not torch.equal(*ends[1:])


def learn(build, dtype):
    """(loss drop in fp32, bytes per parameter) of a small network on one fixed batch."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(64, 128), torch.nn.Tanh(), torch.nn.Linear(128, 64)
    model = torch.nn.Sequential(*layers).bfloat16().to(dtype)  # all start from the same weights
    inputs, labels = torch.randn(64, 64), torch.randint(64, (64,))
    optimizer, losses = build(model), []
    for _ in range(150):
        losses.append(cross_entropy(copy.deepcopy(model).float()(inputs), labels).item())
        optimizer.zero_grad()
        cross_entropy(model(inputs.to(dtype)).float(), labels).backward()
        optimizer.step()
    param, states = model[0].weight, optimizer.state[model[0].weight]
    held = (param, param.grad, states["exp_avg"], states["exp_avg_sq"])
    return losses[0] - losses[-1], sum(tensor.nbytes for tensor in held) / param.numel()


def test_bf16_reaches_the_loss_drop_of_fp32_at_half_the_bytes_where_plain_bf16_loses_it():
    full, full_bytes = learn(lambda model: build_optimizer(model, 1e-5), torch.float32)
    ours, our_bytes = learn(lambda model: build_optimizer(model, 1e-5), torch.bfloat16)
    plain, _ = learn(lambda model: torch.optim.AdamW(model.parameters(), 1e-5), torch.bfloat16)
    assert (full_bytes, our_bytes) == (16, 8)
    assert ours == pytest.approx(full, rel=0.03) and plain < 0.5 * full


def test_the_schedule_rises_over_the_warmup_and_falls_to_nothing():
    rates = [lr_at(step, 100, 1.0, warmup=10) for step in range(101)]
    assert rates[0] == 0.1 and rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5) and rates[100] == 0
    assert lr_at(50, 100, 1.0, schedule="cosine") == pytest.approx(0.5)
    assert lr_at(99, 100, 1.0, schedule="constant") == 1.0
    assert lr_at(3, 3, 1.0, warmup=3) == 1.0  # no division by zero without a fall


def test_what_can_not_be_trained_is_said_in_one_line():
    with pytest.raises(InputError, match="frozen"):
        build_optimizer(linear().requires_grad_(False), 1e-3)
    with pytest.raises(InputError, match="float16"):
        build_optimizer(linear(torch.float16), 1e-3)
