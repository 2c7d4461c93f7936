"""
Curr-ReFT: a curriculum of question forms for GRPO (arXiv 2503.07065); its questions, its rewards.

A small model that can't find an answer yet may already tell a right one from a wrong one. So the
same items are asked three times, each stage from the last one's weights, on train.py's loop:

    judge    Is the answer X right, yes or no?   1 for the right decision
    choice   lettered options, several may be right   1 for the exact set, 0.2 for a part of it,
             0 with any wrong letter
    open     the item itself   detection: IoU > 0.5; classification: Jaccard; math: it matches

and the format reward, which in each stage asks for what that stage can give: thinking, then one
marked answer of the stage's form. The fourth stage, rejected sampling, is in reject.py, the order
of the stages and their folders in stages.py. Left out: answers with several boxes.
"""

import itertools
import math
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import torch

from data import charts
import checker
from data.own import WRAPPING
from lib.answers import clean_answer, marked_answer, relaxed_accuracy
from data import InputError
from model import THINK

FORMS = ("judge", "choice", "open")  # in the order of the curriculum
LETTERS = "ABCD"
DECISIONS = ["yes", "no"]
PARTIAL = 0.2  # for some of the right letters (paper; the published code has no such credit)
TOLERANCE = 0.05  # a wrong number differs by more: evaluation would accept less as right
TRIES = 64  # answers drawn when wrong ones are looked for
NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
BOX = re.compile(rf"[\[(<]?{NUMBER},{NUMBER},{NUMBER},{NUMBER}[\])>]?\.?")

# ---------------------------------------------------------------------------------------------
# reading an answer: what it says, or None when it hasn't the form that the question asks for


def read_decision(text: str) -> str | None:
    """ "yes" or "no" in any case; "yes or no" decides nothing: None."""
    word = clean_answer(text).casefold()
    return word if word in DECISIONS else None


def read_letters(text: str) -> set[str] | None:
    """The letters of "A, C", "C and A", "(a)" or "AC"; None without one or with another word."""
    words = [word for word in re.findall(r"\w+", text) if word.casefold() != "and"]
    if not words or not all(re.fullmatch("[A-Z]+|[a-z]", word) for word in words):
        return None
    return set("".join(words).upper())


def read_box(text: str) -> tuple[float, ...] | None:
    """
    (left, top, right, bottom) in pixels, right and bottom exclusive.

    None unless there are four finite numbers with left < right and top < bottom.
    """
    found = BOX.fullmatch(text.strip(WRAPPING))
    box = tuple(map(float, found.groups())) if found else ()
    if not box or not all(map(math.isfinite, box)) or box[0] >= box[2] or box[1] >= box[3]:
        return None
    return box


def read_labels(text: str) -> set[str] | None:
    """The labels between commas or semicolons, in lower case; None when there is none."""
    labels = {clean_answer(part).casefold() for part in re.split("[,;]", text.strip("[] "))}
    return labels - {""} or None


def read_answer(text: str) -> str | None:
    """A free answer, cleaned; None without a letter or digit."""
    answer = clean_answer(text)
    return answer if any(map(str.isalnum, answer)) else None


# ---------------------------------------------------------------------------------------------
# difficulty-aware rewards (Curr-ReFT, section 3): answer, target -> [0, 1]


def judge_reward(answer: str, target: str) -> float:
    """1 for the right decision, else 0."""
    decision = read_decision(answer)
    return float(decision is not None and decision == read_decision(target))


def choice_reward(answer: str, target: str) -> float:
    """1 for exactly the right letters, PARTIAL for some of them, 0 with any wrong letter."""
    given, right = read_letters(answer), read_letters(target)
    if given is None or not given <= right:
        return 0.0
    return 1.0 if given == right else PARTIAL


def detection_reward(answer: str, target: str) -> float:
    """1 if the boxes overlap by an IoU above 0.5, else 0."""
    box, right = read_box(answer), read_box(target)
    return float(box is not None and iou(box, right) > 0.5)


def classification_reward(answer: str, target: str) -> float:
    """Jaccard index of the sets of labels."""
    given, right = read_labels(answer), read_labels(target)
    return len(given & right) / len(given | right) if given else 0.0


