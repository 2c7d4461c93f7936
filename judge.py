"""The judge: a language model in place of the rules, in training and ahead of it.

`Judge` is the scorer of "full" DyME (arXiv 2506.23061): it reads the facts, never the image, and
what it doesn't answer checker.Rules does. It asks beside decoding and updates, where the paper pays
43 to 58 % of a step: a response is judged while others are decoded, a group's update waits for its
own calls alone, and nothing is asked that the update won't use. The questions are in prompts.py.
Left out: a judge on the training's own GPU. Ahead of training it writes what the data lacks, facts
(by a vision-language model, for train.py --facts) and from facts the traces (for --traces):

    python judge.py facts --dataset mine.jsonl --out facts.jsonl \\
        --judge_url http://127.0.0.1:8000/v1 --judge_model name
    python judge.py refine --dataset mine.jsonl --facts facts.jsonl --out traces.jsonl ...
"""

import itertools
import json
import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from pathlib import Path
from queue import PriorityQueue

import dyme
from checker import Rules, total_reward
from config import Parser, least
from data import load_data
from data.example import Example, InputError
from data.reading import read_lines, write_whole
from lib.answers import split_response
from lib.chat import Chat, ChatError, close_chat, first_question, open_chat, try_again
from lib.log import progress, run_program
from lib.ranks import Ranks, broadcast_object
from prompts import TEMPLATE, is_structured, judge_thinking, propose_template, read_off
from prompts import trace_row, written_trace
from rollout import EXPLORE, MEMORIZE, Group

TRACE = None  # key of a call, where a thinking is the key of its score
MAX_FAILED = 10  # in a row that end the work ahead of training
# of one process and step: HTTP attempts, what the cache knew, thinking to be rated, that which the
# rules score after all, traces asked for, those that the rules write after all, seconds waited
COUNTS = ("judge_calls", "judge_cache_hits", "judge_ratings", "judge_failures")
COUNTS += ("refiner_calls", "refiner_fallbacks", "judge_wait_s")

# ---- the scorer of the loop ---------------------------------------------------------------------


