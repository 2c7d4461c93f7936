"""Rewards of a response and the visual supervision around them, without a model in the loop.

The visual checker scores how far the thinking states the picture's facts, the visual refiner writes
the text that a group memorizes: DyME, arXiv 2506.23061. A reward of one's own in place of the
accuracy takes a file with one function:

    python train.py --reward own.py     def reward(response: str, example: Example) -> float

Left out: the forms that ask a language model (judge.py), how claims are read from a text
(lib/claims.py), which operation leads from facts to answer (lib/derive.py).
"""

import re
import runpy
from dataclasses import replace

import torch

from config import tolerances
from data.charts import GOALS, write_trace
from data.example import MARKER, InputError, fact_name, fact_value, split_marked
from lib.answers import grade, readable, split_response
from lib.answers import extract_answer, relaxed_accuracy  # noqa: F401 (for others to import)
from lib.claims import claimed_facts
from lib.derive import derive, shows
from lib.names import STOP, mentioned_facts
from lib.numbers import clean_answer

# ---- the visual checker and the rewards ---------------------------------------------------------

# A script without blanks is counted by its characters.
WORD = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]|[^\\W_]+(?:['’][^\\W_]+)*"
)
TAG = re.compile(r"<h[1-6][^<>]*>[^<>]*|<[!/?|]?[A-Za-z|-][^<>]*>|&#?\w{1,9};")
TITLE = r"[^\n*.,;=]{0,60}"
HEADING = re.compile(rf"^(?:#.*|[ \t]*(?:\*\*|__){TITLE}(?:\*\*)?:?|{TITLE}:[ \t]*)$", re.MULTILINE)
ARITHMETIC = re.compile(r"\d ?[-+−*/×÷=] ?[-−(]?\d")


def format_reward(response: str, truncated: bool = False) -> float:
    """1.0 for thinking, then exactly one marked, non-empty answer, ended by itself; else 0.0.

    Thinking is what remains without tags and headings: three different words, a word and a number
    ("black 6"), or arithmetic ("3 + 4").
    """
    thinking, answer = split_response(response)
    said = HEADING.sub("", TAG.sub(" ", thinking))
    words = set(WORD.findall(said.casefold()))
    numbers = {word for word in words if word.isdecimal()}
    thought = len(words - numbers) >= 3 or numbers and words > numbers or ARITHMETIC.search(said)
    return float(bool(answer and thought) and not truncated)


def direct_format(response: str, truncated: bool = False) -> float:
    """1.0 for an answer without thinking, one line of at most 12 words, ended by itself; or 0.0."""
    fine = 0 < len(response.split()) <= 12 and "\n" not in response.strip()
    return float(fine and not truncated)


def visual_checker(
    thinking: str, facts, needed=None, question: str = "", trace: str | None = ""
) -> float:
    """How far the thinking is grounded in the visual facts: F1 of its claims, in [0, 1].

    The reference is `needed` where known, else the facts whose names the question or the trace
    mentions, else all (see data.example.Example). A true fact beyond it costs precision. Nothing
    claimed: 0. Without facts the published local form: F1 of the content words and those of the
    trace (there by parts of speech, here all but STOP words); 0 without a trace.
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
    the example has neither facts nor a trace, the other weights take the thinking's place. So they
    do where it has an instruction of its own: then the response as a whole is the answer.
    correct: bool, accuracy > 0.5 and format 1, which is what the switch counts. `truncated`: which
    responses were cut off; `accuracy`: G numbers in place of the metric at `tolerance`, a share of
    the answer. InputError, naming the example, where one isn't finite.
    """
    direct = example.instruction is not None
    parts = [("", r) if direct else split_marked(r) for r in responses]  # thinking, answer
    well_formed = direct_format if direct else format_reward
    formats = [well_formed(*r) for r in zip(responses, truncated or [False] * len(responses))]
    about = (example.facts, example.needed, example.question, example.trace)
    if accuracy is None:
        accuracy = [grade(example, answer, tolerance, example.scale) for _, answer in parts]
    rewards = {
        "format": [f * readable(example, answer) for f, (_, answer) in zip(formats, parts)],
        "accuracy": accuracy,
        "thinking": [visual_checker(thinking, *about) for thinking, _ in parts],
    }
    rewards = {name: torch.tensor(values).float() for name, values in rewards.items()}  # (G,) each
    if not torch.isfinite(rewards["accuracy"]).all():
        raise InputError(f"reward: {accuracy} of example {example.id!r} must be finite numbers")
    if direct or not example.facts and not example.trace:
        kept = sum(reward_weights[:2]) or 1
        reward_weights = [w * sum(reward_weights) / kept for w in reward_weights[:2]] + [0]
    rewards["total"] = total_reward(rewards, reward_weights)
    rewards["correct"] = (rewards["accuracy"] > 0.5) & (rewards["format"] > 0.5)
    return rewards


def total_reward(rewards: dict[str, torch.Tensor], reward_weights) -> torch.Tensor:
    """The weighted sum of format, accuracy and thinking, (G,) each; 0 where format is 0."""
    parts = (rewards["format"], rewards["accuracy"], rewards["thinking"])
    weighted = sum(w * values for w, values in zip(reward_weights, parts))
    return torch.where(rewards["format"] > 0.5, weighted, 0.0)


def unmatchable(examples, tolerance: float = 0.0) -> list:
    """The examples whose answer, memorized as it is, would not be scored right at `tolerance`."""

    def scored(example):
        bare = replace(example, facts=[], trace=None)  # their thinking isn't looked at
        target = "" if example.instruction else "It can be read off.\nAnswer: "
        return score([target + example.answer], bare, tolerance=tolerance)["correct"].item()

    return [example for example in examples if not scored(example)]


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
    if example.id.startswith("charts-") and kind in GOALS and example.needed:
        return write_trace(kind, example.needed, example.answer)
    answer = clean_answer(example.answer)
    facts, goal, reasoning, *_ = derive(example.question, example.needed or example.facts, answer)
    observed = observe(facts)
    if len(observed) > LONGEST:  # a conclusion that not all of its cells are shown for isn't shown
        observed, reasoning = observe(fact for fact in facts if shows(fact, answer)), ""
    if not 0 < len(observed) <= LONGEST:
        return example.trace
    text = f"Goal: {goal}.\nObservation: {observed}."
    if reasoning:
        text += f"\nReasoning: {reasoning}.\nConclusion: the result is {answer}."
    # A fact's name may look like the answer marker, of which the target has just the last.
    return MARKER.sub("answer", text)


def observe(facts) -> str:
    """Facts as an observation states them."""
    return "; ".join(f"{fact_name(fact)} = {fact_value(fact)}" for fact in facts)


def thinking_lines(examples) -> list[str]:
    """What one should know before training: whose thinking earns nothing, what is explained."""
    bare = [example for example in examples if not example.facts]
    traced = sum(example.trace is not None for example in bare)
    known = len(examples) - len(bare)
    texts = [refine(example) for example in examples if example.facts]
    explained = sum("\nReasoning: " in (text or "") for text in texts)
    lines = [
        f"{len(bare)} of {len(examples)} examples have no facts: their thinking earns nothing for "
        f"them; {traced} are scored by the words of their own trace, {len(bare) - traced} by "
        "format and answer alone; judge.py facts reads facts off images",
        f"{explained} of {known} local traces explain their answer, the others state facts; "
        "better ones: judge.py refine with a --judge_url, then --traces",
    ]
    return [line for line, said in zip(lines, (bare, explained < known)) if said]


# ---- the scorer of the loop ---------------------------------------------------------------------


class Rules:
    """What the loop asks about its groups (rollout.Group), answered at once and without a model.

    judge.Judge has the same methods and asks a language model besides.
    """

    def __init__(self, config):
        self.config = config
        self.own_reward = load_reward(config.reward)

    def rewards(self, example, text: str, truncated: bool = False) -> dict[str, torch.Tensor]:
        """`score` of one text, (1,) each, with the run's weights, tolerance and own reward."""
        accuracy = None
        if self.own_reward is not None:
            try:
                accuracy = [float(self.own_reward(text, example))]
            except (Exception, SystemExit) as error:
                told = f"failed on {example.id}: {type(error).__name__}: {error}"
                raise InputError(f"--reward: {told}") from error
        return score(
            [text],
            example,
            truncated=[truncated],
            reward_weights=self.config.reward_weights,
            tolerance=tolerances(self.config)[0],
            accuracy=accuracy,
        )

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
        example = group.example
        if example.instruction is not None:
            return None
        as_it_is = self.config.refiner == "off" and example.trace is not None
        return example.trace if as_it_is else refine(example)

    def end_step(self, step: int, groups: list, ranks) -> dict[str, float]:
        """Counts for the step's metrics."""
        return {}

    def resume(self, step: int) -> None:
        """Restore what was learned up to `step`: nothing here."""

    def summary(self) -> str | None:
        """What did not work, for the run's last lines and result.json: nothing here."""

    def close(self) -> None:
        """Let go of what is under way: nothing here."""


def load_reward(path: str | None):
    """The function `reward` of a Python file, or None without a path. InputError if it has none."""
    if path is None:
        return None
    try:
        own_reward = runpy.run_path(path)["reward"]
    except (Exception, SystemExit) as error:
        told = f"{type(error).__name__}: {error}"
        raise InputError(f"--reward {path}: {told}; it needs a function `reward`") from error
    if not callable(own_reward):
        raise InputError(f"--reward {path}: `reward` is no function")
    return own_reward
