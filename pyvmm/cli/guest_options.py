"""click options for a guest, generated from the fields of GuestOptions, and a command class with `--config`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from pyvmm.cli.commands.completion import complete_event, files_by_ending, kinds_or_file
from pyvmm.cli.seconds import Seconds
from pyvmm.cli.words import RepeatableCommand, keep_words
from pyvmm.disks.spec import FORMATS, POLICIES, READ_POLICIES, DiskSpec, parse_disk
from pyvmm.errors import ConfigError
from pyvmm.gdb_place import read_place
from pyvmm.launch.config_file import FIXED_CONSOLES, load
from pyvmm.launch.options import (
    DEBUG_KINDS,
    HELP,
    ONE_SOURCE,
    OPTIONS,
    Field,
    GuestOptions,
    details,
    flag,
    read_debug,
    read_device,
    read_enlightenments,
    read_fault,
    read_number,
    read_seconds,
    text_of,
)
from pyvmm.net.spec import NetSpec, parse_net
from pyvmm.share.spec import Share, parse_share
from pyvmm.sizes import MemorySpec, parse_memory, parse_size

COVERED = ("hv_balloon", "hv_vmbus", "hv_utils")
"""Modules that --cover completes."""

Command = TypeVar("Command", bound=Callable[..., Any])


class SizeType(click.ParamType[int]):
    """A size in bytes: 512M, 2G, 0x20000000."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class MemoryType(click.ParamType[MemorySpec]):
    """A memory size with limits: 512M, or 512M,max=4G, or 512M,min=256M,max=4G,buffer=20%."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> MemorySpec:
        if isinstance(value, MemorySpec):
            return value
        try:
            return parse_memory(str(value))
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class DebugType(click.ParamType[str]):
    """Kinds of unhandled accesses, separated by commas."""

    name = "kinds"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return read_debug(str(value))
        except ConfigError as error:
            self.fail(str(error), param, ctx)


def complete_debug(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the last kind of a list separated by commas."""
    given, comma, last = incomplete.rpartition(",")
    left = [kind for kind in DEBUG_KINDS if kind not in given.split(",")]
    return [f"{given}{comma}{kind}" for kind in left if kind.startswith(last)]


class PlaceType(click.ParamType[str]):
    """Where a debugger connects: HOST:PORT or a path with a slash."""

    name = "place"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return read_place(str(value))
        except ConfigError as error:
            self.fail(str(error), param, ctx)


