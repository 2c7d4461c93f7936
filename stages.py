"""
The stages of Curr-ReFT in order (arXiv 2503.07065): each is a run of train.py's loop from the last one's weights.

    python train.py --method curr_reft                            judge, choice, open, then rejected sampling
    python train.py --method curr_reft --stages open reject       without the curriculum
    python train.py --method curr_reft --stages judge choice open without the self-improvement
    python train.py --method curr_reft --stages reject --model out/charts-dyme    the self-improvement of any model

<output_dir>/judge, choice, open and reject are folders as train.py writes them, each with its metrics and checkpoints;
<output_dir> itself gets the joined metrics, result.json and the last stage's model. --resume goes on where it was.
--max_steps, or the epochs, are those of the RL stages together, shared as the published epochs, 1 : 1 : 2: a run without
some of them makes as many updates.

The tiny model's base stage is not DyME's (knobs.CURR_REFT): it has met the three tasks and the forms of question, and
answered one thinking prompt in ten in the format. GRPO chooses among what is sampled; a base that never follows the
format, from which DyME memorises its way out, would teach it nothing at all (advantage collapse).
"""

import functools
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

import checkpoint
from charts import TASKS
from curr_reft import FORMS, kind_of, score_stage, stage_questions
from data import Example, InputError
from evaluate import evaluate, evaluate_all, mean, pass_at_ks
from families import save_model
from knobs import STAGES, Config
from metrics import Log, summary
from reject import account, account_lines, keep_best, mix_examples, sample_rows

EPOCHS = {"judge": 1, "choice": 1, "open": 2}  # published


def run_stages(config: Config, ranks: checkpoint.Ranks) -> dict:
    """The selected stages. Returns what it writes to <output_dir>/result.json: as train's, and more of each stage."""
    if config.resume not in (None, "last"):
        raise InputError("--resume: give it no folder with curr_reft, which finds its stage and checkpoint itself")
    log = Log(config.output_dir, ranks.rank == 0)
    log.open(fresh=False)
    results, model = {}, config.model
    evaluate_base = config.model == "tiny" if config.eval_base is None else config.eval_base
    base = read_model(config, model, Path(config.output_dir) / "base.json", ranks, log) if evaluate_base else {}
    for stage in sorted(config.stages, key=STAGES.index):
        own = stage_config(config, stage, model)
        results[stage] = run_stage(own, stage, ranks, log)
        model = own.output_dir
        checkpoint.broadcast_object(None, ranks)  # so that nobody reads the model before it is written
        if stage in ("open", "reject"):
            results[stage]["final"] = read_model(config, model, Path(model) / "readings.json", ranks, log)
    return join(config, base, results, ranks, log)


