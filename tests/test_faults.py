"""A checkpoint is whole or passed over: kills, damaged files, a full disk, other models."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from data.example import InputError
from data.reading import write_whole
from lib.checkpoint import find_checkpoint, load_checkpoint, prune, save_checkpoint, step_folders
from lib.checkpoint import step_of
from lib.optim import build_optimizer


class FakeTokenizer:
    """All that a checkpoint asks of a processor."""

    def save_pretrained(self, folder):
        (Path(folder) / "tokenizer.json").write_text("{}")


def tiny_run(seed=0, width=8):
    torch.manual_seed(seed)
    sizes = dict(vocab_size=32, hidden_size=width, intermediate_size=16, num_hidden_layers=2)
    heads = dict(num_attention_heads=2, num_key_value_heads=1)
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, tie_word_embeddings=True)).bfloat16()
    return model, build_optimizer(model, 1e-3)


def update(model, optimizer, step):
    optimizer.zero_grad()
    ids = torch.randint(32, (2, 6), generator=torch.Generator().manual_seed(step))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


def save(folder, step, run=None):
    model, optimizer = run or tiny_run(step)
    return save_checkpoint(folder, step, model, FakeTokenizer(), optimizer, {})


def saved_steps(folder):
    return [step_of(path) for path in step_folders(folder / "checkpoints")]


class Death(BaseException):
    pass


def die(*_, **__):
    raise Death


def test_a_resumed_run_is_the_unbroken_run_bit_for_bit(tmp_path):
    model, optimizer = tiny_run()
    other, resumed = tiny_run(seed=7)
    update(model, optimizer, 0)
    save(tmp_path, 1, (model, optimizer))
    update(model, optimizer, 1)
    load_checkpoint(find_checkpoint(tmp_path), other, resumed)
    update(other, resumed, 1)
    for mine, theirs in zip(model.parameters(), other.parameters()):
        assert torch.equal(mine, theirs)
    assert other.lm_head.weight is other.model.embed_tokens.weight
    assert str(optimizer.state_dict()) == str(resumed.state_dict())


def test_weights_of_mixed_types_stay_whole(tmp_path):
    model, optimizer = tiny_run()
    model.model.norm.float().weight.data.fill_(1.0001)  # bf16 can't hold it
    save(tmp_path, 1, (model, optimizer))
    other, optimizer = tiny_run(3)
    other.model.norm.float()
    load_checkpoint(find_checkpoint(tmp_path), other, optimizer)
    assert torch.equal(other.model.norm.weight, model.model.norm.weight)


@pytest.mark.parametrize(
    "owner, moment, left",
    [(FakeTokenizer, "save_pretrained", 1), (os, "rename", 1), (shutil, "rmtree", 2)],
)
def test_a_death_while_writing_renaming_or_pruning_leaves_a_whole_one(
    tmp_path, monkeypatch, owner, moment, left
):
    save(tmp_path, 1)
    with monkeypatch.context() as patch, pytest.raises(Death):
        patch.setattr(owner, moment, die)
        save(tmp_path, 2)
        prune(tmp_path, 2, 1, None)
    assert step_of(find_checkpoint(tmp_path)) == left
    prune(tmp_path, 2, 2, None)
    assert not list((tmp_path / "checkpoints").glob("*.tmp-*"))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json", "config.json"])
@pytest.mark.parametrize("fault", ["cut", "unreadable", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys, name, fault):
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = tmp_path / "checkpoints" / "step-000002" / name
    content = path.read_bytes() + b" " * (name == "config.json")  # of which the size is looked at
    path.unlink()
    if fault != "gone":
        path.write_bytes(content[:-10] if fault == "cut" else b"\xff" * len(content))
    assert find_checkpoint(tmp_path).name == "step-000001"
    assert f"step-000002: damaged ({name} " in capsys.readouterr().err


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
        patch.setattr(*owners.get(writer, (os, "fsync")), full)
        assert save(tmp_path, 2, run) is False
    told = "disk full, step 2 is not saved; the last checkpoint: step-000001"
    assert told in capsys.readouterr().err
    assert os.listdir(tmp_path / "checkpoints") == ["step-000001"]
    assert save(tmp_path, 3, run) is True


def test_the_newest_and_the_best_are_kept_and_what_came_after_a_resume_is_not(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step)
        prune(tmp_path, step, 2, min(step, 2))
    assert saved_steps(tmp_path) == [2, 4, 5]
    prune(tmp_path, 4, 2, 2)
    assert saved_steps(tmp_path) == [2, 4]
    prune(tmp_path, -1, 2, None)  # a new run
    assert saved_steps(tmp_path) == []


def test_another_model_or_optimizer_is_refused_in_one_line(tmp_path):
    save(tmp_path, 1)
    frozen, _ = tiny_run()
    frozen.model.norm.requires_grad_(False)
    for run in (tiny_run(width=16), (frozen, build_optimizer(frozen, 1e-3))):
        with pytest.raises(InputError, match="another model's weights, or others are") as caught:
            load_checkpoint(find_checkpoint(tmp_path), *run)
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
