"""A run that can't be lost: checkpoints and resuming.

A folder is written under a temporary name, flushed to the disk, then renamed, and
only then are older ones removed: whatever moment a kill falls on, a complete one exists. A
manifest of sizes and checksums tells a complete folder from a damaged one.
"""

import errno
import json
import os
import random
import re
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
import torch

from data import InputError

STEP_FOLDER = re.compile(r"step-(\d{6,})")


def save_checkpoint(
    output_dir,
    step: int,
    model,
    processor,
    optimizer,
    state: dict,
    *,
    save_total_limit: int | None = None,
    best: bool = False,
) -> bool:
    """Writes `<output_dir>/checkpoints/step-000123`; False, after a warning, if the disk is full.

    state: whatever JSON the run needs to go on (config, data position, metrics position, ...).
    best: this step is the best so far; `best.json` then names it and pruning spares it.
    save_total_limit: how many of the newest are kept besides; None or 0 keeps all.
    Only the first process calls this. What is already there, whole, isn't written again.
    """
    root = Path(output_dir) / "checkpoints"
    final = root / f"step-{step:06d}"
    temporary = final.with_name(f"{final.name}.tmp-{os.getpid()}")
    state = json.loads(json.dumps({**state, "step": step}))  # as it will be read
    try:
        if damage(final) or read_state(final) != state:
            temporary.mkdir(parents=True)
            write_files(temporary, model, processor, optimizer, state)
            remove(final)  # mostly nothing is there; else it is damaged, or another run's
            os.rename(temporary, final)
            flush(root)
        if best:
            name_best(output_dir, step)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        (root / f"best.json.tmp-{os.getpid()}").unlink(missing_ok=True)
        if not disk_full(error):
            raise
        kept = [folder.name for folder in step_folders(root)[-1:]] or ["none"]
        warn(f"{root}: disk full, step {step} is not saved; the last checkpoint: {kept[0]}")
        return False
    spared = best_checkpoint(output_dir)
    for folder in step_folders(root)[:-save_total_limit] if save_total_limit else []:
        if folder != spared:
            remove(folder)
    return True


def name_best(output_dir, step: int):
    """
    Lets `best.json` name a step's checkpoint, if there is one: the best by validation, which
    pruning spares.
    """
    root = Path(output_dir) / "checkpoints"
    folder = root / f"step-{step:06d}"
    pointer = root / f"best.json.tmp-{os.getpid()}"
    if folder.is_dir():
        write_json(pointer, {"folder": folder.name})
        flush(pointer)
        os.rename(pointer, root / "best.json")
        flush(root)


def write_files(folder: Path, model, processor, optimizer, state: dict):
    """All files of a checkpoint, flushed to the disk; the manifest comes last."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for name, content in (("optimizer.pt", optimizer.state_dict()), ("rng.pt", rng_state())):
        # An open file instead of a path: torch then reports a full disk as the OSError that it is.
        with open(folder / name, "wb") as file:
            torch.save(content, file)
    write_json(folder / "state.json", state)
    manifest = {}
    for path in sorted(folder.rglob("*")):
        flush(path)
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            manifest[name] = [path.stat().st_size, checksum(path)]
    write_json(folder / "complete.json", manifest)
    flush(folder / "complete.json")
    flush(folder)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None for a complete one."""
    try:
        manifest = json.loads((folder / "complete.json").read_text())
        for name, (size, crc) in manifest.items():
            path = folder / name
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes, not {size}"
            if checksum(path) != crc:
                return f"{name} has another checksum"
    except FileNotFoundError as error:
        return f"{os.path.basename(error.filename)} is missing"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"complete.json or a file it names can't be read: {error}"
    return None


def find_checkpoint(path) -> Path | None:
    """The newest complete checkpoint of a run's output folder; or `path` itself if it is one.

    A damaged one is named in a warning, and the one before it is taken; None if there is none.
    Raises InputError when the one checkpoint that was asked for is damaged.
    """
    path = Path(path)
    if STEP_FOLDER.fullmatch(path.name) or (path / "complete.json").exists():
        if fault := damage(path):
            raise InputError(f"--resume {path}: damaged ({fault}); give the run's folder instead")
        return path
    for folder in reversed(step_folders(path / "checkpoints")):
        fault = damage(folder)
        if not fault:
            return folder
        warn(f"{folder}: damaged ({fault}); trying the checkpoint before it")
    return None


