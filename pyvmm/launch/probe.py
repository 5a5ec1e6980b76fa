"""Probes the local KVM: whether it can run Linux, and how to fix it if not.

Some KVMs (those of certain nested or emulating hypervisors) answer every ioctl and yet interpret kernel-mode code, an
instruction at a time: Linux takes hours there, or fails at an instruction the interpreter lacks. No capability
reports that, so a tiny guest of kernel-mode code is timed. The verdict is kept until the host reboots.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm import address_map
from pyvmm.errors import HostError
from pyvmm.files import JSON_LIMIT, FileError, parse_json, read_text
from pyvmm.paths import cache_folder, write_private

if TYPE_CHECKING:
    from pyvmm.kvm import Kvm, Vcpu, Vm

PROBE_VERSION = 1  # raise it when a change of the probe may change verdicts
# Hardware runs thousands of millions of these a second, QEMU TCG a hundred million or more; the
# interpreting KVM that this was written on runs two or three million.
INTERPRETED_BELOW = 50e6  # instructions per second
FIRST_LOOPS = 20_000  # a warm-up of some tens of milliseconds even in an interpreter
TIMED_LOOPS = 1_000_000
# mov ecx, [0x1000]; again: dec ecx; jnz again; hlt - in flat 32-bit protected mode
LOOP = bytes.fromhex("8b0d001000004975fdf4")
NEEDED = (
    "USER_MEMORY", "IRQCHIP", "PIT2", "SET_TSS_ADDR", "EXT_CPUID", "MP_STATE", "VCPU_EVENTS", "XSAVE", "IRQFD",
    "IOEVENTFD", "IRQ_ROUTING", "SIGNAL_MSI", "IMMEDIATE_EXIT", "GET_TSC_KHZ", "X86_USER_SPACE_MSR",
    "X86_MSR_FILTER",
)  # fmt: skip


@dataclass(slots=True)
class Finding:
    """The result of one check."""

    what: str
    ok: bool
    detail: str
    fix: str = ""  # how to fix it
    needed: bool = True  # if it fails, the local KVM cannot be used


@dataclass(slots=True)
class Probe:
    """The results of all checks. `usable`: Linux guests can run on the local KVM."""

    findings: list[Finding] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Return whether all needed checks passed."""
        return all(finding.ok for finding in self.findings if finding.needed)

    @property
    def reason(self) -> str:
        """Return why KVM is not usable, in a few words; empty if it is."""
        return next((f"{f.what}: {f.detail}" for f in self.findings if f.needed and not f.ok), "")


def probe(*, fresh: bool = False, path: str = "/dev/kvm") -> Probe:
    """Check the local KVM, or return the verdict kept since the host booted. A failed check raises nothing."""
    kept = _kept_verdict(path)
    if not fresh:
        with contextlib.suppress(FileError, ValueError):
            return Probe(_findings(parse_json(read_text(kept, JSON_LIMIT))))
    found = _check(path)
    if found.findings[0].ok:  # not kept: a missing device or permission may be fixed any time
        with contextlib.suppress(OSError):
            write_private(kept, json.dumps([asdict(finding) for finding in found.findings]).encode())
    return found


def _findings(value: object) -> list[Finding]:
    """Parse the kept findings. Raises ValueError for any other JSON."""
    kinds = {"what": str, "ok": bool, "detail": str, "fix": str, "needed": bool}
    if not isinstance(value, list) or not value:
        raise ValueError("no list of findings")
    for each in value:
        if not isinstance(each, dict) or {name: type(value) for name, value in each.items()} != kinds:
            raise ValueError("not a finding")
    return [Finding(**each) for each in value]


def _kept_verdict(path: str) -> Path:
    boot = "unknown"
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    device = "none"
    with contextlib.suppress(OSError):
        entry = os.stat(path)
        access = os.access(path, os.R_OK | os.W_OK)
        device = f"{entry.st_dev:x}-{entry.st_ino:x}-{entry.st_rdev:x}-{int(access)}"
    return cache_folder() / "host" / f"probe-{PROBE_VERSION}-{boot}-{device}.json"


