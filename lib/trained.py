"""A trained model, found by what a person has of it: a run's folder, a checkpoint, a hub name."""

from pathlib import Path

import torch

from data.example import InputError
from data.reading import written_here
from lib.checkpoint import find_checkpoint, read_json
from lib.families import load_vlm


# the flags of training that an evaluation uses
USED = {"dataset": str, "data_dir": str, "max_completion_length": int, "max_pixels": int}
USED |= {"tolerance": float | int}


def find_model(ckpt: str) -> tuple[str, dict]:
    """What to load for --ckpt, and the flags it was trained with ({} for a hub name)."""
    folder = Path(ckpt)
    if not folder.is_dir():
        if len(folder.parts) == 2 and folder.parts[0] not in ("out", ".", "..", "/"):
            return ckpt, {}
        told = "no such folder; give a run's folder, a checkpoint or a hub name (org/name)"
        raise InputError(f"--ckpt {ckpt}: {told}")
    if not (folder / "config.json").is_file():
        folder = find_checkpoint(folder)  # of a run that hasn't ended: its newest
    if folder is None:
        raise InputError(f"--ckpt {ckpt}: holds no model and no complete checkpoint")
    paths = [path for path in (folder / "result.json", folder / "state.json") if path.is_file()]
    if not paths:
        return str(folder), {}
    with written_here(paths[0]):
        config = dict(read_json(paths[0])["config"])
        if not all(isinstance(config.get(name), USED[name] | None) for name in USED):
            raise TypeError
    return str(folder), config


def load(model: str):
    """A model, ready to be asked, and its processor; in bf16 on a GPU."""
    on_gpu = torch.cuda.is_available()
    dtype, device = (torch.bfloat16, "cuda") if on_gpu else (torch.float32, "cpu")
    loaded, processor = load_vlm(model, dtype=dtype, device=device)
    return loaded.eval(), processor
