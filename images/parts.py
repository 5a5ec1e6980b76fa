"""Parts of an initramfs that a guest gets on demand: programs with their libraries, files, and what init starts.

The default guest's initramfs stays as small as it is. A part is an archive of its own in the cache, which is appended
to it (Linux unpacks one archive after another). Modules are not in parts: see `features`.

    initrd/IMAGE-HASH.cpio            the guest's without parts
    initrd/part-NAME-HASH.cpio        a part, HASH over its recipe
    initrd/IMAGE-HASH+HASH.cpio       both

In the guest, init reads the script /etc/pyvmm/start.NAME of each part, after it has loaded the modules.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm.cache import disk_errors, locked, mark_used
from pyvmm.paths import cache_folder, write_private

if TYPE_CHECKING:
    from pyvmm.images.programs import Programs

RECIPE = 1  # increment when the output for the same inputs changes

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Part:
    """One part. `start`: shell lines for init, which must not wait. `files`: texts by path; folders end in `/`."""

    name: str
    programs: tuple[Programs, ...] = ()
    start: str = ""
    files: tuple[tuple[str, str], ...] = ()


def append_parts(initrd: Path, parts: Sequence[Part], progress: Progress) -> Path:
    """Return an initramfs with `parts` appended, made if missing. Raises ConfigError, HostError."""
    if not parts:
        return initrd
    digests = [hashlib.sha256(f"{RECIPE} {part}".encode()).hexdigest()[:16] for part in parts]
    whole = hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]
    target = initrd.with_name(f"{initrd.stem}+{whole}.cpio")
    if not target.exists():
        with disk_errors(f"cannot make {target.name}"), locked("images"):
            pieces = [initrd.read_bytes()]
            for part, digest in zip(parts, digests, strict=True):
                place = cache_folder("initrd", f"part-{part.name}-{digest}.cpio")
                if not place.exists():
                    write_private(place, _archive(part, progress))
                mark_used(place)
                pieces.append(place.read_bytes())
            write_private(target, b"".join(pieces))
    mark_used(target)
    return target


def _archive(part: Part, progress: Progress) -> bytes:
    from pyvmm.images.cpio import CpioWriter

    writer = CpioWriter()
    if part.programs:
        from pyvmm.images.programs import collect

        progress(f"fetching {', '.join(each.package for each in part.programs)}")
        for path, data in collect(part.programs).items():
            writer.file(path, data, 0o755)
    for path, text in part.files:
        if path.endswith("/"):
            writer.folder(path.rstrip("/"))
        else:
            writer.file(path, text.encode(), 0o755)
    if part.start:
        writer.file(f"etc/pyvmm/start.{part.name}", part.start.encode())
    return writer.build()
