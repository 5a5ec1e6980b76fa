"""The pages' texts, from the catalogue of `pyvmm.explain`, the tables of transitions, and click."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pyvmm.devices.balloon import states as balloon
from pyvmm.devices.vss import device as vss
from pyvmm.explain.catalogue import entries
from pyvmm.explain.entry import Entry
from pyvmm.explain.kinds import KINDS
from pyvmm.transitions import Transitions
from pyvmm.vmbus import states
from tests.support.reference import diagram
from tests.support.reference.command_line import command_line

BOOK = Path(__file__).parents[3] / "docs" / "book"

MACHINES: dict[str, tuple[str, Transitions, str]] = {
    "connection": ("The connection to the VMBus", states.CONNECTION, "pyvmm/vmbus/states.py"),
    "channel": ("A channel", states.CHANNEL, "pyvmm/vmbus/states.py"),
    "balloon": ("The balloon", balloon.TRANSITIONS, "devices/balloon/states.py"),
    "vss": ("Freezing file systems (VSS)", vss.TRANSITIONS, "devices/vss/device.py"),
}
"""Title, table and file of each state machine, by the name of its picture."""

NOTE = "<!-- Made by `make reference` from the declarations in the code: change those. -->"


def made() -> dict[str, str]:
    """Return the text of each generated file, by its path in docs/book."""
    files = {f"reference/{name}.md": _page(title, make()) for name, (title, make) in PAGES.items()}
    for name, (_, table, _) in MACHINES.items():
        files[f"pictures/states-{name}.svg"] = diagram.svg(table)
    return files


def _page(title: str, body: Iterable[str]) -> str:
    return "\n".join([NOTE, "", f"# {title}", "", *body]).rstrip() + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return [*lines, ""]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("{", "&#123;") or " "


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _index() -> Iterable[str]:
    yield "These pages are made from the declarations in the code: none can differ from what the machine does. Each"
    yield "thing here can be asked for in a terminal, too, where it comes with the code that handles it:"
    yield ""
    yield "    pyvmm explain OPEN_RESULT"
    yield ""
    for name, (title, _) in PAGES.items():
        if name != "index":
            yield f"* [{title}]({name}.md)"


def _numbers() -> Iterable[str]:
    yield "Numbers of Hyper-V and KVM. The name is Linux's where Linux has one."
    yield ""
    for kind in ("msr", "cpuid", "hypercall", "synic", "version", "status", "exit", "packet"):
        yield from _kind(kind)


def _kind(kind: str) -> Iterable[str]:
    """Yield a section for a kind, with a table for each enumeration in it."""
    about = KINDS[kind].about.split(";")[0]
    yield f"## {about[:1].upper()}{about[1:]}"
    yield ""
    groups: dict[str, list[Entry]] = {}
    for each in entries(kind):
        groups.setdefault(each.what, []).append(each)
    for what, found in groups.items():
        if len(groups) > 1:
            yield f"### {what[:1].upper()}{what[1:]}"
            yield ""
        sources = dict.fromkeys(text.partition(" in ")[2] or text for each in found for text in each.linux[:1])
        yield from (f"Linux: {text}." for text in list(sources)[:1])
        yield ""
        rows = [(each.written, _code(each.title), _text(each)) for each in found]
        yield from _table(("number", "name", ""), rows)
        for each in found if kind == "cpuid" else ():
            if each.fields:
                yield f"The bits of {each.title}:"
                yield ""
                yield from _fields(each)


def _text(entry: Entry) -> str:
    """Return an entry's text with the sections of the specification that it names itself."""
    own = [each for each in entry.spec if each.startswith("TLFS") and each.count('"') == 2]
    return f"{entry.text} *{own[0]}*" if own else entry.text


def _messages() -> Iterable[str]:
    yield "Offsets count from the message's beginning: its type, 4 bytes, and 4 of padding."
    yield ""
    rows = [
        (each.written, f"[{each.name}](#{each.name.lower()})", _code(each.title), each.text)
        for each in entries("message")
    ]
    yield from _table(("type", "name", "in Linux", "G: from the guest, H: from the host"), rows)
    for each in entries("message"):
        yield f"## {each.name}"
        yield ""
        yield f"{each.text} {each.details.get('note', '')}".strip()
        yield ""
        yield f"{each.details.get('structure', '')}. Linux: {'; '.join(each.linux)}."
        yield ""
        yield from _fields(each)


def _fields(entry: Entry) -> Iterable[str]:
    if entry.fields:
        yield from _table(("place", "field", ""), [(row.place, _code(row.name), row.meaning) for row in entry.fields])


def _devices() -> Iterable[str]:
    rows = [
        (_code(each.name), each.symbol, each.text, _code(str(each.details["class GUID"])))
        for each in entries("device")
    ]
    yield from _table(("device", "in lsvmbus", "", "class"), rows)
    for kind in ("balloon", "service", "network", "scsi", "echo"):
        yield from _kind(kind)


