"""Host side of the guest agent's protocol: sends commands and receives their output and status over a serial port.

The guest's side is the shell script images/guest/agent. Lines of ASCII, each ended by a newline; the host chooses
ids, counting from 1; several commands may run at once.

    host                                    guest
                                        <-  ready 2 RELEASE              at its start: protocol version, uname -r
    run ID COMMAND                      ->                               a word of shell, see `quoted`
                                        <-  out ID BASE64(bytes)         as they are written, any number
                                        <-  err ID BASE64(bytes)
                                        <-  exit ID STATUS               0-255; 128+n for signal n
    kill ID SIGNAL                      ->                               the command and all it started
    size ROWS COLUMNS                   ->                               of the console's terminal, from now on
                                        <-  error TEXT                   a request it did not understand
                                        <-  sessions                     no agent: a disk's system boots, with only
                                                                         the program for sessions

Text from the guest is untrusted: lines and ids are checked, and a bad line becomes a `Garbled` event only.
"""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64
from dataclasses import dataclass
from typing import Literal

from pyvmm.errors import ConfigError, GuestProtocolError

VERSION = 2
MAX_LINE = 128 << 10  # the agent's longest: 48 KiB in base64, and a few words
MAX_COMMAND = 32 << 10  # bytes, of which a quote or newline takes four in a request
MAX_REQUEST = 56 << 10  # bytes; the guest's serial port queues at most 64 KiB that were not read
MAX_RELEASE = 128
MAX_TEXT = 200  # characters of the guest's text in an error


@dataclass(frozen=True, slots=True)
class Ready:
    """The agent started; commands sent before are lost."""

    release: str


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of a command's output."""

    id: int
    stream: Literal["out", "err"]
    data: bytes


@dataclass(frozen=True, slots=True)
class Exited:
    """A command ended; all its output came before this event."""

    id: int
    status: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The guest rebooted while the command ran: its status is lost."""

    id: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The agent did not understand a request."""

    text: str


@dataclass(frozen=True, slots=True)
class Garbled:
    """A line from the guest that breaks the protocol. It is dropped; the next line is parsed again."""

    error: GuestProtocolError


@dataclass(frozen=True, slots=True)
class SessionsOnly:
    """The guest has no agent, but its program for sessions listens (session_protocol.PORT)."""


Event = SessionsOnly | Ready | Output | Exited | Lost | Refused | Garbled


def quoted(command: str) -> bytes:
    """Return a command as a word of shell on one line, which costs the guest no fork to decode, unlike base64.

    Raises ConfigError for a command that cannot be sent.
    """
    try:
        text = command.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ConfigError("the command is not valid Unicode: it contains a lone surrogate") from error
    if len(text) > MAX_COMMAND:
        raise ConfigError(f"the command is {len(text)} bytes long, the agent takes {MAX_COMMAND}; shorten it")
    if b"\0" in text:
        raise ConfigError("the command holds a zero byte; remove it")
    word = b"'%s'" % text.replace(b"'", b"'\\''").replace(b"\n", b"'$n'")
    if len(word) > MAX_REQUEST:
        raise ConfigError(
            f"the command takes {len(word)} bytes with its quotes and newlines, of {MAX_REQUEST}; shorten it"
        )
    return word


class AgentClient:
    """Waiting --ready--> Ready; a further ready (the guest rebooted) stays Ready and loses all commands.

    Does no I/O: `feed` takes bytes from the serial port; requests are returned as bytes to be sent.
    """

    def __init__(self) -> None:
        self.ready = False
        self.running: set[int] = set()
        self._next = 1
        self._line = bytearray()
        self._skipping = False  # inside a line that was too long

    def run(self, command: str) -> tuple[int, bytes]:
        """Return a command's id and the request to send once the agent is ready. Raises ConfigError as `quoted`."""
        word = quoted(command)
        number = self._next
        self._next += 1
        self.running.add(number)
        return number, b"run %d %s\n" % (number, word)

    def kill(self, number: int, signal: str = "TERM") -> bytes:
        """Return the request to send `signal` (a name without SIG, or a number) to a command."""
        if not signal.isalnum() or not signal.isascii():
            raise ConfigError(f"no signal is named {signal!r}")
        return f"kill {number} {signal}\n".encode()

    def size(self, rows: int, columns: int) -> bytes:
        """Return the request that sets the terminal size of the guest's console."""
        return b"size %d %d\n" % (rows, columns)

    def feed(self, data: bytes) -> list[Event]:
        """Parse the next bytes from the guest; return the events in order."""
        events: list[Event] = []
        *ends, rest = data.split(b"\n")
        for piece in ends:
            if self._append(piece, events):
                self._finish_line(events)
            self._line.clear()
            self._skipping = False
        self._append(rest, events)
        return events

    def _append(self, piece: bytes, events: list[Event]) -> bool:
        """Append to the current line; return False if the line is being skipped."""
        if not self._skipping:
            if len(self._line) + len(piece) <= MAX_LINE:
                self._line += piece
                return True
            self._skipping = True
            self._line.clear()
            events.append(Garbled(GuestProtocolError(f"agent: a line of more than {MAX_LINE} bytes")))
        return False

    def _finish_line(self, events: list[Event]) -> None:
        line = bytes(self._line).rstrip(b"\r")
        if not line:
            return
        try:
            events += self._parse(line)
        except GuestProtocolError as error:
            events.append(Garbled(error))

    def _parse(self, line: bytes) -> list[Event]:
        word, _, rest = line.partition(b" ")
        match word:
            case b"ready":
                return self._started(rest)
            case b"out" | b"err":
                number, text = self._command(line, rest)
                if not text:
                    raise GuestProtocolError(f"agent: output without any: {_show(line)}")
                try:
                    data = a2b_base64(text, strict_mode=True)
                except Base64Error as error:
                    raise GuestProtocolError(f"agent: output that is not base64: {error}") from None
                return [Output(number, "out" if word == b"out" else "err", data)]
            case b"exit":
                number, text = self._command(line, rest)
                status = _number(text, line)
                if status > 255:
                    raise GuestProtocolError(f"agent: command {number} ended with status {status}")
                self.running.discard(number)
                return [Exited(number, status)]
            case b"sessions" if not rest:
                return [SessionsOnly()]
            case b"error":
                return [Refused(_show(rest))]
        raise GuestProtocolError(f"agent: {_show(line)}")

    def _started(self, rest: bytes) -> list[Event]:
        version, _, release = rest.partition(b" ")
        if version != b"%d" % VERSION:
            raise GuestProtocolError(
                f"agent: protocol version {_show(version)}, not {VERSION}; build the image again"
            )
        lost: list[Event] = []
        if self.ready:
            lost += [Lost(number) for number in sorted(self.running)]
            self.running.clear()
        self.ready = True
        return [*lost, Ready(_show(release[:MAX_RELEASE]))]

    def _command(self, line: bytes, rest: bytes) -> tuple[int, bytes]:
        """Split a line into the id, which must be a running command's, and the rest."""
        text, _, rest = rest.partition(b" ")
        number = _number(text, line)
        if number not in self.running:
            raise GuestProtocolError(f"agent: reports command {number}, which is not running")
        return number, rest


def _number(text: bytes, line: bytes) -> int:
    if not (0 < len(text) <= 10 and text.isdigit()):
        raise GuestProtocolError(f"agent: a number is missing: {_show(line)}")
    return int(text)


def _show(text: bytes) -> str:
    """Return the guest's text, filtered for a terminal."""
    shown = text[:MAX_TEXT].decode("ascii", "replace")
    return "".join(c if c.isprintable() else "?" for c in shown)
