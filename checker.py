"""Rewards of a response and the visual supervision around them, without a model in the loop.

Answer and format, the visual checker, which scores how far the thinking states the chart's facts,
and the visual refiner, which writes the text that a group memorizes: DyME, arXiv 2506.23061. A
reward of one's own in place of the accuracy takes a file with one function:

    python train.py --reward own.py     def reward(response: str, example: Example) -> float

Left out: the forms of checker and refiner that ask a language model (judge.py), how claims are read
from a text (lib/claims.py), which operation leads from facts to answer (lib/derive.py).
"""

import importlib.util
from pathlib import Path

import torch

from config import tolerances
from data import charts
from data.example import InputError, fact_name, fact_value
from data.own import MARKER, split_marked
from lib.answers import (  # noqa: F401 (some are here for others to import)
    clean_answer,
    extract_answer,
    grade,
    readable,
    relaxed_accuracy,
    split_response,
    to_number,
)
from lib.claims import claimed_facts, mentioned_facts
from lib.derive import derive, shows

# ---- the visual checker and the rewards ---------------------------------------------------------


def format_reward(response: str, truncated: bool = False) -> float:
    """1.0 for thinking, then exactly one marked, non-empty answer, ended by itself; else 0.0."""
    thinking, answer = split_response(response)
    return float(bool(answer) and any(map(str.isalnum, thinking)) and not truncated)


def visual_checker(thinking: str, facts, needed=None, question: str = "", trace: str = "") -> float:
    """How far the thinking is grounded in the visual facts: F1 of its claims, in [0, 1].

    Precision over the claimed pairs, recall over the reference pairs: `needed` where known, else
    the facts whose names the question or the reference trace mentions, else all (for facts, needed
    and trace see data.example.Example). A true fact that isn't in the reference costs precision. Nothing
    claimed: 0.
    """
    facts = [tuple(map(str, fact)) for fact in facts]
    needed = [tuple(map(str, fact)) for fact in needed or ()]
    reference = set(needed or mentioned_facts(f"{question}\n{trace or ''}", facts) or facts)
    claimed = set(claimed_facts(thinking, facts))
    right = len(claimed & reference)
    return 2 * right / (len(claimed) + len(reference)) if right else 0.0


def score(
    responses: list[str],
    example,
    *,
    truncated: list[bool] | None = None,
    reward_weights=(1, 1, 1),
    tolerance: float = 0.0,
    accuracy: list[float] | None = None,
) -> dict[str, torch.Tensor]:
    """The rewards of G responses to an Example, a dict of (G,) tensors.

    format, accuracy, thinking: in [0, 1]; the format asks for an answer of the example's kind.
    total: their sum weighted by `reward_weights`, in this order, and 0 where format is 0. correct:
    bool, accuracy > 0.5 and format 1, which is what the switch counts. `truncated` says which
    responses were cut off; `accuracy`, G numbers, replaces the metric at `tolerance`, a share of
    the answer. Raises InputError, naming the example, for an accuracy that isn't finite.
    """
    truncated = truncated if truncated is not None else [False] * len(responses)
    about = (example.facts, example.needed, example.question, example.trace or "")
    rewards = {"format": [], "accuracy": [], "thinking": []}
    for g, response in enumerate(responses):
        thinking, answer = split_marked(response)
        formed = example.kind == "text" or readable(example, answer)
        rewards["format"].append(formed * format_reward(response, truncated[g]))
        own = accuracy is not None
        rewards["accuracy"].append(float(accuracy[g]) if own else grade(example, answer, tolerance))
        rewards["thinking"].append(visual_checker(thinking, *about))
    rewards = {name: torch.tensor(values) for name, values in rewards.items()}  # (G,) each
    if not torch.isfinite(rewards["accuracy"]).all():
        raise InputError(f"reward: {accuracy} of example {example.id!r} must be finite numbers")
    rewards["total"] = total_reward(rewards, reward_weights)
    rewards["correct"] = (rewards["accuracy"] > 0.5) & (rewards["format"] > 0.5)
    return rewards


def total_reward(rewards: dict[str, torch.Tensor], reward_weights) -> torch.Tensor:
    """The weighted sum of format, accuracy and thinking, (G,) each; 0 where format is 0."""
    parts = (rewards["format"], rewards["accuracy"], rewards["thinking"])
    weighted = sum(w * values for w, values in zip(reward_weights, parts))
    return torch.where(rewards["format"] > 0.5, weighted, torch.zeros_like(weighted))


