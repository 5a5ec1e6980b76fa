"""Disk throughput of a guest: pyvmm's storvsc beside QEMU's virtio-blk and emulated SCSI, on the same file.

    python -m tests.bench.disk [--mib N] [--size MIB] [--file PATH] [--only NAME ...] [--rounds N] [--engine NAME]

Sequential and random reads and writes with O_DIRECT of 4 KiB, 64 KiB and 1 MiB, 1 and 8 outstanding. All contenders
get Debian's standard 6.1 kernel (the cloud kernel has no driver for QEMU's emulated controllers), one vCPU and
256 MiB; the file is in the host's memory (/dev/shm) unless `--file` names another. Only ratios of one sitting mean
anything. In the emulated host, which has one CPU, the ratios are of its processor time for the same requests: unlike
the time on the wall it hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pyvmm.host.inside import inside
from tests.bench import driver_image
from tests.bench.boot import QEMU_COMMON, QEMU_CONSOLE

KERNEL = r"linux-image-6[.]1[.]0-[0-9]+-amd64"
SOURCE = Path(__file__).with_name("disk_guest.c")
LIMIT = 300.0

INIT = """#!/bin/sh
export PATH=/bin:/sbin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for word in $(cat /proc/cmdline); do
	case $word in
	bench.modules=*) for module in $(echo ${word#*=} | tr , ' '); do insmod /lib/modules/$module.ko; done ;;
	bench.disk=*) disk=${word#*=} ;;
	bench.mib=*) mib=${word#*=} ;;
	esac
done
n=0
while [ ! -b $disk ] && [ $n -lt 300 ]; do sleep 0.1; n=$((n + 1)); done
disk_bench $disk $mib
poweroff -f
"""

Point = tuple[str, str, str, str]  # size, order, direction, outstanding
Results = dict[Point, float]  # MB a second of the wall, or of processor time


@dataclass(frozen=True, slots=True)
class Contender:
    """A VMM with a kind of disk: the guest's modules, and its device's name there."""

    name: str
    modules: tuple[str, ...]
    disk: str
    device: str = ""  # QEMU's; empty for pyvmm


CONTENDERS = (
    Contender("pyvmm storvsc", ("hv_vmbus", "hv_storvsc", "sd_mod"), "/dev/sda"),
    Contender("virtio-blk", ("virtio_pci", "virtio_blk"), "/dev/vda", "virtio-blk-pci,drive=d"),
    Contender("lsi", ("sym53c8xx", "sd_mod"), "/dev/sda", "lsi53c895a -device scsi-hd,drive=d"),
    Contender("megasas", ("megaraid_sas", "sd_mod"), "/dev/sda", "megasas -device scsi-hd,drive=d"),
)


def prepare() -> dict[str, str]:
    """Make kernel and initramfs; return their paths and the modules to load by contender."""
    modules = {each.name: each.modules for each in CONTENDERS}
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch, "disk_bench")
        subprocess.run(["gcc", "-O1", "-static", "-o", built, SOURCE], check=True)
        return driver_image.prepare("disk", KERNEL, INIT, modules, {"bin/disk_bench": built.read_bytes()})


def command(contender: Contender, facts: dict[str, str], file: str, options: argparse.Namespace) -> list[str]:
    """Return the command line of one run."""
    words = f"bench.modules={facts[contender.name]} bench.disk={contender.disk} bench.mib={options.mib}"
    if not contender.device:
        return [
            *(sys.executable, "-m", "pyvmm.cli.main", "run", "--host", "auto", "--hyperv", options.engine),
            *("--kernel", facts["vmlinux"], "--initrd", facts["initrd"], "-m", "256M"),
            *("--disk", f"{file},format=raw", "--append", words, "--no-reboot"),
        ]
    return [
        *(facts["program"], *json.loads(facts["options"]), *QEMU_COMMON, *QEMU_CONSOLE, "-M", "pc", "-cpu", "host"),
        *("-m", "256M", "-kernel", facts["kernel"], "-initrd", facts["initrd"]),
        *("-append", f"console=ttyS0 quiet cryptomgr.notests {words}"),
        *("-drive", f"file={file},format=raw,if=none,id=d,cache=writeback,discard=unmap"),
        *("-device", *contender.device.split()),
    ]


def run(contender: Contender, facts: dict[str, str], file: str, options: argparse.Namespace) -> None:
    """Boot a guest that measures, and print what it says. Raises RuntimeError if it brings too little."""
    environment = os.environ | json.loads(facts["environment"]) if contender.device else dict(os.environ)
    print(f"contender {contender.name}", flush=True)
    with tempfile.TemporaryFile("w+") as errors:
        guest = subprocess.Popen(
            command(contender, facts, file, options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            env=environment,
        )
        assert guest.stdout is not None
        limit = threading.Timer(LIMIT, guest.kill)
        limit.start()
        found, others = 0, ""
        for line in guest.stdout:
            if line.startswith(("BEGIN", "RESULT ")):
                print(line.strip(), flush=True)
                found += line.startswith("RESULT")
            else:
                others += line
        guest.wait()
        limit.cancel()
        errors.seek(0)
        if found != 24:
            raise RuntimeError(f"{contender.name}: {found} results; {others[-500:]} {errors.read()[-1500:]}")


def collect(lines: Iterable[str], processor: Callable[[], float] | None) -> dict[str, list[Results]]:
    """Read what `run` prints; `processor` is the host's processor time. Return each contender's rounds."""
    all: dict[str, list[Results]] = {}
    found: Results = {}
    before = 0.0
    for line in lines:
        words = line.split()
        if words[:1] == ["contender"]:
            found = {}
            all.setdefault(line.strip().partition(" ")[2], []).append(found)
            print(line, end="", flush=True)
        elif words[:1] == ["BEGIN"]:
            before = processor() if processor is not None else 0.0
        elif words[:1] == ["RESULT"] and len(words) == 7:
            seconds = processor() - before if processor is not None else float(words[6])
            size, order, direction, outstanding = words[1:5]
            found[(size, order, direction, outstanding)] = rate = int(words[5]) * int(size) / seconds / 1e6
            print(f"{size:>8} {order:11}{direction:6}{outstanding:>2} at once {rate:10.2f} MB/s", flush=True)
        else:
            print(line, end="", flush=True)
    return all


def report(label: str, all: dict[str, list[Results]], what: str) -> None:
    """Print medians, and the ratios of pyvmm to each of the others."""
    names = list(all)
    print(f"\nMB a second of {what}, medians; {label}; ratios of {names[0]} to the others")
    print(f"{'':34}" + "".join(f"{name:>15}" for name in names) + "".join(f"{'/ ' + name:>13}" for name in names[1:]))
    ratios: dict[str, list[float]] = {}
    for point in all[names[0]][0]:
        values = [median(each[point] for each in all[name]) for name in names]
        size, order, direction, outstanding = point
        kib = f"{int(size) >> 10} KiB"
        row = f"{order:11}{direction:6}{kib:>9}{outstanding:>4} at once"
        quotients = [values[0] / other for other in values[1:]]
        for name, quotient in zip(names[1:], quotients, strict=True):
            ratios.setdefault(f"{name} {kib}", []).append(quotient)
        print(f"{row:34}" + "".join(f"{v:15.2f}" for v in values) + "".join(f"{q:13.2f}" for q in quotients))
    for name, quotients in ratios.items():
        print(f"median ratio to {name:20} {median(quotients):.2f}")


def chosen(parts: Iterable[str]) -> list[Contender]:
    """Return the contenders with one of `parts` in their names; pyvmm always."""
    parts = list(parts)
    return [each for each in CONTENDERS if not each.device or not parts or any(part in each.name for part in parts)]


def measure(options: argparse.Namespace) -> None:
    """Run the contenders in turns. Where Linux runs."""
    facts = json.loads(options.facts)
    file = options.file or "/dev/shm/pyvmm-bench.img"
    try:
        for _ in range(options.rounds):
            for contender in chosen(options.only):
                with open(file, "wb") as disk:
                    for _ in range(options.size):
                        disk.write(os.urandom(1 << 20))
                run(contender, facts, file, options)
    finally:
        if not options.file:
            os.unlink(file)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=16, help="of data a figure, or 20 requests a MiB")
    parser.add_argument("--size", type=int, default=64, help="MiB of the file")
    parser.add_argument("--file", help="measure on this file, which is overwritten")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--engine", default="kernel", choices=("kernel", "user"), help="pyvmm's")
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="QEMU's with PART in the name")
    parser.add_argument("--facts", help=argparse.SUPPRESS)  # what the outer side found
    options = parser.parse_args()
    if options.facts is not None:
        measure(options)
        return 0
    facts = prepare()
    argv = [sys.executable, "-m", "tests.bench.disk", *sys.argv[1:], "--facts", json.dumps(facts)]
    status, all, what = run_and_collect(argv)
    if all and not status:
        report(facts["label"], all, what)
    return status


def run_and_collect(argv: list[str]) -> tuple[int, dict[str, list[Results]], str]:
    """Run the side that measures; return its status, what it found and what kind of time that is in."""
    from pyvmm.launch.probe import probe

    if inside() or probe().usable:
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            found = collect(child.stdout, None)
        return child.returncode, found, "the wall"
    from pyvmm.host.commands import shell_status
    from pyvmm.host.emulated import EmulatedHost

    all: dict[str, list[Results]] = {}
    with EmulatedHost.start(memory_mib=1024, progress=print) as host:
        clock = processor_clock(host._machine.process.pid)
        ours, theirs = os.pipe()

        def read() -> None:
            with open(ours, encoding="utf-8", errors="replace") as lines:
                all.update(collect(lines, lambda: time.clock_gettime(clock)))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            status = shell_status(host.run(argv, stdout=theirs, tty=False, cwd=str(Path(__file__).parents[2])))
        finally:
            os.close(theirs)
            reader.join()
    return status, all, "the emulated host's processor time"


def processor_clock(pid: int) -> int:
    """Return the clock of another process's processor time, as clock_getcpuclockid(3)."""
    return ~pid << 3 | 2


if __name__ == "__main__":
    sys.exit(main())
