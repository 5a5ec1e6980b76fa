"""What the taps cost: `python -m tests.bench.taps`.

A packet through a ring and a channel, a message, and an ioctl: with taps off, and with a rule at the point that never
fires. The cost while off is also given alone, for the test that each point makes. CPU time, the best of some rounds.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from contextlib import suppress
from time import process_time

from pyvmm.errors import HostError
from pyvmm.faults import FaultSet
from pyvmm.kvm.abi import Op
from pyvmm.kvm.handle import Handle
from pyvmm.tap import Taps
from pyvmm.vmbus import protocol as p
from tests.support.fake_guest import FakeGuest
from tests.support.recorder_device import Recorder

ROUNDS = 9


def best(run: Callable[[], object], count: int) -> float:
    """The least CPU time of one call, in seconds."""
    times = []
    for _ in range(ROUNDS):
        start = process_time()
        for _ in range(count):
            run()
        times.append((process_time() - start) / count)
    return min(times)


class Bus:
    """A channel of a guest that takes each packet at once."""

    def __init__(self) -> None:
        self.guest = FakeGuest()
        self.device = Recorder()
        self.driver = self.guest.open(self.device, ring_pages=8)
        self.taps = self.guest.partition.taps
        self.handle = Handle(os.open("/dev/null", os.O_RDWR), "vm")
        self.handle.tap = self.taps.ioctl

    def packet_out(self) -> None:
        self.device.channel.send(b"x" * 24)
        self.driver.incoming.set(4, self.driver.incoming.get(0))
        self.guest.partition.flags.clear()

    def packet_in(self) -> None:
        self.driver.outgoing.put(b"x" * 24)
        self.device.channel.signalled()
        self.device.payloads.clear()

    def message(self) -> None:
        self.guest.partition.hypercall_post(self.guest.message_connection, MODIFY)
        self.guest.loop.run()
        self.guest.inbox.clear()

    def ioctl(self) -> None:
        with suppress(HostError):
            self.handle.ioctl(Op.NMI)


MODIFY = p.ModifyChannel(1, 0).build()
RULES = {
    "packet_out": ("packet.out:drop,relid=77", "index.out:drop,relid=77", "event.out:drop,relid=77"),
    "packet_in": ("packet.in:drop,relid=77", "index.in:change,relid=77,to.value=0", "event.in:drop,relid=77"),
    "message": ("message.in:drop,type=CLOSE", "message.out:drop,type=OFFER"),
    "ioctl": ("ioctl.out:fail,op=CREATE_VM,errno=EIO",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=5000, help="calls a round (default 5000)")
    count = parser.parse_args().count
    taps = Taps()

    def test_only() -> None:
        if taps.packet.on:
            raise AssertionError

    nothing = best(lambda: None, 20 * count)
    alone = best(test_only, 20 * count) - nothing
    print(f"the test at a point that is off: {alone * 1e9:.0f} ns")
    print(f"{'':12} {'off':>9} {'a rule that never fires, each point':>36}")
    for name, texts in RULES.items():
        bus = Bus()
        off = best(getattr(bus, name), count)
        faults = FaultSet(bus.taps)
        for text in texts:
            faults.add(text)
        on = best(getattr(bus, name), count)
        print(f"{name:12} {off * 1e6:6.2f} µs {on * 1e6:20.2f} µs, {len(texts)} points: {on / off:.2f} times")


if __name__ == "__main__":
    main()
