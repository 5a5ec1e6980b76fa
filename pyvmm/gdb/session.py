"""The debugger's session: answers its packets and reports the guest's stops.

    Halted --vCont, c, s--> Running --a stop, Ctrl-C--> Halted       D, k or the machine's end: Ended

While the guest runs the debugger sends only Ctrl-C; anything else stops the guest, too, and is answered after that.
No I/O here: messages in, bytes out by `send`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, Literal

from pyvmm.errors import HostError
from pyvmm.gdb import events as trace
from pyvmm.gdb import registers
from pyvmm.gdb.packets import PACKET_SIZE, Message, escape, frame
from pyvmm.gdb.target import CONTINUE, Action, Kind, RefusedError, Step, Stop, Target
from pyvmm.guest_text import clean

_INVALID: Final = b"E16"  # EINVAL, in hexadecimal digits
_FAULT: Final = b"E0e"  # EFAULT
_FULL: Final = b"E1c"  # ENOSPC
MEMORY_LIMIT: Final = PACKET_SIZE // 2 - 64
"""Most bytes of memory in a reply; the debugger asks again for the rest."""
MONITOR_LIMIT: Final = 256 << 10
"""Most characters of a monitor command's output that are sent."""

_HEX: Final = re.compile(rb"[0-9a-fA-F]{1,16}")
_FEATURES: Final = b"PacketSize=%x;qXfer:features:read+;QStartNoAckMode+;vContSupported+;swbreak+;hwbreak+"
_EXPEDITED: Final = ("rbp", "rsp", "rip")
"""Registers sent with each stop, so that the debugger need not ask for them."""


class _BadPacket(Exception):
    """A packet that does not follow the protocol's form."""


