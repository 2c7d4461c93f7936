"""Rewards of a response and the visual supervision around them, without a model in the loop.

Answer and format, the visual checker, which scores how far the thinking states the chart's facts,
and the visual refiner, which writes the text that a group memorises: DyME, arXiv 2506.23061.
Relaxed accuracy: ChartQA, arXiv 2203.10244.

Left out: the forms of checker and refiner that ask a language model (judge.py), how claims are read
from a text (claims.py), and which operation leads from facts to answer (derive.py).
"""

import math

import torch

from data import charts
from lib.claims import claimed_facts, mentioned_facts
from data import InputError
from data.own import MARKER
from lib.answers import clean_answer, extract_answer, relaxed_accuracy, split_response, to_number  # noqa: F401
from lib.derive import derive, shows

# ---- the visual checker and the rewards ---------------------------------------------------------


def format_reward(response, truncated=False):
    """1.0 for thinking, then exactly one marked, non-empty answer, ended by itself; else 0.0."""
    thinking, answer = split_response(response)
    return float(bool(answer) and any(map(str.isalnum, thinking)) and not truncated)


def visual_checker(thinking, facts, needed=None, question="", trace=""):
    """How far the thinking is grounded in the visual facts: F1 of its claims, in [0, 1].

    Precision over the claimed pairs, recall over the reference pairs: `needed` where known, else
    the facts whose names the question or the reference trace mentions, else all (for facts, needed
    and trace see data.Example). A true fact that isn't in the reference costs precision. Nothing
    claimed: 0.
    """
    facts = tuple((str(name), str(value)) for name, value in facts)
    if needed:
        reference = {(str(name), str(value)) for name, value in needed}
    else:
        reference = set(mentioned_facts(f"{question}\n{trace or ''}", facts) or facts)
    claimed = set(claimed_facts(thinking, facts))
    right = len(claimed & reference)
    return 2 * right / (len(claimed) + len(reference)) if right else 0.0


def score(
    responses, example, *, truncated=None, reward_weights=(1, 1, 1), tolerance=0.0, accuracy=None
):
    """The rewards of G responses to an Example, a dict of (G,) tensors.

    format, accuracy, thinking: in [0, 1]. total: their sum weighted by `reward_weights`, in this
    order, and 0 where format is 0. correct: bool, accuracy > 0.5 and format 1, which is what the
    switch counts. `truncated` says which responses were cut off; `accuracy`, G numbers, replaces
    the metric. Raises InputError, naming the example, for an accuracy that isn't finite.
    """
    if accuracy is not None and not all(map(math.isfinite, accuracy)):
        raise InputError(f"reward: {accuracy} of example {example.id!r} must be finite numbers")
    truncated = truncated if truncated is not None else [False] * len(responses)
    target = clean_answer(example.answer)
    rewards = {"format": [], "accuracy": [], "thinking": []}
    for g, response in enumerate(responses):
        thinking, answer = split_response(response)
        right = answer is not None and relaxed_accuracy(
            target=target, prediction=answer, tolerance=tolerance
        )
        rewards["format"].append(format_reward(response, truncated[g]))
        rewards["accuracy"].append(float(right) if accuracy is None else float(accuracy[g]))
        rewards["thinking"].append(
            visual_checker(thinking, example.facts, example.needed, example.question, example.trace)
        )
    rewards = {name: torch.tensor(values) for name, values in rewards.items()}  # (G,) each
    rewards["total"] = total_reward(rewards, reward_weights)
    rewards["correct"] = (rewards["accuracy"] > 0.5) & (rewards["format"] > 0.5)
    return rewards


def total_reward(rewards, reward_weights):
    """The weighted sum of format, accuracy and thinking, (G,) each; 0 where format is 0."""
    parts = (rewards["format"], rewards["accuracy"], rewards["thinking"])
    weighted = sum(w * values for w, values in zip(reward_weights, parts))
    return torch.where(rewards["format"] > 0.5, weighted, torch.zeros_like(weighted))


# ---- the visual refiner -------------------------------------------------------------------------

LONGEST = 500  # characters of an observation; a trace has to fit into a completion


def refine(example):
    """The thinking that a group memorises, from facts, question and answer; no answer line.

    Goal / Observation / Reasoning / Conclusion: the facts that the question needs (`needed`, else
    those it mentions, else all; of too many, those that show the answer), what is done with them
    where the numbers show it, and the answer. The embedded charts' items get the text of their own
    writer, with the true facts: the tiny model's words.
    """
    kind = example.task.split("-")[0]
    if example.id.startswith("charts-") and kind in charts.GOALS and example.needed:
        return charts.write_trace(kind, example.needed, example.answer)
    facts = tuple((str(name), str(value)) for name, value in example.needed or example.facts)
    if not example.needed:
        facts = tuple(mentioned_facts(example.question, facts)) or facts
    answer = clean_answer(example.answer)
    goal, reasoning = derive(example.question, facts, answer)
    observed = "; ".join(f"{name} = {value}" for name, value in facts)
    if len(observed) > LONGEST:
        shown = [fact for fact in facts if shows(fact, answer)]
        observed = "; ".join(f"{name} = {value}" for name, value in shown)
    parts = [f"Goal: {goal}."]
    parts += [f"Observation: {observed}."] if 0 < len(observed) <= LONGEST else []
    parts += [f"Reasoning: {reasoning}."] if reasoning else []
    # A fact's name may look like the answer marker, of which the target has just the last.
    return MARKER.sub("answer", "\n".join(parts + [f"Conclusion: the result is {answer}."]))
