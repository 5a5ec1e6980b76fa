"""`pyvmm`: dispatches to the subcommand, and turns errors into one line and an exit status.

Imports little but click at module level: `pyvmm --help` and shell completion should feel instant. Each subcommand is
imported when it is used.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper

import click

from pyvmm import __version__, process
from pyvmm.cli import streams
from pyvmm.errors import PyvmmError
from pyvmm.guest_text import one_line
from pyvmm.launch import exit_status

_SECTIONS: dict[str, dict[str, str]] = {
    "Guests": {
        "run": "Boot a guest; run a command in one.",
        "kut": "Run kvm-unit-tests, KVM's own test suite.",
        "tour": "Boot the default guest and show what ballooning does.",
    },
    "Running machines": {
        "balloon": "Show or set how much memory a guest has.",
        "balance": "Share a budget of memory between machines.",
        "exec": "Run a command in a running guest.",
        "shell": "Open a shell in a running guest.",
        "cp": "Copy files between this computer and a running guest.",
        "status": "Show a running machine's memory, devices and counters.",
        "ps": "List the running machines.",
        "disk": "List, add, remove and resize a machine's disks.",
        "stop": "Power a machine off, or end it.",
        "reload": "Exchange a kernel module in a running guest.",
        "kvp": "Show what a guest tells of itself; set values in it.",
        "fcopy": "Copy a file into a guest by Hyper-V's file copy.",
        "snapshot-disk": "Copy a disk with the guest's file systems frozen.",
        "kill": "End a machine at once, even one that does not answer.",
        "wait": "Wait for a machine's end, an event, a driver.",
    },
    "Looking closer": {
        "step": "Step a guest from message to message; show what each means.",
        "top": "Watch the running machines live; resize them by a key.",
        "log": "Show the end of a guest's console.",
        "devices": "List a machine's VMBus devices and their channels.",
        "map": "Show who owns which page of a guest: RAM, balloon, rings.",
        "trace": "Follow a machine's trace events; list, compare, convert traces.",
        "gdb": "Debug a guest's kernel with GDB.",
        "cover": "Show which code of a guest's modules runs, block by block.",
        "report": "Draw a recorded trace: one HTML page, CSV.",
        "explain": "Tell what a number, name or packet is, and which code handles it.",
    },
    "This computer": {
        "doctor": "Check this computer: what works, and how to fix what does not.",
        "selftest": "Test both engines on this host; write a report.",
        "image": "List, build and show guest images.",
        "host": "The emulated host, for computers without KVM: prepare, exec, status.",
        "completion": "Print a script that adds command completion to your shell.",
    },
}

COMMANDS = [name for section in _SECTIONS.values() for name in section]
"""The commands' names: NAME is the function NAME of the module `pyvmm.cli.commands.NAME`, with `_` for `-`."""

EPILOG = """\b
Examples:
  pyvmm run                            a shell in the default guest; Ctrl-A x ends it
  pyvmm run -m 1G --cpus 2 -- nproc    one command in a guest
  pyvmm run --kernel bzImage --initrd root.cpio --trace 'vmbus_*'
  pyvmm balloon 256M                   the running guest shrinks to 256 MiB
  pyvmm status                         its memory, VMBus channels, counters
  pyvmm doctor                         why something does not work here

\b
Exit status: 0 done, 1 this computer or the request is at fault, 2 usage, 124 time limit,
130 Ctrl-C, 141 the output's reader has exited, 255 the guest died. PYVMM_DEBUG=1 shows where an error comes from.
"""


LINE_LIMIT = 1000
"""Characters of an error line: it may repeat user input of any length."""


