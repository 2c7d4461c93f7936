"""Other answers to DyME's question, when to imitate and when to explore: ten rules, one function
each.

    python train.py --method hpt --method_args gate=0.25
    python train.py --method chord_mu --method_args peak=0.5 steps=100

A rule gets a group, whose G samples are scored, and its reference, and returns the rows that the
group brings to the update. Its keyword arguments are its knobs. A sampled row weighs its advantage,
a memorized one of weight G as much as a whole group. What differs from all papers: prompts,
rewards, optimizer and `--loss_type` are this project's, and the reference is the group's own.

A rule of your own is one more function, its name in RULES and in config.METHODS.
"""

import inspect
from collections.abc import Callable
from math import cos, nan, pi
from types import SimpleNamespace

import torch

from data.example import InputError
from grpo import group_advantages
from rollout import EXPLORE, MEMORIZE, SKIP, Group, Row
from sft import Reference

# ---- the building blocks ------------------------------------------------------------------------


def sampled(group: Group, advantages: torch.Tensor, config, weight: float = 1.0) -> list[Row]:
    """The samples as rows, as many as there are advantages; none where these are all 0, and so the
    gradient (advantage collapse), but for a KL term's sake.
    """
    group.advantages[: len(advantages)] = advantages
    if not advantages.any() and config.beta == 0:
        return []
    weights = (weight * advantages).tolist()
    return [Row(response.token_ids, w) for response, w in zip(group.responses, weights)]


def memorized(reference: Reference, weight: float, token_weight: Callable | None = None) -> list:
    """The reference as a row, as a list; none of weight 0. token_weight: see rollout.Row."""
    return [Row(reference.token_ids, weight, "sft", token_weight)] if weight else []


def unscaled(group: Group) -> torch.Tensor:
    """The group's advantages without the division by the standard deviation, (G,)."""
    return group_advantages(group.rewards["total"], scale=False)


def falling(step: int, steps: int) -> float:
    """From 1 to 0 by cosine over so many steps, then 0."""
    return 0.5 * (1 + cos(pi * min(step / steps, 1)))


def share_correct(group: Group) -> float:
    """c / G."""
    return group.rewards["correct"].float().mean().item()


def dyme_by(correct: torch.Tensor, group: Group, reference: Reference, config) -> list[Row]:
    """DyME's switch (dyme.py) by another notion of correct, (G,) bool."""
    if not correct.any():
        return memorized(reference, 1.0)
    return [] if correct.all() else sampled(group, group.advantages, config)


# ---- DyME's relatives ---------------------------------------------------------------------------


def dyme_reward(group: Group, reference: Reference, config, step: int, *, above=0.9) -> list[Row]:
    """DyME's code, first change: a response is correct where the mean of its three unweighted
    rewards is above 0.9.
    """
    rewards = torch.stack([group.rewards[name] for name in ("format", "accuracy", "thinking")])
    return dyme_by(rewards.mean(dim=0) > above, group, reference, config)


def dyme_grounded(group: Group, reference: Reference, config, step: int, *, least=0.8) -> list[Row]:
    """Ours: DyME, a response being correct only with thinking that the visual checker gives at
    least 0.8, so that no group is skipped for right answers to unfounded thinking.
    """
    correct = group.rewards["correct"] & (group.rewards["thinking"] >= least)
    return dyme_by(correct, group, reference, config)


def dyme_keep(group: Group, reference: Reference, config, step: int, *, weight=1.0) -> list[Row]:
    """Ours: DyME, but a group that is all right isn't skipped: its samples differ by their thinking
    alone, and weigh `weight` of an explored group's.
    """
    share = share_correct(group)
    if share == 0:
        return memorized(reference, 1.0)
    return sampled(group, group.advantages, config, weight if share == 1 else 1.0)


def dyme_always(group: Group, reference: Reference, config, step: int) -> list[Row]:
    """DyME's code, second change: in every group the reference takes the last sample's place. The
    other G - 1 keep their advantages over all G; the reference's falls from 1 to 0 by cosine.
    """
    weight = falling(step, config.max_steps)
    return sampled(group, group.advantages[:-1], config) + memorized(reference, weight)


def dyme_buffer(group: Group, reference: Reference, config, step: int, *, size=192) -> list[Row]:
    """DyME's code, third change: groups that are all wrong keep their own samples and are noted; at
    `size` of them the next update is SFT on these (run.steps; there, one micro-batch), in place of
    its own prompts, and the rest is dropped.
    """
    return sampled(group, group.advantages, config) if share_correct(group) < 1 else []


# ---- their sisters ------------------------------------------------------------------------------


def hpt(group: Group, reference: Reference, config, step: int, *, gate=0.0, coefficient=1.0):
    """Hybrid post-training (arXiv 2509.04419): SFT alone, a whole group's weight times
    `coefficient` (ours; 1/G is DyME's), where a share of at most `gate` is correct, else GRPO
    without std. Left out: the soft form, the entropy bonus.
    """
    if share_correct(group) <= gate:
        return memorized(reference, coefficient * len(group.responses))
    return sampled(group, unscaled(group), config)


