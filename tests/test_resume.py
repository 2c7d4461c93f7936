"""The real train.py, from the command line to the last evaluation: killed, resumed, split, misfed.

Each run is a process of its own, forked from one that has imported train.py already, so that a
test costs seconds and a kill kills nothing else. kills.py kills such runs at random moments.
"""

import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import zlib
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

import dyme
import run as run_file
import train
from checker import Rules
from data.example import InputError
from lib import optim
from lib import ranks as several
from lib.checkpoint import step_folders, step_of
from lib.log import Log, run_program
from lib.ranks import Interrupt, Ranks
from rollout import EXPLORE, MEMORIZE, SKIP

FLAGS = """
--max_steps 6 --save_steps 2 --eval_steps 2 --eval_size 2 --final_splits val --no-eval_base
--prompts_per_step 2 --num_generations 2 --max_completion_length 6 --log_groups_every 1
""".split()


# ---- runs ---------------------------------------------------------------------------------------


def start(folder, name, *flags, faults=(), **environment):
    """Starts `train.py FLAGS flags --output_dir name` in a folder, after calling the faults."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train", "tests.test_resume"])
    argv = [*FLAGS, *flags, "--output_dir", name]
    process = context.Process(target=in_child, args=(folder, name, argv, faults, environment))
    process.start()
    return process


def in_child(folder, name, argv, faults, environment):
    os.chdir(folder)
    os.environ.update(environment, CUDA_VISIBLE_DEVICES="")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    for stream in (1, 2):
        os.dup2(os.open(f"{name}.said", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    for fault in faults:
        fault()
    run_program(train.main, argv, "what was saved goes on with --resume")


def run(folder, name, *flags, processes=1, faults=()):
    """The exit code of a run (-9: killed by signal 9), or those of its processes, started as
    torchrun does; and what all runs of this name have said.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        shared = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(probe.getsockname()[1]))
    shared.update(WORLD_SIZE=str(processes), faults=faults)
    started = [
        start(folder, name, *flags, **shared, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(processes)
    ]
    for process in started:
        process.join(600)
    codes = [process.exitcode for process in started]
    return codes if processes > 1 else codes[0], (folder / f"{name}.said").read_text()


def outcome(folder):
    """All that a finished run leaves, but for the seconds."""
    result = json.loads((folder / "result.json").read_text())
    for reading in result["final"]["val"].values():
        reading.pop("seconds", None)
    lines = [json.loads(line) for line in open(folder / "metrics.jsonl")]
    timed = [name for name in lines[0] if "second" in name or "time" in name]
    return {
        "metrics": [{k: v for k, v in line.items() if k not in timed} for line in lines],
        "samples": (folder / "groups.jsonl").read_text(),
        "readings": [result[name] for name in ("step", "bad_steps", "val", "final")],
        "weights": zlib.crc32((folder / "model.safetensors").read_bytes()),
    }


def steps(folder):
    return [step_of(path) for path in step_folders(folder / "checkpoints")]


# ---- faults, and what makes a tiny run lively: called in the run's process ----------------------


def lively():
    """Rewards that depend on the text: an untrained model's own are all 0, and all memorized."""

    def hear(self, group, g):
        reward = zlib.crc32(group.responses[g].text.encode()) % 1000 / 1000
        for name in ("format", "accuracy", "thinking", "total", "correct"):
            value = {"format": 1.0, "correct": reward > 0.5}.get(name, reward)
            empty = torch.zeros(len(group.responses)).to(torch.tensor(value).dtype)
            group.rewards.setdefault(name, empty)[g] = value

    Rules.hear = hear


def signalled(number, step):
    """In the middle of a step: its metrics are written, and one of its two groups."""
    append = Log.append

    def append_and_die(log, name, line):
        append(log, name, line)
        if name == "groups.jsonl" and line["step"] == step:
            Log.append = append
            os.kill(os.getpid(), number)

    Log.append = append_and_die


killed, terminated = partial(signalled, signal.SIGKILL, 3), partial(signalled, signal.SIGTERM, 2)


def interrupted():  # by Ctrl-C in the last evaluation
    run_file.Run.read_finals = lambda *_: os.kill(os.getpid(), signal.SIGINT)


def impatient():
    run_file.KEPT, run_file.SAVE_MINUTES = 9, 1e-9


def bad_gradients():
    """The gradient of step 1, and those from step 3 on, aren't finite."""
    calls = []

    def broken(model, ranks):
        calls.append(ranks)
        if len(calls) == 2 or len(calls) >= 4:
            params = [param for param in model.parameters() if param.grad is not None]
            params[len(calls)].grad.view(-1)[0] = math.nan if len(calls) == 2 else math.inf

    train.sum_gradients, run_file.KEPT, run_file.MAX_BAD_STEPS = broken, 9, 2


def an_error_in_the_loop():  # at step 3, before its update
    train.choose = lambda config, step, group: 1 / (step - 3) and dyme.choose(config, step, group)


def an_error_in_the_update():
    optim.StochasticAdamW.step = lambda optimizer: 1 / 0


def planned():
    """Plain SGD; from step 1 on each step has its own modes for even and odd prompts."""
    plan = [None, (EXPLORE, SKIP), (EXPLORE, MEMORIZE), (SKIP, MEMORIZE), (SKIP, SKIP)]

    def by_plan(config, step, group):
        return plan[step][group.place % 2] if step else dyme.choose(config, step, group)

    def sgd(model, *_):
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)

    train.choose, run_file.build_optimizer, train.Config.max_grad_norm = by_plan, sgd, 1000


