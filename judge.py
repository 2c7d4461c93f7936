"""The judge: a language model in place of the rules, in training and ahead of it.

`Judge` is the scorer of "full" DyME (arXiv 2506.23061): it reads the facts, never the image, and
what it doesn't answer checker.Rules does. It asks beside decoding and updates, where the paper pays
43 to 58 % of a step: a response is judged while others are decoded, a group's update waits for its
own calls alone, and nothing is asked that the update won't use. Ahead of training it reads facts
off images, and writes traces from facts. Left out: a judge on the training's own GPU.

    python judge.py facts --dataset mine.jsonl --out facts.jsonl --judge_url ... --judge_model ...
    python judge.py refine --dataset mine.jsonl --facts facts.jsonl --out traces.jsonl ...
"""

import itertools
import json
import sys
import time
from collections import Counter, defaultdict
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from pathlib import Path
from queue import PriorityQueue

from checker import Rules, score, total_reward
from config import Parser, least
from data import Example, InputError, load_data
from data.reading import read_lines, write_whole
from lib.answers import split_response
from lib.chat import Chat, ChatError
from lib.log import Log, progress, run_program
from lib.ranks import Ranks, broadcast_object
from prompts import TEMPLATE, explain, is_structured, judge_thinking, propose_template, read_off
from rollout import EXPLORE, MEMORIZE, Group

TRACE = None  # key of a call, where a thinking is the key of its score
MIN_GROUNDING = 0.5  # the visual checker's score that a written trace needs
MAX_FAILED = 10  # in a row that end the work ahead of training
# of one process and step: HTTP attempts, what the cache knew, thinking to be rated, that which the
# rules score after all, traces asked for, those that the rules write after all, seconds waited
COUNTS = ("judge_calls", "judge_cache_hits", "judge_ratings", "judge_failures")
COUNTS += ("refiner_calls", "refiner_fallbacks", "judge_wait_s")


class Judge(Rules):
    """Rules that ask a language model besides, in threads. Calls of the first groups go first: else
    none would be complete before the very end, and no update would run beside the others' calls.
    """

    def __init__(self, config, choose):
        super().__init__(config)
        self.choose = choose  # dyme's: it says what an update will need
        self.chat = Chat(config, Path(config.output_dir, "judge_cache.sqlite"))
        self.chat.first_question(config.force)
        self.close = self.chat.close
        self.step = 0  # the one under way
        self.calls = defaultdict(dict)  # group.place -> {a thinking, or TRACE: Future}
        self.queue, self.order = PriorityQueue(), itertools.count()
        self.file = Path(config.output_dir, "template_history.jsonl")
        self.templates = [{"step": 0, "template": TEMPLATE}]  # learned by the first process
        self.proposal = None  # the Future of a better one
        self.totals = Counter()  # COUNTS of this process's whole run

    def hear(self, group: Group, g: int) -> None:
        """Score response g by the rules, and ask for what the update is now sure to need."""
        super().hear(group, g)
        mode = self.choose(self.config, self.step, group)
        if mode == MEMORIZE and None not in group.responses:
            self.ask_trace(group)
        for thinking in rated(group).values() if mode == EXPLORE else ():
            self.ask(group.place, thinking, judge_thinking, thinking, group.example)

    def ask_trace(self, group: Group) -> None:
        """Ask for the memorized trace, unless the data's own is memorized or no facts are known."""
        example = group.example
        if self.config.refiner != "off" and example.instruction is None and example.facts:
            self.ask(group.place, TRACE, written_trace, example, self.templates[-1]["template"])

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
            for g, thinking in rated(group).items():
                if scores.get(thinking) is not None:
                    group.rewards["thinking"][g] = scores[thinking]
            group.rewards["total"] = total_reward(group.rewards, self.config.reward_weights)

    def trace(self, group: Group) -> str | None:
        call = self.calls[group.place].get(TRACE)
        return (call and call.result()) or super().trace(group)

    def end_step(self, step: int, groups: list[Group], ranks: Ranks) -> dict[str, float]:
        """COUNTS of this process. Collective: the first process's templates go to all."""
        if ranks.rank == 0:
            self.learn_template(step, groups)
            write_whole(self.file, "".join(json.dumps(row) + "\n" for row in self.templates))
        self.templates = broadcast_object(self.templates, ranks)
        self.calls.clear()
        self.step = step + 1
        self.chat.may_try = True
        with self.chat.lock:
            counts = {name: self.chat.counts.pop(name, 0) for name in COUNTS}
        self.totals.update(counts)
        return counts

    def learn_template(self, step: int, groups: list[Group]) -> None:
        """From a structured response judged high; one proposal at a time, ready at a later step."""
        if self.proposal and self.proposal.done():
            if better := self.proposal.result():
                self.templates.append({"step": step + 1, "template": better})
            self.proposal = None
        elif not self.proposal:
            for group in groups:
                for thinking, call in self.calls[group.place].items():
                    if call.result() == 1.0 and is_structured(thinking):
                        about = (thinking, group.example, self.templates[-1]["template"])
                        self.proposal = self.ask(float("inf"), None, propose_template, *about)
                        return

    def resume(self, step: int) -> None:
        """Restore the templates that the run had at `step`."""
        self.step = step
        rows = read_lines(self.file, ("step", "template"))
        self.templates = [row for row in rows if row["step"] <= step] or self.templates

    def summary(self) -> str | None:
        total = self.totals
        failed = total["judge_failures"] + total["refiner_fallbacks"]
        asked = total["judge_ratings"] + total["refiner_calls"]
        told = f"the rules stood in for {failed} of {asked} ratings and traces of the judge"
        return f"{told}; its last error: {self.chat.last_error or 'none'}" if failed else None


