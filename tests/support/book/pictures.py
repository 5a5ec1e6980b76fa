"""The pictures of the chapters, each drawn from a run of the chapter's example on the local /dev/kvm."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from pyvmm import address_map, trace
from pyvmm.devices.balloon.protocol import MessageType as BalloonType
from pyvmm.hyperv.tlfs import HypercallCode, Msr
from pyvmm.images import balloon_assembler, hyperv_assembler, vmbus_assembler
from pyvmm.kvm import Exit, Hlt, IoIn, IoOut, MmioRead, MmioWrite, Rdmsr, Wrmsr
from pyvmm.trace import Record
from pyvmm.vmbus.protocol import MessageType
from tests.support.book.chapters import PICTURES, ROOT
from tests.support.book.drawing import Sequence, memory_map
from tests.support.book.recording import imported, record

GUEST, KVM, PROGRAM, HOST, LOOP = "guest", "KVM", "your program", "host", "loop"
PAGE, MIB, GIB = 1 << 12, 1 << 20, 1 << 30


def _exit(picture: Sequence, exit: Exit) -> None:
    """One entry into the guest, and the exit that ends it."""
    picture.step(PROGRAM, KVM, "KVM_RUN")
    match exit:
        case IoIn(port=port):
            picture.step(GUEST, PROGRAM, f"in al, {port:#x}", "IoIn: the guest waits for an answer")
        case IoOut(port=port, data=data):
            picture.step(GUEST, PROGRAM, f"out {port:#x}, {data[0]:#04x}", _letter(data))
        case Hlt():
            picture.step(GUEST, PROGRAM, "hlt", "Hlt: no interrupt can come, so it is the end")
        case Rdmsr(index=msr):
            picture.step(GUEST, PROGRAM, f"rdmsr {Msr(msr).name}", "Rdmsr: the guest waits for a value")
        case Wrmsr(index=msr, value=value):
            picture.step(GUEST, PROGRAM, f"wrmsr {Msr(msr).name}", f"Wrmsr: {value:#x}")


def _letter(data: bytes) -> str:
    text = data.decode("ascii", "replace")
    return f"IoOut: {text!r}" if text.isprintable() else f"IoOut: {int.from_bytes(data, 'little')}"


def ch01_exits() -> str:
    """The first guest: two letters, and the end."""
    exits = record("ch01_first_guest.py").exits
    picture = Sequence([GUEST, KVM, PROGRAM])
    for exit in exits[:4]:
        _exit(picture, exit)
    picture.step(KVM, KVM, f"... {len(exits) - 5} more exits")
    _exit(picture, exits[-1])
    return picture.svg()


def ch02_map() -> str:
    """Slots, the hole between them, and what the guest accessed there."""
    run = record("ch02_memory.py")
    rows = [(gpa, gpa + size, f"slot {slot}: memory", "ram") for slot, gpa, size in run.slots if size]
    at = rows[0][1]
    for exit in run.exits:
        if isinstance(exit, MmioRead | MmioWrite):
            kind = "MmioRead" if isinstance(exit, MmioRead) else "MmioWrite"
            rows.append((exit.gpa, exit.gpa + 1, kind, "special"))
            rows.append((at, exit.gpa, "no memory", "hole"))
            at = exit.gpa + 1
    rows.append((at, rows[1][0], "no memory", "hole"))
    return memory_map(rows)


def ch03_letter() -> str:
    """One letter from the guest, and one to it."""
    exits = record("ch03_serial.py").exits
    picture = Sequence([GUEST, KVM, PROGRAM])
    first = next(n for n, exit in enumerate(exits) if isinstance(exit, IoOut) and exit.port == 0x3F8)
    typed = next(n for n, exit in enumerate(exits) if isinstance(exit, IoIn) and exit.port == 0x3F8)
    for exit in exits[first - 1 : first + 1]:
        _exit(picture, exit)
    picture.step(KVM, KVM, "... later, a letter that was typed")
    for exit in exits[typed - 1 : typed + 1]:
        _exit(picture, exit)
    return picture.svg()


def ch04_map() -> str:
    """What lies where when the first 64-bit instruction runs."""
    names = imported("ch04_long_mode")
    run = record("ch04_long_mode.py")
    (_, gpa, size) = run.slots[0]
    gdt, tables, stack = address_map.GDT, address_map.PAGE_TABLES, address_map.STACK
    rows = [
        (gdt.start, gdt.start + PAGE, "GDT: the code segment says 64-bit", "special"),
        (stack.start, stack.end, "stack", "special"),
        (tables.start, tables.end, "page tables", "special"),
        (names.ENTRY, names.ENTRY + PAGE, "the guest's code", "special"),
        (8 * MIB, 8 * MIB + 8, "the number that it stores", "given"),
        (gpa + size, 4 * GIB, "mapped by the tables, no memory", "hole"),
    ]
    return memory_map(_filled(rows, gpa, gpa + size))


def _filled(rows: list[tuple[int, int, str, str]], start: int, end: int) -> list[tuple[int, int, str, str]]:
    """Add the memory between the named parts."""
    at, made = start, list(rows)
    for low, high, _, _ in sorted(rows):
        if low >= end:
            break
        if low > at:
            made.append((at, low, "memory", "ram"))
        at = high
    if at < end:
        made.append((at, end, "memory", "ram"))
    return made


def ch05_wake() -> str:
    """The first of the mutual wake-ups."""
    order = record("ch05_interrupts.py").output.split(":")[1].split()
    lanes = ["vCPU 0", LOOP, "vCPU 1"]
    picture = Sequence(lanes)
    picture.step(LOOP, "vCPU 0", "interrupt", "signal_msi")
    for number in order[:4]:
        other = "vCPU 1" if number == "0" else "vCPU 0"
        picture.step(f"vCPU {number}", LOOP, "woken", "out 0x10: exit, then post")
        picture.step(LOOP, other, "interrupt", "signal_msi")
    picture.step(LOOP, LOOP, f"... until {len(order)} are counted")
    return picture.svg()


def ch06_msrs() -> str:
    """What leaves the guest."""
    picture = Sequence([GUEST, KVM, PROGRAM])
    picture.step(GUEST, KVM, "cpuid 0x40000000", "answered by KVM, from the table it was given")
    for exit in record("ch06_looks_like_hyperv.py").exits:
        if isinstance(exit, Rdmsr | Wrmsr):
            _exit(picture, exit)
    return picture.svg()


def _talk(picture: Sequence, records: Iterable[Record], *, hypercalls: bool = False) -> None:
    """Draw what passes between guest and host, from trace events."""
    for each in records:
        values = dict(zip(each.event.fields, each.values, strict=False))
        match each.event.name:
            case "hyperv.msr_write" if hypercalls:
                picture.step(GUEST, HOST, f"wrmsr {_msr(values['msr'])}", f"{values['value']:#x}")
            case "hyperv.hypercall" if hypercalls:
                name = HypercallCode(values["code"]).name
                picture.step(GUEST, HOST, f"hypercall {name}", f"status {values['status']}")
            case "hyperv.message_delivered" if hypercalls:
                picture.step(HOST, GUEST, "message in the slot", f"SINT {values['sint']}, {values['size']} bytes")
            case "vmbus_recv_message" if not hypercalls:
                picture.step(GUEST, HOST, MessageType(values["type"]).name)
            case "vmbus_post_msg" if not hypercalls:
                picture.step(HOST, GUEST, MessageType(values["type"]).name)
            case "vmbus.packet_received":
                picture.step(GUEST, HOST, "packet", f"{values['size']} bytes in the guest's ring")
            case "vmbus.packet_sent":
                picture.step(HOST, GUEST, "packet", f"{values['size']} bytes in the host's ring")


def _msr(number: int) -> str:
    if Msr.SINT0 <= number <= Msr.SINT15:
        return f"SINT{number - Msr.SINT0}"
    return Msr(number).name


def ch07_messages() -> str:
    """Registers, the call, the message, and EOM."""
    picture = Sequence([GUEST, HOST])
    _talk(picture, record("ch07_messages.py").records, hypercalls=True)
    return picture.svg()


def ch08_contact() -> str:
    """From contact to the last offer."""
    picture = Sequence([GUEST, HOST])
    _talk(picture, record("ch08_contact.py").records)
    return picture.svg()


def ch09_open() -> str:
    """From the offer to the last packet."""
    picture = Sequence([GUEST, HOST])
    _talk(picture, record("ch09_rings.py").records)
    return picture.svg()


def ch09_map() -> str:
    """The guest's pages that the host uses, where they are now."""
    guest = record("ch09_rings.py").names["guest"]
    entry = imported("ch04_long_mode").ENTRY
    rows = [
        (entry, entry + PAGE, "the guest's code and messages", "special"),
        (hyperv_assembler.HYPERCALL_PAGE, hyperv_assembler.HYPERCALL_PAGE + PAGE, "hypercall page", "given"),
        (int(guest.engine.synic.vps[0].simp.gpa), 0, "SIMP: message slots", "given"),
        (int(guest.engine.synic.vps[0].siefp.gpa), 0, "SIEFP: event flags", "given"),
        (vmbus_assembler.OUT, 0, "ring to the host: indices", "given"),
        (vmbus_assembler.OUT_DATA, 0, "ring to the host: packets", "given"),
        (vmbus_assembler.IN, 0, "ring to the guest: indices", "given"),
        (vmbus_assembler.IN_DATA, 0, "ring to the guest: packets", "given"),
        (vmbus_assembler.BUFFER, 0, "a packet, copied out", "special"),
    ]
    return memory_map(_filled([(low, high or low + PAGE, text, kind) for low, high, text, kind in rows], 0, 16 * MIB))


