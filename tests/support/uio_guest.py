"""An initramfs for tests of devices that uio_hv_generic drives: the module, and docs/examples/uio_echo.c."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from pyvmm.errors import HostError
from pyvmm.images.catalog import Image, find_image
from pyvmm.images.cpio import CpioWriter
from pyvmm.images.parts import append_parts
from pyvmm.launch.guest_parts import UIO
from pyvmm.paths import cache_folder, write_private

SOURCE = Path(__file__).parents[2] / "docs" / "examples" / "uio_echo.c"


def uio_initrd(image: Image, *, build: bool = True) -> Path:
    """The image's initramfs with the part `uio` and /bin/uio_echo. Raises HostError if it cannot be made."""
    import hashlib

    digest = hashlib.sha256(f"{UIO}".encode() + SOURCE.read_bytes()).hexdigest()[:16]
    target = cache_folder("tests", f"uio-{image.initrd.stem}-{digest}.cpio")
    if build and not target.exists():
        base = append_parts(find_image(image.name, features=("uio",)).initrd, (UIO,), lambda line: None)
        write_private(target, base.read_bytes() + _program())
    return target


def _program() -> bytes:
    archive = CpioWriter()
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "uio_echo"
        try:
            subprocess.run(["gcc", "-O2", "-static", "-o", program, SOURCE], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise HostError(f"no static C program can be made (apt install gcc libc6-dev): {error}") from error
        archive.file("bin/uio_echo", program.read_bytes(), 0o755)
    return archive.build()
