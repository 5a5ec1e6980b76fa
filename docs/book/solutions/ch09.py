"""Solutions to the exercises of chapter 9."""

import contextlib
import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from ch07_messages import HypervGuest
from ch08_contact import Parrot
from ch09_rings import LoudParrot, program

from pyvmm.images.vmbus_assembler import OUT, VmbusAssembler
from pyvmm.kvm import Kvm
from pyvmm.vmbus import protocol as p
from pyvmm.vmbus.bus import Vmbus
from pyvmm.vmbus.channel import Channel


def said(code: bytes, device: Parrot) -> tuple[bytes, Vmbus, HypervGuest]:
    """Run a guest on a bus with this device."""
    with Kvm() as kvm:
        guest = HypervGuest(kvm, code)
        bus = Vmbus(guest.loop, guest.memory, guest.engine)
        bus.add(device)
        return guest.run(), bus, guest


def exercise_1() -> None:
    """The ring wraps."""
    texts = [b"no. %04d" % number for number in range(300)]
    with contextlib.redirect_stdout(io.StringIO()):  # the parrot talks a lot
        answers, bus, guest = said(program(*texts), LoudParrot())
    assert answers == b"".join(texts).upper()
    write_index = int.from_bytes(guest.memory.read(OUT, 4), "little")
    assert bus.info()[0]["packets-in"] == 300 and write_index == 300 * 32 % 4096


class Length(Parrot):
    """Answers with the number of bytes that came."""

    def opened(self, channel: Channel) -> None:
        self.channel = channel

    def received(self, payload: bytes) -> None:
        self.channel.send(len(payload).to_bytes(8, "little"))


def exercise_2() -> None:
    """The length of hello."""
    answer, _, _ = said(program(b"hello"), Length())
    assert int.from_bytes(answer, "little") == 8


def exercise_3() -> None:
    """A bad index."""
    a = VmbusAssembler()
    a.connect()
    a.open_channel()
    a.move("rdi", OUT)
    a.store(0, 3, 4, base="rdi")
    a.signal(p.FIRST_SIGNAL_CONNECTION + 1)
    a.halt()
    a.vmbus_data()
    _, bus, _ = said(a.build(), LoudParrot())
    assert "write index 0x3" in bus.info()[0]["broken"]


if __name__ == "__main__":
    exercise_1()
    exercise_2()
    exercise_3()
