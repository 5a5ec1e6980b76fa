"""Chapter 12: faults of the host find a bug in a guest's driver."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from pyvmm.faults import FaultSet
from pyvmm.images.tiny.kernel import MEMORY, write_kernel
from pyvmm.loop import Loop
from pyvmm.machine import Machine, MachineConfig

MIB = 1 << 20
FAULTS = (None, "balloon-request-lost", "balloon-request-twice", "balloon-request-zero", "unballoon-twice")
LIMIT, PAUSE = 3.0, 0.1  # seconds


@dataclass
class Result:
    """What came of one run."""

    sizes: list[int]  # reached, in MiB
    refused: int  # packets of the driver that broke the protocol
    known: int  # pages that it released though it had released them before
    ended: str


def resized(kernel: Path, fault: str | None, *targets: int) -> Result:
    """Run the guest and resize it to each target in turn, MiB; `fault` is what the host does wrong meanwhile."""
    loop, sizes, left = Loop(), [], iter(targets)
    with Machine(MachineConfig(kernel=kernel, memory=MEMORY, engine="user"), loop) as machine:
        machine.start()
        if fault:
            FaultSet.of(machine).add(fault)

        def go_on(outcome: object = None) -> None:
            if outcome:
                sizes.append(machine.balloon.actual // MIB)
            if target := next(left, None):
                loop.after(PAUSE, lambda: machine.monitor.balloon_set(target * MIB))

        machine.balloon.on_finish.append(go_on)
        go_on()
        loop.after(LIMIT, machine.quit)
        ended = machine.run().kind
        known = machine.balloon.info()["refused-pages"]["known"]
        return Result(sizes, machine.services.bus.refused["hv-balloon"], known, ended)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        kernel = write_kernel(Path(folder) / "kernel")
        for fault in FAULTS:
            print(f"{fault or 'no fault':22} {resized(kernel, fault, 48, 64)}")