def best_checkpoint(output_dir) -> Path | None:
    """The checkpoint that `best.json` names, if it is there."""
    root = Path(output_dir) / "checkpoints"
    try:
        name = json.loads((root / "best.json").read_text())["folder"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return next((folder for folder in step_folders(root) if folder.name == name), None)


def clean_checkpoints(output_dir, step: int):
    """At a run's start: removes what a kill left half written, and what lies after `step`.

    step: where the run starts, 0 for a new one. From there it takes its own way; checkpoints
    further along the old way would be what the next resume finds. Only the first process calls.
    """
    root = Path(output_dir) / "checkpoints"
    for leftover in root.glob("*.tmp-*"):
        leftover.unlink() if leftover.is_file() else shutil.rmtree(leftover)
    for folder in step_folders(root):
        if int(STEP_FOLDER.fullmatch(folder.name)[1]) > step:
            remove(folder)


def load_checkpoint(path, model, optimizer=None) -> dict:
    """Puts a checkpoint into `model`, `optimizer` and the random generators; returns its state.

    Everything a process draws is either keyed by (seed, step, prompt, g) or the same in all of
    them, so the first process's generators stand for all. No file is unpickled as code.
    Raises InputError if the checkpoint is another model's or another optimizer's.
    """
    path = Path(path)
    load_weights(path, model)
    if optimizer is not None:
        content = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
        if content.keys() != optimizer.state_dict().keys():
            raise InputError(f"{path}: saved with another --optim; resume with the same one")
        try:
            optimizer.load_state_dict(content)
        except ValueError as error:
            raise InputError(f"{path}: other weights were trained ({error})") from None
    set_rng_state(torch.load(path / "rng.pt", weights_only=True))
    return read_state(path)


def read_state(path: Path) -> dict:
    return json.loads((path / "state.json").read_text())


@torch.no_grad()
def load_weights(path: Path, model):
    """Copies the weights in place, so that an optimizer built on `model` stays valid."""
    kind = json.loads((path / "config.json").read_text()).get("model_type")
    if kind != model.config.model_type:
        raise InputError(f"{path}: holds a {kind} model, not a {model.config.model_type}")
    # The files have the hub's names, which differ from the module's in many families, so the
    # class itself reads them. fp32 holds bf16 and fp16 exactly, so a mix of types is safe in it.
    dtypes = {param.dtype for param in model.parameters()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    saved, info = type(model).from_pretrained(path, dtype=dtype, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise InputError(f"{path}: has no {missing[0]} ({len(missing)} tensors are missing)")
    source = saved.state_dict()
    for name, tensor in model.state_dict().items():
        if name not in source or source[name].shape != tensor.shape:
            raise InputError(f"{path}: {name} has not the shape {tuple(tensor.shape)} of --model")
        tensor.copy_(source[name])


def rng_state() -> dict:
    """The states of all global generators, as tensors and plain values."""
    kind, keys, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    numpy_state = (kind, keys.tolist(), *rest)
    torch_state = torch.get_rng_state()
    return dict(python=random.getstate(), numpy=numpy_state, torch=torch_state, cuda=cuda)


def set_rng_state(state: dict):
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def cut_metrics(path, position: int):
    """Cuts a log back to `position` bytes, so that no step stands in it twice."""
    if os.path.exists(path) and os.path.getsize(path) > position:
        os.truncate(path, position)


def changed_flags(old: dict, new: dict, ignore=()) -> list[str]:
    """One line for each flag that the resumed run has otherwise than the saved one."""
    new = json.loads(json.dumps(new))  # as the saved ones: lists for tuples
    return [
        f"--{name}: was {old.get(name)!r}, is now {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if name not in ignore and old.get(name) != new.get(name)
    ]


def step_folders(root: Path) -> list[Path]:
    """The checkpoints under `root`, oldest first."""
    found = [path for path in root.glob("step-*") if STEP_FOLDER.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def remove(folder: Path):
    """Renamed first: a kill in between then leaves a leftover, not a damaged checkpoint."""
    if folder.exists():
        leftover = folder.with_name(f"{folder.name}.tmp-{os.getpid()}-old")
        os.rename(folder, leftover)
        shutil.rmtree(leftover)


def write_json(path: Path, content):
    path.write_text(json.dumps(content, indent=1))


def flush(path: Path):
    """Until a file, and the folder that names it, are flushed, a power cut can lose either."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def checksum(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(2**22):
            crc = zlib.crc32(block, crc)
    return crc


def disk_full(error: BaseException | None) -> bool:
    """safetensors has no error number to look at, and torch hides the OSError in the context."""
    while error is not None:
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def warn(text: str):
    print(f"warning: {text}", file=sys.stderr, flush=True)
