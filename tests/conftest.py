"""What several test files share."""

import pytest
import torch

from lib.families import save_model
from lib.log import run_program
from lib.tiny import tiny_vlm

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def vlm():
    """The tiny model, untrained: it says anything, broken characters included."""
    return tiny_vlm(0)


@pytest.fixture
def folder(vlm, tmp_path):
    """Where that model is saved."""
    save_model(tmp_path / "model", *vlm)
    return tmp_path / "model"


@pytest.fixture
def refused(capsys):
    """refused(main, argv): the one line of error with which a program ends, its code being 2."""

    def run(main, argv: str) -> str:
        with pytest.raises(SystemExit) as stop:
            run_program(main, argv.split())
        *_, error = capsys.readouterr().err.splitlines()
        assert stop.value.code == 2 and error.startswith("error: ")
        return error

    return run
