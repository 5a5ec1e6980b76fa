"""Kernel trees for tests: a Debian source package, `make tinyconfig` or `defconfig`, images/kernel.config, `make`.

The package stays in pyvmm's cache; in the checkout (`make clean` removes them) are

    build/kernels/source-6.12_6.12.117-1/   unpacked, shared by the builds
    build/kernels/6.12-tinyconfig/          made by `make O=`; built again where something changed
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyvmm.errors import ConfigError, HostError
from pyvmm.images.kernel_config import FRAGMENT, missing_options
from pyvmm.images.packages import Package, find_package, unpack_package
from pyvmm.paths import scratch_folder

STAMP = ".pyvmm-configured"
"""A file in a build folder: what its .config was made from."""

ROOT = Path(__file__).parents[2] / "build/kernels"
NEWEST = "newest"
SUITES = {"6.1": ("bookworm",), "6.12": ("bookworm", "trixie")}
NEWEST_SUITES = ("trixie-backports", "sid", "forky")
BASES = ("allnoconfig", "tinyconfig", "defconfig")
LOG_TAIL = 20  # lines shown of a build that failed

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Tree:
    """A built tree. `seconds` is the duration of its last `make`, `processor_seconds` what that took of all CPUs."""

    folder: Path
    package: Package
    base: str
    seconds: float
    processor_seconds: float


def find_source(version: str) -> Package:
    """Find the source package of a version (`6.12`), or the newest that Debian has. Raises ConfigError."""
    if version == NEWEST:
        return find_package(r"linux-source-[0-9]+[.][0-9]+", NEWEST_SUITES, everywhere=True)
    return find_package(rf"linux-source-{version.replace('.', '[.]')}", SUITES.get(version, NEWEST_SUITES))


def unpack_source(package: Package, progress: Progress) -> Path:
    """Return the folder of the unpacked source, fetched and unpacked unless it is there. Raises HostError."""
    version = package.name.rpartition("-")[2]
    folder = ROOT / f"source-{version}_{package.version.replace(':', '%3a')}"
    if folder.is_dir():
        return folder
    ROOT.mkdir(parents=True, exist_ok=True)
    with scratch_folder(ROOT) as scratch:
        progress(f"fetching {package.name} {package.version} from {package.source.label}")
        unpack_package(package, scratch)
        archives = list(scratch.glob("usr/src/linux-source-*.tar.xz"))
        if len(archives) != 1:
            raise HostError(f"{package.name} {package.version} has no usr/src/linux-source-*.tar.xz")
        progress("unpacking")
        tree = scratch / "tree"
        tree.mkdir()
        _call(["tar", "-C", str(tree), "--strip-components", "1", "-xf", str(archives[0])], scratch / "log")
        tree.rename(folder)
    return folder


def build(version: str, base: str, jobs: int, progress: Progress) -> Tree:
    """Configure and build a tree. Raises HostError with the end of the output, ConfigError for an unknown package."""
    package = find_source(version)
    version = package.name.rpartition("-")[2]
    source = unpack_source(package, progress)
    folder = ROOT / f"{version}-{base}"
    folder.mkdir(exist_ok=True)
    if not _is_configured(folder, source, base):
        progress(f"make {base} and merge_config.sh")
        configure(source, folder, base)
    started, used = time.monotonic(), _processor_seconds()
    progress(f"make -j{jobs}, output in {_log(folder)}")
    _call(["make", f"-j{jobs}"], _log(folder), cwd=folder)
    return Tree(folder, package, base, time.monotonic() - started, _processor_seconds() - used)


def configure(source: Path, folder: Path, base: str) -> None:
    """Make a .config as docs/kernel-config.md tells users to. Raises HostError if it lacks a line of the fragment."""
    shutil.rmtree(folder)
    folder.mkdir()
    log = _log(folder)
    _call(["make", "-C", str(source), f"O={folder}", base], log)
    merge = [str(source / "scripts/kconfig/merge_config.sh")]
    if base == "allnoconfig":
        merge.append("-n")  # what neither file mentions stays off too
    _call([*merge, ".config", str(FRAGMENT)], log, cwd=folder)
    lost = missing_options((folder / ".config").read_text())
    if lost:
        raise HostError(f"{folder}: {base} and images/kernel.config give no {', '.join(lost)}")
    (folder / STAMP).write_text(_inputs(source, base))


def _processor_seconds() -> float:
    """Return the processor time of all programs that this process has run."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _log(folder: Path) -> Path:
    """Return the file beside a build folder that has the output of its last program."""
    return folder.parent / f"{folder.name}.log"


def _inputs(source: Path, base: str) -> str:
    return f"{source}\n{base}\n{FRAGMENT.read_text()}"


def _is_configured(folder: Path, source: Path, base: str) -> bool:
    try:
        return (folder / STAMP).read_text() == _inputs(source, base)
    except FileNotFoundError:
        return False


def _call(command: list[str], log: Path, cwd: Path | None = None) -> None:
    """Run a program with its output in `log`. Raises HostError with the output's end if it fails."""
    with log.open("wb") as output:
        try:
            done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        except FileNotFoundError as error:
            raise ConfigError(f"{command[0]} is missing: `make test-kdir` installs it") from error
    if done.returncode:
        tail = log.read_text(errors="replace").splitlines()[-LOG_TAIL:]
        raise HostError("\n".join([f"{' '.join(command)} failed ({log}):", *tail]))
