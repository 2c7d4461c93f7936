"""Curr-ReFT: a curriculum of question forms, then self-improvement (arXiv 2503.07065).

    python curr_reft.py                                   judge, choice, open, then reject
    python curr_reft.py --stages open reject              without the curriculum
    python curr_reft.py --stages judge choice open        without self-improvement
    python curr_reft.py --stages reject --model FOLDER    of any trained model
    python curr_reft.py --recipe published --dataset open.jsonl --stage_data judge=judge.jsonl ...

A small model that can't find an answer may already tell a right one from a wrong one. So the same
items are asked three times, each a run of train.py's loop, by GRPO, from the last one's weights:

    judge    is the answer X right, yes or no?   1 for the right decision
    choice   lettered options   1 for all right ones, 0.2 for some, 0 with any wrong letter
    open     the item itself   detection: IoU > 0.5; classification: Jaccard; math: it matches

Each stage has a folder below <output_dir>, which gets the joined metrics, result.json and the last
model. --max_steps, or the epochs, are of the RL stages together, shared 1 : 1 : 2 as published.

The tiny model's base has a second base stage, of the tasks and forms, with one thinking prompt in
ten answered in the format, or GRPO had nothing to choose. Left out: several boxes.
"""

import json
import math
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from config import EPOCHS, FILES, NEW, SAMPLES, TINY, Config, eval_settings, knob, parse
from data.charts import TASKS
from data.example import Example, InputError
from data.forms import FORMS, given_questions, stage_questions
from data.reading import read_lines, write_whole, written_here
from evaluate import evaluate, evaluate_all
from lib.answers import grade
from lib.checkpoint import prune, read_json, step_folders
from lib.families import save_model
from lib.log import Log, run_program
from lib.ranks import Ranks, broadcast_object
from lib.readings import summary
from lib.tiny import BASE_TASKS
from load import Task, first_load, load_finals, load_model, load_split
from reject import choose_examples, mix_examples
from start import check_input, open_scorer, refuse_another
from train import launch, train

STAGES = (*FORMS, "reject")
STAGE_EPOCHS = {"judge": 1, "choice": 1, "open": 2}
REJECT = ("with the stage reject", lambda c: "reject" in c.stages)
EACH = ("with a number for each form", lambda c: len(c.stage_generations) == len(FORMS))
GIVEN = re.compile(rf"({'|'.join(FORMS)})=.+\.jsonl?")
FILED = ("as judge=FILE.jsonl ...", lambda c: all(map(GIVEN.fullmatch, c.stage_data)))
MIXED = ("with --mix on other data than the charts", lambda c: c.mix or c.dataset == "charts")


@dataclass
class Curriculum(Config):
    """train.py's flags, some with other defaults, and those of the stages."""

    recipe: str | None = knob(None, "what the authors set", FILES, choices=("published",))
    method: str = knob("curr_reft", "always this", choices=("curr_reft",))
    # with the published G of 2 in stage choice an advantage is +-0.7 or 0
    num_generations: int = knob(4, "G: responses to a prompt", SAMPLES, low=2)
    beta: float = knob(0.04, "KL to the model before the curriculum", SAMPLES, low=0)
    # on the charts to name five colours twice
    max_completion_length: int | None = knob(
        {"charts": 64, "*": 300}, "tokens to a response", low=1
    )
    reward_weights: list[float] | None = knob(
        {"charts": [0.5, 1, 0], "*": [1, 1, 0]}, "of format, accuracy, thinking", SAMPLES, low=0
    )
    # a form that the model only guesses at gives noisy advantages: at 1e-3 they ruin it
    learning_rate: float | None = knob({"charts": 3e-4, "*": 1e-6}, "peak", above=0)
    max_steps: int | None = knob({"charts": 200}, "of all RL stages", SAMPLES, low=1)
    num_train_epochs: float | None = knob(4, "passes, of all RL stages", EPOCHS, SAMPLES, above=0)
    base_format_rate: float = knob(0.1, "how often that shows the format", TINY, low=0, high=1)
    base_tasks: list[str] = knob(list(BASE_TASKS), "of its second stage", TINY, choices=BASE_TASKS)
    base_task_steps: int = knob(1200, "length of that stage", TINY, low=1)

    dry_run: bool = knob(False, "as train.py's, of the first stage", NEW, SAMPLES)
    stages: list[str] = knob(list(STAGES), "which, in this order", choices=STAGES)
    stage_data: list[str] | None = knob(None, "given questions: judge=a.jsonl ...", FILES, FILED)
    stage_generations: list[int] | None = knob(
        None, "G of judge, choice, open", SAMPLES, EACH, low=2
    )
    reject_samples: int = knob(8, "N: responses to a prompt in rejected sampling", REJECT, low=1)
    reject_size: int | None = knob(None, "sample for so many examples, not all", REJECT, low=1)
    reject_threshold: float = knob(85.0, "keep what is above, of 100", REJECT, low=0, high=99)
    reject_epochs: float = knob(2.0, "passes over what was kept and mixed in", REJECT, above=0)
    reject_steps: int | None = knob(None, "at most so many updates on it", REJECT, low=1)
    reject_learning_rate: float | None = knob(None, "its peak, if another", REJECT, above=0)
    reject_warmup: float = knob(0.0, "share of its updates until the peak", REJECT, low=0, high=1)
    mix: str | None = knob(None, "jsonl to mix in; default: charts: the base's texts", REJECT)
    mix_share: float = knob(0.3, "share of mixed-in examples", REJECT, MIXED, low=0, high=0.99)


