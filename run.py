"""What train.py's loop is built on: load, the prompts of a step, evaluate, save, log.

    <output_dir>/  the last model (config.json, model.safetensors, its processor's files)
    result.json    every flag, all readings          checkpoints/   step-000123/ ..
    metrics.jsonl  a line per step (lib/groups.py)   groups.jsonl   a few groups, for tools.report

Kept out of train.py so that the loop there stays the paper's algorithm box. Left out: what is
checked before (start.py), how a checkpoint is written so that it is whole or not there
(lib/checkpoint.py).
"""

import copy
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace

import torch

import variants
from config import Config, eval_settings
from data.example import Example, InputError
from data.fingerprint import fingerprint
from data.reading import written_here
from dyme import memorizes
from evaluate import evaluate, evaluate_all, looks
from lib import checkpoint
from lib.answers import reader
from lib.families import checkpoint_activations, parameter_counts, save_model
from lib.groups import group_line, group_sums, means, told_response
from lib.log import Log, open_tracker, progress
from lib.memory import FLAGS
from lib.optim import build_optimizer
from lib.ranks import Interrupt, Ranks, broadcast_object, gather_lists, reduce_sums, shard
from lib.readings import summary
from load import Task, first_load, load_model, load_task, made_ahead, step_examples, step_groups
from model import encode_prompts, get_tokenizer
from rollout import MEMORIZE, MODE_NAMES, Group
from start import KEPT, check_input, find_run, finish_config, open_scorer, preview, resume

SAVE_MINUTES = 15  # a checkpoint whenever so many have passed
LOOKS_ON_THE_WAY = 50  # questions of a validation that are asked about other images too
MAX_BAD_STEPS = 5  # in a row with a gradient that isn't finite: then the run ends


@contextmanager
def start(config: Config, ranks: Ranks, task: Task | None = None) -> Iterator["Run"]:
    """A Run, ready for its next step; behind the loop its last evaluation. Whatever error ends it,
    the last whole step is saved; memory or disk that runs out ends it in one line.
    """
    # of a dry run nothing stays
    folder = tempfile.TemporaryDirectory() if config.dry_run else nullcontext(config.output_dir)
    with folder as config.output_dir:
        run = Run(config, ranks, task)
        try:
            with Interrupt() as run.interrupt:
                yield run
            run.finish()
        except Exception as error:
            run.optimizer.zero_grad()
            saved = run.save()
            if isinstance(error, torch.OutOfMemoryError):
                told = f"out of memory; {saved}; what helps: {FLAGS}"
            elif checkpoint.disk_full(error):
                told = f"{config.output_dir}: disk full; {saved}; free some space"
            else:
                run.log.say(f"ended by an error; {saved}")
                raise
            raise InputError(f"{told}; then --resume") from None
        finally:
            run.scorer.close()


