"""`pyvmm trace`: follows a running machine's trace events, lists all events, compares and converts traces."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyvmm.cli.commands.completion import complete_event
from pyvmm.cli.output import echo, print_json, table
from pyvmm.cli.seconds import Seconds
from pyvmm.cli.target import complete_machine, connect, find, machine_options
from pyvmm.guest_text import one_line
from pyvmm.launch import exit_status

if TYPE_CHECKING:
    from pyvmm.analysis.diff import Difference, Step
    from pyvmm.analysis.entry import Entry
    from pyvmm.client.qmp import Client

CONTEXT = 2
"""Equal events shown before and after a difference."""


class _TraceGroup(click.Group):
    """A click group whose default subcommand is `follow`: `pyvmm trace web 'vmbus_*'`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] == "--list":
            args = ["list", *args[1:]]
        elif not args and ctx.resilient_parsing:
            pass  # shell completion of the first word
        elif not args or (args[0] not in self.commands and args[0] not in ("-h", "--help")):
            args = ["follow", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[click.shell_completion.CompletionItem]:
        from click.shell_completion import CompletionItem

        machines = [CompletionItem(name) for name in complete_machine(ctx, click.Argument(["vm"]), incomplete)]
        return super().shell_complete(ctx, incomplete) + machines


@click.group(cls=_TraceGroup, subcommand_metavar="[follow] [VM] [PATTERN...] | COMMAND ...")
def trace() -> None:
    """Watch what a machine does; look at recorded traces.

    Without a COMMAND: follow a running machine's events.

    \b
    pyvmm trace                                  what the only machine's VMBus and devices do
    pyvmm trace web --follow 'hv_balloon_*'      one machine, some events
    pyvmm trace --list                           the names and fields of all events
    pyvmm trace diff pyvmm.jsonl qemu.log        what two runs did differently
    pyvmm trace convert run.jsonl run.json       for https://ui.perfetto.dev

    Traces are recorded by `pyvmm run --trace-file FILE`; `pyvmm report FILE` draws one.
    """


@trace.command()
@click.argument("given", required=False, metavar="[VM]", shell_complete=complete_machine)
@click.argument("words", nargs=-1, metavar="[PATTERN]...", shell_complete=complete_event)
@machine_options
@click.option("--follow", "-f", "patterns", multiple=True, metavar="PATTERN", shell_complete=complete_event)
@click.option("--count", "-n", type=click.IntRange(min=1), help="End after that many events.")
@click.option("--timeout", type=Seconds(min=0), help="End after that many seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines, as --trace-file writes them.")
def follow(
    given: str | None,
    words: tuple[str, ...],
    name: str | None,
    socket: Path | None,
    patterns: tuple[str, ...],
    count: int | None,
    timeout: float | None,
    as_json: bool,
) -> int:
    """Show a running machine's trace events as they happen, until Ctrl-C or its end.

    PATTERN is a shell wildcard for event names, `!` before it leaves events out; several may be given. By default
    all but vCPU exits, interrupts and what the monitor says. The guest never waits for you: events that you do not
    read in time are dropped, and their number is printed.

    \b
    pyvmm trace follow web 'vmbus_*' 'hv_balloon_*'
    pyvmm trace --follow 'ic.*' --count 10
    pyvmm trace --follow '*' --json > all.jsonl
    """
    wanted = [*patterns, *words]
    if given is not None and _is_pattern(given):
        wanted.insert(0, given)
        given = None
    with connect(find(given, name, socket)) as client:
        reply = client.execute("x-trace-subscribe", {"pattern": ",".join(wanted)} if wanted else {})
        words_of = reply["events"]
        for number, entry in enumerate(_events(client, timeout), 1):
            if as_json:
                fields = {"time": entry.time, "event": entry.name, "thread": entry.thread} | entry.fields
                echo(_line(fields))
            else:
                message = entry.message(words_of.get(entry.name))
                echo(one_line(f"{entry.time - reply['now']:11.6f} {entry.name} {message}".rstrip()))
            if number == count:
                return 0
    return 0 if count is None else exit_status.TIMEOUT


def _is_pattern(word: str) -> bool:
    """Return whether the first word is a pattern, not a machine: it has a wildcard or the form of an event's name."""
    return any(mark in word for mark in "*?[,!") or "_" in word


def _events(client: Client, timeout: float | None) -> Iterator[Entry]:
    """Yield the events of X_TRACE, and print how many were dropped. Ends with the machine, or after `timeout`."""
    from pyvmm.analysis.read import from_object
    from pyvmm.client.qmp import Disconnected, TimedOut

    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = 3600.0 if deadline is None else deadline - time.monotonic()
        try:
            _, data = client.wait_event({"X_TRACE"}, max(0.0, left))
        except Disconnected:
            return
        except TimedOut:
            if deadline is not None:
                return
            continue
        if data["dropped"]:
            echo(f"pyvmm: {data['dropped']} events dropped: they came faster than they were read", err=True)
        yield from filter(None, map(from_object, data["events"]))


def _line(fields: dict[str, Any]) -> str:
    import json

    return json.dumps(fields)


@trace.command("list")
@click.argument("pattern", default="*")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_events(pattern: str, as_json: bool) -> None:
    """List the trace events there are, with the words they are shown in.

    Names with an underscore are QEMU's, with its arguments; those with a dot are pyvmm's.

    \b
    pyvmm trace list 'vmbus*'
    """
    from pyvmm.launch.trace_events import load_events
    from pyvmm.trace import check_pattern, matching

    load_events()
    check_pattern(pattern)
    found = matching(pattern)
    if as_json:
        print_json([{"name": e.name, "fields": list(e.fields), "template": e.template} for e in found])
    else:
        table(("EVENT", "MESSAGE"), [(event.name, event.template) for event in found])


@trace.command()
@click.argument("first", metavar="A", type=click.Path(path_type=Path))
@click.argument("second", metavar="B", type=click.Path(path_type=Path))
@click.option("--only", multiple=True, metavar="PATTERN", help="Only these events; 'vmbus_*'. Repeatable.")
@click.option("--ignore", multiple=True, metavar="FIELD", help="A field to ignore. Repeatable.")
@click.option("--all", "everything", is_flag=True, help="Events in place that the other trace never has, too.")
@click.option("--context", "-U", type=click.IntRange(min=0), default=CONTEXT, show_default=True, metavar="N")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diff(
    first: Path,
    second: Path,
    only: tuple[str, ...],
    ignore: tuple[str, ...],
    everything: bool,
    context: int,
    as_json: bool,
) -> int:
    """Line up two traces and show where they differ: status 0 if nowhere, 1 if somewhere.

    Takes what --trace-file writes, in any format, and QEMU's log (`-d trace:vmbus_*,trace:hv_balloon_* -D FILE`).
    Times, transaction ids, handles and addresses do not count; neither do vCPU exits and the like, unless --only
    names them.

    \b
    pyvmm trace diff one.jsonl two.jsonl
    pyvmm trace diff pyvmm.jsonl qemu.log --only 'vmbus_*' --ignore chan_id

    \b
    ~ in both, with other values (A's | B's)     - only in A     + only in B
    """
    from pyvmm.analysis.diff import compare, summary
    from pyvmm.analysis.read import read_trace
    from pyvmm.launch.trace_events import load_events

    load_events()
    a, b = read_trace(first), read_trace(second)
    found = compare(a.entries, b.entries, patterns=only, ignore=ignore, everything=everything)
    if as_json:
        print_json(_diff_json(found))
    else:
        _show_diff(found, context)
        counts = summary(found.steps)
        echo(", ".join(f"{number} {word}" for word, number in counts.items()), err=True)
        for path, names in ((first, found.unknown_to_b), (second, found.unknown_to_a)):
            if names:
                listed = ", ".join(f"{name} ({count})" for name, count in names.most_common())
                echo(f"only {path} has: {listed}", err=True)
    return 0 if found.same else exit_status.ERROR


def _show_diff(found: Difference, context: int) -> None:
    from pyvmm.analysis.diff import Same

    steps = found.steps
    interesting = [number for number, step in enumerate(steps) if not isinstance(step, Same)]
    shown: set[int] = set()
    for number in interesting:
        shown.update(range(max(0, number - context), min(len(steps), number + context + 1)))
    last = -1
    for number in sorted(shown):
        if number != last + 1:
            echo(f"@@ {number - last - 1} equal events", fg="cyan")
        last = number
        text, style = _step_text(steps[number])
        echo(text, **style)


def _step_text(step: Step) -> tuple[str, dict[str, Any]]:
    """Return a difference as one line, and the line's colour."""
    from pyvmm.analysis.diff import Changed, OnlyA, OnlyB, Same

    match step:
        case Same(a, _):
            return f"  {a.name} {a.message()}".rstrip(), {}
        case Changed(a, _, fields):
            changes = ", ".join(f"{name}: {x} | {y}" for name, (x, y) in fields.items())
            return f"~ {a.name} {a.message()}".rstrip() + f"   [{changes}]", {"fg": "yellow"}
        case OnlyA(a):
            return f"- {a.name} {a.message()}".rstrip(), {"fg": "red"}
        case OnlyB(b):
            return f"+ {b.name} {b.message()}".rstrip(), {"fg": "green"}


def _diff_json(found: Difference) -> dict[str, Any]:
    from pyvmm.analysis.diff import Changed, OnlyA, OnlyB, summary

    rows: list[dict[str, Any]] = []
    for step in found.steps:
        match step:
            case Changed(a, b, fields):
                changes = {name: list(pair) for name, pair in fields.items()}
                rows.append({"kind": "changed", "event": a.name, "a": a.fields, "b": b.fields, "changes": changes})
            case OnlyA(a):
                rows.append({"kind": "only-a", "event": a.name, "a": a.fields})
            case OnlyB(b):
                rows.append({"kind": "only-b", "event": b.name, "b": b.fields})
    return {
        "same": found.same,
        "counts": summary(found.steps),
        "differences": rows,
        "unknown-to-b": dict(found.unknown_to_b),
        "unknown-to-a": dict(found.unknown_to_a),
    }


@trace.command()
@click.argument("source", metavar="TRACE", type=click.Path(path_type=Path))
@click.argument("target", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--format", "-F", type=click.Choice(["text", "json", "chrome"]), help="Default: by FILE's ending, as for run."
)
def convert(source: Path, target: Path, format: str | None) -> None:
    """Write a trace (JSON lines, text, Chrome's format, QEMU's log) in another format.

    \b
    pyvmm trace convert run.jsonl run.json      Chrome's format, for https://ui.perfetto.dev
    pyvmm trace convert qemu.log qemu.jsonl
    """
    from pyvmm.analysis.read import read_trace, rewrite
    from pyvmm.errors import ConfigError
    from pyvmm.launch.trace_events import load_events
    from pyvmm.trace.formats import format_of

    load_events()
    found = read_trace(source)
    if target.exists() and target.samefile(source):
        raise ConfigError(f"{target} is the trace itself: write to another file")
    with open(target, "w", encoding="utf-8") as file:
        file.writelines(rewrite(found, format or format_of(target)))
    echo(f"{len(found.entries)} events, {found.skipped} lines that are not events")
