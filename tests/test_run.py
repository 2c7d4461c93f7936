"""What is said of the flags, and what a person sees while a run goes on."""

import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

from config import parse
from curr_reft import read_flags
from curr_reft import run as curr_reft_main
from data.example import InputError
from dyme import rows_loss
from lib.groups import token_pushes, told_response
from lib.log import open_tracker, progress
from model import pad_rows
from rollout import Group, Response, Row
from run import step_examples
from train import main as train_main

IDLE = {  # typed for a single run, each would be ignored
    "--reward_weights 1 1 1": "--method sft",
    "--method_args weight=1": "--method grpo",
    "--refiner off": "--method grpo",
    "--judge_model m": "",
    "--judge_url http://localhost/v1": "--method sft --refiner off",
    "--epsilon_high 0.1": "",
    "--num_train_epochs 2": "--dataset chartqa --max_steps 10",
    "--trace_noise 0.2": "--dataset chartqa --refiner off",
    "--traces a.jsonl": "--dataset chartqa",
    "--data_dir x": "",
    "--max_pixels 9": "--dataset gsm8k",
    "--base_steps 9": "--dataset chartqa",
    "--dtype bf16": "",
}


@pytest.mark.parametrize("flag", IDLE)
def test_a_flag_without_effect_is_an_error_but_behind_two_dashes(flag):
    with pytest.raises(InputError, match=f"{flag.split()[0]}: has an effect only"):
        parse([*flag.split(), *IDLE[flag].split()])
    parse([*IDLE[flag].split(), "--", *flag.split()])


@pytest.mark.parametrize(
    "flags", ["--mix_share 0.5 --stages open", "--max_steps 9 --stages reject", "--refiner off"]
)
def test_curr_refts_flags_without_effect_are_errors_too(flags):
    with pytest.raises(InputError, match="has an effect only"):
        read_flags(flags.split())


def test_without_a_terminal_progress_is_lines(capsys):
    bar = progress(range(3), "stage", unit="step")
    bar.mininterval = bar.delay = 0
    assert list(bar) == [0, 1, 2]
    said = capsys.readouterr().err
    assert "\r" not in said and len(said.splitlines()) >= 3
    assert all(line.startswith("stage: ") for line in said.splitlines())


def test_a_steps_examples_are_those_of_a_shuffle_per_epoch():
    config = parse("--prompts_per_step 5 --seed 3".split())
    seen = [place for step in range(4) for place in step_examples(range(10), config, step)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)) and seen[:10] != seen[10:]


def test_a_dry_run_shows_prompt_target_and_rewards_and_keeps_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        train_main(["--dry_run", "--prompts_per_step", "2", "--max_completion_length", "8"])
    said = capsys.readouterr().out
    assert end.value.code == 0 and not list(tmp_path.iterdir())
    assert "<image> x 36Think step by step" in said and "Answer: black" in said
    assert "'format': 1.0, 'accuracy': 1.0, 'thinking': 1.0" in said
    assert "the first step took" in said and "nothing was kept" in said


def no_weights(*_, **__):
    raise AssertionError("weights were loaded")


@pytest.mark.parametrize("program", [train_main, curr_reft_main])
@pytest.mark.parametrize(
    "flags, told",
    [
        ("--dataset none.jsonl --model tiny", "none.jsonl: "),
        ("--final_splits other", "charts has no split other"),
        ("--reward none.py", "--reward"),
        ("--judge_url http://127.0.0.1:9/v1 --judge_model m", "doesn't answer the first question"),
        ("--max_completion_length 9999999", "GiB of memory"),
        ("--output_dir full", "--output_dir full: .* GiB are needed for"),
        ("--output_dir /proc/none", "--output_dir /proc/none: can't be written to"),
    ],
)
def test_what_is_wrong_is_found_before_any_weights_are_loaded(
    program, flags, told, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("load.load_vlm", no_weights)
    monkeypatch.setattr("lib.chat.time.sleep", lambda seconds: None)
    if "full" in flags:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(InputError, match=told) as error:
        program(flags.split())
    assert "\n" not in str(error.value)


def test_a_tokens_push_is_minus_the_gradient_at_its_logit():
    config = parse(["--num_generations", "4"])
    rows = [Row([3, 1, 4], -0.7), Row([1, 5], 1.0, "sft", lambda p: p * (1 - p))]
    ids = torch.tensor([token for row in rows for token in row.token_ids])
    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    flat = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
    loss, _ = rows_loss(rows, *pad_rows(flat, [3, 2]), 4, config)
    loss.backward()
    tokenizer = SimpleNamespace(decode=lambda ids: "".join(f" {token}" for token in ids))
    found = [push for row in rows for push in token_pushes(row, config, tokenizer)]
    assert [text for text, _ in found] == [" 3", " 1", " 4", " 1", " 5"]
    gradient = logits.grad.gather(1, ids[:, None])[:, 0]
    assert [push for _, push in found] == pytest.approx((-1000 * gradient).tolist(), abs=1e-3)


def test_a_response_on_the_terminal_is_three_lines_and_cannot_act():
    responses = [Response([], "one\x1b[2J\rtwo\n\u202eAnswer: x" + "y" * 400, False)]
    rewards = {"accuracy": torch.ones(1)}
    example = SimpleNamespace(question="Which?\nA. x")
    said = told_response(7, Group(0, example, None, responses, rewards), "explore").split("\n")
    assert said[0] == "step 7, explore: Which? / A. x" and said[2] == "  accuracy 1.00"
    assert said[1].startswith("  one\\x1b[2J\\rtwo / \\u202eAnswer: xy") and len(said[1]) < 310


def test_tensorboard_has_the_names_of_metrics_jsonl_and_no_step_twice_after_resume(tmp_path):
    reading = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="pip install tensorboard"
    )
    for first, reward in ((0, 0.25), (2, 0.75)):  # stopped in step 3, gone on from step 2
        track = open_tracker("tensorboard", str(tmp_path), {}, first)
        for step in range(first, 4):
            track(step, {"rewards/accuracy/mean": reward})
    events = reading.EventAccumulator(str(tmp_path)).Reload()
    found = [(event.step, event.value) for event in events.Scalars("rewards/accuracy/mean")]
    assert found == [(0, 0.25), (1, 0.25), (2, 0.75), (3, 0.75)]


def test_wandb_and_trackio_get_the_scalars_too_and_what_is_missing_is_said(monkeypatch):
    heard = []

    def init(project, name, config):
        heard.append((name, config))
        return SimpleNamespace(log=lambda scalars, step: heard.append((step, scalars)))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    open_tracker("wandb", "out/x", {"seed": 0}, 5)(5, {"reward": 1.0})
    assert heard == [("out/x, from step 5", {"seed": 0}), (5, {"reward": 1.0})]
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(InputError, match="--report_to trackio: .* pip install trackio"):
        open_tracker("trackio", "out/x", {}, 0)