class Run:
    """Everything that the loop holds on to. state is what a checkpoint remembers of it, JSON."""

    def __init__(self, config: Config, ranks: Ranks, task: Task | None = None):
        """Load everything; nothing is written over, or loaded, before all of it was checked."""
        self.config, self.ranks = config, ranks
        self.log = log = Log(config.output_dir, ranks.rank == 0)
        log.lock()
        found = broadcast_object(find_run(config) if log.active else None, ranks)
        self.scorer = open_scorer(config)
        task = task or load_task(config, log)
        (self.task,), processor = check_input(config, [task], ranks, log)
        train = self.task.train
        finish_config(config, ranks, len(train))
        self.state = {"step": 0, "seconds": 0.0, "updates": 0, "bad_steps": 0}
        self.state |= {"val": [], "base": {}, "data": {}, "buffer": []}
        if config.dataset != "charts":
            self.state["data"] = {**fingerprint(train), "reader": reader(train)}
        if found:
            self.state = resume(config, found, self.state, log)
        if config.report_to != "none" and log.active and not config.dry_run:
            about = (config.output_dir, asdict(config), self.state["step"])
            log.track = open_tracker(config.report_to, *about)

        self.model, self.processor = first_load(config, ranks, processor)
        if config.gradient_checkpointing:
            checkpoint_activations(self.model)
        self.ref_model = None
        if config.beta > 0:
            reference = replace(config, model=config.ref_model or config.model)
            self.ref_model = load_model(reference, ranks.device)[0].requires_grad_(False)
        settings = (config.learning_rate, config.weight_decay, (0.9, config.adam_beta2))
        self.optimizer = build_optimizer(self.model, *settings, config.seed)
        counts = "{:,} parameters train, {:,} are frozen".format(*parameter_counts(self.model))
        log.say(f"{config.model}, from {self.model.name_or_path}: {counts}")
        steps = f"{config.max_steps} steps of {config.prompts_per_step} prompts"
        log.say(f"{len(train)} training examples, {steps}")
        with written_here(found or config.output_dir):
            if found:
                checkpoint.load_checkpoint(found, self.model, self.optimizer)
            best = self.best_step()
        # what is further goes: from here on this run takes its own way
        log.begin(self.state["step"])
        if log.active:
            last = self.state["step"] if found else -1
            checkpoint.prune(config.output_dir, last, KEPT, best)
        self.weights_step = self.state["step"]  # whose weights these are; None inside an update
        self.saved_at = time.monotonic()  # when the last checkpoint was
        self.pace = 0.0  # seconds per answer of the last validation
        self.scorer.resume(self.state["step"])
        if config.dry_run:
            example = step_examples(train, config, 0)[0]
            prompts = encode_prompts(self.processor, [example], config.max_pixels)
            groups = step_groups(config, self.model, [(0, example)], prompts, log)
            log.say(preview(example, groups, self.scorer, get_tokenizer(self.processor)))
        elif config.eval_base and not self.state["base"]:
            self.state["base"] = self.read_finals("base")

    # ---- a step ---------------------------------------------------------------------------------

    def steps(self) -> Iterator[tuple[int, list[Group]]]:
        """Each step that is left, with this process's share of its prompts as Groups."""
        data, config = self.task.train, self.config
        steps = range(self.state["step"], config.max_steps)
        made = None  # the tiny model's prompts cost less than a thread does
        if config.model != "tiny":
            copied = copy.deepcopy(self.processor)  # a tokenizer serves one thread at a time
            made = made_ahead(lambda n: self.ask(step_examples(data, config, n), copied), steps)
        self.bar = progress(steps, config.method, unit="step")
        for step in self.bar:
            self.clock = {"start": time.perf_counter(), "cpu": time.process_time()}
            # prompts that a rule has noted, mostly none, go before the step's own
            due, self.left, self.rate = variants.due(config, self.state["buffer"])
            noted = [step_examples(data, config, past)[place] for past, place in due]
            asked = next(made) if made else None
            if noted or not made:
                asked = self.ask(noted or step_examples(data, config, step), self.processor)
            share, prompts = asked
            groups = step_groups(config, self.model, share, prompts, self.log)
            self.skipped = len(share) - len(groups)
            if noted or memorizes(config, step):  # nobody would look at the responses
                for group in groups:
                    group.mode = MEMORIZE
            yield step, groups

    def ask(self, examples: list[Example], processor) -> tuple[list, list]:
        """This process's share of a step's examples, each with its place, and their prompts."""
        share = shard(examples, self.ranks)
        own = [example for _, example in share]
        return share, encode_prompts(processor, own, self.config.max_pixels)

    def tick(self, part: str) -> None:
        """A part of the step is over: its seconds are what has passed since the last one."""
        now = time.perf_counter()
        self.clock[f"seconds_{part}"] = now - self.clock.get("now", self.clock["start"])
        self.clock["now"] = now

    def end_step(self, step: int, groups: list[Group], stats: dict, moved: dict) -> None:
        """Log the step, evaluate and save where it is due; the end on a signal."""
        config, state = self.config, self.state
        self.write_step(step, groups, stats, moved)
        if variants.buffer_size(config):
            wrong = [g.place for g in groups if g.responses and not g.rewards["correct"].any()]
            wrong = sorted(gather_lists(wrong, self.ranks))
            state["buffer"] = self.left + [[step, place] for place in wrong]
        state["step"] = self.weights_step = step + 1
        state["bad_steps"] = 0 if moved["finite"] else state["bad_steps"] + 1
        stuck = state["bad_steps"] >= MAX_BAD_STEPS
        due = step + 1 == config.max_steps or (step + 1) % config.save_steps == 0
        due = due or stuck or time.monotonic() - self.saved_at > 60 * SAVE_MINUTES
        best = (step + 1) % config.eval_steps == 0 and self.validate()
        saved = self.save() if best or due else ""
        if stuck:
            told = f"the gradient was not finite for {MAX_BAD_STEPS} steps in a row; {saved} with "
            raise InputError(told + "the last good weights; lower --learning_rate and --resume")
        if signal := self.interrupt.agreed(self.ranks):
            self.log.say(f"interrupted: {self.save()}; go on with --resume")
            raise SystemExit(128 + signal)

    def write_step(self, step: int, groups: list[Group], stats: dict, moved: dict) -> None:
        """A line of metrics.jsonl, on the bar what matters of it, and now and then some groups."""
        config, log, clock = self.config, self.log, self.clock
        stats = {**stats, **group_sums(groups, MODE_NAMES), "skipped": self.skipped}
        stats["loss"] = stats.get("loss", 0.0) / config.num_iterations
        sums = reduce_sums(stats, self.ranks)
        line = {**means(sums), **moved}
        clock["seconds_cpu"] = time.process_time() - clock["cpu"]  # of all threads
        line |= {name: value for name, value in clock.items() if name.startswith("seconds_")}
        line["step_time"] = took = clock["now"] - clock["start"]  # seconds
        tokens = sums["responses", "completions/mean_length"]  # here still their sum
        line["tokens_per_second"] = tokens / line["seconds_rollout"]
        log.append("metrics.jsonl", {"step": step, **line})
        log.track(step, line)
        if not self.state["seconds"]:
            whole = f"{config.max_steps} like it {took * config.max_steps / 60:.1f} min"
            told = f"the first step took {took:.1f} s, {whole}, the evaluations aside"
            log.say(f"{config.method}: {told}")
        if config.dry_run:
            log.say("nothing was kept")
            raise SystemExit(0)
        self.state["seconds"] += took
        shown = ("reward", "correct", *(f"share_{name}" for name in MODE_NAMES))
        shown = {name.removeprefix("share_"): f"{line[name]:.2f}" for name in shown if name in line}
        self.bar.set_postfix(shown, refresh=False)
        if config.log_groups_every and step % config.log_groups_every == 0:
            for i, group in enumerate(groups[:2]):
                about = (step, group, MODE_NAMES[group.mode])
                told = group_line(*about, config, get_tokenizer(self.processor))
                log.append("groups.jsonl", told)
                if i == 0:
                    log.say(told_response(*about))

    # ---- evaluate and save ----------------------------------------------------------------------

    def validate(self) -> bool:
        """A reading of the validation split, noted and said; whether it is the best so far."""
        step, asked = self.state["step"], (self.model, self.processor, self.task.val)
        settings, start = eval_settings(self.config), time.perf_counter()
        reading = evaluate(*asked, **settings)
        seen = looks(*asked, LOOKS_ON_THE_WAY, **settings)
        answers = sum(each["count"] for each in (reading, *seen.values()))
        self.pace = (time.perf_counter() - start) / max(answers, 1)
        self.state["val"].append({"step": step, **reading, **seen})
        scalars = {f"val/{name}": reading[name] for name in ("accuracy", "format")}
        self.log.track(step - 1, scalars)  # with the step that led here: a resumed run is behind
        found = "accuracy {accuracy:.3f}, format {format:.3f}".format(**reading)
        self.log.say(f"step {step}, val: {found}")
        return self.best_step() == step

    def best_step(self) -> int | None:
        """The first of the steps with the highest accuracy on val."""
        readings = self.state["val"]
        return max(readings, key=lambda each: each["accuracy"], default={}).get("step")

    def read_finals(self, title: str) -> dict[str, dict]:
        """evaluate_all on each of the last evaluation's splits, said as lines."""
        finals, readings = self.task.finals, {}
        splits = " and ".join(f"{len(asked)} of {name}" for name, asked in finals.items())
        told = f"{title}: is read now, on the questions of {splits}, up to five answers to each"
        seconds = 5 * sum(map(len, finals.values())) * self.pace
        if finals:
            self.log.say(f"{told}, about {seconds:.0f} s" if self.pace else told)
        for split, examples in finals.items():
            asked = eval_settings(self.config)
            readings[split] = evaluate_all(self.model, self.processor, examples, **asked)
            self.log.say(summary(f"{title}, {split}", readings[split]))
        return readings

    def save(self) -> str:
        """A checkpoint of the last whole step, by the first process; says whether it is there. None
        is written where an error came in the middle of an update: the weights are no step's.
        """
        folder, step, written = self.config.output_dir, self.state["step"], True
        if self.weights_step != step:
            return f"step {step} is not saved, an update was under way"
        self.saved_at = time.monotonic()
        if self.log.active:
            state = {**self.state, "config": asdict(self.config)}
            loaded = (self.model, self.processor, self.optimizer)
            written = checkpoint.save_checkpoint(folder, step, *loaded, state)
            if written:
                checkpoint.prune(folder, step, KEPT, self.best_step())
        return f"step {step} is saved" if written else f"step {step} could NOT be saved"

    def finish(self) -> None:
        """The last evaluation; result.json and then the model are written."""
        config, log = self.config, self.log
        final = self.read_finals(config.method)
        self.result = {"config": asdict(config), **self.state, "final": final}
        if told := self.scorer.summary():
            self.result["judge"] = told
            log.say(f"warning: {told}")
        if not self.state["updates"]:
            told = "every group was skipped, left out or of equal reward"
            log.say(f"warning: not one parameter has moved: {told}")
        log.write("result.json", self.result)
        if log.active:
            save_model(config.output_dir, self.model, self.processor)
        log.say(f"model, metrics and result are in {config.output_dir}")
        log.say(f"ask it: python sample.py --ckpt {config.output_dir}")
