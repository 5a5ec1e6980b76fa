"""What a guest's disks bear: Linux's hv_storvsc with I/O running, while everything around it changes.

    python -m tests.bench.disk_life 6.1/kernel/1 6.12/user/2 ...     image, engine and vCPUs of each guest

Each guest has three disks: one in a folder of the host that is too small for it, one with a file system, whose file
is compared after each step, and one that is read and written all the time. A line for each step, with its seconds.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyvmm.disks.open import open_image
from pyvmm.disks.spec import DiskSpec
from pyvmm.host.inside import inside
from pyvmm.images.catalog import find_image
from pyvmm.machine.config import DEFAULT_DEVICES
from tests.bench.boot import run_where_linux_runs
from tests.support.booted import Booted
from tests.support.kexec import kexec_initrd

MIB = 1 << 20
DRIVER = "/sys/bus/vmbus/drivers/hv_storvsc"
THERE = "until [ -b /dev/sda ] && [ -b /dev/sdb ] && [ -b /dev/sdc ]; do sleep 0.1; done"
BUSY = (
    "touch /tmp/busy; (while [ -e /tmp/busy ]; do dd if=/dev/sdc of=/dev/null bs=64k; done &"
    " while [ -e /tmp/busy ]; do dd if=/dev/zero of=/dev/sdc bs=64k count=64; sync; done) >/dev/null 2>&1 &"
)
QUIET = "rm /tmp/busy; killall dd 2>/dev/null; while pidof dd >/dev/null; do sleep 0.1; done"


class Lives:
    """One guest and its steps."""

    def __init__(self, guest: Booted, name: str, small: Path) -> None:
        self.guest, self.name, self.small = guest, name, small
        self.sum = ""

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Print what came of a step."""
        began, failure = time.monotonic(), ""
        try:
            yield
        except Exception as error:
            failure = f": {type(error).__name__}: {str(error)[:300]}"
            raise
        finally:
            outcome = "failed" if failure else "ok"
            print(f"{self.name:18}{what:44}{outcome} {time.monotonic() - began:.1f} s{failure}", flush=True)

    def compare(self) -> None:
        """The file on the second disk must be what was written, and nothing may hang."""
        found = self.guest.sh(f"{THERE}; mkdir -p /m; mount -t ext4 /dev/sdb /m; md5sum </m/x; umount /m").split()[0]
        assert found == self.sum, "the file has changed"
        assert "blocked for more than" not in self.guest.sh("dmesg")

    def run(self) -> None:
        """Take all steps."""
        guest = self.guest
        with self.step("a file is written and flushed"):
            write = "dd if=/dev/urandom of=/m/x bs=64k count=64 2>/dev/null; sync; md5sum </m/x; umount /m"
            self.sum = guest.sh(f"{THERE}; mkdir -p /m; mount -t ext4 /dev/sdb /m; {write}").split()[0]
        with self.step("full host disk: pause, then cont goes on"):
            self.full_disk()
        device = f"D=$(basename $(ls -d {DRIVER}/*-*-*))"
        with self.step("unbind and bind with I/O"):
            guest.sh(f"{BUSY} sleep 0.5; {device}; echo $D >{DRIVER}/unbind; echo $D >{DRIVER}/bind; {QUIET}")
            self.compare()
        with self.step("rescind and offer with I/O"):
            guest.events.clear()
            guest.sh(f"{BUSY} sleep 0.3")
            guest.machine.monitor.remove_device("storvsc")
            guest.until(lambda: "DEVICE_DELETED" in [name for name, _ in guest.events], 40, "the controller's end")
            guest.machine.monitor.add_device("storvsc", "again")
            guest.sh(QUIET)
            self.compare()
        with self.step("a disk added and removed with I/O on another"):
            guest.sh(BUSY)
            with tempfile.NamedTemporaryFile(suffix=".img") as file:
                file.truncate(8 * MIB)
                disks = guest.machine.monitor.disks()
                disks.add(DiskSpec(file.name, id="more"), open_image)
                guest.sh("until [ -b /dev/sdd ]; do sleep 0.1; done; dd if=/dev/sdd of=/dev/null count=1")
                guest.events.clear()
                guest.machine.monitor.remove_device("more")
                guest.until(lambda: "DEVICE_DELETED" in [name for name, _ in guest.events], 40, "the disk's end")
            guest.sh(QUIET)
        with self.step("reboot with I/O"):
            guest.sh(f"{BUSY} sleep 0.3")
            with guest.expect_reset():
                guest.send("reboot -f")
            self.compare()
        with self.step("kexec with I/O"):
            guest.sh("kexec -s -l /boot/vmlinuz --initrd=/boot/initrd --reuse-cmdline")
            guest.sh(f"{BUSY} sleep 0.3")
            ended: list[object] = []
            guest.machine.agent.execute("kexec -e", lambda stream, data: None, ended.append)
            guest.until(lambda: ended, 100, "word from the new kernel's agent")
            self.compare()

    def full_disk(self) -> None:
        """Write more to the first disk than the host's folder holds; then enlarge that."""
        guest, done = self.guest, []
        guest.events.clear()
        write = "dd if=/dev/urandom of=/tmp/r bs=1M count=12; md5sum </tmp/r; dd if=/tmp/r of=/dev/sda bs=1M; sync"
        output: list[bytes] = []
        guest.machine.agent.execute(
            f"({write}; echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/sda bs=1M count=12 | md5sum) 2>/dev/null",
            lambda stream, data: output.append(data),
            done.append,
        )
        guest.until(lambda: "STOP" in [name for name, _ in guest.events], 60, "the pause")
        assert guest.machine.state == "io-error", guest.machine.state
        assert not done
        errors = [data for name, data in guest.events if name == "BLOCK_IO_ERROR"]
        assert errors[0]["nospace"], errors
        subprocess.run(["mount", "-o", "remount,size=64m", str(self.small)], check=True)
        guest.machine.monitor.resume()
        guest.until(lambda: done, 60, "the write's end")
        sums = [word for word in b"".join(output).decode().split() if len(word) == 32]
        assert len(sums) == 2 and sums[0] == sums[1], (sums, done)


