"""pyvmm: a KVM virtual machine monitor in pure Python, with a Hyper-V face for Linux guests.

Read the packages in this order; each `__init__` is one chapter and assumes only the earlier ones:
`pyvmm.memory`, `pyvmm.kvm`, `firmware`, `pyvmm.iomap` and `devices.serial`, `pyvmm.hyperv`, `pyvmm.vmbus`,
`devices.ic`, `devices.balloon`, `pyvmm.machine`, `pyvmm.cli`.
"""

__version__ = "0.1.0"
