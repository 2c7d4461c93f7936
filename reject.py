"""
Rejected sampling: a model's own best answers become its SFT data (Curr-ReFT, arXiv 2503.07065).

N responses to each prompt, each scored 0 to 100; a prompt's best one is kept when it is above
--reject_threshold. SFT on what was kept, mixed with examples of other domains so that basic
ability stays, is train.py's loop again.

    <output_dir>/reject/sampled.jsonl   each prompt's best response and its score; resumable
    <output_dir>/reject/kept.jsonl      what is learned from: question, answer, trace, score

The score is the judge's (--judge_url) where there is one, else quality.py's. A response that the
accuracy or format reward finds wrong is never kept, so no judge is asked about it.
Left out: further rounds on the improved model.
"""

import functools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data import charts
from lib.answers import marked_answer, split_response
from data import Example, InputError
from data.own import own_row
from judge import close_judge, open_judge
from model import DIRECT, THINK, encode_prompt, prompt_to
from quality import WEIGHTS, judge_quality, local_quality, total
from lib.ranks import Interrupt, broadcast_object, gather_lists, shard
from data.reading import parse_file
from rollout import rollout

REASONS = {
    "accuracy": "no right answer",
    "format": "no right answer in the right format",
    "consistency": "thinking not grounded in the facts, or not leading to the answer",
    "fluency": "repeats itself",
}


def best_row(example, texts: list[str], scored: dict, judge=None) -> dict:
    """A prompt's line of sampled.jsonl: the best of its N responses, the first of equals."""
    names = ("accuracy", "format")
    rewards = [{name: float(scored[name][g]) for name in names} for g in range(len(texts))]
    rows = []
    for text, reward in zip(texts, rewards):
        parts = local_quality(text, example, reward)
        row = {"correct": min(reward.values()) == 1, "score": total(parts, WEIGHTS), "by": "local"}
        rows.append({**row, "parts": parts, "response": text})
    if judge:
        submit = functools.partial(judge.chat.pool.submit, judge_quality, judge)
        asked = [(row, submit(row["response"], example)) for row in rows if row["correct"]]
        for row, parts in [(row, future.result()) for row, future in asked]:
            if parts is not None:
                row.update(score=total(parts, dict.fromkeys(parts, 25)), by="judge", parts=parts)
    best = max(rows, key=lambda row: (row["correct"], row["score"]))
    best["parts"] = {name: round(part, 3) for name, part in best["parts"].items()}
    return {
        "id": example.id,
        "task": example.task,
        "question": example.question,
        "answer": example.answer,
        "samples": len(texts),
        "right": sum(reward["accuracy"] == 1 for reward in rewards),
        **best,
    }


# ---------------------------------------------------------------------------------------------
# sampling, resumable


def sample_rows(model, processor, examples: list, config, score, ranks, path: Path) -> list[dict]:
    """
    best_row of each example, in order, also in the file `path`; with --resume those that it has
    aren't sampled again.

    Samples are keyed by (seed, place of the example), so that a resumed run gets the same ones.
    """
    rows = None
    if ranks.rank == 0:
        if not config.resume:
            path.unlink(missing_ok=True)
        rows = read_sampled(path, examples, config.reject_samples)
    rows = broadcast_object(rows, ranks)
    judge = None
    if config.judge_url:
        judge = open_judge(config.judge_url, config.judge_model, output_dir=str(path.parent))
    size = config.prompts_per_step
    starts = range(len(rows) // size * size, len(examples), size)
    silent = None if ranks.rank == 0 else True
    progress = tqdm(starts, desc="rejected sampling", unit="batch", disable=silent)
    with Interrupt() as interrupt:
        for start in progress:
            share = shard(examples[start : start + size], ranks)
            share = [(start + place, example) for place, example in share]
            found = sample_share(model, processor, share, config, score, judge)
            found = sorted(gather_lists(found, ranks), key=lambda item: item[0])
            new = [row for place, row in found if place >= len(rows)]
            rows += new
            if ranks.rank == 0:
                with open(path, "a", encoding="utf-8") as file:
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in new)
            kept = sum(is_kept(row, config.reject_threshold) for row in rows)
            progress.set_postfix(kept=f"{kept}/{len(rows)}")
            if signal := interrupt.agreed(ranks):
                tqdm.write(f"interrupted: {path} has {len(rows)} prompts; go on with --resume")
                raise SystemExit(128 + signal)
    if judge:
        close_judge(judge)
    return rows


def sample_share(model, processor, share: list, config, score, judge) -> list[tuple[int, dict]]:
    """(place, best_row) of [(place, Example)]: N responses to each, scored."""
    encoded = [encode_prompt(processor, e, THINK, config.max_pixels) for _, e in share]
    groups = rollout(
        model,
        processor,
        [prompt_to(prompt, model.device) for prompt in encoded],
        config.reject_samples,
        config.max_completion_length,
        config.temperature,
        config.seed,
        prompt_indices=[place for place, _ in share],
        compile=config.compile,
    )
    found = []
    for (place, example), group in zip(share, groups):
        texts, truncated = [r.text for r in group], [r.truncated for r in group]
        scored = score(texts, example, truncated=truncated, tolerance=config.train_tolerance)
        found.append((place, best_row(example, texts, scored, judge)))
    return found


