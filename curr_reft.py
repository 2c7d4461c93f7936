"""Curr-ReFT: a curriculum of question forms, then self-improvement (arXiv 2503.07065).

    python curr_reft.py                                   judge, choice, open, then reject
    python curr_reft.py --stages open reject              without the curriculum
    python curr_reft.py --stages judge choice open        without self-improvement
    python curr_reft.py --stages reject --model FOLDER    of any trained model

A small model that can't find an answer yet may already tell a right one from a wrong one. So the
same items are asked three times (data/forms.py), each stage a run of train.py's loop, by GRPO, from
the last one's weights:

    judge    is the answer X right, yes or no?   1 for the right decision
    choice   lettered options, several may be right   1 for the exact set, 0.2 for a part of it,
             0 with any wrong letter
    open     the item itself   detection: IoU > 0.5; classification: Jaccard; math: it matches

and the format reward, which in each stage asks for an answer of its form (lib/answers.py). Then
reject.py: SFT on the model's own best answers. Each stage has a folder below <output_dir>, with
metrics and checkpoints of its own; <output_dir> gets the joined metrics, result.json and the last
stage's model. --resume goes on where it was. --max_steps, or the epochs, are those of the RL
stages together, shared as published, 1 : 1 : 2: a run without some of them makes as many updates.

The tiny model's base goes on from DyME's: a second base stage has shown it the three tasks and the
forms of question, and answered one thinking prompt in ten in the format. GRPO chooses among what is
sampled; a base that never follows the format, which DyME memorizes its way out of, would teach it
nothing (advantage collapse). Left out: answers with several boxes.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from config import Config, knob, parse, tolerances
from data.charts import TASKS
from data.example import InputError
from data.forms import FORMS, stage_questions
from evaluate import evaluate, evaluate_all
from lib.answers import grade
from lib.checkpoint import changed_flags, step_folders, write_whole
from lib.families import save_model
from lib.log import Log
from lib.ranks import Ranks, broadcast_object, cleanup, setup_distributed
from reject import account, account_lines, keep_best, mix_examples, sample_rows
from load import Task, first_load, load_finals, load_model, load_split
from run import FREE_TO_CHANGE, summary
from train import train

STAGES = (*FORMS, "reject")
EPOCHS = {"judge": 1, "choice": 1, "open": 2}  # published
LOGS = ("metrics.jsonl", "sampled.jsonl")  # either shows that a stage has begun
BASE_TASKS = (*TASKS, "judge", "choice")


@dataclass
class Curriculum(Config):
    """train.py's flags, some with other defaults, and those of the stages."""

    method: str = knob("curr_reft", "method", "is always this one", choices=("curr_reft",))
    # with the published G of 2 in stage choice an advantage is +-0.7 or 0
    num_generations: int = knob(4, "method", "G: responses to a prompt", low=2)
    beta: float = knob(0.04, "method", "KL to ref_model, which is then kept in memory", low=0)
    base_format_rate: float = knob(
        0.1, "model", "tiny: how often the base stages show the format", low=0, high=1
    )
    base_tasks: list[str] = knob(
        list(BASE_TASKS), "model", "tiny: what its second base stage asks", choices=BASE_TASKS
    )
    base_task_steps: int = knob(1200, "model", "tiny: length of its second base stage", low=1)

    stages: list[str] = knob(
        list(STAGES),
        "stages",
        "which, in this order; the first starts from --model",
        choices=STAGES,
    )
    reject_samples: int = knob(8, "stages", "N: responses to a prompt in rejected sampling", low=1)
    reject_size: int | None = knob(
        None, "stages", "sample for the first so many training examples; default: for all", low=1
    )
    reject_threshold: float = knob(
        85.0, "stages", "a prompt's best response is kept above this, of 100", low=0, high=99.99
    )
    reject_steps: int | None = knob(
        None, "stages", "updates on what was kept; default: reject_epochs' worth", low=1
    )
    reject_epochs: float = knob(2.0, "stages", "passes over what was kept and mixed in", above=0)
    mix: str | None = knob(
        None,
        "stages",
        "jsonl of other domains mixed into these; default: the tiny model's base texts, or none",
    )
    mix_share: float = knob(0.3, "stages", "share of mixed-in examples", low=0, high=0.99)


# what a None means here; max_steps and epochs are those of all RL stages together
DEFAULTS = {
    "charts": dict(
        max_completion_length=64,  # to name five colours twice
        reward_weights=[0.5, 1.0, 0.0],
        # a form that the model only guesses at gives noisy advantages: at 1e-3 they ruin it
        learning_rate=3e-4,
        max_steps=200,
    ),
    "*": dict(reward_weights=[1.0, 1.0, 0.0], learning_rate=1e-6, num_train_epochs=4),
}


