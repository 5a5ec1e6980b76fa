"""The guest's programs: a static busybox, the host's own or from Debian's package."""

from __future__ import annotations

from pathlib import Path
from struct import error as StructError
from struct import unpack_from

from pyvmm.errors import HostError
from pyvmm.files import FileError, read_file
from pyvmm.images.packages import find_package, run, unpack_package
from pyvmm.paths import cache_folder, new_folder

PT_INTERP = 3
PROGRAM_LIMIT = 64 << 20
SUITES = ("bookworm", "trixie", "bullseye")


def busybox(progress: object = None) -> Path:
    """Return a static busybox program, fetched into the cache if the host has none."""
    for place in (Path("/bin/busybox"), Path("/usr/bin/busybox")):
        if _usable(place):
            return place
    folder = cache_folder("busybox")
    for place in (folder / "bin/busybox", folder / "usr/bin/busybox"):
        if _usable(place):
            return place
    if callable(progress):
        progress("fetching busybox-static")
    package = find_package("busybox-static", SUITES)
    with new_folder(folder) as new:
        unpack_package(package, new)
    for place in (folder / "bin/busybox", folder / "usr/bin/busybox"):
        if _usable(place):
            return place
    raise HostError("the package busybox-static holds no busybox where it used to be")


def _usable(place: Path) -> bool:
    try:
        return is_static(read_file(place, PROGRAM_LIMIT))
    except FileError:
        return False


def applets(program: Path) -> list[str]:
    """Return the commands that a busybox provides."""
    return run(str(program), "--list").split()


def is_static(data: bytes) -> bool:
    """Return whether this is an ELF program without loader and libraries, which the initramfs lacks."""
    if data[:5] != b"\x7fELF\x02":
        return False
    try:
        (table,) = unpack_from("<Q", data, 32)
        size, count = unpack_from("<HH", data, 54)
        return all(unpack_from("<I", data, table + i * size)[0] != PT_INTERP for i in range(count))
    except (StructError, OverflowError):
        return False  # truncated, or damaged
