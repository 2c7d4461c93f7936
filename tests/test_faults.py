"""A checkpoint is whole or passed over: kills, damaged files, a full disk, other models."""

import errno
import os
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from data.example import InputError
from lib import checkpoint
from lib.checkpoint import best_checkpoint, clean_checkpoints, find_checkpoint
from lib.checkpoint import load_checkpoint, save_checkpoint, step_folders, write_whole
from lib.optim import build_optimizer


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


class Death(BaseException):
    pass


def die(*_, **__):
    raise Death


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


def test_weights_of_mixed_types_stay_whole(tmp_path):
    model, optimizer = tiny_run()
    model.model.norm.float().weight.data.fill_(1.0001)  # bf16 can't hold it
    save(tmp_path, 1, (model, optimizer))
    other, _ = tiny_run(3)
    other.model.norm.float()
    load_checkpoint(find_checkpoint(tmp_path), other)
    assert torch.equal(other.model.norm.weight, model.model.norm.weight)


@pytest.mark.parametrize(
    "owner, moment",
    [(FakeTokenizer, "save_pretrained"), (os, "rename"), (checkpoint.shutil, "rmtree")],
)
def test_a_death_while_writing_renaming_or_pruning_leaves_a_whole_one(
    tmp_path, monkeypatch, owner, moment
):
    save(tmp_path, 1)
    with monkeypatch.context() as patch, pytest.raises(Death):
        # a new checkpoint's own folder is free: the first to be removed is the pruned one
        patch.setattr(owner, moment, lambda path, *_, **__: die() if Path(path).exists() else None)
        if owner is FakeTokenizer:
            patch.setattr(owner, moment, die)
        save(tmp_path, 2, save_total_limit=1)
    assert find_checkpoint(tmp_path).name == f"step-00000{2 if moment == 'rmtree' else 1}"
    clean_checkpoints(tmp_path, step=2)
    assert not list((tmp_path / "checkpoints").glob("*.tmp-*"))
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
        find_checkpoint(path.parent)


@pytest.mark.parametrize("text", ["", "[]", '{"folder": 5}', '{"folder": "../x"}', "[" * 10**5])
def test_a_file_that_was_not_written_here_is_said_in_one_line(tmp_path, text):
    save(tmp_path, 1, best=True)
    (tmp_path / "checkpoints" / "best.json").write_text(text)
    with pytest.raises(InputError, match="best.json: was not written here"):
        best_checkpoint(tmp_path)


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

    owners = {"model": (model, "save_pretrained"), "optimizer": (torch, "save")}
    with monkeypatch.context() as patch:
        patch.setattr(*owners.get(writer, (checkpoint, "write_whole")), full)
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


def test_the_newest_and_the_best_are_kept_and_what_came_after_a_resume_is_not(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step, save_total_limit=2, best=step in (1, 2))
    assert saved_steps(tmp_path) == [2, 4, 5]
    assert best_checkpoint(tmp_path).name == "step-000002"
    clean_checkpoints(tmp_path, step=4)
    assert saved_steps(tmp_path) == [2, 4]
    clean_checkpoints(tmp_path, step=0)
    assert best_checkpoint(tmp_path) is find_checkpoint(tmp_path) is None


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
    with monkeypatch.context() as patch, pytest.raises(Death):
        patch.setattr(os, "fsync", die)
        write_whole(path, b"new")
    assert path.read_text() == "old"
    write_whole(path, b"new")
    assert path.read_text() == "new"
