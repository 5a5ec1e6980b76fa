"""Solutions to the exercises of chapter 8."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from ch07_messages import HypervGuest
from ch08_contact import Parrot

from pyvmm.hyperv.tlfs import HypercallStatus
from pyvmm.images.hyperv_assembler import PAYLOAD
from pyvmm.images.vmbus_assembler import VmbusAssembler
from pyvmm.kvm import Kvm
from pyvmm.vmbus import protocol as p
from pyvmm.vmbus.bus import Vmbus


def said(a: VmbusAssembler, *devices: Parrot) -> tuple[bytes, Vmbus]:
    """Run a guest on a bus with these devices; return what it said, and the bus."""
    with Kvm() as kvm:
        guest = HypervGuest(kvm, a.build())
        bus = Vmbus(guest.loop, guest.memory, guest.engine)
        for device in devices:
            bus.add(device)
        return guest.run(), bus


def exercise_1() -> None:
    """A version that is too new."""
    a = VmbusAssembler()
    a.enable_hyperv()
    a.post_message("contact")
    a.wait_for_message("version came")
    a.load("rax", "rdi", PAYLOAD + 8, 1)  # VersionResponse.supported
    a.out(0x10)
    a.halt()
    contact = p.InitiateContact(p.Version.COPPER, 0, 2, 0x203000, 0x204000)
    a.message("contact", p.CONTACT_CONNECTION, contact.build())
    assert said(a)[0] == b"\0"


def exercise_2() -> None:
    """Two devices of a kind."""
    a = VmbusAssembler()
    a.connect()
    a.halt()
    a.vmbus_data()
    second = Parrot()
    second.number = 1
    _, bus = said(a, Parrot(), second)
    one, two = bus.info()
    assert one["type"] == two["type"]
    assert one["guid"] != two["guid"] and (one["relid"], two["relid"]) == (1, 2)


def exercise_3() -> None:
    """Offers without contact."""
    a = VmbusAssembler()
    a.enable_hyperv()
    a.post_message("request offers")
    a.out(0x10, size=4)
    a.halt()
    a.vmbus_data()
    status, bus = said(a, Parrot())
    assert int.from_bytes(status, "little") == HypercallStatus.SUCCESS
    assert bus.version is None and bus.refused == {"REQUEST_OFFERS": 1}


if __name__ == "__main__":
    exercise_1()
    exercise_2()
    exercise_3()
