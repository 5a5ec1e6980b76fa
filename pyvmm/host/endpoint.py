"""Endpoint of the emulated host's port: multiplexes descriptors over it. The agent and the outer side each have one.

A *source* is a descriptor whose bytes are sent as DATA of a channel; a *sink* is one to which DATA is
written. Runs in one thread, by poll(2) (epoll refuses regular files, which a command's input may well be).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from pyvmm.host.protocol import CHUNK, Decoder, Frame, Kind, ProtocolError, ReceiveWindow, SendWindow
from pyvmm.output import Output

Key = tuple[int, int]  # stream, channel
# A write of at most PIPE_BUF bytes to a pipe that poll calls writable never blocks: the user's own descriptors stay
# in blocking mode, as other programs share them.
_SAFE_WRITE = 4096


class Disconnected(Exception):
    """The other end of the port is closed."""


@dataclass(slots=True)
class _Source:
    descriptor: int
    ended: Callable[[], None]
    window: SendWindow = field(default_factory=SendWindow)
    ready: Callable[[], bool] = lambda: True  # whether it may be read now; evaluated at each step
    draining: bool = False  # its command has ended: no more data will follow
    files: list[int] | None = None  # of a socket whose client may send descriptors: keeps them open


@dataclass(slots=True)
class _Sink:
    descriptor: int
    ended: Callable[[], None]
    window: ReceiveWindow = field(default_factory=ReceiveWindow)
    ending: bool = False
    broken: bool = False  # no reader: discard
    output: Output | None = None  # writes by a thread of its own: a user's descriptor may block
    handed: int = 0  # bytes of the window that `output` holds unwritten
    done: int = 0  # bytes of `output.written` that are credited
    files: list[tuple[int, int]] = field(default_factory=list)  # descriptors to send, with the byte that they precede
    received: int = 0  # bytes of DATA so far
    written: int = 0


class Endpoint:
    """Sends and receives frames over `port`, for the descriptors that are its sources and sinks."""

    def __init__(self, port: int) -> None:
        self.port = port
        os.set_blocking(port, False)
        self._decoder = Decoder()
        self._out = bytearray()
        self._sources: dict[Key, _Source] = {}
        self._sinks: dict[Key, _Sink] = {}
        self._watched: dict[int, Callable[[], None]] = {}
        self._waker: Waker | None = None

    # What is connected

    def source(
        self,
        stream: int,
        channel: int,
        descriptor: int,
        ended: Callable[[], None],
        ready: Callable[[], bool] = lambda: True,
        files: list[int] | None = None,
    ) -> None:
        """Send data from `descriptor` while it is `ready`; at its end send END and call `ended`.

        `files`: it is a socket; descriptors that come over it are added to this list, and FILE is sent for each.
        """
        self._sources[stream, channel] = _Source(descriptor, ended, ready=ready, files=files)

    def drop_source(self, stream: int, channel: int) -> int | None:
        """Remove a source without calling `ended`; returns its descriptor, if there was one."""
        source = self._sources.pop((stream, channel), None)
        return None if source is None else source.descriptor

    def inject(self, stream: int, channel: int, data: bytes) -> None:
        """Send `data` as if it had been read from a source, whose window has room for it."""
        self._sources[stream, channel].window.sent(len(data))
        self.send(Frame(Kind.DATA, stream, channel, data))

    def redirect(self, stream: int, channel: int, descriptor: int) -> None:
        """Exchange the descriptor of a source and its sink."""
        self._sources[stream, channel].descriptor = descriptor
        self._sinks[stream, channel].descriptor = descriptor

    def sink(self, stream: int, channel: int, descriptor: int, ended: Callable[[], None]) -> None:
        """Write DATA to `descriptor`; after END and the last byte, or when its reader is gone, call `ended`."""
        self._sinks[stream, channel] = _Sink(descriptor, ended)

    def output(self, stream: int, channel: int, output: Output, failed: Callable[[], None]) -> None:
        """Write DATA by `output`, whose thread may block; call `failed` after an error."""
        if self._waker is None:
            self._waker = Waker()
            self.watch(self._waker.reader, self._waker.clear)
        output.changed = self._waker.wake
        self._sinks[stream, channel] = _Sink(output.fd, failed, output=output)

    def give_up(self, stream: int) -> None:
        """Discard all further DATA for the outputs of `stream`."""
        for (number, _), sink in self._sinks.items():
            if number == stream and sink.output is not None:
                sink.output.give_up()
                sink.broken = True

    def close_waker(self) -> None:
        """Close the pipe by which outputs wake the loop."""
        if self._waker is not None:
            self.unwatch(self._waker.reader)
            self._waker.close()
            self._waker = None

    def watch(self, descriptor: int, ready: Callable[[], None]) -> None:
        """Call `ready` whenever `descriptor` can be read."""
        self._watched[descriptor] = ready

    def unwatch(self, descriptor: int) -> None:
        """Stop watching `descriptor`."""
        self._watched.pop(descriptor, None)

    def forget(self, stream: int) -> None:
        """Remove all channels of `stream` without calling their `ended`."""
        for key in [key for key in self._sources if key[0] == stream]:
            del self._sources[key]
        for key in [key for key in self._sinks if key[0] == stream]:
            for _, descriptor in self._sinks.pop(key).files:
                os.close(descriptor)

    def drain(self, stream: int) -> None:
        """Send what the descriptors of `stream` still hold, after its command has ended, and end them."""
        for (number, _), source in self._sources.items():
            if number == stream:
                source.draining = True

    def has_sources(self, stream: int) -> bool:
        """Return whether `stream` still has sources."""
        return any(number == stream for number, _ in self._sources)

    def unwritten(self, stream: int) -> bool:
        """Return whether received DATA of `stream` is still unwritten."""
        return any(key[0] == stream and sink.window.pending for key, sink in self._sinks.items())

    def send(self, frame: Frame) -> None:
        """Queue a frame."""
        self._out += frame.build()

    # One turn

    def step(self, timeout: float | None = None) -> list[Frame]:
        """Wait for I/O, transfer data, and return the frames that are not DATA, END or CREDIT of known channels.

        Raises Disconnected when the port is closed.
        """
        for key, sink in list(self._sinks.items()):
            if sink.output is not None:
                self._feed(key, sink, sink.output)
        poll = select.poll()
        wanted: dict[int, int] = {}

        def want(descriptor: int, events: int) -> None:
            wanted[descriptor] = wanted.get(descriptor, 0) | events

        want(self.port, select.POLLIN | (select.POLLOUT if self._out else 0))
        for source in self._sources.values():
            if source.window.left and len(self._out) < (1 << 20) and source.ready():
                want(source.descriptor, select.POLLIN)
                if source.draining:
                    timeout = 0
        for sink in self._sinks.values():
            if sink.window.pending and not sink.broken and sink.output is None:
                want(sink.descriptor, select.POLLOUT)
        for descriptor in self._watched:
            want(descriptor, select.POLLIN)
        for descriptor, events in wanted.items():
            poll.register(descriptor, events)
        ready = dict(poll.poll(None if timeout is None else max(0, int(timeout * 1000))))

        frames: list[Frame] = []
        if events := ready.get(self.port, 0):
            self._use_port(events, frames)
        for key, sink in list(self._sinks.items()):
            if sink.output is None and sink.window.pending and (sink.broken or ready.get(sink.descriptor, 0)):
                self._write_sink(key, sink)
        for key, source in list(self._sources.items()):
            if not source.window.left or self._sources.get(key) is not source:
                continue
            if ready.get(source.descriptor, 0) & ~select.POLLOUT and source.ready():
                self._read_source(key, source)
            elif source.draining and source.descriptor in wanted:
                self._end_source(key, source)
        for descriptor, callback in list(self._watched.items()):
            if descriptor in ready and descriptor in self._watched:
                callback()
        for key, sink in list(self._sinks.items()):
            if sink.output is not None:
                self._feed(key, sink, sink.output)
        return frames

    def flush(self) -> None:
        """Send all queued frames; blocks until the other end has received them."""
        while self._out:
            select.select([], [self.port], [])
            self._write_port()

    def _write_port(self) -> None:
        try:
            count = os.write(self.port, memoryview(self._out)[: 1 << 16])
        except BlockingIOError:
            return
        except OSError as error:
            raise Disconnected from error
        del self._out[:count]

    def _use_port(self, events: int, frames: list[Frame]) -> None:
        if events & select.POLLOUT and self._out:
            self._write_port()
        if not events & (select.POLLIN | select.POLLHUP | select.POLLERR | select.POLLNVAL):
            return
        try:
            data = os.read(self.port, 1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            raise Disconnected from error
        if not data:
            raise Disconnected
        frames.extend(frame for frame in self._decoder.feed(data) if not self._carry(frame))

    def _carry(self, frame: Frame) -> bool:
        key = frame.stream, frame.channel
        match frame.kind:
            case Kind.DATA if sink := self._sinks.get(key):
                sink.window.received(frame.payload)
                sink.received += len(frame.payload)
            case Kind.FILE if sink := self._sinks.get(key):
                if (opened := open_sent(frame.payload)) is not None:
                    sink.files.append((sink.received, opened))
            case Kind.END if sink := self._sinks.get(key):
                sink.ending = True
                if not sink.window.pending:
                    self._end_sink(key, sink)
            case Kind.CREDIT if source := self._sources.get(key):
                source.window.credited(frame.number)
            case Kind.DATA | Kind.END | Kind.CREDIT | Kind.FILE:
                pass  # for a stream that has ended meanwhile
            case Kind.NUDGE:
                pass
            case _:
                return False
        return True

    def _write_sink(self, key: Key, sink: _Sink) -> None:
        try:
            if sink.broken:
                count = len(sink.window.pending)
            elif sink.files:
                count = _write_with_files(sink)
            else:
                count = os.write(sink.descriptor, memoryview(sink.window.pending)[:_SAFE_WRITE])
        except BlockingIOError:
            return
        except OSError:
            sink.broken = True  # a closed pipe, a full disk
            count = len(sink.window.pending)
            sink.ended()
        sink.written += count
        if credit := sink.window.taken(count):
            self.send(Frame.of_number(Kind.CREDIT, key[0], credit, key[1]))
        if sink.ending and not sink.window.pending:
            self._end_sink(key, sink)

    def _feed(self, key: Key, sink: _Sink, output: Output) -> None:
        """Pass received DATA to outputs, and send credit for what they have written."""
        pending = sink.window.pending
        if output.error is not None and not sink.broken:
            sink.broken = True
            sink.ended()
        if sink.broken:
            count = len(pending)
        else:
            fresh = bytes(pending[sink.handed :])
            output.write(fresh)
            count = output.written - sink.done
            sink.done += count
            sink.handed += len(fresh) - count
        if credit := sink.window.taken(count):
            self.send(Frame.of_number(Kind.CREDIT, key[0], credit, key[1]))
        if sink.ending and not pending:
            self._end_sink(key, sink)

    def _end_sink(self, key: Key, sink: _Sink) -> None:
        self._sinks.pop(key, None)
        if not sink.broken and sink.output is None:
            sink.ended()

    def _read_source(self, key: Key, source: _Source) -> None:
        try:
            if source.files is None:
                data = os.read(source.descriptor, min(CHUNK, source.window.left))
            else:
                data = self._read_with_files(key, source, source.files)
        except BlockingIOError:
            if source.draining:
                self._end_source(key, source)
            return
        except OSError:
            data = b""  # EIO: the last process has closed the terminal
        if not data:
            self._end_source(key, source)
            return
        source.window.sent(len(data))
        self.send(Frame(Kind.DATA, key[0], key[1], data))

    def _read_with_files(self, key: Key, source: _Source, files: list[int]) -> bytes:
        connection = socket.socket(fileno=source.descriptor)
        try:
            data, found, _, _ = socket.recv_fds(connection, min(CHUNK, source.window.left), FILES_LIMIT)
        finally:
            connection.detach()
        for each in found:
            files.append(each)
            self.send(Frame(Kind.FILE, key[0], key[1], describe_sent(each)))
        return data

    def _end_source(self, key: Key, source: _Source) -> None:
        self._sources.pop(key, None)
        self.send(Frame(Kind.END, key[0], key[1]))
        source.ended()


FILES_LIMIT = 4
"""Descriptors taken with one piece of data; the monitor takes no more."""

_REOPENED = os.O_ACCMODE | os.O_NONBLOCK
"""Flags of a descriptor with which its file is opened inside."""


def describe_sent(descriptor: int) -> bytes:
    """Return the payload of FILE for a descriptor: the file's path, to be opened where it is the same file."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL) & _REOPENED
    return json.dumps({"path": os.readlink(f"/proc/self/fd/{descriptor}"), "flags": flags}).encode()


