"""Builds the MachineConfig of a guest from an image, a kernel file or a build tree.

The command line, the Python API and `pyvmm tour` all use it, so that they start the same guest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm.devices.serial import window as serial_window
from pyvmm.errors import ConfigError
from pyvmm.firmware import cmdline
from pyvmm.firmware.linux import check_linux, is_multiboot
from pyvmm.host.inside import inside
from pyvmm.launch.boot_modules import read_modules
from pyvmm.machine.config import DEFAULT_DEVICES, MachineConfig
from pyvmm.ram_backend import Backend
from pyvmm.share.spec import Share, check_shares, command_line_word

if TYPE_CHECKING:
    from pyvmm.images.catalog import Image
    from pyvmm.images.parts import Part
    from pyvmm.launch.options import GuestOptions
    from pyvmm.launch.own_kernel import BootPlan

BASE_CMDLINE = "quiet pci=off 8250.nr_uarts=2 cryptomgr.notests memhp_default_state=online"
"""Kernel parameters of every guest: skip probes for absent devices and the self-tests of ciphers (a fifth of the
boot), and online hot-added memory at once (Debian's kernels leave that to udev, which our images lack)."""

CONSOLE = (
    f"earlycon=uart8250,mmio,{serial_window.CONSOLE.early:#x} console=uart8250,mmio,{serial_window.CONSOLE.base:#x}"
)
"""Kernel parameters for the console: ttyS0, at its MMIO window."""

NO_SHELL = "pyvmm.agent"
"""A word on the kernel's command line that makes our images' init start no shell on the console."""


SOCKETS = "pyvmm.vsock"
"""A word that makes our images' init load Hyper-V sockets."""

SIZE = "pyvmm.size={}x{}"
"""A word for our images' init: rows and columns of the console. Linux takes it for an absent module's parameter."""


SILENCE, SILENCE_EMULATED = 10.0, 30.0
"""Seconds without console output or VMBus activity until a notice, on the local KVM and in the emulated host."""


def command_line(
    append: str = "",
    *,
    agent_only: bool = False,
    window: tuple[int, int] | None = None,
    sockets: bool = False,
    shares: Sequence[Share] = (),
) -> str:
    """Return a guest's kernel command line. Our console comes last, because Linux prints the log so far there when it
    parses that word, and must have parsed the log level by then (`quiet`, the user's `loglevel=`). But a console that
    the user names comes after ours: the last is /dev/console. Words after a `--` of the user's are init's, so all
    words of ours come before it. `window`: rows and columns of the terminal that is the console, for init. `sockets`:
    init loads Hyper-V sockets. `shares`: it mounts these folders.
    """
    for_kernel, for_init = cmdline.split(append)
    words = [BASE_CMDLINE, NO_SHELL if agent_only else "", SIZE.format(*window) if window else "", for_kernel]
    words.insert(2, " ".join([SOCKETS if sockets else "", *starmap(command_line_word, enumerate(shares))]).strip())
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
    """Return a checked MachineConfig for `options`.

    With neither kernel nor kdir it is one of our images, built if need be. With a command there is no shell on the
    console: a program drives the guest through the agent. `window`: the terminal's size, if that is the console.
    `progress` gets lines for people. `validate` False skips the checks of files, which the process outside the
    emulated host has done. Raises ConfigError.
    """
    config = machine_config(options)
    append = options.append
    check_shares(options.share)
    config.check()  # before an image is built for an invalid machine
    if options.kernel is None and options.kdir is None:
        _refuse_without_kernel(options)
        found = guest_image(options.image, progress, validate=validate, features=features(options))
        config.kernel, config.initrd, our_init = found.vmlinux, found.initrd, True
        if found.root is not None:
            append = _boot_from(found.root, options, config)
        if parts := guest_parts(options):
            from pyvmm.images.parts import append_parts

            config.initrd = append_parts(found.initrd, parts, progress)
    else:
        plan = _own_kernel(options, config, progress, validate=validate)
        config.kernel, config.initrd, config.absent_drivers = plan.kernel, plan.initrd, plan.absent
        our_init = plan.absent is not None
    if not our_init and is_multiboot(config.kernel, config.entry):  # no Linux: its name and the user's words alone
        config.cmdline = f"{config.kernel.name} {options.append}".rstrip()
        if options.initrd is not None and config.initrd is not None:
            config.initrd, config.modules = None, read_modules(options.initrd)
    else:
        if options.share and not our_init:
            raise ConfigError("--share needs pyvmm's own initramfs: leave --initrd out")
        size = window if our_init else None
        config.cmdline = command_line(
            append,
            agent_only=bool(options.command),
            window=size,
            sockets=our_init and options.vsock is not None,
            shares=options.share,
        )
    if config.cover and validate:
        from pyvmm.cover.boot import prepare

        prepare(config.cover, config.kernel, progress)
    if validate:
        check_linux(
            kernel=config.kernel,
            initrd=config.initrd,
            modules=config.modules,
            cmdline=config.cmdline,
            ram_size=config.memory,
            protocol=config.entry,
        )
    return config


def _boot_from(root: Path, options: GuestOptions, config: MachineConfig) -> str:
    """Give the machine an image's disk as the first; return the kernel parameters. Raises ConfigError."""
    from pyvmm.disks.spec import DiskSpec
    from pyvmm.images.debian_root import WORDS

    if options.command:
        raise ConfigError(f"COMMAND needs our init: --image {options.image} boots its own; log in on its console")
    config.disks = (DiskSpec(str(root), format="raw", id="root"), *config.disks)
    if "storvsc" not in config.devices:
        config.devices = (*config.devices, "storvsc")
    return f"{WORDS} {options.append}"


def machine_config(options: GuestOptions) -> MachineConfig:
    """Return a MachineConfig without files. Raises ConfigError for options that contradict each other."""
    memory, hot_add = options.memory, options.hot_add
    if hot_add is not None and memory.max is not None and memory.max != memory.boot + hot_add:
        raise ConfigError("--hot-add and --memory max= contradict each other: give one of them")
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
        disks=options.disk,
        nets=options.net,
        cpus=options.cpus,
        engine=options.hyperv,
        enlightenments=enlightenment_words(options.enlightenments),
        entry=options.entry,
        max_vmbus=int(major) << 16 | int(minor),
        devices=_devices(options),
        test_devices=options.test_devices,
        reboot=not options.no_reboot,
        paused=options.paused,
        on_panic=options.on_panic,
        debug=frozenset(kind for each in options.debug for kind in each.split(",")),
        silence=SILENCE_EMULATED if inside() else SILENCE,
        faults=fault_rules(options.fault, options.fault_file),
        cover=tuple(options.cover),
    )


