"""The kernel's way into memory on a thread of its own."""

from __future__ import annotations

import threading

import pytest

from firmware.entry import BootState, long_mode
from pyvmm.errors import ConfigError
from pyvmm.machine.loading import Loading


def test_it_goes_on_meanwhile_and_gives_the_state() -> None:
    other_side = threading.Event()

    def load() -> BootState:
        assert other_side.wait(10)
        return long_mode(0x1000000)

    loading = Loading(load)
    other_side.set()
    assert loading.state() == long_mode(0x1000000)


def test_what_is_wrong_with_the_files_is_told_to_who_wants_the_state() -> None:
    def load() -> BootState:
        raise ConfigError("vmlinux: the file is empty")

    loading = Loading(load)
    loading.wait()
    with pytest.raises(ConfigError, match="is empty"):
        loading.state()
