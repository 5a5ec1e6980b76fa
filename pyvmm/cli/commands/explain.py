"""`pyvmm explain`: tells what a number, a name or bytes of the machine mean."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from pyvmm.cli.output import decoded, echo, fields, print_json, table
from pyvmm.errors import ConfigError
from pyvmm.explain.kinds import KINDS

if TYPE_CHECKING:
    from pyvmm.explain.entry import Entry
    from pyvmm.explain.packets import Reading

WIDTH = 100
"""Columns of running text, as in `--help`."""

BRIEF = 4
"""Meanings from which on each is one line."""


def complete_word(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete names of what can be explained."""
    from pyvmm.explain.catalogue import every_entry

    kinds = tuple(ctx.params.get("kinds") or KINDS)
    found: dict[str, str] = {}
    for entry in every_entry(kinds):
        for name in filter(None, (entry.name, entry.symbol)):
            if incomplete and name.lower().startswith(incomplete.lower()):
                found.setdefault(name, entry.what)
    return [CompletionItem(name, help=what) for name, what in sorted(found.items())]


def complete_form(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the forms of bytes."""
    from pyvmm.explain.packets import forms

    return [CompletionItem(name, help=what) for name, what in forms().items() if name.startswith(incomplete)]


@click.command()
@click.argument("words", nargs=-1, metavar="[X]", shell_complete=complete_word)
@click.option("--kind", "kinds", multiple=True, type=click.Choice(list(KINDS)), help="Only this kind. Repeatable.")
@click.option(
    "--as", "form", metavar="FORM", shell_complete=complete_form, help="X is bytes of this form; `help` lists them."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(words: tuple[str, ...], kinds: tuple[str, ...], form: str | None, as_json: bool) -> None:
    """Tell what X is: its fields, where specification and Linux define it, which code handles it.

    X is a number or a name: an MSR, CPUID leaf, hypercall, message, status, KVM exit, trace event, device, GUID, QMP
    command or event, exit status of pyvmm, structure, named fault and more. Linux's names work too. A number of
    several meanings shows all. Without X: the kinds, with examples.

    Or X is bytes that host and guest exchange, in hexadecimal digits: a VMBus message, a packet of a ring, its
    payload. `-` reads them from standard input, PATH with a slash from a file; dumps of xxd and hexdump -C work.

    \b
    pyvmm explain 0x40000083                 an MSR
    pyvmm explain SINT2=0x100f3              a value of it, field by field
    pyvmm explain 15 --kind message          VERSION_RESPONSE
    pyvmm explain CHANNELMSG_OPENCHANNEL
    pyvmm explain 0d000000000000000100000000000000
    xxd packet.bin | pyvmm explain - --as packet
    """
    if form == "help":
        _show_forms()
        return
    if not words:
        if form is not None:
            raise click.UsageError("--as says what bytes are: give them, or - for standard input")
        _show_kinds(as_json)
        return
    data = _bytes(words, form)
    if data is not None:
        _explain_bytes(data, form, as_json)
        return
    _explain_word(" ".join(words), kinds, as_json)


def _bytes(words: tuple[str, ...], form: str | None) -> bytes | None:
    """Return the bytes that X is; None if it is a number or a name."""
    from pyvmm.explain import hexdump

    if words == ("-",):
        return hexdump.parse(sys.stdin.read(hexdump.TEXT_LIMIT + 1))
    if len(words) == 1 and "/" in words[0]:
        return hexdump.read(Path(words[0]))
    text = " ".join(words)
    if form is None and (not hexdump.looks_like_bytes(text) or _is_number(text)):
        return None
    return hexdump.parse(text)


def _is_number(text: str) -> bool:
    """Return whether digits without 0x, such as c000000d, are a number that means something, and no bytes that do."""
    from pyvmm.explain import hexdump
    from pyvmm.explain.lookup import find
    from pyvmm.explain.packets import readings

    if not text.isalnum() or len(text) > 16:
        return False
    try:
        readings(hexdump.parse(text))
    except ConfigError:
        with contextlib.suppress(ConfigError):
            return bool(find(text))
    return False


def _explain_word(word: str, kinds: tuple[str, ...], as_json: bool) -> None:
    from pyvmm.explain.lookup import as_hexadecimal, find, with_value

    found = with_value(word, kinds) if "=" in word else find(word, kinds)
    if as_json:
        print_json([_as_dict(entry) for entry in found])
        return
    if len(found) >= BRIEF:
        table(("KIND", "NAME", "", ""), [(each.kind, each.title, each.what, each.text) for each in found])
    else:
        for number, entry in enumerate(found):
            if number:
                echo()
            _show(entry)
    if len(found) > 1:
        echo(f"\n{len(found)} meanings; --kind shows one of them", dim=True)
    if other := as_hexadecimal(word, kinds):
        echo(f"\nin hexadecimal, 0x{word}: {', '.join(f'{each.title} ({each.what})' for each in other)}", dim=True)


def _explain_bytes(data: bytes, form: str | None, as_json: bool) -> None:
    from pyvmm.explain.packets import read_as, readings

    found = [read_as(data, form)] if form is not None else readings(data)
    if as_json:
        print_json([_reading_dict(each) for each in found])
        return
    for number, reading in enumerate(found):
        if number:
            echo()
        echo(reading.decoded.name or reading.form, nl=False, bold=True)
        echo(f"  {reading.words}, {len(data)} bytes", fg="cyan")
        decoded(reading.decoded)
        if entry := _entry_of(reading):
            fields(_lines(entry))
    if len(found) > 1:
        echo(f"\n{len(found)} ways to read them; --as takes one of them", dim=True)


def _entry_of(reading: Reading) -> Entry | None:
    """Return the catalogue's entry of what bytes are."""
    from pyvmm.explain.catalogue import entries

    name = reading.decoded.name.partition(" ")[0]
    return next((each for each in entries(reading.kind) if each.name == name), None) if reading.kind else None


def _show_forms() -> None:
    from pyvmm.explain.packets import forms

    table(("FORM", ""), list(forms().items()))


def _show_kinds(as_json: bool) -> None:
    if as_json:
        print_json([{"kind": each.name, "about": each.about, "examples": each.examples} for each in KINDS.values()])
        return
    table(("KIND", "", "EXAMPLES"), [(each.name, each.about, "  ".join(each.examples)) for each in KINDS.values()])


def _show(entry: Entry) -> None:
    echo(" ".join(filter(None, (entry.written, entry.title))), nl=False, bold=True)
    echo(f"  {entry.what}", fg="cyan")
    if entry.text:
        echo(click.wrap_text(entry.text, WIDTH, "  ", "  "))
    _show_fields(entry)
    fields(_lines(entry))


def _lines(entry: Entry) -> list[tuple[str, str]]:
    """Return the names and texts of what is known of an entry besides its fields."""
    from pyvmm.explain.entry import HANDLERS_SHOWN

    handlers = entry.handlers()
    shown = [str(use.place) + (f": {use.doc}" if use.doc else "") for use in handlers[:HANDLERS_SHOWN]]
    if len(handlers) > HANDLERS_SHOWN:
        shown.append(f"and {len(handlers) - HANDLERS_SHOWN} more")
    return [
        *((title, str(text)) for title, text in entry.details.items()),
        *(("specification" if not number else "", text) for number, text in enumerate(entry.spec)),
        ("Linux", "; ".join(entry.linux)),
        ("declared", str(entry.place or "")),
        *(("handled" if not number else "", text) for number, text in enumerate(shown)),
        *(("see also" if not number else "", text) for number, text in enumerate(entry.related)),
    ]


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


def _reading_dict(reading: Reading) -> dict[str, Any]:
    entry = _entry_of(reading)
    return {
        "form": reading.form,
        "what": reading.words,
        "name": reading.decoded.name,
        "parts": [
            {
                "title": part.title,
                "fields": [
                    {
                        "offset": row.offset,
                        "bytes": row.data.hex(),
                        "name": row.name,
                        "form": row.form,
                        "value": row.value if isinstance(row.value, int) else row.text,
                        "meaning": row.meaning,
                    }
                    for row in part.rows
                ],
            }
            for part in reading.decoded.parts
        ],
        "entry": _as_dict(entry) if entry else None,
    }
