"""The process that serves a shared folder: connections of the guest, one after the other or several at once.

machine --- port u32 --> server: makes a pair of sockets, keeps one
        <-- 1 byte, the other one
"""

from __future__ import annotations

import os
import resource
import select
import socket
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from pyvmm.errors import ConfigError, GuestProtocolError
from pyvmm.loop import Loop
from pyvmm.sandbox import capabilities, landlock
from pyvmm.sandbox.helper import CONNECTED, REFUSED, Helper, enter_child
from pyvmm.sandbox.landlock import Access
from pyvmm.share import protocol as p
from pyvmm.share.folder import Folder
from pyvmm.share.operations import HANDLES_LIMIT, Operations
from pyvmm.share.protocol import Owners, Request
from pyvmm.share.spec import Share

CONNECTIONS_LIMIT = 8
"""Limit of connections: a guest has one, and those of kernels before it end with them."""

CHUNK = 256 << 10
OUTPUT_LIMIT = 1 << 20
"""Bytes of replies waiting at which no more requests are handled."""

DESCRIPTORS = HANDLES_LIMIT + 256


class ShareServer(Helper):
    """The machine's end of a share's server. Forks: make it before guest memory and threads exist.

    Raises ConfigError if the folder cannot be opened.
    """

    def __init__(self, share: Share, loop: Loop) -> None:
        try:
            root = os.open(share.folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"--share {share.folder}: {error.strerror}") from error
        try:
            super().__init__(loop, lambda machine: _serve(machine, root, share))
        finally:
            os.close(root)


def _serve(machine: socket.socket, root: int, share: Share) -> NoReturn:
    """The child: serve until the machine's end is closed."""
    try:
        own, root = enter_child(machine, root)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < DESCRIPTORS:
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (min(DESCRIPTORS, hard), hard))
        os.umask(0)  # the guest's has been applied
        confine(share.folder, read_only=share.read_only)
        Server(own, root, read_only=share.read_only).run()
    finally:
        os._exit(0)


def confine(folder: Path, *, read_only: bool) -> None:
    """Leave this process nothing but `folder`, as far as this kernel can."""
    capabilities.forbid_new_privileges()
    version = landlock.abi()
    if version:
        access = Access.READ_FILE | Access.READ_DIR
        if not read_only:
            made = Access.MAKE_DIR | Access.MAKE_REG | Access.MAKE_SOCK | Access.MAKE_FIFO | Access.MAKE_SYM
            access |= (
                Access.WRITE_FILE | Access.REMOVE_DIR | Access.REMOVE_FILE | made | Access.REFER | Access.TRUNCATE
            )
        with landlock.Ruleset(version) as rules:
            rules.allow(folder, access)
            rules.enforce()
    kept = (capabilities.DAC_OVERRIDE, capabilities.DAC_READ_SEARCH, capabilities.FOWNER)
    capabilities.drop_all(kept)  # root's files are root's to share


class Server:
    """Serves connections that `machine` asks for, in this process."""

    def __init__(self, machine: socket.socket, root: int, *, read_only: bool) -> None:
        self._machine = machine
        self._root = root
        self._read_only = read_only
        self._owners = Owners(os.geteuid(), os.getegid())
        self._poll = select.poll()
        self._connections: dict[int, _Connection] = {}

    def run(self) -> None:
        """Serve until the machine's end is closed."""
        self._poll.register(self._machine, select.POLLIN)
        while True:
            for descriptor, events in self._poll.poll():
                if descriptor == self._machine.fileno():
                    if not self._asked():
                        return
                    continue
                connection = self._connections[descriptor]
                try:
                    wanted = connection.serve(events)
                except (OSError, GuestProtocolError):
                    self._poll.unregister(descriptor)
                    del self._connections[descriptor]
                    connection.close()
                else:
                    self._poll.modify(descriptor, wanted)

    def _asked(self) -> bool:
        """Make a connection for the machine; False: it has ended."""
        if not self._machine.recv(4):
            return False
        if len(self._connections) >= CONNECTIONS_LIMIT:
            self._machine.send(REFUSED)
            return True
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._machine, [CONNECTED], [theirs.fileno()])
        operations = Operations(Folder(self._root), self._owners, read_only=self._read_only)
        self._connections[ours.fileno()] = _Connection(ours, operations)
        self._poll.register(ours, select.POLLIN)
        return True


class _Connection:
    """One guest's connection."""

    def __init__(self, connection: socket.socket, operations: Operations) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._operations = operations
        self._input = bytearray()
        self._output = bytearray()

    def serve(self, events: int) -> int:
        """Read, handle requests, write; return the events to wait for. Raises OSError, GuestProtocolError at the
        end.
        """
        if events & select.POLLOUT:
            self._flush()
        if events & ~select.POLLOUT and len(self._output) < OUTPUT_LIMIT:
            data = self._socket.recv(CHUNK)
            if not data:
                raise ConnectionResetError
            self._input += data
        while self._handle():
            self._flush()
        self._flush()
        reading = select.POLLIN if len(self._output) < OUTPUT_LIMIT else 0
        return reading | (select.POLLOUT if self._output else 0)

    def _handle(self) -> bool:
        """Handle the requests that are there, as long as replies do not pile up. Return whether there were any."""
        position = 0
        while len(self._input) - position >= p.HEADER.size and len(self._output) < OUTPUT_LIMIT:
            length, op, unique, node = p.parse_header(self._input[position : position + p.HEADER.size])
            if len(self._input) - position < length:
                break
            body = bytes(self._input[position + p.HEADER.size : position + length])
            position += length
            answer = self._operations.handle(Request(op, unique, node, body))
            if answer is not None:
                self._output += answer
        del self._input[:position]
        return position > 0

    def _flush(self) -> None:
        while self._output:
            try:
                sent = self._socket.send(self._output)
            except BlockingIOError:
                return
            del self._output[:sent]

    def close(self) -> None:
        """Close the connection and what the guest has open."""
        self._operations.close()
        self._socket.close()
