"""
Curr-ReFT: a curriculum of question forms for GRPO (arXiv 2503.07065, section 3); its questions and its rewards.

A small model that can't yet find an answer may already tell a right one from a wrong one. So the same items are asked
three times, each stage from the last one's weights, on train.py's loop with its rollout, its losses and its data:

    judge    Is the answer X right, yes or no?   1 for the right decision
    choice   lettered options, several may be right   1 for the exact set, 0.2 for a part of it, 0 with a wrong letter
    open     the item itself   detection: IoU > 0.5; classification: Jaccard; math: the answer matches

and 1 for the format, which every stage asks for what it can give: thinking, then one marked answer of the stage's form.
The fourth stage, rejected sampling, is reject.py's, the order of the stages and their folders stages.py's.
Left out: box and label sets written as JSON, questions with several boxes.
"""

import math
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import torch

import checker
from checker import clean_answer, marked_answer, relaxed_accuracy
from data import InputError
from model import DIRECT

FORMS = ("judge", "choice", "open")  # in the order of the curriculum
LETTERS = "ABCD"
DECISIONS = ["yes", "no"]
PARTIAL = 0.2  # for a non-empty proper subset of the right letters (paper; the published code has none)
TOLERANCE = 0.05  # a distractor is further than this from a right number: evaluation would accept it
TRIES = 64  # candidates drawn when distractors are looked for
NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
BOX = re.compile(rf"[\[(<]?{NUMBER},{NUMBER},{NUMBER},{NUMBER}[\])>]?\.?")

# ---------------------------------------------------------------------------------------------------------------
# reading an answer: what it says, or None when it hasn't the form that the question asks for


def read_decision(text: str) -> str | None:
    """ "yes" or "no" in any case; "yes or no" decides nothing: None."""
    word = clean_answer(text).casefold()
    return word if word in DECISIONS else None


def read_letters(text: str) -> set[str] | None:
    """The set of letters of "A, C", "C and A", "(a)" or "AC"; None without a letter or with any other word."""
    words = re.findall(r"\w+", clean_answer(text))
    words = [word for word in words if word.casefold() != "and"]
    if not words or not all(re.fullmatch("[A-Z]+|[a-z]", word) for word in words):
        return None
    return set("".join(words).upper())


def read_box(text: str) -> tuple[float, ...] | None:
    """(left, top, right, bottom), pixels, right and bottom exclusive; None unless left < right, top < bottom, in finite numbers."""
    found = BOX.fullmatch(text.strip(checker.WRAPPING))
    box = tuple(map(float, found.groups())) if found else ()
    if not box or not all(map(math.isfinite, box)) or box[0] >= box[2] or box[1] >= box[3]:
        return None
    return box


def read_labels(text: str) -> set[str] | None:
    """The set of labels between commas or semicolons, in lower case; None when there is none."""
    labels = {clean_answer(part).casefold() for part in re.split("[,;]", text.strip("[] "))}
    return labels - {""} or None


def read_answer(text: str) -> str | None:
    """A free answer, cleaned; None without a letter or digit."""
    answer = clean_answer(text)
    return answer if any(map(str.isalnum, answer)) else None


# ---------------------------------------------------------------------------------------------------------------
# difficulty-aware rewards (section 3.2): answer, target -> [0, 1]


def judge_reward(answer: str, target: str) -> float:
    """1 for the right decision, else 0."""
    decision = read_decision(answer)
    return float(decision is not None and decision == read_decision(target))


def choice_reward(answer: str, target: str) -> float:
    """1 for exactly the right letters, PARTIAL for some of them, 0 with any wrong letter. A repeated letter counts once."""
    given, right = read_letters(answer), read_letters(target)
    if given is None or not given <= right:
        return 0.0
    return 1.0 if given == right else PARTIAL


def detection_reward(answer: str, target: str) -> float:
    """1 if the boxes overlap by an IoU above 0.5, else 0."""
    box, right = read_box(answer), read_box(target)
    return float(box is not None and iou(box, right) > 0.5)


def classification_reward(answer: str, target: str) -> float:
    """Jaccard index of the label sets."""
    given, right = read_labels(answer), read_labels(target)
    return len(given & right) / len(given | right) if given else 0.0


def math_reward(answer: str, target: str, tolerance: float = 0.0) -> float:
    """1 if the answer matches by the answer metric, the numbers within `tolerance` of the target's."""
    return float(relaxed_accuracy(target=clean_answer(target), prediction=clean_answer(answer), tolerance=tolerance))


def iou(a, b) -> float:
    """Intersection over union of two boxes that read_box gave."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


REWARDS = {  # of an answer of each kind: how it is read, what it is paid
    "judge": (read_decision, judge_reward),
    "choice": (read_letters, choice_reward),
    "detection": (read_box, detection_reward),
    "classification": (read_labels, classification_reward),
    "math": (read_answer, math_reward),
}


def kind_of(form: str, example) -> str:
    """The kind of answer that an Example's question in this form has: a key of REWARDS."""
    task = example.task.split("-")[0]
    return form if form != "open" else task if task in ("detection", "classification") else "math"


def accuracy_reward(form: str, answer: str | None, example, tolerance: float = 0.0) -> float:
    """The stage's accuracy reward of a marked answer; without a marker there is no answer, so 0."""
    kind = kind_of(form, example)
    if answer is None:
        return 0.0
    if kind == "math":
        return math_reward(answer, example.answer, tolerance)
    return REWARDS[kind][1](answer, example.answer)