# ---- ended and resumed --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where runs share one base stage; `whole` in it is the run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("runs")
    code, said = run(folder, "whole", faults=(lively,))
    assert code == 0, said
    return folder


ENDS = {
    "killed": (killed, -9, 2, "step 2, val"),
    "terminated": (terminated, 143, 3, "interrupted: step 3 is saved; go on with --resume"),
    "interrupted": (interrupted, 130, 6, "interrupted; what was saved goes on with --resume"),
    "failed": (an_error_in_the_loop, 1, 3, "ended by an error; step 3 is saved"),
}


@pytest.mark.parametrize("name", ENDS)
def test_ended_early_and_resumed_is_the_unbroken_run(folder, name):
    end, code, saved, line = ENDS[name]
    found, said = run(folder, name, faults=(lively, end))
    assert found == code and line in said, said
    assert steps(folder / name)[-1] == saved and not (folder / name / "result.json").exists()
    code, more = run(folder, name, "--resume", faults=(lively,))
    more = more.removeprefix(said)
    assert code == 0 and f"at step {saved}" in more and "warning: " not in more, more
    assert outcome(folder / name) == outcome(folder / "whole")
    modes = {json.loads(line)["mode"] for line in outcome(folder / name)["samples"].splitlines()}
    assert len(modes) > 1  # or the comparison shows little


def test_an_error_in_an_update_saves_nothing(folder):
    code, said = run(folder, "torn", faults=(lively, an_error_in_the_update))
    assert code == 1 and "is not saved, an update was under way" in said
    assert not steps(folder / "torn")


def test_a_run_resumed_with_other_flags_says_which(folder):
    shutil.copytree(folder / "whole", folder / "changed")
    flags = ("--resume", "--learning_rate", "0.5", "--save_steps", "3")
    code, said = run(folder, "changed", *flags, faults=(lively,))
    assert code == 0, said
    warnings = [line for line in said.splitlines() if line.startswith("warning")]
    assert warnings == ["warning: resumed with another --learning_rate: was 0.001, is now 0.5"]


def test_a_checkpoint_is_written_whenever_enough_minutes_have_passed(folder):
    code, _ = run(folder, "often", "--save_steps", "6", faults=(impatient, killed))
    assert code == -9 and steps(folder / "often") == [1, 2, 3]


@pytest.mark.parametrize(
    "flags, told",
    [
        ("", "error: whole: holds a run"),
        ("--resume --method grpo", "step-000006 is of another run: --method: was 'dyme', is now"),
        ("--resume --seed 1", "--seed: was 0, is now 1"),
        ("--resume --overwrite", "--overwrite: has an effect only without --resume"),
        ("--resume --max_steps 4", "--max_steps 4: whole/checkpoints/step-000006 is further"),
    ],
)
def test_nothing_of_another_run_is_cut_or_relabelled(folder, flags, told):
    before = outcome(folder / "whole")
    code, said = run(folder, "whole", *flags.split())
    assert code == 2 and told in said
    assert outcome(folder / "whole") == before


