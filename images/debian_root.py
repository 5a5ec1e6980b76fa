"""The disk of a whole Debian, made from its packages: `pyvmm image build debian-12-root`.

    mmdebstrap --> root.tar --> mkfs.ext4 -d --> debian-12-root.img, sparse, in the cache

It holds systemd and what a login needs, root without a password, and no kernel: it boots with that of `KERNEL` and
the initramfs of our images, whose init goes on to the disk's own (`root=/dev/sda`). The disk is the guest's to change
and keeps what it writes; `--force` makes it anew.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from pyvmm.cache import disk_errors, locked
from pyvmm.errors import ConfigError, HostError
from pyvmm.images.packages import find_package, run, unpack_package
from pyvmm.paths import cache_folder, make_folder, scratch_folder

NAME = "debian-12-root"
KERNEL = "debian-6.1"
SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
INCLUDED = "systemd-sysv,udev,kmod,iproute2,login,passwd,e2fsprogs,procps,ifupdown,isc-dhcp-client,hyperv-daemons"
SIZE = 2 << 30
WORDS = "root=/dev/sda rw"
"""Kernel parameters with which our init goes on to the disk's."""

_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")

SET_ADDRESSES = Path(__file__).parent / "guest/set-addresses"

PREPARED = (
    'passwd --root "$1" -d root',
    f'echo {NAME} >"$1"/etc/hostname',
    'echo "/dev/sda / ext4 defaults 0 1" >"$1"/etc/fstab',
    'printf "auto lo\\niface lo inet loopback\\nallow-hotplug eth0\\niface eth0 inet dhcp\\n" '
    '>"$1"/etc/network/interfaces',
    'rm -f "$1"/etc/resolv.conf',  # the host's; DHCP makes one
    # hv_kvp_daemon sets addresses by it; Debian 12 has none.
    f'install {shlex.quote(str(SET_ADDRESSES))} "$1"/usr/libexec/hypervkvpd/hv_set_ifconfig',
)
"""What is done in the new root, which is `$1`."""


def root_disk() -> Path:
    """Return the disk's file in the cache, whether it exists or not."""
    return cache_folder("roots", f"{NAME}.img")


def build_root(progress: Callable[[str], None], *, force: bool = False, included: Sequence[str] = ()) -> Path:
    """Make the disk, unless it exists (and not `force`), with the packages `included` besides. Raises ConfigError,
    HostError.
    """
    for each in included:
        if not _PACKAGE.fullmatch(each):
            raise ConfigError(f"--include {each}: not a package's name")
    target = root_disk()
    with disk_errors(f"cannot build {NAME}"), locked("roots"):
        if target.exists() and not force:
            if included:
                raise ConfigError(f"{NAME} is there already: `--force --include ...` makes it anew")
            return target
        make_folder(target.parent)
        with scratch_folder(target.parent) as scratch:
            tar = scratch / "root.tar"
            progress("installing Debian's packages with mmdebstrap; this takes a minute or more")
            run(*_mmdebstrap(progress), *_options(included), SUITE, str(tar), os.environ.get("PYVMM_MIRROR", MIRROR))
            progress("making the file system")
            made = scratch / "disk.img"
            with open(made, "wb") as file:
                file.truncate(SIZE)
            _fill(tar, scratch / "root", made)
            made.rename(target)
    return target


def _options(included: Sequence[str]) -> list[str]:
    hooks = [word for each in PREPARED for word in ("--customize-hook", each)]
    return ["--variant=apt", f"--include={','.join([INCLUDED, *included])}", *hooks]


def _mmdebstrap(progress: Callable[[str], None]) -> list[str]:
    """Return the command of mmdebstrap: the host's, or that of Debian's package, in the cache."""
    if shutil.which("mmdebstrap"):
        return ["mmdebstrap"]
    if not shutil.which("perl"):
        raise HostError("mmdebstrap needs perl: apt-get install mmdebstrap")
    folder = cache_folder("mmdebstrap")
    if not (folder / "usr/bin/mmdebstrap").exists():
        progress("fetching mmdebstrap")
        make_folder(folder)
        unpack_package(find_package("mmdebstrap", (SUITE,)), folder)
    return ["perl", str(folder / "usr/bin/mmdebstrap")]


def _fill(tar: Path, folder: Path, disk: Path) -> None:
    """Make ext4 of an archive's files, with their owners: as root, or by fakeroot."""
    folder.mkdir()
    script = 'tar -xf "$1" -C "$2" --numeric-owner && mkfs.ext4 -q -F -L root -d "$2" "$3"'
    command = ["sh", "-c", script, "sh", str(tar), str(folder), str(disk)]
    if os.geteuid():
        if not shutil.which("fakeroot"):
            raise HostError("files of several owners need fakeroot: apt-get install fakeroot")
        command = ["fakeroot", *command]
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise HostError(f"cannot make the file system: {lines[-1]}")
