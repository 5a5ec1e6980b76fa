"""Programs from Debian packages for an initramfs, with the shared libraries that they need.

Source: System V ABI, "Dynamic Linking": the program header PT_DYNAMIC names a program's libraries (DT_NEEDED).

The libraries are looked for in the packages on which the program's package depends. All go to one folder, in which
the loader looks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import error as StructError
from struct import unpack_from

from pyvmm.errors import HostError
from pyvmm.files import read_file
from pyvmm.images.packages import Package, dependency, find_package, package_of, unpack_package
from pyvmm.paths import cache_folder, scratch_folder

PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
DT_NULL, DT_NEEDED, DT_STRTAB = 0, 1, 5
PROGRAM_LIMIT = 64 << 20
PACKAGES_LIMIT = 60
"""Packages that are looked through for one program's libraries; sshfs needs some ten."""
LIBRARIES = "lib/x86_64-linux-gnu"
"""Folder of the libraries in the guest, the first in which the loader looks."""


@dataclass(frozen=True, slots=True)
class Programs:
    """Programs of one Debian package: their paths in it, and the suites to look for it besides the host's lists.
    `only`: the one suite that it may come from.
    """

    package: str
    paths: tuple[str, ...]
    suites: tuple[str, ...] = ()
    only: str = ""


@dataclass(frozen=True, slots=True)
class Linking:
    """What a program or library needs to run: the path of its loader, if any, and names of libraries."""

    loader: str
    needed: tuple[str, ...]


def linking(data: bytes) -> Linking:
    """Return what an ELF file needs; nothing for another file (a script). Raises HostError for a damaged one."""
    if data[:5] != b"\x7fELF\x02":
        return Linking("", ())
    try:
        return _linking(data)
    except (StructError, OverflowError, ValueError) as error:
        raise HostError(f"a damaged program: {error}") from error


def _linking(data: bytes) -> Linking:
    (table,) = unpack_from("<Q", data, 32)
    size, count = unpack_from("<HH", data, 54)
    loader, dynamic = "", b""
    loads: list[tuple[int, int, int]] = []  # address, offset, bytes
    for index in range(count):
        kind, _flags, offset, address, _, length = unpack_from("<IIQQQQ", data, table + index * size)
        if kind == PT_LOAD:
            loads.append((address, offset, length))
        elif kind == PT_INTERP:
            loader = data[offset : offset + length].split(b"\0")[0].decode()
        elif kind == PT_DYNAMIC:
            dynamic = data[offset : offset + length]
    names: list[int] = []
    strings = 0
    for at in range(0, len(dynamic) - 15, 16):
        tag, value = unpack_from("<QQ", dynamic, at)
        if tag == DT_NULL:
            break
        if tag == DT_NEEDED:
            names.append(value)
        elif tag == DT_STRTAB:
            strings = next((value - a + o for a, o, n in loads if a <= value < a + n), 0)
    return Linking(loader, tuple(_text(data, strings + name) for name in names))


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


def collect(programs: Sequence[Programs]) -> dict[str, bytes]:
    """Return the files for the guest, by path: the programs, their loader, all libraries. The packages are fetched
    unless the cache has them. Raises ConfigError or HostError.
    """
    files: dict[str, bytes] = {}
    for each in programs:
        package = package_of(each.package, each.only) if each.only else find_package(each.package, each.suites)
        with scratch_folder(cache_folder("packages")) as scratch:
            shelf = _Shelf(package, scratch, each.only.removesuffix("-backports"))
            for path in each.paths:
                files[path] = data = shelf.file(path)
                shelf.link(data, files)
    return files


class _Shelf:
    """Unpacked packages: one, and those that it depends on, as they are needed."""

    def __init__(self, package: Package, folder: Path, suite: str = "") -> None:
        """`suite`: where packages are that the lists of `package` lack: the release that backports are for."""
        self._suite = suite
        self._name = f"{package.name} {package.version}"
        self._folder = folder
        self._waiting = [package]
        self._seen = {package.name}
        self._found: Mapping[str, Path] = {}
        self._next()

    def file(self, path: str) -> bytes:
        """Return a file of the packages by its path."""
        place = self._folder / path
        if not place.is_file():
            raise HostError(f"{self._name} holds no {path} where it used to be")
        return read_file(place, PROGRAM_LIMIT)

    def link(self, data: bytes, files: dict[str, bytes]) -> None:
        """Add what a program needs to `files`."""
        needs = linking(data)
        if needs.loader:  # the first one's, as its libraries: they belong together
            path = needs.loader.lstrip("/")
            files[path] = files.get(path) or self._library(Path(path).name)
        for name in needs.needed:
            path = f"{LIBRARIES}/{name}"
            if path not in files:
                files[path] = library = self._library(name)
                self.link(library, files)

    def _library(self, name: str) -> bytes:
        while name not in self._found:
            if not self._waiting or len(self._seen) > PACKAGES_LIMIT:
                raise HostError(f"{self._name}: the packages that it depends on hold no {name}")
            self._next()
        return read_file(self._found[name].resolve(), PROGRAM_LIMIT)

    def _find(self, package: Package, name: str) -> Package:
        try:
            found = dependency(package, re.escape(name))
        except HostError:
            found = None
        if found is None:
            found = package_of(name, self._suite) if self._suite else find_package(re.escape(name), ())
        return found

    def _next(self) -> None:
        package = self._waiting.pop(0)
        unpack_package(package, self._folder)
        for name in package.depends:
            if name.startswith("lib") and name not in self._seen:
                self._seen.add(name)
                self._waiting.append(self._find(package, name))
        libraries = (*self._folder.glob("lib/**/*.so*"), *self._folder.glob("usr/lib/**/*.so*"))
        self._found = {path.name: path for path in libraries if path.exists()}
