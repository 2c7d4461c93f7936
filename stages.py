"""
The stages of Curr-ReFT in order (arXiv 2503.07065), each a run of train.py's loop from the last
one's weights.

    python train.py --method curr_reft                        judge, choice, open, then reject
    python train.py --method curr_reft --stages open reject   without the curriculum
    python train.py --method curr_reft --stages judge choice open    without self-improvement
    python train.py --method curr_reft --stages reject --model FOLDER    of any trained model

<output_dir>/judge, choice, open and reject are folders as train.py writes them, with metrics and
checkpoints of their own; <output_dir> gets the joined metrics, result.json and the last stage's
model. --resume goes on where it was. --max_steps, or the epochs, are those of the RL stages
together, shared as published, 1 : 1 : 2: a run without some of them makes as many updates.

The tiny model's base goes on from DyME's (knobs.CURR_REFT): a second base stage has shown it the
three tasks and the forms of question, and answered one thinking prompt in ten in the format. GRPO
chooses among what is sampled; a base that never follows the format, which DyME memorises its way
out of, would teach it nothing (advantage collapse).
"""

import functools
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from lib import checkpoint
from data.charts import TASKS
from curr_reft import FORMS, score_stage, stage_questions
from data import InputError
from evaluate import evaluate, evaluate_all, pass_at_ks
from lib.families import save_model
from config import STAGES, Config
from lib.log import Log, summary
from run import FREE_TO_CHANGE, Task, load_finals, load_model, load_split
from lib.ranks import Ranks, broadcast_object
from reject import account, account_lines, keep_best, mix_examples, sample_rows

EPOCHS = {"judge": 1, "choice": 1, "open": 2}  # published


class NothingKept(InputError):
    """Rejected sampling has nothing to learn from: no response scored above the threshold."""

    tasks: dict  # reject.account of what was sampled
    seconds: float  # that it took


def run_stages(config: Config, ranks: Ranks) -> dict:
    """The selected stages. Returns what it writes to <output_dir>/result.json, as train does."""
    if config.resume not in (None, "last"):
        raise InputError("--resume: give no folder, curr_reft finds its stage itself")
    folder = Path(config.output_dir)
    logs = ("metrics.jsonl", "sampled.jsonl")
    held = [s for s in config.stages if any((folder / s / name).exists() for name in logs)]
    if held and not (config.resume or config.overwrite):
        raise InputError(f"{folder}/{held[0]}: holds a run; --resume it or --overwrite it")
    if config.overwrite and not config.resume and ranks.rank == 0:
        for name in ("result.json", "readings.json"):  # a later --resume would take the old ones
            for stage in config.stages:
                (folder / stage / name).unlink(missing_ok=True)
        (folder / "base.json").unlink(missing_ok=True)
    log = Log(config.output_dir, ranks.rank == 0)
    log.open(fresh=False)
    results, model = {}, config.model
    base = {}
    if config.eval_base or (config.eval_base is None and config.model == "tiny"):
        base = read_model(config, model, Path(config.output_dir) / "base.json", ranks, log)
    order = sorted(config.stages, key=STAGES.index)
    for stage in order:
        own = stage_config(config, stage, model)
        try:
            results[stage] = run_stage(own, stage, ranks, log)
        except NothingKept as error:
            if not results:
                raise
            last = list(results)[-1]
            log.say(f"warning: {error}; the result is the model after {last}")
            results[last].update(kept=error.tasks, seconds_sampling=error.seconds)
            break
        model = own.output_dir
        broadcast_object(None, ranks)  # nobody reads the model before it is written
        if stage in ("open", order[-1]):
            path = Path(model) / "readings.json"
            results[stage]["final"] = read_model(config, model, path, ranks, log)
    last = list(results)[-1]
    if not results[last]["final"]:  # of a stage after which nothing was kept
        path = Path(model) / "readings.json"
        results[last]["final"] = read_model(config, model, path, ranks, log)
    return join(config, base, results, ranks, log)


