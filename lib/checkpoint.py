"""A run that can't be lost: checkpoints, and going on from one.

A checkpoint is written under a temporary name, flushed to the disk, then renamed, and only then are
older ones removed: whatever moment a kill falls on, a whole one exists. state.json comes last and
lists the sizes of the other files, so a folder without it, or with other sizes, isn't whole.
No random state is kept: what is drawn is keyed by (seed, step, place), see rollout.py, or has a
generator of its own in the optimizer's state.
"""

import errno
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import safe_open

from data.example import InputError, say
from data.reading import write_whole, written_here
from lib.families import NO_CODE, one_line, save_model


# ---- writing ------------------------------------------------------------------------------------


def save_checkpoint(
    output_dir: str | Path,
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

    state: whatever JSON the run needs to go on (config, positions in the logs, ...). best: the
    best step so far, which pruning spares. save_total_limit: how many of the newest are kept
    besides; None or 0 keeps all. Only the first process calls this.
    """
    root = Path(output_dir) / "checkpoints"
    final = root / f"step-{step:06d}"
    temporary = root / f"{final.name}.tmp-{os.getpid()}"
    state = json.loads(json.dumps({**state, "step": step}))  # as it will be read
    try:
        if not final.is_dir() or read_state(final) != state:
            temporary.mkdir(parents=True)
            write_files(temporary, model, processor, optimizer, state)
            shutil.rmtree(final, ignore_errors=True)  # of a run that took another way
            os.rename(temporary, final)
            flush(root)
        if best:
            name_best(output_dir, step)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not disk_full(error):
            raise
        kept = [folder.name for folder in step_folders(root)] or ["none"]
        say(
            f"warning: {root}: disk full, step {step} is not saved; the last checkpoint: {kept[-1]}"
        )
        return False
    for folder in step_folders(root)[:-save_total_limit] if save_total_limit else []:
        if folder != best_checkpoint(output_dir):
            shutil.rmtree(folder)
    return True


def write_files(folder: Path, model, processor, optimizer, state: dict) -> None:
    """All files of a checkpoint, flushed to the disk; state.json comes last."""
    save_model(folder, model, processor)
    with open(folder / "optimizer.pt", "wb") as file:  # a path would hide a full disk's OSError
        torch.save(optimizer.state_dict(), file)
    sizes = {}
    for path in folder.iterdir():
        flush(path)
        sizes[path.name] = path.stat().st_size
    write_whole(folder / "state.json", json.dumps({**state, "sizes": sizes}, indent=1))
    flush(folder)


def check_room(output_dir: str | Path, model, count: int, force: bool = False) -> None:
    """InputError, unless forced, where the disk has no room for so many checkpoints of a model,
    which may be without weights. Those that are there count as room: they give way to new ones.
    """
    copies = {True: 3, False: 1}  # a trained weight has AdamW's two states beside it
    sizes = [p.numel() * p.element_size() * copies[p.requires_grad] for p in model.parameters()]
    held = sum(file.stat().st_size for file in Path(output_dir).glob("**/checkpoints/*/*"))
    free, needed = shutil.disk_usage(output_dir).free + held, count * sum(sizes)
    if free < needed and not force:
        told = (
            f"{needed / 2**30:.2f} GiB are needed for {count} checkpoints, {free / 2**30:.2f} free"
        )
        raise InputError(f"--output_dir {output_dir}: {told}; free some, or try it with --force")


def name_best(output_dir: str | Path, step: int) -> None:
    """Lets `best.json` name a step's checkpoint, if there is one: the best by validation."""
    folder = Path(output_dir) / "checkpoints" / f"step-{step:06d}"
    if folder.is_dir():
        write_whole(folder.with_name("best.json"), json.dumps({"folder": folder.name}))


def clean_checkpoints(output_dir: str | Path, step: int) -> None:
    """At a run's start, by the first process: removes what a kill left half written, and what is
    further than `step`, where it starts: from there it takes its own way.
    """
    root = Path(output_dir) / "checkpoints"
    for leftover in root.glob("*.tmp-*"):
        leftover.unlink() if leftover.is_file() else shutil.rmtree(leftover)
    for folder in step_folders(root):
        if int(folder.name[5:]) > step:
            shutil.rmtree(folder)


def flush(path: Path) -> None:
    """Until a file, and the folder that names it, are flushed, a power cut can lose either."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def disk_full(error: BaseException | None) -> bool:
    """safetensors has no error number to look at, and torch hides the OSError in the context."""
    while error is not None:
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


# ---- finding and loading ------------------------------------------------------------------------


def find_checkpoint(path: str | Path) -> Path | None:
    """The newest whole checkpoint of a run's output folder, None without one; or `path` itself if
    it is one. What isn't whole is passed over with a warning.

    InputError where the one that was asked for is damaged, or of the older layout.
    """
    path = Path(path)
    if path.parent.name == "checkpoints" or (path / "state.json").exists():
        if fault := damage(path):
            raise InputError(f"--resume {path}: damaged ({fault}); give the run's folder instead")
        return path
    for folder in reversed(step_folders(path / "checkpoints")):
        if not (fault := damage(folder)):
            return folder
        say(f"warning: {folder}: damaged ({fault}); trying the checkpoint before it")
    return None


def damage(folder: Path) -> str | None:
    """Why a checkpoint can't be loaded, in a few words; None for a whole one. InputError for one
    that an older version of this code wrote.
    """
    if (folder / "complete.json").exists():
        way_out = "go on with that version, or start anew"
        raise InputError(f"--resume: {folder} is of an older version's layout; {way_out}")
    name = "state.json"
    try:
        for name, size in read_json(folder / name)["sizes"].items():
            if (found := (folder / name).stat().st_size) != size:
                return f"{name} has {found} bytes, not {size}"
            if name.endswith(".safetensors"):
                safe_open(folder / name, "pt")
        name = "optimizer.pt"
        torch.load(folder / name, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        return f"{name} is missing"
    except Exception as error:  # a reader of a broken file raises what it likes
        return f"{name} can't be read: {one_line(error)}"
    return None


def best_checkpoint(output_dir: str | Path) -> Path | None:
    """The checkpoint that `best.json` names, if it is there."""
    pointer = Path(output_dir) / "checkpoints" / "best.json"
    if not pointer.exists():
        return None
    with written_here(pointer):
        folder = pointer.with_name(read_json(pointer)["folder"])
    return folder if folder.is_dir() else None


def step_folders(root: Path) -> list[Path]:
    """The checkpoints under `root`, oldest first."""
    found = [folder for folder in root.glob("step-*") if folder.name[5:].isdigit()]
    return sorted(found, key=lambda folder: int(folder.name[5:]))


def load_checkpoint(path: str | Path, model, optimizer=None) -> dict:
    """Puts a checkpoint into `model` and `optimizer`; returns the state it was saved with.

    No file is unpickled as code. InputError if the checkpoint is another model's or another
    optimizer's.
    """
    path = Path(path)
    load_weights(path, model)
    if optimizer is not None:
        content = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
        if content.keys() != optimizer.state_dict().keys():
            raise InputError(f"{path}: saved with another --dtype; resume with the same one")
        try:
            optimizer.load_state_dict(content)
        except ValueError as error:
            raise InputError(f"{path}: other weights were trained ({error})") from None
    return read_state(path)


def load_weights(path: Path, model) -> None:
    """Copies the weights in place, so that an optimizer built on `model` stays valid."""
    kind = read_json(path / "config.json").get("model_type")
    if kind != model.config.model_type:
        raise InputError(f"{path}: holds a {kind} model, not a {model.config.model_type}")
    # The files have the hub's names, so the class itself reads them; bf16 fits into fp32 exactly.
    mixed = len({param.dtype for param in model.parameters()}) > 1
    knobs = dict(dtype=torch.float32 if mixed else model.dtype, output_loading_info=True)
    saved, info = type(model).from_pretrained(path, **knobs, **NO_CODE)
    if missing := sorted(info["missing_keys"]):
        raise InputError(f"{path}: has no {missing[0]} ({len(missing)} tensors are missing)")
    try:
        model.load_state_dict(saved.state_dict())
    except RuntimeError as error:
        raise InputError(f"{path}: has not the shapes of --model; {one_line(error)}") from None


def read_state(folder: Path) -> dict:
    """What save_checkpoint was given as `state`, and the step."""
    return {k: v for k, v in read_json(folder / "state.json").items() if k != "sizes"}


def read_json(path: Path):
    """What a JSON file of this project's holds. InputError where it can't be one."""
    with written_here(path):
        return json.loads(path.read_text(encoding="utf-8"))


def changed_flags(old: dict, new: dict, ignore=()) -> list[str]:
    """One line for each flag that the resumed run has otherwise than the saved one."""
    new = json.loads(json.dumps(new))  # as the saved ones: lists for tuples
    return [
        f"--{name}: was {old.get(name)!r}, is now {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if name not in ignore and old.get(name) != new.get(name)
    ]
