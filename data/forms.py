"""Curr-ReFT's question forms (arXiv 2503.07065): the same item as a decision, a choice, or itself.

    judge    Is the answer X right, yes or no?      yes or no
    choice   lettered options, several may be right      A, C
    open     the item as it is

`grade(example, text, tolerance=0.0)`, in [0, 1], says whether a text answers an Example right: it
is handed in, since data/ knows no metric. Left out: choices among pictures, several boxes.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from data.charts import EXPLAIN
from data.example import THINK, Example, InputError

FORMS = ("judge", "choice", "open")  # in the order of the curriculum
LETTERS = "ABCD"
TOLERANCE = 0.05  # a wrong number differs by more: a lenient metric would take less as right
TRIES = 64  # answers drawn when wrong ones are looked for
NUMBER = re.compile(r"[-\u2212]?\$?[\d,]*\.?\d+ ?%?")
# form: the kind of its answer, and how one is written
WRITTEN = {"judge": ("decision", "(?i)yes|no"), "choice": ("letters", r"[A-Z](\W*[A-Z])*")}


def stage_questions(form: str, examples: Sequence, seed: int, grade: Callable) -> list[Example]:
    """The Examples in one of FORMS, pure; half of its judge questions propose what is right."""
    pool, counts, asked = answer_pool(examples), Counter(), []
    for index, example in enumerate(examples):
        if grade(example, example.answer) < 1:
            raise InputError(f"{example.id}: {example.answer!r} is no {example.kind} answer")
        rng = np.random.default_rng([seed, FORMS.index(form), index])
        counts[example.task] += 1
        asked.append(in_form(form, example, pool, rng, counts[example.task] % 2 == 1, grade))
    return asked


def given_questions(form: str, examples: Sequence[Example]) -> list[Example]:
    """Examples that were written in one of FORMS, as Curr-ReFT's stages are; InputError if not."""
    if form == "open":
        return list(examples)
    kind, pattern = WRITTEN[form]
    for example in examples:
        if not re.fullmatch(pattern, example.answer.strip(" .()")):
            raise InputError(f"{example.id}: {example.answer!r} is no answer of stage {form}")
    return [replace(example, kind=kind) for example in examples]


def in_form(form: str, example: Example, pool: dict, rng, right: bool, grade: Callable) -> Example:
    """One Example in a form: a judge question proposes its answer if `right`, else a wrong one; a
    choice has it among up to three wrong ones, or some right labels of a classification.
    """
    if form == "open":
        return example
    if form == "judge":
        proposed = example.answer if right else wrong_answers(example, pool, rng, grade)[0]
        question, answer = f"Is the answer {proposed} right, yes or no?", "yes" if right else "no"
    else:
        if example.kind == "labels":
            rights, wrongs = choose_labels(example, pool, rng)
        else:
            rights, wrongs = [example.answer], wrong_answers(example, pool, rng, grade)[:3]
        order = rng.permutation(len(rights + wrongs)).tolist()
        lines = [f"{letter}: {(rights + wrongs)[i]}" for letter, i in zip(LETTERS, order)]
        question = "\n".join(["Choose all right letters.", *lines])
        answer = ", ".join(letter for letter, i in zip(LETTERS, order) if i < len(rights))
    # options are in the question now: model.question_text adds an Example's own to it
    asked = {"question": f"{question}\n{example.question}", "answer": answer, "options": None}
    return replace(example, **asked, kind=WRITTEN[form][0])


def answer_pool(examples: Sequence) -> dict:
    """All answers by kind, each as often as it occurs: a wrong one must not stand out as rare."""
    pool = defaultdict(list)
    for example in examples:
        pool[pool_key(example)].append(example.answer)
    return pool


def pool_key(example: Example) -> tuple[str, str, bool]:
    """What another answer must share to be alike: the task, its kind, and being a number."""
    return example.task, example.kind, bool(NUMBER.fullmatch(example.answer.strip()))


def wrong_answers(example: Example, pool: dict, rng, grade: Callable) -> list[str]:
    """Distinct wrong answers, at least one: other options, yes or no, other values or names of the
    chart, if the right answer is one of these; else those of other questions, of its task if any.
    """
    key, values = pool_key(example), [fact[-1] for fact in example.facts]
    names = [name for fact in example.facts for name in fact[:-1]]
    near = (example.options or [], ["yes", "no"], values, names)
    near = [source for source in near if any(grade(example, text) == 1 for text in source)]
    alike = [text for other in pool if other[1:] == key[1:] for text in pool[other]]
    for source in (near[0] if near else pool[key], alike):
        drawn = dict.fromkeys(source[i] for i in rng.integers(len(source), size=TRIES))
        wrong = [text for text in drawn if grade(example, text, tolerance=TOLERANCE) < 1]
        if wrong:
            return wrong
    told = f"no wrong answer like {example.answer!r} to offer; add examples of its task"
    raise InputError(f"{example.id}: {told}, or --stages open reject")


def choose_labels(example: Example, pool: dict, rng) -> tuple[list[str], list[str]]:
    """(right labels, wrong labels) of a classification: up to four, neither list empty."""
    present = sorted(split_labels(example.answer))
    absent = sorted(set().union(*map(split_labels, pool[pool_key(example)])) - set(present))
    if not absent:
        raise InputError(f"{example.id}: has every label of its task, so there is no wrong one")
    count = int(rng.integers(1, len(LETTERS)))  # of right ones
    right = [present[i] for i in rng.permutation(len(present))[:count]]
    wrong = [absent[i] for i in rng.permutation(len(absent))[: len(LETTERS) - len(right)]]
    return right, wrong


def split_labels(answer: str) -> set[str]:
    """The labels between commas or semicolons, in lower case."""
    return set(filter(None, map(str.strip, re.split("[,;]", answer.casefold().strip("[] ")))))


def mix_forms(batch: list, forms: list[str], pool: dict, rng, grade: Callable) -> list:
    """A batch of charts.base_batch, half of its questions to be thought about or explained in other
    forms ("judge", "choice"), which a pretrained model would have met. pool: see answer_pool.
    """
    mixed = []
    for example, instruction, target in batch:
        form = str(rng.choice([*["open"] * len(forms), *forms]))
        if form != "open" and instruction in (THINK, EXPLAIN) and pool_key(example) in pool:
            asked = in_form(form, example, pool, rng, rng.random() < 0.5, grade)
            working = target.partition(".\nAnswer: ")[0] + ".\nAnswer: "
            target = asked.answer if target == example.answer else working + asked.answer
            example = asked
        mixed.append((example, instruction, target))
    return mixed
