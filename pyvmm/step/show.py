"""A stop as lines of text: what crosses, its bytes beside the names of their fields, and where it is handled.

Everything a guest chose passes `pyvmm.guest_text`; colours are the caller's, through `Paint`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from pyvmm import decode, trace
from pyvmm.decode import registers
from pyvmm.decode.fields import Decoded
from pyvmm.decode.text import Paint, cut, lines
from pyvmm.errors import GuestError
from pyvmm.guest_text import one_line
from pyvmm.hyperv.hypercall import HYPERCALL_PORT
from pyvmm.hyperv.tlfs import HypercallCode, HypercallControl, PostMessageInput, SignalEventInput
from pyvmm.step import where
from pyvmm.step.stepper import Stopped
from pyvmm.step.where import Place

if TYPE_CHECKING:
    from pyvmm.machine import Machine

EVENTS_SHOWN: Final = 12
"""Lines of what happened since the last stop."""
QUIET: Final = ("hyperv.msr_read", "hyperv.auto_eoi", "machine.exit_count", "machine.state")
"""Trace events that are left out of them."""
SERVER: Final = "pyvmm.vmbus.server"


class Stop:
    """A stop's parts, found while the machine stands."""

    def __init__(self, machine: Machine, stopped: Stopped) -> None:
        self.title, self.decoded, self.place = _parts(machine, stopped)
        self.sent = _maker(stopped, self.decoded) or stopped.sender
        self.number = stopped.number
        self.at = stopped.at

    def lines(self, width: int, paint: Paint) -> Iterator[str]:
        """Return the lines: a heading, structures, and the line of our source."""
        heading = f"#{self.number}  {one_line(self.title)}"
        time = f"{self.at:.3f} s"
        yield paint("heading", cut(heading, max(10, width - len(time) - 2))) + f"  {time}"
        if self.decoded is not None:
            for line in lines(self.decoded, max(20, width - 2), paint):
                yield f"  {line}"
        if self.place is not None:
            yield f"  handled by {paint('place', where.shown(self.place))}"
        if self.sent is not None:
            yield f"  sent by {paint('place', where.shown(self.sent))}"


def since(events: Iterable[trace.Record], width: int, paint: Paint) -> Iterator[str]:
    """Return lines of the trace events since the last stop: state changes, and all else that happened."""
    shown = [each for each in events if each.event.name not in QUIET and not _unchanged(each)]
    if len(shown) > EVENTS_SHOWN:
        yield paint("offset", f"  · ... {len(shown) - EVENTS_SHOWN} more events; `l` lists all")
    for record in shown[-EVENTS_SHOWN:]:
        kind = "state" if "state" in record.event.name else "offset"
        yield paint(kind, cut(f"  · {one_line(record.text())}", width))


def _unchanged(record: trace.Record) -> bool:
    """Return whether an event tells of a state that is the same as before."""
    values = dict(zip(record.event.fields, record.values, strict=False))
    return "old" in values and values["old"] == values.get("new")


def waiting(rows: Sequence[tuple[str, str]], width: int, paint: Paint) -> Iterator[str]:
    """Return lines of who waits for what."""
    names = max((len(who) for who, _ in rows), default=0)
    for who, text in rows:
        yield "  " + paint("name", who.ljust(names + 2)) + cut(one_line(text), max(10, width - names - 4))


def _maker(stopped: Stopped, decoded: Decoded | None) -> Place | None:
    """Return where a message to the guest is made: the server hands on actions, so no caller is known."""
    if stopped.item is None or stopped.item.point != "message.out" or decoded is None:
        return None
    declared = decoded.parts[-1].declared
    return where.made_at(SERVER, declared.__name__) if declared is not None else None


def _parts(machine: Machine, stopped: Stopped) -> tuple[str, Decoded | None, Place | None]:
    if stopped.item is not None:
        point, data, fields = stopped.item.point, stopped.item.data, stopped.item.fields
        kind, _, direction = point.partition(".")
        arrow = "guest -> host" if direction == "in" else "host -> guest"
        match kind:
            case "message":
                return _message(arrow, data, fields, direction == "in")
            case "packet":
                return _packet(machine, arrow, data, fields, direction == "in")
            case "hypercall":
                return _hypercall(machine, fields, stopped.vcpu)
        return _event(machine, arrow, kind, direction, fields)
    if stopped.exit is not None:
        return _exit(machine, *stopped.exit)
    if stopped.record is not None:
        return f"trace event {stopped.record.text()}", None, None
    return stopped.note, None, None


def _message(
    arrow: str, data: bytes, fields: Mapping[str, Any], from_guest: bool
) -> tuple[str, Decoded | None, Place | None]:
    decoded = decode.message(data)
    about = f" about {fields['channel']}" if fields.get("channel") else ""
    place = None
    declared = decoded.parts[-1].declared
    if from_guest and declared is not None:
        handler = re.sub(r"(?<!^)(?=[A-Z])", "_", declared.__name__).lower()
        place = where.function_of(SERVER, f"_{handler}") or where.case_of(SERVER, declared.__name__)
    return f"{arrow}  message {decoded.name}{about}", decoded, place


