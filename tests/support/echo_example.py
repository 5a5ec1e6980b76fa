"""docs/examples/echo.py for tests: the module, its row in the table of devices, and a guest that can talk to it.

The guest's initramfs has uio_hv_generic, and echo_guest.c as /bin/echo_guest.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from pyvmm.errors import HostError
from pyvmm.images.catalog import Image
from pyvmm.images.cpio import CpioWriter
from pyvmm.images.modules import ModuleTree
from pyvmm.images.packages import unpack
from pyvmm.machine.devices import Kind
from pyvmm.paths import cache_folder, write_private

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "docs" / "examples" / "echo.py"
GUEST_SOURCE = ROOT / "tests" / "support" / "echo_guest.c"
DOCUMENT = ROOT / "docs" / "adding-a-device.md"


def load() -> ModuleType:
    """The example's module; the same each time, for events are declared once."""
    if "echo_example" not in sys.modules:
        spec = importlib.util.spec_from_file_location("echo_example", SOURCE)
        assert spec is not None and spec.loader is not None
        module = sys.modules["echo_example"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["echo_example"]


ROW = {"echo": Kind(lambda parts: load().Echo(), "echo_example", several=True)}


def echo_initrd(image: Image, *, build: bool = True) -> Path:
    """The image's own initramfs with what talks to the echo device. Raises HostError if it cannot be made."""
    target = cache_folder("tests", f"echo-{image.initrd.name}")
    if build and not target.exists():
        write_private(target, image.initrd.read_bytes() + _additions(image))
    return target


def _additions(image: Image) -> bytes:
    archive = CpioWriter()
    name, version = image.package.split()
    package = next(iter(cache_folder("packages").glob(f"{name}_{version.replace(':', '%3a')}_*.deb")), None)
    if package is None:
        raise HostError(f"{name} {version} is not in the cache: `pyvmm image build --force {image.name}` fetches it")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        unpack(package, folder)
        modules = ModuleTree(next(folder.glob("lib/modules/*"))).load_order(["uio_hv_generic"])
        for module, contents in modules:
            if module not in image.modules:
                archive.file(f"lib/modules/{module}.ko", contents)
        program = folder / "echo_guest"
        try:
            subprocess.run(["gcc", "-O1", "-static", "-o", program, GUEST_SOURCE], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise HostError(f"no static C program can be made (apt install gcc libc6-dev): {error}") from error
        archive.file("bin/echo_guest", program.read_bytes(), 0o755)
    return archive.build()
