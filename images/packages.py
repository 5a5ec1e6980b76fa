"""Debian packages, fetched by the host's own apt, as root or not, and unpacked without being installed.

A package is searched for in the host's package lists first. Others (another Debian release's kernel) are
searched for in lists of our own, in the cache: the requested suites, from the mirrors that the host uses.
The system's apt state is never changed.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pyvmm.errors import ConfigError, HostError
from pyvmm.paths import cache_folder, make_folder, scratch_folder, write_private
from pyvmm.process import kill_with_parent

LIST_LIFETIME = 24 * 3600.0  # seconds after which our own package lists are fetched again
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@dataclass(frozen=True, slots=True)
class Source:
    """One set of package lists: the host's, or suites of our own choice."""

    label: str
    options: tuple[str, ...] = ()


DISK_FULL = ("No space left on device", "enough free space", "Disk quota exceeded")
"""Texts that tar, dpkg-deb and apt print when the disk is full."""

MACHINE = Source("this machine's package lists")


@dataclass(frozen=True, slots=True)
class Package:
    """A package that can be fetched, and its source."""

    name: str
    version: str
    depends: tuple[str, ...]
    source: Source


def run(*command: str, cwd: Path | None = None) -> str:
    """Run a program and return its output. Raises HostError with its last error line if it fails or is missing.

    A full disk is an OSError, as for our own writes. If we are interrupted, the program and its children are killed.
    """
    try:
        program = subprocess.Popen(
            command,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
            process_group=0,
            preexec_fn=kill_with_parent(),
            umask=0o077,  # its output is kept in the cache
        )
    except FileNotFoundError as error:
        if cwd is not None and not cwd.exists():
            raise
        raise HostError(f"{command[0]} is missing; guest images are made from Debian packages") from error
    try:
        output, complaints = program.communicate()
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)  # dpkg-deb's tar, too: it would go on writing files that we remove
        program.communicate()
        raise
    if program.returncode:
        if any(words in complaints for words in DISK_FULL):
            raise OSError(errno.ENOSPC, f"{command[0]}: {os.strerror(errno.ENOSPC)}")
        lines = [line for line in complaints.splitlines() if line.strip() and not line.startswith("W:")]
        raise HostError(f"{command[0]} failed: {lines[-1] if lines else f'status {program.returncode}'}")
    return output


def find_package(pattern: str, suites: Sequence[str], *, everywhere: bool = False) -> Package:
    """Find the newest package whose name matches `pattern` (a regular expression), in the host's lists or `suites`.

    The first lists that have one end the search, unless `everywhere`. Raises ConfigError that names everything tried.
    """
    found, tried = [], []
    for suite in (None, *suites):
        label = f"Debian {suite}" if suite else MACHINE.label
        try:
            source = private_source(suite) if suite else MACHINE
            names = _names(pattern, source)
            if not names:
                tried.append(f"{label}: none")
                continue
            found.append(_package(max(names, key=natural), source))
            if not everywhere:
                break
        except HostError as error:
            tried.append(f"{label}: {error}")
    if not found:
        raise ConfigError(f"no package {pattern} found ({'; '.join(tried)}); check apt's sources and the network")
    return max(found, key=lambda package: natural(package.name))


def natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that compares digits as numbers: 6.1.0-9 before 6.1.0-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def download(package: Package) -> Path:
    """Return the package's .deb in the cache, fetched unless already there."""
    folder = cache_folder("packages")
    stem = f"{package.name}_{package.version.replace(':', '%3a')}_"
    found = sorted(folder.glob(f"{stem}*.deb"))
    if found:
        return found[0]
    with scratch_folder(folder) as scratch:
        what = f"{package.name}={package.version}"
        # Without this apt, as root, complains that its own user may not write here.
        run("apt-get", *package.source.options, "-q", "-o", "APT::Sandbox::User=root", "download", what, cwd=scratch)
        debs = list(scratch.glob("*.deb"))
        if len(debs) != 1:
            raise HostError(f"apt-get fetched no file for {package.name}")
        return debs[0].rename(folder / debs[0].name)