def _packet(
    machine: Machine, arrow: str, data: bytes, fields: Mapping[str, Any], from_guest: bool
) -> tuple[str, Decoded | None, Place | None]:
    relid = int(fields["relid"])
    channel = str(fields["channel"])
    decoded = decode.packet(data, channel, to_guest=not from_guest)
    place = None
    if from_guest:
        device = machine.services.bus.device_of(relid)
        declared = [part.declared for part in decoded.parts if part.declared is not None]
        if device is not None:
            package = type(device).__module__.rpartition(".")[0]
            names = [each.__name__.removesuffix("Head") for each in reversed(declared)]
            modules = (f"{package}.state_machine", type(device).__module__)
            found = (where.case_of(module, name) for name in names for module in modules)
            place = next((each for each in found if each is not None), None) or where.method_of(
                type(device), "received"
            )
    return f"{arrow}  packet {decoded.name} on {channel} (channel {relid})", decoded, place


def _hypercall(
    machine: Machine, fields: Mapping[str, Any], vcpu: int | None
) -> tuple[str, Decoded | None, Place | None]:
    control, first = int(fields["control"]), int(fields["input1"])
    word = HypercallControl(control)
    decoded = decode.hypercall(control)
    inner: Decoded | None = None
    try:
        if word.code == HypercallCode.POST_MESSAGE:
            raw = machine.memory.read(first, PostMessageInput.SIZE)
            size = PostMessageInput.parse(raw).payload_size
            inner = decode.post_message(machine.memory.read(first, PostMessageInput.SIZE + min(size, 240)))
        elif word.code == HypercallCode.SIGNAL_EVENT:
            raw = first.to_bytes(8, "little") if word.fast else machine.memory.read(first, SignalEventInput.SIZE)
            inner = Decoded("", (decode.structure(SignalEventInput, raw),))
    except GuestError:
        pass  # the guest named memory that it has not: the call's status will say so
    title = f"vcpu {vcpu}  hypercall {decoded.name}"
    if inner is not None:
        decoded = Decoded(decoded.name, (*decoded.parts, *inner.parts))
        title += f" ({inner.name})" if inner.name else ""
    return title, decoded, where.case_of("pyvmm.hyperv.hypercall", f"HypercallCode.{decode.hypercall(control).name}")


def _event(
    machine: Machine, arrow: str, kind: str, direction: str, fields: Mapping[str, Any]
) -> tuple[str, Decoded | None, Place | None]:
    if kind == "eom":
        text = f"{arrow}  end of message (EOM) by VP {fields['vp']}: the next one may be put into the slot"
        return text, None, where.function_of("pyvmm.hyperv.synic", "retry")
    if kind == "interrupt":
        vp, sint = int(fields["vp"]), int(fields["sint"])
        value = machine.engine.synic.vps[vp].sints[sint]
        text = f"vector {value.vector:#x}" if not value.masked else "its vector"
        return f"{arrow}  interrupt of SINT {sint} of VP {vp}: {text}", None, None
    name, relid = fields["channel"], fields["relid"]
    if direction == "in":
        place = where.function_of("pyvmm.vmbus.channel", "_signalled")
        return f"{arrow}  signal of {name} (channel {relid}): look into your ring", None, place
    return f"{arrow}  event flag {fields['flag']} of VP {fields['vp']}: {name} (channel {relid})", None, None


def _exit(
    machine: Machine, vcpu: int, name: str, detail: Mapping[str, Any]
) -> tuple[str, Decoded | None, Place | None]:
    title = f"vcpu {vcpu}  exit {name}"
    place = where.case_of("pyvmm.machine.hardware", name)
    match name:
        case "IoOut" | "IoIn":
            port = int(detail["port"])
            what = registers.port_name(port)
            if port == HYPERCALL_PORT:
                what = "the hypercall page's"
            title += f" at port {port:#x}" + (f" ({what})" if what else "")
            title += f": {detail['data']}" if name == "IoOut" else f": {detail['size']} bytes wanted"
        case "MmioRead" | "MmioWrite":
            what = registers.address_name(int(detail["gpa"]))
            title += f" at {detail['gpa']:#x}" + (f" ({what})" if what else "")
            title += f": {detail['data']}" if name == "MmioWrite" else f": {detail['size']} bytes wanted"
        case "Wrmsr":
            index = int(detail["index"])
            found = registers.msr_name(index)
            title += f" of {found or hex(index)}"
            engine = type(machine.engine).__module__
            first = "SINT0" if found.startswith("SINT") else found
            written = where.case_of(engine, f"Msr.{first}", after="_write") if found else None
            return title, registers.msr(index, int(detail["value"])), written or place
        case "Rdmsr":
            index = int(detail["index"])
            title += f" of {registers.msr_name(index) or hex(index)}"
        case _:
            title += "".join(f" {key}={value}" for key, value in detail.items())
    return title, None, place
