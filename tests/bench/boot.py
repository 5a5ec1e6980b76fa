"""How long from a process's start to the first line of the guest's /init: pyvmm beside QEMU, in turns.

    python -m tests.bench.boot [--runs N] [--image debian-6.1] [--only NAME ...]

Every contender gets the same kernel and initramfs, one vCPU, 512 MiB and `quiet`, and is the only thing that runs at
its time. The rounds are interleaved, each in an order of its own; only ratios of one sitting mean anything. Where the
local KVM does not run Linux all of it happens in the emulated host.

What pyvmm starts from is measured in two ways. *fork*: from a Python that has all of pyvmm imported, as `pyvmm run`
starts in the emulated host (pyvmm.host.preload). *exec*: a new interpreter, which imports all it needs.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import mmap
import os
import pkgutil
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pyvmm.host.emulated import SIZES_MIB
from pyvmm.host.inside import inside
from pyvmm.host.preload import OWN_PACKAGE

FIRST_LINE = b"pyvmm: init"
LIMIT = 90.0  # seconds for one boot
SETTLE = 1.0  # seconds in which the host may clean up after the one before
KEPT_FREE = 128 << 20  # bytes that `wash` leaves alone
HUGE_PAGE = 2 << 20
MEMORY = "512M"
HV_FLAGS = (
    "hv-relaxed,hv-vapic,hv-time,hv-vpindex,hv-runtime,hv-synic,hv-stimer,hv-stimer-direct,hv-frequencies,"
    "hv-reset,hv-crash,hv-xmm-input"
)
QEMU_COMMON = ("-accel", "kvm", "-m", MEMORY, "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none")
QEMU_CONSOLE = ("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console")
GUEST_WORDS = "i8042.noaux i8042.nokbd 8250.nr_uarts=2 cryptomgr.notests"
"""What pyvmm tells its guests and saves them work, for all; a keyboard controller only QEMU has."""
MICROVM = "microvm,acpi=off,pit=on,pic=on,rtc=on,auto-kernel-cmdline=off,isa-serial=on"


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to boot the guest. `argv` is started anew, or pyvmm's arguments are run in a fork of this process."""

    name: str
    argv: tuple[str, ...]
    fork: bool = False


def contenders(image: str, facts: dict[str, object]) -> list[Contender]:
    """All there are, pyvmm's first."""
    from pyvmm.images.catalog import find_image

    found = find_image(image, build=False)
    kernel, vmlinux, initrd = str(found.kernel), str(found.vmlinux), str(found.initrd)
    result = []
    for fork in (True, False):
        for engine in ("kernel", "user"):
            arguments = ("run", "--host", "auto", "--hyperv", engine, "--image", image, "-m", MEMORY)
            name = f"pyvmm-{engine}-{'fork' if fork else 'exec'}"
            argv = arguments if fork else (sys.executable, "-m", "pyvmm.cli.main", *arguments)
            result.append(Contender(name, argv, fork))
    program, options = str(facts["program"]), tuple(facts["options"])  # type: ignore[arg-type]
    boot = ("-initrd", initrd)
    # hv-balloon is a device of QEMU 8.2 and later.
    balloon = ("-device", "hv-balloon") if facts["has_balloon"] else ()
    result.append(
        Contender(
            "qemu-pc",
            (
                *(program, *options, *QEMU_COMMON, *QEMU_CONSOLE, "-M", "pc"),
                *("-cpu", f"host,kvm=off,{HV_FLAGS}", "-device", "vmbus-bridge", *balloon),
                *("-kernel", kernel, *boot, "-append", f"console=ttyS0 quiet {GUEST_WORDS}"),
            ),
        )
    )
    # Of all its options these made it quickest. Without the PIT Linux never learns the local APIC timer's rate and
    # hangs; without the CMOS clock it waits seconds for one.
    result.append(
        Contender(
            "qemu-microvm",
            (
                *(program, *options, *QEMU_COMMON, *QEMU_CONSOLE, "-M", MICROVM, "-cpu", "host"),
                *("-kernel", vmlinux, *boot),
                *("-append", f"console=ttyS0 quiet {GUEST_WORDS} pci=off no_timer_check"),
            ),
        )
    )
    return result


