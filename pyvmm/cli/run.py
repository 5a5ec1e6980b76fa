"""`pyvmm run`: from options to a running guest, here or in the emulated host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyvmm.cli.completion import complete_event, files_by_ending, kinds_or_file
from pyvmm.cli.config_file import FIXED_CONSOLES, ConfiguredCommand, command_line, render
from pyvmm.cli.memory_options import MEMORY_PARAMETERS, memory_fields, memory_options
from pyvmm.cli.seconds import Seconds
from pyvmm.cli.words import command_words
from pyvmm.launch.where import run_somewhere, say

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from pyvmm.machine.config import MachineConfig
    from pyvmm.sandbox.confine import Mode

SILENCE, SILENCE_EMULATED = 10.0, 30.0
"""Seconds without a word of the guest until the user is told, on a KVM of this computer and in the emulated host."""


def complete_image(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Image names, for the shell."""
    from pyvmm.images.catalog import list_images

    return [image.name for image in list_images() if image.name.startswith(incomplete)]


def complete_console(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Kinds of consoles or a file, for the shell."""
    return kinds_or_file(FIXED_CONSOLES, incomplete)


def complete_config(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files of options, for the shell: a first word may be one, what follows is the guest's."""
    return [] if ctx.params.get("command") else files_by_ending(".toml", incomplete)


@click.command(cls=ConfiguredCommand)
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="Take options from a TOML file.")
@click.option("--print-config", is_flag=True, help="Print the options as such a file, and end.")
@click.option("--kernel", type=click.Path(path_type=Path), help="A bzImage or an ELF vmlinux.")
@click.option("--kdir", type=click.Path(path_type=Path), help="A kernel build tree: its vmlinux and modules.")
@click.option("--initrd", type=click.Path(path_type=Path), help="Any initramfs, with --kernel or --kdir.")
@click.option("--image", shell_complete=complete_image, help="One of our images; `pyvmm image list` shows them.")
@click.option(
    "--append",
    default="",
    metavar="ARGS",
    help="More for the kernel's command line. A kernel without ACPI or 8250_PNP wants 'console=ttyS0'.",
)
@memory_options
@click.option("--cpus", type=int, default=1, show_default=True, help="Virtual CPUs.")
@click.option(
    "--hyperv",
    type=click.Choice(["auto", "kernel", "user"]),
    default="auto",
    show_default=True,
    help="Who plays Hyper-V: KVM itself, or pyvmm in Python.",
)
@click.option(
    "--host",
    type=click.Choice(["auto", "local", "emulated"]),
    default="auto",
    show_default=True,
    help="Run on this machine's KVM, or in a Linux with KVM that QEMU emulates.",
)
@click.option(
    "--entry",
    type=click.Choice(["auto", "64", "pvh"]),
    default="auto",
    show_default=True,
    help="How the kernel is entered.",
)
@click.option(
    "--max-vmbus",
    type=click.Choice(["2.4", "3.0", "4.0", "4.1", "5.0", "5.1", "5.2", "5.3"]),
    default="5.3",
    show_default=True,
    help="The newest VMBus protocol to speak.",
)
@click.option(
    "--console",
    default=None,
    metavar="stdio|FILE|pty|none",
    shell_complete=complete_console,
    help="Where the guest's console goes.",
)
@click.option("--name", default=None, help="What `pyvmm status`, `balloon` and `stop` shall call it.")
@click.option("--qmp", type=click.Path(path_type=Path), help="Serve QMP on this Unix socket too.")
@click.option(
    "--trace",
    multiple=True,
    metavar="PATTERN",
    shell_complete=complete_event,
    help="Show trace events, e.g. 'vmbus_*'. Repeatable.",
)
@click.option("--trace-file", type=click.Path(path_type=Path), help="Keep the trace in a file: JSON lines.")
@click.option(
    "--trace-format",
    type=click.Choice(["text", "json", "chrome"]),
    help="How; default by the file's ending: .txt text, .json chrome (for Perfetto), else JSON lines.",
)
@click.option("--timeout", type=Seconds(min=0, min_open=True), help="End with status 124 after SECONDS.")
@click.option(
    "--sandbox",
    type=click.Choice(["on", "off", "require"]),
    default="on",
    show_default=True,
    help="Confine pyvmm by Landlock, seccomp and capabilities: as this kernel can, not, or all or nothing.",
)
@click.option("--no-reboot", is_flag=True, help="End when the guest resets.")
@click.option(
    "--on-panic",
    type=click.Choice(["auto", "stop", "keep"]),
    default="auto",
    show_default=True,
    help="When the guest panics: end the machine, keep it, or end it unless it goes on to a crash kernel (kdump).",
)
@click.option("--control-socket", type=click.Path(path_type=Path), hidden=True)
@click.option("--tied", is_flag=True, hidden=True, help="End with standard input: for the Python API.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, shell_complete=complete_config)
@click.pass_context
def run(
    ctx: click.Context,
    /,
    print_config: bool,
    host: str,
    console: str | None,
    name: str | None,
    qmp: Path | None,
    trace: tuple[str, ...],
    trace_file: Path | None,
    trace_format: str | None,
    timeout: float | None,
    sandbox: Mode,
    control_socket: Path | None,
    tied: bool,
    command: tuple[str, ...],
    **_guest: Any,
) -> None:
    """Boot a guest that finds itself on Hyper-V.

    Without options: the default guest, to a shell. COMMAND runs in the default guest, and its exit status becomes
    pyvmm's; it has no input. A first word that ends in .toml is a file of options: --config. Piped input is typed at
    the guest's console; `poweroff` at its end ends the guest.

    \b
    pyvmm run
    pyvmm run -m 1G --cpus 2 --trace 'hv_balloon_*'
    pyvmm run --image debian-6.12 -- uname -a
    pyvmm run --kernel bzImage --initrd root.cpio --append 'debug'
    pyvmm run vm.toml -m 2G                         the command line goes before the file
    pyvmm run -m 2G --print-config > vm.toml

    \b
    Ctrl-A x ends the guest, Ctrl-A c reaches the monitor (`balloon 256M`, `info balloon`, `quit`),
    Ctrl-A h lists the keys.

    \b
    Exit status: 0 power-off, 255 the guest panicked or resets for ever, 124 time limit, 1 host trouble, 2 usage;
    COMMAND's own with COMMAND.
    """
    if print_config:
        click.echo(render(ctx.command, ctx.params), nl=False)
        return
    if trace:
        from pyvmm.launch.trace_sinks import check_patterns

        check_patterns(trace)  # before an emulated host is booted for it
    if sandbox == "require":
        from pyvmm.sandbox.confine import check

        check(sandbox)

    def here(config: MachineConfig, sockets: list[Path]) -> int:
        from pyvmm.launch.attended import Order, run_session
        from pyvmm.launch.trace_sinks import TraceSettings

        return run_session(
            config,
            Order(
                console=console or ("none" if command else "stdio"),
                command=command_line(command),
                timeout=timeout,
                trace=TraceSettings(trace, trace_file, trace_format),
                tied=tied,
                sandbox=sandbox,
            ),
            sockets,
        )

    ctx.exit(
        run_somewhere(
            command_words(ctx),
            lambda: config_of(ctx.params),
            here,
            host=host,
            name=name,
            qmp=qmp,
            control_socket=control_socket,
            input=not command and console in (None, "stdio"),
        )
    )


def config_of(params: Mapping[str, Any]) -> MachineConfig:
    """The machine that `run`'s parameters describe; the Python API's keywords come through here as well.

    Raises ConfigError. Builds the guest image if need be.
    """
    from pyvmm.host.inside import inside
    from pyvmm.launch.build import build_config

    major, minor = params["max_vmbus"].split(".")
    return build_config(
        **{
            name: params[name]
            for name in ("kernel", "kdir", "initrd", "image", "append", "cpus", "entry", "on_panic")
        },
        agent_only=bool(params["command"]),
        window=_window() if params["console"] in (None, "stdio") and not params["command"] else None,
        progress=say,
        look_into=not inside(),  # the outer side has
        engine=params["hyperv"],
        max_vmbus=int(major) << 16 | int(minor),
        reboot=not params["no_reboot"],
        silence=SILENCE_EMULATED if inside() else SILENCE,
        **memory_fields(**{name: params[name] for name in MEMORY_PARAMETERS}),
    )


def _window() -> tuple[int, int] | None:
    from pyvmm.foreground import window_of

    return window_of(0) or window_of(1)
