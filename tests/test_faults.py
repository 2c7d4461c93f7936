"""What a run survives: kills, damaged files, a full disk, signals, and processes that differ."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from data.example import InputError
from lib import checkpoint
from lib import ranks as several
from lib.checkpoint import (
    best_checkpoint,
    changed_flags,
    clean_checkpoints,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
    step_folders,
    write_whole,
)
from lib.optim import build_optimizer
from lib.ranks import Interrupt, Ranks, shard

HERE = Path(__file__).parent.parent


class FakeTokenizer:
    """All that a checkpoint asks of a processor."""

    def save_pretrained(self, folder):
        (Path(folder) / "tokenizer.json").write_text("{}")


def tiny_run(seed=0, width=8, optim="adamw_bf16"):
    torch.manual_seed(seed)
    sizes = dict(vocab_size=32, hidden_size=width, intermediate_size=16, num_hidden_layers=2)
    heads = dict(num_attention_heads=2, num_key_value_heads=1)
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, tie_word_embeddings=True)).bfloat16()
    return model, build_optimizer(model, optim, 1e-3, seed=seed)


def update(model, optimizer, step):
    optimizer.zero_grad()
    ids = torch.randint(32, (2, 6), generator=torch.Generator().manual_seed(step))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


def save(folder, step, run=None, state=None, **knobs):
    model, optimizer = run or tiny_run(step)
    return save_checkpoint(folder, step, model, FakeTokenizer(), optimizer, state or {}, **knobs)


def saved_steps(folder):
    return [int(path.name[5:]) for path in step_folders(Path(folder) / "checkpoints")]


def the_warning(capsys):
    """What was warned of, in one line (transformers' progress bars aside)."""
    lines = capsys.readouterr().err.splitlines()
    [warning] = [line for line in lines if line.startswith("warning: ")]
    return warning


def child(code, helpers="tests.test_faults", **environment):
    """A process of its own, with what is in `helpers` at hand."""
    settings = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    program = [sys.executable, "-c", f"from {helpers} import *\n" + code]
    return subprocess.Popen(program, env=environment, **settings)


# ---- checkpoints ---------------------------------------------------------------------------------


def test_a_resumed_run_is_the_unbroken_run_bit_for_bit(tmp_path):
    model, optimizer = tiny_run()
    update(model, optimizer, 0)
    save(tmp_path, 1, (model, optimizer), {"position": [3, 5], "template": "x"})
    update(model, optimizer, 1)
    other, resumed = tiny_run(seed=7)
    state = load_checkpoint(find_checkpoint(tmp_path), other, resumed)
    update(other, resumed, 1)
    assert state == {"position": [3, 5], "template": "x", "step": 1}
    for mine, theirs in zip(model.parameters(), other.parameters()):
        assert torch.equal(mine, theirs)
    assert other.lm_head.weight is other.model.embed_tokens.weight
    assert str(optimizer.state_dict()) == str(resumed.state_dict())


def test_the_weights_load_with_the_plain_class_and_stay_whole_in_mixed_types(tmp_path):
    model, optimizer = tiny_run()
    model.model.norm.float().weight.data.fill_(1.0001)  # bf16 can't hold it
    save(tmp_path, 1, (model, optimizer))
    other, _ = tiny_run(3)
    other.model.norm.float()
    load_checkpoint(find_checkpoint(tmp_path), other)
    assert torch.equal(other.model.norm.weight, model.model.norm.weight)
    plain = Qwen2ForCausalLM.from_pretrained(find_checkpoint(tmp_path))
    assert torch.equal(plain.lm_head.weight, model.lm_head.weight)


def test_a_kill_in_the_middle_of_a_save_leaves_the_one_before(tmp_path):
    code = f"""
save({str(tmp_path)!r}, 1)
FakeTokenizer.save_pretrained = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
save({str(tmp_path)!r}, 2)
"""
    process = child(code)
    _, err = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, err
    [leftover] = (tmp_path / "checkpoints").glob("step-000002.tmp-*")
    assert (leftover / "model.safetensors").exists()
    assert find_checkpoint(tmp_path).name == "step-000001"
    clean_checkpoints(tmp_path, step=1)
    assert not leftover.exists() and saved_steps(tmp_path) == [1]


class Death(BaseException):
    pass


def die(*_, **__):
    raise Death


@pytest.mark.parametrize("moment", ["rename", "rmtree"])
def test_a_death_at_the_rename_or_while_pruning_leaves_a_whole_one(tmp_path, monkeypatch, moment):
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os if moment == "rename" else checkpoint.shutil, moment, die)
        with pytest.raises(Death):
            save(tmp_path, 2, save_total_limit=1)
    clean_checkpoints(tmp_path, step=2)
    assert saved_steps(tmp_path) == [1 if moment == "rename" else 2]
    assert find_checkpoint(tmp_path) == step_folders(tmp_path / "checkpoints")[0]
    assert save(tmp_path, 3, save_total_limit=1) and saved_steps(tmp_path) == [3]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("fault", ["cut", "unreadable", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys, name, fault):
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = tmp_path / "checkpoints" / "step-000002" / name
    content = path.read_bytes()
    path.unlink()
    if fault != "gone":
        path.write_bytes(content[:-10] if fault == "cut" else b"\xff" * len(content))
    assert find_checkpoint(tmp_path).name == "step-000001"
    warning = the_warning(capsys)
    assert "step-000002" in warning and name in warning
    with pytest.raises(InputError, match="damaged"):
        find_checkpoint(tmp_path / "checkpoints" / "step-000002")


def test_a_checkpoint_of_the_older_layout_is_refused_in_one_line(tmp_path):
    save(tmp_path, 1)
    (find_checkpoint(tmp_path) / "complete.json").write_text("{}")
    for path in (tmp_path, tmp_path / "checkpoints" / "step-000001"):
        with pytest.raises(InputError, match="older version"):
            find_checkpoint(path)


def test_a_step_is_written_again_only_if_it_is_of_another_run(tmp_path, monkeypatch):
    save(tmp_path, 1)
    state = {"config": {"seed": (2, 3)}}
    assert save(tmp_path, 1, state=state)
    assert load_checkpoint(find_checkpoint(tmp_path), *tiny_run())["config"] == {"seed": [2, 3]}
    monkeypatch.setattr(checkpoint, "write_files", None)
    assert save(tmp_path, 1, state=state, best=True)
    assert best_checkpoint(tmp_path).name == "step-000001"


@pytest.mark.parametrize("writer", ["model", "optimizer", "state"])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, capsys, writer):
    model, _ = run = tiny_run()
    save(tmp_path, 1, run)

    def full(*_, **__):
        if writer == "model":  # as safetensors says it
            raise RuntimeError("I/O error: No space left on device (os error 28)")
        number = errno.EDQUOT if writer == "state" else errno.ENOSPC
        raise OSError(number, os.strerror(number))

    owner, name = {
        "model": (model, "save_pretrained"),
        "optimizer": (torch, "save"),
        "state": (checkpoint, "write_whole"),
    }[writer]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        assert save(tmp_path, 2, run, save_total_limit=1) is False
    warning = the_warning(capsys)
    assert "disk full" in warning and "step-000001" in warning
    assert os.listdir(tmp_path / "checkpoints") == ["step-000001"]
    assert save(tmp_path, 3, run) is True