def named(all: list[Contender], parts: list[str]) -> list[Contender]:
    """Those with one of `parts` in their names; all without any."""
    return [c for c in all if not parts or any(part in c.name for part in parts)]


def boot(contender: Contender, environment: dict[str, str]) -> float:
    """Seconds from the start to the first line. Raises RuntimeError, with what came instead."""
    console, theirs = os.pipe()
    start = time.monotonic()
    if contender.fork:
        pid = os.fork()
        if pid == 0:
            _become_pyvmm(contender.argv, theirs)
        kill: Callable[[], object] = lambda: (os.kill(pid, signal.SIGKILL), os.waitpid(pid, 0))  # noqa: E731
    else:
        process = subprocess.Popen(
            contender.argv,
            stdin=subprocess.PIPE,
            stdout=theirs,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
        kill = lambda: (process.kill(), process.wait(), process.stdin.close())  # type: ignore[union-attr] # noqa: E731
    os.close(theirs)
    seen = bytearray()
    try:
        while (left := start + LIMIT - time.monotonic()) > 0:
            if not select.select([console], [], [], left)[0]:
                break
            data = os.read(console, 65536)
            if not data:
                break
            seen += data
            if FIRST_LINE in seen:
                return time.monotonic() - start
    finally:
        kill()
        os.close(console)
    raise RuntimeError(f"{contender.name}: no first line of /init, but {bytes(seen[-400:])!r}")


def _become_pyvmm(arguments: tuple[str, ...], output: int) -> None:
    """In the fork: be the command line."""
    try:
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        silent, _held = os.pipe()
        os.dup2(silent, 0)
        from pyvmm.cli.main import main

        sys.argv = ["pyvmm", *arguments]
        os._exit(main(arguments))
    finally:
        os._exit(99)


def import_all() -> None:
    """What the emulated host's ready Python has imported."""
    for module in pkgutil.walk_packages(importlib.import_module(OWN_PACKAGE).__path__, f"{OWN_PACKAGE}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def wash() -> None:
    """In the emulated host: have its free memory zeroed once, by taking it and giving it back.

    A page that held a guest's code is dear to use again: TCG throws the translations of that code away one by one
    when the page is written, 25 to 60 ms for 2 MiB of kernel text. Who boots next would pay for it, whoever that is:
    up to 0.2 s, as the host's allocator has it. No real machine has such debts.
    """
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    size = int(fields["MemFree"].split()[0]) * 1024 - KEPT_FREE
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, size, HUGE_PAGE):
            memory[at] = 1


def measure(chosen: list[Contender], runs: int, environment: dict[str, str]) -> dict[str, list[float]]:
    """`runs` rounds over all `chosen`, after a warm-up. A boot that fails is told and left out."""
    import_all()
    gc.collect()
    gc.freeze()  # as the emulated host's ready Python does
    times: dict[str, list[float]] = {c.name: [] for c in chosen}
    for turn in range(runs + 1):
        # In another order each round: every few boots TCG forgets all its translations, and one boot suffers.
        for contender in random.sample(chosen, len(chosen)):
            time.sleep(SETTLE)
            if inside():
                wash()
            print(f"start {contender.name}", flush=True)
            try:
                taken = boot(contender, environment)
            except RuntimeError as error:
                print(error, file=sys.stderr, flush=True)
                continue
            print(f"{'warm-up' if not turn else f'round {turn}'} {contender.name} {taken:.2f} s", flush=True)
            if turn:
                times[contender.name].append(taken)
    return times


def report(image: str, version: str, times: dict[str, list[float]]) -> None:
    """Medians and ratios."""
    print(f"\n{image}, 1 vCPU, {MEMORY}, quiet; {version}; {os.cpu_count()} CPUs; load {os.getloadavg()[0]:.1f}")
    medians = {name: median(taken) for name, taken in times.items() if taken}
    microvms = [name for name in medians if name.startswith("qemu-microvm")]
    best = min(microvms, key=lambda name: medians[name], default="")
    print(f"{'':22}{'median':>8}{'least':>8}{'runs':>6}{'/ pc':>8}{'/ ' + (best or 'microvm'):>20}")
    for name, value in medians.items():
        ratios = [f"{value / medians[other]:8.2f}" if other in medians else "" for other in ("qemu-pc", best)]
        print(f"{name:22}{value:8.2f}{min(times[name]):8.2f}{len(times[name]):6}{ratios[0]:>8}{ratios[1]:>20}")


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--image", "--kernel", default="debian-6.1")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PART", help="contenders with PART in the name"
    )
    parser.add_argument("--qemu", help=argparse.SUPPRESS)  # what the outer side found
    options = parser.parse_args()

    if options.qemu is None:
        return run_where_linux_runs([*sys.argv[1:], "--qemu", qemu_facts(options.image)])
    facts = json.loads(options.qemu)
    chosen = named(contenders(options.image, facts), options.only)
    times = measure(chosen, options.runs, facts["environment"])
    report(options.image, facts["label"], times)
    return 0 if all(times.values()) else 1