def math_reward(answer: str, target: str, tolerance: float = 0.0) -> float:
    """1 if the answer matches by the answer metric, a number within `tolerance` of the target."""
    target, prediction = clean_answer(target), clean_answer(answer)
    return float(relaxed_accuracy(target=target, prediction=prediction, tolerance=tolerance))


def iou(a, b) -> float:
    """Intersection over union of two boxes that read_box gave."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


REWARDS = {  # by kind of answer: how it is read, what it is paid
    "judge": (read_decision, judge_reward),
    "choice": (read_letters, choice_reward),
    "detection": (read_box, detection_reward),
    "classification": (read_labels, classification_reward),
    "math": (read_answer, math_reward),
}


def kind_of(form: str, task: str) -> str:
    """The kind of answer, a key of REWARDS, that an Example of this task has in this form."""
    task = task.split("-")[0]
    if form != "open":
        return form
    return task if task in ("detection", "classification") else "math"


def reader_of(form: str, example):
    """The function that reads an answer to this Example in this form."""
    return REWARDS[kind_of(form, example.task)][0]


def accuracy_reward(form: str, answer: str | None, example, tolerance: float = 0.0) -> float:
    """The stage's accuracy reward of a marked answer; without a marker there is none, so 0."""
    kind = kind_of(form, example.task)
    if answer is None:
        return 0.0
    if kind == "math":
        return math_reward(answer, example.answer, tolerance)
    return REWARDS[kind][1](answer, example.answer)


def score_stage(form, responses, example, *, accuracy=None, tolerance=0.0, **settings) -> dict:
    """checker.score with a stage's accuracy reward; the format reward asks for its form, too."""
    answers = [marked_answer(response) for response in responses]
    if accuracy is None:
        accuracy = [accuracy_reward(form, answer, example, tolerance) for answer in answers]
    scored = checker.score(responses, example, accuracy=accuracy, **settings)
    read = reader_of(form, example)
    readable = [answer is not None and read(answer) is not None for answer in answers]
    for name in ("format", "total", "correct"):
        scored[name] = scored[name] * torch.tensor(readable)  # (G,)
    return scored


# ---------------------------------------------------------------------------------------------
# the questions of a stage


def stage_questions(form: str, examples, seed: int = 0) -> list:
    """
    The Examples of a data set in a stage's form ("open": as they are); pure.

    Of the answers that judge questions propose half are right, within each task. Wrong ones are
    of the right one's kind, see wrong_answers. InputError for an answer that isn't one of its
    task, and where there is no other answer of its kind.
    """
    examples = [examples[i] for i in range(len(examples))]
    for example in examples:
        if reader_of("open", example)(example.answer) is None:
            wanted = "left,top,right,bottom" if "detection" in example.task else "a word or number"
            raise InputError(f"{example.id}: {example.answer!r} is no answer; give {wanted}")
    if form == "open":
        return examples
    pool = answer_pool(examples)
    counts = Counter()
    asked = []
    for index, example in enumerate(examples):
        rng = np.random.default_rng([seed, FORMS.index(form), index])
        counts[example.task] += 1
        right = counts[example.task] % 2 == 1
        asked.append(in_form(form, example, pool, rng, right))
    return asked


def in_form(form: str, example, pool: dict, rng, right: bool):
    """One Example as a judge question, proposing its answer or a wrong one, or as a choice."""
    if form == "judge":
        return to_judge(example, pool, rng, right)
    return to_choice(example, pool, rng)


def answer_pool(examples: list) -> dict:
    """All answers by kind, each as often as it occurs: a wrong one must not stand out as rare."""
    pool = {}
    for example in examples:
        pool.setdefault(pool_key(example), []).append(example.answer)
    return pool


def pool_key(example) -> tuple[str, bool]:
    """What another answer must share to be of the same kind: the task, and being a number."""
    return example.task, checker.to_number(clean_answer(example.answer)) is not None


