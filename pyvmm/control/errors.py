"""What a command answers when it cannot be done: QMP's error classes.

Source: QEMU qapi/error.json. New errors are all `GenericError`; the other classes exist as clients test for them.
"""

from __future__ import annotations

from typing import ClassVar

from pyvmm.errors import PyvmmError


class ControlError(PyvmmError):
    """A command refused. Becomes `{"error": {"class": qmp_class, "desc": text}}`."""

    qmp_class: ClassVar[str] = "GenericError"


class CommandNotFound(ControlError):
    """No such command, or not one that may be used now."""

    qmp_class = "CommandNotFound"


class DeviceNotActive(ControlError):
    """The device exists but nobody in the guest drives it, or the machine has none."""

    qmp_class = "DeviceNotActive"


class DeviceNotFound(ControlError):
    """The command names a device the machine does not have."""

    qmp_class = "DeviceNotFound"
