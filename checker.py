"""Rewards of a response and the visual supervision around them, without a model in the loop.

The visual checker scores how far the thinking states the picture's facts, the visual refiner writes
what a group memorizes: DyME, arXiv 2506.23061. Those that ask a language model are in judge.py. A
reward of one's own in place of the accuracy takes a file with one function:

    python train.py --reward own.py     def reward(response: str, example: Example) -> float
"""

import re
import runpy
from dataclasses import replace

import torch

from config import tolerances
from data.charts import GOALS, write_trace
from data.example import MARKER, InputError, fact_name, fact_value, split_marked
from lib.answers import grade, read, split_response
from lib.answers import extract_answer, relaxed_accuracy  # noqa: F401 (for others to import)
from lib.claims import claimed_facts
from lib.derive import derive, shows
from lib.names import STOP, clean_answer, mentioned_facts

# A script without blanks is counted by its characters.
WORD = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]|[^\\W_]+(?:['’][^\\W_]+)*"
)
TAG = re.compile(r"<h[1-6][^<>]*>[^<>]*|<[!/?|]?[A-Za-z|-][^<>]*>|&#?\w{1,9};")
TITLE = r"[^\n*.,;=]{0,60}"
HEADING = re.compile(rf"^(?:#.*|[ \t]*(?:\*\*|__){TITLE}(?:\*\*)?:?|{TITLE}:[ \t]*)$", re.MULTILINE)
ARITHMETIC = re.compile(r"\d ?[-+−*/×÷=] ?[-−(]?\d")


def format_reward(response: str, truncated: bool = False, direct: bool = False) -> float:
    """1.0 for thinking, then exactly one marked, non-empty answer, ended by itself; else 0.0.

    Thinking is what remains without tags and headings: three different words, a word and a number
    ("black 6"), or arithmetic ("3 + 4"). direct: for an answer alone, one line of at most 12 words.
    """
    if direct:
        short = 0 < len(response.split()) <= 12 and "\n" not in response.strip()
        return float(short and not truncated)
    thinking, answer = split_response(response)
    said = HEADING.sub("", TAG.sub(" ", thinking))
    words = set(WORD.findall(said.casefold()))
    numbers = {word for word in words if word.isdecimal()}
    thought = len(words - numbers) >= 3 or numbers and words > numbers or ARITHMETIC.search(said)
    return float(bool(answer and thought) and not truncated)


def visual_checker(thinking: str, facts, needed=None, question: str = "", trace=None) -> float:
    """How far the thinking is grounded in the visual facts: F1 of its claims, in [0, 1].

    The reference is `needed` where known, else the facts whose names the question or the trace
    mentions, else all. Without facts it is the published local form: F1 of the content words and
    those of the trace (there by parts of speech, here all but STOP words).
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

    format (with an answer of the example's kind), accuracy, thinking: in [0, 1]. total: weighted by
    `reward_weights`, 0 where format is 0; where nothing can score the thinking, the other weights
    take its place. correct: bool, accuracy > 0.5 and format 1: what the switch counts. `truncated`:
    which were cut off; `accuracy`: G numbers in place of the metric at `tolerance`, a share of the
    answer. InputError where one isn't finite.
    """
    direct = example.instruction is not None
    parts = [("", r) if direct else split_marked(r) for r in responses]  # thinking, answer
    cut = truncated or [False] * len(responses)
    formats = [format_reward(*r, direct) for r in zip(responses, cut)]
    about = (example.facts, example.needed, example.question, example.trace)
    if accuracy is None:
        accuracy = [grade(example, answer, tolerance, example.scale) for _, answer in parts]
    rewards = {
        "format": [f * (read(example, a) is not None) for f, (_, a) in zip(formats, parts)],
        "accuracy": accuracy,
        "thinking": [visual_checker(thinking, *about) for thinking, _ in parts],
    }
    if not all(abs(value) < 1e38 for value in accuracy):  # float32 has no more; nan neither
        raise InputError(f"reward: {accuracy} of example {example.id!r} must be finite numbers")
    rewards = {name: torch.tensor(values).float() for name, values in rewards.items()}  # (G,) each
    if direct or not example.facts and not example.trace:
        kept = sum(reward_weights[:2]) or 1
        reward_weights = [w * sum(reward_weights) / kept for w in reward_weights[:2]] + [0]
    rewards["total"] = total_reward(rewards, reward_weights)
    rewards["correct"] = (rewards["accuracy"] > 0.5) & (rewards["format"] > 0.5)
    return rewards


def total_reward(rewards: dict[str, torch.Tensor], reward_weights) -> torch.Tensor:
    """The weighted sum of format, accuracy and thinking, (G,) each; 0 where format is 0."""
    parts = zip(reward_weights, ("format", "accuracy", "thinking"))
    weighted = sum(weight * rewards[name] for weight, name in parts)
    return torch.where(rewards["format"] > 0.5, weighted, 0.0)


def unmatchable(examples, tolerance: float = 0.0) -> list:
    """The examples whose answer, memorized as it is, would not be scored right at `tolerance`."""
    found = []
    for example in examples:
        bare = replace(example, facts=[], trace=None)  # their thinking isn't looked at
        target = ("" if example.instruction else "It can be read off.\nAnswer: ") + example.answer
        if not score([target], bare, tolerance=tolerance)["correct"]:
            found.append(example)
    return found


# ---- the visual refiner -------------------------------------------------------------------------

LONGEST = 500  # characters of an observation; a trace has to fit into a completion


def refine(example) -> str | None:
    """The thinking that a group memorizes, from facts, question and answer; no answer line.

    Goal and Observation: the facts that the question needs (of too many, those that show the
    answer); Reasoning and Conclusion where the numbers show them. The embedded charts have a writer
    of their own, the tiny model's words. Without facts the data's own trace, as published, or None.
    """
    if not example.facts:
        return example.trace
    kind = example.task.split("-")[0]
    if example.id.startswith("charts-") and kind in GOALS and example.needed:
        return write_trace(kind, example.needed, example.answer)
    answer = clean_answer(example.answer)
    facts, goal, reasoning, *_ = derive(example.question, example.needed or example.facts, answer)
    few = [fact for fact in facts if shows(fact, answer)]  # they alone don't show the conclusion
    for observed, reason in ((facts, reasoning), (few, "")):
        listed = "; ".join(f"{fact_name(fact)} = {fact_value(fact)}" for fact in observed)
        if 0 < len(listed) <= LONGEST:
            text = f"Goal: {goal}.\nObservation: {listed}."
            if reason:
                text += f"\nReasoning: {reason}.\nConclusion: the result is {answer}."
            # A fact's name may look like the answer marker, of which the target has just the last.
            return MARKER.sub("answer", text)
    return example.trace


def thinking_lines(examples) -> list[str]:
    """What one should know before training: whose thinking earns nothing, what is explained."""
    bare = [example for example in examples if not example.facts]
    traced = sum(example.trace is not None for example in bare)
    texts = [refine(example) or "" for example in examples if example.facts]
    explained = sum("\nReasoning: " in text for text in texts)
    lines = {
        f"{len(bare)} of {len(examples)} examples have no facts: their thinking earns nothing for "
        f"them; {traced} are scored by the words of their own trace, {len(bare) - traced} by "
        "format and answer alone; judge.py facts reads facts off images": bare,
        f"{explained} of {len(texts)} local traces explain their answer, the others state facts; "
        "better ones: judge.py refine with a --judge_url, then --traces": explained < len(texts),
    }
    return [line for line, said in lines.items() if said]


# ---- the scorer of the loop ---------------------------------------------------------------------


class Rules:
    """What the loop asks about its groups (rollout.Group); judge.Judge asks a model besides."""

    def __init__(self, config):
        self.config, self.own_reward = config, None
        try:
            if config.reward is not None:  # what can't be called has no __call__
                self.own_reward = runpy.run_path(config.reward)["reward"].__call__
        except (Exception, SystemExit) as error:
            told = f"{type(error).__name__}: {error}; it needs a function `reward`"
            raise InputError(f"--reward {config.reward}: {told}") from error

    def rewards(self, example, text: str, truncated: bool = False) -> dict[str, torch.Tensor]:
        """`score` of one text, (1,) each, with the run's weights, tolerance and own reward."""
        accuracy = None
        if self.own_reward is not None:
            try:
                accuracy = [float(self.own_reward(text, example))]
            except (Exception, SystemExit) as error:
                told = f"failed on {example.id}: {type(error).__name__}: {error}"
                raise InputError(f"--reward: {told}") from error
        how = {"reward_weights": self.config.reward_weights, "accuracy": accuracy}
        how["tolerance"] = tolerances(self.config)[0]
        return score([text], example, truncated=[truncated], **how)

    def hear(self, group, g: int) -> None:
        """Score the response `g` that has just ended, into group.rewards: name -> (G,)."""
        response = group.responses[g]
        scored = self.rewards(group.example, response.text, response.truncated)
        for name, value in scored.items():
            empty = torch.zeros(len(group.responses), dtype=value.dtype)
            group.rewards.setdefault(name, empty)[g] = value[0]

    def ready(self, groups: list):
        """Yield lists of groups whose rewards and traces are final: here all at once."""
        yield groups

    def trace(self, group) -> str | None:
        """The thinking that the group memorizes; None: the answer alone, nothing else was asked."""
        example, off = group.example, self.config.refiner == "off"
        if example.instruction is not None:
            return None
        return example.trace if off and example.trace is not None else refine(example)

    def end_step(self, step: int, groups: list, ranks) -> dict[str, float]:
        """Counts for the step's metrics."""
        return {}

    # A judge has something to restore, to tell of in result.json, to let go of.
    def resume(self, step: int) -> None: ...
    def summary(self) -> str | None: ...
    def close(self) -> None: ...
