"""The tiny model's base: shipped, made anew, resumed."""

import contextlib
import re

import pytest
import torch

from config import parse
from curr_reft import read_flags
from lib import tiny
from lib.families import load_vlm
from load import load_model
from tools.ship import FEW, read


@pytest.mark.parametrize("name", tiny.SHIPPED.values())
def test_a_shipped_base_is_as_right_as_its_card_says(name):
    card = (tiny.ASSETS / name / "README.md").read_text()
    right, few = map(int, re.search(r"right on (\d+) of the first (\d+) questions", card).groups())
    found = FEW * read(name, FEW)["accuracy"]
    assert few == FEW and abs(found - right) <= 1  # another CPU may turn a close one round


@pytest.mark.parametrize("name", tiny.SHIPPED.values())
def test_a_shipped_base_has_the_model_and_the_words_of_today(name):
    shipped, processor = load_vlm(str(tiny.ASSETS / name))
    model, today = tiny.tiny_vlm()
    assert processor.tokenizer.get_vocab() == today.tokenizer.get_vocab()
    shapes = [{n: p.shape for n, p in m.named_parameters()} for m in (shipped, model)]
    assert shapes[0] == shapes[1]


def test_the_programs_start_from_the_shipped_bases():
    for config, name in ((parse([]), "tiny-base"), (read_flags([]), "tiny-base-curr")):
        model, _ = load_model(config, torch.device("cpu"))
        assert model.name_or_path == str(tiny.ASSETS / name)


@pytest.mark.parametrize("tasks", [("chart",), ("chart", "detection", "judge")])
def test_a_base_that_was_killed_goes_on_to_the_same_weights(tmp_path, monkeypatch, tasks):
    def killed(path, content):
        save(path, content)
        raise KeyboardInterrupt

    save = tiny.write_whole
    monkeypatch.setattr(tiny, "LOG_STEPS", 2)
    asked = dict(base_steps=5, base_seed=1, base_tasks=tasks, base_task_steps=5)
    whole = tiny.base_folder(**asked, folder=tmp_path / "whole")
    for writer in [killed] * 4 + [save]:
        monkeypatch.setattr(tiny, "write_whole", writer)
        with contextlib.suppress(KeyboardInterrupt):
            made = tiny.base_folder(**asked, folder=tmp_path / "killed")
    files = ("model.safetensors", "losses.json")
    assert all((made / f).read_bytes() == (whole / f).read_bytes() for f in files)
    assert not list((tmp_path / "killed").glob("*.state"))
    assert tiny.base_folder(**asked, folder=tmp_path / "killed") == made  # found, not made again
