"""Saved hosts: snapshots of a booted emulated host (memory and state), so that a later start takes a second.

A host is saved while its init waits for the `go` line: modules loaded, Python and pyvmm imported, nothing of the
machine mounted yet (QEMU refuses to save its state while a 9p file system is mounted).

    host/saved-KEY/    KEY: boot image, QEMU, interpreter, checkout and memory class
        memory         the guest's RAM itself: the first QEMU writes it through a shared mapping, restored ones map it
                       privately, so only the pages that a run accesses are read, many runs share them, and
                       unused pages are holes in the file
        state          the rest, as a QEMU migration stream of a few hundred KiB (capability x-ignore-shared)
        saved.json     what was saved; a restoring process locks the folder until QEMU has opened the other files

`find` selects the smallest host with enough memory. One with pyvmm's modules as they are in this checkout is
preferred. While the sources here are being edited, one with other modules is used too (see `preload`), of this or
another checkout; after QUIET_SECONDS without an edit, this checkout gets its own.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pyvmm.cache import disk_errors, locked
from pyvmm.errors import HostError
from pyvmm.files import FileError, Shape, load_object
from pyvmm.host import cache_limits, preload, preload_archive, qemu
from pyvmm.host.boot_image import BootImage, Progress
from pyvmm.host.qemu import Hardware, Qemu
from pyvmm.paths import cache_folder, make_folder, new_folder, write_private

BOOT_LIMIT = 120.0  # seconds; a boot takes 5 to 8 on an idle machine
NEEDED_BYTES = 400 << 20  # free disk space; a saved host uses about half of it
IGNORE_SHARED = {"capability": "x-ignore-shared", "state": True}
CONFINED = "confined"  # a file beside the state that says whether QEMU has its sandbox: checked once, at the save
QUIET_SECONDS = 600.0  # sources edited since are imported by each command anew: a new host for every save costs more

RECORD: dict[str, Shape] = {
    "fits": str,
    "memory_mib": int,
    "python": str,
    "repository": str,
    "sources": str,
    "agent": str,
    "files": [str],
    "stable": str,
}
"""Members of saved.json."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A saved host, as described by its saved.json."""

    folder: str
    fits: str  # key of the boot image and QEMU with which it was saved
    memory_mib: int
    python: str  # the interpreter in it, by its path on the machine
    repository: str  # the checkout whose modules are imported
    sources: str  # digest of their state at the save
    agent: str  # digest of the agent's sources
    files: list[str]  # of other packages, and their state at the save
    stable: str

    @property
    def exact(self) -> bool:
        """Return whether its modules are those of this checkout now."""
        return self.sources == preload.sources_digest()

    def serves(self, fits: str, memory_mib: int) -> bool:
        """Return whether a command of this checkout can run in it with `memory_mib` of host memory."""
        return (
            (self.fits, self.python, self.agent) == (fits, sys.executable, preload.agent_digest())
            and memory_mib <= self.memory_mib <= max(memory_mib, _installed_mib())
            and preload.stable_digest(self.files) == self.stable
        )


def _installed_mib() -> int:
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20)


def _fits(image: BootImage) -> str:
    """Return a key of all that a saved state depends on: QEMU's version and arguments, and the boot image."""
    program = qemu.find_qemu()
    entry = os.stat(program)
    line = qemu.command_line("qemu", BootImage(Path("kernel"), Path("initramfs"), ""), Hardware(0), 0, 0, 0)
    key = repr((image.digest, line, CONFINED, os.path.realpath(program), entry.st_size, entry.st_mtime_ns))
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def all_saved() -> list[Saved]:
    """Return all saved hosts in the cache."""
    return list(_all_saved())


def _all_saved() -> Iterator[Saved]:
    for folder in sorted(cache_folder("host").glob("saved-*")):
        with contextlib.suppress(FileError):
            record = load_object(folder / "saved.json", RECORD)
            yield Saved(folder=str(folder), **{name: record[name] for name in RECORD})


def find(image: BootImage, memory_mib: int, *, exact: bool = False) -> Saved | None:
    """Return the saved host for a command of this checkout; None if one should be made.

    `exact`: only one whose modules are those of this checkout now.
    """
    fits = _fits(image)
    here = str(preload.REPOSITORY)
    order = sorted(_all_saved(), key=lambda each: (not each.exact, each.repository != here, each.memory_mib))
    best = next((each for each in order if each.serves(fits, memory_mib)), None)
    if best is None or best.exact:
        return best
    if exact or preload.sources_quiet_for() > QUIET_SECONDS:
        return None
    return best


