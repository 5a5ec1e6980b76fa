"""QEMU 10 for comparisons: Debian's backport, fetched into the cache and unpacked there, not installed.

Debian 12's own QEMU is 7.2, which has neither hv-balloon nor its bus's present speed. If the backport cannot be had,
the installed one is used and the benchmarks say so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyvmm.cache import locked
from pyvmm.errors import ConfigError, HostError
from pyvmm.images.packages import Package, Source, download, find_package, private_source, unpack
from pyvmm.images.packages import _package as package_record
from pyvmm.paths import cache_folder, new_folder

SUITE = "bookworm-backports"
PROGRAM = "qemu-system-x86_64"
PARTS = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")
"""Always taken from the backports; libraries only if this machine lacks them."""
LIBRARY_FOLDERS = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")


@dataclass(frozen=True, slots=True)
class Qemu:
    """A QEMU that can be run."""

    program: str
    version: str
    options: tuple[str, ...]  # before all others
    environment: dict[str, str]
    has_balloon: bool  # hv-balloon

    @property
    def label(self) -> str:
        return f"QEMU {self.version}"


def find_qemu(progress: Callable[[str], None] = lambda line: None) -> Qemu:
    """QEMU 10, fetched if need be; else the installed one. Raises HostError if there is neither."""
    try:
        return _describe(_unpacked(progress))
    except (ConfigError, HostError) as error:
        progress(f"no QEMU 10 ({error}); using the installed one")
    if shutil.which(PROGRAM) is None:
        raise HostError(f"{PROGRAM}: not found")
    return _describe(None)


def _unpacked(progress: Callable[[str], None]) -> Path:
    folder = cache_folder("bench", "qemu10")
    if folder.exists():
        return folder
    with locked("bench-qemu"):
        if folder.exists():
            return folder
        source = private_source(SUITE)
        taken: dict[str, Package] = {}
        wanted = list(PARTS)
        while wanted:
            name = wanted.pop()
            if name in taken or (name not in PARTS and (name == "ipxe-qemu" or _installed(name))):
                continue
            package = _find(name, source)
            progress(f"fetching {name} {package.version}")
            taken[name] = package
            wanted += [need for need in package.depends if need]
        with new_folder(folder) as made:
            for package in taken.values():
                unpack(download(package), made)
    return folder


def _find(name: str, source: Source) -> Package:
    """A package by its name: QEMU's from the backports, a library by this machine's lists first."""
    if name in PARTS:
        return package_record(name, source)
    return find_package(name.replace(".", "[.]").replace("+", "[+]"), [SUITE])


def _installed(name: str) -> bool:
    asked = subprocess.run(["dpkg-query", "-W", "-f", "${Status}", name], capture_output=True, text=True)
    return asked.returncode == 0 and asked.stdout.startswith("install ok installed")


def _describe(folder: Path | None) -> Qemu:
    """What the QEMU in `folder` (None: the installed one) is and how it is called. Raises HostError."""
    program, options, environment = PROGRAM, [], {}
    if folder is not None:
        program = str(folder / "usr/bin" / PROGRAM)
        environment["LD_LIBRARY_PATH"] = ":".join(str(folder / part) for part in LIBRARY_FOLDERS)
        environment["QEMU_MODULE_DIR"] = str(folder / LIBRARY_FOLDERS[0] / "qemu")  # not the installed QEMU's
        for part in ("usr/share/qemu", "usr/share/seabios"):
            options += ["-L", str(folder / part)]
    version = _run([program, "--version"], environment).stdout.split()
    if len(version) < 4:
        raise HostError(f"{program}: it does not start")
    balloon = _run([program, "-device", "hv-balloon,help"], environment).returncode == 0
    return Qemu(program, version[3], tuple(options), environment, balloon)


def _run(argv: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(argv, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"{argv[0]}: {error}") from error
