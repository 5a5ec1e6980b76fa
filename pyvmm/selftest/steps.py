"""The steps that one guest goes through: boot, faults, registers, balloon, reboot, kexec, panic.

A step is a function of a `Guest`. It returns an Outcome, or raises StepFailed, or an error of the API.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyvmm.api import Machine
from pyvmm.client.replies import access_text
from pyvmm.errors import HostError
from pyvmm.hyperv.crash import panic_line
from pyvmm.selftest.programs import FAULTS
from pyvmm.selftest.rows import Figures, Outcome, StepFailed
from pyvmm.sizes import format_size

MIB = 1 << 20
BOOT_SIZE, GROWN_SIZE, SMALL_SIZE = 512 * MIB, 768 * MIB, 256 * MIB
TOTAL_SLACK = 24 * MIB
"""Difference between a resize and the change of MemTotal that is no failure: Linux's own books for added memory."""

RESIDENT_SLACK = 160 * MIB
"""Memory of the process beyond the guest's size after memory was taken out: pyvmm's own, and the kernel's file."""

ALARMS = "WARNING:|BUG:|unchecked MSR|Call Trace:|rcu.*stall|soft lockup|Oops|clocksource.*unstable|hung_task"
"""What a healthy guest's log does not have, as a pattern for grep."""

EXPECTED = "PCI: Fatal: No config space access function found"
"""An error that each guest logs: it has no PCI."""

PATTERN_LINES = 400_000  # 3 MiB of digits
_PATTERN = "/tmp/selftest-pattern"


@dataclass(slots=True)
class Guest:
    """A running machine, and how long its steps may take. `fill` is the memory that it touches before a resize."""

    vm: Machine
    cpus: int
    boot_limit: float
    limit: float
    fill: int = 128 * MIB
    boot_id: str = ""
    pattern: str = ""

    def sh(self, command: str) -> str:
        """Run a command that must succeed and return its output."""
        done = self.vm.run(command, timeout=self.limit)
        if done.status:
            text = (done.stderr or done.stdout).strip().splitlines()
            raise StepFailed(
                f"{command.split()[0]} ended with status {done.status}" + (f": {text[-1]}" if text else "")
            )
        return done.stdout

    def memory_total(self) -> int:
        """Return the guest's MemTotal in bytes."""
        return int(self.sh("grep MemTotal: /proc/meminfo").split()[1]) << 10

    def balloon(self, size: int) -> float:
        """Resize to `size` bytes; return the seconds. Raises StepFailed if the size is not reached."""
        before = time.monotonic()
        memory = self.vm.balloon(size, timeout=self.limit)
        if memory.actual != size:
            last = (self.vm.describe().get("balloon") or {}).get("last-result", "")
            raise StepFailed(f"reached {format_size(memory.actual)} instead of {format_size(size)}: {last}")
        return time.monotonic() - before

    def write_pattern(self) -> None:
        """Write memory whose contents must not change, once a boot."""
        if not self.pattern:
            self.pattern = self.sh(f"seq {PATTERN_LINES} >{_PATTERN}; md5sum <{_PATTERN}")

    def wait_driver(self) -> None:
        """Wait until hv_balloon has opened its channel and sent its capabilities."""
        deadline = time.monotonic() + self.limit
        while (state := (self.vm.describe().get("balloon") or {}).get("state")) != "Idle":
            if time.monotonic() > deadline:
                raise StepFailed(f"hv_balloon is in state {state} after {self.limit:g} s")
            time.sleep(0.1)


def boot(guest: Guest) -> Outcome:
    """Power the machine on and wait for the agent; check what Linux says of Hyper-V."""
    before = time.monotonic()
    guest.vm.start()
    guest.vm.wait_ready(guest.boot_limit)
    seconds = time.monotonic() - before
    release, boot_id, cpus, clock = guest.sh(
        "uname -r; cat /proc/sys/kernel/random/boot_id; nproc; "
        "cat /sys/devices/system/clocksource/clocksource0/current_clocksource"
    ).split()
    guest.boot_id = boot_id
    log = guest.sh("dmesg | grep -E 'Hypervisor detected|Vmbus version|Using Dynamic Memory' || true")
    if "Microsoft Hyper-V" not in log:
        raise StepFailed("Linux does not find Hyper-V")
    if int(cpus) != guest.cpus:
        raise StepFailed(f"Linux has {cpus} of {guest.cpus} CPUs")
    version = next(
        (line.rpartition("Vmbus version:")[2].strip() for line in log.splitlines() if "Vmbus" in line), "?"
    )
    figures: Figures = {"boot": round(seconds, 3), "release": release, "clocksource": clock, "vmbus": version}
    return Outcome(f"Linux {release}, VMBus {version}, clock {clock}", figures)


