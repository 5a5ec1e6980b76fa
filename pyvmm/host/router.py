"""Carries frames between the clients of a host daemon and the agent of its emulated host.

Every client speaks the agent's own protocol to the daemon, which only renumbers the streams. Flow control is end to
end, so the daemon's queues are bounded by the windows of the channels. One thread, poll(2).

    client A  --START 1-->          --START 7-->
                           daemon                  agent
    client B  --START 1-->          --START 8-->
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct

from pyvmm.host.emulated import EmulatedHost
from pyvmm.host.protocol import Decoder, Frame, Kind, ProtocolError

_LAST = (Kind.EXIT, Kind.REFUSED)


class _Peer:
    """A connection to a client or to the agent: decodes incoming frames, queues outgoing bytes."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.decoder = Decoder()
        self.out = bytearray()
        self.streams: dict[int, int] = {}  # the client's numbers -> the agent's
        os.set_blocking(descriptor, False)

    def read(self) -> list[Frame]:
        """Read the frames that have arrived. Raises EOFError at the end."""
        try:
            data = os.read(self.descriptor, 1 << 16)
        except BlockingIOError:
            return []
        except OSError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        return list(self.decoder.feed(data))

    def write(self) -> None:
        """Send queued bytes. Raises EOFError if the peer is gone."""
        try:
            del self.out[: os.write(self.descriptor, memoryview(self.out)[: 1 << 16])]
        except BlockingIOError:
            pass
        except OSError as error:
            raise EOFError from error


class Router:
    """Carries frames between clients and the agent."""

    def __init__(self, host: EmulatedHost, listener: socket.socket, idle_seconds: float) -> None:
        self._listener = listener
        self._idle_seconds = idle_seconds
        self._agent = _Peer(host.endpoint.port)
        self._clients: dict[int, tuple[socket.socket, _Peer]] = {}
        self._owners: dict[int, tuple[_Peer, int]] = {}  # the agent's numbers -> client, its number
        self._last = 0
        self._ending = False

    def serve(self) -> None:
        """Serve until SIGTERM, the agent's end, or the idle time limit."""
        while not self._ending:
            poll = select.poll()
            poll.register(self._listener, select.POLLIN)
            for peer in (self._agent, *(peer for _, peer in self._clients.values())):
                poll.register(peer.descriptor, select.POLLIN | (select.POLLOUT if peer.out else 0))
            ready = poll.poll(None if self._clients else int(self._idle_seconds * 1000))
            if not ready and not self._clients:
                return
            for descriptor, events in ready:
                if descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor == self._agent.descriptor:
                    try:
                        self._serve_agent(events)
                    except EOFError:
                        return
                elif descriptor in self._clients:
                    try:
                        self._serve_client(self._clients[descriptor][1], events)
                    except (EOFError, ProtocolError):
                        self._lose(descriptor)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            *_, user, _ = struct.unpack(
                "iii", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iii"))
            )
            if user != os.getuid():
                connection.close()
                return
            self._clients[connection.fileno()] = connection, _Peer(connection.fileno())

    def _serve_client(self, client: _Peer, events: int) -> None:
        if events & select.POLLOUT:
            client.write()
        if not events & ~select.POLLOUT:
            return
        for frame in client.read():
            if frame.kind is Kind.POWEROFF:
                self._ending = True
                return
            if frame.kind is Kind.NUDGE:
                self._agent.out += frame.build()
                continue
            if frame.kind in (Kind.START, Kind.CONNECT):
                self._last += 1
                client.streams[frame.stream] = self._last
                self._owners[self._last] = client, frame.stream
            if (number := client.streams.get(frame.stream)) is not None:
                frame.stream = number
                self._agent.out += frame.build()
                if frame.kind is Kind.CLOSE:
                    self._forget(number)

    def _serve_agent(self, events: int) -> None:
        if events & select.POLLOUT:
            self._agent.write()
        if not events & ~select.POLLOUT:
            return
        for frame in self._agent.read():
            owner = self._owners.get(frame.stream)
            if owner is None:
                continue
            client, frame.stream = owner[0], owner[1]
            client.out += frame.build()
            if frame.kind in _LAST:
                self._forget(client.streams[frame.stream])

    def _forget(self, number: int) -> None:
        client, theirs = self._owners.pop(number)
        client.streams.pop(theirs, None)

    def _lose(self, descriptor: int) -> None:
        connection, client = self._clients.pop(descriptor)
        connection.close()
        for number in list(client.streams.values()):
            self._agent.out += Frame(Kind.CLOSE, number).build()
            self._forget(number)