@contextmanager
def small_folder(size: str) -> Iterator[Path]:
    """A file system in memory, full after `size`."""
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", name], check=True)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "-l", name], check=True)


def live(combination: str) -> bool:
    """Take the steps with one kind of guest; return whether all went well."""
    image, engine, cpus = combination.split("/")
    found = find_image(f"debian-{image}", build=False, features=("disk",))
    with small_folder("8m") as small, small_folder("160m") as folder:
        first, second, third = small / "first.img", folder / "second.img", folder / "third.img"
        for path, size in ((first, 32), (second, 48), (third, 64)):
            with open(path, "wb") as file:
                file.truncate(size * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(second)], check=True)
        specs = (DiskSpec(str(first)), DiskSpec(str(second)), DiskSpec(str(third)))
        options = {"engine": engine, "cpus": int(cpus), "devices": (*DEFAULT_DEVICES, "storvsc"), "disks": specs}
        with suppress(Exception):
            with Booted(
                f"debian-{image}", initrd=kexec_initrd(found, build=False), memory=512 * MIB, **options
            ) as guest:
                try:
                    Lives(guest, combination, small).run()
                except Exception:
                    for title, text in guest.sections():
                        print(f"--- {title}\n{text[-1500:]}", flush=True)
                    raise
            checked = subprocess.run(["fsck.ext4", "-fn", str(second)], capture_output=True, text=True)
            print(
                f"{combination:18}{'fsck of the second disk':44}{'ok' if not checked.returncode else checked.stdout}"
            )
            return not checked.returncode
    return False


def main() -> int:
    """See the module."""
    given = sys.argv[1:]
    if not inside():
        for combination in given:
            found = find_image(f"debian-{combination.split('/')[0]}", features=("disk",))
            kexec_initrd(found)
        return run_where_linux_runs(given, "tests.bench.disk_life", 2048)
    return 0 if min([live(each) for each in given], default=True) else 1


if __name__ == "__main__":
    sys.exit(main())
