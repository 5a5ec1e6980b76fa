"""The suspended, ready-made host: booted once, its memory and state kept, so that a later start takes a second.

Saved while the inner init waits for its orders: modules loaded, nothing of the machine mounted yet (QEMU refuses to
save its state while a 9p file system is mounted).

Two files: `memory`, which is the guest's RAM itself (the first QEMU writes it through a shared mapping, restored ones
map it privately, so only the pages a run touches are ever read, many runs share them, and pages never used are holes
in the file), and `state`, all else, as a QEMU migration stream of a few hundred KiB (capability x-ignore-shared).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shlex
import shutil
import time
from pathlib import Path

from images.cache import cache_folder, disk_errors, locked, new_folder
from pyvmm.errors import HostError
from pyvmm.host import qemu
from pyvmm.host.kit import Kit, Progress, forget_old
from pyvmm.host.qemu import Hardware, Qemu

BOOT_LIMIT = 120.0  # seconds; a boot takes 5 to 8 on an idle machine
NEEDED_BYTES = 400 << 20  # a snapshot takes about half of this
IGNORE_SHARED = {"capability": "x-ignore-shared", "state": True}
KEPT = 4  # snapshots of other memory sizes or versions kept before the oldest go


def folder_for(kit: Kit, hardware: Hardware) -> Path:
    """Where the snapshot for this very kit, hardware and QEMU lives."""
    program = qemu.find_qemu()
    entry = os.stat(program)
    line = qemu.command_line("qemu", kit, hardware, 0, 0, 0)
    key = repr((kit.digest, line, os.path.realpath(program), entry.st_size, entry.st_mtime_ns))
    return cache_folder() / "host" / f"snapshot-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _memory(path: Path, hardware: Hardware, share: str) -> list[str]:
    text = str(path).replace(",", ",,")
    backend = f"memory-backend-file,id=ram,size={hardware.memory_mib}M,mem-path={text},share={share}"
    return ["-object", backend, "-machine", "memory-backend=ram"]


def make(folder: Path, kit: Kit, hardware: Hardware, progress: Progress) -> None:
    """Boot a host and save it as `folder`, unless another process just did. Raises HostError."""
    with disk_errors("saving the emulated host"), locked("host-snapshot"):
        if (folder / "state").exists():
            return
        progress("booting the emulated host for the first time (kept for later starts)")
        for left in folder.parent.glob(".snapshot-*"):  # of a maker that was killed: we hold the lock
            shutil.rmtree(left, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        if free < NEEDED_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder.parent))
        with new_folder(folder) as made:
            _boot_and_save(made, kit, hardware)
        forget_old(folder, "snapshot-*", KEPT)


def _boot_and_save(made: Path, kit: Kit, hardware: Hardware) -> None:
    machine = Qemu.launch(kit, hardware, _memory(made / "memory", hardware, "on"))
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


def wait_ready(machine: Qemu, until: float) -> None:
    """Wait for the inner init's word that it waits."""
    import select

    line = b""
    while not line.endswith(b"ready\n"):
        if not select.select([machine.port], [], [], max(0.0, until - time.monotonic()))[0]:
            raise HostError(f"emulated host: no sign of life in {BOOT_LIMIT:.0f} s: {machine.why_ended()}")
        part = os.read(machine.port, 64)
        if not part:
            raise HostError(f"emulated host: ended while booting: {machine.why_ended()}")
        line = (line + part)[-64:]


def restore(folder: Path, kit: Kit, hardware: Hardware) -> Qemu:
    """A QEMU that goes on where the snapshot stopped."""
    more = _memory(folder / "memory", hardware, "off")
    with contextlib.suppress(OSError):
        os.utime(folder)
    machine = Qemu.launch(kit, hardware, [*more, "-incoming", "defer"])
    try:
        machine.greet()
        machine.execute("migrate-set-capabilities", capabilities=[IGNORE_SHARED])
        machine.execute("migrate-incoming", uri=f"exec:cat {shlex.quote(str(folder / 'state'))}")
        machine.wait_migrated(time.monotonic() + 20)
        machine.execute("cont")  # it was saved stopped
    except BaseException:
        machine.kill()
        raise
    return machine
