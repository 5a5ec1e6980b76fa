"""Solutions to the exercises of chapter 11."""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from ch11_whole_machine import MIB

from pyvmm.images.tiny.kernel import MEMORY, write_kernel
from pyvmm.loop import Loop
from pyvmm.machine import Machine, MachineConfig
from pyvmm.machine.frozen import FrozenMachine


def whole_life() -> tuple[str, set[str], dict[str, int]]:
    """Run the guest from power-on to power-off; return how it ended, the devices it opened and its exits by kind."""
    with tempfile.TemporaryDirectory() as folder:
        config = MachineConfig(kernel=write_kernel(Path(folder) / "kernel"), memory=MEMORY, engine="user")
        with Machine(config, Loop()) as machine:
            machine.start()
            targets = iter((48 * MIB, MEMORY))

            def next_target(outcome: object = None) -> None:
                if target := next(targets, None):
                    machine.monitor.balloon_set(target)

            machine.balloon.on_finish.append(next_target)
            next_target()
            ended = machine.run().kind
            (exits,) = machine.monitor.describe()["exits"].values()
            return ended, machine.services.bus.opened, dict(exits)


def exercise_1() -> None:
    """The balloon, and nothing else."""
    ended, opened, _ = whole_life()
    assert (ended, opened) == ("poweroff", {"hv-balloon"})


def exercise_2() -> None:
    """Forks do not see each other's writes."""
    place = 48 * MIB
    with tempfile.TemporaryDirectory() as folder:
        config = MachineConfig(kernel=write_kernel(Path(folder) / "kernel"), memory=MEMORY, engine="user")
        loop = Loop()
        with Machine(config, loop) as machine:
            machine.start()
            loop.after(0.1, loop.stop)
            loop.run()
            frozen = FrozenMachine(machine)
            statuses = []
            for text in (b"one", b"two"):
                child = os.fork()
                if not child:
                    before = machine.memory.read(place, 3)
                    machine.memory.write(place, text)
                    frozen.resume()
                    os._exit(int(before != bytes(3)))
                statuses.append(os.waitpid(child, 0)[1])
            assert statuses == [0, 0] and machine.memory.read(place, 3) == bytes(3)


def exercise_3() -> None:
    """Exits by kind."""
    _, _, exits = whole_life()
    assert exits["Wrmsr"] > 10 and exits["IoOut"] > 5


if __name__ == "__main__":
    exercise_1()
    exercise_2()
    exercise_3()