def faults(guest: Guest) -> Outcome:
    """Let user programs fault in six ways; each must die by its signal, and the guest must live."""
    for number, (what, signal) in FAULTS.items():
        status = guest.vm.run(f"/selftest/fault {number}", timeout=guest.limit).status
        if status != 128 + signal:
            raise StepFailed(f"{what}: status {status} instead of signal {signal}")
    return Outcome(f"{len(FAULTS)} kinds, each ends its program")


def registers(guest: Guest) -> Outcome:
    """Hold patterns in the vector registers of two programs at a time, over exits and context switches."""
    flags = set(guest.sh("grep -m1 ^flags /proc/cpuinfo").split())
    program, name = ("state128", "SSE")
    if {"avx512f", "xsave"} <= flags:
        program, name = "state512", "AVX-512"
    elif {"avx", "xsave"} <= flags:
        program, name = "state256", "AVX"
    status = guest.vm.run(
        f"cd /selftest; ./{program} 1 & a=$!; ./{program} 2 & b=$!; wait $a || exit 3; wait $b || exit 3",
        timeout=guest.limit,
    ).status
    if status:
        raise StepFailed(f"{name} registers changed over exits and switches (status {status})")
    figures: Figures = {"registers": name, "xsave": "yes" if "xsave" in flags else "no"}
    return Outcome(f"{name} registers hold over exits and switches", figures)


def out(guest: Guest) -> Outcome:
    """Take half of the memory out, with a pattern in what stays."""
    guest.wait_driver()
    guest.write_pattern()
    total = guest.memory_total()
    fill = guest.fill // MIB
    guest.sh(f"dd if=/dev/zero of=/tmp/fill bs=1M count={fill} 2>/dev/null; rm /tmp/fill")
    before = guest.vm.memory.resident
    seconds = guest.balloon(SMALL_SIZE)
    after = guest.vm.memory.resident
    _check_total(guest, total - (BOOT_SIZE - SMALL_SIZE))
    _check_pattern(guest)
    if after > SMALL_SIZE + RESIDENT_SLACK:
        raise StepFailed(f"the host keeps {format_size(after)} for a guest of {format_size(SMALL_SIZE)}")
    reporting = guest.vm.describe().get("page-reporting") or {}
    figures: Figures = {
        "resize": round(seconds, 3),
        "resident-before": before,
        "resident-after": after,
        "huge": _huge_pages(),
        "reported": reporting.get("discarded", 0),
    }
    return Outcome(f"512 to 256 MiB in {seconds:.2f} s; resident {before // MIB} to {after // MIB} MiB", figures)


def back(guest: Guest) -> Outcome:
    """Give the memory back."""
    total = guest.memory_total()
    seconds = guest.balloon(BOOT_SIZE)
    _check_total(guest, total + (BOOT_SIZE - SMALL_SIZE))
    _check_pattern(guest)
    return Outcome(f"256 to 512 MiB in {seconds:.2f} s", {"resize": round(seconds, 3)})


def hot_add(guest: Guest) -> Outcome:
    """Grow the guest past its boot size."""
    guest.wait_driver()
    guest.write_pattern()
    total = guest.memory_total()
    seconds = guest.balloon(GROWN_SIZE)
    _check_total(guest, total + (GROWN_SIZE - BOOT_SIZE))
    _check_pattern(guest)
    return Outcome(f"512 to 768 MiB in {seconds:.2f} s", {"resize": round(seconds, 3)})