class Session:
    """One debugger. `send(data)` queues bytes for it, `close(reason)` ends its connection."""

    def __init__(self, target: Target, send: Callable[[bytes], None], close: Callable[[str], None]) -> None:
        self._target = target
        self._send = send
        self._close = close
        self._state: Literal["halted", "running", "ended"] = "halted"
        self._acknowledges = True
        self._last = b""  # the last packet sent, in case it is asked for again
        self._stop = Stop(0)
        self._selected = 0  # the vCPU of register and memory accesses
        self._resumed = 0  # the vCPU of `c` and `s`
        self._listed = 0

    def begin(self) -> None:
        """Stop the machine for this debugger."""
        self._target.attach(self._stopped, self._ended)

    def handle(self, message: Message) -> None:
        """Handle one message. No message can raise."""
        if self._state == "running" and message not in ("ack", "nak"):
            self._target.interrupt()
        match message:
            case "ack" | "interrupt":
                pass
            case "nak":
                self._send(self._last)
            case "damaged":
                if self._acknowledges:
                    self._send(b"-")
            case bytes():
                self._receive(message)

    def disconnected(self) -> None:
        """Let the machine run on without its debugger."""
        if self._state != "ended":
            self._state = "ended"
            self._target.detach()

    # Replies

    def _receive(self, body: bytes) -> None:
        if self._acknowledges:
            self._send(b"+")
        if trace.received.on:
            trace.received(_shown(body))
        try:
            reply = self._answer(body)
        except _BadPacket:
            reply = _INVALID
        except (RefusedError, HostError) as error:
            if trace.sent.on:
                trace.sent(f"refused: {error}")
            reply = {b"m": _FAULT, b"M": _FAULT, b"X": _FAULT, b"Z": _FULL}.get(body[:1], _INVALID)
        if reply is not None:
            self._reply(reply)

    def _reply(self, body: bytes) -> None:
        if trace.sent.on:
            trace.sent(_shown(body))
        self._last = frame(body)
        self._send(self._last)

    def _answer(self, body: bytes) -> bytes | None:
        """Return the reply; None if there is none, or none yet."""
        if self._state == "ended" or not self._target.vcpus:
            return _INVALID
        rest = body[1:]
        match body[:1]:
            case b"?":
                return self._stop_reply(self._stop)
            case b"g":
                return registers.pack(self._target.registers(self._selected)).hex().encode()
            case b"G":
                self._target.set_registers(self._selected, registers.unpack(_bytes(rest)))
                return b"OK"
            case b"p":
                return self._register(_number(rest))
            case b"P":
                return self._set_register(rest)
            case b"m":
                address, length = _numbers(rest, b",")
                data = self._target.read_memory(self._selected, address, min(length, MEMORY_LIMIT))
                return data.hex().encode() if data or not length else _FAULT
            case b"M":
                return self._write(rest, _bytes)
            case b"X":
                return self._write(rest, bytes)
            case b"Z" | b"z":
                return self._breakpoint(body)
            case b"H":
                return self._select(rest)
            case b"T":
                self._vcpu(rest)
                return b"OK"
            case b"c" | b"C" | b"s" | b"S":
                self._resume_old(body)
                return None
            case b"v":
                return self._verbose(body)
            case b"q" | b"Q":
                return self._query(body)
            case b"D":
                self._leave("detached", kill=False)
                return None
            case b"k":
                self._leave("killed", kill=True)
                return None
            case _:
                return b""  # the protocol's reply to what is not supported

    def _leave(self, reason: str, *, kill: bool) -> None:
        self._state = "ended"
        if not reason.startswith("killed"):
            self._reply(b"OK")
        self._target.detach()
        if kill:
            self._target.kill()
        self._close(reason)

    # Registers and memory

    def _register(self, number: int) -> bytes:
        if number >= len(registers.TABLE):
            raise _BadPacket
        each = registers.TABLE[number]
        return self._target.registers(self._selected)[each.name].to_bytes(each.size, "little").hex().encode()

    def _set_register(self, rest: bytes) -> bytes:
        digits, _, value = rest.partition(b"=")
        number, data = _number(digits), _bytes(value)
        if number >= len(registers.TABLE) or len(data) != registers.TABLE[number].size:
            raise _BadPacket
        name = registers.TABLE[number].name
        self._target.set_registers(self._selected, {name: int.from_bytes(data, "little")})
        return b"OK"

    def _write(self, rest: bytes, decode: Callable[[bytes], bytes]) -> bytes:
        place, found, payload = rest.partition(b":")
        address, length = _numbers(place, b",")
        data = decode(payload)
        if not found or len(data) != length:
            raise _BadPacket
        if data:
            self._target.write_memory(self._selected, address, data)
        return b"OK"

    def _breakpoint(self, body: bytes) -> bytes:
        words = body[1:].split(b";")[0].split(b",")  # conditions after `;` are not announced
        if len(words) != 3:
            raise _BadPacket
        kind, address, length = (_number(word) for word in words)
        if kind not in Kind.__members__.values():
            return b""
        if body[:1] == b"Z":
            self._target.insert(self._selected, Kind(kind), address, length)
        else:
            self._target.remove(Kind(kind), address, length)
        return b"OK"

    # Threads

    def _vcpu(self, digits: bytes) -> int:
        """Return the index of a thread's vCPU."""
        number = _number(digits)
        if not 1 <= number <= self._target.vcpus:
            raise _BadPacket
        return number - 1

    def _select(self, rest: bytes) -> bytes:
        digits = rest[1:]
        vcpu = self._selected if digits in (b"0", b"-1") else self._vcpu(digits)  # any, all
        if rest[:1] == b"g":
            self._selected = vcpu
        elif rest[:1] == b"c":
            self._resumed = vcpu
        else:
            raise _BadPacket
        return b"OK"

    def _thread_list(self) -> bytes:
        first = self._listed
        self._listed = min(first + 256, self._target.vcpus)
        return b"m" + b",".join(b"%x" % (n + 1) for n in range(first, self._listed)) if first < self._listed else b"l"

    # Running and stopping

    def _verbose(self, body: bytes) -> bytes | None:
        if body == b"vCont?":
            return b"vCont;c;C;s;S;r"
        if body.startswith(b"vCont;"):
            self._resume(self._actions(body[6:].split(b";")))
            return None
        if body.startswith(b"vKill"):
            self._reply(b"OK")
            self._leave("killed", kill=True)
            return None
        return b""

    def _actions(self, words: Iterable[bytes]) -> dict[int, Action]:
        """Return what each vCPU is to do: the first of the `words` that names it counts."""
        actions: dict[int, Action] = {}
        for word in words:
            verb, _, thread = word.partition(b":")
            action = _action(verb)
            if thread in (b"", b"-1", b"0"):
                for vcpu in range(self._target.vcpus):
                    actions.setdefault(vcpu, action)
            else:
                actions.setdefault(self._vcpu(thread), action)
        return actions

    def _resume_old(self, body: bytes) -> None:
        """Handle `c`, `s` and their forms with a signal, which is ignored; none may name an address."""
        if len(body) > (1 if body[:1] in b"cs" else 3):
            raise _BadPacket
        if body[:1] in b"cC":
            self._resume(dict.fromkeys(range(self._target.vcpus), CONTINUE))
        else:
            self._resume({self._resumed: Step()})

    def _resume(self, actions: dict[int, Action]) -> None:
        if not actions:
            raise _BadPacket
        self._state = "running"
        if trace.resumed.on:
            trace.resumed({vcpu: str(action) for vcpu, action in actions.items()})
        try:
            self._target.resume(actions)
        except (RefusedError, HostError):
            self._state = "halted"
            raise

    def _stopped(self, stop: Stop) -> None:
        self._stop = stop
        if self._state == "running":  # else the machine was reset while it was stopped: the debugger sees that itself
            self._state = "halted"
            self._selected = self._resumed = stop.vcpu
            if trace.stopped.on:
                trace.stopped(stop.vcpu, int(stop.signal), stop.reason, stop.address)
            self._reply(self._stop_reply(stop))

    def _stop_reply(self, stop: Stop) -> bytes:
        words = [f"T{stop.signal:02x}"]
        values = self._target.registers(stop.vcpu)
        for name in _EXPEDITED:
            number = registers.NUMBER[name]
            words.append(f"{number:02x}:{values[name].to_bytes(8, 'little').hex()};")
        words.append(f"thread:{stop.vcpu + 1:x};")
        if stop.reason in ("swbreak", "hwbreak"):
            words.append(f"{stop.reason}:;")
        elif stop.reason:
            words.append(f"{stop.reason}:{stop.address:x};")
        return "".join(words).encode()

    def _ended(self, status: int) -> None:
        """Report the end of the machine: it is that of the debugged program."""
        if self._state == "ended":
            return
        if self._state == "running":
            self._reply(b"W%02x" % (status & 0xFF))
        self._state = "ended"
        self._close("the machine has ended")

    # Queries

    def _query(self, body: bytes) -> bytes | None:
        name, _, rest = body.partition(b":")
        match name:
            case b"qSupported":
                return _FEATURES % PACKET_SIZE
            case b"QStartNoAckMode":
                self._acknowledges = False  # the debugger acknowledges this reply still
                return b"OK"
            case b"qXfer":
                return _part(rest)
            case b"qAttached":
                return b"1"  # the debugger's end leaves the machine alone
            case b"qC":
                return b"QC%x" % (self._selected + 1)
            case b"qfThreadInfo":
                self._listed = 0
                return self._thread_list()
            case b"qsThreadInfo":
                return self._thread_list()
            case b"qSymbol":
                return b"OK"
        if name.startswith(b"qThreadExtraInfo,"):
            return self._target.describe(self._vcpu(name.partition(b",")[2])).encode().hex().encode()
        if name.startswith(b"qRcmd,"):
            return self._monitor(_bytes(body[6:]))
        return b""

    def _monitor(self, line: bytes) -> bytes | None:
        output = self._target.monitor(line.decode("utf-8", "replace"))[:MONITOR_LIMIT]
        data = clean(output).encode()
        size = PACKET_SIZE // 2 - 64
        for at in range(0, len(data), size):
            self._reply(b"O" + data[at : at + size].hex().encode())
        return b"OK" if self._state != "ended" else None