def _memory(path: Path, hardware: Hardware, share: str) -> list[str]:
    text = str(path).replace(",", ",,")
    backend = f"memory-backend-file,id=ram,size={hardware.memory_mib}M,mem-path={text},share={share}"
    return ["-object", backend, "-machine", "memory-backend=ram"]


def make(image: BootImage, memory_mib: int, progress: Progress, *, exact: bool = False) -> Saved:
    """Boot a host and save it, unless another process just did. Raises HostError."""
    with disk_errors("saving the emulated host"), locked("host-snapshot"):
        if (just_made := find(image, memory_mib, exact=exact)) is not None:
            return just_made
        progress("booting the emulated host for the first time (saved for later starts)")
        parent = cache_folder("host")
        make_folder(parent)
        free = shutil.disk_usage(parent).free
        if free < NEEDED_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(parent))
        sources, python = preload.sources_digest(), preload.collect()
        files = [file for file in [*python.others, *python.files] if not preload.is_own(file)]
        fits, here = _fits(image), str(preload.REPOSITORY)
        key = repr((fits, memory_mib, sys.executable, here))
        folder = parent / f"saved-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        agent, stable = preload.agent_digest(), preload.stable_digest(files)
        saved = Saved(str(folder), fits, memory_mib, sys.executable, here, sources, agent, files, stable)
        with contextlib.ExitStack() as stack, cache_limits.in_use(image.kernel.parent), new_folder(folder) as made:
            initramfs = made / "initramfs"
            write_private(initramfs, image.initramfs.read_bytes() + preload_archive.archive(python, sources))
            _boot_and_save(made, BootImage(image.kernel, initramfs, image.digest), Hardware(memory_mib))
            initramfs.unlink()
            write_private(made / "saved.json", json.dumps(asdict(saved)).encode())
            stack.enter_context(cache_limits.replacing(folder))
        for other in _all_saved():  # superseded by the new one
            family = (other.fits, other.python, other.repository)
            if family == (fits, sys.executable, here) and other.memory_mib < memory_mib:
                cache_limits.remove(Path(other.folder))
        cache_limits.tidy(keep=folder)
        return saved


def _boot_and_save(made: Path, image: BootImage, hardware: Hardware) -> None:
    machine = Qemu.launch(image, hardware, _memory(made / "memory", hardware, "on"))
    try:
        machine.greet()
        wait_ready(machine, time.monotonic() + BOOT_LIMIT)
        machine.execute("migrate-set-capabilities", capabilities=[IGNORE_SHARED])
        machine.save(f"exec:cat > {shlex.quote(str(made / 'state'))}")
        with contextlib.suppress(HostError):
            machine.execute("quit")
        machine.process.wait(20)
    finally:
        machine.kill()
    if not (made / "state").stat().st_size:
        raise HostError("emulated host: QEMU saved no state")
    if qemu.has_sandbox(qemu.find_qemu()):
        (made / CONFINED).touch()


def wait_ready(machine: Qemu, until: float) -> None:
    """Wait until the inner init reports that it waits for the `go` line."""
    import select

    line = b""
    while not line.endswith(b"ready\n"):
        if not select.select([machine.port], [], [], max(0.0, until - time.monotonic()))[0]:
            raise HostError(f"emulated host: no sign of life in {BOOT_LIMIT:.0f} s: {machine.why_ended()}")
        part = os.read(machine.port, 64)
        if not part:
            raise HostError(f"emulated host: ended while booting: {machine.why_ended()}")
        line = (line + part)[-64:]


def restore(saved: Saved, image: BootImage) -> Qemu:
    """Start a QEMU that resumes the saved host. Raises HostError."""
    folder = Path(saved.folder)
    more = [*_memory(folder / "memory", Hardware(saved.memory_mib), "off"), "-incoming", "defer"]
    if (folder / CONFINED).exists():
        more += qemu.SANDBOX
    with cache_limits.in_use(image.kernel.parent), cache_limits.in_use(folder):
        try:
            state = os.open(folder / "state", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"emulated host: {folder / 'state'}: {error.strerror}") from error
        try:
            machine = Qemu.launch(image, Hardware(saved.memory_mib), more, [state])
        finally:
            os.close(state)
        try:
            machine.greet()
            machine.execute("migrate-set-capabilities", capabilities=[IGNORE_SHARED])
            machine.execute("migrate-incoming", uri=f"fd:{state}")  # the same number in QEMU
            machine.wait_migrated(time.monotonic() + 20)
            machine.execute("cont")  # it was saved while stopped
        except BaseException:
            machine.kill()
            raise
    return machine
