"""The Python API: create, start, control and inspect virtual machines from a script or a notebook.

    import pyvmm

    with pyvmm.Machine(image="debian-6.1", memory="512M") as vm:
        vm.start()
        print(vm.run("uname -r").stdout)
        vm.balloon("256M")
        print(vm.memory)
        vm.shutdown()

See `machine` for the calls, `results` for their return types, `pyvmm.launch.options` for the keywords, and `backend`
for where a machine runs: on a thread of this process if the local KVM runs Linux, else in a process of its own (a
`pyvmm run`, which may use the emulated host). Either way the calls go through the machine's monitor, so all of them
are also possible with `pyvmm.client.qmp` and any QMP program.
"""

from pyvmm.api.machine import Machine, runs_here
from pyvmm.api.results import CommandFailed, Completed, End, Event, Memory

__all__ = ["CommandFailed", "Completed", "End", "Event", "Machine", "Memory", "runs_here"]