class Judge(Rules):
    """Rules that ask a language model besides, in threads. Calls of the first groups go first: else
    none would be complete before the very end, and no update would run beside the others' calls.
    """

    def __init__(self, config):
        super().__init__(config)
        self.chat = open_chat(config, Path(config.output_dir, "judge_cache.sqlite"))
        first_question(self.chat, config.force)
        self.step = 0  # the one under way
        self.calls = defaultdict(dict)  # group.place -> {a thinking, or TRACE: Future}
        self.queue, self.order = PriorityQueue(), itertools.count()
        self.templates = Path(config.output_dir, "template_history.jsonl")
        self.history = [{"step": 0, "template": TEMPLATE}]  # the first process's alone
        self.template = TEMPLATE
        self.proposal = None  # the Future of a better template
        self.totals = Counter()  # COUNTS of this process's whole run

    def hear(self, group: Group, g: int) -> None:
        """Score response g by the rules, and ask for what the update is now sure to need."""
        super().hear(group, g)
        heard = [i for i, response in enumerate(group.responses) if response is not None]
        mode = dyme.choose(self.config, self.step, group)
        if mode == MEMORIZE and len(heard) == len(group.responses):
            self.ask_trace(group)
        # without facts there is nothing to rate by
        for i in heard if mode == EXPLORE and group.example.facts else []:
            thinking = scored_thinking(group, i)
            if thinking is not None:
                self.ask(group.place, thinking, judge_thinking, thinking, group.example)

    def ask_trace(self, group: Group) -> None:
        """Ask for the memorized trace, unless the data's own is memorized or no facts are known."""
        example = group.example
        if self.config.refiner != "off" and example.instruction is None and example.facts:
            self.ask(group.place, TRACE, written_trace, example, self.template)

    def ask(self, place: float, key: str | None, function, *args) -> Future:
        """Call function(chat, *args) in a thread, once for a place and key; None: no reply."""
        if key not in self.calls[place]:
            future = self.calls[place][key] = Future()
            self.queue.put((place, next(self.order), future, function, args))
            self.chat.pool.submit(self.run_first)  # as many such jobs as there are calls
        return self.calls[place][key]

    def run_first(self) -> None:
        """Make the call that is first in the queue."""
        *_, future, function, args = self.queue.get()
        try:
            future.set_result(function(self.chat, *args))
        except ChatError:
            future.set_result(None)  # the rules take over
        except BaseException as error:  # said where the result is asked for
            future.set_exception(error)

    def ready(self, groups: list[Group]):
        """Yield lists of groups as their calls are answered, those that need nothing first."""
        for group in groups:
            if group.mode == MEMORIZE:
                self.ask_trace(group)
        while groups:
            calls = [[c for c in self.calls[g.place].values() if not c.done()] for g in groups]
            done = [group for group, waiting in zip(groups, calls) if not waiting]
            groups = [group for group, waiting in zip(groups, calls) if waiting]
            for group in done:
                self.finish(group)
            if done:
                yield done
            else:
                start = time.perf_counter()
                wait(itertools.chain(*calls), return_when=FIRST_COMPLETED)
                self.chat.counts["judge_wait_s"] += time.perf_counter() - start

    def finish(self, group: Group) -> None:
        """The judge's scores in place of the rules', where it has any, and the totals with them."""
        scores = {key: call.result() for key, call in self.calls[group.place].items()}
        counts = self.chat.counts
        if TRACE in scores:
            counts["refiner_calls"] += 1
            counts["refiner_fallbacks"] += scores.pop(TRACE) is None
        if scores:
            counts["judge_ratings"] += len(scores)
            counts["judge_failures"] += list(scores.values()).count(None)
            for g in range(len(group.responses)):
                score = scores.get(scored_thinking(group, g))
                if score is not None:
                    group.rewards["thinking"][g] = score
            group.rewards["total"] = total_reward(group.rewards, self.config.reward_weights)

    def trace(self, group: Group) -> str | None:
        """The thinking that is memorized: the judge's, else what the rules say."""
        call = self.calls[group.place].get(TRACE)
        return (call and call.result()) or super().trace(group)

    def end_step(self, step: int, groups: list[Group], ranks: Ranks) -> dict[str, float]:
        """COUNTS of this process. Collective: the first process's template goes to all."""
        if ranks.rank == 0:
            self.learn_template(step, groups)
        self.template = broadcast_object(self.template, ranks)
        self.calls.clear()
        self.step = step + 1
        try_again(self.chat)
        with self.chat.lock:
            counts = {name: self.chat.counts.pop(name, 0) for name in COUNTS}
        self.totals.update(counts)
        return counts

    def learn_template(self, step: int, groups: list[Group]) -> None:
        """One proposal at a time, from a structured response judged high; taken over at a later
        step if the judge preferred it.
        """
        if self.proposal is None:
            for group in groups:
                for thinking, call in self.calls[group.place].items():
                    if self.proposal is None and call.result() == 1.0 and is_structured(thinking):
                        about = (thinking, group.example, self.template)
                        self.proposal = self.ask(math.inf, None, propose_template, *about)
        elif self.proposal.done():
            if better := self.proposal.result():
                self.template = better
                self.history.append({"step": step + 1, "template": better})
            self.proposal = None
        write_whole(self.templates, "".join(json.dumps(row) + "\n" for row in self.history))

    def resume(self, step: int) -> None:
        """Restore the template that the run had at `step`."""
        self.step = step
        rows = read_lines(self.templates, ("step", "template"))
        self.history = [row for row in rows if row["step"] <= step] or self.history
        self.template = self.history[-1]["template"]

    def summary(self) -> str | None:
        """For the run's last lines: how often the rules answered in the judge's place."""
        total = self.totals
        if not total["judge_failures"] + total["refiner_fallbacks"]:
            return None
        return (
            f"the rules stood in for the judge in {total['judge_failures']} of "
            f"{total['judge_ratings']} ratings and {total['refiner_fallbacks']} of "
            f"{total['refiner_calls']} traces; its last error: {self.chat.last_error or 'none'}"
        )

    def close(self) -> None:
        """Drop the calls that haven't begun, wait for those under way."""
        close_chat(self.chat)


def scored_thinking(group: Group, g: int) -> str | None:
    """The thinking of response g; None where the format is wrong, so that the reward is 0."""
    formatted = group.rewards["format"][g] > 0.5
    return split_response(group.responses[g].text)[0] if formatted else None


