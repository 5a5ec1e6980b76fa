"""What no machine can be is said in one line, before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyvmm.address_map import MIB
from pyvmm.errors import ConfigError
from pyvmm.machine.config import MachineConfig


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinux"
    path.write_bytes(b"kernel")
    return path


def test_the_defaults_make_a_machine(kernel: Path) -> None:
    MachineConfig(kernel).check()


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"cpus": 0}, "0 CPUs: a machine needs at least 1"),
        ({"cpus": -1}, "-1 CPUs"),
        ({"cpus": 256}, "goes up to 255"),
        ({"memory": 0}, "at least 1 MiB"),
        ({"memory": MIB - 4096}, "1020 KiB of memory"),
        ({"memory": 512 * MIB + 1}, "not a multiple of 4 KiB"),
        ({"memory": 1 << 41}, "2048 GiB of memory"),
    ],
)
def test_the_impossible_is_refused_with_the_number(kernel: Path, wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        MachineConfig(kernel, **wrong).check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("right", [{"cpus": 255}, {"memory": MIB}, {"memory": 1 << 40}])
def test_the_limits_themselves_are_allowed(kernel: Path, right: dict[str, Any]) -> None:
    MachineConfig(kernel, **right).check()
