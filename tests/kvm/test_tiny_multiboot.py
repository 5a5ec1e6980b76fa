"""A tiny Multiboot kernel in a whole machine: what it finds, the test devices' exit port, `pyvmm kut`'s runner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.cli.kut.plan import Plan
from pyvmm.cli.kut.runner import run_test
from tests.support.tiny_multiboot import elf32, exit_with, flat, say

pytestmark = pytest.mark.kvm

SPIN = bytes.fromhex("ebfe")  # jmp $
RESET = bytes.fromhex("66 ba f9 0c b0 06 ee")  # 6 to port 0xcf9
FW_CFG_CPUS = bytes.fromhex("66 ba 10 05 66 b8 05 00 66 ef 42 ec")  # item 5 to port 0x510; its first byte from 0x511
AL_TO_EXIT_PORT = bytes.fromhex("0f b6 c0 e7 f4 f4")


@pytest.fixture
def run(kvm: object, tmp_path: Path) -> Callable[..., tuple[str, str, str]]:
    def run_one(kernel: bytes, *, timeout: float = 30, cpus: int = 1) -> tuple[str, str, str]:
        path = tmp_path / "tiny.flat"
        path.write_bytes(kernel)
        shown: list[bytes] = []
        result = run_test(Plan("tiny", path, "", cpus, 32 << 20, timeout), "user", shown.append)
        return result.verdict, result.why, b"".join(shown).decode()

    return run_one


@pytest.mark.parametrize("make", [elf32, flat])
def test_the_exit_port_ends_the_machine_with_the_guests_status(run, make) -> None:
    assert run(make(say(b"PASS: all\nSUMMARY: 1 tests\n") + exit_with(0))) == (
        "PASS",
        "1 tests",
        "PASS: all\nSUMMARY: 1 tests\n",
    )
    verdict, why, _ = run(make(say(b"FAIL: sum\nSUMMARY: 2 tests, 1 unexpected failures\n") + exit_with(1)))
    assert (verdict, why) == ("FAIL", "2 tests, 1 unexpected failures: FAIL: sum")
    assert run(make(say(b"SKIP: no such CPU\n") + exit_with(77)))[:2] == ("SKIP", "no such CPU")


def test_a_guest_finds_the_number_of_cpus_by_fw_cfg(run) -> None:
    assert run(elf32(FW_CFG_CPUS + AL_TO_EXIT_PORT), cpus=3)[:2] == ("FAIL", "exit(3): no output")


def test_a_reset_and_a_hang_are_told_apart(run) -> None:
    verdict, why, _ = run(elf32(say(b"now\n") + RESET))
    assert (verdict, why) == ("FAIL", "the guest reset (reset port); its last line: now")
    verdict, why, _ = run(elf32(say(b"spinning\n") + SPIN), timeout=1)
    assert (verdict, why) == ("TIMEOUT", "no end after 1 s; its last line: spinning")
