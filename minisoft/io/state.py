"""The state of a run: saved, found again and checked, so that it goes on bit for bit after any end.

RUN/state/step-000100/  piece-0-of-2.safetensors ...  what every rank holds (see `Optimizer.state`)
                        facts.json                    step, best validation, hashes of data, ...
                        manifest.json                 size and SHA-256 of each of these files
It is written under another name, reaches the disk, and is then renamed: what has the name is whole,
unless the disk fails.
"""

import fcntl
import hashlib
import os
import shutil
import socket
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open

from minisoft.errors import InputError, expect
from minisoft.io.atomic import NEW, read_json, save_tensors, sync, write_json, writing

MARK, VERSION = "minisoft_run", 1  # a field of RUN/config.json, and what it holds


def read_config(run: Path) -> dict:
    """RUN/config.json.  Raises InputError, which says what a folder is that is no run."""
    config = read_json(run / "config.json")
    if config.get(MARK) == VERSION:
        return config
    found = f"a config.json without {MARK} {VERSION}" if config else "no config.json"
    for above in Path(os.path.abspath(run)).parents[:2]:
        with suppress(InputError):  # of what another program has there
            if MARK in read_json(above / "config.json"):
                found = f"a part of one; give --out {above}"
    raise InputError(f"{run}: --resume: expected a run to go on with, found {found}")


def lock(path: Path):
    """Take the file `path` until this process ends; keep what is returned.  Raises InputError where
    another process has it, or where it is a file of something else."""
    file = path.open("a+", errors="replace")
    file.seek(0)
    holder = file.read(200).strip()
    ours = not holder or holder.startswith("process ")
    expect(ours, path, "no such file, or the lock of an earlier process", holder)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{path}: expected no other process at work, found {holder}") from None
    except OSError as error:
        warning = f"its file system has no locks ({error.strerror}): start no second process in it"
        print(f"{path}: {warning}", file=sys.stderr)
    if not (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
        return lock(path)  # the process that had it has just removed it
    with writing(path):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    return file


def digest(path: Path) -> list:
    """[size in bytes, SHA-256] of a file."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            sha.update(block)
    return [path.stat().st_size, sha.hexdigest()]


def save(folder: Path, facts: dict, tensors: dict, pieces: int, world, keep: int) -> None:
    """Write the state after facts["step"] updates, by all ranks, each of the first `pieces` its own
    tensors; then remove all but the newest `keep`, and later ones, which were damaged if the run
    went on from an earlier one.  Raises OSError on all ranks, the earlier states as before."""
    target = folder / f"step-{facts['step']:06d}"
    new = target.with_name(target.name + NEW)

    def begin() -> None:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        sync(folder.parent)

    def write() -> list[tuple[str, list]]:
        if world.rank >= pieces:
            return []
        path = _piece(new, world.rank, pieces)
        save_tensors(path, tensors)
        sync(path)
        return [(path.name, digest(path))]

    def end(manifest: dict[str, list]) -> None:
        write_json(new / "facts.json", {**facts, "pieces": pieces})
        manifest["facts.json"] = digest(new / "facts.json")
        write_json(new / "manifest.json", manifest)
        shutil.rmtree(target, ignore_errors=True)
        new.rename(target)
        sync(folder)
        states = _saved(folder)
        current = states.index(target)
        for path in states[:current] + states[current + keep :]:
            shutil.rmtree(path, ignore_errors=True)

    try:
        world.from_main(begin)
        manifest = dict(world.gather_objects(world.all_or_none(write)))
        world.from_main(partial(end, manifest))
    except OSError:
        if world.main:
            shutil.rmtree(new, ignore_errors=True)  # a full disk gets its room back
        raise


def _piece(state: Path, rank: int, pieces: int) -> Path:
    return state / f"piece-{rank}-of-{pieces}.safetensors"


def _saved(folder: Path) -> list[Path]:
    """The states in `folder`, newest first."""
    states = [path for path in folder.glob("step-*") if path.name[5:].isdigit()]
    return sorted(states, key=lambda path: -int(path.name[5:]))


def _problems(path: Path, world) -> list[str]:
    """What is wrong with a state; each rank looks at some of the files."""
    try:
        manifest = read_json(path / "manifest.json", required=True)
    except InputError as error:
        return [str(error)]
    problems = []
    if "facts.json" not in manifest:
        problems.append(f"{path / 'manifest.json'}: expected hashes of all files, found none")
    for name, expected in list(manifest.items())[world.rank :: world.size]:
        try:
            actual = digest(path / name)
        except OSError as error:
            actual = error.strerror
        if actual != expected:
            where = path / name
            problems.append(f"{where}: expected size and SHA-256 {expected}, found {actual}")
    return problems


def newest(folder: Path, world, saved: int | None = None) -> "State | None":
    """The newest whole state in a folder, None if there never was one; saved: the update of one
    that there was.  Names those passed over.  Raises InputError if none is whole."""
    paths = world.from_main(lambda: _saved(folder))
    for path in paths:
        problems = world.gather_objects(_problems(path, world))
        if not problems:
            return world.all_or_none(partial(State, path))
        world.say(f"{problems[0]}; this state is passed over")
    if paths:
        none_whole = f"{len(paths)} and none whole: {problems[0]}"
        raise InputError(f"{folder}: expected a whole state, found {none_whole}")
    if saved is not None:
        hint = f"what it learnt can be trained on: --model {folder.parent / 'last'} --out NEW"
        raise InputError(f"{folder}: expected the state of update {saved}, found none; {hint}")
    world.say(f"{folder}: no state was saved yet: the run begins again")


class State:
    """A saved state: `facts`, and its tensors, by however many ranks it was saved."""

    def __init__(self, path: Path):
        self.facts = read_json(path / "facts.json", required=True)
        pieces = self.facts["pieces"]
        paths = [_piece(path, rank, pieces) for rank in range(pieces)]
        self.files = [safe_open(piece, framework="pt") for piece in paths]

    def read(self, key: str) -> torch.Tensor:
        """The flat tensor of that name, its pieces one after the other, zeros behind the last."""
        return torch.cat([file.get_tensor(key) for file in self.files])
