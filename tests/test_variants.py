"""Every rule of variants.py against its formula, on a fixed group of four."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import variants
from checker import Rules
from config import parse
from data.charts import load_charts
from data.example import InputError
from dyme import check_method, choose, dyme_weight, rows, update
from grpo import group_advantages
from load import load_split
from rollout import EXPLORE, MEMORIZE, SKIP, Group, Response, make_groups
from sft import sft_loss

REFERENCE = SimpleNamespace(token_ids=[7, 8, 9], earn=lambda: 2.5)
REWARDS = [3.0, 1.0, 0.0, 0.0]


def group(correct=(1, 0, 0, 0), total=REWARDS, thinking=(1, 1, 0, 0)) -> Group:
    """Four samples, of which some are correct."""
    samples = [Response([g, g + 1], "x", False) for g in range(21, 25)]
    rewards = {"format": torch.ones(4), "accuracy": torch.tensor(correct).float()}
    rewards |= {"thinking": torch.tensor(thinking).float(), "total": torch.tensor(total)}
    rewards["correct"] = torch.tensor(correct).bool()
    return Group(0, None, None, samples, rewards, advantages=group_advantages(rewards["total"]))


def switched(vlm, config, made: Group, correct) -> Group:
    """A group of charts with the fixed one's samples, its mode and its rows."""
    fixed = group(correct, [float(c) for c in correct])
    made.responses, made.rewards = fixed.responses, fixed.rewards
    made.mode = choose(config, 0, made)
    made.rows = rows(config, 0, made, Rules(config), vlm[1])
    return made


SCALED = group_advantages(torch.tensor(REWARDS)).tolist()
CENTRED = [2.0, 0.0, -1.0, -1.0]
WRONG = {"correct": (0, 0, 0, 0), "total": [0.0] * 4}
RIGHT = {"correct": (1, 1, 1, 1), "total": REWARDS}


@pytest.mark.parametrize(
    "method, args, of, step, wanted",
    [
        ("dyme_reward", [], {}, 0, (SCALED, [])),  # (1 + 1 + 1) / 3 for the first alone
        ("dyme_reward", [], {"thinking": (0, 1, 0, 0)}, 0, ([], [1])),
        ("dyme_grounded", [], {"thinking": (0.7, 1, 0, 0)}, 0, ([], [1])),
        ("dyme_grounded", ["least=0.7"], {"thinking": (0.7, 1, 0, 0)}, 0, (SCALED, [])),
        ("dyme_keep", ["weight=0.5"], RIGHT, 0, ([0.5 * a for a in SCALED], [])),
        ("dyme_keep", ["weight=0.5"], {}, 0, (SCALED, [])),
        ("dyme_keep", [], WRONG, 0, ([], [1])),
        ("dyme_always", [], RIGHT, 0, (SCALED[:3], [1])),
        ("dyme_always", [], {}, 50, (SCALED[:3], [0.5])),
        ("dyme_always", [], {}, 100, (SCALED[:3], [])),
        ("dyme_buffer", [], RIGHT, 0, ([], [])),
        ("hpt", [], {}, 0, (CENTRED, [])),
        ("hpt", ["gate=0.25", "coefficient=0.3"], {}, 0, ([], [0.3 * 4])),
        ("hpt", [], WRONG, 0, ([], [4])),
        ("chord_mu", [], {}, 0, ([0.1 * a for a in SCALED], [0.9 * 4])),
        ("chord_mu", [], {}, 100, ([0.525 * a for a in SCALED], [0.475 * 4])),
        ("chord_mu", [], {}, 250, ([0.95 * a for a in SCALED], [0.05 * 4])),
        ("chord_phi", [], {}, 99, ([0.9 * a for a in SCALED], [0.1 * 4])),
        ("luffy", [], {}, 0, ([1.375, -0.625, -1.625], [0.875])),  # minus the mean, 1.625
        ("relift", [], {}, 0, (CENTRED, [])),
        ("relift", [], WRONG, 0, ([], [])),
    ],
)
def test_a_rule_brings_what_its_formula_says(method, args, of, step, wanted):
    config = parse(["--method", method, "--max_steps", "100"])
    config.method_args, config.num_generations = args, 4
    found = variants.rows(config, step, group(**of), REFERENCE)
    for loss, weights in zip(("grpo", "sft"), wanted):
        assert [r.weight for r in found if r.loss == loss] == pytest.approx(weights, abs=1e-6)
    assert all(row.token_ids == REFERENCE.token_ids for row in found if row.loss == "sft")


def test_a_target_is_made_only_where_it_is_memorized(vlm, monkeypatch):
    config = parse(["--method", "hpt", "--method_args", "gate=0.25"])
    (made,) = make_groups(*vlm, load_charts("train", 1))
    assert switched(vlm, config, made, [1, 0, 0, 0]).target.endswith(
        f"Answer: {made.example.answer}"
    )
    (made,) = make_groups(*vlm, load_charts("train", 1))
    monkeypatch.setattr(Rules, "trace", lambda *_: pytest.fail("asked for"))
    assert switched(vlm, config, made, [1, 1, 0, 0]).target is None