def complete_image(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete image names."""
    from pyvmm.images.catalog import list_images

    return [image.name for image in list_images() if image.name.startswith(incomplete)]


def complete_module(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[click.shell_completion.CompletionItem]:
    """Complete the modules of --kdir or --modules, and .ko files."""
    from pyvmm.images.modules import ModuleTree

    folder = ctx.params.get("modules") or ctx.params.get("kdir")
    names = [] if folder is None else ModuleTree(Path(folder)).names()
    found = [click.shell_completion.CompletionItem(name) for name in names if name.startswith(incomplete)]
    return [*found, *files_by_ending(".ko", incomplete)]


def complete_console(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[click.shell_completion.CompletionItem]:
    """Complete a kind of console, or a file."""
    return kinds_or_file(FIXED_CONSOLES, incomplete)


def complete_backend(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the kinds of --mem-backend."""
    return [kind for kind in ("anon", "memfd", "file=", "hugetlb=2M", "hugetlb=1G") if kind.startswith(incomplete)]


class EnlightenmentsType(click.ParamType[str]):
    """A list of enlightenments: stimer,-crash."""

    name = "list"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return read_enlightenments(str(value))
        except ConfigError as error:
            self.fail(str(error), param, ctx)


def complete_enlightenments(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the last name of a list of enlightenments."""
    from pyvmm.hyperv.enlightenments import ALL, TABLE

    before, comma, last = incomplete.rpartition(",")
    sign = last[:1] if last[:1] in ("+", "-") else ""
    words = TABLE if sign == "-" else [*TABLE, ALL] if before or sign else [*TABLE, ALL, HELP]
    return [before + comma + sign + word for word in words if word.startswith(last[len(sign) :])]


class DiskType(click.ParamType[DiskSpec]):
    """A disk: FILE,ro,format=qcow2."""

    name = "disk"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> DiskSpec:
        if isinstance(value, DiskSpec):
            return value
        try:
            return parse_disk(str(value))
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class ShareType(click.ParamType[Share]):
    """A shared folder: DIR:PATH,ro."""

    name = "share"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Share:
        if isinstance(value, Share):
            return value
        try:
            return parse_share(str(value))
        except ConfigError as error:
            self.fail(str(error), param, ctx)


def complete_folder(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[click.shell_completion.CompletionItem]:
    """Complete a folder."""
    return [click.shell_completion.CompletionItem(incomplete, type="dir")]


class DeviceType(click.ParamType[str]):
    """A device's name."""

    name = "device"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return read_device(str(value))
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class NetType(click.ParamType[NetSpec]):
    """A network card: user,hostfwd=tcp::2222-:22."""

    name = "net"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> NetSpec:
        if isinstance(value, NetSpec):
            return value
        try:
            return parse_net(str(value))
        except ConfigError as error:
            self.fail(str(error), param, ctx)


def complete_device(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the names of the devices that a machine does not have anyway."""
    from pyvmm.machine.config import DEFAULT_DEVICES
    from pyvmm.machine.devices import DEVICES

    return [each for each in (HELP, *DEVICES) if each.startswith(incomplete) and each not in DEFAULT_DEVICES]


def complete_net(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the kind of a network, the host's tap devices, or the next property."""
    from pyvmm.net.spec import complete

    return complete(incomplete)


def complete_disk(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[click.shell_completion.CompletionItem]:
    """Complete a disk's file, then its options."""
    given, comma, last = incomplete.rpartition(",")
    if not comma:
        return files_by_ending(".img", incomplete)
    words = (
        "ro",
        *(f"format={each}" for each in FORMATS),
        "id=",
        "serial=",
        *(f"werror={each}" for each in POLICIES),
        *(f"rerror={each}" for each in READ_POLICIES),
    )
    taken = {word.partition("=")[0] for word in given.split(",")[1:]}
    left = [word for word in words if word.partition("=")[0] not in taken]
    return [click.shell_completion.CompletionItem(f"{given},{word}") for word in left if word.startswith(last)]


class FaultType(click.ParamType[str]):
    """A fault rule, or the name of a fault."""

    name = "rule"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return read_fault(str(value))
        except ConfigError as error:
            self.fail(str(error), param, ctx)


def complete_fault(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a fault, or a rule's point, action or next key."""
    from pyvmm.faults.complete import complete

    return complete(incomplete)


def complete_covered(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[click.shell_completion.CompletionItem]:
    """Complete the names of Hyper-V's modules, and .ko files."""
    names = [click.shell_completion.CompletionItem(name) for name in COVERED if name.startswith(incomplete)]
    return [*names, *files_by_ending(".ko", incomplete)]


_COMPLETIONS: dict[str, Callable[..., Any]] = {
    "image": complete_image,
    "module": complete_module,
    "console": complete_console,
    "mem_backend": complete_backend,
    "enlightenments": complete_enlightenments,
    "device": complete_device,
    "fault": complete_fault,
    "share": complete_folder,
    "cover": complete_covered,
    "net": complete_net,
    "trace": complete_event,
    "debug": complete_debug,
    "disk": complete_disk,
}
_TYPES: dict[Callable[[str], Any], Any] = {
    str: str,
    Path: click.Path(path_type=Path),
    read_number: int,
    read_seconds: Seconds(min=0, min_open=True),
    parse_size: SizeType(),
    parse_memory: MemoryType(),
    read_debug: DebugType(),
    read_enlightenments: EnlightenmentsType(),
    read_device: DeviceType(),
    read_fault: FaultType(),
    parse_disk: DiskType(),
    parse_net: NetType(),
    parse_share: ShareType(),
    read_place: PlaceType(),
}


def guest_options(command: Command) -> Command:
    """Add an option for each field of GuestOptions, in their order."""
    for field in reversed(OPTIONS.values()):
        command = _option(field)(command)
    return command


def _option(field: Field) -> Callable[[Command], Command]:
    about, long = details(field), flag(field.name)
    more: dict[str, Any] = {"help": about.help}
    if isinstance(field.default, bool):
        names = [f"{long}/--no-{long[2:]}" if field.default else long, *([about.short] if about.short else [])]
        more |= {"is_flag": True, "default": field.default, "show_default": about.shown_default}
    else:
        names = [long, about.short] if about.short else [long]
        more["type"] = click.Choice(about.choices) if about.choices else _TYPES[about.read]
        more |= {"metavar": about.metavar, "shell_complete": _COMPLETIONS.get(field.name)}
        more["multiple"] = isinstance(field.default, tuple)
        if about.bare is not None:
            more |= {"is_flag": False, "flag_value": about.bare}
        if not more["multiple"]:
            default = None if field.default is None else text_of(field.default, about)
            more |= {"default": default, "show_default": about.shown_default}
    return click.option(*names, **more)


class ConfiguredCommand(RepeatableCommand):
    """A command that takes `FILE.toml` as first word or by `--config`, and prints the result by `--print-config`.

    Its options are `guest_options`, its variable argument is called `command`, and there are options `config` and
    `print_config`.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        keep_words(ctx, args)
        if ctx.resilient_parsing or {"-h", "--help"} & set(_before_dashes(args)):
            return super().parse_args(ctx, args)
        if not any(word.startswith("--config") or word.endswith(".toml") for word in _before_dashes(args)):
            return super().parse_args(ctx, args)  # the usual case, without a second parse
        given, _, _ = self.make_parser(ctx).parse_args(list(_before_dashes(args)))
        file, words = given.get("config"), given.get("command")  # both may be missing, or click's own "unset"
        if not isinstance(file, str):
            file = None
        if file is None and isinstance(words, tuple) and words and str(words[0]).endswith(".toml"):
            file = str(words[0])
            args.remove(file)
        if file is None:
            return super().parse_args(ctx, args)
        values = load(Path(file))
        if any(name in given for name in ONE_SOURCE):
            values = {name: value for name, value in values.items() if name not in ONE_SOURCE}
        command = values.pop("command", ())
        ctx.default_map = values
        rest = super().parse_args(ctx, args)
        ctx.params["command"] = ctx.params["command"] or command
        return rest


def _before_dashes(args: list[str]) -> list[str]:
    """Return the arguments before `--`; those after it belong to the guest's command."""
    return args[: args.index("--")] if "--" in args else args


def options_of(params: Mapping[str, Any]) -> GuestOptions:
    """Return GuestOptions from click's parameters of a command with `guest_options` and an argument `command`."""
    return GuestOptions(**{name: params[name] for name in (*OPTIONS, "command")})
