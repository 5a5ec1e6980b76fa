"""Raw images and their locks, on real files."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from pyvmm.disks import raw
from pyvmm.disks.open import open_image
from pyvmm.disks.raw import RawImage
from pyvmm.disks.spec import DiskSpec
from pyvmm.errors import ConfigError

MIB = 1 << 20


def make(folder: Path, content: bytes = b"", size: int = MIB, name: str = "disk.img") -> Path:
    path = folder / name
    path.write_bytes(content)
    os.truncate(path, size)
    return path


def opened(path: Path, **how: Any) -> RawImage:
    image = open_image(DiskSpec(str(path), **how))
    assert isinstance(image, RawImage)
    return image


def test_views_are_filled_and_written_in_order(tmp_path: Path) -> None:
    image = opened(make(tmp_path))
    data = os.urandom(3000 * 16)
    image.write([memoryview(data[at : at + 16]) for at in range(0, len(data), 16)], 512)
    parts = [bytearray(16) for _ in range(3000)]
    image.read([memoryview(part) for part in parts], 512)
    assert b"".join(parts) == data
    image.close()


def test_short_reads_and_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = opened(make(tmp_path))
    preadv, pwritev = os.preadv, os.pwritev
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:100]], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, views, at: pwritev(fd, [views[0][:100]], at))
    data = os.urandom(1024)
    image.write([memoryview(data)[:300], memoryview(data)[300:]], 1024)
    found = bytearray(1024)
    image.read([memoryview(found)[:700], memoryview(found)[700:]], 1024)
    assert found == data
    image.close()


def test_end_of_the_file_reads_as_zeroes_up_to_a_whole_sector(tmp_path: Path) -> None:
    image = opened(make(tmp_path, b"x" * 700, size=700))
    assert image.size == 1024
    found = bytearray(b"?" * 1024)
    image.read([memoryview(found)], 0)
    assert found == b"x" * 700 + bytes(324)
    image.close()


def test_zeroes_are_written_where_the_file_system_has_no_holes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path, b"x" * (3 * MIB), size=3 * MIB)
    image = opened(path)

    def unsupported(*arguments: int) -> int:
        ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    monkeypatch.setattr(raw, "_libc", type("libc", (), {"fallocate": staticmethod(unsupported)}))
    image.discard(0, MIB)
    assert path.read_bytes() == b"x" * (3 * MIB), "a discard may do nothing"
    image.write_zeroes(512, 2 * MIB, unmap=True)
    assert path.read_bytes() == b"x" * 512 + bytes(2 * MIB) + b"x" * (MIB - 512)
    image.close()


def test_error_of_fallocate_is_raised(tmp_path: Path) -> None:
    image = opened(make(tmp_path), read_only=True)
    with pytest.raises(OSError, match="Bad file descriptor"):
        image.discard(0, 4096)
    image.close()


def test_file_grows_by_resize(tmp_path: Path) -> None:
    path = make(tmp_path)
    image = opened(path)
    image.resize(2 * MIB)
    assert (image.size, path.stat().st_size) == (2 * MIB, 2 * MIB)
    image.close()


def test_one_writer_or_many_readers(tmp_path: Path) -> None:
    path = make(tmp_path)
    writer = opened(path)
    for read_only in (False, True):
        with pytest.raises(ConfigError, match="another process uses it"):
            opened(path, read_only=read_only)
    writer.close()
    readers = [opened(path, read_only=True) for _ in range(3)]
    with pytest.raises(ConfigError, match="another process uses it"):
        opened(path)
    for reader in readers:
        reader.close()
    opened(path).close()


@pytest.mark.parametrize(
    ("content", "size", "message"),
    [
        (b"", 0, "it is empty; `truncate"),
        (b"QFI\xfb", 4096, "looks like qcow2"),
        (b"KDMV", 4096, "looks like vmdk"),
        (b"vhdxfile", 4096, "looks like vhdx"),
    ],
)
def test_file_that_is_no_raw_disk_is_refused(tmp_path: Path, content: bytes, size: int, message: str) -> None:
    path = make(tmp_path, content, size)
    with pytest.raises(ConfigError, match=message):
        opened(path)
    if size:
        opened(path, format="raw").close()


@pytest.mark.parametrize("what", ["missing", "folder", "fifo"])
def test_what_is_no_file_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    path = tmp_path / what
    if what == "folder":
        path.mkdir()
    if what == "fifo":
        os.mkfifo(path)
    with pytest.raises(ConfigError, match=str(path)) as error:
        opened(path)
    assert "\n" not in str(error.value)
    if what == "missing":
        assert "truncate -s 8G" in str(error.value)
