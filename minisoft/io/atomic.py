"""Files and folders that are there whole or not at all, whatever happens while they are written."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from minisoft.errors import InputError, expecting

NEW, OLD = ".being-written", ".being-replaced"  # no file of a user ends so by chance


@contextmanager
def writing(path: Path):
    """An OSError of the block names a path: this one, where the system gave none."""
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(path)
        raise


def sync(path: Path) -> None:
    """Return when a file's bytes, or a folder's names, are on the disk, as far as one can know."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with writing(path):
            os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # it has no such call
            raise
    finally:
        os.close(handle)


def beside(path: Path) -> tuple[Path, Path, Path]:
    """(what `path` is or links to, its name while it is being written, while it is replaced)."""
    path = Path(os.path.realpath(path))
    return path, path.with_name(path.name + NEW), path.with_name(path.name + OLD)


def read_json(path: Path, required: bool = False) -> dict:
    """A JSON object, {} where the file need not exist and does not.  Raises InputError."""
    if not path.is_file():
        if required:
            raise InputError(f"{path}: expected a JSON file, found no such file")
        return {}
    with expecting("JSON", path):
        value = json.loads(path.read_text("utf-8"))
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def lies_in(path: Path, folder: Path) -> bool:
    """Is it that folder, or below it, whatever links lead there?"""
    return folder.is_dir() and folder.resolve() in (path.resolve(), *path.resolve().parents)


def write_text(path: Path, text: str) -> None:
    replace_file(path, lambda new: new.write_text(text, "utf-8"))


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Put what write(new file) writes in the place of the file `path`."""
    path, new, _ = beside(path)
    try:
        with writing(new):
            write(new)
        sync(new)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    os.replace(new, path)
    sync(path.parent)


def write_json(path: Path, value: dict) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata=None) -> None:
    """A safetensors file.  Raises OSError where it cannot be written."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written: {error}") from None
    with suppress(OSError):  # of a file system without modes
        path.chmod(path.parent.stat().st_mode & 0o666)  # save_file makes it 600


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Put what write(new folder) writes in the place of `folder`; what else lies there stays.  A
    kill between the two renames leaves it under another name: see `recover`."""
    folder, new, old = beside(folder)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        with writing(new):
            write(new)
        for path in (*new.iterdir(), new):
            sync(path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)  # a full disk gets its room back
        raise
    if folder.exists():
        _merge(old, folder)
        folder.rename(old)
    new.rename(folder)
    sync(folder.parent)
    _merge(old, folder)


def _merge(old: Path, folder: Path) -> None:
    """What only the old folder has, a user's notes, is moved into the new one; the rest goes."""
    for path in old.iterdir() if old.is_dir() else []:
        if not os.path.lexists(folder / path.name):
            path.rename(folder / path.name)
    shutil.rmtree(old, ignore_errors=True)


def recover(path: Path) -> None:
    """Undo a kill while a file or folder was written: halfway, or between the two renames."""
    path, new, old = beside(path)
    if path.exists():
        _merge(old, path)
    elif old.exists():
        old.rename(path)
    if new.is_dir():
        shutil.rmtree(new)
    else:
        new.unlink(missing_ok=True)
