"""An initramfs with Debian's kexec in it, and a kernel to go on to: /sbin/kexec, /boot/vmlinuz, /boot/initrd.

Busybox has no kexec. The libraries are this machine's own, but for Xen's, which Debian's kexec wants and few have.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from elftools.elf.elffile import ELFFile

from pyvmm.errors import HostError
from pyvmm.images.catalog import Image
from pyvmm.images.cpio import CpioWriter
from pyvmm.images.packages import Package, dependency, download, find_package, unpack
from pyvmm.paths import cache_folder, write_private

LIBRARIES = (Path("/lib/x86_64-linux-gnu"), Path("/usr/lib/x86_64-linux-gnu"))
LOADER = Path("/lib64/ld-linux-x86-64.so.2")
INSIDE = "lib/x86_64-linux-gnu"


def kexec_initrd(image: Image, *, build: bool = True) -> Path:
    """The image's own initramfs, with kexec added. Raises HostError or ConfigError if it cannot be made."""
    target = cache_folder("tests", f"kexec-{image.initrd.name}")
    if build and not target.exists():
        initrd = image.initrd.read_bytes()
        write_private(target, initrd + _additions(image.kernel.read_bytes(), initrd))
    return target


def _additions(kernel: bytes, initrd: bytes) -> bytes:
    archive = CpioWriter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _unpack(find_package("kexec-tools", ["bookworm"]), folder)
        program = next(path for path in folder.glob("**/sbin/kexec") if path.is_file())
        archive.file("sbin/kexec", program.read_bytes(), 0o755)
        archive.file(str(LOADER).lstrip("/"), LOADER.read_bytes(), 0o755)
        for path in _libraries(program, [*LIBRARIES, *folder.glob(f"usr/{INSIDE}")]):
            archive.file(f"{INSIDE}/{path.name}", path.read_bytes(), 0o755)
    archive.file("boot/vmlinuz", kernel)
    archive.file("boot/initrd", initrd)
    return archive.build()


def _unpack(package: Package, folder: Path) -> None:
    """The package and all of Xen's libraries that it needs."""
    waiting, seen = [package], {package.name}
    while waiting:
        part = waiting.pop()
        unpack(download(part), folder)
        for name in part.depends:
            if name.startswith("libxen") and name not in seen and (needed := dependency(part, re.escape(name))):
                seen.add(name)
                waiting.append(needed)


def _libraries(program: Path, folders: list[Path]) -> list[Path]:
    """What `program` is linked with, and what that is linked with."""
    found: dict[str, Path] = {}
    waiting = [program]
    while waiting:
        with waiting.pop().open("rb") as file:
            dynamic = ELFFile(file).get_section_by_name(".dynamic")
            names = [tag.needed for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"]
        for name in names:
            if name not in found and name != LOADER.name:
                path = next((folder / name for folder in folders if (folder / name).exists()), None)
                if path is None:
                    raise HostError(f"kexec needs {name}, which this machine does not have")
                found[name] = path
                waiting.append(path)
    return list(found.values())
