"""A fake machine that records the calls it gets, and a loop in a thread to serve its monitor from."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pyvmm.control.server import ControlServer
from pyvmm.cover_sites import pack_hits
from pyvmm.disks.image import Image
from pyvmm.disks.open import open_image
from pyvmm.disks.spec import DiskSpec
from pyvmm.errors import ConfigError, HostError, NotActiveError, NotFoundError, PyvmmError
from pyvmm.images.session_program import session_program
from pyvmm.loop import Loop
from pyvmm.session_protocol import PORT

MIB = 1 << 20
MAC = "52:54:00:12:34:56"


class FakeIntegration:
    """The guest's integration services: what is asked goes to `calls`; `reason` is why freeze and thaw fail."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls
        self.external: dict[str, str] = {}
        self.ready = True
        self.reason = ""

    def kvp_info(self) -> dict[str, Any]:
        auto = {"FullyQualifiedDomainName": "web.example"} if self.ready else {}
        refused = {"bad": "0x80004005"} if "bad" in self.external else {}
        return {"ready": self.ready, "auto": auto, "guest": {}, "external": self.external, "refused": refused}

    def kvp_set(self, key: str, value: str | None) -> None:
        if value is None:
            if key not in self.external:
                raise ConfigError(f"no value {key!r} was set")
            del self.external[key]
        else:
            self.external[key] = value

    def addresses(self, card: str, done: Callable[[Any], object]) -> None:
        found = {"card": card, "dhcp": True, "addresses": ["10.0.2.15/24"], "gateways": ["10.0.2.2"], "dns": []}
        done(self.reason or found)

    def set_addresses(self, card: str, wanted: Any, done: Callable[[str], object]) -> None:
        self.calls.append(f"addresses {card} {wanted}")
        done(self.reason)

    def facts(self) -> dict[str, Any] | None:
        return (
            {"name": "web.example", "os": "Debian 12", "addresses": ["10.0.2.15", "fe80::1"]} if self.ready else None
        )

    def freeze(self, seconds: float, done: Callable[[str], object]) -> None:
        self.calls.append(f"freeze {seconds}")
        done(self.reason)

    def thaw(self, done: Callable[[str], object]) -> None:
        self.calls.append("thaw")
        done(self.reason)

    def file_start(
        self, folder: str, name: str, size: int, *, overwrite: bool, create: bool, done: Callable[[str], object]
    ) -> None:
        self.calls.append(f"file {folder} {name} {size} {overwrite} {create}")
        done(self.reason)

    def file_write(self, data: bytes, done: Callable[[str], object]) -> None:
        self.calls.append(f"write {len(data)}")
        done("the guest's disk is full" if data.startswith(b"full") else "")

    def file_end(self, complete: bool, done: Callable[[str], object]) -> None:
        self.calls.append("end" if complete else "cancel")
        done("")

    def press(self, names: Sequence[str | int], hold: float) -> None:
        self.calls.append(f"press {names} {hold}")


class FakeDisks:
    """`HotDisks`: disks are rows of query-block, whose files are closed at once."""

    def __init__(self, machine: FakeMachine) -> None:
        self.machine = machine

    def add(self, spec: DiskSpec, open: Callable[[DiskSpec], Image]) -> None:
        rows = self.machine.block
        if spec.id in [row["device"] for row in rows]:
            raise ConfigError(f"Duplicate device ID '{spec.id}'")
        image = open(spec)
        self.machine.calls.append(f"add_disk {spec} {'by path' if open is open_image else 'sent'}")
        inserted = {
            "image": {"virtual-size": image.size},
            "drv": image.format,
            "ro": spec.read_only,
            "file": spec.path,
        }
        image.close()
        id = spec.id or f"disk{len(rows)}"
        rows.append({"device": id, "inserted": inserted, "io-status": "ok", "x-lun": len(rows), "x-state": "present"})

    def resize(self, id: str, size: int) -> None:
        self.machine.calls.append(f"resize_disk {id} {size}")

    def info(self) -> list[dict[str, Any]]:
        return self.machine.block

    def statistics(self) -> list[dict[str, Any]]:
        stats = {"rd_bytes": 5 << 20, "wr_bytes": 0, "x-failed": 0}
        return [{"device": row["device"], "stats": stats} for row in self.machine.block]


