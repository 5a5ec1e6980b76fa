"""From what a user names (an image, a kernel file, a build tree) to the MachineConfig of a guest.

The command line, the Python API and `pyvmm tour` all come through here: a guest is the same whoever starts it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firmware.linux import check_linux
from pyvmm.errors import ConfigError
from pyvmm.machine.config import MachineConfig

if TYPE_CHECKING:
    from images.catalog import Image

BASE_CMDLINE = (
    "console=ttyS0 quiet pci=off i8042.noaux i8042.nokbd 8250.nr_uarts=2 cryptomgr.notests memhp_default_state=online"
)
"""What every guest of ours is told: where its console is, what is not there to be looked for, that its ciphers work
(their self-tests took a fifth of the boot), and that hot-added memory is for use at once (Debian's kernels leave that
to udev, and our images have none)."""

NO_SHELL = "pyvmm.agent"
"""On the kernel's command line it keeps our images' init from starting a shell on the console."""


def _silent(line: str) -> None:
    pass


def build_config(
    *,
    kernel: Path | None = None,
    kdir: Path | None = None,
    initrd: Path | None = None,
    image: str | None = None,
    append: str = "",
    agent_only: bool = False,
    progress: Callable[[str], None] = _silent,
    look_into: bool = True,
    **machine: Any,
) -> MachineConfig:
    """A checked MachineConfig. `machine` are fields of it that are taken as they are.

    `look_into` False takes the files as they are: somebody has just looked, and loading them will tell.

    With neither kernel nor kdir it is one of our images, built if need be. `agent_only`: no shell on the console,
    because a program drives the guest through the agent. `progress` gets lines for people. Raises ConfigError.
    """
    config = MachineConfig(kernel=Path(), **machine)
    config.check()  # before an image is made for a machine that cannot be
    pieces = [BASE_CMDLINE]
    if kernel is not None or kdir is not None:
        if agent_only:
            raise ConfigError(
                "COMMAND needs one of our images: leave --kernel and --kdir out, or boot to your own init"
            )
        if image is not None:
            raise ConfigError("--image brings its own kernel: leave it out, or --kernel and --kdir")
        kernel, initrd = _own_kernel(kernel, kdir, initrd, progress)
    else:
        if initrd is not None:
            raise ConfigError("--initrd needs --kernel or --kdir: our images have their own")
        found = guest_image(image, progress, look_into=look_into)
        kernel, initrd = found.vmlinux, found.initrd
        if agent_only:
            pieces.append(NO_SHELL)
    if append:
        pieces.append(append)
    config.kernel, config.initrd, config.cmdline = kernel, initrd, " ".join(pieces)
    if look_into:
        check_linux(
            kernel=config.kernel,
            initrd=config.initrd,
            cmdline=config.cmdline,
            ram_size=config.memory,
            protocol=config.entry,
        )
    return config


def _own_kernel(
    kernel: Path | None, kdir: Path | None, initrd: Path | None, progress: Callable[[str], None]
) -> tuple[Path, Path | None]:
    if kdir is None:
        assert kernel is not None
        return kernel, initrd
    from images.kdir import open_kdir

    tree = open_kdir(kdir)
    if tree.missing:
        progress(f"{kdir}: its .config lacks {', '.join(tree.missing)}")
    return kernel or tree.kernel, initrd


def guest_image(name: str | None, progress: Callable[[str], None] = _silent, *, look_into: bool = True) -> Image:
    """One of our images (None: the default), built if it is not there yet."""
    from images import catalog

    if not look_into:
        return catalog.known_image(name or catalog.DEFAULT)
    return catalog.find_image(name or catalog.DEFAULT, progress=progress)
