"""Solutions to the exercises of chapter 7."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from ch07_messages import HypervGuest

from pyvmm.hyperv.tlfs import VMBUS_SINT, HypercallCode, HypercallStatus, MessageType
from pyvmm.images.hyperv_assembler import PAYLOAD, HypervAssembler
from pyvmm.kvm import Kvm


def exercise_1() -> None:
    """An unknown connection."""
    a = HypervAssembler()
    a.enable_hyperv()
    a.post_message("question")
    a.out(0x10, size=4)
    a.halt()
    a.message("question", 99, b"?")
    with Kvm() as kvm:
        guest = HypervGuest(kvm, a.build())
        guest.engine.listen(lambda connection, kind, payload: 0 if connection == 4 else 0x12)
        status = int.from_bytes(guest.run(), "little")
    assert status == HypercallStatus.INVALID_CONNECTION_ID


def exercise_2() -> None:
    """Two messages, one slot."""
    a = HypervAssembler()
    a.enable_hyperv()
    a.post_message("question")
    for name in ("first", "second"):
        a.wait_for_message(name)
        a.load("rax", "rdi", 5, 1)  # flags
        a.out(0x10)
        a.load("rax", "rdi", PAYLOAD, 1)
        a.out(0x10)
        a.free_slot()
    a.halt()
    a.message("question", 4, b"?")
    statuses: list[int] = []
    with Kvm() as kvm:
        guest = HypervGuest(kvm, a.build())

        def answer(connection: int, kind: int, payload: bytes) -> int:
            for text in (b"1", b"2"):
                guest.loop.post(guest.engine.post_message, 0, VMBUS_SINT, MessageType.VMBUS, text, statuses.append)
            return 0

        guest.engine.listen(answer)
        assert guest.run() == b"\x011\x002"  # flag 1: another message is pending
    assert statuses[0] == 0 and statuses[1] < 0 and statuses[-1] == 0  # delivered; busy; delivered


def exercise_3() -> None:
    """Input across a page."""
    a = HypervAssembler()
    a.enable_hyperv()
    a.hypercall(HypercallCode.POST_MESSAGE, 0x300FF8)
    a.out(0x10, size=4)
    a.halt()
    with Kvm() as kvm:
        assert HypervGuest(kvm, a.build()).run()[0] == HypercallStatus.INVALID_ALIGNMENT


if __name__ == "__main__":
    exercise_1()
    exercise_2()
    exercise_3()
