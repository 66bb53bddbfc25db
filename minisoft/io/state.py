"""The state of a run: saved, found again and checked, so that it goes on bit for bit after any end.

RUN/state/step-000100/  piece-0-of-2.safetensors ...  what every rank holds (see `Optimizer.state`)
                        facts.json                    step, best validation, hashes of the data, ...
                        manifest.json                 size in bytes and SHA-256 of each of these files
It is written under another name, reaches the disk, and is then renamed: what has the name is whole, unless the disk fails.
"""

import fcntl
import hashlib
import os
import shutil
import socket
import sys
from pathlib import Path

import torch
from safetensors import safe_open

from minisoft.errors import InputError
from minisoft.io.atomic import read_json, save_tensors, sync, write_json


def lock(run: Path):
    """Take the folder RUN until this process ends, however it ends; keep what is returned.  Raises InputError where another
    process has it."""
    file = (run / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise InputError(f"{run}: expected a run of this process alone, found another one at work in it: "
                         f"{file.read().strip()}") from None
    except OSError as error:
        print(f"{run}: its file system has no locks ({error.strerror}): start no second process in it", file=sys.stderr)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def digest(path: Path) -> list:
    """[size in bytes, SHA-256] of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            found.update(block)
    return [path.stat().st_size, found.hexdigest()]


def save(folder: Path, step: int, tensors: dict[str, torch.Tensor], pieces: int, facts: dict, world, keep: int) -> None:
    """Write the state after `step` updates, each of the first `pieces` ranks its own tensors; then remove all states but the
    newest `keep`.  To be called by all ranks.  Raises OSError on all of them, the earlier states as before, if one cannot
    write."""
    target = folder / _name(step)
    new = target.with_name(target.name + ".new")

    def begin() -> None:
        if world.main:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            sync(folder.parent)

    def write() -> dict:
        if world.rank >= pieces:
            return {}
        path = new / f"piece-{world.rank}-of-{pieces}.safetensors"
        save_tensors(path, tensors)
        sync(path)
        return {path.name: digest(path)}

    def end(manifest: dict) -> None:
        if world.main:
            write_json(new / "facts.json", {**facts, "step": step, "pieces": pieces})
            write_json(new / "manifest.json", {**manifest, "facts.json": digest(new / "facts.json")})
            shutil.rmtree(target, ignore_errors=True)
            new.rename(target)
            sync(folder)
            _remove_old(folder, step, keep)
    try:
        world.all_or_none(begin)
        parts = world.gather_objects([world.all_or_none(write)])
        world.all_or_none(lambda: end({name: about for part in parts for name, about in part.items()}))
    except OSError:
        if world.main:
            shutil.rmtree(new, ignore_errors=True)  # a full disk gets its room back
        raise


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _saved(folder: Path) -> list[Path]:
    """The states in `folder`, newest first."""
    found = [path for path in folder.glob("step-*") if path.name[5:].isdigit()]
    return sorted(found, key=lambda path: -int(path.name[5:]))


def _remove_old(folder: Path, step: int, keep: int) -> None:
    """After a state has been saved: what is left of later ones (this run went on from an earlier one, so they were damaged)
    and of all but the newest `keep` goes."""
    states = _saved(folder)
    current = states.index(folder / _name(step))
    for path in states[:current] + states[current + keep:]:
        shutil.rmtree(path, ignore_errors=True)


def _problems(path: Path, world) -> list[str]:
    """What is wrong with a state; each rank looks at some of the files."""
    try:
        manifest = read_json(path / "manifest.json", required=True)
    except InputError as error:
        return [str(error)]
    found = [] if "facts.json" in manifest else [f"{path / 'manifest.json'}: expected hashes of all files, found none"]
    for name, expected in list(manifest.items())[world.rank:: world.size]:
        try:
            there = digest(path / name)
        except OSError as error:
            there = error.strerror
        if there != expected:
            found.append(f"{path / name}: expected size and SHA-256 {expected}, found {there}")
    return found


def newest(folder: Path, world) -> "State | None":
    """The newest whole state in a folder; those passed over are named.  None if there never was one; InputError if none is
    whole."""
    paths = world.from_main(lambda: _saved(folder))
    for path in paths:
        problems = world.gather_objects(_problems(path, world))
        if not problems:
            return State(path)
        world.say(f"{problems[0]}; this state is passed over")
    if paths:
        raise InputError(f"{folder}: expected a whole state, found {len(paths)} and none whole: {problems[0]}")
    return None


class State:
    """A saved state: `facts`, and numbers of its tensors, by however many ranks it was saved."""

    def __init__(self, path: Path):
        self.facts = read_json(path / "facts.json", required=True)
        pieces = self.facts["pieces"]
        self.files = [safe_open(path / f"piece-{i}-of-{pieces}.safetensors", framework="pt") for i in range(pieces)]

    def read(self, key: str, first: int, last: int) -> torch.Tensor:
        """Numbers first..last - 1 of the flat tensor of that name."""
        slices = [file.get_slice(key) for file in self.files]
        length = slices[0].get_shape()[0]
        parts = [piece[max(first - i * length, 0): min(last - i * length, length)] for i, piece in enumerate(slices)
                 if first < (i + 1) * length and last > i * length]
        return torch.cat([torch.empty(0), *parts])
