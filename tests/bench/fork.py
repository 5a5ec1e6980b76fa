"""How long a forked guest takes: from the fork to its first exit, through a command, to the end of its process.

    python -m tests.bench.fork [--runs N] [--image debian-6.1] [--only tiny|linux]

*tiny*: a guest of some bytes that writes to a port all the time, with the user engine, on this machine's own KVM.
*linux*: a booted guest with each engine and one and two vCPUs, where Linux runs, i.e. mostly in the emulated host.
Each child is asked for `true` as it starts: an idle guest makes no exit by itself. Beside it one boot of the same
guest in the same sitting. The machine should do nothing else meanwhile: making a VM is mostly waiting for grace
periods of the kernel, which take ten times as long on a busy one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from pyvmm.host.inside import inside
from pyvmm.kvm import Exit
from pyvmm.machine.config import MachineConfig
from pyvmm.machine.hardware import Hardware
from pyvmm.machine.runner import VcpuThread
from pyvmm.testbed.template import Template
from pyvmm.testbed.vm import VM
from tests.bench.boot import run_where_linux_runs
from tests.support.flooded import kernel

WRITE_PORT = bytes.fromhex("E680EBFC")  # again: out 0x80, al; jmp again
SETTLE = 0.5  # seconds in which a booted guest comes to rest
PIECES = ("process", "vm", "restore", "start", "first exit", "command", "cycle")
TARGETS = {"tiny": 0.015, "linux": 0.060}  # seconds from the fork to the first exit


class Marks:
    """The times of one child's pieces, recorded by wrapping the methods that end them."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}
        make, restore, start = Hardware.__init__, Hardware.restore, Hardware.start
        marks = self.at

        def made(self: Hardware, *args: object, **options: object) -> None:
            marks.setdefault("process", time.perf_counter())
            make(self, *args, **options)  # type: ignore[arg-type]
            marks.setdefault("vm", time.perf_counter())

        def restored(self: Hardware, *args: object) -> None:
            restore(self, *args)  # type: ignore[arg-type]
            marks.setdefault("restore", time.perf_counter())
            for thread in self.threads:
                thread._handle = first_exit(thread)

        def first_exit(thread: VcpuThread) -> Callable[[Exit], bool]:
            handle = thread._handle

            def handled(exit: Exit) -> bool:
                marks.setdefault("first exit", time.perf_counter())
                thread._handle = handle
                return handle(exit)

            return handled

        def started(self: Hardware, **options: bool) -> None:
            start(self, **options)
            marks.setdefault("start", time.perf_counter())

        Hardware.__init__, Hardware.restore, Hardware.start = made, restored, started  # type: ignore[assignment, method-assign]


def forks(template: Template, runs: int, work: Callable[[VM], None], marks: Marks) -> dict[str, list[float]]:
    """Return the times of the pieces, each in seconds from the fork, of `runs` children after a first one."""
    found: dict[str, list[float]] = {piece: [] for piece in PIECES}
    for turn in range(runs + 1):
        ours, theirs = os.pipe()

        def run(vm: VM, theirs: int = theirs) -> None:
            work(vm)
            os.write(theirs, json.dumps(marks.at | {"command": time.perf_counter()}).encode())

        marks.at.clear()
        before = time.perf_counter()
        child = template.fork(run)
        os.close(theirs)
        status = child.wait(60)
        cycle = time.perf_counter() - before
        with open(ours) as file:
            taken = json.loads(file.read()) if not status else {}
        if status or "first exit" not in taken:
            raise SystemExit(f"a child ended with status {status}, pieces {taken}")
        if turn:
            for piece in PIECES[:-1]:
                found[piece].append(taken[piece] - before)
            found["cycle"].append(cycle)
    return found


def show(name: str, boot: float, freeze: float, pieces: dict[str, list[float]]) -> float:
    """Print medians and least times in milliseconds; return the median time of the first exit."""
    for what, figure in ((name, median), ("    least", min)):
        columns = " ".join(f"{1000 * figure(pieces[piece]):10.1f}" for piece in PIECES)
        share = f"{figure(pieces['cycle']) / boot:8.2f}" if boot else ""
        print(f"{what:18}{1000 * boot:8.0f}{1000 * freeze:8.0f} {columns}{share}", flush=True)
    return median(pieces["first exit"])


def head() -> None:
    print(f"{'ms':18}{'boot':>8}{'freeze':>8} " + " ".join(f"{piece:>10}" for piece in PIECES) + f"{'/ boot':>8}")


def tiny(runs: int, marks: Marks) -> bool:
    """Measure the tiny guest; return whether the target is met."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel"
        path.write_bytes(kernel(WRITE_PORT))
        vm = VM(config=MachineConfig(kernel=path, memory=64 << 20, entry="pvh", engine="user")).start()
        vm.run_for(0.2)
        before = time.perf_counter()
        with Template(vm) as template:
            freeze = time.perf_counter() - before
            pieces = forks(template, runs, lambda vm: vm.until(lambda: "first exit" in marks.at, 10, "exit"), marks)
    return show("tiny user 1 vCPU", 0, freeze, pieces) <= TARGETS["tiny"]


def available_memory() -> int:
    """Return the host's available memory in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def linux(image: str, runs: int, marks: Marks) -> bool:
    """Measure a booted Linux with each engine; return whether the target is met."""
    met = True
    for engine in ("user", "kernel"):
        for cpus in (1, 2):
            before = time.perf_counter()
            vm = VM(image, memory="512M", engine=engine, cpus=cpus).boot()
            boot = time.perf_counter() - before
            vm.run_for(SETTLE)
            before = time.perf_counter()
            with Template(vm) as template:
                freeze = time.perf_counter() - before
                begin = available_memory()
                pieces = forks(template, runs, lambda vm: vm.run("true", check=True), marks)
                left = begin - available_memory()
            met &= show(f"{engine} {cpus} vCPU", boot, freeze, pieces) <= TARGETS["linux"]
            descriptors = len(os.listdir("/proc/self/fd"))
            print(f"    {runs + 1} forks left {left >> 10} KiB of memory; {descriptors} descriptors are open")
    return met


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--image", default="debian-6.1")
    parser.add_argument("--only", choices=("tiny", "linux"))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the inner side of linux
    options = parser.parse_args()
    met, marks = True, Marks()
    print(
        f"load {os.getloadavg()[0]:.1f}, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB", flush=True
    )
    if options.here or options.only != "linux":
        head()
    if options.here:
        met = linux(options.image, options.runs, marks)
    if options.only != "linux" and not inside():
        met = tiny(options.runs, marks)
    if options.only != "tiny" and not options.here:
        from pyvmm.images.catalog import find_image

        find_image(options.image)
        arguments = ["--here", "--only", "linux", "--runs", str(options.runs), "--image", options.image]
        met &= run_where_linux_runs(arguments, "tests.bench.fork") == 0
    print(f"targets {'met' if met else 'missed'}: first exit {TARGETS['tiny'] * 1000:.0f} ms tiny, ", end="")
    print(f"{TARGETS['linux'] * 1000:.0f} ms Linux in the emulated host")
    return not met


if __name__ == "__main__":
    sys.exit(main())
