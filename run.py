"""What train.py's loop is built on: the prompts of a step, evaluate, save, log.

    <output_dir>/  the last model (config.json, model.safetensors, its processor's files)
    result.json    every flag, all readings          checkpoints/   step-000123/, best.json
    metrics.jsonl  a line per step (lib/log.py)      groups.jsonl   a few groups, for tools.report

Kept out of train.py so that the loop there stays the paper's algorithm box. Left out: what comes
before the first step (start.py), how a checkpoint is written so that it is whole or not there
(lib/checkpoint.py).
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import torch
from tqdm import tqdm

import variants
from checker import Rules
from config import Config, eval_settings
from data.example import Example, InputError
from dyme import memorizes
from evaluate import evaluate, evaluate_all, looks
from lib import checkpoint
from lib.families import save_model
from lib.groups import group_line, told_response
from lib.log import Log, group_sums, means, progress
from lib.ranks import Interrupt, Ranks, gather_lists, reduce_sums, shard
from lib.readings import interval
from load import Task
from model import Prompt, encode_prompts, get_tokenizer, image_features
from rollout import MEMORIZE, MODE_NAMES, Group, make_group

KEPT = 2  # checkpoints, besides the best one
SAVE_MINUTES = 15  # a checkpoint whenever so many have passed
LOOKS_ON_THE_WAY = 100  # questions of a validation that are asked about other images too
MAX_BAD_STEPS = 5  # in a row with a gradient that isn't finite: then the run ends


@dataclass
class Run:
    """Everything that the loop holds on to. state is what a checkpoint remembers of it, JSON."""

    config: Config
    ranks: Ranks
    log: Log
    model: torch.nn.Module
    processor: object
    task: Task
    scorer: Rules
    optimizer: torch.optim.Optimizer
    ref_model: torch.nn.Module | None
    state: dict
    weights_step: int | None = None  # the step whose weights these are; None inside an update
    interrupt: Interrupt | None = None
    bar: tqdm | None = None
    saved_at: float = field(default_factory=time.monotonic)  # when the last checkpoint was
    skipped: int = 0  # prompts of this step that were left out
    due: list = field(default_factory=list)  # of variants.due: what this step memorizes
    rate: float = 1.0  # what the learning rate is multiplied by
    clock: dict[str, float] = field(default_factory=dict)
    pace: float = 0.0  # seconds per answer of the last validation

    # ---- a step ---------------------------------------------------------------------------------

    def steps(self) -> Iterator[tuple[int, list[Group]]]:
        """Each step that is left, with this process's share of its prompts as Groups."""
        steps = range(self.state["step"], self.config.max_steps)
        self.bar = progress(steps, self.config.method, unit="step")
        for step in self.bar:
            self.clock = {"start": time.perf_counter(), "cpu": time.process_time()}
            data, config = self.task.train, self.config
            # prompts that a rule has noted, mostly none, go before the step's own
            self.due = variants.due(config, self.state["buffer"])
            noted = [step_examples(data, config, past)[place] for past, place in self.due]
            examples = noted or step_examples(data, config, step)
            self.rate = variants.sft_rate(config) if self.due else 1.0
            share = shard(examples, self.ranks)
            groups = self.encode(share)
            self.skipped = len(share) - len(groups)
            if self.due or memorizes(config, step):  # nobody would look at the responses
                for group in groups:
                    group.mode = MEMORIZE
            yield step, groups

    def encode(self, share: Sequence[tuple[int, Example]]) -> list[Group]:
        """Examples, each with its place in the step, as Groups, with their image's features where
        the vision tower is frozen.

        With --skip_bad_rows without the rows that only now turn out to be bad: their slots stay
        empty, so that the order of the others never moves. Without it InputError.
        """
        config, groups = self.config, []
        examples = [example for _, example in share]
        prompts = encode_prompts(self.processor, examples, config.max_pixels)
        most = self.model.config.get_text_config().max_position_embeddings
        most -= config.max_completion_length
        for (place, example), prompt in zip(share, prompts):
            if isinstance(prompt, Prompt) and (length := prompt.input_ids.shape[1]) > most:
                prompt = InputError(  # nothing is ever truncated
                    f"{example.id}: its prompt has {length} tokens, the model has room for {most} "
                    "before --max_completion_length; lower --max_pixels, or give --skip_bad_rows"
                )
            if isinstance(prompt, Prompt):
                groups.append(make_group(self.model, place, example, prompt))
            elif config.skip_bad_rows:
                self.log.say(f"warning: left out: {prompt}")
            else:
                raise prompt
        for group in groups if config.freeze_vision else []:  # once, for rollout and first update
            (group.prompt.features,) = image_features(self.model, [group.prompt])
        return groups

    def tick(self, part: str) -> None:
        """A part of the step is over: its seconds are what has passed since the last one."""
        now = time.perf_counter()
        self.clock[f"seconds_{part}"] = now - self.clock.get("now", self.clock["start"])
        self.clock["now"] = now

    def end_step(self, step: int, groups: list[Group], stats: dict, moved: dict) -> None:
        """Log the step, evaluate and save where it is due; the end on a signal."""
        config, state, log = self.config, self.state, self.log
        stats = {**stats, **group_sums(groups, MODE_NAMES), "skipped": self.skipped}
        stats["loss"] = stats.get("loss", 0.0) / config.num_iterations
        sums = reduce_sums(stats, self.ranks)
        line = {"step": step, **means(sums, MODE_NAMES), **moved}
        self.clock["seconds_cpu"] = time.process_time() - self.clock["cpu"]  # of all threads
        line |= {name: value for name, value in self.clock.items() if name.startswith("seconds_")}
        line["step_time"] = self.clock["now"] - self.clock["start"]  # seconds
        line["tokens_per_second"] = sums["length"] / line["seconds_rollout"]
        log.append("metrics.jsonl", line)
        if not state["seconds"]:
            took, steps = line["step_time"], config.max_steps
            told = f"the first step took {took:.1f} s, {steps} like it {took * steps / 60:.1f} min"
            log.say(f"{config.method}: {told}, the evaluations aside")
        if config.dry_run:
            log.say("nothing was kept")
            raise SystemExit(0)
        shown = ("reward", "correct", *(f"share_{name}" for name in MODE_NAMES))
        shown = {name.removeprefix("share_"): f"{line[name]:.2f}" for name in shown if name in line}
        self.bar.set_postfix(shown, refresh=False)
        if config.log_groups_every and step % config.log_groups_every == 0:
            tokenizer = get_tokenizer(self.processor)
            for group in groups[:2]:
                name = MODE_NAMES[group.mode]
                log.append("groups.jsonl", group_line(step, group, name, config, tokenizer))
            for group in groups[:1]:
                log.say(told_response(step, group, MODE_NAMES[group.mode]))

        if variants.buffer_size(config):
            wrong = [g.place for g in groups if g.responses and not g.rewards["correct"].any()]
            noted = sorted(gather_lists(wrong, self.ranks))
            state["buffer"] += [[step, place] for place in noted]
            if self.due:
                state["buffer"] = variants.left(config, state["buffer"])
        state["step"] = self.weights_step = step + 1
        state["seconds"] += line["step_time"]
        state["bad_steps"] = 0 if moved["finite"] else state["bad_steps"] + 1
        best = state["step"] % config.eval_steps == 0 and self.validate()
        stuck = state["bad_steps"] >= MAX_BAD_STEPS
        due = state["step"] % config.save_steps == 0 or state["step"] == config.max_steps
        due = due or time.monotonic() - self.saved_at > 60 * SAVE_MINUTES
        saved = self.save(best) if best or stuck or due else ""
        if stuck:
            raise InputError(
                f"the gradient was not finite for {MAX_BAD_STEPS} steps in a row; {saved} with "
                "the last good weights; lower --learning_rate and --resume"
            )
        if signal := self.interrupt.agreed(self.ranks):
            log.say(f"interrupted: {self.save()}; go on with --resume")
            raise SystemExit(128 + signal)

    # ---- evaluate and save ----------------------------------------------------------------------

    def validate(self) -> bool:
        """A reading of the validation split, noted and said; whether it is the best so far."""
        past, step = self.state["val"], self.state["step"]
        settings, start = eval_settings(self.config), time.perf_counter()
        reading = evaluate(self.model, self.processor, self.task.val, **settings)
        best = reading["accuracy"] > max((old["accuracy"] for old in past), default=-1.0)
        seen = looks(self.model, self.processor, self.task.val, LOOKS_ON_THE_WAY, **settings)
        answers = sum(each["count"] for each in (reading, *seen.values()))
        self.pace = (time.perf_counter() - start) / max(answers, 1)
        past.append({"step": step, **reading, **seen})
        scalars = {f"val/{name}": reading[name] for name in ("accuracy", "format")}
        self.log.track(step - 1, **scalars)  # with the step that led here: a resumed run is behind
        found = "accuracy {accuracy:.3f}, format {format:.3f}".format(**reading)
        self.log.say(f"step {step}, val: {found}")
        return best

    def read_finals(self, title: str) -> dict[str, dict]:
        """evaluate_all on each of the last evaluation's splits, said as lines."""
        splits = " and ".join(f"{len(asked)} of {name}" for name, asked in self.task.finals.items())
        told = f"{title}: is read now, on the questions of {splits}, up to five answers to each"
        if self.pace:
            count = sum(map(len, self.task.finals.values()))
            told += f", about {5 * count * self.pace:.0f} s"
        self.log.say(told)
        readings = {}
        for split, examples in self.task.finals.items():
            readings[split] = evaluate_all(
                self.model, self.processor, examples, **eval_settings(self.config)
            )
            self.log.say(summary(f"{title}, {split}", readings[split]))
        return readings

    def save(self, best: bool = False) -> str:
        """A checkpoint of the last whole step, by the first process; says whether it is there.

        Where the weights are no longer that step's, an error having come in the middle of an
        update, nothing is written.
        """
        step, written = self.state["step"], True
        if self.weights_step != step:
            return f"step {step} is not saved, an update was under way"
        self.saved_at = time.monotonic()
        if self.log.active:
            state = {**self.state, "positions": self.log.positions(), "config": asdict(self.config)}
            written = checkpoint.save_checkpoint(
                self.config.output_dir,
                step,
                self.model,
                self.processor,
                self.optimizer,
                state,
                save_total_limit=KEPT,
                best=best,
            )
        return f"step {step} is saved" if written else f"step {step} could NOT be saved"

    def finish(self) -> dict:
        """The last evaluation; model and result.json are written. Returns the result."""
        config = self.config
        result = {"config": asdict(config), **self.state, "final": self.read_finals(config.method)}
        if told := self.scorer.summary():
            result["judge"] = told
            self.log.say(f"warning: {told}")
        if not self.state["updates"]:
            told = "every group was skipped, left out or of equal reward"
            self.log.say(f"warning: not one parameter has moved: {told}")
        if self.log.active:
            self.log.write("result.json", result)
            try:
                save_model(config.output_dir, self.model, self.processor)
            except Exception as error:
                if not checkpoint.disk_full(error):
                    raise
                raise InputError(
                    f"{config.output_dir}: disk full; the result and the last checkpoint are "
                    "there, the final model is not: free some space and --resume"
                ) from error
            self.log.say(f"model, metrics and result are in {config.output_dir}")
            self.log.say(f"ask it: python sample.py --ckpt {config.output_dir}")
        return result


