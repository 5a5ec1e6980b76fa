"""A tiny Multiboot kernel in a whole machine: what it finds, the test devices' exit port, `pyvmm kut`'s runner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.cli.kut.plan import Plan
from pyvmm.cli.kut.runner import run_test
from pyvmm.firmware.multiboot import Module
from pyvmm.hyperv import kernel, user
from pyvmm.kvm import Kvm
from pyvmm.launch.session import Session
from pyvmm.machine.config import EngineChoice, MachineConfig
from pyvmm.machine.engines import missing
from tests.support.tiny_multiboot import elf32, exit_with, flat, say

pytestmark = pytest.mark.kvm

SPIN = bytes.fromhex("ebfe")  # jmp $
RESET = bytes.fromhex("66 ba f9 0c b0 06 ee")  # 6 to port 0xcf9
FW_CFG_CPUS = bytes.fromhex("66 ba 10 05 66 b8 05 00 66 ef 42 ec")  # item 5 to port 0x510; its first byte from 0x511
FLUSHED_PAGE = bytes.fromhex(
    "c7 05 10 00 60 00 78 56 34 12"  # mov dword [0x600010], 0x12345678
    "b8 10 00 60 00 66 ba e4 00 ef"  # its address to port 0xe4
    "a1 10 00 60 00 2d 78 56 34 12 e7 f4 f4"  # the difference to the exit port
)
AUTO_EOI = bytes.fromhex(
    "bf 80 05 50 00 b8 87 00 40 00"  # edi: entry 0xb0 of an IDT at 0x500000; eax: the handler, at 0x400087
    "66 89 07 8c 4f 02 66 c7 47 04 00 8e c1 e8 10 66 89 47 06"  # an interrupt gate
    "0f 01 1d 8f 00 40 00 c7 05 f0 00 e0 fe ff 01 00 00"  # lidt [0x40008f]; the local APIC on
    "31 d2 b9 83 00 00 40 b8 01 00 51 00 0f 30"  # SIMP: 0x510000
    "b9 80 00 00 40 b8 01 00 00 00 0f 30"  # SCONTROL: on
    "b9 98 00 00 40 b8 b0 00 02 00 0f 30"  # SINT8: vector 0xb0, AutoEOI
    "66 ba 00 30 b8 08 00 01 00 ef 31 db fb"  # hyperv-testdev: route SINT8 of VP 0; ebx: 0; sti
    "89 de b8 08 00 03 00 ef f3 90 39 f3 74 fa 83 fb 03 75 ed"  # raise it, wait until ebx changes; three times
    "31 c0 e7 f4 f4 eb fd"  # 0 to the exit port
    "43 58 83 c4 04 9d ff e0"  # the handler: inc ebx; return without iret, which some KVMs lack; no EOI
    "ff 07 00 00 50 00"  # for lidt
)
CALL_32 = bytes.fromhex(
    "bc 00 00 52 00 31 d2 b9 00 00 00 40 b8 01 00 00 00 0f 30"  # a stack at 0x520000; GUEST_OS_ID: 1
    "b9 01 00 00 40 b8 01 00 51 00 0f 30"  # HYPERCALL: a page at 0x510000
    "b8 5d 00 01 00 31 d2 b9 77 00 00 00 31 db be 00 00 51 00 ff d6"  # HvSignalEvent, fast, to no connection
    "35 12 00 00 00 09 d0 e7 f4 f4"  # invalid connection id in edx:eax is 0 to the exit port
)
MODULES_TO_EXIT_PORT = bytes.fromhex("8b 43 14 e7 f4 f4")  # ebx: the boot information
AL_TO_EXIT_PORT = bytes.fromhex("0f b6 c0 e7 f4 f4")


@pytest.fixture
def run(kvm: object, tmp_path: Path) -> Callable[..., tuple[str, str, str]]:
    def run_one(
        kernel: bytes, *, timeout: float = 30, cpus: int = 1, engine: EngineChoice = "user"
    ) -> tuple[str, str, str]:
        path = tmp_path / "tiny.flat"
        path.write_bytes(kernel)
        shown: list[bytes] = []
        result = run_test(Plan("tiny", path, "", cpus, 32 << 20, timeout, hyperv=True), engine, shown.append)
        return result.verdict, result.why, b"".join(shown).decode()

    return run_one


@pytest.mark.own_process
@pytest.mark.parametrize("make", [elf32, flat])
def test_the_exit_port_ends_the_machine_with_the_guests_status(run, make) -> None:
    assert run(make(say(b"PASS: all\nSUMMARY: 1 tests\n") + exit_with(0))) == (
        "PASS",
        "1 tests",
        "PASS: all\nSUMMARY: 1 tests\n",
    )
    verdict, why, _ = run(make(say(b"FAIL: sum\nSUMMARY: 2 tests, 1 unexpected failures\n") + exit_with(1)))
    assert (verdict, why) == ("FAIL", "2 tests, 1 unexpected failures: FAIL: sum")
    assert run(make(say(b"SKIP: no such CPU\n") + exit_with(38)))[:2] == ("SKIP", "no such CPU")


@pytest.mark.own_process
def test_a_guest_finds_the_number_of_cpus_by_fw_cfg(run) -> None:
    assert run(elf32(FW_CFG_CPUS + AL_TO_EXIT_PORT), cpus=3)[:2] == ("FAIL", "exit(3): no output")


@pytest.mark.own_process
def test_a_reset_and_a_hang_are_distinguished(run) -> None:
    verdict, why, _ = run(elf32(say(b"now\n") + RESET))
    assert (verdict, why) == ("FAIL", "the guest reset (reset port); its last line: now")
    verdict, why, _ = run(elf32(say(b"spinning\n") + SPIN), timeout=1)
    assert (verdict, why) == ("TIMEOUT", "no end after 1 s; its last line: spinning")


def test_a_kernel_finds_all_its_modules(kvm: Kvm, tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(elf32(MODULES_TO_EXIT_PORT))
    modules = []
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
        modules.append(Module(tmp_path / name, name))
    config = MachineConfig(
        kernel=tmp_path / "k", modules=tuple(modules), memory=32 << 20, engine="user", test_devices=True
    )
    with Session(config) as session:
        session.start()
        outcome = session.machine.run()
    assert (outcome.kind, outcome.status >> 1) == ("exit", 2)


def test_a_flushed_page_comes_back_as_it_was(run) -> None:
    assert run(elf32(FLUSHED_PAGE))[0] == "PASS"


@pytest.mark.parametrize("engine", ["user", "kernel"])
def test_a_32_bit_guests_hypercall_takes_and_returns_register_pairs(kvm: Kvm, run, engine: EngineChoice) -> None:
    lacks = missing(kvm, {"user": user.NEEDED, "kernel": kernel.NEEDED}[engine])
    if lacks:
        pytest.skip(f"this KVM lacks {', '.join(lacks)}")
    assert run(elf32(CALL_32), engine=engine)[:2] == ("PASS", "")


@pytest.mark.parametrize("engine", ["user", "kernel"])
def test_interrupts_with_auto_eoi_come_again_and_again(kvm: Kvm, run, engine: EngineChoice) -> None:
    lacks = missing(kvm, {"user": user.NEEDED, "kernel": kernel.NEEDED}[engine])
    if lacks:
        pytest.skip(f"this KVM lacks {', '.join(lacks)}")
    verdict, why, _ = run(elf32(AUTO_EOI), engine=engine)
    if "KVM internal error" in why:
        pytest.skip(f"this KVM does not run the guest: {why}")
    assert (verdict, why) == ("PASS", "")