def test_another_error_while_saving_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(tmp_path, 1)
    assert os.listdir(tmp_path / "checkpoints") == []


def test_the_newest_and_the_best_are_kept(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step, save_total_limit=2, best=step in (1, 2))
    assert saved_steps(tmp_path) == [2, 4, 5]
    assert best_checkpoint(tmp_path).name == "step-000002"


def test_resuming_from_an_earlier_step_drops_what_came_after_it(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, best=step == 3)
    clean_checkpoints(tmp_path, step=1)
    assert saved_steps(tmp_path) == [1] and best_checkpoint(tmp_path) is None
    assert find_checkpoint(tmp_path / "nowhere") is None


def test_another_model_or_optimizer_is_refused_in_one_line(tmp_path):
    save(tmp_path, 1)
    path = find_checkpoint(tmp_path)
    frozen, _ = tiny_run()
    frozen.model.norm.requires_grad_(False)
    for run, reason in (
        (tiny_run(width=16), "shapes"),
        (tiny_run(optim="adamw"), "--dtype"),
        ((frozen, build_optimizer(frozen, "adamw_bf16", 1e-3)), "other weights"),
    ):
        with pytest.raises(InputError, match=reason) as caught:
            load_checkpoint(path, *run)
        assert "\n" not in str(caught.value)


