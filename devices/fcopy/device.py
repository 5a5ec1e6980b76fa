"""The file copy device: one file at a time, one request out at a time.

    Idle --start--> Starting --answered well--> Open --write--> Writing --answered well--> Open
                                                Open --finish, cancel--> Ending --answered--> Idle
    any --answered badly, or its channel closes--> Idle

Linux gives its daemon 30 s for each request, then answers with a failure.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import ClassVar
from uuid import UUID

from pyvmm.devices.fcopy.protocol import MESSAGE_VERSIONS, Flag, Header, Operation, Start, Write, encode_name
from pyvmm.devices.ic.device import IcDevice
from pyvmm.devices.ic.link import IcLink
from pyvmm.devices.ic.protocol import IcHeader, IcType
from pyvmm.errors import ConfigError
from pyvmm.trace import event
from pyvmm.trace.views import DeviceView, device_view
from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.offer import Offer

started = event("fcopy.started", "{size} bytes, flags {flags}")
answered = event("fcopy.answered", "{state} status {status:#x}, {written} of {size} bytes")
device_view(DeviceView(packages=("fcopy",), track="fcopy"))

Done = Callable[[str], object]
"""Called once with "" or with why it failed."""

WRITE_LIMIT = 32 << 10
"""Bytes of one `write`, which become several requests."""

_REASONS = {
    0x80070050: "the file exists",
    0x80070070: "the guest's disk is full",
    0x80004005: "the guest refused: does its file copy daemon run, and is there such a folder?",
}


class State(Enum):
    """What is under way."""

    IDLE = "idle"
    STARTING = "starting"
    OPEN = "open"
    WRITING = "writing"
    ENDING = "ending"


class FileCopy(IcDevice):
    """The device. `written`: bytes of the file under way that the guest has taken."""

    OFFER: ClassVar[Offer] = Offer(
        "fcopy",
        type=UUID("34d14be3-dee4-41c8-9ae7-6b174977c192"),
        instance=UUID("eb765408-105f-49b6-b4aa-c123b64d17d4"),
        signal_each=True,
    )
    KIND = IcType.FILE_COPY
    VERSIONS = MESSAGE_VERSIONS

    def __init__(self) -> None:
        self.state = State.IDLE
        self.written = 0
        self._size = 0
        self._rest = b""  # of what is being written
        self._piece = 0  # bytes of the request that is out
        self._done: Done | None = None

    def start(self, folder: str, name: str, size: int, flags: Flag, done: Done) -> None:
        """Begin a file of `size` bytes. Raises ConfigError if the guest cannot be asked."""
        # Linux's daemons make the folders before a slash only.
        place = encode_name("folder", folder and folder.rstrip("/") + "/")
        request = Start(Operation.START, bytes(32), encode_name("name", name), place, int(flags), size)
        if not self.ready:
            raise ConfigError("the guest has no driver for file copy")
        if self.state is not State.IDLE:
            raise ConfigError("another file is being copied: end or cancel that first")
        self.written, self._size = 0, size
        if started.on:
            started(size, int(flags))
        self._ask(request.build(), State.STARTING, done)

    def write(self, data: bytes, done: Done) -> None:
        """Write the next bytes, WRITE_LIMIT at most. Raises ConfigError if no file is open or it has not so many."""
        self._need_open()
        if not 0 < len(data) <= WRITE_LIMIT:
            raise ConfigError(f"{len(data)} bytes to write: 1 to {WRITE_LIMIT}")
        if self.written + len(data) > self._size:
            raise ConfigError(f"{self.written + len(data)} bytes: the file was to have {self._size}")
        self._rest = data
        self._write_piece(done)

    def finish(self, done: Done) -> None:
        """End the file. Raises ConfigError if none is open, or bytes are missing."""
        self._need_open()
        if self.written != self._size:
            raise ConfigError(f"{self._size - self.written} bytes of the file are missing")
        self._ask(Header(Operation.COMPLETE).build(), State.ENDING, done)

    def cancel(self, done: Done) -> None:
        """Give the file up; the guest removes it. Raises ConfigError if none is open."""
        self._need_open()
        self._ask(Header(Operation.CANCEL).build(), State.ENDING, lambda reason: done(""))  # Linux answers "failed"

    def _need_open(self) -> None:
        if self.state is not State.OPEN:
            raise ConfigError(f"no file can be written or ended: file copy is {self.state.value}")

    def _write_piece(self, done: Done) -> None:
        assert self._link is not None
        room = self._link.channel.max_payload - IcHeader.SIZE - Write.SIZE
        piece, self._rest = self._rest[:room], self._rest[room:]
        self._piece = len(piece)
        head = Write(Operation.WRITE, bytes(32), 0, self.written, len(piece))
        self._ask(head.build() + piece, State.WRITING, done)

    def _ask(self, body: bytes, state: State, done: Done) -> None:
        assert self._link is not None
        self.state, self._done = state, done
        if not self._link.request(IcType.FILE_COPY, body):
            self._end("the guest's ring is full")

    # The guest's side

    def closed(self, channel: Channel) -> None:
        super().closed(channel)
        self._end("the guest's driver is gone")

    def answered(self, link: IcLink, body: bytes, status: int) -> None:
        if answered.on:
            answered(self.state.value, status, self.written, self._size)
        done = self._done
        if status or self.state is State.ENDING or done is None:
            self._end(_REASONS.get(status, f"the guest refused with status {status:#x}") if status else "")
            return
        if self.state is State.WRITING:
            self.written += self._piece
            if self._rest:
                self._write_piece(done)
                return
        self.state, self._done = State.OPEN, None
        done("")

    def _end(self, reason: str) -> None:
        self.state, self._rest = State.IDLE, b""
        done, self._done = self._done, None
        if done is not None:
            done(reason)
