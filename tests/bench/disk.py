"""Disk throughput of a guest: pyvmm's storvsc beside QEMU's virtio-blk and emulated SCSI, on the same file.

    python -m tests.bench.disk [--seconds N] [--size MIB] [--file PATH] [--only NAME ...] [--rounds N]

Sequential and random reads and writes with O_DIRECT of 4 KiB, 64 KiB and 1 MiB, 1 and 8 outstanding. All contenders
get Debian's standard 6.1 kernel (the cloud kernel has no driver for QEMU's emulated controllers), one vCPU and
256 MiB; the file is in the host's memory (/dev/shm) unless `--file` names another. Only ratios of one sitting mean
anything.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench import driver_image
from tests.bench.boot import QEMU_COMMON, QEMU_CONSOLE, run_where_linux_runs

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
	bench.seconds=*) seconds=${word#*=} ;;
	esac
done
n=0
while [ ! -b $disk ] && [ $n -lt 300 ]; do sleep 0.1; n=$((n + 1)); done
disk_bench $disk $seconds
poweroff -f
"""

Point = tuple[str, str, str, str]  # size, order, direction, outstanding
Results = dict[Point, float]  # MB/s


@dataclass(frozen=True, slots=True)
class Contender:
    """A VMM with a kind of disk: the guest's modules, and its device's name there."""

    name: str
    modules: tuple[str, ...]
    disk: str
    device: str = ""  # QEMU's; empty for pyvmm
    engine: str = "kernel"


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


def command(contender: Contender, facts: dict[str, str], file: str, seconds: float) -> list[str]:
    """Return the command line of one run."""
    words = f"bench.modules={facts[contender.name]} bench.disk={contender.disk} bench.seconds={seconds}"
    if not contender.device:
        return [
            *(sys.executable, "-m", "pyvmm.cli.main", "run", "--host", "auto", "--hyperv", contender.engine),
            *(
                "--kernel",
                facts["vmlinux"],
                "--initrd",
                facts["initrd"],
                "-m",
                "256M",
                "--disk",
                f"{file},format=raw",
            ),
            *("--append", words, "--no-reboot"),
        ]
    return [
        *(facts["program"], *json.loads(facts["options"]), *QEMU_COMMON, *QEMU_CONSOLE, "-M", "pc", "-cpu", "host"),
        *("-m", "256M", "-kernel", facts["kernel"], "-initrd", facts["initrd"]),
        *("-append", f"console=ttyS0 quiet cryptomgr.notests {words}"),
        *("-drive", f"file={file},format=raw,if=none,id=d,cache=writeback,discard=unmap"),
        *("-device", *contender.device.split()),
    ]


def run(contender: Contender, facts: dict[str, str], file: str, seconds: float) -> Results:
    """Boot a guest that measures. Raises RuntimeError if it brings nothing."""
    environment = os.environ | json.loads(facts["environment"]) if contender.device else dict(os.environ)
    done = subprocess.run(
        command(contender, facts, file, seconds),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=LIMIT,
        env=environment,
    )
    found: Results = {}
    for line in done.stdout.splitlines():
        words = line.split()
        if words[:1] == ["RESULT"] and len(words) == 7:
            found[(words[1], words[2], words[3], words[4])] = float(words[5])
    if len(found) != 24:
        raise RuntimeError(f"{contender.name}: {len(found)} results; {done.stdout[-500:]} {done.stderr[-1500:]}")
    return found


def report(label: str, all: dict[str, list[Results]]) -> None:
    """Print medians, and the ratios of pyvmm to each of the others."""
    names = list(all)
    print(f"\nMB/s, medians; {label}; ratios of {names[0]} to the others")
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


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each of the 24 figures")
    parser.add_argument("--size", type=int, default=64, help="MiB of the file")
    parser.add_argument("--file", help="measure on this file, which is overwritten")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="QEMU's with PART in the name")
    parser.add_argument("--facts", help=argparse.SUPPRESS)  # what the outer side found
    options = parser.parse_args()
    if options.facts is None:
        return run_where_linux_runs([*sys.argv[1:], "--facts", json.dumps(prepare())], "tests.bench.disk", 1024)
    facts = json.loads(options.facts)
    file = options.file or "/dev/shm/pyvmm-bench.img"
    all: dict[str, list[Results]] = {each.name: [] for each in chosen(options.only)}
    for turn in range(options.rounds):
        for contender in chosen(options.only):
            with open(file, "wb") as disk:
                for _ in range(options.size):
                    disk.write(os.urandom(1 << 20))
            print(f"round {turn + 1}: {contender.name}", flush=True)
            all[contender.name].append(run(contender, facts, file, options.seconds))
    if not options.file:
        os.unlink(file)
    report(facts["label"], all)
    return 0


if __name__ == "__main__":
    sys.exit(main())
