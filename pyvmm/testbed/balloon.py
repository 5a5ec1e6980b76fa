"""The hv-balloon device as a test uses it: resize the guest and wait for the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvmm.devices.balloon.device import BalloonDevice
from pyvmm.sizes import parse_size
from pyvmm.testbed.guest import BALLOON_DRIVER
from pyvmm.testbed.waits import GuestEnded

if TYPE_CHECKING:
    from pyvmm.devices.balloon.plan import ResizeOutcome
    from pyvmm.testbed.vm import VM

BALLOON_ID = str(BalloonDevice.OFFER.instance)
"""What the guest calls its balloon device in /sys/bus/vmbus/devices, and to bind and unbind it."""


class Balloon:
    """Dynamic memory of a guest by requests that a well-behaved host makes."""

    def __init__(self, vm: VM) -> None:
        self._vm = vm
        self.outcomes: list[ResizeOutcome] = []
        """How each resize ended, oldest first."""

    def attach(self) -> None:
        """Record the device's outcomes, once the machine's services exist."""
        device = self._vm.machine.balloon
        if device is not None:
            device.on_finish.append(self.outcomes.append)

    @property
    def device(self) -> BalloonDevice:
        """The machine's device. Raises GuestEnded where it is not on the bus."""
        device = self._vm.machine.balloon
        if device is None:
            raise GuestEnded("the machine has no hv-balloon on its bus")
        return device

    @property
    def ready(self) -> bool:
        """Whether the guest's driver has negotiated."""
        return self.device.ready

    @property
    def actual(self) -> int:
        """Bytes that the guest has."""
        return self.device.actual

    def set(self, size: str | int) -> None:
        """Set the target size, a number of bytes or a text such as "256M", and return at once."""
        self._vm.machine.monitor.balloon_set(size if isinstance(size, int) else parse_size(size))

    def resize(self, size: str | int, timeout: float = 60.0) -> ResizeOutcome:
        """Set the target size and wait for the end of the attempt. Raises TimedOut."""
        before = len(self.outcomes)
        self.set(size)
        self._vm.until(lambda: len(self.outcomes) > before, timeout, f"end of a resize to {size}")
        return self.outcomes[-1]

    def unbind(self) -> None:
        """Have the guest unbind hv_balloon from its device, and wait until the channel is closed."""
        self._vm.guest.sh(f"echo {BALLOON_ID} >{BALLOON_DRIVER}/unbind")
        self._vm.until(lambda: not self.ready, 20, "closed channel")

    def bind(self) -> None:
        """Have the guest bind hv_balloon to its device again, and wait until it has negotiated."""
        self._vm.guest.sh(f"(echo {BALLOON_ID} >{BALLOON_DRIVER}/bind) 2>/dev/null; true")
        self._vm.until(lambda: self.ready, 20, "hv_balloon's negotiation")