def test_a_foreign_log_is_named_and_nothing_is_cut(tmp_path):
    for name in ("metrics.jsonl", "result.json"):
        (tmp_path / name).write_text('{"step": "x"}\n')
    with pytest.raises(InputError, match="metrics.jsonl: was not written here"):
        Log(str(tmp_path), True).begin(1)
    assert (tmp_path / "result.json").exists()


def test_two_processes_never_share_a_folder(folder):
    log = Log(str(folder / "held"), True)
    log.lock()
    code, said = run(folder, "held")
    assert code == 2 and "held: another process is at work in it" in said


def test_bad_steps_change_nothing_are_counted_and_end_the_run(folder):
    code, said = run(folder, "bad", "--save_steps", "1", faults=(bad_gradients,))
    assert code == 2 and "not finite for 2 steps in a row; step 5 is saved" in said
    lines = [json.loads(line) for line in open(folder / "bad" / "metrics.jsonl")]
    found = [(line["finite"], line["grad_norm"] is not None) for line in lines]
    assert found == [(fine, fine) for fine in (True, False, True, False, False)]
    folders = step_folders(folder / "bad" / "checkpoints")
    weights = [load_file(path / "model.safetensors") for path in folders]
    same = [all(torch.equal(a[name], b[name]) for name in a) for a, b in zip(weights, weights[1:])]
    assert same == [True, False, True, True]


@pytest.mark.parametrize("body", [r"raise OSError('\x1b[2J')", "raise SystemExit(0)"])
def test_a_hostile_reward_is_an_error_in_one_line_and_exit_code_2(folder, body):
    name = f"hostile{len(body)}"
    (folder / f"{name}.py").write_text(f"def reward(response, example):\n    {body}\n")
    code, said = run(folder, name, "--reward", f"{name}.py")
    assert code == 2, said
    [error] = said[said.index("error: ") :].splitlines()
    assert "--reward: failed on charts-" in error and "Traceback" not in said
    assert "\x1b" not in said and len(said) < 2000


# ---- signals, several processes -----------------------------------------------------------------


@pytest.mark.parametrize("torchrun", [False, True])
def test_a_first_signal_is_a_flag_and_a_second_as_ever_but_under_torchrun(monkeypatch, torchrun):
    monkeypatch.setattr(os, "environ", {"TORCHELASTIC_RUN_ID": "none"} if torchrun else {})
    for kind in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(kind)
        with Interrupt() as interrupt:
            os.kill(os.getpid(), kind)
            assert interrupt.agreed(Ranks()) == kind
            assert (signal.getsignal(kind) == before) is not torchrun
        assert signal.getsignal(kind) == before


def dying():
    """Both hear of a signal that one got; then one dies, and the other waits for its gradient."""
    ranks, interrupt = several.setup_distributed(), Interrupt()
    interrupt.signal = 15 * ranks.rank
    assert interrupt.agreed(ranks) == 15
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    several.sum_gradients(torch.nn.Linear(2, 2), ranks)


def test_a_process_that_dies_ends_the_others_with_a_message(tmp_path):
    codes, said = run(tmp_path, "dying", processes=2, faults=(dying,))
    assert codes == [1, -signal.SIGKILL]
    assert "another process of this job ended" in said and "Traceback" not in said


def test_two_processes_of_train_are_one(tmp_path):
    assert several.shard(list("abcde"), Ranks(1, 2)) == [(1, "b"), (3, "d")]
    flags = "--prompts_per_step 4 --max_steps 5 --learning_rate 0.02 --save_steps 3 --base_steps 2"
    faults = (lively, planned)
    codes, said = run(tmp_path, "two", *flags.split(), processes=2, faults=faults)  # makes the base
    assert codes == [0, 0], said
    assert not list((tmp_path / "out").glob("*.tmp-*"))
    code, said = run(tmp_path, "one", *flags.split(), faults=faults)
    assert code == 0, said
    assert steps(tmp_path / "one")[-1] == steps(tmp_path / "two")[-1] == 5  # the end is saved too
    for mine, theirs in zip(*(outcome(tmp_path / name)["metrics"] for name in ("one", "two"))):
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-6)  # the gradient's norm, too
    folders = [next((tmp_path / "out").glob("base*")), tmp_path / "one", tmp_path / "two"]
    base, one, two = (load_file(folder / "model.safetensors") for folder in folders)
    assert all((one[name] - two[name]).norm() <= 1e-6 * one[name].norm() for name in base)
    assert any((one[name] - base[name]).norm() > 1e-3 * base[name].norm() for name in base)
