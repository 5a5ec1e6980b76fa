"""The guest's RAM: boot RAM, and the window for hot-added memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing

from pyvmm.firmware.e820 import ram_layout
from pyvmm.machine import hotplug
from pyvmm.machine.config import MachineConfig
from pyvmm.machine.hotplug import HotAddWindow
from pyvmm.memory import GuestMemory, HostMemory, Region


class Ram:
    """Boot RAM and the hot-add window. `memory` is all of the guest's current memory, `backings` the host's memory
    behind it. `window` is None for a guest that cannot grow.

    `limit` is the end of the CPU's physical address space, `kvm_slots` the number of memory slots that KVM has; the
    other arguments are HotAddWindow's.
    """

    def __init__(
        self,
        config: MachineConfig,
        limit: int,
        kvm_slots: int,
        *,
        map: Callable[[int, Region], None],
        unmap: Callable[[int], None],
        quiet: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.memory = GuestMemory()
        self.window: HotAddWindow | None = None
        self.backings: list[HostMemory] = []
        backend = config.mem_backend
        growth, space, gpa = config.maximum_memory - config.memory, 0, 0
        if growth:
            space = hotplug.window_size(config.memory, growth, backend.page_size)
            gpa = hotplug.place(sum(ram_layout(config.memory)[-1]), space, limit)
        with closing(backend.open(config.memory + space)) as pool:
            for start, length in ram_layout(config.memory):
                backing = pool.take(length)
                self.backings.append(backing)
                self.memory.add(Region(start, length, backing))
            if growth:
                backing = pool.take(space, populate=False)
                self.backings.append(backing)
                self.window = HotAddWindow(
                    self.memory,
                    backing,
                    gpa,
                    growth,
                    slots=hotplug.usable_slots(config.slots, kvm_slots),
                    prealloc=backend.prealloc,
                    map=map,
                    unmap=unmap,
                    quiet=quiet,
                )

    def close(self) -> None:
        """Free all memory. The vCPUs must not run any more. Idempotent."""
        for region in list(self.memory):
            region.view.release()
            self.memory.remove(region)
        for backing in self.backings:
            backing.close()
        self.backings = []