def rated(group: Group) -> dict[int, str]:
    """The thinking of the responses that have ended, in the format, with facts to rate it by."""
    formats = group.rewards["format"].tolist() if group.example.facts else []
    return {g: split_response(group.responses[g].text)[0] for g, f in enumerate(formats) if f}


def written_trace(chat: Chat, example: Example, template: str = TEMPLATE) -> str | None:
    """prompts.explain's trace, unless it is hardly grounded, or fits no target."""
    trace = explain(chat, example, template) or ""
    earned = score([f"{trace}\nAnswer: {example.answer}"], example)
    return trace if earned["format"] and earned["thinking"] >= MIN_GROUNDING else None


# ---- ahead of training --------------------------------------------------------------------------


def write_ahead(args, chat: Chat) -> None:
    """Append to args.out what it lacks: each example's id, question, answer, and its facts or trace
    where there are any. Exit code 1 where calls fail, MAX_FAILED in a row at once, or all is empty.
    """
    kind, unit = ("facts", args.unit) if args.what == "facts" else ("trace", "question")
    how = {"size": args.size, "skip_bad_rows": args.skip_bad_rows, "facts": args.facts}
    done, groups = {row["id"] for row in read_lines(args.out)}, defaultdict(list)
    for example in load_data(args.dataset, "train", args.data_dir, **how):
        if example.id not in done:  # a call per image, or per question
            groups[str(example.image) if unit == "image" else example.id].append(example)

    def work(group):
        try:
            first = group[0]
            return read_off(chat, first, unit) if kind == "facts" else written_trace(chat, first)
        except (ChatError, InputError) as error:
            return error

    chat.first_question()
    chat.counts.clear()
    log, counts, start = Log(args.out.parent, True), Counter(old=len(done)), time.perf_counter()
    in_a_row, why = 0, "nothing to ask"
    made = progress(chat.pool.map(work, groups.values()), "ask", total=len(groups), unit=unit)
    for group, value in zip(groups.values(), made):
        failed = isinstance(value, Exception)
        counts["failed" if failed else "written" if value else "left out"] += len(group)
        in_a_row = in_a_row + 1 if failed else 0
        why = f"{group[0].id}: {value}" if failed else why
        for e in group if value and not failed else ():
            row = {"id": e.id, "question": e.question, "answer": e.answer, kind: value}
            log.append(args.out.name, row)
        if in_a_row == MAX_FAILED:
            break
    rate = len(groups) / (time.perf_counter() - start)
    told = ", ".join(f"{number:,} {name}" for name, number in (counts + chat.counts).items())
    print(f"{args.out}: {told.replace('_', ' ')}, {rate:.2f} {unit}s per second")
    if counts["failed"] or not counts["written"] + counts["old"]:
        sys.exit(f"{args.out}: not complete: {why}; mend it, and the same command goes on")


def main(argv: list[str]) -> None:
    """The command line."""
    parser = Parser(prog="judge.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("what", choices=["facts", "refine"], help="write facts, for --facts; traces, for --traces")
    add("--from", dest="unit", default="image", choices=["image", "text"], help="of facts")
    add("--facts", help="of refine: jsonl of visual facts")
    add("--dataset", required=True, help="as for train.py")
    add("--data_dir", help="its folder or zip")
    add("--size", type=least(1), help="the first so many examples")
    add("--skip_bad_rows", action="store_true", help="leave out, and count, what can't be read")
    add("--out", required=True, type=Path, help="the .jsonl to write; resumed if there")
    add("--judge_url", required=True, help="http://host:8000/v1")
    add("--judge_model", required=True, help="its model name")
    args = parser.parse_args(argv)
    with closing(Chat(args, f"{args.out}.cache")) as chat:
        chat.timeout = 300.0  # a table takes longer to write than a rating
        write_ahead(args, chat)


if __name__ == "__main__":
    run_program(main, sys.argv[1:])