# ---- ahead of training --------------------------------------------------------------------------


def write_ahead(
    chat: Chat, groups: list[list[Example]], path: Path, write: Callable, unit: str
) -> None:
    """Append what a jsonl file lacks: each example's id, question and answer, and the rest of its
    row, which is write(chat, the first of its group); None leaves the group out.

    Says the rows by "source", and what a `unit` cost. What fails is left to the same command;
    InputError after MAX_FAILED in a row, or where nothing is written.
    """
    done = {row["id"] for row in read_lines(path)}

    def work(group: list[Example]) -> tuple[str, dict | str | None]:
        if done.issuperset(example.id for example in group):
            return "old", None
        try:
            made = write(chat, group[0])
        except (ChatError, InputError) as error:
            return "failed", f"{group[0].id}: {error}"
        return (made["source"], made) if made else ("left out", None)

    chat.counts.clear()
    counts, asked, in_a_row, why, start = Counter(), 0, 0, "", time.perf_counter()
    with open(path, "a", encoding="utf-8") as file:
        bar = progress(chat.pool.map(work, groups), "ask", total=len(groups), unit=unit)
        for group, (source, made) in zip(groups, bar):
            counts[source] += len(group)
            asked += made is not None
            if source == "failed":
                in_a_row, why = in_a_row + 1, made
                if in_a_row == MAX_FAILED:
                    break
            elif made:
                in_a_row = 0
                for e in group:
                    row = {"id": e.id, "question": e.question, "answer": e.answer, **made}
                    file.write(json.dumps(row) + "\n" if e.id not in done else "")
                file.flush()
    known = chat.counts["judge_cache_hits"]
    rate = (asked - known) / (time.perf_counter() - start)
    print(
        f"{path}: {', '.join(f'{number} {source}' for source, number in counts.items())}; "
        f"{chat.counts['judge_calls']} calls, {known} replies from the cache, "
        f"{chat.counts['tokens_in']:,} tokens in, {chat.counts['tokens_out']:,} out, "
        f"{rate:.2f} {unit}s per second"
    )
    if in_a_row == MAX_FAILED or counts.keys() <= {"failed", "left out"}:
        why = why or "not one example has the image, the text or the facts that this takes"
        raise InputError(f"{path}: not complete: {why}; mend it, and the same command goes on")
    if why:
        print(f"not complete: {why}; the same command tries again")


def main(argv: list[str]) -> None:
    """The command line."""
    parser = Parser(prog="judge.py", description="Ask a language model ahead of training.")
    commands = parser.add_subparsers(dest="command", required=True)
    facts = commands.add_parser("facts", help="write visual facts, for --facts", allow_abbrev=False)
    traces = commands.add_parser("refine", help="write traces, for --traces", allow_abbrev=False)
    facts.add_argument("--from", dest="unit", default="image", choices=["image", "text"])
    facts.set_defaults(facts=None)
    traces.add_argument("--facts", help="jsonl of visual facts, see judge.py facts")
    traces.set_defaults(unit="question")
    for add in (facts.add_argument, traces.add_argument):
        add("--dataset", required=True, help="as for train.py")
        add("--data_dir", help="its folder or zip")
        add("--size", type=least(1), help="the first so many examples")
        add("--skip_bad_rows", action="store_true", help="leave out, and count, what can't be read")
        add("--out", required=True, type=Path, help="the .jsonl to write; resumed if there")
        add("--judge_url", required=True, help="http://host:8000/v1")
        add("--judge_model", required=True, help="its model name")
    args = parser.parse_args(argv)
    names = ("data_dir", "size", "skip_bad_rows", "facts")
    read = {name: getattr(args, name) for name in names}
    groups = defaultdict(list)  # a call for each
    for example in load_data(args.dataset, "train", **read):
        groups[str(example.image) if args.unit == "image" else example.id].append(example)
    chat = open_chat(args, f"{args.out}.cache")
    chat.timeout = 300.0  # a table takes longer to write than a rating
    write = trace_row if args.command == "refine" else partial(read_off, source=args.unit)
    try:
        first_question(chat)
        write_ahead(chat, list(groups.values()), args.out, write, args.unit)
    finally:
        close_chat(chat)


if __name__ == "__main__":
    run_program(main, sys.argv[1:])