def read_flags(argv: list[str]) -> Curriculum:
    """The command line; see config.parse."""
    about = {"prog": "curr_reft.py", "description": "Curr-ReFT: a curriculum, then reject."}
    config = parse(argv, Curriculum, DEFAULTS, **about)
    if not config.stages:
        raise InputError(f"--stages: give at least one of {', '.join(STAGES)}")
    if config.resume not in (None, "last"):
        raise InputError("--resume: give no folder, the stage to go on with is found")
    return config


# ---- the stages ---------------------------------------------------------------------------------


def run_stages(config: Curriculum, ranks: Ranks) -> dict:
    """The selected stages. Returns what it writes to <output_dir>/result.json, as train does."""
    log = Log(config.output_dir, ranks.rank == 0)
    open_folder(config, log)

    def read(model, path):
        return read_model(config, model, Path(path), ranks, log)

    results, model = {}, config.model
    wanted = config.model == "tiny" if config.eval_base is None else config.eval_base
    base = read(model, f"{config.output_dir}/base.json") if wanted else {}
    for stage in [name for name in STAGES if name in config.stages]:
        own = stage_config(config, stage, model)
        result = run_stage(own, stage, ranks, log)
        if "config" not in result:  # nothing was kept, so nothing was trained
            told = f"{own.output_dir}/sampled.jsonl: nothing kept; "
            told += "lower --reject_threshold or train longer"
            if not results:
                raise InputError(told)
            log.say(f"warning: {told}; the result is the model after {list(results)[-1]}")
            results[list(results)[-1]].update(result)
            break
        results[stage], model = result, own.output_dir
        broadcast_object(None, ranks)  # nobody reads the model before it is written
        if stage == "open":
            result["final"] = read(model, f"{model}/readings.json")
    last = results[list(results)[-1]]
    last["final"] = last["final"] or read(model, f"{model}/readings.json")
    return join(config, base, results, ranks, log)


def open_folder(config: Curriculum, log: Log) -> None:
    """Make <output_dir>; with --overwrite without what a later --resume would take for this run's.

    InputError where it holds a run, unless that is resumed or written over.
    """
    folder = Path(config.output_dir)
    logs = [folder / stage / name for stage in config.stages for name in LOGS]
    held = [path.parent for path in logs if path.exists()]
    if held and not (config.resume or config.overwrite):
        raise InputError(f"{held[0]}: holds a run; --resume it or --overwrite it")
    if config.overwrite and not config.resume and log.active:
        old = [folder / s / f"{f}.json" for s in config.stages for f in ("finished", "readings")]
        for path in [folder / "base.json", *old]:
            path.unlink(missing_ok=True)
    log.open(fresh=False)


def stage_config(config: Curriculum, stage: str, model: str) -> Curriculum:
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


def run_stage(config: Curriculum, stage: str, ranks: Ranks, log: Log) -> dict:
    """One stage's run, or with --resume its result where it is finished, or the rest of it.

    Of rejected sampling that kept nothing: how that came, alone.
    """
    folder = Path(config.output_dir)
    finished = config.resume is not None and (folder / "finished.json").exists()
    if broadcast_object(finished, ranks):
        result = json.loads((folder / "finished.json").read_text(encoding="utf-8"))
        # what is None here was filled in there
        unset = {name for name, value in asdict(config).items() if value is None}
        ignored = FREE_TO_CHANGE | unset
        for change in changed_flags(result["config"], asdict(config), ignored):
            log.say(f"warning: {stage} is finished, with another {change}")
        return result
    log.say(f"---- {stage}, from {config.model}")
    loop = config  # the loop starts anew where it has saved nothing, the sampling goes on
    if config.resume and not step_folders(folder / "checkpoints"):
        loop = replace(config, resume=None, overwrite=True)
    start, sampled = time.perf_counter(), {}
    if stage == "reject":
        task, tasks = reject_task(config, ranks, log)
        sampled = {"kept": tasks, "seconds_sampling": time.perf_counter() - start}
        if task is None:
            return sampled
    else:
        task = stage_task(config, stage)
    result = {**train(loop, ranks, task), **sampled}
    if log.active:  # train's result.json comes before its model
        write_whole(folder / "finished.json", json.dumps(result, indent=1))
    return result


def stage_task(config: Curriculum, stage: str) -> Task:
    """What an RL stage learns from and is watched on: the data set's examples in its form."""

    def asked(split, size):
        return stage_questions(
            stage, load_split(config, split, size, TASKS), config.data_seed, grade
        )

    return Task(asked("train", config.train_size), asked(config.eval_split, config.eval_size), {})


