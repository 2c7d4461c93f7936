"""
Rewards of a group: checker.py's, joined or replaced by a function of one's own.

A file with `def reward(response, example) -> float` (response: the whole text; example:
data.Example) is all it takes:

    python train.py --reward my_reward.py                        it takes the place of the accuracy reward
    python train.py --reward my_reward.py --reward_mode join     the mean of both

A response counts as correct for the switch when this is above 0.5 and the format is right. The LLM
judge that may score the thinking in the checker's place is judge.py.
"""

import importlib.util
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import torch

from checker import score
from data import InputError
from judge import (
    Calls,
    add_response,
    adopt_template,
    apply_scores,
    as_finished,
    close_judge,
    request_template,
    thinking_scores,
)
from ranks import broadcast_object


def load_reward(path: str | None):
    """
    The function `reward` of a Python file, or None without a path. InputError if there is none.
    """
    if path is None:
        return None
    if not Path(path).is_file():
        raise InputError(
            f"--reward {path}: no such file; it should hold `def reward(response, example) -> float`"
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


def score_group(
    group: list, example, config, own_reward=None, score=score
) -> dict[str, torch.Tensor]:
    """
    The rewards of one prompt's G responses: format, accuracy, thinking, total, each (G,) float,
    and correct (G,) bool.

    score: checker.score, or a curriculum stage's. InputError, naming the example, when a reward
    function fails or gives something that isn't a finite number.
    """
    texts = [response.text for response in group]
    settings = dict(
        truncated=[response.truncated for response in group],
        reward_weights=config.reward_weights,
        tolerance=config.train_tolerance,
    )
    scored = score(texts, example, **settings)
    if own_reward is not None:
        own = torch.tensor([call(own_reward, text, example) for text in texts])  # (G,)
        if config.reward_mode == "join":
            own = (own + scored["accuracy"]) / 2
        scored = score(texts, example, accuracy=own.tolist(), **settings)
    if not torch.isfinite(scored["total"]).all():
        raise InputError(
            f"{example.id}: a reward is not finite ({scored['total'].tolist()}); mend the reward function"
        )
    return scored


def ask_judge(judge, calls: list, config, own_reward=None, score=score):
    """
    What rollout calls as soon as a response has ended: the judge is asked while the other
    responses are still decoded, and only for what the update will need.
    """

    def on_response(p: int, g: int, response) -> None:
        scored = score_group([response], calls[p].example, config, own_reward, score)
        correct, formatted = bool(scored["correct"][0]), bool(scored["format"][0] > 0.5)
        add_response(judge, calls[p], g, response.text, formatted=formatted, correct=correct)

    return on_response


def open_calls(judge, examples: list, config) -> list:
    """
    One collection of judge calls for each prompt; none without a judge. What isn't refined is
    never asked for.
    """
    calls = (
        [Calls(example, config.num_generations, config.method == "dyme") for example in examples]
        if judge
        else []
    )
    for call in calls:
        if config.refiner == "off" or call.example.instruction is not None:
            call.trace = Future()
            call.trace.set_result(call.example.trace)
    return calls


@contextmanager
def closing_judge(judge):
    """Whatever ends the loop, calls that have not begun are dropped."""
    try:
        yield
    finally:
        if judge:
            close_judge(judge)


def apply_judge(judge, calls: list, p: int, scores: list, config) -> None:
    """
    Put the judge's scores of prompt p's thinking in the place of the local checker's, where there
    are any.
    """
    if judge:
        apply_scores(scores[p], thinking_scores(calls[p]), config.reward_weights)


def evolve_template(judge, calls: list, proposal, step: int, ranks):
    """
    The refiner's template learns from the model's own good responses (paper, section 3.3): the
    first process asks for one proposal at a time, takes it over at a later step if the judge
    preferred it, and hands it to the others. Returns the proposal that is under way.
    """
    if judge is None:
        return None
    if ranks.rank == 0:
        if proposal is None:
            proposal = request_template(judge, calls)
        elif proposal.done():
            if proposal.result() is not None:
                adopt_template(judge, proposal.result(), step + 1)
            proposal = None
    judge.template = broadcast_object(judge.template, ranks)
    return proposal


def as_ready(judge, calls: list, prompts: int):
    """
    Lists of prompts whose rewards and targets are complete: all at once, or with a judge each when
    it has answered.
    """
    if judge is None:
        yield list(range(prompts))
        return
    for p in as_finished(judge, calls):
        yield [p]


def call(own_reward, text: str, example) -> float:
    try:
        return float(own_reward(text, example))
    except Exception as error:
        raise InputError(
            f"--reward: failed on {example.id}: {type(error).__name__}: {error}"
        ) from error