def score_stage(form: str, responses: list[str], example, *, accuracy=None, tolerance: float = 0.0, **settings) -> dict:
    """checker.score with the stage's accuracy reward, its format reward also asking for an answer of the stage's form."""
    read = REWARDS[kind_of(form, example)][0]
    answers = [marked_answer(response) for response in responses]
    if accuracy is None:
        accuracy = [accuracy_reward(form, answer, example, tolerance) for answer in answers]
    scored = checker.score(responses, example, accuracy=accuracy, **settings)
    readable = torch.tensor([answer is not None and read(answer) is not None for answer in answers])  # (G,)
    for name in ("format", "total", "correct"):
        scored[name] = scored[name] * readable
    return scored


# ---------------------------------------------------------------------------------------------------------------
# the questions of a stage


def stage_questions(form: str, examples, seed: int = 0) -> list:
    """
    The Examples of a data set in a stage's form; a pure function of (form, examples, seed). "open": as they are.

    In judge questions half of the answers asked about are right, within each task. The wrong ones, and a choice's
    distractors, are of the right one's kind, see wrong_answers. InputError where there is no other answer of its kind.
    """
    examples = [examples[i] for i in range(len(examples))]
    for example in examples:
        if REWARDS[kind_of("open", example)][0](example.answer) is None:
            raise InputError(f"{example.id}: {example.answer!r} is no answer of its task; for detection: left,top,right,bottom")
    if form == "open":
        return examples
    pool = answer_pool(examples)
    counts = Counter()
    asked = []
    for index, example in enumerate(examples):
        rng = np.random.default_rng([seed, FORMS.index(form), index])
        counts[example.task] += 1
        right = counts[example.task] % 2 == 1
        asked.append(to_judge(example, pool, rng, right) if form == "judge" else to_choice(example, pool, rng))
    return asked


def answer_pool(examples: list) -> dict:
    """All answers by task and kind of answer, each as often as it occurs: a wrong one must not stand out by being rare."""
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

    The other options, yes or no, other values or other names of the chart, if the answer is one of these; else other answers.
    """
    right = clean_answer(example.answer).casefold()
    candidates = pool[pool_key(example)]
    names, values = [name for name, _ in example.facts], [value for _, value in example.facts]
    for kind in (example.options or [], DECISIONS, values, names):
        if right in [clean_answer(text).casefold() for text in kind]:
            candidates = kind
            break
    read = REWARDS[kind_of("open", example)][0]
    others = [text for key, texts in pool.items() if key[1] == pool_key(example)[1] for text in texts if read(text) is not None]
    for source in (candidates, others):  # other tasks' answers where a task has too few
        drawn = dict.fromkeys(source[i] for i in rng.integers(len(source), size=TRIES))
        wrong = [text for text in drawn if accuracy_reward("open", text, example, TOLERANCE) < 1]
        if wrong:
            return wrong
    raise InputError(
        f"{example.id}: no other answer of the kind of {example.answer!r} to ask about; "
        f"more examples of this task, or --stages open reject"
    )


def to_judge(example, pool: dict, rng, right: bool):
    """The Example as a judge question, about its answer or about a wrong one."""
    proposed = example.answer if right else wrong_answers(example, pool, rng)[0]
    question = f"Is the answer {proposed} right, yes or no?\n{example.question}"
    return replace(example, question=question, answer=DECISIONS[0] if right else DECISIONS[1], options=None)


def to_choice(example, pool: dict, rng):
    """
    The Example as a choice: its answer among up to three wrong ones; the labels of a classification, one to three of
    them right, each an option of its own.
    """
    if kind_of("open", example) == "classification":
        right, wrong = choose_labels(example, pool, rng)
    else:
        right, wrong = [example.answer], wrong_answers(example, pool, rng)[: len(LETTERS) - 1]
    texts = right + wrong
    order = rng.permutation(len(texts)).tolist()
    options = [texts[i] for i in order]
    lines = "\n".join(f"{letter}: {option}" for letter, option in zip(LETTERS, options))
    letters = [letter for letter, i in zip(LETTERS, order) if i < len(right)]
    question = f"Choose all right letters.\n{lines}\n{example.question}"
    return replace(example, question=question, answer=", ".join(letters), options=options)


def choose_labels(example, pool: dict, rng) -> tuple[list[str], list[str]]:
    """(right labels, wrong labels) of a classification, four together where there are so many, each list not empty."""
    present = sorted(read_labels(example.answer))
    known = set().union(*(read_labels(answer) for answer in pool[pool_key(example)]))
    absent = sorted(known - set(present))
    if not absent:
        raise InputError(f"{example.id}: every label of this task is right here, so there is no wrong one to offer")
    count = int(rng.integers(1, len(LETTERS)))  # of right ones
    right = [present[i] for i in rng.permutation(len(present))[:count]]
    wrong = [absent[i] for i in rng.permutation(len(absent))[: len(LETTERS) - len(right)]]
    return right, wrong


def mix_forms(batch: list, forms: list[str], pool: dict, rng) -> list:
    """
    A batch of charts.base_batch with some of its questions in other forms, for the tiny model's base stage: any pretrained
    model has met decisions and lettered options, and without them no sample of a stage's form would ever come.

    forms: of "judge", "choice"; a question that isn't to be answered directly stays open as often as it gets each. A
    working in another form ends in its answer. pool: answer_pool of like questions.
    """
    mixed = []
    for example, instruction, target in batch:
        form = "open" if instruction == DIRECT or pool_key(example) not in pool else str(rng.choice(["open", *forms]))
        if form != "open":
            asked = to_judge(example, pool, rng, rng.random() < 0.5) if form == "judge" else to_choice(example, pool, rng)
            working = "" if target == example.answer else target.partition(".\nAnswer: ")[0] + ".\nAnswer: "
            example, target = asked, working + asked.answer
        mixed.append((example, instruction, target))
    return mixed