def read_sampled(path: Path, examples: list, samples: int) -> list[dict]:
    """The rows of a file, its torn last line cut off; InputError if they are another run's."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    try:
        rows = [json.loads(line) for line in lines]
        expected = [(e.id, e.question, samples) for e in examples[: len(rows)]]
        same = [(row["id"], row["question"], row["samples"]) for row in rows] == expected
    except (ValueError, LookupError, TypeError):
        same = False
    if not same:
        raise InputError(f"{path}: has other prompts or another --reject_samples; --overwrite it")
    with open(path, "rb+") as file:
        file.truncate(sum(len(line) + 1 for line in lines))
    return rows


# ---------------------------------------------------------------------------------------------
# what is learned from


def is_kept(row: dict, threshold: float) -> bool:
    """Whether a prompt's best response is learned from: right, in the right format, and good."""
    return row["correct"] and row["score"] > threshold


def keep_best(rows: list[dict], examples: list, threshold: float) -> tuple[list[dict], list]:
    """
    What is above the threshold: as lines of kept.jsonl, which --dataset can read again where
    images are files, and as Examples with the response as their trace and answer.
    """
    kept, learned = [], []
    for row, example in zip(rows, examples):
        if is_kept(row, threshold):
            trace = split_response(row["response"])[0]
            answer = marked_answer(row["response"]).strip()
            line = {name: row[name] for name in ("id", "task", "score", "by", "question")}
            if isinstance(example.image, str):
                line["image"] = example.image
            kept.append({**line, "answer": answer, "trace": trace})
            learned.append(replace(example, trace=trace, answer=answer))
    return kept, learned


def why_fallen(row: dict) -> str:
    """What a row lacks: a right answer, else the format, else where it lost the most points."""
    for name in () if row["correct"] else ("accuracy", "format"):
        if row["parts"][name] < 1:
            return REASONS[name]
    lost = {name: WEIGHTS[name] * (1 - row["parts"][name]) for name in ("consistency", "fluency")}
    return REASONS[max(lost, key=lost.get)]


def account(rows: list[dict], threshold: float) -> dict[str, dict]:
    """By task: how many prompts, how many kept, and how many fell for which reason."""
    tasks = {}
    for row in rows:
        empty = {"prompts": 0, "kept": 0, "fell": Counter()}
        counts = tasks.setdefault(row["task"] or "all", empty)
        counts["prompts"] += 1
        if is_kept(row, threshold):
            counts["kept"] += 1
        else:
            counts["fell"][why_fallen(row)] += 1
    return tasks


def account_lines(tasks: dict[str, dict], threshold: float) -> list[str]:
    """account for a person: a line for all, and one for each task."""
    kept = sum(counts["kept"] for counts in tasks.values())
    prompts = sum(counts["prompts"] for counts in tasks.values())
    lines = [f"best responses above {threshold:g} of 100: {kept} of {prompts} prompts"]
    for task, counts in tasks.items():
        fell = "; ".join(f"{reason}: {n}" for reason, n in counts["fell"].most_common())
        lines.append(f"  {task}: {counts['kept']} of {counts['prompts']}{fell and f' ({fell})'}")
    return lines


def mix_examples(config, count: int) -> list:
    """
    Up to `count` examples of other domains, multimodal and text only.

    Of --mix, in data.py's jsonl schema; one without a trace is a question to be answered directly.
    Without it, on charts: the base stage's captions, direct questions and text arithmetic, as many
    of each; on other data none.
    """
    if config.mix:
        path = Path(config.mix)
        rows = parse_file(path, functools.partial(own_row, path, path.parent))[:count]
        return [row if row.trace else replace(row, instruction=DIRECT) for row in rows]
    if config.dataset != "charts":
        return []
    names = {charts.CAPTION: "caption", DIRECT: "direct", charts.EXPLAIN: "text"}
    found = {instruction: [] for instruction in names}

    def add(example, instruction, answer):
        about = {"instruction": instruction, "answer": answer, "id": f"mix-{names[instruction]}"}
        found[instruction].append(replace(example, **about))

    rng = np.random.default_rng(config.data_seed)
    batch = 0
    while min(map(len, found.values())) <= count // 3:
        for example, instruction, target in charts.base_batch(config.data_seed, 10**6 + batch, 64):
            if instruction in (charts.CAPTION, DIRECT) and example.image is not None:
                add(example, instruction, target)
            else:
                question, _, working = charts.text_question(rng)
                add(Example(question=question), charts.EXPLAIN, working)
        batch += 1
    return [example for turn in zip(*found.values()) for example in turn][:count]