def qemu_facts(image: str) -> str:
    """What the side that measures must know of QEMU; also sees to it that the image is built."""
    from pyvmm.images.catalog import find_image
    from tests.bench.qemu10 import find_qemu

    find_image(image)
    qemu = find_qemu(lambda line: print(line, file=sys.stderr))
    return json.dumps(
        {
            "program": qemu.program,
            "options": qemu.options,
            "environment": qemu.environment,
            "has_balloon": qemu.has_balloon,
            "label": qemu.label,
        }
    )


def run_where_linux_runs(
    arguments: list[str], module: str = "tests.bench.boot", memory_mib: int = SIZES_MIB[0]
) -> int:
    """Run `python -m MODULE ARGUMENTS` on this machine's KVM or in an emulated host of its own.

    Then a line of output that begins with `start` or `round` is shown with the processor time that the emulated host
    took since: unlike the time on the wall it hardly depends on what else the machine does.
    """
    from pyvmm.launch.probe import probe

    argv = [sys.executable, "-m", module, *arguments]
    if inside() or probe().usable:
        return subprocess.call(argv)
    from pyvmm.host.commands import shell_status
    from pyvmm.host.emulated import EmulatedHost

    print("in the emulated host (QEMU TCG)", flush=True)
    with EmulatedHost.start(memory_mib=memory_mib, progress=print) as host:
        pid = host._machine.process.pid
        ours, theirs = os.pipe()
        watcher = threading.Thread(target=_watch, args=(ours, pid))
        watcher.start()
        try:
            return shell_status(host.run(argv, stdout=theirs, tty=False, cwd=str(Path(__file__).parents[2])))
        finally:
            os.close(theirs)
            watcher.join()


def _watch(lines: int, pid: int) -> None:
    """Show the inner side's lines, with the processor time of each boot."""
    before = 0.0
    spent: dict[str, list[float]] = {}
    with open(lines, encoding="utf-8", errors="replace") as file:
        for line in file:
            words = line.split()
            if words[:1] == ["start"]:
                before = _processor_seconds(pid)
                continue
            if words[:1] in (["warm-up"], ["round"]):
                seconds = _processor_seconds(pid) - before
                name = words[-3]
                line = f"{line.rstrip():44} processor {seconds:6.2f} s\n"
                if words[0] == "round":
                    spent.setdefault(name, []).append(seconds)
            print(line, end="", flush=True)
    if spent:
        print("\nprocessor time of the emulated host, medians:")
        for name, seconds_of in spent.items():
            print(f"{name:22}{median(seconds_of):8.2f}")


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
