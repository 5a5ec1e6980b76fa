"""What a guest gets on demand for the devices that its machine has: modules, programs, lines of init."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvmm.devices.echo.protocol import TYPE_GUID
from pyvmm.images.parts import Part

if TYPE_CHECKING:
    from pyvmm.launch.options import GuestOptions

UIO = Part(
    "uio",
    start=f"echo {TYPE_GUID} >/sys/bus/vmbus/drivers/uio_hv_generic/new_id\n",
)
"""Has uio_hv_generic give the echo device's channel to a program as /dev/uio0."""

PARTS = {"echo": UIO, "echo-monitored": UIO}
"""Parts by the device that needs them."""

FEATURES = {"echo": "uio", "echo-monitored": "uio"}
"""Names in `images.features`, the same."""


def parts_of(options: GuestOptions) -> tuple[Part, ...]:
    """Return the parts that the machine's devices need in the guest."""
    return tuple(dict.fromkeys(PARTS[name] for name in options.device if name in PARTS))


def features_of(options: GuestOptions) -> tuple[str, ...]:
    """Return the names in `images.features` of the modules that they need."""
    return tuple(dict.fromkeys(FEATURES[name] for name in options.device if name in FEATURES))
