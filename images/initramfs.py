"""The default guest's initramfs: busybox, the Hyper-V modules and our own /init, in an uncompressed archive.

Uncompressed, because unpacking on an emulated processor takes longer than copying.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pyvmm.images import scheduled, serve
from pyvmm.images.cpio import CpioWriter
from pyvmm.images.session_program import session_program

RECIPE = 3  # increment when the output for the same inputs changes

FOLDERS = ("bin", "sbin", "dev", "etc/pyvmm", "proc", "root", "run", "sys", "tmp", "lib/modules")
# Programs that the kernel calls by these names. Not modprobe: /init loads all modules, and while the kernel
# boots it calls modprobe six to thirteen times for crypto modules that it has built in, at a fork and an exec each.
SBIN = ("poweroff", "reboot", "halt")
PROGRAMS = {"realtime": scheduled.PROGRAM, "serve": serve.PROGRAM, "session": session_program()}  # in etc/pyvmm
FSTAB = """\
proc /proc proc defaults 0 0
sys /sys sysfs defaults 0 0
dev /dev devtmpfs defaults 0 0
run /run tmpfs defaults 0 0
debug /sys/kernel/debug debugfs defaults 0 0
trace /sys/kernel/tracing tracefs defaults 0 0
"""


def guest_files() -> dict[str, bytes]:
    """Return the files of images/guest: init, agent, profile, vsock, share, and for networks net and dhcp."""
    folder = Path(__file__).parent / "guest"
    names = ("init", "agent", "profile", "vsock", "share", "net", "dhcp")
    return {name: (folder / name).read_bytes() for name in names}


def build_initramfs(
    busybox: bytes,
    applets: list[str],
    modules: list[tuple[str, bytes]],
    on_demand: Iterable[tuple[str, bytes]] = (),
) -> bytes:
    """Build the archive. `modules`: (name, contents) in load order for /init; `on_demand`: those that it does not
    load; `applets` become links to busybox.
    """
    guest = guest_files()
    archive = CpioWriter()
    for folder in FOLDERS:
        archive.folder(folder)
    # The kernel opens it for /init before anything is mounted.
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox, 0o755)
    for applet in sorted(set(applets) - {"busybox"}):
        archive.symlink(f"bin/{applet}", "busybox")
    for program in SBIN:
        archive.symlink(f"sbin/{program}", "../bin/busybox")
    archive.file("init", guest["init"], 0o755)
    for name in ("agent", "net", "dhcp"):
        archive.file(f"etc/pyvmm/{name}", guest[name], 0o755)
    for name, contents in PROGRAMS.items():
        archive.file(f"etc/pyvmm/{name}", contents, 0o755)
    archive.file("etc/profile", guest["profile"])
    archive.file("etc/fstab", FSTAB.encode())
    archive.file("etc/passwd", b"root::0:0:root:/root:/bin/sh\n")
    archive.file("etc/group", b"root:x:0:\n")
    for name in ("vsock", "share"):
        archive.file(f"etc/pyvmm/{name}", guest[name], 0o755)
    for name, contents in (dict(on_demand) | dict(modules)).items():
        archive.file(f"lib/modules/{name}.ko", contents)
    archive.file("etc/pyvmm/modules", "".join(f"{name}\n" for name, _ in modules).encode())
    return archive.build()


def recipe_hash(*inputs: str) -> str:
    """Return a digest of an initramfs's inputs: the recipe, our guest files, and `inputs` (packages, modules)."""
    digest = hashlib.sha256(f"{RECIPE} {FSTAB} {FOLDERS} {SBIN}".encode())
    for name, data in (guest_files() | PROGRAMS).items():
        digest.update(f"\0{name}\0".encode() + data)
    for text in inputs:
        digest.update(b"\0" + text.encode())
    return digest.hexdigest()[:16]
