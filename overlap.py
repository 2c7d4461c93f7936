"""
Judge calls beside decoding and updates: which are needed, when they are sent, who waits for them.

The paper pays 43 to 58 % of a step for its judge. Here a response is judged while others are still
being decoded, a group's update waits for its own calls only, and nothing is asked that the update
will not use: scores of groups that are explored, traces of groups that are memorised. Where calls
queue up, one group's go before the next one's (`urgency`): else all groups would be complete at
the very end, and no update would run beside the rest of the calls.

What train.py calls here takes None for a judge, and then does nothing. Left out: what is asked
(judge.py), retries and the cache (chat.py).
"""

import concurrent.futures
import time
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from lib.chat import count
from checker import split_response, total_reward
from data import Example
from judge import close_judge, judge_refine, judge_thinking
from rewards import score_group


@dataclass
class Calls:
    """
    The calls for one prompt's responses.

    With `switch` (DyME's, by correctness alone) scores are sent once the group is sure to be
    explored, the trace once it is sure to be memorised, nothing if all are right. Without it
    (GRPO) every response of format 1 is scored.
    """

    example: Example
    num_generations: int
    switch: bool = True
    place: int = 0  # of the prompt in the step
    thinking: dict = field(default_factory=dict)  # g -> text; None: format 0, reward 0 unscored
    correct: dict = field(default_factory=dict)  # g -> bool
    scores: dict = field(default_factory=dict)  # g -> Future of judge_thinking
    trace: Future | None = None  # of judge_refine


def open_calls(judge, examples: list, config) -> list:
    """One Calls for each prompt, or None in its place without a judge."""
    if judge is None:
        return [None] * len(examples)
    switch = config.method == "dyme"
    calls = [
        Calls(example, config.num_generations, switch, place)
        for place, example in enumerate(examples)
    ]
    for call in calls:
        if config.refiner == "off" or call.example.instruction is not None:
            call.trace = Future()  # what isn't refined is never asked for
            call.trace.set_result(call.example.trace)
    return calls


def ask_judge(run, calls: list):
    """What rollout calls as soon as a response has ended; None without a judge."""
    if run.judge is None:
        return None

    def on_response(p: int, g: int, response) -> None:
        example = calls[p].example
        scored = score_group([response], example, run.config, run.own_reward, run.task.score)
        correct, formatted = bool(scored["correct"][0]), bool(scored["format"][0] > 0.5)
        add_response(run.judge, calls[p], g, response.text, formatted=formatted, correct=correct)

    return on_response


def add_response(judge, calls: Calls, g: int, text: str, *, formatted: bool, correct: bool):
    """
    Take in response g and send what is now sure to be needed.

    formatted: whether its format reward is 1. correct: what the switch counts.
    """
    calls.thinking[g] = split_response(text)[0] if formatted else None
    calls.correct[g] = bool(correct)
    right = sum(calls.correct.values())
    if calls.switch and right == 0 and len(calls.correct) == calls.num_generations:
        request_trace(judge, calls)
    if calls.switch and not 0 < right < len(calls.correct):
        return
    for i, thinking in calls.thinking.items():
        if thinking is not None and i not in calls.scores:
            same = [f for j, f in calls.scores.items() if calls.thinking[j] == thinking]
            if same:
                calls.scores[i] = same[0]
            else:
                calls.scores[i] = submit(judge, calls, judge_thinking, thinking, calls.example)


def request_trace(judge, calls: Calls | None):
    """Send for the memorised target's trace, unless that is done."""
    if judge is not None and calls.trace is None:
        calls.trace = submit(judge, calls, judge_refine, calls.example)


def submit(judge, calls: Calls, function, *args) -> Future:
    """function(judge, *args) in the judge's pool, as one of the calls for a prompt."""
    future = Future()
    with judge.chat.lock:
        judge.queue.append((calls, future, function, args))
    judge.chat.pool.submit(run_most_urgent, judge)  # as many such jobs as there are calls
    return future


def run_most_urgent(judge) -> None:
    """The most urgent of the calls that wait; of equally urgent ones the oldest."""
    with judge.chat.lock:
        first = min(range(len(judge.queue)), key=lambda i: urgency(*judge.queue[i]))
        _, future, function, args = judge.queue.pop(first)
    try:
        future.set_result(function(judge, *args))
    except BaseException as error:  # said where the result is asked for
        future.set_exception(error)


def urgency(calls: Calls, future, function, args) -> tuple:
    """
    The lowest goes first: a trace, since this one call makes its group complete; then scores of
    groups whose responses have all ended, the first prompt's first; then those of the others.
    """
    decoding = len(calls.correct) < calls.num_generations
    return function is not judge_refine, decoding, calls.place


def as_ready(judge, calls: list):
    """Lists of the prompts' indices, together once each: all at once, with a judge as_finished."""
    if judge is None:
        yield list(range(len(calls)))
    else:
        yield from as_finished(judge, calls)


def as_finished(judge, groups: list):
    """
    Lists of indices of `groups` (P Calls) whose calls are done, those that need none first.

    The time spent waiting here, the calls' whole cost beside the GPU, is counted as judge_wait_s.
    """
    waiting = {}
    for i, calls in enumerate(groups):
        waiting[i] = {*calls.scores.values(), *([calls.trace] if calls.trace else [])}
    while waiting:
        ready = [i for i, futures in waiting.items() if all(f.done() for f in futures)]
        if ready:
            for i in ready:
                del waiting[i]
            yield ready
            continue
        start = time.perf_counter()
        pending = {f for futures in waiting.values() for f in futures if not f.done()}
        concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED)
        count(judge.chat, "judge_wait_s", time.perf_counter() - start)


def thinking_scores(calls: Calls) -> list:
    """The judge's scores (G); None: not asked or no answer, the local score stays."""
    scores = {g: future.result() for g, future in calls.scores.items()}
    return [scores.get(g) for g in range(calls.num_generations)]


def apply_judge(calls: Calls | None, scored: dict, reward_weights) -> None:
    """Put the judge's scores of a group in the place of the local checker's, where it has any."""
    if calls is not None:
        apply_scores(scored, thinking_scores(calls), reward_weights)


def apply_scores(scored: dict, scores: list, reward_weights=(1, 1, 1)) -> None:
    """Put scores (G), where not None, into checker.score's dict and its totals."""
    for g, score in enumerate(scores):
        if score is not None:
            scored["thinking"][g] = score
    scored["total"] = total_reward(scored, reward_weights)


@contextmanager
def closing_judge(judge):
    """Whatever ends the loop, calls that have not begun are dropped."""
    try:
        yield
    finally:
        if judge:
            close_judge(judge)
