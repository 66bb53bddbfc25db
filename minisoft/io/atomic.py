"""Files and folders that are there whole or not at all, whatever happens while they are written."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from minisoft.errors import InputError, expecting


def sync(path: Path) -> None:
    """Return when a file's bytes, or a folder's list of names, have reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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


def write_text(path: Path, text: str) -> None:
    """Put a text in the place of the file `path`."""
    new = path.with_name(path.name + ".new")
    try:
        new.write_text(text, "utf-8")
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


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Put what write(new folder) writes in the place of `folder`.

    A kill between the two renames leaves it under the name FOLDER.old: see `recover`.
    """
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        write(new)
        for path in (*new.iterdir(), new):
            sync(path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)  # a full disk gets its room back
        raise
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    new.rename(folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(path: Path) -> None:
    """Undo a kill while a file or folder was written: halfway, or between the two renames."""
    old, new = path.with_name(path.name + ".old"), path.with_name(path.name + ".new")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        old.rename(path)
    if new.is_dir():
        shutil.rmtree(new)
    else:
        new.unlink(missing_ok=True)