class FakeNetworkCards:
    """One card, whose cable is the machine's `plugged`."""

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine

    def info(self) -> list[dict[str, Any]]:
        link = "up" if self._machine.plugged else "down"
        return [{"id": "netvsc", "kind": "user", "place": "", "mac": MAC, "link": link}]

    def rx_filters(self) -> list[dict[str, Any]]:
        return [{"name": "netvsc", "promiscuous": False, "main-mac": MAC}]

    def set_link(self, name: str, up: bool) -> None:
        if name != "netvsc":
            raise NotFoundError(f"Device '{name}' not found")
        self._machine.plugged = up


class FakeMachine:
    """`MonitoredMachine`, with 512 MiB and a guest that gives back memory at once, down to 64 MiB."""

    def __init__(self, name: str = "vm") -> None:
        self.name = name
        self.state = "running"
        self.calls: list[str] = []
        self.automatic: list[bool] = []
        self.actual: int | None = 512 * MIB
        self.report: dict[str, Any] | None = {"committed": 100 * MIB, "available": 300 * MIB}
        self.console = b""
        self.listeners: list[Callable[[str, dict[str, Any]], None]] = []
        self.ended: Callable[[], None] = lambda: None
        self.finish: Callable[[], None] = lambda: None
        self.devices = ["hv-balloon", "heartbeat"]
        self.debugged: list[socket.socket] = []
        self.covered: dict[str, dict[str, Any]] = {}
        self.kernel = "/nowhere/vmlinux"
        self.plugged = True  # the network card's cable
        self.output: bytes | None = None  # of a command in the guest; else the command itself
        self.ready = True  # whether the guest takes commands
        self.services_of_guest = FakeIntegration(self.calls)
        self.no_sessions = ""  # why the guest can have none
        self.sessions: list[subprocess.Popen[bytes]] = []
        self.loop: Loop | None = None  # that serves its monitor on another thread
        self.block: list[dict[str, Any]] = []  # for query-block
        self.storvsc = "open"  # state of the channel that disks bring

    def disks(self) -> FakeDisks:
        return FakeDisks(self)

    @property
    def guest(self) -> FakeMachine:
        return self

    def fault_rules(self) -> FakeMachine:
        return self

    def add_text(self, rule: str) -> int:
        if rule == "nonsense":
            raise ConfigError("'nonsense' is no fault")
        return 7

    def remove(self, fault: int) -> None:
        if fault != 7:
            raise NotFoundError(f"no fault has the number {fault}")

    def info(self) -> list[dict[str, Any]]:
        return [{"id": 7, "rule": "eom-lost", "hits": 2, "seen": 3, "failures": 0}]

    def emit(self, name: str, **data: Any) -> None:
        """Tell the monitor of an event; from a test's own thread, soon."""
        if self.loop is not None and threading.current_thread() is not self.loop.thread:
            self.loop.post(self._emit, name, data)
        else:
            self._emit(name, data)

    def _emit(self, name: str, data: dict[str, Any]) -> None:
        for listener in self.listeners:
            listener(name, data)

    def status(self) -> str:
        return self.state

    def pause(self) -> None:
        self.calls.append("pause")
        self.state = "paused"
        self.emit("STOP")

    def resume(self) -> None:
        self.calls.append("resume")
        self.state = "running"
        self.emit("RESUME")

    def reset(self) -> None:
        self.calls.append("reset")
        self.emit("RESET", guest=False, reason="host-qmp-system-reset")

    def powerdown(self) -> None:
        self.calls.append("powerdown")
        self.emit("POWERDOWN")

    def quit(self) -> None:
        self.calls.append("quit")
        self.emit("SHUTDOWN", guest=False, reason="host-qmp-quit")
        self.ended()

    def set_action(self, panic: str | None, reboot: bool | None) -> None:
        self.calls.append(f"set_action {panic} {reboot}")

    def balloon_set(self, size: int) -> dict[str, Any]:
        if self.actual is None:
            raise NotActiveError("No balloon device has been activated")
        if size > 512 * MIB:
            raise ConfigError("the guest has 512 MiB at most")
        reach = max(size, 64 * MIB)
        self.actual = reach
        self.emit("BALLOON_CHANGE", actual=reach)
        told = {"target": size, "will-reach": reach, "reason": "" if reach == size else "the guest keeps 64 MiB"}
        self.emit("X_BALLOON_TARGET", **told)
        self.finish_resize(size, reach, told["reason"])
        return told

    def finish_resize(self, target: int, actual: int, reason: str = "", *, final: bool = True) -> None:
        """Tell how a resize ended, in a later turn of the loop if there is one."""
        told = {"target": target, "actual": actual, "reason": reason, "final": final}
        if self.loop is not None:
            self.loop.post(self._emit, "X_BALLOON_FINISHED", told)
        else:
            self._emit("X_BALLOON_FINISHED", told)

    def balloon_actual(self) -> int:
        if self.actual is None:
            raise NotActiveError("No balloon device has been activated")
        return self.actual

    def hv_balloon_report(self) -> dict[str, Any] | None:
        return self.report

    def pressure_info(self, count: int, since: float | None) -> dict[str, Any]:
        actual = self.balloon_actual()
        report = self.report or {}
        samples = [{"time": 1.0, "available": 1, "committed": 2, "actual": actual, "out": 0}]
        return {
            "current": actual,
            "actual": actual,
            "boot": 512 * MIB,
            "max": 512 * MIB,
            "target": actual,
            "demand": report.get("committed"),
            "pressure": 20 if report else None,
            "autosize": None,
            "samples": samples[:count],
        }

    def set_autosize(self, on: bool) -> None:
        self.automatic.append(on)

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "pid": 1,
            "status": self.status(),
            "engine": "user",
            "kernel": self.kernel,
            "cpus": 2,
            "memory": {"boot": 512 * MIB, "actual": self.actual, "target": self.actual, "resident": 200 * MIB},
            "uptime": 12.5,
            "balloon": {"state": "idle"},
            "guest": self.integration.facts(),
            "agent": {"ready": self.ready, "release": "", "sessions-only": False},
            "vmbus": self.info_vmbus(),
        }

    def nets(self) -> FakeNetworkCards:
        return FakeNetworkCards(self)

    def page_map(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "spans": [
                {"start": 0, "size": 384 * MIB, "owner": "ram"},
                {"start": 384 * MIB, "size": 128 * MIB, "owner": "out"},
            ],
            "special": [{"start": MIB, "size": 4096, "owner": "hypercall"}],
            "totals": [{"owner": "ram", "size": 384 * MIB}, {"owner": "out", "size": 128 * MIB}],
            "coarse": False,
            "left-out": 0,
        }

    def info_vmbus(self) -> list[dict[str, Any]]:
        return [
            {
                "relid": 1,
                "name": "heartbeat",
                "state": "open",
                "path": "/machine/peripheral/heartbeat",
                "rings": [4096, 4096],
            },
            *([{"relid": 2, "name": "storvsc", "state": self.storvsc, "path": "/x"}] if self.block else []),
        ]

    def console_since(self, offset: int) -> tuple[int, bytes]:
        first = min(offset, len(self.console))
        return first, self.console[first:]

    def info_cpus(self) -> list[int]:
        return [101, 102]

    def info_devices(self) -> list[dict[str, str]]:
        return [{"driver": each, "id": each, "path": f"/machine/peripheral/{each}"} for each in self.devices]

    def info_memory_devices(self) -> list[dict[str, Any]]:
        data = {"id": "hv-balloon", "memaddr": 4 << 30, "max-size": 256 * MIB, "memdev": "/objects/hot-add"}
        return [{"type": "hv-balloon", "data": data}]

    def info_memory_size(self) -> tuple[int, int]:
        return 512 * MIB, 128 * MIB

    def info_consoles(self) -> list[tuple[str, str]]:
        return [("serial0", "stdio"), ("serial1", "agent")]

    def add_device(self, driver: str, id: str) -> None:
        if driver != "heartbeat":
            raise ConfigError(f"'{driver}' is not a valid device model name")
        self.devices.append(id or driver)

    def remove_device(self, id: str) -> None:
        disk = next((row for row in self.block if row["device"] == id), None)
        if disk is None and id not in self.devices:
            raise NotFoundError(f"Device '{id}' not found")
        if disk is not None:
            self.block.remove(disk)
        else:
            self.devices.remove(id)
        self.emit("DEVICE_DELETED", device=id, path=f"/machine/peripheral/{id}")

    @property
    def integration(self) -> FakeIntegration:
        return self.services_of_guest

    def execute(self, command: str, seconds: int, done: Callable[[dict[str, Any] | HostError], None]) -> None:
        """`hang` never ends, `later` ends when the test calls `finish`, the rest at once."""
        self.calls.append(f"execute {command}")
        text = command.encode() if self.output is None else self.output
        result = {"status": 3, "stdout": text, "stderr": b"\xff", "truncated": False}
        if command == "fail":
            done(HostError("the guest restarted before the command ended"))
        elif command == "later":
            self.finish = lambda: done(result)
        elif command != "hang":
            done(result)

    def start_sessions(self, done: Callable[[int | PyvmmError], None], *, only_if_started: bool = False) -> None:
        if only_if_started and not self.sessions:
            done(ConfigError("no session was wanted of this guest yet"))
            return
        done(ConfigError(self.no_sessions) if self.no_sessions else PORT)

    def connect(self, port: int, attach: Callable[[], socket.socket | None], failed: Callable[[str], None]) -> None:
        """Connect to the guest's program for sessions, which runs on this machine."""

        def connect() -> None:
            connection = attach()
            if connection is not None:
                with connection:
                    connection.setblocking(True)
                    self.sessions.append(subprocess.Popen([str(_program()), "serve"], stdin=connection.fileno()))

        assert self.loop is not None
        self.loop.post(connect if port == PORT else lambda: failed("no program in the guest listens"))

    def check_debugger(self) -> None:
        if self.debugged:
            raise ConfigError("a debugger is connected already: detach it first")

    def debug(self, connection: socket.socket, monitor: Callable[[str], str]) -> None:
        """Take a debugger's connection, and send it the answer to a `monitor` command."""
        self.debugged.append(connection)
        connection.setblocking(True)
        connection.sendall(monitor("info name").encode())

    def cover_start(self, module: str, build_id: str, sites: list[Any], exits: list[int]) -> dict[str, Any]:
        """Cover a module: all blocks with a place have a breakpoint, the first was seen."""
        placed = {number for number, site in enumerate(sites) if site is not None}
        hits = pack_hits(len(sites), placed, {0} & placed)
        self.covered[module] = {
            "module": module, "build-id": build_id, "state": "on", "blocks": len(sites), "hits": hits
        }  # fmt: skip
        return self.covered[module]

    def cover_info(self) -> list[dict[str, Any]]:
        return list(self.covered.values())

    def cover_stop(self, module: str | None) -> list[dict[str, Any]]:
        names = list(self.covered) if module is None else [module]
        return [self.covered.pop(name) for name in names]

    def on_event(self, listener: Callable[[str, dict[str, Any]], None]) -> None:
        self.listeners.append(listener)


@cache
def _program() -> Path:
    """The guest's program for sessions, in a file."""
    descriptor, name = tempfile.mkstemp(prefix="session-")
    os.write(descriptor, session_program())
    os.fchmod(descriptor, 0o755)
    os.close(descriptor)
    return Path(name)


@contextmanager
def serving(machine: FakeMachine, *paths: Path) -> Iterator[Loop]:
    """The machine's monitor at `paths`, served by a loop in a thread of its own. `quit` ends it."""
    loop = Loop()
    server = ControlServer(loop, machine, *paths)
    server.start()

    machine.loop = loop
    machine.ended = lambda: loop.post(loop.stop)  # after the events posted before

    def run() -> None:
        loop.run()
        server.close()
        loop.close()

    thread = threading.Thread(target=run, name="loop", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.stop()
        thread.join(10)
        for session in machine.sessions:
            session.wait(10)
        assert not thread.is_alive()