def _action(verb: bytes) -> Action:
    match verb[:1]:
        case b"c" | b"C":
            return CONTINUE
        case b"s" | b"S":
            return Step()
        case b"r":
            return Step(*_numbers(verb[1:], b","))
        case _:
            raise _BadPacket


def _part(rest: bytes) -> bytes:
    """Return a part of a document that the debugger reads: only the description of the registers."""
    words = rest.split(b":")
    if len(words) != 4 or words[:2] != [b"features", b"read"]:
        return b""
    if words[2] != b"target.xml":
        return b"E00"
    offset, length = _numbers(words[3], b",")
    data = registers.target_xml()
    part = data[offset : offset + min(length, MEMORY_LIMIT)]
    return (b"m" if offset + len(part) < len(data) else b"l") + escape(part)


def _number(digits: bytes) -> int:
    if not _HEX.fullmatch(digits):
        raise _BadPacket
    return int(digits, 16)


def _numbers(words: bytes, separator: bytes) -> tuple[int, int]:
    first, _, second = words.partition(separator)
    return _number(first), _number(second)


def _bytes(digits: bytes) -> bytes:
    try:
        return bytes.fromhex(digits.decode("ascii"))
    except ValueError:
        raise _BadPacket from None


def _shown(body: bytes) -> str:
    """Return a packet's body for the trace."""
    return body[:200].decode("ascii", "backslashreplace")
