"""
Predictions: a model's response to every question of a split, written down one by one; `sample.py
--eval` runs it.

It can be stopped at any time and goes on where it was. Relaxed accuracy is counted by task,
ChartQA's human and augmented questions apart, with Wilson's interval. Left out: what evaluate.py
measures besides.
"""

import json
import zlib
from pathlib import Path

import torch
from tqdm import tqdm

from checker import extract_answer, score
from lib.checkpoint import cut_metrics
from data import InputError
from evaluate import interval, mean
from config import Config
from model import encode_prompt, prompt_to
from rollout import Response, rollout

TOLERANCE = 0.05  # relaxed accuracy, as in evaluation


def predict(
    model,
    processor,
    examples,
    config: Config,
    path: Path,
    *,
    how: dict,
    temperature: float,
    seed: int,
    batch_size: int,
) -> list[dict]:
    """
    One response to each example, appended to the jsonl file at `path`; what stands there already
    is not asked again.

    how: says where the questions come from. With the sampling's settings and a checksum of the
    weights it is part of every line, and a line that came about otherwise is left alone. Returns
    the lines, in the examples' order.
    """
    how = {
        **how,
        "weights": checksum(model),
        "max_pixels": config.max_pixels,
        "temperature": temperature,
    }
    how["max_completion_length"] = config.max_completion_length
    if temperature > 0:
        how["seed"] = seed
    ids = [example.id or str(i) for i, example in enumerate(examples)]
    done = {line["id"]: line for line in read_predictions(path) if line.get("how") == how}
    done = {name: done[name] for name in ids if name in done}
    todo = [i for i, name in enumerate(ids) if name not in done]
    progress = tqdm(total=len(ids), initial=len(done), desc=how.get("split"), unit="question")
    with open(path, "a", encoding="utf-8") as file, progress:
        for start in range(0, len(todo), batch_size):
            places = todo[start : start + batch_size]
            batch = [examples[i] for i in places]
            prompts = [
                encode_prompt(processor, example, max_pixels=config.max_pixels) for example in batch
            ]
            prompts = [prompt_to(prompt, model.device) for prompt in prompts]
            # a response's random numbers go by its place in the split: stopping changes none
            groups = rollout(
                model,
                processor,
                prompts,
                1,
                config.max_completion_length,
                temperature,
                seed,
                prompt_indices=places,
            )
            for i, example, (response,) in zip(places, batch, groups):
                line = {
                    "id": ids[i],
                    "task": example.task,
                    "question": example.question,
                    "answer": example.answer,
                }
                line.update(response=response.text, truncated=response.truncated)
                line.update(
                    prediction=extract_answer(response.text),
                    rewards=score_one(response, example, config),
                    how=how,
                )
                file.write(json.dumps(line) + "\n")
                done[ids[i]] = line
            file.flush()
            progress.update(len(places))
            progress.set_postfix(
                accuracy=f"{mean([line['rewards']['accuracy'] for line in done.values()]):.3f}"
            )
    return [done[name] for name in ids]


def score_one(response: Response, example, config: Config) -> dict[str, float]:
    """format, accuracy (relaxed), thinking, total and correct of one response."""
    settings = dict(reward_weights=config.reward_weights, tolerance=TOLERANCE)
    scored = score([response.text], example, truncated=[response.truncated], **settings)
    return {name: float(value[0]) for name, value in scored.items()}


def accuracies(lines: list[dict]) -> dict[str, tuple[float, float, float, int]]:
    """
    (accuracy, its 95 % interval from, to, questions) of all lines, and of each task where there
    are several.
    """
    tasks = sorted({line["task"] for line in lines})
    found = {}
    for task in [None, *(tasks if len(tasks) > 1 else [])]:
        right = [line["rewards"]["accuracy"] for line in lines if task in (None, line["task"])]
        name = "all" if task is None else task or "other"
        found[name] = (mean(right), *interval(mean(right), len(right)), len(right))
    return found


def read_predictions(path: Path) -> list[dict]:
    """The lines of an earlier run; a last one that was cut off is removed from the file."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    cut_metrics(path, len(whole))
    lines = []
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            lines.append(json.loads(line))
            lines[-1]["id"], lines[-1]["rewards"]["accuracy"], lines[-1]["task"]
        except (ValueError, KeyError, TypeError, RecursionError):
            problem = "not a prediction; remove the line, or give another --output"
            raise InputError(f"{path}, line {number}: {problem}") from None
    return lines


def checksum(model) -> str:
    """Tells other weights under the same name."""
    value = 0
    for parameter in model.parameters():
        value = zlib.crc32(
            parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy(), value
        )
    return f"{value:08x}"
