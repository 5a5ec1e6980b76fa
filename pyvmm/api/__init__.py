"""Virtual machines from a script or a notebook: made, started, driven and looked into with ordinary calls.

    import pyvmm

    with pyvmm.Machine(image="debian-6.1", memory="512M") as vm:
        vm.start()
        print(vm.run("uname -r").stdout)
        vm.balloon("256M")
        print(vm.memory)
        vm.shutdown()

Read `machine` for the calls, `results` for what they give, `pyvmm.launch.options` for what the keywords are,
`backend` for the two places a machine can run in: a thread of this process where its KVM runs Linux, else a process
of its own (that is `pyvmm run`, and so also the emulated host). Either way the calls go through the machine's
monitor, so what works here works with `pyvmm.client.qmp` and any QMP program.
"""

from pyvmm.api.machine import Machine, runs_here
from pyvmm.api.results import CommandFailed, Completed, End, Event, Memory

__all__ = ["CommandFailed", "Completed", "End", "Event", "Machine", "Memory", "runs_here"]
