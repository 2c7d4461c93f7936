"""Rewards of a response and the visual supervision around them, without a model in the loop.

Answer and format, the visual checker, which scores how far the thinking states the chart's facts,
and the visual refiner, which writes the text that a group memorizes: DyME, arXiv 2506.23061. A
reward of one's own in place of the accuracy takes a file with one function:

    python train.py --reward own.py     def reward(response: str, example: Example) -> float

Left out: the forms of checker and refiner that ask a language model (judge.py), how claims are read
from a text (lib/claims.py), which operation leads from facts to answer (lib/derive.py).
"""

import importlib.util
import re
from dataclasses import replace
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
from lib.names import words
from lib.derive import derive, shows

# ---- the visual checker and the rewards ---------------------------------------------------------


# A script without blanks is counted by its characters.
WORD = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]|[^\\W_]+(?:['’][^\\W_]+)*"
)
TAG = re.compile(r"<h[1-6][^<>]*>[^<>]*|<[!/?|]?[A-Za-z|-][^<>]*>|&#?\w{1,9};")
TITLE = r"[^\n*.,;=]{0,60}"
HEADING = re.compile(rf"^(?:#.*|[ \t]*(?:\*\*|__){TITLE}(?:\*\*)?:?|{TITLE}:[ \t]*)$", re.MULTILINE)
ARITHMETIC = re.compile(r"\d ?[-+−*/×÷=] ?[-−(]?\d")
FEWEST = 3  # different words that are thinking
STOP = words("""a about after all also am an and any are as at be because been before being both but by
    can could did do does each first for from had has have he her here his how i if in into is it
    its just let lets me more most my need next no not now of on one only or other our out over
    question s see she should so some step such than that the their them then there these they
    this those thus to up us very was we were what when where which while who why will with would
    you your""")


def format_reward(response: str, truncated: bool = False) -> float:
    """1.0 for thinking, then exactly one marked, non-empty answer, ended by itself; else 0.0.

    Thinking is what remains without tags and headings: FEWEST different words, a word and a number
    ("black 6"), or arithmetic ("3 + 4").
    """
    thinking, answer = split_response(response)
    said = HEADING.sub("", TAG.sub(" ", thinking))
    words = set(WORD.findall(said.casefold()))
    numbers = {word for word in words if word.isdecimal()}
    thought = len(words - numbers) >= FEWEST or numbers and words > numbers
    thought = thought or ARITHMETIC.search(said)
    return float(bool(answer and thought) and not truncated)


def visual_checker(
    thinking: str, facts, needed=None, question: str = "", trace: str | None = ""
) -> float:
    """How far the thinking is grounded in the visual facts: F1 of its claims, in [0, 1].

    Precision over the claimed pairs, recall over the reference pairs: `needed` where known, else
    the facts whose names the question or the reference trace mentions, else all (for facts, needed
    and trace see data.example.Example). A true fact that isn't in the reference costs precision.
    Nothing claimed: 0. Without facts the published local form: F1 of the content words and those of
    the trace (there by parts of speech, here all but STOP words); 0 without a trace.
    """
    if facts:
        facts = [tuple(map(str, fact)) for fact in facts]
        needed = [tuple(map(str, fact)) for fact in needed or ()]
        reference = set(needed or mentioned_facts(f"{question}\n{trace or ''}", facts) or facts)
        claimed = set(claimed_facts(thinking, facts))
    else:
        reference, claimed = (
            {word for word in WORD.findall(text.casefold()) if word not in STOP}
            for text in (trace or "", thinking)
        )
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
    total: their sum weighted by `reward_weights`, in this order, and 0 where format is 0; where
    the example has neither facts nor a trace, the other weights take the thinking's place. correct:
    bool, accuracy > 0.5 and format 1, which is what the switch counts. `truncated` says which
    responses were cut off; `accuracy`, G numbers, replaces the metric at `tolerance`, a share of
    the answer. Raises InputError, naming the example, for an accuracy that isn't finite.
    """
    truncated = truncated if truncated is not None else [False] * len(responses)
    about = (example.facts, example.needed, example.question, example.trace)
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
    if not example.facts and not example.trace:
        kept = sum(reward_weights[:2]) or 1
        reward_weights = [w * sum(reward_weights) / kept for w in reward_weights[:2]] + [0]
    rewards["total"] = total_reward(rewards, reward_weights)
    rewards["correct"] = (rewards["accuracy"] > 0.5) & (rewards["format"] > 0.5)
    return rewards


def total_reward(rewards: dict[str, torch.Tensor], reward_weights) -> torch.Tensor:
    """The weighted sum of format, accuracy and thinking, (G,) each; 0 where format is 0."""
    parts = (rewards["format"], rewards["accuracy"], rewards["thinking"])
    weighted = sum(w * values for w, values in zip(reward_weights, parts))
    return torch.where(rewards["format"] > 0.5, weighted, torch.zeros_like(weighted))


def unmatchable(examples, tolerance: float = 0.0) -> list:
    """The examples whose answer, memorized as it is, would not be scored right at `tolerance`."""

    def scored(example):
        bare = replace(example, facts=[], trace=None)  # their thinking isn't looked at
        target = f"It can be read off.\nAnswer: {example.answer}"
        return score([target], bare, tolerance=tolerance)["correct"].item()

    drawn = (examples[index] for index in range(len(examples)))
    return [e for e in drawn if e.instruction is None and not scored(e)]


# ---- the visual refiner -------------------------------------------------------------------------

LONGEST = 500  # characters of an observation; a trace has to fit into a completion


def refine(example) -> str | None:
    """The thinking that a group memorizes, from facts, question and answer; no answer line.

    Goal / Observation / Reasoning / Conclusion: the facts that the question needs (`needed`, else
    those it mentions, else all; of too many, those that show the answer), and, where the numbers
    show it, what is done with them and the answer. Without facts the data's own trace, as
    published; None without either. The embedded charts' items get the text of their own writer,
    with the true facts: the tiny model's words.
    """
    if not example.facts:
        return example.trace
    kind = example.task.split("-")[0]
    if example.id.startswith("charts-") and kind in charts.GOALS and example.needed:
        return charts.write_trace(kind, example.needed, example.answer)
    answer = clean_answer(example.answer)
    derived = derive(example.question, example.needed or example.facts, answer)
    observed, reasoning = observe(derived.facts), derived.reasoning
    if len(observed) > LONGEST:  # a conclusion that not all of its cells are shown for isn't shown
        observed = observe(fact for fact in derived.facts if shows(fact, answer))
        reasoning = ""
    if not 0 < len(observed) <= LONGEST:
        return example.trace
    parts = [f"Goal: {derived.goal}.", f"Observation: {observed}."]
    if reasoning:
        parts += [f"Reasoning: {reasoning}.", f"Conclusion: the result is {answer}."]
    # A fact's name may look like the answer marker, of which the target has just the last.
    return MARKER.sub("answer", "\n".join(parts))


def thinking_lines(examples) -> list[str]:
    """What a person should know before training: whose thinking earns nothing, what is explained."""
    total = len(examples)
    examples = [examples[index] for index in range(total)]
    bare = [example for example in examples if not example.facts]
    lines = []
    if bare:
        traced = sum(example.trace is not None for example in bare)
        lines.append(
            f"{len(bare)} of {total} examples have no facts: their thinking earns nothing for them; "
            f"{traced} are scored by the words of their own trace, {len(bare) - traced} by format "
            "and answer alone"
        )
    known = [example for example in examples if example.facts]
    explained = sum("\nReasoning: " in (refine(example) or "") for example in known)
    if explained < len(known):
        lines.append(
            f"{explained} of {len(known)} local traces explain their answer, the others state facts; "
            "better ones: judge.py refine with a --judge_url, then --traces"
        )
    return lines


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
        """What did not work, for the run's last lines and result.json: nothing here."""
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