def _pages(count: int) -> str:
    return f"{count * PAGE // MIB} MiB" if count * PAGE % MIB == 0 else f"{count} pages"


def _balloon(picture: Sequence, records: Iterable[Record]) -> None:
    """Draw the balloon's messages, from its trace events."""
    for each in records:
        values = dict(zip(each.event.fields, each.values, strict=False))
        match each.event.name:
            case "hv_balloon_incoming_version":
                version = f"{values['major']}.{values['minor']}"
                picture.step(GUEST, HOST, BalloonType.VERSION_REQUEST.name, version)
                picture.step(HOST, GUEST, BalloonType.VERSION_RESPONSE.name)
            case "hv_balloon_incoming_caps":
                picture.step(GUEST, HOST, BalloonType.CAPABILITIES.name, f"{values['caps']:#x}")
                picture.step(HOST, GUEST, BalloonType.CAPABILITIES_RESPONSE.name)
            case "balloon.info_sent":
                picture.step(HOST, GUEST, BalloonType.INFO.name, f"at most {_pages(values['pages'])}")
            case "hv_balloon_outgoing_balloon":
                picture.step(HOST, GUEST, BalloonType.BALLOON_REQUEST.name, _pages(values["count"]))
            case "hv_balloon_remove_response":
                place = f"{_pages(values['count'])} at {values['start'] * PAGE:#x}"
                picture.step(GUEST, HOST, BalloonType.BALLOON_RESPONSE.name, place)
            case "hv_balloon_outgoing_unballoon":
                place = f"{_pages(values['count'])} at {values['start'] * PAGE:#x}"
                picture.step(HOST, GUEST, BalloonType.UNBALLOON_REQUEST.name, place)
            case "hv_balloon_incoming_unballoon":
                picture.step(GUEST, HOST, BalloonType.UNBALLOON_RESPONSE.name)
            case "hv_balloon_outgoing_hot_add":
                place = f"{_pages(values['count'])} at {values['start'] * PAGE:#x}"
                picture.step(HOST, GUEST, BalloonType.HOT_ADD_REQUEST.name, place)
            case "hv_balloon_incoming_hot_add":
                picture.step(GUEST, HOST, BalloonType.HOT_ADD_RESPONSE.name, f"took {_pages(values['count'])}")
            case "fault.hit":
                picture.step(HOST, HOST, "fault: sends it a second time")
            case "vmbus.packet_refused":
                picture.step(GUEST, HOST, "a packet that is refused", values["reason"].removeprefix("balloon: "))


