"""A machine on a KVM that lacks capabilities which pyvmm can do without: this computer's, with some hidden."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.devices.serial import window
from pyvmm.kvm import Cap, Kvm
from pyvmm.launch.session import Session
from pyvmm.machine.config import MachineConfig
from tests.support.flooded import kernel

pytestmark = pytest.mark.kvm

LSR = 5
THR_EMPTY = b"\x60"  # of LSR: both transmitter bits
CODE = (
    b"\xb0A\xa2" + window.CONSOLE.base.to_bytes(4, "little")  # mov al, 'A'; mov [THR], al
    + b"\xa0" + (window.CONSOLE.base + LSR).to_bytes(4, "little")  # mov al, [LSR]
    + bytes.fromhex("66 ba f8 03 ee b0 42 ee")  # mov dx, 0x3f8; out dx, al; mov al, 'B'; out dx, al
    + bytes.fromhex("66 ba 04 06 66 b8 00 34 66 ef eb fe")  # mov dx, 0x604; mov ax, S5; out dx, ax; jmp $
)  # fmt: skip
HIDDEN = [(), ("COALESCED_PIO",), ("READONLY_MEM",), ("IOEVENTFD",), ("TSC_DEADLINE_TIMER",), ("SYNC_REGS",)]


@pytest.mark.parametrize("hidden", [*HIDDEN, tuple(name for each in HIDDEN for name in each)], ids=",".join)
def test_the_console_and_the_power_off_work(
    kvm: Kvm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: tuple[str, ...]
) -> None:
    check = Kvm.check
    monkeypatch.setattr(Kvm, "check", lambda self, cap: 0 if cap.name in hidden else check(self, Cap(cap)))
    path = tmp_path / "kernel"
    path.write_bytes(kernel(CODE))
    config = MachineConfig(kernel=path, memory=32 << 20, entry="pvh", engine="user")
    with Session(config) as session:
        session.start()
        session.loop.after(20, session.machine.quit)
        outcome = session.machine.run()
        session.machine.halt()
        _, console = session.machine.console_tail.since(0)
    assert outcome.kind == "poweroff"
    assert console == b"A" + THR_EMPTY + b"B"
