"""Chapter 10: a guest gives memory away, gets it back, and gets a gigabyte more."""

from ch04_long_mode import MEMORY
from ch07_messages import HypervGuest

from pyvmm.devices.balloon.device import BalloonDevice
from pyvmm.images.balloon_assembler import driver
from pyvmm.kvm import Kvm
from pyvmm.memory import HostMemory, Region
from pyvmm.vmbus.bus import Vmbus

MIB, GIB = 1 << 20, 1 << 30
PAGE = 4096


class Window:
    """A gigabyte of address space, from 1 GiB on, of which nothing is memory yet. In pages."""

    start, end, pages = GIB // PAGE, 2 * GIB // PAGE, GIB // PAGE

    def __init__(self, guest: HypervGuest) -> None:
        self.guest, self.backing, self.slots = guest, HostMemory(GIB), 1

    def provide(self, start: int, pages: int) -> None:
        """Make these pages memory of the guest: a slot more. The device calls it before it offers them."""
        region = Region(start * PAGE, pages * PAGE, self.backing, (start - self.start) * PAGE)
        self.guest.vm.set_memory(self.slots, region.gpa, region.size, region.address)
        self.guest.memory.add(region)
        self.slots += 1

    def keep_below(self, end: int) -> None:
        """Nothing: this guest takes all that it is offered."""


if __name__ == "__main__":
    with Kvm() as kvm:
        guest = HypervGuest(kvm, driver())
        window = Window(guest)
        ram = [(0, MEMORY)]
        balloon = BalloonDevice(ram, guest.memory.discard, clock=guest.loop.clock, window=window)
        targets = iter([12 * MIB, MEMORY, MEMORY + GIB])

        def next_target(outcome: object = None) -> None:
            """Resize to the next size; stop the guest after the last one."""
            if outcome:
                print(f"the guest has {balloon.actual // MIB:4} MiB in {len(guest.vm.slots)} slots")
            target = next(targets, None)
            if target is None:
                guest.vcpu.immediate_exit = True
            else:
                balloon.set_target(target)

        balloon.on_finish.append(next_target)
        next_target()
        bus = Vmbus(guest.loop, guest.memory, guest.engine)
        bus.add(balloon)
        guest.run()
        print(f"at 1 GiB the guest wrote {guest.memory.read(GIB, 6).decode()!r}")