def stage_config(config: Config, stage: str, model: str) -> Config:
    """The flags of one stage's run, which starts from `model`."""
    own = replace(config, method="grpo", model=model, output_dir=str(Path(config.output_dir) / stage), eval_base=False)
    own.ref_model = config.ref_model or config.model  # the KL is to the model before the curriculum
    own.eval_steps = config.eval_steps or (max(1, config.max_steps // 10) if config.max_steps else None)
    if stage == "reject":
        return replace(own, method="sft", refiner="off", beta=0.0, max_steps=config.reject_steps, num_train_epochs=config.reject_epochs)
    share = EPOCHS[stage] / sum(EPOCHS.get(name, 0) for name in config.stages)
    if config.max_steps is not None:
        own.max_steps = max(1, round(share * config.max_steps))
    if config.num_train_epochs is not None:
        own.num_train_epochs = share * config.num_train_epochs
    return own


def run_stage(config: Config, stage: str, ranks: checkpoint.Ranks, log: Log) -> dict:
    """One stage's run, or with --resume its result where it is finished, or the rest of it."""
    from train import FREE_TO_CHANGE, train  # here, since train.py runs this file

    folder = Path(config.output_dir)
    finished = checkpoint.broadcast_object((folder / "result.json").exists() and config.resume is not None, ranks)
    if finished:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        unset = {name for name, value in asdict(config).items() if value is None}  # the run has filled them in
        for change in checkpoint.changed_flags(result["config"], asdict(config), FREE_TO_CHANGE | unset):
            log.say(f"warning: {stage} is finished, with another {change}; --overwrite starts all stages over")
        return result
    if config.resume and not checkpoint.step_folders(folder / "checkpoints"):
        config = replace(config, resume=None, overwrite=True)
    log.say(f"---- {stage}, from {config.model}")
    if stage != "reject":
        return train(config, ranks, stage_task(config, stage))
    start = time.perf_counter()
    task, kept = reject_task(config, ranks, log)
    seconds = time.perf_counter() - start
    result = train(config, ranks, task)
    result.update(kept=kept, seconds_sampling=seconds)
    log.write("reject/result.json", result)
    return result


def stage_task(config: Config, stage: str):
    """The Task of an RL stage: the data set's examples in its form, scored by its rewards."""
    from train import Task, load_split

    def ask(split, size):
        return stage_questions(stage, load_split(config, split, size, TASKS), config.data_seed)

    score = functools.partial(score_stage, stage)
    return Task(ask("train", config.train_size), ask(config.eval_split, config.eval_size), {}, score)


def reject_task(config: Config, ranks: checkpoint.Ranks, log: Log):
    """The Task of the SFT on what rejected sampling keeps, mixed with other domains; and the account of what was kept."""
    from train import load_model

    folder = Path(config.output_dir)
    sampled = folder / "sampled.jsonl"
    if ranks.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        if sampled.exists() and not (config.resume or config.overwrite):
            raise InputError(f"{folder}: holds samples; --resume them, --overwrite them, or give another --output_dir")
    task = stage_task(config, "open")
    examples = task.train[: config.reject_size]
    model, processor = load_model(config, ranks.device)
    rows = sample_rows(model, processor, examples, config, task.score, ranks, sampled)
    tasks = account(rows, config.reject_threshold)
    for line in account_lines(tasks, config.reject_threshold):
        log.say(line)
    kept, learned = keep_best(rows, examples, config.reject_threshold)
    if not learned:
        raise InputError(f"{sampled}: nothing was kept; lower --reject_threshold, raise --reject_samples, or train longer")
    mixed = mix_examples(config, round(len(learned) * config.mix_share / (1 - config.mix_share)))
    if ranks.rank == 0:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        (folder / "kept.jsonl").write_text(text, encoding="utf-8")
    log.say(f"{len(learned)} in {folder / 'kept.jsonl'}, {len(mixed)} examples of other domains mixed in")
    return replace(task, train=learned + mixed), tasks


def read_model(config: Config, name: str, path: Path, ranks: checkpoint.Ranks, log: Log) -> dict:
    """
    A model's readings by split, also in the file `path`, from which a resumed run takes them.

    evaluate_all's, on the data set's own questions, as every method's; and greedy on each form's, all tasks together.
    """
    from train import load_finals, load_model, load_split

    if checkpoint.broadcast_object(config.resume is not None and path.exists(), ranks):
        return json.loads(path.read_text(encoding="utf-8"))
    model, processor = load_model(replace(config, model=name), ranks.device)
    settings = {field: getattr(config, field) for field in ("max_completion_length", "max_pixels", "seed")}
    readings = {}
    for split, examples in load_finals(config, log).items():
        readings[split] = evaluate_all(model, processor, examples, **settings)
        log.say(summary(f"{path.parent.name if path.stem == 'readings' else 'base'}, {split}", readings[split]))
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


def join(config: Config, base: dict, results: dict, ranks: checkpoint.Ranks, log: Log) -> dict:
    """The stages as one run: metrics.jsonl with the steps counted on, result.json, the last stage's model."""
    from train import load_model

    last = list(results)[-1]
    lines, val, steps, seconds = [], [], 0, 0.0
    for stage, result in results.items():
        with open(Path(config.output_dir) / stage / "metrics.jsonl", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        lines += [{**row, "step": steps + row["step"], "stage": stage} for row in rows]
        if stage in ("open", "reject"):  # the others' val questions are not the same
            val += [{**reading, "step": steps + reading["step"]} for reading in result["val"]]
        steps += len(rows)
        seconds += result["seconds"] + result.get("seconds_sampling", 0.0)
    settings = {**asdict(config), "max_steps": steps}
    joined = {"config": settings, "step": steps, "seconds": seconds, "val": val, "base": base}
    joined["final"] = results[last].get("final", {})
    kept = ("seconds", "seconds_sampling", "val", "final", "kept")
    joined["stages"] = {stage: {name: result[name] for name in kept if name in result} for stage, result in results.items()}
    if ranks.rank == 0:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (Path(config.output_dir) / "metrics.jsonl").write_text(text, encoding="utf-8")
        log.write("result.json", joined)
        save_model(config.output_dir, *load_model(replace(config, model=str(Path(config.output_dir) / last)), ranks.device))
        log.say(f"{', '.join(results)}: models, metrics and results are in {config.output_dir}")
    return joined


def forms_table(records: list[dict]) -> str:
    """Markdown for compare.py: accuracy in each form and task, greedy, in percent, before and after; means over the runs."""
    rows = {}  # (row, after which stage): its readings by split, one for each run
    for record in records:
        if record.get("stages"):
            rows.setdefault(("base", ""), []).append(record["base"])
            for stage, result in record["stages"].items():
                if result.get("final"):
                    rows.setdefault((record["row"], f"after {stage}"), []).append(result["final"])
    splits = list(next(iter(rows.values()))[0])
    names = [f"{form}, {task}" for form in FORMS for task in ("math", "detection", "classification")]
    lines = [f"| row | split | {' | '.join(names)} |", "| --- " * (len(names) + 2) + "|"]
    for (row, stage), readings in rows.items():
        for split in splits:
            cells = []
            for name in names:
                form, task = name.split(", ")
                cells.append(mean([task_accuracy(reading[split][form], task) for reading in readings if reading]))
            lines.append(f"| {row} {stage} | {split} | " + " | ".join(f"{100 * cell:.1f}" for cell in cells) + " |")
    return "\n".join(lines)


def task_accuracy(reading: dict, task: str) -> float:
    """The mean accuracy of evaluate's "accuracy/<task>" that belong to one of the paper's three tasks; 0 without one."""
    found = {name.removeprefix("accuracy/"): value for name, value in reading.items() if name.startswith("accuracy/")}
    return mean([value for name, value in found.items() if kind_of("open", Example(task=name)) == task])


def pass_at_k_table(config: Config, models: list[str], split: str, size: int, samples: int) -> str:
    """
    Markdown: pass@k of each model's samples at temperature 1 in each form, all tasks together.

    The counts behind it go to results/pass_at_k.json.
    """
    from train import load_model, load_split

    records = []
    ranks = checkpoint.Ranks(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for name in models:
        model, processor = load_model(replace(config, model=name), ranks.device)
        settings = {field: getattr(config, field) for field in ("max_completion_length", "max_pixels", "seed", "temperature")}
        for form in FORMS:
            questions = stage_questions(form, load_split(config, split, size, TASKS), config.data_seed)
            score = functools.partial(score_stage, form)
            found = pass_at_ks(model, processor, questions, samples=samples, score=score, **settings)
            records.append({"model": name, "form": form, "split": split, **found})
    Path("results").mkdir(exist_ok=True)
    Path("results/pass_at_k.json").write_text(json.dumps(records, indent=1))
    ks = [name for name in records[0] if name.startswith("pass@")]
    lines = [f"| {split}, {size} questions, {samples} samples each | form | " + " | ".join(ks) + " |", "| --- " * (len(ks) + 2) + "|"]
    for record in records:
        cells = " | ".join(f"{100 * record[k]:.1f}" for k in ks)
        lines.append(f"| {record['model']} | {record['form']} | {cells} |")
    return "\n".join(lines)
