"""A QMP session as a state machine: bytes in, replies out, no socket.

Source: QEMU docs/interop/qmp-spec.rst; error texts as in its monitor/qmp.c, qapi/qmp-dispatch.c and qapi visitors.

    client                                server
      |  <------------- greeting ----------  |   Negotiating
      |  -- {"execute": "qmp_capabilities"}  |
      |  <------------ {"return": {}} -----  |   Commanding: commands, and events from here on
      |  -- {"execute": "stop", "id": 7} ->  |
      |  <-- {"event": "STOP", ...} -------  |
      |  <-- {"return": {}, "id": 7} ------  |

The input is a stream of JSON objects (`json_stream`); line ends have no meaning. The client is untrusted, so
everything that it can make grow has a limit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from pyvmm import __version__
from pyvmm.control.errors import CommandNotFound, ControlError
from pyvmm.control.json_stream import Malformed, Reader, Value
from pyvmm.qapi import VersionInfo

MALFORMED_LIMIT = 32
"""Malformed messages in a row after which the peer is taken not to speak QMP."""

QEMU_VERSION = (10, 0, 0)
"""Version of the QEMU whose names, arguments and errors are implemented: clients derive features from it."""

VERSION: VersionInfo = {
    "qemu": {"major": QEMU_VERSION[0], "minor": QEMU_VERSION[1], "micro": QEMU_VERSION[2]},
    "package": f" (pyvmm {__version__})",
}

Dispatch = Callable[[str, dict[str, Any]], Any]
"""Runs a command by name with its arguments and returns the reply, or a DeferredReply; raises ControlError."""


T = TypeVar("T")


class DeferredReply(Generic[T]):
    """A deferred reply (a future). Call `resolve` or `refuse` once; `then` passes the outcome on."""

    def __init__(self) -> None:
        self._result: tuple[Any, ControlError | None] | None = None
        self._callback: Callable[[Any, ControlError | None], None] | None = None

    def resolve(self, reply: T) -> None:
        self._resolve(reply, None)

    def refuse(self, error: ControlError) -> None:
        self._resolve(None, error)

    def then(self, callback: Callable[[Any, ControlError | None], None]) -> None:
        """Register `callback(reply, error)` for the outcome; called at once if that is known already."""
        self._callback = callback
        if self._result is not None:
            callback(*self._result)

    def _resolve(self, reply: Any, error: ControlError | None) -> None:
        assert self._result is None
        self._result = reply, error
        if self._callback is not None:
            self._callback(reply, error)


class QmpSession:
    """Negotiating --qmp_capabilities--> Commanding. One client; `dispatch` runs the commands."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._input = Reader()
        self._malformed = 0
        self.commanding = False
        self.waiting = False  # a command's reply is pending; the next command waits for it
        self.not_qmp = False  # the peer does not speak JSON: drop it

    def greeting(self) -> bytes:
        """Return the greeting. It offers no capabilities: no command is slow enough to need out-of-band ones."""
        return encode({"QMP": {"version": VERSION, "capabilities": []}})

    def feed(self, data: bytes) -> None:
        """Buffer input; call `step` until it returns False to answer it."""
        self._input.feed(data)

    def step(self, answered: Callable[[bytes], None]) -> bool:
        """Process one message of the input; False if none is complete, or the last reply is still pending.

        `answered` is called with the reply, within this call or later, for a slow command.
        """
        if self.waiting:
            return False
        match self._input.next_value():
            case None:
                return False
            case Malformed(reason):
                self._malformed += 1
                self.not_qmp = self._malformed >= MALFORMED_LIMIT
                answered(encode(_error(ControlError(reason))))
            case Value(request):
                self._malformed = 0
                self._answer(request, lambda message: answered(encode(message)))
        return True

    def _answer(self, request: Any, answered: Callable[[dict[str, Any]], None]) -> None:
        tag = {"id": request["id"]} if isinstance(request, dict) and "id" in request else {}
        try:
            name, arguments = check_request(request)
            reply = self._execute(name, arguments)
        except ControlError as error:
            answered(_error(error) | tag)
            return
        if not isinstance(reply, DeferredReply):
            answered({"return": reply} | tag)
            return

        def settled(reply: Any, error: ControlError | None) -> None:
            self.waiting = False
            answered(({"return": reply} if error is None else _error(error)) | tag)

        self.waiting = True
        reply.then(settled)

    def _execute(self, name: str, arguments: dict[str, Any]) -> Any:
        if name == "qmp_capabilities":
            if self.commanding:
                raise CommandNotFound("Capabilities negotiation is already complete, command ignored")
            _check_capabilities(arguments)
            self.commanding = True
            return {}
        if not self.commanding:
            raise CommandNotFound("Expecting capabilities negotiation with 'qmp_capabilities'")
        return self._dispatch(name, arguments)


def check_request(request: Any) -> tuple[str, dict[str, Any]]:
    """Return name and arguments of a request. Raises ControlError with QEMU's texts."""
    if not isinstance(request, dict):
        raise ControlError("QMP input must be a JSON object")
    for key, value in request.items():
        if key == "execute":
            if not isinstance(value, str):
                raise ControlError("QMP input member 'execute' must be a string")
        elif key == "arguments":
            if not isinstance(value, dict):
                raise ControlError("QMP input member 'arguments' must be an object")
        elif key != "id":
            raise ControlError(f"QMP input member '{key}' is unexpected")
    if "execute" not in request:
        raise ControlError("QMP input lacks member 'execute'")
    return request["execute"], request.get("arguments", {})


def _check_capabilities(arguments: dict[str, Any]) -> None:
    """Refuse every capability in `enable`: the greeting offered none."""
    for key, value in arguments.items():
        if key != "enable":
            raise ControlError(f"Parameter '{key}' is unexpected")
        if not isinstance(value, list):
            raise ControlError("Invalid parameter type for 'enable', expected: array")
        for index, capability in enumerate(value):
            if not isinstance(capability, str):
                raise ControlError(f"Invalid parameter type for 'enable[{index}]', expected: string")
            if capability == "oob":
                raise ControlError("Capability oob not available")
            raise ControlError(f"Parameter 'enable[{index}]' does not accept value '{capability}'")


def _error(error: ControlError) -> dict[str, Any]:
    return {"error": {"class": error.qmp_class, "desc": str(error)}}


def encode(message: dict[str, Any]) -> bytes:
    """Encode a message as QMP sends it: a line of ASCII."""
    return json.dumps(message, allow_nan=False).encode("ascii") + b"\r\n"


def encode_event(name: str, data: Mapping[str, Any], time: float) -> bytes:
    """Encode an event with wall clock `time`; `data` is absent where there is none, as in QEMU."""
    message: dict[str, Any] = {"event": name}
    if data:
        message["data"] = data
    microseconds = int(time * 1_000_000)
    message["timestamp"] = {"seconds": microseconds // 1_000_000, "microseconds": microseconds % 1_000_000}
    return encode(message)