def test_nothing_in_a_checkpoint_is_unpickled_as_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    save(tmp_path, 1)
    path = find_checkpoint(tmp_path)
    torch.save({"state": Bomb()}, path / "optimizer.pt")
    with pytest.raises(Exception, match="[Uu]nsupported|Weights only"):
        load_checkpoint(path, *tiny_run())
    assert not (tmp_path / "ran").exists()


def test_a_small_file_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_whole(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "fsync", die)
        with pytest.raises(Death):
            write_whole(path, b"new")
    assert path.read_text() == "old"
    write_whole(path, b"new")
    assert path.read_text() == "new"


def test_changed_flags_are_named_with_both_values():
    old = {"seed": 0, "betas": [0.9, 0.99], "max_steps": 10, "beta": 0.0}
    new = {"seed": 1, "betas": (0.9, 0.99), "max_steps": 20, "beta": 0.0, "optim": "adamw"}
    assert changed_flags(old, new, ignore={"max_steps"}) == [
        "--optim: was None, is now 'adamw'",
        "--seed: was 0, is now 1",
    ]


# ---- signals -------------------------------------------------------------------------------------


def test_the_first_signal_is_a_flag_and_the_second_an_exit():
    code = """
with Interrupt() as interrupt:
    print("ready", flush=True)
    while not interrupt.agreed(Ranks()):
        time.sleep(0.01)
    print("saving", flush=True)
    time.sleep(60)
"""
    kinds = (signal.SIGINT, signal.SIGTERM)
    for process, kind in [(child(code, "lib.ranks"), kind) for kind in kinds]:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(kind)
        assert process.stdout.readline() == "saving\n"
        process.send_signal(kind)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 128 + kind
        assert "saving after this step" in err and "last checkpoint is whole" in err


def test_under_torchrun_a_signal_that_comes_twice_at_once_is_one(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.agreed(Ranks()) == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# ---- several processes ---------------------------------------------------------------------------


def torchrun(code):
    """Starts two processes as torchrun does; returns them without waiting for their end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2")
    start = (
        "from lib import ranks as several\nranks = several.setup_distributed('cpu', timeout=120)\n"
    )
    return [
        child(start + code, "lib.ranks", RANK=rank, LOCAL_RANK=rank, **environment)
        for rank in ("0", "1")
    ]


def test_processes_agree_on_sums_objects_and_the_end():
    code = """
import json
values = [dict(b=0.25, a=1.0), dict(b=0.25, only_here=2.0)][ranks.rank]
print(json.dumps(several.reduce_sums(values, ranks)))
print(several.broadcast_object(["of", ranks.rank], ranks))
interrupt = Interrupt()
interrupt.signal = 15 * ranks.rank
print(interrupt.agreed(ranks))
several.cleanup(ranks)
"""
    for process in torchrun(code):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        sums, shared, ending = out.splitlines()
        assert json.loads(sums) == {"a": 1.0, "b": 0.5, "only_here": 2.0}
        assert (shared, ending) == ("['of', 0]", "15")


def test_a_process_that_dies_ends_the_others_with_a_message():
    code = """
if ranks.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
sum_gradients(torch.nn.Linear(2, 2), ranks)
"""
    survivor, dead = torchrun(code)
    _, err = survivor.communicate(timeout=300)
    assert dead.wait(timeout=300) == -signal.SIGKILL
    dead.communicate()
    assert survivor.returncode == 1
    assert "another process of this job ended" in err and "Traceback" not in err


def test_one_process_needs_no_torchrun_and_keeps_its_order():
    ranks = several.setup_distributed("cpu")
    assert ranks == Ranks() and shard(["a", "b"], ranks) == [(0, "a"), (1, "b")]
    assert shard(list("abcde"), Ranks(1, 2)) == [(1, "b"), (3, "d")]
    assert several.reduce_sums({"a": 1.0}, ranks) == {"a": 1.0}
