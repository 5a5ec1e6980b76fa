"""What confinement costs: importing it, confining a process that is ready, and each exit of a guest from then on.

python -m tests.bench.sandbox [--runs N]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import subprocess
import sys
import time
from statistics import median

EXITS = 20_000


def child() -> None:
    """Measure in this process, which is confined on the way."""
    from pyvmm.kvm import Kvm

    kvm = Kvm()
    vm = kvm.create_vm()
    ram = mmap.mmap(-1, 0x10000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    ram[0x1000:0x1004] = bytes.fromhex("E680EBFC")  # out 0x80, al; over and over
    vm.set_memory(0, 0, len(ram), ctypes.addressof(ctypes.c_char.from_buffer(ram)))
    vcpu = vm.create_vcpu(0)
    vcpu.set_cpuid(kvm.supported_cpuid())
    sregs = vcpu.sregs
    sregs.cs.base = sregs.cs.selector = 0
    vcpu.sregs = sregs
    regs = vcpu.regs
    regs.rip, regs.rflags = 0x1000, 2
    vcpu.regs = regs

    def exit_time() -> float:
        start = time.perf_counter()
        for _ in range(EXITS):
            vcpu.run()
        return (time.perf_counter() - start) / EXITS

    exit_time()
    before = exit_time()
    start = time.perf_counter()
    from pyvmm.sandbox.confine import confine

    imported = time.perf_counter()
    confine("on")
    done = time.perf_counter()
    print(json.dumps([imported - start, done - imported, before, exit_time()]))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--child", action="store_true")
    options = parser.parse_args()
    if options.child:
        child()
        return
    command = [sys.executable, "-m", "tests.bench.sandbox", "--child"]
    rows = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(options.runs)]
    imported, confining, free, confined = (median(column) for column in zip(*rows, strict=True))
    print(f"import {imported * 1000:.1f} ms, confine {confining * 1000:.1f} ms")
    print(f"an exit and back: {free * 1e6:.2f} us before, {confined * 1e6:.2f} us confined, {confined / free:.2f}")


if __name__ == "__main__":
    main()
