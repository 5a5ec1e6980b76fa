"""pyvmm: a KVM virtual machine monitor in pure Python, with Hyper-V enlightenments for Linux guests.

Read the packages in this order; each `__init__` is one chapter and assumes only the earlier ones:
`pyvmm.memory`, `pyvmm.kvm`, `firmware`, `pyvmm.iomap` and `devices.serial.uart`, `pyvmm.hyperv`, `pyvmm.vmbus`,
`devices.ic`, `devices.balloon`, `pyvmm.machine`, `pyvmm.cli`.

For scripts and notebooks: `from pyvmm import Machine`, see `pyvmm.api` and docs/api.md.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyvmm.api import CommandFailed, Completed, End, Event, Machine, Memory, runs_here

__all__ = ["CommandFailed", "Completed", "End", "Event", "Machine", "Memory", "__version__", "runs_here"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the API's names at their first use: every command pays for `import pyvmm`."""
    if name in __all__:
        from importlib import import_module

        return getattr(import_module("pyvmm.api"), name)
    raise AttributeError(f"module 'pyvmm' has no attribute {name!r}")
