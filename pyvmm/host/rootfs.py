"""Initialises a restored emulated host: sets the clock, reseeds random numbers, mounts the file systems.

Source: mount(2), Linux Documentation/filesystems/9p.rst, random(4).

The root is the machine's own, writable: the same command line names the same files, and what the command writes (a
trace, a console's output, a made image) is at the same path for the user. Only /proc, /sys, /dev and /run are the
emulated host's own, as they belong to a kernel, and the machine's kernel is another. Nothing here writes to the
machine's files; the commands are the user's, and QEMU reaches the files with the user's rights, not more.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import time
from contextlib import suppress

_libc = ctypes.CDLL(None, use_errno=True)
_MS_RDONLY, _MS_MOVE = 1, 8192
_RNDRESEEDCRNG = 0x5207
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

# cache=mmap caches nothing but mapped pages, so that the next command inside reads files as they were last saved
# outside. Only the system's programs and libraries are cached for good (cache=loose never revalidates): they change
# when packages are installed, and reading them anew for each command takes longer than the command.
NINEP = "trans=virtio,version=9p2000.L,msize=512000,cache="


def refresh_clock_and_random(now: float, seed: bytes) -> None:
    """Set the clock and reseed the random generator: both are stale, and equal in all restored hosts."""
    time.clock_settime(time.CLOCK_REALTIME, now)
    descriptor = os.open("/dev/urandom", os.O_RDWR | os.O_CLOEXEC)
    os.write(descriptor, seed)
    with suppress(OSError):
        fcntl.ioctl(descriptor, _RNDRESEEDCRNG)
    os.close(descriptor)


def change_root() -> None:
    """Change the root to the machine's root over 9p. Raises OSError."""
    mount("root", "/new", "9p", NINEP + "mmap")
    mount("usr", "/new/usr", "9p", NINEP + "loose", flags=_MS_RDONLY)
    for folder in ("dev", "proc", "sys"):
        mount(f"/{folder}", f"/new/{folder}", "", flags=_MS_MOVE)
    mount("run", "/new/run", "tmpfs", "mode=755")
    for folder in ("shm", "pts"):
        os.makedirs(f"/new/dev/{folder}", exist_ok=True)
    mount("shm", "/new/dev/shm", "tmpfs", "mode=1777")
    mount("devpts", "/new/dev/pts", "devpts", "gid=5,mode=620,ptmxmode=666")
    os.chdir("/new")
    mount(".", "/", "", flags=_MS_MOVE)
    os.chroot(".")
    os.chdir("/")
    _loopback_up()


def mount(source: str, target: str, kind: str, options: str = "", flags: int = 0) -> None:
    """Call mount(2). Raises OSError."""
    if _libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def _loopback_up() -> None:
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(handle, _SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(handle, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))
