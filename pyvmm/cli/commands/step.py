"""`pyvmm step`: runs a guest to its next exit, message, packet or event, and shows what that means."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pyvmm.cli.guest_options import ConfiguredCommand, guest_options, options_of
from pyvmm.cli.output import echo
from pyvmm.cli.words import command_words
from pyvmm.errors import ConfigError
from pyvmm.launch.config_file import command_line, render
from pyvmm.launch.options import OPTIONS, GuestOptions
from pyvmm.launch.where import dispatch_run, print_message

if TYPE_CHECKING:
    from pyvmm.launch.session import Session
    from pyvmm.machine.config import MachineConfig
    from pyvmm.step.commands import Command

TINY_TOO = ("hyperv", "cpus", "host", "name", "qmp", "fault", "max_vmbus", "enlightenments", "timeout")
"""Options of a guest that the built-in one takes as well; any other one means Linux."""
NOT_HERE = ("console", "gdb", "vsock", "share", "sandbox", "trace", "trace_file", "trace_format", "paused", "debug")
"""Options of `pyvmm run` for what the prompt does itself, or that need its terminal."""
QUIET = 86400.0
"""Seconds after which a guest without console output is noticed: the built-in one has none."""
HINT = "`n` goes on to the next thing that passes between guest and host; `?` lists the commands"


@click.command(cls=ConfiguredCommand)
@click.option("--script", metavar="WORDS", help="Obey these words instead of a prompt, then end: 'm m p'.")
@click.option("--tiny", is_flag=True, help="Step the built-in guest. Default without options of another guest.")
@click.option("--linux", is_flag=True, help="Step the default Linux guest.")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="Take options from a TOML file.")
@click.option("--print-config", is_flag=True, help="Print the options as such a file, and end.")
@guest_options
@click.option("--control-socket", type=click.Path(path_type=Path), hidden=True)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def step(
    ctx: click.Context,
    /,
    script: str | None,
    tiny: bool,
    linux: bool,
    print_config: bool,
    control_socket: Path | None,
    **_guest: Any,
) -> None:
    """Run a guest to its next exit, message, packet or event, and show what it means.

    Without options of a guest it is a built-in one of 250 instructions, which every /dev/kvm runs: it enables
    Hyper-V's interrupt controller, contacts the VMBus, opens the balloon's channel, gives 16 MiB away, takes them
    back and powers off. With a COMMAND or any option of `pyvmm run` it is Linux.

    Each stop shows the bytes of the structure beside the names of its fields, the line of pyvmm's source that will
    handle it or has sent it, what happened since the last stop, and who waits for what. Nothing has been done with it
    yet, and `pyvmm map`, `pyvmm status` and `pyvmm balloon` work from another terminal meanwhile.

    \b
    m  next message       h  next hypercall     n  next of m p h i      w  who waits for what
    p  next packet        e  next exit          t  next trace event     r  registers
    i  next signal, event flag, interrupt       c  to the end           d  guest memory
    3m the third message from here; Enter repeats; ? lists all; q ends the guest

    \b
    pyvmm step                                  the built-in guest
    pyvmm step --script 'm m m'                 its first three messages, without a prompt
    pyvmm step --script 'm p p; t *state*'      words that take something end with a semicolon
    echo 'n n w' | pyvmm step                   the same from a pipe
    pyvmm step --linux -m 256M                  Linux, to its first contact with the VMBus: `m`
    pyvmm step --fault offer-twice              with a fault of the host: `pyvmm run --fault help`

    \b
    Exit status: 0 at the end of the words, of the input, or of the guest; 255 the guest panicked, 124 time limit,
    1 host trouble, 2 a word that is none; COMMAND's own with COMMAND.
    """
    given = {name for name in OPTIONS if ctx.get_parameter_source(name) not in (None, ParameterSource.DEFAULT)}
    for name in NOT_HERE:
        if name in given:
            raise click.UsageError(f"--{name.replace('_', '-')} does not go with step; `pyvmm run` has it")
    options = options_of(ctx.params)
    others = sorted(given - set(TINY_TOO))
    if tiny and (linux or others or options.command):
        why = "--linux" if linux else f"--{others[0].replace('_', '-')}" if others else "a COMMAND"
        raise click.UsageError(f"--tiny does not go with {why}")
    is_tiny = not (linux or others or options.command)
    if print_config:
        echo(render(options), nl=False)
        return
    words = None if script is None else _parse(script)

    def run_local(config: MachineConfig, sockets: list[Path]) -> int:
        from pyvmm.launch.stepping import Stepping

        stepping = Stepping(words, HINT)
        started = _guide if is_tiny else lambda session: stepping.execute(command_line(options.command))
        return stepping.run(config, sockets, started, timeout=options.timeout)

    with tempfile.TemporaryDirectory(prefix="pyvmm-step-") as folder:
        ctx.exit(
            dispatch_run(
                command_words(ctx),
                lambda: _tiny(options, Path(folder)) if is_tiny else _linux(options, control_socket is not None),
                run_local,
                host=options.host,
                name=options.name,
                qmp=options.qmp,
                control_socket=control_socket,
                input=script is None,
                any_kvm=is_tiny,
            )
        )


def _parse(script: str) -> list[Command]:
    from pyvmm.launch.stepping import check_words
    from pyvmm.step.commands import parse

    try:
        words = parse(script)
        check_words(words)
    except ConfigError as error:
        raise click.UsageError(f"--script: {error}") from error
    return words


def _tiny(options: GuestOptions, folder: Path) -> MachineConfig:
    """Return the configuration of the built-in guest, whose kernel file lies in `folder`."""
    from dataclasses import replace

    from pyvmm.images.tiny.kernel import MEMORY, write_kernel
    from pyvmm.launch.build import machine_config
    from pyvmm.sizes import MemorySpec

    kernel = write_kernel(folder / "tiny-guest")
    config = machine_config(replace(options, memory=MemorySpec(MEMORY)))
    config.kernel = kernel
    config.silence = QUIET
    return config


def _linux(options: GuestOptions, forwarded: bool) -> MachineConfig:
    from pyvmm.host.inside import inside
    from pyvmm.launch.build import build_config

    own = options.kernel is not None or options.kdir is not None
    return build_config(options, progress=print_message, validate=not inside() or (own and not forwarded))


def _guide(session: Session) -> None:
    """Ask the built-in guest for a quarter of its memory, and give it back."""
    from pyvmm.images.tiny.kernel import MEMORY

    machine = session.machine
    balloon = machine.balloon
    assert balloon is not None, "the built-in guest has the usual devices"

    def finished(_outcome: object) -> None:
        if balloon.actual < MEMORY:
            machine.monitor.balloon_set(MEMORY)

    balloon.on_finish.append(finished)
    machine.monitor.balloon_set(MEMORY * 3 // 4)
