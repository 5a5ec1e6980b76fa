"""Linux's hv_storvsc with disks of pyvmm: files survive, disks come and go, nothing flushed is lost."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyvmm.disks.open import open_image
from pyvmm.disks.spec import DiskSpec
from pyvmm.images.catalog import find_image
from pyvmm.machine.config import DEFAULT_DEVICES
from tests.support.booted import Booted

MIB = 1 << 20
DRIVER = "/sys/bus/vmbus/drivers/hv_storvsc"
NEEDS = pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="no mkfs.ext4 (apt install e2fsprogs)")


def make_disk(path: Path, size: int = 64 * MIB) -> Path:
    with open(path, "wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(path)], check=True)
    return path


def check(path: Path) -> None:
    """The file system must be whole once its journal is replayed."""
    done = subprocess.run(["fsck.ext4", "-fy", str(path)], capture_output=True, text=True)
    assert done.returncode in (0, 1) and "UNEXPECTED" not in done.stdout, done.stdout


def content(path: Path, name: str) -> bytes:
    return subprocess.run(["debugfs", "-R", f"cat {name}", str(path)], capture_output=True, check=True).stdout


@NEEDS
def test_disks_are_used_come_and_go_and_survive_a_rescind_and_a_reboot(tmp_path: Path) -> None:
    first, second = make_disk(tmp_path / "first.img"), make_disk(tmp_path / "second.img")
    initrd = find_image("debian-6.12", build=False, features=("disk",)).initrd
    options = {"engine": "kernel", "cpus": 2, "devices": (*DEFAULT_DEVICES, "storvsc")}
    with Booted("debian-6.12", initrd=initrd, disks=(DiskSpec(str(first)),), **options) as guest:
        mount = "mkdir -p /m && mount -t ext4 /dev/sda /m"
        sums = guest.sh(f"{mount} && dd if=/dev/urandom of=/m/x bs=64k count=64 && sync && md5sum </m/x").split()
        rows = [row for row in guest.machine.monitor.info_vmbus() if row["name"] == "storvsc"]
        assert [(row["state"], row.get("sub-channel")) for row in rows] == [("open", None), ("open", 1)]
        disks = guest.machine.monitor.disks()
        disks.add(DiskSpec(str(second), id="data"), open_image)
        guest.sh("until [ -b /dev/sdb ]; do sleep 0.1; done; umount /m")
        disks.resize("data", 128 * MIB)
        guest.sh("dd if=/dev/sdb of=/dev/null count=1; until grep -q 262144 /sys/block/sdb/size; do sleep 0.1; done")
        guest.machine.monitor.remove_device("data")
        guest.until(lambda: "DEVICE_DELETED" in [name for name, _ in guest.events], 20, "the disk's end")
        guest.sh("[ ! -b /dev/sdb ]")
        guest.sh("(while :; do dd if=/dev/sda of=/dev/null bs=64k; done) >/dev/null 2>&1 &")
        guest.events.clear()
        guest.machine.monitor.remove_device("storvsc")
        guest.until(lambda: "DEVICE_DELETED" in [name for name, _ in guest.events], 20, "the controller's end")
        guest.machine.monitor.add_device("storvsc", "again")
        there = "until [ -b /dev/sd[a-z] ]; do sleep 0.1; done"
        device = f"D=$(basename $(ls -d {DRIVER}/*-*-*))"
        guest.sh(f"{there}; {device}; echo $D >{DRIVER}/unbind; echo $D >{DRIVER}/bind; {there}")
        guest.sh("(dd if=/dev/zero of=/dev/null bs=1M & dd if=/dev/sd[a-z] of=/dev/null bs=64k) >/dev/null 2>&1 &")
        with guest.expect_reset():
            guest.send("reboot -f")
        assert guest.sh(f"{mount} && md5sum </m/x && umount /m").split()[:1] == [
            word for word in sums if len(word) == 32
        ]
        assert "hung" not in guest.sh("dmesg")
    check(first)


SCRIPT = """mkdir -p /m; mount -t ext4 /dev/sda /m; n=0
while :; do n=$((n+1)); echo line $n >>/m/log; sync; echo FLUSHED $n; done"""


@NEEDS
def test_what_was_flushed_is_there_after_a_kill(tmp_path: Path) -> None:
    """The guest writes a line, flushes it, says so; the VMM is killed in the midst of that."""
    disk = make_disk(tmp_path / "disk.img")
    argv = [sys.executable, "-m", "pyvmm.cli.main", "run", "--host", "local", "--disk", str(disk), "--", SCRIPT]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        said, until = b"", time.monotonic() + 100
        while b"FLUSHED 30\n" not in said and time.monotonic() < until:
            data = os.read(process.stdout.fileno(), 4096)
            assert data, said
            said += data
        process.kill()
        said += process.stdout.read()
    flushed = int(re.findall(rb"FLUSHED ([0-9]+)\n", said)[-1])
    assert flushed >= 30
    check(disk)
    lines = content(disk, "log").decode().splitlines()
    assert lines[:flushed] == [f"line {number}" for number in range(1, flushed + 1)]
