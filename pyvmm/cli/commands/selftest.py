"""`pyvmm selftest`: tries on this host what depends on the host, prints a table, writes a report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyvmm.cli import output
from pyvmm.cli.guest_options import complete_image
from pyvmm.cli.words import RepeatableCommand, command_words
from pyvmm.launch import exit_status, where

if TYPE_CHECKING:
    from pyvmm.selftest.rows import Row

MEMORY_MIB = 768
"""The largest guest, for the choice of an emulated host."""

_MARKS: dict[str, output.Mark] = {"ok": "ok", "failed": "missing", "skipped": "note"}


@click.command(cls=RepeatableCommand)
@click.option("--quick", is_flag=True, help="Two guests instead of four: each step once, each engine once.")
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where the report goes; JSON if it ends in .json.  [default: pyvmm-selftest.txt]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, and no table.")
@click.option("--image", shell_complete=complete_image, help="Which guest; `pyvmm image list` shows them.")
@click.option("--host", type=click.Choice(["auto", "local", "emulated"]), default="auto", show_default=True)
@click.option("--outside", default="", hidden=True, help="Why the emulated host is used.")
@click.pass_context
def selftest(
    ctx: click.Context,
    quick: bool,
    report: Path | None,
    as_json: bool,
    image: str | None,
    host: str,
    outside: str,
) -> None:
    """Try on this host what depends on the host; takes about a minute.

    Linux guests on both Hyper-V engines, with one and two vCPUs: boot, faults, vector registers, balloon out and
    back, hot-add, reboot, kexec, panic; and tiny guests for speed, exits, MSRs, TSC. pyvmm was made without hardware
    virtualization: if a step fails on a host that has it, please attach the report to a bug. It holds the processor's
    and KVM's properties, times, and traces of what failed; no names of you or of this computer, no paths.

    \b
    ok  as it should be     --  failed     ??  cannot be tried here
    Status 0 if no step failed, 1 if one did.

    \b
    pyvmm selftest
    pyvmm selftest --quick --json | jq '.rows[] | select(.status == "failed")'
    """
    from pyvmm.host.inside import inside
    from pyvmm.launch.build import guest_image
    from pyvmm.selftest import report as reports
    from pyvmm.selftest.initrd import selftest_initrd

    path = report or (None if as_json else reports.DEFAULT)
    if path is not None:
        reports.check_place(path)  # before a minute of work for it
    emulated = not inside() and where.wants_emulated(host)
    found = guest_image(image, where.print_message, validate=not inside())
    initrd = selftest_initrd(found)
    if emulated:
        from pyvmm.launch.probe import probe

        why = "--host emulated" if host == "emulated" else probe().reason
        words = command_words(ctx)
        words = [words[0], "--outside", why, *words[1:]]
        ctx.exit(where.run_emulated(words, MEMORY_MIB << 20, [], input=False, live=True))
    ctx.exit(_run(found.vmlinux, initrd, quick, path, as_json, outside))


def _run(kernel: Path, initrd: Path, quick: bool, path: Path | None, as_json: bool, outside: str) -> int:
    from pyvmm.host.inside import inside
    from pyvmm.selftest import report as reports
    from pyvmm.selftest.run import FULL, QUICK, SelfTest

    if inside() and not as_json:
        output.echo("This is the emulated host: QEMU plays the processor. It says nothing about real hardware.")
    test = SelfTest(kernel, initrd, QUICK if quick else FULL, Table(quiet=as_json).show)
    complete = False
    try:
        test.run()
        complete = True
    finally:  # Ctrl-C too: what was found so far is worth reading
        made = reports.build(test.rows, emulated=inside(), outside=outside, complete=complete)
        if path is not None:
            reports.write(made, path)
        if as_json:
            output.print_json(made)
        else:
            output.echo(("" if complete else "\n") + reports.verdict(made), bold=True)
            output.echo(f"Report: {path}")
    return exit_status.ERROR if made["counts"]["failed"] else 0


class Table:
    """Prints rows as they end; on a terminal also the name of the running step."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live = sys.stdout.isatty()
        self._group = ""

    def show(self, row: Row, done: bool) -> None:
        if self._quiet:
            return
        if row.group != self._group:
            self._group = row.group
            output.echo(row.group, bold=True)
        if done:
            if self._live:
                output.overwrite()
            seconds = f"{row.seconds:6.2f} s" if row.status != "skipped" else " " * 8
            output.finding(_MARKS[row.status], row.name, f"{seconds}  {row.detail}")
        elif self._live:
            output.running(row.name)