def unpack_package(package: Package, folder: Path) -> None:
    """Unpack a package, fetched unless the cache has it. A damaged file in the cache is fetched again."""
    deb = download(package)
    try:
        unpack(deb, folder)
    except HostError:
        deb.unlink(missing_ok=True)
        unpack(download(package), folder)


def unpack(deb: Path, folder: Path) -> None:
    """Unpack a .deb's files into `folder`."""
    run("dpkg-deb", "-x", str(deb), str(folder))


def private_source(suite: str) -> Source:
    """Return our own package lists for `suite` (and its security updates), fetched if missing or a day old."""
    folder = cache_folder("apt", suite)
    options: list[str] = []
    for key, value in {
        "Dir::Etc::sourcelist": str(folder / "sources.list"),
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": str(folder / "lists"),
        "Dir::Cache": str(folder),
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",
        "Debug::NoLocking": "1",
    }.items():
        options += ["-o", f"{key}={value}"]
    source = Source(f"Debian {suite}", tuple(options))
    stamp = folder / "updated"
    try:
        fresh = 0 <= _now() - stamp.stat().st_mtime < LIST_LIFETIME
    except FileNotFoundError:
        fresh = False
    if not fresh:
        for part in ("lists/partial", "archives/partial"):
            make_folder(folder / part)
        write_private(folder / "sources.list", _sources(suite).encode())
        run("apt-get", *options, "-q", "update")
        write_private(stamp, b"")
    return source


def _now() -> float:
    import time

    return time.time()


def _sources(suite: str) -> str:
    """Return a sources.list for `suite`, with the mirrors that the host uses."""
    wanted = "$(CREATED_BY)|$(ORIGIN)|$(REPO_URI)|$(RELEASE)"
    main = security = ""
    for line in run("apt-get", "indextargets", "--format", wanted).splitlines():
        kind, origin, uri, release = line.split("|", 3)
        # The origin is known only once the host has lists; before, use the repository's name.
        if kind != "Packages" or "debian" not in f"{origin}{uri}".lower():
            continue
        if release.endswith("-security") or "debian-security" in uri:
            security = security or uri
        elif re.fullmatch(r"[a-z]+(-updates)?", release):
            main = main or uri
    if not main:
        raise HostError("apt is configured with no Debian mirror")
    signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
    lines = [f"deb {signed}{main} {suite} main"]
    if security and "-" not in suite and suite != "sid":
        lines.append(f"deb {signed}{security} {suite}-security main")
    return "\n".join(lines) + "\n"


def _names(pattern: str, source: Source) -> list[str]:
    out = run("apt-cache", *source.options, "search", "--names-only", f"^{pattern}$")
    names = [line.split(" ", 1)[0] for line in out.splitlines()]
    return [name for name in names if re.fullmatch(pattern, name)]


def _package(name: str, source: Source) -> Package:
    """Return the candidate version's record."""
    fields: dict[str, str] = {}
    for line in run("apt-cache", *source.options, "show", "--no-all-versions", name).splitlines():
        key, _, value = line.partition(": ")
        fields.setdefault(key, value)
    depends = tuple(re.split(r"[ |(]", part.strip())[0] for part in fields.get("Depends", "").split(","))
    return Package(name, fields["Version"], depends, source)


def package_of(name: str, suite: str) -> Package:
    """Return a package of one Debian suite. Raises HostError if it has none."""
    return _package(name, private_source(suite))


def dependency(package: Package, pattern: str) -> Package | None:
    """Return the dependency of `package` whose name matches `pattern`, from the same lists; None if it has none."""
    for name in package.depends:
        if re.fullmatch(pattern, name):
            return _package(name, package.source)
    return None
