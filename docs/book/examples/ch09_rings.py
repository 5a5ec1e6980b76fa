"""Chapter 9: a channel of two rings, over which a guest and a device of ours exchange packets."""

from ch07_messages import HypervGuest
from ch08_contact import Parrot

from pyvmm.images.assembler import At
from pyvmm.images.vmbus_assembler import BUFFER, VmbusAssembler
from pyvmm.kvm import Kvm
from pyvmm.vmbus.bus import Vmbus
from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.packet import Packet, PacketType
from pyvmm.vmbus.ring import HEADER_SIZE, build_packet


class LoudParrot(Parrot):
    """Repeats in capital letters what the guest sends."""

    def opened(self, channel: Channel) -> None:
        """The guest's driver has opened the channel."""
        self.channel = channel

    def received(self, payload: bytes) -> None:
        """A packet has come; its payload is padded to a multiple of 8 bytes."""
        print(f"the device received {payload!r}")
        self.channel.send(payload.upper())


def program(*texts: bytes) -> bytes:
    """Connect, open the channel, send each text in a packet, and say 8 bytes of each answer."""
    a = VmbusAssembler()
    a.connect()
    a.open_channel()
    packets = [build_packet(Packet(PacketType.IN_BAND, 0, 0, text)) for text in texts]
    for number, packet in enumerate(packets):
        a.move("rsi", At(f"packet {number}"))
        a.move("rcx", len(packet))
        a.send()
        a.receive()
        a.move("rdi", BUFFER)
        for half in (0, 4):
            a.load("rax", "rdi", HEADER_SIZE + half, 4)
            a.out(0x10, size=4)
    a.halt()
    for number, packet in enumerate(packets):
        a.data(f"packet {number}", packet)
    a.vmbus_data()
    return a.build()


if __name__ == "__main__":
    with Kvm() as kvm:
        guest = HypervGuest(kvm, program(b"hello", b"polly"))
        bus = Vmbus(guest.loop, guest.memory, guest.engine)
        bus.add(LoudParrot())
        print(f"the guest received {guest.run()!r}")