def wrong_answers(example, pool: dict, rng) -> list[str]:
    """
    Distinct wrong answers of the right one's kind, in random order, at least one (InputError).

    The other options, yes or no, other values or other names of the chart, if the right answer is
    one of these; else answers to other questions, of the same task where it has any.
    """
    right = clean_answer(example.answer).casefold()
    values, names = [value for _, value in example.facts], [name for name, _ in example.facts]
    sources = [example.options or [], DECISIONS, values, names]
    sources = [s for s in sources if right in [clean_answer(text).casefold() for text in s]][:1]
    for source in itertools.chain(sources or [pool[pool_key(example)]], other_tasks(example, pool)):
        drawn = dict.fromkeys(source[i] for i in rng.integers(len(source), size=TRIES))
        wrong = [text for text in drawn if accuracy_reward("open", text, example, TOLERANCE) < 1]
        if wrong:
            return wrong
    raise InputError(
        f"{example.id}: there is no wrong answer of the kind of {example.answer!r} to offer; "
        f"it takes more examples of this task, or --stages open reject"
    )


def other_tasks(example, pool: dict):
    """One list of all tasks' answers that could be an answer here; made only when it is needed."""
    read, (_, number) = reader_of("open", example), pool_key(example)
    answers = [text for key, texts in pool.items() if key[1] == number for text in texts]
    yield [text for text in answers if read(text) is not None]


def to_judge(example, pool: dict, rng, right: bool):
    """The Example as a judge question, about its answer or about a wrong one."""
    proposed = example.answer if right else wrong_answers(example, pool, rng)[0]
    question = f"Is the answer {proposed} right, yes or no?\n{example.question}"
    return replace(example, question=question, answer=DECISIONS[0 if right else 1], options=None)


def to_choice(example, pool: dict, rng):
    """
    The Example as a choice: its answer among up to three wrong ones. The labels of a
    classification are options of their own, up to three of them right.
    """
    if kind_of("open", example.task) == "classification":
        right, wrong = choose_labels(example, pool, rng)
    else:
        right, wrong = [example.answer], wrong_answers(example, pool, rng)[: len(LETTERS) - 1]
    order = rng.permutation(len(right + wrong)).tolist()
    options = [(right + wrong)[i] for i in order]
    letters = [letter for letter, i in zip(LETTERS, order) if i < len(right)]
    lines = "\n".join(f"{letter}: {option}" for letter, option in zip(LETTERS, options))
    question = f"Choose all right letters.\n{lines}\n{example.question}"
    return replace(example, question=question, answer=", ".join(letters), options=options)


def choose_labels(example, pool: dict, rng) -> tuple[list[str], list[str]]:
    """(right labels, wrong labels) of a classification: up to four, neither list empty."""
    present = sorted(read_labels(example.answer))
    known = set().union(*(read_labels(answer) for answer in pool[pool_key(example)]))
    absent = sorted(known - set(present))
    if not absent:
        raise InputError(f"{example.id}: has every label of its task, so there is no wrong one")
    count = int(rng.integers(1, len(LETTERS)))  # of right ones
    right = [present[i] for i in rng.permutation(len(present))[:count]]
    wrong = [absent[i] for i in rng.permutation(len(absent))[: len(LETTERS) - len(right)]]
    return right, wrong


def mix_forms(batch: list, forms: list[str], pool: dict, rng) -> list:
    """
    A batch of charts.base_batch with some questions in other forms, for the tiny model's base
    stage: a pretrained model has met decisions and lettered options, and without them no sample
    of a stage's form would ever come.

    forms: of "judge", "choice". Half of the questions to be thought about or explained get one of
    them; a working then ends in the form's answer. pool: answer_pool of like questions.
    """
    mixed = []
    for example, instruction, target in batch:
        form = str(rng.choice([*["open"] * len(forms), *forms]))
        asks = instruction in (THINK, charts.EXPLAIN) and pool_key(example) in pool
        if asks and form != "open":
            asked = in_form(form, example, pool, rng, rng.random() < 0.5)
            working = target.partition(".\nAnswer: ")[0] + ".\nAnswer: "
            target = asked.answer if target == example.answer else working + asked.answer
            example = asked
        mixed.append((example, instruction, target))
    return mixed
