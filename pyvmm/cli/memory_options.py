"""The options that say what a guest's memory is and how it may change: of `pyvmm run`, and of whatever starts guests.

`@memory_options` adds them to a command; `memory_fields(...)` makes MachineConfig's fields of what click read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pyvmm.errors import ConfigError
from pyvmm.sizes import MemorySpec, parse_memory, parse_size

Command = TypeVar("Command", bound=Callable[..., Any])


class SizeType(click.ParamType[int]):
    """512M, 2G, 0x20000000."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class MemoryType(click.ParamType[MemorySpec]):
    """512M, or 512M,max=4G, or 512M,min=256M,max=4G,buffer=20%."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> MemorySpec:
        if isinstance(value, MemorySpec):
            return value
        try:
            return parse_memory(str(value))
        except ConfigError as error:
            self.fail(str(error), param, ctx)


def complete_backend(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """What --mem-backend begins with, for the shell."""
    return [kind for kind in ("anon", "memfd", "file=", "hugetlb=2M", "hugetlb=1G") if kind.startswith(incomplete)]


def memory_options(command: Command) -> Command:
    """Add the options, `--memory` first."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS = (
    click.option(
        "--memory",
        "-m",
        type=MemoryType(),
        default="512M",
        show_default=True,
        metavar="SIZE[,max=SIZE][,min=SIZE][,buffer=N%]",
        help="RAM at boot, and what the balloon may grow it to. min= or buffer= size the guest by its own demand.",
    ),
    click.option("--hot-add", type=SizeType(), help="Memory to grow by: max= counted from the boot size."),
    click.option(
        "--mem-backend",
        default="anon",
        show_default=True,
        metavar="KIND",
        shell_complete=complete_backend,
        help="What guest RAM is made of: anon, memfd, file=PATH or hugetlb=2M|1G; then ,prealloc=on and ,numa=NODE.",
    ),
    click.option("--slots", type=int, help="KVM memory slots for hot-added memory, at most.  [default: 64]"),
    click.option(
        "--balloon-version",
        type=click.Choice(["1.0", "2.0", "3.0"]),
        default="3.0",
        show_default=True,
        help="The newest Dynamic Memory protocol to speak; Linux's log calls these 0.3, 1.0 and 2.0.",
    ),
    click.option(
        "--balloon-piece",
        type=SizeType(),
        default="128M",
        show_default=True,
        help="Memory asked for at a time.",
    ),
    click.option(
        "--keep-target/--no-keep-target",
        default=True,
        show_default=True,
        help="Apply the balloon's last target again after a reset.",
    ),
    click.option(
        "--status-report/--no-status-report",
        default=True,
        show_default=True,
        help="Take the guest's reports of its memory pressure.",
    ),
    click.option(
        "--page-reporting/--no-page-reporting",
        default=True,
        show_default=True,
        help="Let the guest's free memory go back to the host by itself.",
    ),
)


def memory_fields(
    memory: MemorySpec,
    hot_add: int | None,
    mem_backend: str,
    slots: int | None,
    balloon_version: str,
    balloon_piece: int,
    keep_target: bool,
    status_report: bool,
    page_reporting: bool,
) -> dict[str, Any]:
    """MachineConfig's fields. Raises ConfigError for options that contradict each other."""
    from pyvmm.backend import Backend

    if hot_add is not None and memory.max is not None and memory.max != memory.boot + hot_add:
        raise ConfigError("--hot-add and --memory max= say different things: give one of them")
    most = memory.max if hot_add is None else memory.boot + hot_add
    return {
        "memory": memory.boot,
        "max_memory": most,
        "min_memory": memory.min,
        "buffer": memory.buffer,
        "mem_backend": Backend.parse(mem_backend),
        "slots": slots,
        "balloon_version": balloon_version,
        "balloon_piece": balloon_piece,
        "keep_target": keep_target,
        "status_report": status_report,
        "page_reporting": page_reporting,
    }


MEMORY_PARAMETERS = tuple(memory_fields.__annotations__.keys() - {"return"})
"""Names of the parameters that `memory_options` adds."""