def stage_config(config: Config, stage: str, model: str) -> Config:
    """The flags of one stage's run, which starts from `model`."""
    own = replace(config, method="grpo", model=model, eval_base=False)
    own.output_dir = str(Path(config.output_dir) / stage)
    own.ref_model = config.ref_model or config.model  # KL to the model before the curriculum
    if config.max_steps and not config.eval_steps:
        own.eval_steps = max(1, config.max_steps // 10)
    if stage == "reject":
        own.max_steps, own.num_train_epochs = config.reject_steps, config.reject_epochs
        return replace(own, method="sft", refiner="off", beta=0.0, loss_type="grpo")
    share = EPOCHS[stage] / sum(EPOCHS.get(name, 0) for name in config.stages)
    if config.max_steps is not None:
        own.max_steps = max(1, round(share * config.max_steps))
    if config.num_train_epochs is not None:
        own.num_train_epochs = share * config.num_train_epochs
    return own


def run_stage(config: Config, stage: str, ranks: Ranks, log: Log) -> dict:
    """One stage's run, or with --resume its result where it is finished, or the rest of it."""
    from train import train  # here, since train.py runs this file

    folder = Path(config.output_dir)
    finished = config.resume is not None and (folder / "result.json").exists()
    if broadcast_object(finished, ranks):
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        # what is None here was filled in there
        unset = {name for name, value in asdict(config).items() if value is None}
        ignored = FREE_TO_CHANGE | unset
        for change in checkpoint.changed_flags(result["config"], asdict(config), ignored):
            log.say(f"warning: {stage} is finished, with another {change}")
        return result
    log.say(f"---- {stage}, from {config.model}")
    loop = config  # the loop starts anew where it has saved nothing, the sampling goes on
    if config.resume and not checkpoint.step_folders(folder / "checkpoints"):
        loop = replace(config, resume=None, overwrite=True)
    if stage != "reject":
        return train(loop, ranks, stage_task(config, stage))
    start = time.perf_counter()
    try:
        task, kept = reject_task(config, ranks, log)
    except NothingKept as error:
        error.seconds = time.perf_counter() - start
        raise
    seconds = time.perf_counter() - start
    result = train(loop, ranks, task)
    result.update(kept=kept, seconds_sampling=seconds)
    log.write("reject/result.json", result)
    return result


def stage_task(config: Config, stage: str):
    """The Task of an RL stage: the data set's examples in its form, scored by its rewards."""

    def ask(split, size):
        return stage_questions(stage, load_split(config, split, size, TASKS), config.data_seed)

    score = functools.partial(score_stage, stage)
    val = ask(config.eval_split, config.eval_size)
    return Task(ask("train", config.train_size), val, {}, score)


def reject_task(config: Config, ranks: Ranks, log: Log):
    """The Task of the SFT on what rejected sampling keeps and on other domains; what was kept."""

    folder = Path(config.output_dir)
    sampled = folder / "sampled.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    task = stage_task(config, "open")
    examples = task.train[: config.reject_size]
    model, processor = load_model(config, ranks.device)
    rows = sample_rows(model, processor, examples, config, task.score, ranks, sampled)
    tasks = account(rows, config.reject_threshold)
    for line in account_lines(tasks, config.reject_threshold):
        log.say(line)
    kept, learned = keep_best(rows, examples, config.reject_threshold)
    if not learned:
        error = NothingKept(f"{sampled}: nothing kept; lower --reject_threshold or train longer")
        error.tasks = tasks
        raise error
    mixed = mix_examples(config, round(len(learned) * config.mix_share / (1 - config.mix_share)))
    if ranks.rank == 0:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        (folder / "kept.jsonl").write_text(text, encoding="utf-8")
    log.say(f"{len(learned)} are in {folder}/kept.jsonl, {len(mixed)} of other domains mixed in")
    return replace(task, train=learned + mixed), tasks


def read_model(config: Config, name: str, path: Path, ranks: Ranks, log: Log) -> dict:
    """
    A model's readings by split, also in the file `path`, from which a resumed run takes them.

    evaluate_all's, on the data set's own questions, as for every method; and greedy on each form's
    questions, of all tasks.
    """

    if broadcast_object(config.resume is not None and path.exists(), ranks):
        return json.loads(path.read_text(encoding="utf-8"))
    model, processor = load_model(replace(config, model=name), ranks.device)
    names = ("max_completion_length", "max_pixels", "seed")
    settings = {field: getattr(config, field) for field in names}
    readings = {}
    for split, examples in load_finals(config, log).items():
        readings[split] = evaluate_all(model, processor, examples, **settings)
        title = "base" if path.stem == "base" else path.parent.name
        log.say(summary(f"{title}, {split}", readings[split]))
        mixed = load_split(config, split, config.eval_size, TASKS)
        for form in FORMS:
            score = functools.partial(score_stage, form)
            questions = stage_questions(form, mixed, config.data_seed)
            readings[split][form] = evaluate(model, processor, questions, score=score, **settings)
        forms = ", ".join(f"{form} {readings[split][form]['accuracy']:.3f}" for form in FORMS)
        log.say(f"  all tasks, accuracy by form of question: {forms}")
    if ranks.rank == 0:
        path.write_text(json.dumps(readings, indent=1), encoding="utf-8")
    return readings


def join(config: Config, base: dict, results: dict, ranks: Ranks, log: Log) -> dict:
    """
    The stages as one run: metrics.jsonl and groups.jsonl with steps counted on, result.json, the
    last model.
    """
    folder, last = Path(config.output_dir), list(results)[-1]
    lines, val, steps, seconds = {"metrics.jsonl": [], "groups.jsonl": []}, [], 0, 0.0
    for stage, result in results.items():
        for name, joined in lines.items():
            path = folder / stage / name
            rows = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            for row in map(json.loads, rows):
                joined.append({**row, "step": steps + row["step"], "stage": stage})
        if stage in ("open", "reject"):  # the others' val questions are not the same
            val += [{**reading, "step": steps + reading["step"]} for reading in result["val"]]
        steps += result["step"]
        seconds += result["seconds"] + result.get("seconds_sampling", 0.0)
    settings = {**asdict(config), "max_steps": steps}
    whole = {"config": settings, "step": steps, "seconds": seconds, "val": val, "base": base}
    whole.update(final=results[last]["final"], stages={})
    told = ("seconds", "seconds_sampling", "val", "final", "kept")
    for stage, result in results.items():
        whole["stages"][stage] = {name: result[name] for name in told if name in result}
    if ranks.rank == 0:
        for name, joined in lines.items():
            (folder / name).unlink(missing_ok=True)
            for line in joined:
                log.append(name, line)
        log.write("result.json", whole)
        trained = replace(config, model=str(folder / last))
        save_model(config.output_dir, *load_model(trained, ranks.device))
        log.say(f"{', '.join(results)}: models, metrics and results are in {config.output_dir}")
    return whole


def pass_at_k_table(config: Config, models: list[str], split: str, size: int, samples: int) -> str:
    """
    Markdown: pass@k of each model's samples in each form, of all tasks; the counts behind it go to
    results/pass_at_k.json.
    """

    records = []
    names = ("max_completion_length", "max_pixels", "seed", "temperature")
    settings = {field: getattr(config, field) for field in names}
    examples = load_split(config, split, size, TASKS)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in models:
        model, processor = load_model(replace(config, model=name), device)
        for form in FORMS:
            questions = stage_questions(form, examples, config.data_seed)
            settings.update(samples=samples, score=functools.partial(score_stage, form))
            found = pass_at_ks(model, processor, questions, **settings)
            records.append({"model": name, "form": form, "split": split, **found})
    Path("results").mkdir(exist_ok=True)
    Path("results/pass_at_k.json").write_text(json.dumps(records, indent=1))
    ks = [name for name in records[0] if name.startswith("pass@")]
    head = f"{split}, {len(examples)} questions, {samples} samples each"
    lines = [f"| {head} | form | {' | '.join(ks)} |", "| --- " * (len(ks) + 2) + "|"]
    for record in records:
        cells = " | ".join(f"{100 * record[k]:.1f}" for k in ks)
        lines.append(f"| {record['model']} | {record['form']} | {cells} |")
    return "\n".join(lines)
