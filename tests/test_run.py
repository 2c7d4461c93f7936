"""What is said of the flags, and what a person sees while a run goes on."""

import pytest
import torch

from config import parse
from curr_reft import read_flags
from data.example import InputError
from lib.log import progress
from run import step_examples
from train import main as train_main

IDLE = {  # typed for a single run, each would be ignored
    "--reward_weights 1 1 1": "--method sft",
    "--reward mine.py": "--method sft",
    "--num_generations 4": "--method sft",
    "--beta 0.1": "--method sft",
    "--method_args weight=1": "--method grpo",
    "--sft_share 0.2": "--method dyme",
    "--refiner off": "--method grpo",
    "--judge_model m": "",
    "--judge_optional": "",
    "--judge_url http://localhost/v1": "--method sft --refiner off",
    "--epsilon_low 0.1": "",
    "--epsilon_high 0.1": "--num_iterations 2 --method sft",
    "--num_train_epochs 1": "",
    "--num_train_epochs 2": "--dataset chartqa --max_steps 10",
    "--questions all": "--dataset gsm8k",
    "--trace_noise 0.1": "",
    "--trace_noise 0.2": "--dataset chartqa --refiner off",
    "--traces a.jsonl": "--dataset chartqa",
    "--data_dir x": "",
    "--skip_bad_rows": "",
    "--max_pixels 9": "--dataset gsm8k",
    "--base_steps 9": "--dataset chartqa",
    "--base_seed 1": "--model org/name",
    "--dtype bf16": "",
}


@pytest.mark.parametrize("flag", IDLE)
def test_a_flag_without_effect_is_an_error_but_behind_two_dashes(flag):
    with pytest.raises(InputError, match=f"{flag.split()[0]}: has an effect only"):
        parse([*flag.split(), *IDLE[flag].split()])
    parse([*IDLE[flag].split(), "--", *flag.split()])


@pytest.mark.parametrize(
    "flags",
    [
        "--mix_share 0.5 --stages open",
        "--max_steps 9 --stages reject",
        "--refiner off",
        "--mix_share 0.5 --dataset chartqa",
    ],
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
    generator = torch.Generator().manual_seed(3 * 1_000_003 + 1)
    assert seen[10:] == torch.randperm(10, generator=generator).tolist()


def test_a_dry_run_shows_prompt_target_and_rewards_and_keeps_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        train_main(["--dry_run", "--prompts_per_step", "2", "--max_completion_length", "8"])
    said = capsys.readouterr().out
    assert end.value.code == 0 and not list(tmp_path.iterdir())
    assert "<image> x 36Think step by step" in said and "Answer: black" in said
    assert "'format': 1.0, 'accuracy': 1.0, 'thinking': 1.0" in said
    assert "the first step took" in said and "nothing was kept" in said