class LazyGroup(click.Group):
    """A click group that imports a command when it is used; its own help imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return COMMANDS

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = cmd_name.replace("-", "_")
        found: click.Command = getattr(import_module(f"pyvmm.cli.commands.{module}"), module)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches

            close = get_close_matches(args[0], COMMANDS, 1)
            hint = f", did you mean {close[0]!r}?" if close else ""
            raise click.UsageError(f"no command is named {args[0][:40]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, section in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(10), text) for name, text in section.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[click.shell_completion.CompletionItem]:
        from click.shell_completion import CompletionItem

        commands = [
            CompletionItem(name, help=text)
            for section in _SECTIONS.values()
            for name, text in section.items()
            if name.startswith(incomplete)
        ]
        return commands or click.Command.shell_complete(self, ctx, incomplete)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EPILOG,
    subcommand_metavar="COMMAND ...",
)
@click.version_option(__version__, prog_name="pyvmm", message="%(prog)s %(version)s")
def cli() -> None:
    """Virtual machines on KVM, in Python: Linux guests find themselves on Hyper-V, with VMBus and hv-balloon.

    `pyvmm COMMAND --help` tells more about each.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status. A command returns its status, or None for 0.

    Errors that a user can cause become one line on stderr. Anything else is our bug: one line that says so, and the
    traceback with PYVMM_DEBUG=1. Without `argv` it runs the process's own command line, after it has prepared the
    process's standard streams.
    """
    if argv is None:
        process.set_own()
        streams.prepare()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold characters that its encoding lacks
    status = _run(arguments)
    try:
        sys.stdout.flush()
    except OSError as error:
        status = _complain(error) if status == 0 else status
        streams.drop_output()
    return status


def _run(arguments: list[str]) -> int:
    try:
        if "_PYVMM_COMPLETE" in os.environ:
            cli.main(arguments, prog_name="pyvmm")  # prints candidates and exits
        for word in arguments:
            if "\0" in word:  # not from a shell, but from a program that calls main()
                raise click.UsageError(f"a zero byte is in the argument {word[:40]!r}")
        with cli.make_context("pyvmm", arguments) as context:
            result = cli.invoke(context)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as exit:
        return exit.exit_code
    except (KeyboardInterrupt, click.Abort):
        with contextlib.suppress(OSError):
            print(file=sys.stderr)  # ends the line on which the terminal shows ^C
        return exit_status.INTERRUPTED
    except (click.ClickException, PyvmmError, OSError, RecursionError, MemoryError) as error:
        if os.environ.get("PYVMM_DEBUG") and not isinstance(error, BrokenPipeError | streams.OutputError):
            raise
        return _complain(error)
    except Exception as error:
        if os.environ.get("PYVMM_DEBUG"):
            raise
        return _complain(PyvmmError(_internal(error)))


def _internal(error: Exception) -> str:
    """Return the message for an internal error: its source line, and how to report it."""
    from pathlib import Path
    from traceback import extract_tb

    place = ""
    for frame in extract_tb(error.__traceback__):
        if {"pyvmm", "devices", "firmware", "images"} & set(Path(frame.filename).parts[-4:-1]):
            place = f" at {Path(frame.filename).name}:{frame.lineno}"
    return (
        f"internal error, {type(error).__name__}{place}: {error}; this is a bug in pyvmm: "
        "please report it with the traceback, which PYVMM_DEBUG=1 shows"
    )


def _complain(error: Exception) -> int:
    """Print one line about `error` on stderr, and return the exit status."""
    status = exit_status.ERROR
    match error:
        case BrokenPipeError():  # `pyvmm ps | head -1`; on pyvmm's own sockets it has become HostError before
            return exit_status.PIPE
        case streams.OutputError():
            status = exit_status.status_of(error)
            if status == exit_status.PIPE:
                return status
            text = f"{error.filename}: {error.strerror}"
        case click.exceptions.NoArgsIsHelpError():
            try:
                click.echo(error.format_message())
            except OSError as failed:
                return _complain(failed)
            return exit_status.USAGE
        case click.UsageError():
            where = error.ctx.command_path if error.ctx is not None else "pyvmm"
            text = f"{error.format_message().rstrip('.')} (`{where} --help` tells how)"
            status = exit_status.USAGE
        case click.ClickException():
            text = error.format_message()
        case OSError():
            what = f"{error.filename}: " if error.filename is not None else ""
            text = f"{what}{error.strerror or error}"
        case MemoryError():
            text = "this computer has not enough memory for that"
        case _:
            text = str(error)
    line = one_line(" ".join(text.split())) or type(error).__name__
    if len(line) > LINE_LIMIT:
        line = f"{line[: LINE_LIMIT // 2]} … {line[-LINE_LIMIT // 2 :]}"
    try:
        click.echo(f"{click.style('pyvmm:', fg='red', bold=True)} {line}", err=True)
    except OSError:
        pass  # stderr is closed; the exit status still reports the error
    return status


if __name__ == "__main__":
    sys.exit(main())
