"""A synchronous QMP client, for the command line, the API and the emulated host (which has a QEMU to control).

with Client(path) as vm:
    vm.execute("balloon", {"value": 256 << 20})
    name, data = vm.wait_event({"BALLOON_CHANGE"}, timeout=10)
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import deque
from collections.abc import Collection, Mapping
from typing import Any

from pyvmm.errors import HostError
from pyvmm.seconds import check_seconds

REPLY_LIMIT = 16 << 20
"""Largest reply in bytes; guards against a peer that does not speak QMP."""


class Disconnected(HostError):
    """The machine ended, or closed the connection."""


class Starting(Disconnected):
    """The machine is registered but its monitor does not answer yet."""


class TimedOut(HostError):
    """The reply, or the awaited event, did not arrive within the timeout."""


class Refused(HostError):
    """The machine answered with an error. `qmp_class` is its QMP error class, for instance DeviceNotActive."""

    def __init__(self, qmp_class: str, text: str) -> None:
        super().__init__(text)
        self.qmp_class = qmp_class


class Client:
    """A negotiated QMP connection to the monitor at `path`. `timeout` bounds each command, in seconds.

    `connection` is an already connected socket; `path` then only names the server in error texts.
    """

    def __init__(
        self, path: str | os.PathLike[str], timeout: float = 10.0, connection: socket.socket | None = None
    ) -> None:
        self.path = os.fspath(path)
        self.timeout = check_seconds(timeout)
        self.events: deque[tuple[str, dict[str, Any]]] = deque()
        self._input = bytearray()
        self._socket = self._connect() if connection is None else connection
        try:
            greeting = self._receive(time.monotonic() + timeout)
            if "QMP" not in greeting:
                raise HostError(f"{self.path} does not speak QMP")
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def _connect(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.settimeout(self.timeout)
        try:
            made.connect(self.path)
        except (TimeoutError, BlockingIOError) as error:  # the latter: the listen queue is full
            made.close()
            raise TimedOut(f"{self.path}: the VM does not accept a connection") from error
        except ValueError as error:
            made.close()
            raise HostError(f"{self.path!r}: no socket can have such a name") from error
        except OSError as error:
            made.close()
            if isinstance(error, (ConnectionRefusedError, FileNotFoundError)):
                raise Disconnected(f"no VM listens at {self.path}") from error
            raise HostError(f"{self.path}: {error.strerror or error}") from error
        return made

    def execute(self, name: str, arguments: Mapping[str, Any] | None = None, *, file: int | None = None) -> Any:
        """Run a command and return its reply; `file` is a descriptor sent with it. Raises Refused, Disconnected or
        TimedOut.
        """
        request: dict[str, Any] = {"execute": name}
        if arguments:
            request["arguments"] = arguments
        deadline = time.monotonic() + self.timeout
        try:
            self._socket.settimeout(self.timeout)
            line = json.dumps(request).encode() + b"\n"
            if file is not None:
                line = line[socket.send_fds(self._socket, [line], [file]) :]
            self._socket.sendall(line)
        except TimeoutError as error:
            raise TimedOut(f"the VM did not take {name} in {self.timeout:g} s") from error
        except OSError as error:
            raise Disconnected("the VM ended") from error
        while True:
            try:
                message = self._receive(deadline)
            except TimedOut as error:
                raise TimedOut(f"the VM did not answer {name} in {self.timeout:g} s") from error
            if "event" in message:
                self.events.append((message["event"], message.get("data", {})))
            elif "error" in message:
                raise Refused(message["error"]["class"], message["error"]["desc"])
            elif "return" in message:
                return message["return"]

    def wait_event(self, names: Collection[str], timeout: float | None = None) -> tuple[str, dict[str, Any]]:
        """Return the next event named in `names`, earlier unread ones included; drop others. Raises TimedOut."""
        deadline = time.monotonic() + (self.timeout if timeout is None else check_seconds(timeout))
        while True:
            while self.events:
                name, data = self.events.popleft()
                if name in names:
                    return name, data
            message = self._receive(deadline)
            if "event" in message:
                self.events.append((message["event"], message.get("data", {})))

    def _receive(self, deadline: float) -> dict[str, Any]:
        while (end := self._input.find(b"\n")) < 0:
            if len(self._input) > REPLY_LIMIT:
                raise HostError(f"{self.path} sent a reply without an end")
            self._input += self._read(deadline)
        line = bytes(self._input[:end])
        del self._input[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not _is_message(message):
            raise HostError(f"{self.path} does not speak QMP")
        found: dict[str, Any] = message
        return found

    def _read(self, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            data = self._socket.recv(65536)
        except TimeoutError as error:
            raise TimedOut("the VM did not answer in time") from error
        except OSError as error:
            raise Disconnected("the VM ended") from error
        if not data:
            raise Disconnected("the VM ended")
        return data

    def detach(self) -> tuple[socket.socket, bytes]:
        """Return the connection and what was read beyond the last reply; this client is closed then."""
        found, self._socket = self._socket, socket.socket()
        self._socket.close()
        return found, bytes(self._input)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_message(message: object) -> bool:
    """Return whether the value has the form of a QMP message from a server."""
    if not isinstance(message, dict):
        return False
    error = message.get("error", {"class": "", "desc": ""})
    return (
        isinstance(error, dict)
        and isinstance(error.get("class"), str)
        and isinstance(error.get("desc"), str)
        and isinstance(message.get("event", ""), str)
        and isinstance(message.get("data", {}), dict)
    )
