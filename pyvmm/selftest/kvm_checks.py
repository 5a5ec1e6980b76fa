"""Checks of the local KVM with tiny guests of a few instructions: speed, exits, MSR exits, TSC, register state."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from pyvmm.kvm import Cap, Hlt, IoIn, Kvm, MsrRange, Rdmsr, Vm
from pyvmm.kvm.abi import MsrExitReason
from pyvmm.launch.probe import INTERPRETED_BELOW, instructions_per_second, tiny_guest
from pyvmm.selftest.rows import Outcome, StepFailed, StepSkipped

EXITS = 1000
_PORT = 0x300  # no device of KVM
_READS = bytes.fromhex("66 ba 00 03  ec eb fd")  # mov dx, 0x300; again: in al, dx; jmp again
_MSR = 0x40000081  # SVERSION: KVM knows it, and a filter keeps it
_ABSENT_MSR = 0x4B564DFF  # in KVM's own range, and not assigned
TSC_TENTHS = 9


def speed(kvm: Kvm) -> Outcome:
    """Time a loop in kernel mode."""
    rate = instructions_per_second(kvm)
    if rate < INTERPRETED_BELOW:
        raise StepFailed(f"this KVM interprets kernel-mode code ({rate / 1e6:.1f} million instructions a second)")
    return Outcome(f"{rate / 1e6:.0f} million instructions a second", {"instructions-per-second": round(rate)})


def exits(kvm: Kvm) -> Outcome:
    """Time a port read that Python answers: entry, exit, decoding, answer."""
    with tiny_guest(kvm, _READS) as (vcpu, _):
        times = []
        for _ in range(3):
            before = time.perf_counter()
            for _ in range(EXITS):
                exit = vcpu.run()
                if not isinstance(exit, IoIn) or exit.port != _PORT:
                    raise StepFailed(f"a port read is {exit}")
                exit.reply(b"\0")
            times.append((time.perf_counter() - before) / EXITS)
    best = min(times) * 1e6
    return Outcome(f"{best:.1f} µs for a port read and back", {"exit-us": round(best, 2)})


def msr_exits(kvm: Kvm) -> Outcome:
    """Read an MSR that a filter keeps, and one that KVM does not know: both must be exits with the right reason."""
    if not (kvm.check(Cap.X86_USER_SPACE_MSR) and kvm.check(Cap.X86_MSR_FILTER)):
        raise StepSkipped("this KVM lacks KVM_CAP_X86_USER_SPACE_MSR or KVM_CAP_X86_MSR_FILTER")
    reasons = [_msr_reason(kvm, msr) for msr in (_MSR, _ABSENT_MSR)]
    if reasons[0] != "FILTER":
        raise StepFailed(f"the reason of a filtered one is {reasons[0]}")
    if reasons[1] is None and _ignores_msrs():
        return Outcome("a filtered MSR exits; unknown ones are ignored (parameter ignore_msrs of the module kvm)")
    if reasons[1] not in ("UNKNOWN", "INVAL"):
        raise StepFailed(f"the reason of an unknown one is {reasons[1]}")
    return Outcome(f"filtered and unknown MSRs exit ({', '.join(filter(None, reasons))})")


def _msr_reason(kvm: Kvm, msr: int) -> str | None:
    """Return the reason with which a read of `msr` exits; None if it does not."""
    code = b"\xb9" + msr.to_bytes(4, "little") + bytes.fromhex("0f 32 f4")  # mov ecx, MSR; rdmsr; hlt
    with tiny_guest(kvm, code, prepare=_keep_msrs) as (vcpu, _):
        exit = vcpu.run()
    if isinstance(exit, Hlt):
        return None
    if not isinstance(exit, Rdmsr) or exit.index != msr:
        raise StepFailed(f"RDMSR {msr:#x} is {exit}")
    return MsrExitReason(exit.reason).name or str(exit.reason)


def _ignores_msrs() -> bool:
    try:
        return Path("/sys/module/kvm/parameters/ignore_msrs").read_text().strip() == "Y"
    except OSError:
        return False


def _keep_msrs(vm: Vm) -> None:
    vm.enable_cap(Cap.X86_USER_SPACE_MSR, int(MsrExitReason.FILTER | MsrExitReason.UNKNOWN | MsrExitReason.INVAL))
    vm.set_msr_filter([MsrRange.deny(_MSR, 1)])


def tsc(kvm: Kvm) -> Outcome:
    """Ask for another TSC frequency: hardware that scales takes it."""
    with tiny_guest(kvm, b"\xf4") as (vcpu, _):
        own = vcpu.tsc_khz
        figures: dict[str, float | int | str] = {"tsc-khz": own}
        if not kvm.check(Cap.TSC_CONTROL):
            return Outcome(f"{own / 1000:.0f} MHz; this CPU does not scale it", figures)
        wanted = own * TSC_TENTHS // 10
        vcpu.tsc_khz = wanted
        if vcpu.tsc_khz != wanted:
            raise StepFailed(f"{wanted} kHz was set, {vcpu.tsc_khz} read back")
    return Outcome(f"{own / 1000:.0f} MHz, scaled to {wanted / 1000:.0f} MHz and read back", figures)


def state(kvm: Kvm) -> Outcome:
    """Read and write back the extended register state (XSAVE)."""
    with tiny_guest(kvm, b"\xf4") as (vcpu, _):
        before = vcpu.xsave
        vcpu.xsave = before
        if vcpu.xsave != before:
            raise StepFailed("the register state read back differs")
    size = kvm.check(Cap.XSAVE2) or len(before)
    return Outcome(f"{size} bytes of register state", {"xsave-bytes": size})


CHECKS: dict[str, Callable[[Kvm], Outcome]] = {
    "speed": speed,
    "exits": exits,
    "MSR exits": msr_exits,
    "TSC": tsc,
    "register state": state,
}
"""All checks by the table's names, in their order."""
