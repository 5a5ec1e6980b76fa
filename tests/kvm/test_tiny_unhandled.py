"""What a tiny guest accesses and nothing handles: counted, shown by the monitor, printed by `--debug`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyvmm.kvm import Kvm
from pyvmm.launch.session import Session
from pyvmm.machine.config import MachineConfig
from pyvmm.qapi import UnhandledInfo
from tests.support.flooded import ENTRY, kernel

pytestmark = pytest.mark.kvm

MIB = 1 << 20
CODE = bytes.fromhex(
    "B0 55 E6 80  E6 80"  # mov al, 0x55; out 0x80, al, twice
    "66 BA 00 03 EC"  # mov dx, 0x300; in al, dx
    "A1 00 00 00 F9"  # mov eax, [0xf9000000]
    "66 BA 04 06  66 B8 00 34 66 EF"  # mov dx, 0x604; mov ax, 0x3400: S5; out dx, ax
    "EB FE"  # jmp $
)
BAD_MSR = bytes.fromhex(
    "B9 FF 00 00 40 0F 32"  # mov ecx, 0x400000ff; rdmsr: #GP, and without an IDT a triple fault
)
EXITS, KINDS = frozenset({"exits"}), frozenset({"ports", "mmio", "msr"})


def session(path: Path, code: bytes, **options: Any) -> tuple[UnhandledInfo, Session]:
    """Run the machine to its end; the description of its unhandled accesses."""
    file = path / "kernel"
    file.write_bytes(kernel(code))
    settings = {"memory": 32 * MIB, "entry": "pvh", "engine": "user", "reboot": False} | options
    with Session(MachineConfig(kernel=file, **settings)) as made:
        made.start()
        made.loop.after(20, made.machine.quit)
        made.machine.run()
        return made.machine.monitor.describe()["unhandled"], made


def test_each_kind_is_counted_with_the_first_one_s_place(kvm: Kvm, tmp_path: Path, capsys: Any) -> None:
    about, _ = session(tmp_path, CODE)
    found = {(row["kind"], row["number"]): row for row in about["accesses"]}
    assert {key: row["count"] for key, row in found.items()} == {
        ("port write", 0x80): 2,
        ("port read", 0x300): 1,
        ("mmio read", 0xF9000000): 1,
    }
    first = found["port write", 0x80]
    assert first["vcpu"] == 0
    assert ENTRY < first["rip"] <= ENTRY + 0x1000
    assert about["more"] == 0
    assert capsys.readouterr().err == "", "nothing is printed unless asked for"


def test_they_are_printed_with_a_table_at_the_end(kvm: Kvm, tmp_path: Path, capsys: Any) -> None:
    session(tmp_path, CODE, debug=KINDS)
    printed = capsys.readouterr().err
    assert "unhandled port write 0x80 (POST code; Linux's I/O delay): 1 byte, value 0x55, vcpu 0 at 0x10" in printed
    assert "unhandled mmio read 0xf9000000: 4 bytes" in printed
    lines = printed.splitlines()
    start = lines.index("pyvmm: unhandled accesses of the guest:")
    assert lines[start + 2].split()[-6:-4] == ["delay)", "2"], "the most frequent comes first"


def test_an_msr_that_is_refused_is_counted(kvm: Kvm, tmp_path: Path) -> None:
    about, _ = session(tmp_path, BAD_MSR)
    assert [(row["kind"], row["number"], row["count"]) for row in about["accesses"]] == [("msr read", 0x400000FF, 1)]


def test_every_exit_is_printed_with_exits(kvm: Kvm, tmp_path: Path, capsys: Any) -> None:
    session(tmp_path, CODE, debug=EXITS)
    printed = capsys.readouterr().err
    assert "pyvmm: vcpu 0 exit IoIn port=0x300 size=0x1 count=0x1" in printed
    assert "pyvmm: vcpu 0 exit MmioRead gpa=0xf9000000 size=0x4" in printed
    assert "unhandled accesses (exits): none" in printed
