"""From what a user names (an image, a kernel file, a build tree) to the MachineConfig of a guest.

The command line, the Python API and `pyvmm tour` all come through here: a guest is the same whoever starts it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm.backend import Backend
from pyvmm.devices import serial_window
from pyvmm.errors import ConfigError
from pyvmm.firmware import cmdline
from pyvmm.firmware.linux import check_linux
from pyvmm.host.inside import inside
from pyvmm.machine.config import MachineConfig

if TYPE_CHECKING:
    from pyvmm.images.catalog import Image
    from pyvmm.launch.options import GuestOptions

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


SILENCE, SILENCE_EMULATED = 10.0, 30.0
"""Seconds without a word of the guest until the user is told, on a KVM of this computer and in the emulated host."""


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
    options: GuestOptions,
    *,
    window: tuple[int, int] | None = None,
    progress: Callable[[str], None] = _silent,
    validate: bool = True,
) -> MachineConfig:
    """A checked MachineConfig of what a user asked for.

    With neither kernel nor kdir it is one of our images, built if need be. With a command there is no shell on the
    console: a program drives the guest through the agent. `window`: the terminal's size, if that is the console.
    `progress` gets lines for people. `validate` False skips the checks of files that the process outside the
    emulated host has made. Raises ConfigError.
    """
    config = machine_config(options)
    config.check()  # before an image is made for a machine that cannot be
    kernel, initrd, agent_only = options.kernel, options.initrd, bool(options.command)
    own = kernel is None and options.kdir is None
    if not own:
        if agent_only:
            raise ConfigError(
                "COMMAND needs one of our images: leave --kernel and --kdir out, or boot to your own init"
            )
        if options.image is not None:
            raise ConfigError("--image brings its own kernel: leave it out, or --kernel and --kdir")
        kernel, initrd = _own_kernel(kernel, options.kdir, initrd, progress)
    else:
        if initrd is not None:
            raise ConfigError("--initrd needs --kernel or --kdir: our images have their own")
        found = guest_image(options.image, progress, validate=validate)
        kernel, initrd = found.vmlinux, found.initrd
    config.kernel, config.initrd = kernel, initrd
    config.cmdline = command_line(options.append, agent_only=agent_only, window=window if own else None)
    if validate:
        check_linux(
            kernel=config.kernel,
            initrd=config.initrd,
            cmdline=config.cmdline,
            ram_size=config.memory,
            protocol=config.entry,
        )
    return config


def machine_config(options: GuestOptions) -> MachineConfig:
    """The part of a MachineConfig that needs no files. Raises ConfigError for options that contradict each other."""
    memory, hot_add = options.memory, options.hot_add
    if hot_add is not None and memory.max is not None and memory.max != memory.boot + hot_add:
        raise ConfigError("--hot-add and --memory max= say different things: give one of them")
    major, minor = options.max_vmbus.split(".")
    return MachineConfig(
        kernel=Path(),
        memory=memory.boot,
        max_memory=memory.max if hot_add is None else memory.boot + hot_add,
        min_memory=memory.min,
        buffer=memory.buffer,
        mem_backend=Backend.parse(options.mem_backend),
        slots=options.slots,
        balloon_version=options.balloon_version,
        balloon_piece=options.balloon_piece,
        keep_target=options.keep_target,
        status_report=options.status_report,
        page_reporting=options.page_reporting,
        cpus=options.cpus,
        engine=options.hyperv,
        entry=options.entry,
        max_vmbus=int(major) << 16 | int(minor),
        reboot=not options.no_reboot,
        on_panic=options.on_panic,
        silence=SILENCE_EMULATED if inside() else SILENCE,
    )


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


def guest_image(name: str | None, progress: Callable[[str], None] = _silent, *, validate: bool = True) -> Image:
    """One of our images (None: the default), built if it is not there yet."""
    from pyvmm.images import catalog

    if not validate:
        return catalog.known_image(name or catalog.DEFAULT)
    return catalog.find_image(name or catalog.DEFAULT, progress=progress)