def reject_task(config: Curriculum, ranks: Ranks, log: Log) -> tuple[Task | None, dict]:
    """The SFT on what rejected sampling keeps and on other domains, and what was kept by task.

    None as the Task when that is nothing.
    """
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    task = stage_task(config, "open")
    examples = task.train[: config.reject_size]
    model, processor = first_load(config, ranks)
    rows = sample_rows(model, processor, examples, config, ranks, folder / "sampled.jsonl")
    tasks = account(rows, config.reject_threshold)
    for line in account_lines(tasks, config.reject_threshold):
        log.say(line)
    kept, learned = keep_best(rows, examples, config.reject_threshold)
    if not learned:
        return None, tasks
    mixed = mix_examples(config, round(len(learned) * config.mix_share / (1 - config.mix_share)))
    if log.active:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in kept]
        write_whole(folder / "kept.jsonl", "".join(lines))
    log.say(f"{len(learned)} are in {folder}/kept.jsonl, {len(mixed)} of other domains mixed in")
    return replace(task, train=learned + mixed), tasks


# ---- readings -----------------------------------------------------------------------------------


def read_model(config: Curriculum, name: str, path: Path, ranks: Ranks, log: Log) -> dict:
    """A model's readings by split, also in the file `path`, from which a resumed run takes them.

    evaluate_all's, on the data set's own questions, as for every method; and greedy on each form's
    questions, of all tasks.
    """
    if broadcast_object(config.resume is not None and path.exists(), ranks):
        return json.loads(path.read_text(encoding="utf-8"))
    model, processor = first_load(replace(config, model=name), ranks)
    names = ("max_completion_length", "max_pixels", "seed")
    asked = {name: getattr(config, name) for name in names}
    asked["tolerance"] = tolerances(config)[1]
    found = {}
    for split, examples in load_finals(config, log).items():
        found[split] = evaluate_all(model, processor, examples, **asked)
        title = "base" if path.stem == "base" else path.parent.name
        log.say(summary(f"{title}, {split}", found[split]))
        mixed = load_split(config, split, config.eval_size, TASKS)
        for form in FORMS:
            questions = stage_questions(form, mixed, config.data_seed, grade)
            found[split][form] = evaluate(model, processor, questions, **asked)
        forms = ", ".join(f"{form} {found[split][form]['accuracy']:.3f}" for form in FORMS)
        log.say(f"  all tasks, accuracy by form of question: {forms}")
    if log.active:
        write_whole(path, json.dumps(found, indent=1))
    return found


def join(config: Curriculum, base: dict, results: dict, ranks: Ranks, log: Log) -> dict:
    """The stages as one run: metrics.jsonl and groups.jsonl with steps counted on, result.json,
    the last model.
    """
    folder, last = Path(config.output_dir), list(results)[-1]
    for name in ("metrics.jsonl", "groups.jsonl"):
        if log.active:
            (folder / name).unlink(missing_ok=True)
    val, steps, seconds = [], 0, 0.0
    for stage, result in results.items():
        for name in ("metrics.jsonl", "groups.jsonl"):
            path = folder / stage / name
            for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
                if line:
                    row = json.loads(line)
                    log.append(name, {**row, "step": steps + row["step"], "stage": stage})
        if stage in ("open", "reject"):  # the others' val questions are not the same
            val += [{**reading, "step": steps + reading["step"]} for reading in result["val"]]
        steps += result["step"]
        seconds += result["seconds"] + result.get("seconds_sampling", 0.0)
    told = ("seconds", "seconds_sampling", "val", "final", "kept")
    stages = {s: {name: r[name] for name in told if name in r} for s, r in results.items()}
    whole = {"config": {**asdict(config), "max_steps": steps}, "step": steps, "seconds": seconds}
    whole.update(val=val, base=base, final=results[last]["final"], stages=stages)
    if log.active:
        log.write("result.json", whole)
        trained = replace(config, model=str(folder / last))
        save_model(config.output_dir, *load_model(trained, ranks.device))
    log.say(f"{', '.join(results)}: models, metrics and results are in {config.output_dir}")
    return whole


def main(argv: list[str]) -> None:
    """The command line; bad input ends in one line and exit code 2."""
    try:
        config = read_flags(argv)
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        ranks = setup_distributed()
        run_stages(config, ranks)
        cleanup(ranks)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # in a loop ranks.Interrupt saves first
        print("interrupted; what was saved goes on with --resume", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main(sys.argv[1:])
