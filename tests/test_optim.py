"""optim.py: the rounding, the update, and that bf16 weights learn what fp32 weights learn."""

import copy

import pytest
import torch

from data.example import InputError
from lib import optim
from lib.optim import allocate_states, build_optimizer, lr_at, stochastic_round


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return torch.nn.Linear(40, 30).to(dtype)


def train(model, optimizer, steps):
    """Updates along gradients that depend on the step alone."""
    for step in range(steps):
        for index, param in enumerate(model.parameters()):
            noise = torch.randn(param.shape, generator=generator(100 * step + index))
            param.grad = noise.to(param.dtype)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("value", [1.002, -2.7e20, 1e-39])
def test_rounding_is_right_on_average_and_never_further_than_a_neighbour(value):
    values = torch.full((200_000,), value)
    rounded = stochastic_round(values, generator()).float()
    low, high = rounded.unique().tolist()  # two bf16 neighbours, on either side
    assert low < values[0].item() < high
    share = (values[0].item() - low) / (high - low)
    assert ((rounded == high).float().mean().item() - share) == pytest.approx(0, abs=0.005)


def test_a_bf16_number_and_an_infinity_are_rounded_to_themselves():
    exact = torch.randn(10_000, generator=generator()).bfloat16().float()
    exact[:3] = torch.tensor([0.0, float("inf"), -float("inf")])
    assert torch.equal(stochastic_round(exact, generator()).float(), exact)


def test_in_fp32_it_is_torch_adamw_whatever_the_chunks(monkeypatch):
    monkeypatch.setattr(optim, "CHUNK", 7)
    ours = linear()
    theirs = copy.deepcopy(ours)
    settings = dict(learning_rate=1e-2, weight_decay=0.1, betas=(0.9, 0.95))
    train(ours, build_optimizer(ours, "adamw_bf16", **settings), 20)
    train(theirs, build_optimizer(theirs, "adamw", **settings), 20)
    for mine, other in zip(ours.parameters(), theirs.parameters()):
        assert (mine - other).abs().max() < 1e-6


def test_biases_do_not_decay_and_frozen_weights_are_left_alone():
    model = torch.nn.Sequential(linear(torch.bfloat16), torch.nn.Linear(30, 2))
    model[1].requires_grad_(False)
    before = copy.deepcopy(model)
    optimizer = build_optimizer(model, "adamw_bf16", learning_rate=0.1, weight_decay=0.5)
    for param in model[0].parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert torch.equal(model[0].bias, before[0].bias)
    assert model[0].weight.abs().sum() < 0.97 * before[0].weight.abs().sum()
    assert torch.equal(model[1].weight, before[1].weight)


def test_bf16_weights_move_at_1e_6_but_not_under_plain_adamw():
    moved = {}
    for name in ("adamw_bf16", "adamw"):
        model = torch.nn.Linear(64, 64, bias=False).bfloat16()
        torch.nn.init.constant_(model.weight, 0.02)  # the next bf16 number is 1.2e-4 away
        optimizer = build_optimizer(model, name, learning_rate=1e-6)
        for _ in range(100):
            model.weight.grad = torch.ones_like(model.weight)
            optimizer.step()
        moved[name] = (torch.tensor(0.02).bfloat16() - model.weight.float()).mean().item()
    assert moved["adamw_bf16"] == pytest.approx(100e-6, rel=0.1)
    assert moved["adamw"] == 0.0


def test_a_loaded_state_draws_the_bits_that_the_unbroken_run_draws():
    model = linear(torch.bfloat16)
    optimizer = build_optimizer(model, "adamw_bf16", 1e-3)
    train(model, optimizer, 3)
    other = copy.deepcopy(model)
    resumed = build_optimizer(other, "adamw_bf16", 1e-3, seed=1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 3)
    train(other, resumed, 3)
    assert torch.equal(model.weight, other.weight)


@pytest.mark.parametrize("name", ["adamw_bf16", "adamw"])
def test_states_are_there_before_the_first_update_and_change_nothing(name):
    lazy = linear(torch.bfloat16)
    model = copy.deepcopy(lazy)
    theirs, ours = (build_optimizer(one, name, 1e-2, 0.1) for one in (lazy, model))
    allocate_states(ours)
    there = [state["exp_avg"] for state in ours.state.values()]
    train(lazy, theirs, 3)
    train(model, ours, 3)
    allocate_states(ours)  # after a resume: nothing is forgotten
    assert all(now["exp_avg"] is old for now, old in zip(ours.state.values(), there, strict=True))
    assert len(there) == 2 and torch.equal(lazy.weight, model.weight)
    assert str(theirs.state_dict()) == str(ours.state_dict())


def learn(name, dtype, steps=150):
    """(loss drop in fp32, bytes per parameter) of a small network on one fixed batch."""
    torch.manual_seed(0)
    # Every run starts from weights that bf16 can hold, so that all start from the same loss.
    layers = torch.nn.Linear(64, 128), torch.nn.Tanh(), torch.nn.Linear(128, 64)
    model = torch.nn.Sequential(*layers).bfloat16().to(dtype)
    inputs, labels = torch.randn(64, 64), torch.randint(64, (64,))
    optimizer = build_optimizer(model, name, 1e-5)

    def loss(model, inputs):
        return torch.nn.functional.cross_entropy(model(inputs).float(), labels)

    first = loss(copy.deepcopy(model).float(), inputs).item()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, inputs.to(dtype)).backward()
        optimizer.step()
    held = [*model.parameters(), *(param.grad for param in model.parameters())]
    for state in optimizer.state.values():
        held += [state["exp_avg"], state["exp_avg_sq"]]
    numel = sum(param.numel() for param in model.parameters())
    drop = first - loss(copy.deepcopy(model).float(), inputs).item()
    return drop, sum(tensor.nbytes for tensor in held) / numel


def test_bf16_reaches_the_loss_drop_of_fp32_at_half_the_bytes():
    full, full_bytes = learn("adamw", torch.float32)
    ours, our_bytes = learn("adamw_bf16", torch.bfloat16)
    plain, _ = learn("adamw", torch.bfloat16)
    assert (full_bytes, our_bytes) == (16, 8)
    assert ours == pytest.approx(full, rel=0.03)
    assert plain < 0.5 * full


def test_the_schedule_rises_over_the_warmup_and_falls_to_nothing():
    rates = [lr_at(step, 100, 1.0, warmup=10) for step in range(101)]
    assert rates[0] == 0.1 and rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5) and rates[100] == 0
    assert lr_at(50, 100, 1.0, schedule="cosine") == pytest.approx(0.5)
    assert lr_at(99, 100, 1.0, schedule="constant") == 1.0
    assert lr_at(3, 3, 1.0, warmup=3) == 1.0  # no division by zero without a fall


def test_what_can_not_be_trained_is_said_in_one_line():
    with pytest.raises(InputError, match="frozen"):
        build_optimizer(linear().requires_grad_(False), "adamw", 1e-3)
    with pytest.raises(InputError, match="float16"):
        build_optimizer(linear(torch.float16), "adamw_bf16", 1e-3)