def log(guest: Guest) -> Outcome:
    """Look for warnings in the kernel's log, and at what nothing in pyvmm handled."""
    found = guest.sh(f"dmesg | grep -E '{ALARMS}' || true").splitlines()
    if found:
        raise StepFailed(f"{len(found)} alarms in the guest's log, the first: {found[0].strip()}")
    errors = [line for line in guest.sh("dmesg -r | grep -E '^<[0-3]>' || true").splitlines() if EXPECTED not in line]
    about = guest.vm.describe()
    figures: Figures = {"errors": len(errors)}
    if errors:
        figures["first-error"] = errors[0]
    for row in about["unhandled"]["accesses"]:
        figures[access_text(row["kind"], row["number"], row["name"])] = row["count"]
    for vcpu, exits in about["exits"].items():
        figures[f"exits of {vcpu}"] = sum(exits.values())
    return Outcome("no warnings" + (f", {len(errors)} errors" if errors else ""), figures)


def reboot(guest: Guest) -> Outcome:
    """Reboot from inside; the balloon's target of 768 MiB is applied anew."""
    before = guest.vm.describe()["resets"]
    outcome = _again(guest, "reboot -f")
    if guest.vm.describe()["resets"] != before + 1:
        raise StepFailed("the guest came back without a reset")
    return outcome


def kexec(guest: Guest) -> Outcome:
    """Go on to a second kernel without a reset; VMBus and balloon start anew."""
    before = guest.vm.describe()["resets"]
    words = shlex.quote(guest.sh("cat /proc/cmdline").strip())
    outcome = _again(guest, f"/selftest/kexec /selftest/vmlinuz /selftest/initrd {words}")
    if guest.vm.describe()["resets"] != before:
        raise StepFailed("the machine was reset instead")
    guest.wait_driver()
    return outcome


def panic(guest: Guest) -> Outcome:
    """Let the kernel panic; the report comes over the Hyper-V crash registers."""
    try:
        done = guest.vm.run("echo c >/proc/sysrq-trigger", timeout=guest.limit)
        raise StepFailed(f"the kernel did not panic (status {done.status})")
    except HostError:  # the machine has ended
        pass
    end = guest.vm.wait(guest.limit)
    if end.kind != "panic":
        raise StepFailed(f"the machine ended by {end.kind}: {end.text}")
    line = panic_line(end.text)
    if "sysrq" not in line:
        raise StepFailed(f"the report is about something else: {line}")
    return Outcome(line)


def _again(guest: Guest, command: str) -> Outcome:
    """Run a command that ends this boot, and wait for the next one."""
    before = time.monotonic()
    try:
        done = guest.vm.run(command, timeout=guest.boot_limit)
        raise StepFailed(f"{command.split()[0]} ended with status {done.status}: {done.stderr.strip()[-100:]}")
    except HostError:  # the guest has restarted, or is about to
        pass
    guest.vm.wait_ready(guest.boot_limit)
    boot_id, cpus = guest.sh("cat /proc/sys/kernel/random/boot_id; nproc").split()
    seconds = time.monotonic() - before
    if boot_id == guest.boot_id:
        raise StepFailed("it is still the same boot")
    guest.boot_id, guest.pattern = boot_id, ""
    if int(cpus) != guest.cpus:
        raise StepFailed(f"Linux has {cpus} of {guest.cpus} CPUs")
    return Outcome(f"up again after {seconds:.1f} s", {"boot": round(seconds, 3)})


def _huge_pages() -> int:
    """Return the bytes of this process in transparent huge pages; 0 if the host does not tell."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("AnonHugePages:")), 0)


def _check_total(guest: Guest, wanted: int) -> None:
    total = guest.memory_total()
    if abs(total - wanted) > TOTAL_SLACK:
        raise StepFailed(f"MemTotal is {total // MIB} MiB instead of {wanted // MIB}")


def _check_pattern(guest: Guest) -> None:
    if guest.sh(f"md5sum <{_PATTERN}") != guest.pattern:
        raise StepFailed("memory that stayed in the guest has changed")


Step = Callable[[Guest], Outcome]
STEPS: dict[str, Step] = {
    "boot": boot,
    "faults": faults,
    "registers": registers,
    "balloon out": out,
    "balloon back": back,
    "hot-add": hot_add,
    "kernel log": log,
    "reboot": reboot,
    "kexec": kexec,
    "panic": panic,
}
"""All steps by the table's names, in their order."""
