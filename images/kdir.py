"""A kernel build tree: finds the kernel, its release, configuration and modules in the output of `make`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pyvmm.errors import ConfigError
from pyvmm.files import FileError, read_text
from pyvmm.images.kernel_config import missing_options
from pyvmm.images.modules import ModuleTree

BZIMAGE = ("arch/x86/boot/bzImage", "arch/x86_64/boot/bzImage")


@dataclass(frozen=True, slots=True)
class KernelTree:
    """The parts of a build tree that pyvmm uses."""

    folder: Path
    kernel: Path  # vmlinux if it is there, else the bzImage
    bzimage: Path | None
    vmlinux: Path | None
    release: str
    missing: tuple[str, ...]  # options that its .config lacks for pyvmm

    def load_order(self, wanted: list[str]) -> list[tuple[str, bytes]]:
        """Return the tree's modules in load order, without those that are built in or were not built."""
        tree = ModuleTree(self.folder, listing=self.folder / "modules.order")
        present = [name for name in wanted if tree.is_builtin(name) or tree.has(name)]
        return tree.load_order(present)


def open_kdir(folder: Path) -> KernelTree:
    """Inspect a build tree. Raises ConfigError if it holds no x86 kernel."""
    if not folder.is_dir():
        raise ConfigError(f"--kdir {folder}: not a folder")
    vmlinux = folder / "vmlinux"
    bzimage = next((folder / path for path in BZIMAGE if (folder / path).is_file()), None)
    if not vmlinux.is_file() and bzimage is None:
        hint = "run make there" if (folder / "Kbuild").exists() or (folder / ".config").exists() else "no kernel tree"
        raise ConfigError(f"--kdir {folder}: neither vmlinux nor arch/x86/boot/bzImage; {hint}")
    kernel = vmlinux if vmlinux.is_file() else bzimage
    assert kernel is not None
    try:
        release = read_text(folder / "include/config/kernel.release").strip()
    except FileError:
        release = ""
    try:
        missing = tuple(missing_options(read_text(folder / ".config")))
    except FileError:
        missing = ()
    return KernelTree(folder, kernel, bzimage, vmlinux if vmlinux.is_file() else None, release, missing)
