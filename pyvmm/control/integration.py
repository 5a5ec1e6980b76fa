"""QMP commands for the guest's integration services: values, freezing, keys.

Source: QEMU qapi/ui.json for send-key. The others are pyvmm's own.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Sequence
from typing import Any

from pyvmm.control.errors import ControlError
from pyvmm.control.protocol import DeferredReply
from pyvmm.control.table import Argument, MonitoredMachine, command
from pyvmm.qapi import CardAddresses, Empty, KvpInfo

FREEZE_SECONDS = 60
HOLD_MILLISECONDS, LONGEST_HOLD = 100, 60_000
NUMBER_LIMIT = 0xFF
"""The largest make code: seven bits, and the eighth for the prefix E0, as in QEMU."""


@command("x-query-kvp")
def query_kvp(machine: MonitoredMachine) -> KvpInfo:
    """Return the values that guest and host have exchanged."""
    return machine.integration.kvp_info()


@command("x-kvp-set", key=str, value=Argument(str, optional=True))
def kvp_set(machine: MonitoredMachine, key: str, value: str | None = None) -> Empty:
    """Set a value in the guest, now or when its daemon runs; without `value` delete it."""
    machine.integration.kvp_set(key, value)
    return {}


@command("x-kvp-addresses", card=str)
def kvp_addresses(machine: MonitoredMachine, card: str) -> DeferredReply[CardAddresses]:
    """Return the addresses of a network card as the guest's daemon tells them."""
    deferred = DeferredReply[CardAddresses]()

    def done(found: CardAddresses | str) -> None:
        if isinstance(found, str):
            deferred.refuse(ControlError(found))
        else:
            deferred.resolve(found)

    machine.integration.addresses(card, done)
    return deferred


@command(
    "x-kvp-set-addresses",
    card=str,
    dhcp=Argument(bool, optional=True),
    addresses=Argument(list[str], optional=True),
    gateways=Argument(list[str], optional=True),
    dns=Argument(list[str], optional=True),
)
def kvp_set_addresses(
    machine: MonitoredMachine,
    card: str,
    dhcp: bool = False,
    addresses: Sequence[str] = (),
    gateways: Sequence[str] = (),
    dns: Sequence[str] = (),
) -> DeferredReply[Empty]:
    """Have the guest's daemon set the addresses (`10.0.2.20/24`) of a network card; the reply is its answer."""
    deferred, done = _deferred()
    wanted: CardAddresses = {
        "card": card,
        "dhcp": dhcp,
        "addresses": list(addresses),
        "gateways": list(gateways),
        "dns": list(dns),
    }
    machine.integration.set_addresses(card, wanted, done)
    return deferred


@command("x-vss-freeze", seconds=Argument(int, optional=True))
def vss_freeze(machine: MonitoredMachine, seconds: int = FREEZE_SECONDS) -> DeferredReply[Empty]:
    """Freeze the guest's file systems for `seconds` at most. The reply comes when they are frozen."""
    deferred, done = _deferred()
    machine.integration.freeze(seconds, done)
    return deferred


@command("x-vss-thaw")
def vss_thaw(machine: MonitoredMachine) -> DeferredReply[Empty]:
    """Thaw the guest's file systems. The reply comes when they are."""
    deferred, done = _deferred()
    machine.integration.thaw(done)
    return deferred


@command(
    "x-file-start",
    folder=str,
    file=str,
    size=int,
    overwrite=Argument(bool, optional=True),
    create_path=Argument(bool, optional=True),
)
def file_start(
    machine: MonitoredMachine, folder: str, file: str, size: int, overwrite: bool = False, create_path: bool = False
) -> DeferredReply[Empty]:
    """Begin a file of `size` bytes in the guest, one at a time. The reply comes with the guest's answer."""
    if size < 0:
        raise ControlError("Parameter 'size' expects a size")
    deferred, done = _deferred()
    machine.integration.file_start(folder, file, size, overwrite=overwrite, create=create_path, done=done)
    return deferred


@command("x-file-write", data=str)
def file_write(machine: MonitoredMachine, data: str) -> DeferredReply[Empty]:
    """Write the file's next bytes, in base64, 32 KiB at most."""
    try:
        decoded = b64decode(data, validate=True)
    except ValueError:
        raise ControlError("Parameter 'data' expects base64") from None
    deferred, done = _deferred()
    machine.integration.file_write(decoded, done)
    return deferred


@command("x-file-end", complete=Argument(bool, optional=True))
def file_end(machine: MonitoredMachine, complete: bool = True) -> DeferredReply[Empty]:
    """End the file, or with `complete` false give it up."""
    deferred, done = _deferred()
    machine.integration.file_end(complete, done)
    return deferred


def _deferred() -> tuple[DeferredReply[Empty], Any]:
    deferred = DeferredReply[Empty]()

    def done(reason: str) -> None:
        if reason:
            deferred.refuse(ControlError(reason))
        else:
            deferred.resolve({})

    return deferred, done


@command("send-key", keys=list[dict[str, Any]], hold_time=Argument(int, optional=True))
def send_key(machine: MonitoredMachine, keys: list[Any], hold_time: int = HOLD_MILLISECONDS) -> Empty:
    """Press keys together: `{"type": "qcode", "data": "ctrl"}`, or "number" with a make code."""
    if not 0 < hold_time <= LONGEST_HOLD:
        raise ControlError(f"Parameter 'hold-time' expects 1 to {LONGEST_HOLD} milliseconds")
    names: list[str | int] = []
    for each in keys:
        kind, data = (each.get("type"), each.get("data")) if isinstance(each, dict) else (None, None)
        if kind == "qcode" and isinstance(data, str):
            names.append(data)
            continue
        if kind != "number" or type(data) is not int or not 0 < data <= NUMBER_LIMIT:
            raise ControlError("Parameter 'keys' expects objects with 'type' qcode or number, and 'data'")
        names.append(data)
    machine.integration.press(names, hold_time / 1000)
    return {}