def read_flags(argv: list[str]) -> Curriculum:
    """The command line; see config.parse."""
    about = {"prog": "curr_reft.py", "description": "Curr-ReFT: a curriculum, then reject."}
    return parse(argv, Curriculum, **about)


def run_stages(config: Curriculum, ranks: Ranks) -> dict:
    """The selected stages. Returns what it writes to <output_dir>/result.json, as train does."""
    log, folder = Log(config.output_dir, ranks.rank == 0), Path(config.output_dir)
    stages = [stage for stage in STAGES if stage in config.stages]
    tasks = [Task(ask_split(config, s, "train"), ask_split(config, s, "val"), {}) for s in stages]
    if config.dry_run:
        return run_stage(config, stages[0], config.model, tasks[0], ranks, log)
    log.lock()
    path = folder / "stages.json"  # there from the begin of a run on
    held = any((folder / name).exists() for name in ("metrics.jsonl", *STAGES))
    held, noted = broadcast_object((held, path.exists()), ranks)
    if (held or noted) and not (config.overwrite or config.resume and noted):
        raise InputError(f"{folder}: holds a run; {'--resume it or ' * noted}--overwrite it")
    open_scorer(config).close()
    if config.mix:  # so that a bad file doesn't cost the stages before it
        mix_examples(config, 1)
    tasks, _ = check_input(config, tasks, ranks, log)
    finals = load_finals(config, log)
    forms = {split: {form: ask_split(config, form, split) for form in FORMS} for split in finals}
    done = {}
    if noted and config.resume:
        with written_here(path):
            done = broadcast_object(dict(read_json(path)), ranks)
            refuse_another(path, done["config"], asdict(config), log)
    elif log.active:  # nothing of an earlier run is ever gone on with
        for name in ("stages.json", "metrics.jsonl", "result.json", "reject/sampled.jsonl"):
            (folder / name).unlink(missing_ok=True)
        for stage in STAGES:
            prune(folder / stage, -1, 0, None)

    def once(name: str, make: Callable, *about) -> dict:
        """What make returns, noted in stages.json, from which a resumed run takes it."""
        if not done.get(name):
            done[name] = make(config, *about, ranks, log)
            if log.active:
                write_whole(path, json.dumps(done, indent=1))
            broadcast_object(None, ranks)  # nobody reads a model before it is written
        return done[name]

    once("config", lambda *_: asdict(config))
    base = once("base", read_model, config.model, finals, forms) if config.eval_base else {}
    results, model = {}, config.model
    for stage, task in zip(stages, tasks):
        if result := once(stage, run_stage, stage, model, task):
            with written_here(path):
                refuse_another(path, result["config"], asdict(stage_config(config, stage, model)))
            results[stage], model = result, str(folder / stage)
    if not results:
        raise InputError(f"{folder}/reject: nothing kept; lower --reject_threshold")
    for stage in results:
        if stage in ("open", list(results)[-1]):
            trained = str(folder / stage)
            results[stage]["final"] = once(f"{stage}: final", read_model, trained, finals, forms)
    return join(config, base, results, ranks, log)


def ask_split(config: Curriculum, stage: str, split: str) -> list[Example]:
    """A split's items, of all tasks, as a stage's questions: made, or of its --stage_data file."""
    form = "open" if stage == "reject" else stage
    size = config.train_size if split == "train" else config.eval_size
    files = dict(given.split("=", 1) for given in config.stage_data or [])
    if form in files:
        given = replace(config, dataset=files[form], traces=None, facts=None)
        return given_questions(form, load_split(given, split, size))
    return stage_questions(form, load_split(config, split, size, TASKS), 0, grade)