def open_sent(payload: bytes) -> int | None:
    """Open the file of a FILE frame; None if it cannot be opened, or is none. Raises ProtocolError."""
    try:
        file = json.loads(payload)
        path, flags = str(file["path"]), int(file["flags"]) & _REOPENED
    except (ValueError, KeyError, TypeError) as error:
        raise ProtocolError("emulated host: a FILE that names no file") from error
    try:
        return os.open(path, flags | os.O_CLOEXEC) if path.startswith("/") else None
    except (OSError, ValueError):
        return None


def _write_with_files(sink: _Sink) -> int:
    """Write to a socket: up to the byte with which a descriptor goes, or that byte and what follows, with it."""
    (place, descriptor), *rest = sink.files
    if place > sink.written:
        return os.write(sink.descriptor, memoryview(sink.window.pending)[: min(place - sink.written, _SAFE_WRITE)])
    end = rest[0][0] - place if rest and rest[0][0] > place else _SAFE_WRITE
    connection = socket.socket(fileno=sink.descriptor)
    try:
        count = socket.send_fds(connection, [memoryview(sink.window.pending)[: min(end, _SAFE_WRITE)]], [descriptor])
    finally:
        connection.detach()
    sink.files.pop(0)
    os.close(descriptor)
    return count


class Waker:
    """A pipe by which other threads wake the loop; after `close` it does nothing."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._lock = threading.Lock()
        self._closed = False

    def wake(self) -> None:
        """Make the pipe readable. May be called on any thread."""
        with self._lock, contextlib.suppress(BlockingIOError):
            if not self._closed:
                os.write(self._writer, b"x")

    def clear(self) -> None:
        """Read the pipe empty."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.reader, 4096)

    def close(self) -> None:
        """Close both ends."""
        with self._lock:
            self._closed = True
            os.close(self.reader)
            os.close(self._writer)


def window_size(rows: int, columns: int) -> bytes:
    """Return the payload of RESIZE for a terminal."""
    return struct.pack("<HH", min(rows, 0xFFFF), min(columns, 0xFFFF))
