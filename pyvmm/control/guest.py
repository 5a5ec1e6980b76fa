"""QMP command `x-execute`: runs a shell command in the guest. Not in QEMU, whose guest agent does that.

Source: QEMU qga/qapi-schema.json, guest-exec, for the form of the output.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from pyvmm.control.errors import ControlError
from pyvmm.control.protocol import DeferredReply
from pyvmm.control.table import Argument, MonitoredMachine, command
from pyvmm.errors import HostError
from pyvmm.qapi import ExecuteReply

DEFAULT_SECONDS = 60
LONGEST = 24 * 3600


@command("x-execute", command=str, timeout=Argument(int, optional=True))
def execute(machine: MonitoredMachine, command: str, timeout: int = DEFAULT_SECONDS) -> DeferredReply[ExecuteReply]:
    """Run `command` in the guest's shell, for `timeout` seconds at most; a guest that still boots is waited for.

    The reply comes when it has ended: `status` (124 after the timeout), `stdout` and `stderr` in base64, and
    `truncated` if output was dropped. This client's next commands wait meanwhile, as they would for any command.
    """
    if not command:
        raise ControlError("Parameter 'command' expects a shell command")
    if not 0 < timeout <= LONGEST:
        raise ControlError(f"Parameter 'timeout' expects 1 to {LONGEST} seconds")
    deferred = DeferredReply[ExecuteReply]()

    def done(result: dict[str, Any] | HostError) -> None:
        if isinstance(result, HostError):
            deferred.refuse(ControlError(str(result)))
        else:
            out, err = (b64encode(result[key]).decode() for key in ("stdout", "stderr"))
            deferred.resolve(
                {"status": result["status"], "stdout": out, "stderr": err, "truncated": result["truncated"]}
            )

    machine.guest.execute(command, timeout, done)
    return deferred