def step_examples(data: Sequence[Example], config: Config, step: int) -> list[Example]:
    """The P examples of a step; a new shuffle each epoch.

    A pure function of (seed, step), so that a resumed run needs no state for it.
    """
    first, orders, picked = step * config.prompts_per_step, {}, []
    for count in range(first, first + config.prompts_per_step):
        epoch, place = divmod(count, len(data))
        if epoch not in orders:
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
            orders[epoch] = torch.randperm(len(data), generator=generator).tolist()
        picked.append(data[orders[epoch][place]])
    return picked


def summary(title: str, readings: dict[str, dict]) -> str:
    """evaluate_all's result in one line."""
    greedy, sampled, direct = readings["greedy"], readings["sampled"], readings["direct"]
    low, high = interval(greedy["accuracy"], greedy["count"])
    true = sampled["fact_precision"]  # None where nothing is stated
    stated = "no facts stated" if true is None else f"stated facts true {true:.3f}"
    tasks = [name for name in greedy if name.startswith("accuracy/")]
    each = [f"{name.removeprefix('accuracy/')} {greedy[name]:.3f}" for name in tasks]
    apart = f" ({', '.join(each)})" if len(each) == 2 else ""  # ChartQA's human and augmented
    return (
        f"{title}: accuracy {greedy['accuracy']:.3f} [{low:.3f}, {high:.3f}] greedy{apart}, "
        f"{sampled['accuracy']:.3f} at temperature 1, {direct['accuracy']:.3f} answering directly; "
        f"format {greedy['format']:.3f}, {stated}, "
        f"right answers grounded {greedy['grounded']:.3f} ({greedy['count']} questions)"
    )