def ch10_messages() -> str:
    """The balloon's conversation."""
    picture = Sequence([GUEST, HOST])
    _balloon(picture, record("ch10_balloon.py").records)
    return picture.svg()


def ch10_map() -> str:
    """The slots after the last resize."""
    slots = record("ch10_balloon.py").slots
    free = balloon_assembler.FREE_FRAME * PAGE
    rows = [(gpa, gpa + size, f"slot {slot}: hot-added", "given") for slot, gpa, size in slots if slot]
    (_, boot, size) = slots[0]
    rows.append((boot, free, "slot 0: boot memory", "ram"))
    rows.append((free, free + 4 * MIB, "slot 0: out, and given back", "special"))
    rows.append((free + 4 * MIB, boot + size, "slot 0: boot memory", "ram"))
    rows.append((boot + size, GIB, "no memory", "hole"))
    return memory_map(rows)


def _machine(fault: str | None) -> list[Record]:
    """The records of the guest of chapter 11 that is resized twice."""
    records: list[Record] = []
    names = imported("ch12_driver_bug")
    trace.subscribe("*", records.append)
    try:
        with tempfile.TemporaryDirectory() as folder:
            kernel = names.write_kernel(Path(folder) / "kernel")
            names.resized(kernel, fault, 48, 64)
    finally:
        trace.unsubscribe(records.append)
    return records


def ch11_life() -> str:
    """The messages of a whole life."""
    picture = Sequence([GUEST, HOST])
    _talk(picture, [each for each in _machine(None) if each.event.name.startswith("vmbus_")])
    return picture.svg()


def ch12_twice() -> str:
    """The balloon's conversation with a request that comes twice."""
    picture = Sequence([GUEST, HOST])
    _balloon(picture, _machine("balloon-request-twice"))
    return picture.svg()


DRAWN: dict[str, Callable[[], str]] = {
    "ch01-exits.svg": ch01_exits,
    "ch02-map.svg": ch02_map,
    "ch03-letter.svg": ch03_letter,
    "ch04-map.svg": ch04_map,
    "ch05-wake.svg": ch05_wake,
    "ch06-msrs.svg": ch06_msrs,
    "ch07-messages.svg": ch07_messages,
    "ch08-contact.svg": ch08_contact,
    "ch09-open.svg": ch09_open,
    "ch09-map.svg": ch09_map,
    "ch10-messages.svg": ch10_messages,
    "ch10-map.svg": ch10_map,
    "ch11-life.svg": ch11_life,
    "ch12-twice.svg": ch12_twice,
}


def update(*, check: bool) -> int:
    """Draw all pictures; with `check` compare them instead. Returns 1 if one differs."""
    stale = 0
    for name, draw in DRAWN.items():
        path = PICTURES / name
        made = draw()
        if path.exists() and path.read_text() == made:
            continue
        stale |= check
        print(f"{path.relative_to(ROOT)} {'is stale: python -m tests.support.book' if check else 'drawn'}")
        if not check:
            path.write_text(made)
    return stale
