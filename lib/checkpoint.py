"""A run that can't be lost: checkpoints, going on from one, and finding a model that was trained.

A checkpoint is written under a temporary name, flushed, then renamed, and only then are older ones
removed: whatever moment a kill falls on, a whole one exists. state.json lists the other files'
sizes. No random state is kept: what is drawn is keyed by the step, see rollout.py and optim.py.
"""

import json
import os
import shutil
import traceback
from pathlib import Path

import torch
from safetensors import safe_open

from data.example import InputError, say
from data.reading import written_here
from lib.families import NO_CODE, load_vlm, save_model


def save_checkpoint(
    output_dir: str | Path, step: int, model, processor, optimizer, state: dict
) -> bool:
    """Writes `<output_dir>/checkpoints/step-000123`, by the first process alone, if it isn't there;
    False, after a warning, if the disk is full. state: whatever JSON the run needs to go on.
    """
    root = Path(output_dir) / "checkpoints"
    final = root / f"step-{step:06d}"
    temporary = final.with_name(f"{final.name}.tmp-{os.getpid()}")
    if final.is_dir():
        return True
    try:
        temporary.mkdir(parents=True)
        save_model(temporary, model, processor)
        with open(temporary / "optimizer.pt", "wb") as file:  # by path a full disk is no OSError
            torch.save(optimizer.state_dict(), file)
        sizes = {path.name: path.stat().st_size for path in temporary.iterdir()}
        state = {**state, "step": step, "sizes": sizes}
        (temporary / "state.json").write_text(json.dumps(state, indent=1))
        for path in (*temporary.iterdir(), temporary):
            flush(path)
        os.rename(temporary, final)
        flush(root)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not disk_full(error):
            raise
        last = ([folder.name for folder in step_folders(root)] or ["none"])[-1]
        say(f"warning: {root}: disk full, step {step} is not saved; the last checkpoint: {last}")
        return False
    return True


def prune(output_dir: str | Path, step: int, newest: int, best: int | None) -> None:
    """Removes all checkpoints but the newest ones up to `step` and the best; and torn ones."""
    root = Path(output_dir) / "checkpoints"
    known = [folder for folder in step_folders(root) if step_of(folder) <= step]
    kept = known[-newest:] + [folder for folder in known if step_of(folder) == best]
    for folder in {*root.glob("step-*")} - {*kept}:
        shutil.rmtree(folder)


def check_room(output_dir: str | Path, model, count: int, force: bool = False) -> None:
    """InputError, unless forced, where the disk has no room for so many checkpoints of a model,
    which may be without weights. Those that are there count as room: they give way to new ones.
    """
    # a trained weight has AdamW's two states beside it
    needed = count * sum(p.nbytes * (1 + 2 * p.requires_grad) for p in model.parameters())
    held = sum(file.stat().st_size for file in Path(output_dir).glob("**/checkpoints/*/*"))
    free = shutil.disk_usage(output_dir).free + held
    if free < needed and not force:
        told = f"{needed / 2**30:.2f} GiB are needed for {count} checkpoints, {free / 2**30:.2f}"
        raise InputError(f"--output_dir {output_dir}: {told} free; free some, or try --force")


def flush(path: Path) -> None:
    """Until a file, and the folder that names it, are flushed, a power cut can lose either."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def disk_full(error: BaseException) -> bool:
    """safetensors has no error number to look at, and torch hides the OSError in the context."""
    told = "".join(traceback.format_exception(error))
    return "No space left" in told or "quota exceeded" in told


def step_of(folder: Path) -> int:
    """The step of a checkpoint's folder, by its name."""
    return int(folder.name.removeprefix("step-"))


def step_folders(root: Path) -> list[Path]:
    """The checkpoints under `root`, oldest first."""
    found = [folder for folder in root.glob("step-*") if folder.name[5:].isdigit()]
    return sorted(found, key=step_of)


def find_checkpoint(output_dir: str | Path) -> Path | None:
    """A run's newest whole checkpoint, or None; what isn't whole is passed over with a warning."""
    for folder in reversed(step_folders(Path(output_dir) / "checkpoints")):
        name = "state.json"
        try:
            for name, size in read_json(folder / name)["sizes"].items():
                if (found := (folder / name).stat().st_size) != size:
                    raise EOFError(f"it has {found} bytes, not {size}")
                if name.endswith(".safetensors"):
                    safe_open(folder / name, "pt")
            name = "optimizer.pt"
            torch.load(folder / name, map_location="cpu", weights_only=True, mmap=True)
            return folder
        except Exception as error:  # a reader of a broken file raises what it likes
            told = f"damaged ({name} can't be read: {error!r})"
            say(f"warning: {folder}: {told}; trying the checkpoint before it")
    return None


def read_json(path: Path):
    """What a JSON file of this project's holds. InputError where it can't be one."""
    with written_here(path):
        return json.loads(path.read_text(encoding="utf-8"))


def load_checkpoint(path: str | Path, model, optimizer) -> None:
    """Puts a checkpoint into `model`, in place, and `optimizer`. No file is unpickled as code.
    InputError if it is another model's, or of other trained weights.
    """
    # The files have the hub's names, so the class itself reads them; bf16 fits into fp32 exactly.
    mixed = len({param.dtype for param in model.parameters()}) > 1
    how = dict(dtype=torch.float32 if mixed else model.dtype, output_loading_info=True, **NO_CODE)
    state = torch.load(Path(path) / "optimizer.pt", map_location="cpu", weights_only=True)
    try:
        saved, info = type(model).from_pretrained(path, **how)
        if info["missing_keys"]:
            raise ValueError(f"it has no {min(info['missing_keys'])}")
        model.load_state_dict(saved.state_dict())
        optimizer.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        told = "holds another model's weights, or others are trained"
        raise InputError(f"{path}: {told}; {error!r}") from None


def find_model(ckpt: str) -> tuple[str, dict]:
    """What to load for --ckpt, and the flags it was trained with ({} for a hub name)."""
    folder = Path(ckpt)
    maybe_hub = len(folder.parts) == 2 and folder.parts[0] not in ("out", ".", "..", "/")
    if maybe_hub and not folder.is_dir():
        return ckpt, {}
    if not (folder / "config.json").is_file():
        folder = find_checkpoint(folder)  # of a run that hasn't ended: its newest
    if folder is None:
        told = "no such folder, or it holds no model and no complete checkpoint"
        raise InputError(f"--ckpt {ckpt}: {told}; give a run's folder or a hub name (org/name)")
    for path in (folder / "result.json", folder / "state.json"):
        if path.is_file():
            with written_here(path):
                return str(folder), dict(read_json(path)["config"])
    return str(folder), {}


def load(model: str):
    """A model, ready to be asked, and its processor; in bf16 on a GPU."""
    if torch.cuda.is_available():
        return load_vlm(model, dtype=torch.bfloat16, device="cuda")
    return load_vlm(model)
