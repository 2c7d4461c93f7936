"""
The refiner's template, learned from the policy's own good responses (DyME, arXiv 2506.23061,
section 3.3): how the paper gets by without hand-made ones.

A response that the judge calls high and that is well structured is turned into a generic template;
the judge compares that with the current one; the better stays. <output_dir>/template.txt is the
current one, template_history.jsonl all of them. Left out: several candidates at a time.
"""

import json
import os
import re

import checker
from lib.chat import ChatError, ask, ask_word
from judge import fill, mentions
from overlap import thinking_scores
from lib.ranks import broadcast_object

GENERALISE = """A well structured explanation:
<thinking>
{thinking}
</thinking>

Turn it into a generic template for such explanations: keep its headings, one to a line, and after
each say in a few words what belongs there. No name, number or result of this case may remain.
Reply with the template alone."""
COMPARE = """Two templates for explaining the answer to a question about an image.

Template A:
{best}

Template B:
{proposal}

Does B lead to clearer and better grounded explanations than A? Reply with one word: yes or no."""
HEADING = re.compile(r"(?:^|[\n.;])[\W\d_]*([A-Z][\w ]{1,24}?)[\s*]*:")
MAX_TEMPLATE = 1000  # characters


def evolve_template(judge, calls: list, proposal, step: int, ranks):
    """
    The refiner's template learns from the model's own good responses (paper, section 3.3): the
    first process asks for one proposal at a time, takes it over at a later step if the judge
    preferred it, and hands it to the others. Returns the proposal that is under way.
    """
    if judge is None:
        return None
    if ranks.rank == 0:
        if proposal is None:
            proposal = request_template(judge, calls)
        elif proposal.done():
            if proposal.result() is not None:
                adopt_template(judge, proposal.result(), step + 1)
            proposal = None
    judge.template = broadcast_object(judge.template, ranks)
    return proposal


def headings(text, example):
    """The distinct headings of a text ("Goal: ..."), the chart's own ("Latvia: 3.0") left out."""
    names = {name.casefold() for name, _ in example.facts}
    return {h.casefold().strip() for h in HEADING.findall(text)} - names - {"answer"}


def request_template(judge, groups):
    """Future of propose_template for the first well structured response judged high, or None."""
    for calls in groups:
        for g, score in enumerate(thinking_scores(calls)):
            if score == 1.0 and len(headings(calls.thinking[g], calls.example)) >= 3:
                return judge.chat.pool.submit(
                    propose_template, judge, calls.thinking[g], calls.example, judge.template
                )
    return None


def propose_template(judge, thinking, example, best):
    """The generic template of a good response if the judge prefers it to `best`, else None.

    A proposal that keeps a name or value of this chart, has no structure, is cut off or overlong
    is not compared at all.
    """
    try:
        prompt = fill(GENERALISE, example, thinking=thinking)
        proposal, finished = ask(judge.chat, [{"role": "user", "content": prompt}])
        structured = len(headings(proposal, example)) >= 3 and len(proposal) <= MAX_TEMPLATE
        specific = any(mentions(proposal, word) for fact in example.facts for word in fact)
        if not finished or not structured or specific or checker.extract_answer(proposal):
            return None
        word = ask_word(judge.chat, COMPARE.format(best=best, proposal=proposal), ["yes", "no"])
    except ChatError:
        return None
    return proposal if word == "yes" and proposal != best else None


def adopt_template(judge, template, step):
    """Makes `template` the current one and writes `template.txt` and `template_history.jsonl`."""
    judge.template = template
    judge.history.append({"step": step, "template": template})
    save_template(judge)


def restore_template(judge, step):
    """Reads the history up to `step` back: what a run resumed from that step's checkpoint had."""
    path = os.path.join(judge.output_dir, "template_history.jsonl")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        judge.history = [row for row in rows if row["step"] <= step]
        judge.template = judge.history[-1]["template"]


def save_template(judge):
    """Writes the current template and the history, each file whole or not at all."""
    files = {"template.txt": judge.template + "\n"}
    files["template_history.jsonl"] = "".join(json.dumps(row) + "\n" for row in judge.history)
    for name, text in files.items():
        path = os.path.join(judge.output_dir, name)
        with open(path + ".tmp", "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(path + ".tmp", path)
