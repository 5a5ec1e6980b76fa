"""`pyvmm run`: boots a guest from options, on the local KVM or in the emulated host."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyvmm.cli.commands.completion import files_by_ending
from pyvmm.cli.guest_options import ConfiguredCommand, guest_options, options_of
from pyvmm.cli.words import command_words
from pyvmm.launch.config_file import command_line, render
from pyvmm.launch.options import HELP
from pyvmm.launch.where import dispatch_run, print_message

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from pyvmm.launch.options import GuestOptions
    from pyvmm.machine.config import MachineConfig


def complete_config(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete TOML files for the first word; the words after it are the guest's command."""
    return [] if ctx.params.get("command") else files_by_ending(".toml", incomplete)


@click.command(cls=ConfiguredCommand)
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="Take options from a TOML file.")
@click.option("--print-config", is_flag=True, help="Print the options as such a file, and end.")
@guest_options
@click.option("--control-socket", type=click.Path(path_type=Path), hidden=True)
@click.option("--tied", is_flag=True, hidden=True, help="End with standard input: for the Python API.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, shell_complete=complete_config)
@click.pass_context
def run(ctx: click.Context, /, print_config: bool, control_socket: Path | None, tied: bool, **_guest: Any) -> None:
    """Boot a guest that finds itself on Hyper-V.

    Without options: the default guest, to a shell. COMMAND runs in the guest, and its exit status becomes pyvmm's; it
    has no input. A kernel of your own (--kdir, --kernel) gets pyvmm's init, shell and agent, and its own Hyper-V
    drivers. A first word that ends in .toml is a file of options: --config. Piped input is typed at the guest's
    console; `poweroff` at its end ends the guest.

    \b
    pyvmm run
    pyvmm run -m 1G --cpus 2 --trace 'hv_balloon_*'
    pyvmm run --image debian-6.12 -- uname -a
    pyvmm run --kdir ~/linux -- uname -r            a kernel build tree, without modules_install
    pyvmm run --kernel /boot/vmlinuz-6.1.0-9-amd64  or a linux-image-*.deb; or bzImage --modules DIR
    pyvmm run --kernel bzImage --initrd root.cpio --append 'debug'
    pyvmm run --fault unballoon-twice               the host breaks a rule: `--fault help` lists which
    pyvmm run vm.toml -m 2G                         the command line goes before the file
    pyvmm run -m 2G --print-config > vm.toml

    \b
    Ctrl-A x ends the guest, Ctrl-A c reaches the monitor (`balloon 256M`, `info balloon`, `quit`),
    Ctrl-A h lists the keys.

    \b
    Exit status: 0 power-off, 255 the guest panicked or resets for ever, 124 time limit, 1 host trouble, 2 usage;
    COMMAND's own with COMMAND.
    """
    options = options_of(ctx.params)
    if HELP in options.enlightenments:
        from pyvmm.hyperv.enlightenments import describe

        click.echo(describe())
        return
    if HELP in options.device:
        from pyvmm.machine.devices import describe as describe_devices

        click.echo(describe_devices())
        return
    if HELP in options.fault:
        from pyvmm.faults.describe import describe as describe_faults

        click.echo(describe_faults())
        return
    if print_config:
        click.echo(render(options), nl=False)
        return
    if options.trace:
        from pyvmm.launch.trace_sinks import check_patterns

        check_patterns(options.trace)  # before an emulated host is booted for it
    if options.sandbox == "require":
        from pyvmm.sandbox.confine import check

        check(options.sandbox)

    def run_local(config: MachineConfig, sockets: list[Path]) -> int:
        from pyvmm.launch.attended import RunOptions, run_session
        from pyvmm.launch.trace_sinks import TraceSettings

        return run_session(
            config,
            RunOptions(
                console=options.console or ("none" if options.command else "stdio"),
                command=_command(options),
                timeout=options.timeout,
                trace=TraceSettings(options.trace, options.trace_file, options.trace_format),
                tied=tied,
                sandbox=options.sandbox,
                gdb=options.gdb,
                vsock=options.vsock,
                shares=options.share,
            ),
            sockets,
        )

    ctx.exit(
        dispatch_run(
            command_words(ctx),
            lambda: _config(options, forwarded=control_socket is not None),
            run_local,
            host=options.host,
            name=options.name,
            qmp=options.qmp,
            gdb=options.gdb,
            vsock=options.vsock,
            control_socket=control_socket,
            input=options.on_terminal,
        )
    )


def _command(options: GuestOptions) -> str | None:
    """Return the shell command for the guest; it starts in the working folder, if that is shared."""
    text = command_line(options.command)
    if text is None or not options.share:
        return text
    from pyvmm.share.spec import inner_folder

    folder = inner_folder(options.share)
    return text if folder is None else f"cd {shlex.quote(folder)} || exit 126\n{text}"


def _config(options: GuestOptions, *, forwarded: bool) -> MachineConfig:
    """Return the machine's configuration. `forwarded`: a process outside the emulated host has just made it, too."""
    from pyvmm.host.inside import inside
    from pyvmm.launch.build import build_config

    window = _window() if options.on_terminal else None
    is_own = options.kernel is not None or options.kdir is not None
    # An own kernel may have changed since a process outside has prepared it, if that did not start this one (`pyvmm
    # host exec -- pyvmm run`). Images are taken as they are: each look at their files is several 9p requests.
    validate = not inside() or (is_own and not forwarded)
    return build_config(options, window=window, progress=print_message, validate=validate)


def _window() -> tuple[int, int] | None:
    from pyvmm.foreground import window_of

    return window_of(0) or window_of(1)