def guest_parts(options: GuestOptions) -> tuple[Part, ...]:
    """Return the parts of the initramfs that the guest's devices need."""
    if not options.device:
        return ()  # the usual case imports nothing
    from pyvmm.launch.guest_parts import parts_of

    return parts_of(options)


def _refuse_without_kernel(options: GuestOptions) -> None:
    """Raise ConfigError for an option that only a kernel of the user's own takes."""
    if options.initrd is not None:
        raise ConfigError("--initrd needs --kernel or --kdir: our images have their own")
    if options.modules is not None or options.module:
        name = "--module" if options.module else "--modules"
        raise ConfigError(f"{name} needs --kernel or --kdir: our images have their own modules")


def enlightenment_words(lists: Iterable[str]) -> tuple[str, ...]:
    """Return the words of the given lists of enlightenments. Raises ConfigError."""
    if not lists:
        return ()
    from pyvmm.hyperv.enlightenments import parse_words

    return tuple(word for each in lists for word in parse_words(each))


def fault_rules(rules: Iterable[str], file: Path | None) -> tuple[str, ...]:
    """Return the fault rules of a file and those given one by one, in this order. Raises ConfigError."""
    if not rules and file is None:
        return ()
    from pyvmm.faults.parse import load_rules, parse_rules

    for each in rules:
        parse_rules(each)
    return (*([] if file is None else load_rules(file)), *rules)


def _own_kernel(
    options: GuestOptions, config: MachineConfig, progress: Callable[[str], None], *, validate: bool
) -> BootPlan:
    if options.image is not None:
        raise ConfigError("--image brings its own kernel: leave it out, or --kernel and --kdir")
    from pyvmm.launch.own_kernel import known_plan, plan_boot

    known = None if validate else known_plan(options)
    return known or plan_boot(options, progress, cpus=config.cpus, grows=config.maximum_memory > config.memory)


def _devices(options: GuestOptions) -> tuple[str, ...]:
    """Return the names of the machine's devices."""
    return (*DEFAULT_DEVICES, *["storvsc"] * bool(options.disk), *["netvsc"] * len(options.net), *options.device)


def features(options: GuestOptions) -> tuple[str, ...]:
    """Return the names in `images.features` of what the guest needs besides the default."""
    wanted = {"disk": options.disk, "net": options.net, "share": options.share}
    names = tuple(name for name, given in wanted.items() if given)
    if not options.device:
        return names
    from pyvmm.launch.guest_parts import features_of

    return (*names, *features_of(options))


def guest_image(
    name: str | None,
    progress: Callable[[str], None] = _silent,
    *,
    validate: bool = True,
    features: tuple[str, ...] = (),
) -> Image:
    """Return one of our images (None: the default), built if the cache has none. `features`: of `images.features`."""
    from pyvmm.images import catalog

    if not validate:
        return catalog.known_image(name or catalog.DEFAULT, features)
    return catalog.find_image(name or catalog.DEFAULT, progress=progress, features=features)
