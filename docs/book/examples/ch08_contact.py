"""Chapter 8: a guest contacts the VMBus and asks what devices there are."""

from uuid import UUID

from ch07_messages import HypervGuest

from pyvmm.images.vmbus_assembler import VmbusAssembler
from pyvmm.kvm import Kvm
from pyvmm.trace import Record, subscribe
from pyvmm.vmbus import protocol as p
from pyvmm.vmbus.bus import Vmbus
from pyvmm.vmbus.device import VmbusDevice
from pyvmm.vmbus.offer import Offer


class Parrot(VmbusDevice):
    """A device of our own. Its type is what a guest's driver would look for."""

    OFFER = Offer(
        "parrot",
        type=UUID("3dab9336-8062-493f-ae2f-0fbe57bf8e3f"),
        instance=UUID("e16893b4-5e03-4f08-9ef4-84e570f484c1"),
    )


def show(record: Record) -> None:
    """Print a message as it passes."""
    kind, size = record.values
    arrow = "guest -> host" if record.event.name == "vmbus_recv_message" else "host -> guest"
    print(f"{arrow}  {p.MessageType(kind).name}, {size} bytes")


if __name__ == "__main__":
    a = VmbusAssembler()
    a.connect()
    a.halt()
    a.vmbus_data()
    subscribe("vmbus_recv_message,vmbus_post_msg", show)
    with Kvm() as kvm:
        guest = HypervGuest(kvm, a.build())
        bus = Vmbus(guest.loop, guest.memory, guest.engine)
        bus.add(Parrot())
        guest.run()
