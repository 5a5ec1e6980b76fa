"""The cpio archive."""

from __future__ import annotations

import shutil
import stat
import subprocess

import pytest

from pyvmm.images.cpio import CpioWriter, Entry, read_cpio


def sample() -> CpioWriter:
    archive = CpioWriter()
    archive.folder("dev")
    archive.character_device("dev/console", 5, 1)
    archive.file("init", b"#!/bin/sh\n", 0o755)
    archive.file("etc/deep/down/file", b"x" * 5)
    archive.symlink("bin/sh", "busybox")
    return archive


def test_members_are_read_back_in_order() -> None:
    entries = list(read_cpio(sample().build()))
    assert [entry.name for entry in entries] == [
        "dev",
        "dev/console",
        "init",
        "etc",
        "etc/deep",
        "etc/deep/down",
        "etc/deep/down/file",
        "bin",
        "bin/sh",
    ]
    assert entries[1] == Entry("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1))
    assert entries[2] == Entry("init", stat.S_IFREG | 0o755, b"#!/bin/sh\n")
    assert entries[-1].data == b"busybox"


def test_same_input_gives_same_bytes() -> None:
    archive = sample()
    assert archive.build() == archive.build() == sample().build()


def test_same_name_twice_is_refused() -> None:
    archive = sample()
    with pytest.raises(ValueError, match="already"):
        archive.file("init", b"")


@pytest.mark.parametrize("length", [0, 100, 300, 512])
def test_cut_archive_is_noticed(length: int) -> None:
    with pytest.raises(ValueError, match=r"cpio header|announced"):
        list(read_cpio(sample().build()[:length]))


def test_cpio_lists_it() -> None:
    if shutil.which("cpio") is None:
        pytest.skip("cpio is not installed")
    done = subprocess.run(["cpio", "-t"], input=sample().build(), capture_output=True)
    assert done.returncode == 0
    assert b"etc/deep/down/file" in done.stdout