# ---- the visual refiner -------------------------------------------------------------------------

LONGEST = 500  # characters of an observation; a trace has to fit into a completion


def refine(example) -> str:
    """The thinking that a group memorizes, from facts, question and answer; no answer line.

    Goal / Observation / Reasoning / Conclusion: the facts that the question needs (`needed`, else
    those it mentions, else all; of too many, those that show the answer), what is done with them
    where the numbers show it, and the answer. The embedded charts' items get the text of their own
    writer, with the true facts: the tiny model's words.
    """
    kind = example.task.split("-")[0]
    if example.id.startswith("charts-") and kind in charts.GOALS and example.needed:
        return charts.write_trace(kind, example.needed, example.answer)
    facts = example.needed or mentioned_facts(example.question, example.facts) or example.facts
    answer = clean_answer(example.answer)
    goal, reasoning = derive(example.question, facts, answer)
    observed = observe(facts)
    if len(observed) > LONGEST:
        observed = observe(fact for fact in facts if shows(fact, answer))
    parts = [f"Goal: {goal}."]
    parts += [f"Observation: {observed}."] if 0 < len(observed) <= LONGEST else []
    parts += [f"Reasoning: {reasoning}."] if reasoning else []
    # A fact's name may look like the answer marker, of which the target has just the last.
    return MARKER.sub("answer", "\n".join(parts + [f"Conclusion: the result is {answer}."]))


def observe(facts):
    """Facts as an observation states them."""
    return "; ".join(f"{fact_name(fact)} = {fact_value(fact)}" for fact in facts)


# ---- the scorer of the loop ---------------------------------------------------------------------


class Rules:
    """What the loop asks about its groups (rollout.Group), answered at once and without a model.

    judge.Judge has the same methods and asks a language model besides.
    """

    def __init__(self, config):
        self.config = config
        self.own_reward = load_reward(config.reward)

    def hear(self, group, g: int) -> None:
        """Score the response `g` that has just ended, into group.rewards: name -> (G,)."""
        response, example, config = group.responses[g], group.example, self.config
        own = self.own_reward
        scored = score(
            [response.text],
            example,
            truncated=[response.truncated],
            reward_weights=config.reward_weights,
            tolerance=tolerances(config)[0],
            accuracy=None if own is None else [call_reward(own, response.text, example)],
        )
        for name, value in scored.items():
            if name not in group.rewards:
                group.rewards[name] = torch.zeros(len(group.responses), dtype=value.dtype)
            group.rewards[name][g] = value[0]

    def ready(self, groups: list):
        """Yield lists of groups whose rewards and traces are final: here all at once."""
        yield groups

    def trace(self, group) -> str | None:
        """The thinking that the group memorizes; None: the answer alone, nothing else was asked."""
        example = group.example
        if example.instruction is not None:
            return None
        if self.config.refiner == "off" and example.trace is not None:
            return example.trace
        return refine(example)

    def end_step(self, step: int, groups: list, ranks) -> dict[str, float]:
        """Counts for the step's metrics."""
        return {}

    def resume(self, step: int) -> None:
        """Restore what was learned up to `step`: nothing here."""

    def summary(self) -> str | None:
        """A line for the end of the run, where there is something to say."""
        return None

    def close(self) -> None:
        """Let go of what is under way: nothing here."""


def load_reward(path: str | None):
    """The function `reward` of a Python file, or None without a path. InputError if it has none."""
    if path is None:
        return None
    if not Path(path).is_file():
        raise InputError(
            f"--reward {path}: no such file; "
            "it should hold `def reward(response, example) -> float`"
        )
    spec = importlib.util.spec_from_file_location("own_reward", path)
    if spec is None:
        raise InputError(f"--reward {path}: must be a Python file, name it .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"--reward {path}: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, "reward", None)):
        raise InputError(f"--reward {path}: has no function `reward(response, example) -> float`")
    return module.reward


def call_reward(own_reward, text: str, example) -> float:
    """The user's reward of a response; InputError, naming the example, where it fails."""
    try:
        return float(own_reward(text, example))
    except Exception as error:
        raise InputError(
            f"--reward: failed on {example.id}: {type(error).__name__}: {error}"
        ) from error
