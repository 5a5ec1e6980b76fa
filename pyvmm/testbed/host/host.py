"""Joins the parts of the raw host to a machine: the bus and the hypervisor below, one object for each layer above."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from pyvmm.hyperv.partition import Partition
from pyvmm.memory import GuestMemory
from pyvmm.testbed.host.balloon import RawBalloon
from pyvmm.testbed.host.device import RawDevice
from pyvmm.testbed.host.ic import RawIc
from pyvmm.testbed.host.memory import RawMemory
from pyvmm.testbed.host.ring import RawRings
from pyvmm.testbed.host.seams import Seams
from pyvmm.testbed.host.synic import RawSynic
from pyvmm.testbed.host.vmbus import RawVmbus
from pyvmm.vmbus.bus import Vmbus
from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.device import VmbusDevice

if TYPE_CHECKING:
    from pyvmm.machine import Machine
    from pyvmm.testbed.vm import VM


class HostPartition(Partition, Protocol):
    """What the raw host uses of an engine: VMBus's interface, and interrupts without a reason."""

    def interrupt(self, vp: int, sint: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What the raw host acts on. `until(happened, seconds, what)` runs the loop; raises TimedOut, GuestEnded.

    `machine` is None where a fake guest takes its place: then there are no memory slots.
    """

    bus: Vmbus
    partition: HostPartition
    memory: GuestMemory
    until: Callable[[Callable[[], object], float, str], None]
    machine: Machine | None = None


class Host:
    """The host side of one guest. All methods belong to the loop's thread, which is the test's."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.seams = Seams(parts.bus)
        self.used: set[str] = set()
        """Names of the devices that a test has acted on."""

    @classmethod
    def of(cls, vm: VM) -> Host:
        """Return the host side of a started guest."""
        machine = vm.machine
        return cls(Parts(machine.services.bus, machine.engine, machine.memory, vm.until, machine))

    @cached_property
    def vmbus(self) -> RawVmbus:
        """Messages of the bus."""
        return RawVmbus(self)

    @cached_property
    def synic(self) -> RawSynic:
        """Message slots, event flags and interrupts."""
        return RawSynic(self)

    @cached_property
    def memory(self) -> RawMemory:
        """The guest's memory and its slots."""
        return RawMemory(self)

    @cached_property
    def balloon(self) -> RawBalloon:
        """Dynamic memory over the machine's own balloon device."""
        return RawBalloon(self, self.device("hv-balloon"))

    @cached_property
    def ic(self) -> RawIc:
        """The integration services."""
        return RawIc(self)

    def balloon_of(self, device: RawDevice) -> RawBalloon:
        """Return dynamic memory over another device, for instance a second balloon (`vmbus.add`)."""
        return RawBalloon(self, device)

    def ring(self, device: str | VmbusDevice = "hv-balloon", sub_channel: int = 0) -> RawRings:
        """Return the rings of a device's open channel. Raises ValueError if it is not open."""
        return RawRings(self, self.channel(device, sub_channel))

    def device(self, name: str | VmbusDevice) -> VmbusDevice:
        """Return a device of the bus by its name, `hv-balloon` for instance. Raises ValueError."""
        if isinstance(name, VmbusDevice):
            return name
        devices = {each.offer.name: each for each in self.parts.bus.devices()}
        self.used.add(name)
        if name not in devices:
            raise ValueError(f"no device {name!r} on the bus, there are: {', '.join(sorted(devices))}")
        return devices[name]

    def channel(self, device: str | VmbusDevice, sub_channel: int = 0) -> Channel:
        """Return a device's open channel. Raises ValueError if the guest has not opened it."""
        found = self.device(device)
        channel = self.parts.bus.channel(found, sub_channel)
        if channel is None:
            raise ValueError(f"the guest has not opened channel {sub_channel} of {found.offer.name}")
        return channel
