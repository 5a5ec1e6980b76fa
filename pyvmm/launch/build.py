"""From what a user names (an image, a kernel file, a build tree) to the MachineConfig of a guest.

The command line, the Python API and `pyvmm tour` all come through here: a guest is the same whoever starts it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvmm.devices import serial_window
from pyvmm.errors import ConfigError
from pyvmm.firmware import cmdline
from pyvmm.firmware.linux import check_linux
from pyvmm.machine.config import MachineConfig

if TYPE_CHECKING:
    from pyvmm.images.catalog import Image

BASE_CMDLINE = "quiet pci=off 8250.nr_uarts=2 cryptomgr.notests memhp_default_state=online"
"""What every guest of ours is told: what is not there to be looked for, that its ciphers work (their self-tests took
a fifth of the boot), and that hot-added memory is for use at once (Debian's kernels leave that to udev, and our
images have none)."""

CONSOLE = (
    f"earlycon=uart8250,mmio,{serial_window.CONSOLE.early:#x} console=uart8250,mmio,{serial_window.CONSOLE.base:#x}"
)
"""Where its console is: ttyS0, by its window in memory."""

NO_SHELL = "pyvmm.agent"
"""On the kernel's command line it keeps our images' init from starting a shell on the console."""


SIZE = "pyvmm.size={}x{}"
"""Rows and columns of the console, likewise. A kernel takes it for a parameter of a module that is not there."""


def command_line(append: str = "", *, agent_only: bool = False, window: tuple[int, int] | None = None) -> str:
    """A guest's whole command line. Our console comes last, because Linux prints there what it has to say so far when
    it reads that word, and by then should know how much it shall say (`quiet`, the user's `loglevel=`). But a console
    that the user names comes after ours: the last is /dev/console. What follows a `--` of the user's is init's, so
    all words of ours come before it. `window`: rows and columns of the terminal that is the console, for init.
    """
    for_kernel, for_init = cmdline.split(append)
    words = [BASE_CMDLINE, NO_SHELL if agent_only else "", SIZE.format(*window) if window else "", for_kernel]
    words.insert(0 if "console" in cmdline.names(for_kernel) else len(words), CONSOLE)
    return " ".join(word for word in [*words, for_init] if word)


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
    window: tuple[int, int] | None = None,
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
    own = kernel is None and kdir is None
    if not own:
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
    config.kernel, config.initrd = kernel, initrd
    config.cmdline = command_line(append, agent_only=agent_only, window=window if own else None)
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
    from pyvmm.images.kdir import open_kdir

    tree = open_kdir(kdir)
    if tree.missing:
        progress(f"{kdir}: its .config lacks {', '.join(tree.missing)}")
    return kernel or tree.kernel, initrd


def guest_image(name: str | None, progress: Callable[[str], None] = _silent, *, look_into: bool = True) -> Image:
    """One of our images (None: the default), built if it is not there yet."""
    from pyvmm.images import catalog

    if not look_into:
        return catalog.known_image(name or catalog.DEFAULT)
    return catalog.find_image(name or catalog.DEFAULT, progress=progress)
