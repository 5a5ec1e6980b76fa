"""Exception classes by cause: the guest, the host, the user. Any other exception is a bug, shown with a traceback.

The class decides where an error is caught (docs/architecture.md, "Errors"):

* `GuestError` at the hypercall, message and packet entries; the VMM goes on.
* `HostError` and `ConfigError` in `pyvmm.cli`, which prints one line.
"""

from __future__ import annotations


class PyvmmError(Exception):
    """Root of every error that pyvmm raises on purpose."""


class GuestError(PyvmmError):
    """The guest broke a rule. Refused or dropped, traced and counted; never fatal to the VMM."""


class WireError(GuestError):
    """Bytes do not hold the structure that they announce."""


class GuestProtocolError(GuestError):
    """A well-formed message is invalid, or comes in the wrong state."""


class GuestMemoryError(GuestError):
    """An access is outside guest RAM. The text names length and address."""


class HostError(PyvmmError):
    """KVM, the operating system or a needed program refused. The text says what failed and the likely cause."""


class ConfigError(PyvmmError):
    """The user's request cannot be fulfilled. The text is one line and names the next step."""


class NotActiveError(ConfigError):
    """The request is for a device that the machine does not have, or that no driver in the guest uses."""


class NotFoundError(ConfigError):
    """The request names a device that does not exist."""
