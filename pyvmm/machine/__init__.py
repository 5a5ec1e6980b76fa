"""The machine: memory, vCPUs and devices put together, from power-on to power-off.

    config      the configuration             cpu        each vCPU's CPUID and MTRRs
    runner      one thread a vCPU             hardware   one life of the KVM VM, until a reset
    machine     all of it and its life        monitor    the monitor's view of it
    services    the VMBus and its devices     devices    the table of available devices
    frozen      a machine without KVM, for forks of the process

The main thread runs the loop, which owns VMBus and its devices; each vCPU has a thread. A reset ends the hardware,
discards the guest's memory, loads the kernel again and starts new hardware in power-on state.
"""

from pyvmm.machine.config import MachineConfig
from pyvmm.machine.machine import Machine
from pyvmm.machine.outcome import Outcome

__all__ = ["Machine", "MachineConfig", "Outcome"]