def _check(path: str) -> Probe:
    from pyvmm.kvm.caps import Cap
    from pyvmm.kvm.system import Kvm

    found = Probe()
    try:
        kvm = Kvm(path)
    except HostError as error:
        detail, _, fix = str(error).partition("; ")
        found.findings.append(Finding(path, False, detail, fix))
        return found
    with kvm:
        found.findings.append(Finding(path, True, f"API version {kvm.api_version}"))
        try:
            missing = [name for name in NEEDED if not kvm.check(Cap[name])]
            found.findings.append(
                Finding(
                    "KVM capabilities",
                    not missing,
                    f"lacks {', '.join(missing)}" if missing else f"all {len(NEEDED)} that are needed",
                    "a newer kernel (5.10 or later)" if missing else "",
                )
            )
            kernel_engine = bool(kvm.check(Cap.HYPERV_SYNIC2) and kvm.check(Cap.HYPERV_EVENTFD))
            found.findings.append(
                Finding(
                    "Hyper-V support in KVM",
                    kernel_engine,
                    "present" if kernel_engine else "absent: pyvmm's own engine is used",
                    "" if kernel_engine else "a kernel with CONFIG_KVM_HYPERV=y",
                    needed=False,
                )
            )
            found.findings.append(_speed(kvm))
        except HostError as error:
            found.findings.append(Finding("a tiny guest", False, str(error), "--host emulated"))
    return found


def _speed(kvm: Kvm) -> Finding:
    rate = instructions_per_second(kvm)
    what = "kernel-mode code"
    if rate < INTERPRETED_BELOW:
        detail = f"this KVM interprets it ({rate / 1e6:.1f} million instructions a second)"
        return Finding(what, False, detail, "a machine with hardware virtualization; or --host emulated")
    return Finding(what, True, f"runs on the processor ({rate / 1e6:.0f} million instructions a second)")


@contextlib.contextmanager
def tiny_guest(
    kvm: Kvm, code: bytes, *, prepare: Callable[[Vm], None] = lambda vm: None
) -> Iterator[tuple[Vcpu, mmap.mmap]]:
    """Make a VM of 16 KiB with `code` at 0, entered in flat 32-bit protected mode; `prepare` comes before the vCPU.

    Yields the vCPU and the memory. Raises HostError.
    """
    from pyvmm.kvm import structs

    memory = mmap.mmap(-1, 0x4000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    memory[: len(code)] = code
    with kvm.create_vm() as vm:
        vm.set_tss_address(address_map.TSS.start)
        vm.set_memory(0, 0, 0x4000, address)
        prepare(vm)
        with vm.create_vcpu(0) as vcpu:
            sregs = vcpu.sregs
            for name in ("cs", "ds", "es", "fs", "gs", "ss"):
                segment = getattr(sregs, name)
                segment.base, segment.limit, segment.selector = 0, 0xFFFF_FFFF, 8 if name == "cs" else 16
                segment.type = 11 if name == "cs" else 3
                segment.present, segment.dpl, segment.db, segment.s, segment.g = 1, 0, 1, 1, 1
                setattr(sregs, name, segment)
            sregs.cr0 |= 1
            vcpu.sregs = sregs
            vcpu.regs = structs.Regs(rip=0, rflags=2)
            yield vcpu, memory


def instructions_per_second(kvm: Kvm) -> float:
    """Measure the speed of a guest's ring 0 loop. Raises HostError if the guest does not finish it."""
    from pyvmm.kvm import structs
    from pyvmm.kvm.exits import Hlt

    with tiny_guest(kvm, LOOP) as (vcpu, memory):

        def timed(loops: int) -> float:
            memory[0x1000:0x1004] = loops.to_bytes(4, "little")
            vcpu.regs = structs.Regs(rip=0, rflags=2)
            before = time.perf_counter()
            ended = vcpu.run()
            seconds = time.perf_counter() - before
            if not isinstance(ended, Hlt):
                raise HostError(f"a loop in a tiny guest ended in {ended}")
            return 2 * loops / seconds

        timed(FIRST_LOOPS)  # maps the pages it accesses
        rate = timed(FIRST_LOOPS)
        # A short run may be dominated by the cost of one entry: a fast one is timed again, for longer.
        return rate if rate < INTERPRETED_BELOW / 10 else timed(TIMED_LOOPS)