def _structures() -> Iterable[str]:
    yield "Offset and size in bytes, all little-endian; a register's fields are bits. The messages of the VMBus are"
    yield "[structures, too](vmbus-messages.md)."
    yield ""
    named = {
        (each.place.path if each.place else "", each.name): each
        for each in (*entries("struct"), *entries("register"))
    }
    module = ""
    for (path, name), each in sorted(named.items()):
        if path != module:
            module = path
            yield f"## {path}"
            yield ""
        yield f"### {name}"
        yield ""
        yield f"{_code(each.symbol) + ': ' if each.symbol else ''}{each.text} ({each.what})"
        yield ""
        yield from _fields(each)


def _state_machines() -> Iterable[str]:
    yield "Each is drawn from the table of transitions against which the machine checks every change while tests run."
    yield ""
    about = {each.name: each.text for each in entries("state")}
    for name, (title, table, path) in MACHINES.items():
        yield f"## {title}"
        yield ""
        yield f"`{path}`"
        yield ""
        yield f"![States: {', '.join(map(diagram.name_of, table))}](../pictures/states-{name}.svg)"
        yield ""
        for state, why in diagram.common(table).items():
            yield f"From almost any state to *{diagram.name_of(state)}*: {why}."
            yield ""
        rows = [
            (str(number), diagram.name_of(old), diagram.name_of(new), why)
            for number, (old, new, why) in enumerate(diagram.drawn(table), 1)
        ]
        yield from _table(("", "from", "to", "when"), rows)
        if all(diagram.name_of(state) in about for state in table):
            yield from _table(
                ("state", ""), [(diagram.name_of(state), about[diagram.name_of(state)]) for state in table]
            )


def _trace_events() -> Iterable[str]:
    yield "`pyvmm run --trace 'vmbus_*'` shows them, `pyvmm trace` those of a running machine. Names without a dot"
    yield "are QEMU's, with its arguments."
    yield ""
    groups: dict[str, list[Entry]] = {}
    for each in entries("trace"):
        groups.setdefault(each.place.path if each.place else "", []).append(each)
    for path, found in groups.items():
        yield f"## {path}"
        yield ""
        rows = [(_code(each.name), each.text.removeprefix("Shown as: ")) for each in found]
        yield from _table(("event", "message"), rows)


def _qmp() -> Iterable[str]:
    yield "Commands and events with `x-` and `X_` are pyvmm's own; the others are QEMU's. The schema is the answer to"
    yield "`query-qmp-schema`; `docs/control.md` tells how to connect."
    yield ""
    yield "## Commands"
    yield ""
    for each in entries("qmp-command"):
        yield f"### {each.name}"
        yield ""
        yield each.text
        yield ""
        rows = [(_code(row.name), row.place, row.meaning) for row in each.fields]
        if rows:
            yield from _table(("argument", "type", ""), rows)
        yield f"Returns: {each.details['returns']}."
        yield ""
    yield "## Events"
    yield ""
    rows = [
        (_code(each.name), each.text, ", ".join(row.name for row in each.fields)) for each in entries("qmp-event")
    ]
    yield from _table(("event", "", "data"), rows)
    yield "## Types"
    yield ""
    from pyvmm.control.schema import schema

    for found in schema():
        match found:
            case {"meta-type": "object", "name": str(name), "members": list(members)} if not name.startswith("q_"):
                rows = [(_code(m["name"]), m["type"], "optional" if "default" in m else "") for m in members]
                yield f"### {name}"
                yield ""
                yield from _table(("member", "type", ""), rows)
            case {"meta-type": "enum", "name": str(name), "values": list(values)}:
                yield f"### {name}"
                yield ""
                yield ", ".join(map(_code, values)) + "."
                yield ""


def _addresses() -> Iterable[str]:
    yield "`pyvmm doctor --map` prints the whole map, with interrupt lines and memory slots."
    yield ""
    for kind in ("address", "port"):
        yield f"## {'Guest physical memory' if kind == 'address' else 'I/O ports'}"
        yield ""
        rows = [(each.written, f"{each.details['size']:#x}", each.text) for each in entries(kind)]
        yield from _table(("from", "size", ""), rows)


def _exit_statuses() -> Iterable[str]:
    yield "What `pyvmm` returns to its shell. `pyvmm run -- COMMAND` and `pyvmm exec` return that of the command."
    yield ""
    yield from _table(("status", ""), [(each.written, each.text) for each in entries("exit-status")])


PAGES: dict[str, tuple[str, Callable[[], Iterable[str]]]] = {
    "index": ("Reference", _index),
    "command-line": ("Command line", command_line),
    "exit-statuses": ("Exit statuses", _exit_statuses),
    "numbers": ("MSRs, CPUID, hypercalls, statuses, exits", _numbers),
    "vmbus-messages": ("VMBus messages", _messages),
    "devices": ("Devices and their messages", _devices),
    "structures": ("Structures", _structures),
    "state-machines": ("State machines", _state_machines),
    "addresses": ("Addresses and ports", _addresses),
    "trace-events": ("Trace events", _trace_events),
    "qmp": ("QMP", _qmp),
}
"""Title and maker of each page, by the name of its file."""