def test_token_weights_are_the_papers_functions_of_p():
    p, found = torch.tensor([0.01, 0.5, 0.99], requires_grad=True), {}
    for method in ("luffy", "chord_phi"):
        made = variants.rows(parse(["--method", method]), 0, group(), REFERENCE)
        (found[method],) = [row.token_weight(p) for row in made if row.loss == "sft"]
    (slope,) = torch.autograd.grad((p / (p + 0.1)).sum(), p)
    # the gradient of p / (p + 0.1) is the weight times that of log p
    assert torch.allclose(found["luffy"], slope * p)
    assert torch.allclose(found["chord_phi"], p * (1 - p))
    loss, nll = sft_loss(p.log()[None], torch.ones(1, 3), token_weights=p[None])
    assert torch.allclose(loss, -(p * p.log()).mean()) and nll > loss


def test_hpt_with_gate_0_is_dyme_where_not_all_are_right(vlm):
    """The same modes; with weight 1/G, binary rewards and advantages without std one gradient."""
    model, gradients = vlm[0], {}
    for method, *args in (("dyme",), ("hpt", "coefficient=0.25")):
        config = parse(["--method", method, "--loss_type", "dr_grpo", "--refiner", "off"])
        config.method_args, config.num_generations = args or None, 4
        groups = make_groups(*vlm, load_charts("train", 4))
        for right, made in enumerate(groups):
            switched(vlm, config, made, [1] * right + [0] * (4 - right))
        assert [made.mode for made in groups] == [MEMORIZE, EXPLORE, EXPLORE, EXPLORE]
        model.zero_grad()
        update(model, groups, 16, config)
        gradients[method] = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    for ours, theirs in zip(gradients["dyme"], gradients["hpt"]):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_groups_mode_is_what_its_rows_are():
    config = parse(["--method", "chord_mu"])
    assert choose(config, 0, group()) == EXPLORE
    assert choose(config, 0, group(**WRONG)) == MEMORIZE
    config.method = "relift"
    assert choose(config, 0, group(**WRONG)) == SKIP
    unfinished = group()
    unfinished.responses[2] = None
    assert choose(config, 0, unfinished) is None


def test_a_buffers_prompts_come_newest_first_in_relift_and_together_weigh_a_step():
    noted = [[step, 0] for step in range(5)]
    config = parse(["--method", "relift", "--method_args", "size=3", "sft_rate=0.5"])
    assert variants.due(config, noted[:2]) == ([], noted[:2], 1)
    assert variants.due(config, noted) == (noted[2:], noted[:2], 0.5)
    dyme = replace(config, method="dyme_buffer", method_args=["size=3"])
    assert variants.due(dyme, noted) == (noted[:3], [], 1)
    (row,) = variants.rows(config, 0, Group(0, None, None), REFERENCE)
    assert row.weight == config.prompts_per_step * config.num_generations / 3


def test_dymes_weight_falls_by_cosine_to_the_weight_it_is_given():
    config = parse(["--max_steps", "100"])
    weights = [dyme_weight(config, step, falls_from=8, weight=2) for step in (0, 50, 100)]
    assert weights == pytest.approx([8, 5, 2])
    assert dyme_weight(config, 50) == 1


@pytest.mark.parametrize(
    "method, argument, told",
    [
        ("hpt", "gates=0.5", "the arguments of --method hpt are: gate, coefficient"),
        ("hpt", "gate=2", "gate=2: must be a number in [0, 1]"),
        ("hpt", "gate", "gate: must be a number in [0, 1]"),
        ("chord_mu", "steps=nan", "must be a number in [1, 1e+09]"),
        ("dyme", "weight=-1", "must be a number in [0, 1e+09]"),
        ("sft", "weight=1", "--method_args: has an effect only with another method"),
    ],
)
def test_a_wrong_argument_is_said_in_one_line(method, argument, told):
    with pytest.raises(InputError) as error:
        check_method(parse(["--method", method, "--method_args", argument]))
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_switch_that_needs_every_score_takes_no_judge():
    with pytest.raises(InputError, match="--method dyme_reward: .*--judge_url"):
        check_method(parse(["--method", "dyme_reward", "--judge_url", "http://x/v1"]))


# ---- without thinking ---------------------------------------------------------------------------


def test_without_thinking_the_bare_answer_is_asked_memorized_and_scored(vlm):
    config = parse(["--thinking", "off", "--method", "sft"])
    (example,) = load_split(config, "train", 1)
    (made,) = make_groups(*vlm, [example])
    made.mode, rules = MEMORIZE, Rules(config)
    rows(config, 0, made, rules, vlm[1])
    assert made.target == example.answer
    right = rules.rewards(example, example.answer)
    assert right["correct"] and right["total"] == sum(config.reward_weights)
    for wrong in ("", f"red 5\nAnswer: {example.answer}", "so it is " * 9 + example.answer):
        assert not rules.rewards(example, wrong)["format"]
    assert not rules.rewards(example, example.answer, truncated=True)["correct"]
