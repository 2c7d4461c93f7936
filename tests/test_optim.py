"""optim.py: the rounding, the update, the schedule."""

import copy

import pytest
import torch

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


def test_in_fp32_it_is_torchs_adamw_whatever_the_chunks_and_biases_do_not_decay(monkeypatch):
    monkeypatch.setattr(optim, "CHUNK", 600)
    ours = linear()
    theirs = copy.deepcopy(ours)
    groups = [{"params": [theirs.weight]}, {"params": [theirs.bias], "weight_decay": 0.0}]
    train(ours, build_optimizer(ours, 1e-2, 0.1, (0.9, 0.95)), range(20))
    train(theirs, torch.optim.AdamW(groups, 1e-2, (0.9, 0.95), weight_decay=0.1), range(20))
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)


def test_updates_too_small_for_bf16_move_the_weights():
    moved = []
    for build in (build_optimizer, lambda model, rate: torch.optim.AdamW(model.parameters(), rate)):
        model = torch.nn.Linear(500, 400, bias=False).bfloat16()
        model.weight.data.fill_(0.02)  # the next bf16 number is 1.2e-4 away
        optimizer = build(model, 1e-6)
        for _ in range(100):
            model.weight.grad = torch.ones_like(model.weight)
            optimizer.step()
        moved.append((torch.tensor(0.02).bfloat16() - model.weight.float()).mean().item())
    assert moved == [pytest.approx(100e-6, rel=0.1), 0.0]


def test_a_loaded_state_draws_the_bits_that_the_unbroken_run_draws():
    model = linear(torch.bfloat16)
    optimizer = build_optimizer(model, 1e-3, seed=1)
    states = [state["exp_avg"] for state in optimizer.state.values()]
    train(model, optimizer, range(3))
    assert all(state["exp_avg"] is old for state, old in zip(optimizer.state.values(), states))
    ends = []
    for seed in (1, 2):
        other = copy.deepcopy(model)
        resumed = build_optimizer(other, 1e-3, seed=seed)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train(other, resumed, range(3, 6))
        ends.append(other.weight)
    train(model, optimizer, range(3, 6))
    assert torch.equal(model.weight, ends[0]) and not torch.equal(model.weight, ends[1])


def learn(build, dtype):
    """(loss drop in fp32, bytes per parameter) of a small network on one fixed batch."""
    torch.manual_seed(0)
    # Every run starts from weights that bf16 can hold, so that all start from the same loss.
    layers = torch.nn.Linear(64, 128), torch.nn.Tanh(), torch.nn.Linear(128, 64)
    model = torch.nn.Sequential(*layers).bfloat16().to(dtype)
    inputs, labels = torch.randn(64, 64), torch.randint(64, (64,))
    optimizer, losses = build(model), []
    for _ in range(150):
        whole = copy.deepcopy(model).float()
        losses.append(torch.nn.functional.cross_entropy(whole(inputs), labels).item())
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs.to(dtype)).float(), labels)
        loss.backward()
        optimizer.step()
    held = [tensor for param in model.parameters() for tensor in (param, param.grad)]
    held += [
        state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")
    ]
    numel = sum(param.numel() for param in model.parameters())
    return losses[0] - losses[-1], sum(tensor.nbytes for tensor in held) / numel


def test_bf16_reaches_the_loss_drop_of_fp32_at_half_the_bytes():
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