def run_stage(
    config: Curriculum, stage: str, model: str, task: Task, ranks: Ranks, log: Log
) -> dict:
    """One stage's run from `model`: what train returns; {} where reject keeps nothing."""
    log.say(f"---- {stage}, from {model}")
    config = stage_config(config, stage, model)
    start, more = time.perf_counter(), {}
    if stage == "reject":
        loaded = first_load(config, ranks)
        task.train, more["kept"] = choose_examples(*loaded, task.train, config, ranks, log)
        if not task.train:
            return {}
        steps = config.reject_epochs * len(task.train) / config.prompts_per_step
        config.max_steps = min(max(1, int(steps)), config.reject_steps or math.inf)
        config.warmup_steps = round(config.reject_warmup * config.max_steps)
    sampling = time.perf_counter() - start
    if config.resume and not step_folders(Path(config.output_dir, "checkpoints")):
        config = replace(config, resume=False, overwrite=True)  # it was stopped before it saved
    result = train(config, ranks, task)
    return {**result, **more, "seconds": result["seconds"] + sampling}


def stage_config(config: Curriculum, stage: str, model: str) -> Curriculum:
    """The flags of one stage's run, which starts from `model`."""
    folder = str(Path(config.output_dir) / stage)
    own = replace(config, method="grpo", model=model, eval_base=False, output_dir=folder)
    own.ref_model = config.model  # KL to the model before the curriculum
    if stage == "reject":
        own.num_train_epochs = config.reject_epochs
        own.learning_rate = config.reject_learning_rate or config.learning_rate
        return replace(own, method="sft", refiner="off", beta=0.0, loss_type="grpo")
    if config.stage_generations:
        own.num_generations = config.stage_generations[FORMS.index(stage)]
    share = STAGE_EPOCHS[stage] / sum(STAGE_EPOCHS.get(name, 0) for name in config.stages)
    own.max_steps = config.max_steps and max(1, round(share * config.max_steps))
    own.num_train_epochs = config.num_train_epochs and share * config.num_train_epochs
    return own


def read_model(
    config: Curriculum, name: str, finals: dict, forms: dict, ranks: Ranks, log: Log
) -> dict:
    """A model's readings by split: evaluate_all's, and greedy ones on each form's questions."""
    loaded, asked = first_load(replace(config, model=name), ranks), eval_settings(config)
    found = {}
    for split, examples in finals.items():
        found[split] = evaluate_all(*loaded, examples, **asked)
        log.say(summary(f"{name}, {split}", found[split]))
        found[split] |= {f: evaluate(*loaded, forms[split][f], **asked) for f in FORMS}
        told = ", ".join(f"{form} {found[split][form]['accuracy']:.3f}" for form in FORMS)
        log.say(f"  all tasks, accuracy by form of question: {told}")
    return found


def join(config: Curriculum, base: dict, results: dict, ranks: Ranks, log: Log) -> dict:
    """The stages as one run: metrics, groups with steps counted on, result.json, the last model."""
    folder, last = Path(config.output_dir), list(results)[-1]
    val, steps, stages = [], 0, {}
    log.begin(0)
    for stage, result in results.items():
        for name in ("metrics.jsonl", "groups.jsonl"):
            for row in read_lines(folder / stage / name, ("step",)):
                log.append(name, {**row, "step": steps + row["step"], "stage": stage})
        if stage in ("open", "reject"):  # the others' val questions are not the same
            val += [{**reading, "step": steps + reading["step"]} for reading in result["val"]]
        steps += result["step"]
        stages[stage] = {k: result[k] for k in ("seconds", "val", "final", "kept") if k in result}
    seconds = sum(result["seconds"] for result in results.values())
    whole = {"config": {**asdict(config), "max_steps": steps}, "step": steps, "seconds": seconds}
    whole.update(val=val, base=base, final=results[last]["final"], stages=stages)
    log.write("result.json", whole)
    if log.active:
        save_model(folder, *load_model(replace(config, model=str(folder / last)), ranks.device))
    log.say(f"{', '.join(results)}: models, metrics and results are in {folder}")
    return whole


def run(argv: list[str]) -> None:
    """The command line."""
    launch(run_stages, read_flags(argv))


if __name__ == "__main__":
    run_program(run, sys.argv[1:], "what was saved goes on with --resume")
