"""File systems that cannot do everything, or no more: it works, or one error names the path."""

import errno
import os

import pytest

from minisoft.io import atomic


def failing(monkeypatch, number):
    """fsync fails with an error that has no path, as the system's has none."""

    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.os, "fsync", fail)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_sync_is_written_to(tmp_path, monkeypatch, number):
    failing(monkeypatch, number)
    atomic.write_text(tmp_path / "a", "text")
    atomic.replace_folder(tmp_path / "b", lambda new: (new / "c").write_text("text"))
    assert (tmp_path / "a").read_text() == (tmp_path / "b/c").read_text() == "text"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fails_is_named_and_the_old_text_stays(tmp_path, monkeypatch, number):
    path = tmp_path / "a"
    atomic.write_text(path, "old")
    failing(monkeypatch, number)
    with pytest.raises(OSError, match=f"{os.strerror(number)}.*{path}") as raised:
        atomic.write_text(path, "new")
    assert raised.value.errno == number
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]


def test_a_full_disk_is_named_by_whatever_is_written_to_it():
    with pytest.raises(OSError, match="No space left on device.*/dev/full"):
        with atomic.writing("/dev/full"), open("/dev/full", "w") as file:
            file.write("x")


def test_a_file_behind_a_link_stays_behind_it(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk/file")
    for text in ("one", "two"):
        atomic.write_text(tmp_path / "link", text)
        assert (tmp_path / "disk/file").read_text() == text
    assert (tmp_path / "link").is_symlink()
