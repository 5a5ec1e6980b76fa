"""Chapter 11: Hyper-V in 200 lines, in a whole machine; it is frozen in the middle and goes on twice."""

import os
import tempfile
from pathlib import Path

from pyvmm.images.tiny.kernel import MEMORY, write_kernel
from pyvmm.loop import Loop
from pyvmm.machine import Machine, MachineConfig
from pyvmm.machine.frozen import FrozenMachine

MIB = 1 << 20


def size(machine: Machine) -> str:
    """The guest's size as the balloon counts it."""
    return f"{machine.balloon.actual // MIB} MiB"


def go_on(frozen: FrozenMachine, target: int) -> None:
    """In a child: wake the guest up, resize it, and see what becomes of it."""
    machine = frozen.machine
    frozen.resume()
    machine.balloon.on_finish.append(lambda outcome: machine.loop.stop())
    machine.monitor.balloon_set(target)
    machine.loop.run()
    print(f"  a child resized it to {size(machine)}", flush=True)
    os._exit(0)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        kernel = write_kernel(Path(folder) / "kernel")
        loop = Loop()
        with Machine(MachineConfig(kernel=kernel, memory=MEMORY, engine="user"), loop) as machine:
            machine.start()
            print(f"power on: {size(machine)}")
            machine.balloon.on_finish.append(lambda outcome: loop.stop())
            machine.monitor.balloon_set(48 * MIB)
            loop.run()
            print(f"running:  {size(machine)}")
            frozen = FrozenMachine(machine)
            machine.balloon.on_finish.clear()
            for target in (MEMORY, 56 * MIB):
                child = os.fork()
                if not child:
                    go_on(frozen, target)
                os.waitpid(child, 0)
            print(f"frozen:   {size(machine)}, as if nothing had happened")


if __name__ == "__main__":
    main()
