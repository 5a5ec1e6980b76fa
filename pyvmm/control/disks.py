"""QMP commands for disks, and descriptors of files that clients send.

Source: QEMU qapi/block-core.json, qapi/misc.json; monitor/fds.c for the messages about descriptors.

A confined machine cannot open files, so a client opens a new disk's file, locks it, and sends the descriptor:

    client                                                           server
      getfd {"fdname": "d"}, with the descriptor (SCM_RIGHTS)   ->
      device_add {"driver": "scsi-hd", "file": PATH, "fd": "d", "id": "data"}   ->
                                                                <-  the guest finds it

For other formats than raw the client starts QEMU's storage daemon and sends its connections instead, `x-nbd`
{"connections": [names], "line": name, "size": bytes, "flags": of the export}: see `pyvmm.disks.storage_daemon`.
"""

from __future__ import annotations

import os
import socket
import stat
from functools import partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from pyvmm.control.errors import ControlError
from pyvmm.control.table import Argument, MonitoredMachine, command
from pyvmm.disks.nbd import Connection
from pyvmm.disks.open import adopt_image, open_image
from pyvmm.disks.spec import DiskSpec, check_id, parse_disk
from pyvmm.disks.storage_daemon import Served
from pyvmm.errors import ConfigError
from pyvmm.qapi import BlockInfo, BlockStats, Empty

NAMED_LIMIT = 16
"""Most descriptors that a client may have named and not used."""


class Sender(Protocol):
    """A client that may have sent a descriptor."""

    def take_file(self) -> int | None: ...


class _Named(dict[str, int]):
    """Descriptors that a client named; closed with it."""

    def __del__(self) -> None:
        for each in self.values():
            os.close(each)


_named: WeakKeyDictionary[Any, _Named] = WeakKeyDictionary()


@command("getfd", of_client=True, fdname=str)
def getfd(machine: MonitoredMachine, client: Sender | None, fdname: str) -> Empty:
    """Name the descriptor that came with this command."""
    fd = client.take_file() if client is not None else None
    if fd is None:
        raise ControlError("No file descriptor supplied via SCM_RIGHTS")
    named = _named.setdefault(client, _Named())
    if not fdname or fdname[0].isdigit() or (fdname not in named and len(named) >= NAMED_LIMIT):
        os.close(fd)
        raise ControlError("Parameter 'fdname' expects a name not starting with a digit")
    if fdname in named:
        os.close(named[fdname])
    named[fdname] = fd
    return {}


@command("closefd", of_client=True, fdname=str)
def closefd(machine: MonitoredMachine, client: object, fdname: str) -> Empty:
    """Close a named descriptor."""
    os.close(_take(client, fdname))
    return {}


def _take(client: object, name: str) -> int:
    named = _named.get(client)
    if named is None or name not in named:
        raise ControlError(f"File descriptor named '{name}' not found")
    return named.pop(name)


def add_disk(machine: MonitoredMachine, client: object, more: dict[str, Any], id: str) -> None:
    """Run device_add for a disk: `file`, `fd` or `x-nbd` if sent; `read-only`, `format`, `serial`, `werror` ..."""
    spec = _disk_of(more, id)
    if "x-nbd" in more:
        served = _served(client, more["x-nbd"])
        if spec.format in (None, "raw"):
            served.drop()
            raise ControlError("scsi-hd: x-nbd needs a format other than raw")
        try:
            machine.disks().add(spec, served.image)
        except BaseException:
            served.drop()
            raise
    elif "fd" in more:
        fd = _take(client, more["fd"])
        try:
            machine.disks().add(spec, partial(adopt_image, fd))
        except BaseException:
            os.close(fd)
            raise
    else:
        machine.disks().add(spec, open_image)


def _served(client: object, given: Any) -> Served:
    """Return what a client has opened of a storage daemon. Raises ControlError."""
    kinds: dict[str, Any] = {"connections": list[str], "line": str, "size": int, "flags": int}
    if not isinstance(given, dict) or set(given) != set(kinds):
        raise ControlError(f"scsi-hd: x-nbd has {', '.join(kinds)}")
    for name, value in given.items():
        Argument(kinds[name]).check(name, value)
    names: list[Any] = [*given["connections"], given["line"]]
    size, flags = given["size"], given["flags"]
    if not 2 <= len(names) <= NAMED_LIMIT or not all(isinstance(each, str) for each in names) or size <= 0:
        raise ControlError("scsi-hd: x-nbd has no connection, or no size")
    sockets: list[socket.socket] = []
    try:
        for each in names:
            sockets.append(_take_socket(client, each))
    except BaseException:
        for made in sockets:
            made.close()
        raise
    return Served([Connection.shaken(each, size, flags) for each in sockets[:-1]], sockets[-1])


def _take_socket(client: object, name: str) -> socket.socket:
    fd = _take(client, name)
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        os.close(fd)
        raise ControlError(f"File descriptor named '{name}' is no socket")
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)


def _disk_of(more: dict[str, Any], id: str) -> DiskSpec:
    """Return the disk. Raises ControlError, ConfigError."""
    kinds = {"file": str, "fd": str, "read-only": bool, "format": str, "serial": str, "werror": str, "rerror": str}
    for name, value in more.items():
        if name == "x-nbd":
            continue  # _served checks it
        if name not in kinds:
            raise ControlError(f"Property 'scsi-hd.{name}' not found")
        Argument(kinds[name]).check(name, value)
    if "file" not in more:
        raise ControlError("scsi-hd: Parameter 'file' is missing")
    if id:
        check_id(id)
    words = [str(more["file"]).replace(",", ",,")]
    words += ["ro"] if more.get("read-only") else []
    words += [f"{name}={more[name]}" for name in ("format", "serial", "werror", "rerror") if name in more]
    words += [f"id={id}"] if id else []
    if any("," in word for word in words[1:]):
        raise ConfigError("scsi-hd: a comma in a property")
    return parse_disk(",".join(words))


@command("query-block")
def query_block(machine: MonitoredMachine) -> list[BlockInfo]:
    """Return the machine's disks: image, format, size, id, state."""
    return machine.disks().info()


@command("query-blockstats")
def query_blockstats(machine: MonitoredMachine) -> list[BlockStats]:
    """Return the disks' counters: bytes and requests read, written, flushed, discarded."""
    return machine.disks().statistics()


@command("block_resize", device=Argument(str, optional=True), node_name=Argument(str, optional=True), size=int)
def block_resize(
    machine: MonitoredMachine, size: int, device: str | None = None, node_name: str | None = None
) -> Empty:
    """Change the size of a disk, and tell the guest."""
    if (device is None) == (node_name is None):
        raise ControlError("Need exactly one of 'device' and 'node-name'")
    machine.disks().resize(device or node_name or "", size)
    return {}
