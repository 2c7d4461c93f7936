"""
Evaluation: what a model answers on a split, in numbers. compare.py sets methods side by side.

Greedy decoding is the headline, temperature 1 shows what the model really believes: a trace learnt
by heart looks well when greedy. Besides accuracy it counts what DyME is about: is the stated
thinking true (precision and F1 of the stated facts), are right answers reached by grounded
thinking, and is the ability to answer directly still there.
"""

import math

from tqdm import tqdm

from checker import clean_answer, relaxed_accuracy, score, split_response
from lib.claims import claimed_facts
from data.example import DIRECT, THINK
from rollout import make_groups, rollout

# a right answer counts as grounded when the visual checker gives its thinking at least this
GROUNDED = 0.8


def evaluate(
    model,
    processor,
    examples,
    *,
    instruction: str = THINK,
    temperature: float = 0.0,
    max_completion_length: int = 64,
    max_pixels: int | None = None,
    batch_size: int = 64,
    tolerance: float = 0.05,
    seed: int = 0,
    on_item=None,
    score=score,
) -> dict[str, float]:
    """
    One response to each example (list-like of Example), scored; batch_size examples to a rollout.

    Returns shares in [0, 1]: accuracy (relaxed, of the marked answer; under DIRECT of the whole
    response), format, fact_precision (stated facts that are true), fact_f1 (the visual checker),
    grounded (of the right answers, those with thinking of at least GROUNDED), truncated; and
    completion_length (tokens), count, and accuracy/<task> where there are several tasks.
    on_item(index, example, response, scores): called for each.
    """
    rows, by_task = [], {}
    true_claims = claims = 0
    for start in range(0, len(examples), batch_size):
        batch = [examples[i] for i in range(start, min(start + batch_size, len(examples)))]
        indices = range(start, start + len(batch))
        groups = make_groups(
            model, processor, batch, places=indices, instruction=instruction, max_pixels=max_pixels
        )
        rollout(
            model,
            processor,
            groups,
            num_generations=1,
            max_completion_length=max_completion_length,
            temperature=temperature,
            seed=seed,
        )
        for index, example, group in zip(indices, batch, groups):
            (response,) = group.responses
            if instruction == DIRECT:
                right = relaxed_accuracy(
                    target=clean_answer(example.answer),
                    prediction=clean_answer(response.text),
                    tolerance=tolerance,
                )
                scores = {"accuracy": float(right), "format": 0.0, "thinking": 0.0}
            else:
                scored = score(
                    [response.text], example, truncated=[response.truncated], tolerance=tolerance
                )
                scores = {name: float(value[0]) for name, value in scored.items()}
                facts = [tuple(fact) for fact in example.facts]
                stated = set(claimed_facts(split_response(response.text)[0], facts))
                claims += len(stated)
                true_claims += len(stated & set(facts))
            scores["length"] = len(response.token_ids)
            scores["truncated"] = float(response.truncated)
            rows.append(scores)
            by_task.setdefault(example.task or "all", []).append(scores["accuracy"])
            if on_item is not None:
                on_item(index, example, response, scores)
    right = [row["thinking"] >= GROUNDED for row in rows if row["accuracy"] == 1]
    result = {
        "accuracy": mean([row["accuracy"] for row in rows]),
        "format": mean([row["format"] for row in rows]),
        "fact_precision": true_claims / max(claims, 1),
        "fact_f1": mean([row["thinking"] for row in rows]),
        "grounded": mean(right),
        "completion_length": mean([row["length"] for row in rows]),
        "truncated": mean([row["truncated"] for row in rows]),
        "count": len(rows),
    }
    if len(by_task) > 1:
        result.update(
            {f"accuracy/{task}": mean(values) for task, values in sorted(by_task.items())}
        )
    return result


def evaluate_all(model, processor, examples, **settings) -> dict[str, dict]:
    """The three readings of one split: greedy, at temperature 1, and answering directly."""
    return {
        "greedy": evaluate(model, processor, examples, **settings),
        "sampled": evaluate(model, processor, examples, temperature=1.0, **settings),
        "direct": evaluate(model, processor, examples, instruction=DIRECT, **settings),
    }


def mean(values: list) -> float:
    """The mean, 0 of nothing."""
    return sum(values) / max(len(values), 1)


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share that was counted on `count` items."""
    z = 1.96
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = (
        z
        * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
        / (1 + z * z / count)
    )
    return max(0.0, centre - half), min(1.0, centre + half)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """
    The unbiased estimate of the chance that at least one of k samples is right, when `correct` of
    `samples` are (Chen et al. 2021, arXiv 2107.03374, eq. 1). ValueError for k > samples: nothing
    is extrapolated.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass_at_k: k = {k} needs at least as many samples, there are {samples}")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def pass_at_ks(
    model,
    processor,
    examples,
    *,
    samples: int = 64,
    temperature: float = 1.0,
    max_completion_length: int = 64,
    max_pixels: int | None = None,
    tolerance: float = 0.05,
    seed: int = 0,
    score=score,
    batch_rows: int = 1024,
) -> dict:
    """
    pass@k for k = 1, 2, 4 .. samples from `samples` responses to each example: {"pass@k": share,
    ..., "right": counts}.

    right: how many of an example's samples give the right marked answer; every k is computed from
    these counts alone. batch_rows: responses decoded at a time.
    """
    size = max(1, batch_rows // samples)
    right = []
    for start in tqdm(range(0, len(examples), size), desc="pass@k", unit="batch", disable=None):
        batch = [examples[i] for i in range(start, min(start + size, len(examples)))]
        places = range(start, start + len(batch))
        groups = make_groups(model, processor, batch, places=places, max_pixels=max_pixels)
        rollout(
            model,
            processor,
            groups,
            num_generations=samples,
            max_completion_length=max_completion_length,
            temperature=temperature,
            seed=seed,
        )
        for example, group in zip(batch, groups):
            scored = score(
                [response.text for response in group.responses], example, tolerance=tolerance
            )
            right.append(int((scored["accuracy"] == 1).sum()))
    ks = [2**i for i in range(samples.bit_length()) if 2**i <= samples]
    result = {f"pass@{k}": mean([pass_at_k(samples, count, k) for count in right]) for k in ks}
    return {**result, "samples": samples, "right": right}