def chord_mu(
    group: Group, reference: Reference, config, step: int, *, peak=0.9, valley=0.05, steps=200
):
    """CHORD (arXiv 2508.11408): (1 - mu) GRPO + mu SFT in every group, mu falling from `peak` to
    `valley` by cosine over `steps` updates.
    """
    mu = valley + (peak - valley) * falling(step, steps)
    rows = sampled(group, group.advantages, config, 1 - mu)
    return rows + memorized(reference, mu * len(group.responses))


def chord_phi(group: Group, reference: Reference, config, step: int, *, mu=0.1) -> list[Row]:
    """CHORD (arXiv 2508.11408) with mu constant and the reference's tokens weighed by p (1 - p), p
    the policy's probability: what is known, and what is far off, teaches little.
    """
    rows = sampled(group, group.advantages, config, 1 - mu)
    return rows + memorized(reference, mu * len(group.responses), lambda p: p * (1 - p))


def luffy(group: Group, reference: Reference, config, step: int, *, gamma=0.1) -> list[Row]:
    """LUFFY (arXiv 2504.14945): G - 1 samples and the reference are the group, without std. In the
    ratio's place the reference's tokens have p / (p + gamma), whose gradient is gamma p / (p +
    gamma)^2 times that of log p. The last sample is left unused.
    """
    own = group.rewards["total"][:-1]
    everyone = torch.cat([own, own.new_tensor([reference.earn()])])  # (G,)
    advantages = group_advantages(everyone, scale=False)
    shaped = memorized(reference, advantages[-1].item(), lambda p: gamma * p / (p + gamma) ** 2)
    return sampled(group, advantages[:-1], config) + shaped


def relift(group: Group, reference: Reference, config, step: int, *, size=128, sft_rate=1.0):
    """ReLIFT (arXiv 2506.07527): GRPO without std; groups that are all wrong are noted, and at
    `size` of them the next update is SFT on the newest (run.steps), at sft_rate times the learning
    rate; the others wait. There it is an extra update, by an AdamW of its own.
    """
    return sampled(group, unscaled(group), config)


OURS = (dyme_reward, dyme_grounded, dyme_keep, dyme_always, dyme_buffer)
SISTERS = (hpt, chord_mu, chord_phi, luffy, relift)
RULES = {rule.__name__: rule for rule in OURS + SISTERS}
# the switch needs every score, and a judge is asked only for what the switch has decided
NO_JUDGE = ("dyme_reward", "dyme_grounded")
SHARES = ("gate", "above", "least", "peak", "valley", "mu", "sft_share")  # arguments in [0, 1]
COUNTS = ("size", "steps")  # at least 1


# ---- what the loop asks -------------------------------------------------------------------------


def mode(config, step: int, group: Group) -> int | None:
    """A group's mode under the configured rule is what its rows are: none, the reference alone, or
    samples too. None while some responses are still being decoded.
    """
    if None in group.responses:
        return None
    any_reference = SimpleNamespace(token_ids=[0], earn=lambda: 1.0)
    kinds = {row.loss for row in rows(config, step, group, any_reference)}
    return EXPLORE if "grpo" in kinds else MEMORIZE if kinds else SKIP


def rows(config, step: int, group: Group, reference: Reference) -> list[Row]:
    """What the group brings to the update by the configured rule. A group without samples is one
    of a buffer's: all of these together weigh as much as a step's P groups.
    """
    if not group.responses:
        of_a_step = config.prompts_per_step * config.num_generations
        return memorized(reference, of_a_step / buffer_size(config))
    scale = config.loss_type != "dr_grpo"
    group.advantages = group_advantages(group.rewards["total"], scale)  # a rule may take others
    rule = RULES[config.method]
    return rule(group, reference, config, step, **knobs(config, rule))


def knobs(config, rule: Callable) -> dict[str, float]:
    """--method_args as keyword arguments of a rule, its defaults with them. InputError for one that
    the rule doesn't have, or that is out of its range.
    """
    known = inspect.signature(rule).parameters.values()
    found = {knob.name: knob.default for knob in known if knob.kind == knob.KEYWORD_ONLY}
    for text in config.method_args or []:
        name, _, written = text.partition("=")
        if name not in found:
            told = f"the arguments of --method {config.method} are: {', '.join(found) or 'none'}"
            raise InputError(f"--method_args {text}: {told}")
        low, high = float(name in COUNTS), 1.0 if name in SHARES else 1e9
        try:
            found[name] = float(written)
        except ValueError:
            found[name] = nan
        if not low <= found[name] <= high:
            raise InputError(f"--method_args {text}: must be a number in [{low:g}, {high:g}]")
    return found


def buffer_size(config) -> int:
    """How many noted prompts make an update of their own; 0: the rule notes none."""
    rule = RULES.get(config.method)
    return int(knobs(config, rule).get("size", 0)) if rule else 0


def due(config, buffer: list[list[int]]) -> tuple[list, list, float]:
    """Of the noted prompts, [step, place] each: those that the next update is SFT on, mostly none;
    those that stay noted behind it; and what its learning rate is multiplied by.
    """
    size = buffer_size(config)
    if not size or len(buffer) < size:
        return [], buffer, 1.0
    if config.method == "relift":
        return buffer[-size:], buffer[:-size], knobs(config, relift)["sft_rate"]
    return buffer[:size], [], 1.0
