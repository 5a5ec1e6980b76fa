"""`pyvmm explain`: tells what a number, a name or bytes of the machine mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from pyvmm.cli.output import echo, fields, print_json, table

if TYPE_CHECKING:
    from pyvmm.explain.entry import Entry

WIDTH = 100
"""Columns of running text, as in `--help`."""

KIND_NAMES = (
    "msr",
    "cpuid",
    "hypercall",
    "message",
    "synic",
    "version",
    "status",
    "exit",
    "trace",
    "device",
    "guid",
    "qmp-command",
    "qmp-event",
    "exit-status",
)
"""The kinds, for `--help` and completion without the catalogue; a test compares."""


def complete_word(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete names of what can be explained."""
    from pyvmm.explain.catalogue import every_entry

    kinds = tuple(ctx.params.get("kinds") or KIND_NAMES)
    found: dict[str, str] = {}
    for entry in every_entry(kinds):
        for name in filter(None, (entry.name, entry.symbol)):
            if incomplete and name.lower().startswith(incomplete.lower()):
                found.setdefault(name, entry.what)
    return [CompletionItem(name, help=what) for name, what in sorted(found.items())]


@click.command()
@click.argument("words", nargs=-1, metavar="[X]", shell_complete=complete_word)
@click.option(
    "--kind", "kinds", multiple=True, type=click.Choice(KIND_NAMES), help="Only meanings of this kind. Repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(words: tuple[str, ...], kinds: tuple[str, ...], as_json: bool) -> None:
    """Tell what X is: its fields, where specification and Linux define it, which code handles it.

    X is a number or a name: an MSR, CPUID leaf, hypercall, VMBus message, status, KVM exit, trace event, device,
    GUID, QMP command or event, exit status of pyvmm. Linux's names work too. A number of several meanings shows all.
    Without X: the kinds, with examples.

    \b
    pyvmm explain 0x40000083                 an MSR
    pyvmm explain 0x40000092=0x100f3         a value written to it, field by field
    pyvmm explain 15 --kind message          VERSION_RESPONSE
    pyvmm explain CHANNELMSG_OPENCHANNEL
    """
    from pyvmm.explain.lookup import as_hexadecimal, find, with_value

    if not words:
        _show_kinds(as_json)
        return
    word = " ".join(words)
    found = with_value(word, kinds) if "=" in word else find(word, kinds)
    if as_json:
        print_json([_as_dict(entry) for entry in found])
        return
    for number, entry in enumerate(found):
        if number:
            echo()
        _show(entry)
    if len(found) > 1:
        echo(f"\n{len(found)} meanings; --kind shows one of them", dim=True)
    if other := as_hexadecimal(word, kinds):
        echo(f"\nin hexadecimal, 0x{word}: {', '.join(f'{each.title} ({each.what})' for each in other)}", dim=True)


def _show_kinds(as_json: bool) -> None:
    from pyvmm.explain.catalogue import KINDS

    if as_json:
        print_json([{"kind": each.name, "about": each.about, "examples": each.examples} for each in KINDS.values()])
        return
    table(("KIND", "", "EXAMPLES"), [(each.name, each.about, "  ".join(each.examples)) for each in KINDS.values()])


def _show(entry: Entry) -> None:
    from pyvmm.explain.entry import HANDLERS_SHOWN

    echo(" ".join(filter(None, (entry.written, entry.title))), nl=False, bold=True)
    echo(f"  {entry.what}", fg="cyan")
    if entry.text:
        echo(click.wrap_text(entry.text, WIDTH, "  ", "  "))
    _show_fields(entry)
    handlers = entry.handlers()
    shown = [str(use.place) + (f": {use.doc}" if use.doc else "") for use in handlers[:HANDLERS_SHOWN]]
    if len(handlers) > HANDLERS_SHOWN:
        shown.append(f"and {len(handlers) - HANDLERS_SHOWN} more")
    lines = [
        *((title, str(text)) for title, text in entry.details.items()),
        *(("specification" if not number else "", text) for number, text in enumerate(entry.spec)),
        ("Linux", "; ".join(entry.linux)),
        ("declared", str(entry.place or "")),
        *(("handled" if not number else "", text) for number, text in enumerate(shown)),
        *(("see also" if not number else "", text) for number, text in enumerate(entry.related)),
    ]
    fields(lines)


def _show_fields(entry: Entry) -> None:
    if not entry.fields:
        return
    widths = [max(len(getattr(row, column)) for row in entry.fields) for column in ("place", "name")]
    for row in entry.fields:
        if widths[0]:
            echo(f"    {row.place.ljust(widths[0])}", nl=False, dim=True)
        echo(f"    {row.name.ljust(widths[1])}  {row.meaning}".rstrip())


def _as_dict(entry: Entry) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "name": entry.name,
        "what": entry.what,
        "number": entry.number,
        "symbol": entry.symbol,
        "text": entry.text,
        "fields": [{"place": row.place, "name": row.name, "meaning": row.meaning} for row in entry.fields],
        "specification": list(entry.spec),
        "linux": list(entry.linux),
        "declared": {"path": entry.place.path, "line": entry.place.line} if entry.place else None,
        "handled": [
            {"path": use.place.path, "line": use.place.line, "symbol": use.place.symbol, "about": use.doc}
            for use in entry.handlers()
        ],
        "details": entry.details,
        "related": list(entry.related),
    }
