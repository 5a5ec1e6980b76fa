"""Errors of monitor commands, by QMP's error classes.

Source: QEMU qapi/error.json. New errors are all `GenericError`; the other classes exist since clients test for them.
"""

from __future__ import annotations

from typing import ClassVar

from pyvmm.errors import PyvmmError


class ControlError(PyvmmError):
    """A command was refused. Becomes `{"error": {"class": qmp_class, "desc": text}}`."""

    qmp_class: ClassVar[str] = "GenericError"


class CommandNotFound(ControlError):
    """The command does not exist, or may not be used now."""

    qmp_class = "CommandNotFound"


class DeviceNotActive(ControlError):
    """No driver in the guest uses the device, or the machine does not have it."""

    qmp_class = "DeviceNotActive"


class DeviceNotFound(ControlError):
    """The command names a device the machine does not have."""

    qmp_class = "DeviceNotFound"
