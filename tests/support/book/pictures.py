"""The pictures of the chapters, each drawn from a run of the chapter's example on the local /dev/kvm."""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.kvm import Hlt, IoIn, IoOut
from tests.support.book.chapters import PICTURES, ROOT
from tests.support.book.drawing import Sequence
from tests.support.book.recording import record

GUEST, KVM, VMM = "guest", "KVM", "your program"


def ch01_exits() -> str:
    """The exits of the first guest: the first byte and the end."""
    run = record("ch01_first_guest.py")
    picture = Sequence([GUEST, KVM, VMM])
    shown = [*run.exits[:4], None, run.exits[-1]]
    for exit in shown:
        match exit:
            case IoIn(port=port):
                picture.step(VMM, KVM, "KVM_RUN")
                picture.step(GUEST, VMM, f"in al, {port:#x}", "IoIn: the guest waits for an answer")
            case IoOut(port=port, data=data):
                picture.step(VMM, KVM, "KVM_RUN")
                picture.step(GUEST, VMM, f"out {port:#x}, {data[0]:#04x}", f"IoOut: the letter {data.decode()!r}")
            case Hlt():
                picture.step(VMM, KVM, "KVM_RUN")
                picture.step(GUEST, VMM, "hlt", "Hlt: no interrupt can come, so it is the end")
            case None:
                picture.step(KVM, KVM, f"... {len(run.exits) - 5} more exits")
    return picture.svg()


DRAWN: dict[str, Callable[[], str]] = {"ch01-exits.svg": ch01_exits}


def update(*, check: bool) -> int:
    """Draw all pictures; with `check` compare them instead. Returns 1 if one differs."""
    stale = 0
    for name, draw in DRAWN.items():
        path = PICTURES / name
        made = draw()
        if path.exists() and path.read_text() == made:
            continue
        stale |= check
        print(f"{path.relative_to(ROOT)} {'is stale: python -m tests.support.book' if check else 'drawn'}")
        if not check:
            path.write_text(made)
    return stale
