"""A virtual machine as a Python object, configured by keywords and controlled by methods.

Every call blocks until it is done, with a time limit. Only one thread at a time may use a machine.
"""

from __future__ import annotations

import atexit
import shlex
import threading
import time
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from pyvmm.api.backend import Backend, ProcessBackend, ThreadBackend
from pyvmm.api.results import CommandFailed, Completed, End, Event, Memory
from pyvmm.client.qmp import Client, Disconnected, Refused, TimedOut
from pyvmm.errors import ConfigError, HostError
from pyvmm.launch import where
from pyvmm.launch.config_file import load
from pyvmm.launch.options import GuestOptions, read_keywords
from pyvmm.seconds import check_seconds
from pyvmm.sizes import format_size, parse_size

if TYPE_CHECKING:
    from pyvmm.machine import Machine as InnerMachine
    from pyvmm.machine import MachineConfig

Result = TypeVar("Result")

CONNECT_LIMIT = 120.0
"""Seconds for a machine's monitor to answer; the first boot of an emulated host takes half a minute."""

EVENTS_KEPT = 10_000
"""Maximum number of unread events; the oldest are dropped."""

OUTPUT_LIMIT = 16 << 20
"""Bytes kept of each stream of a command."""

READY_POLL = 0.2
"""Poll interval, in seconds, while the guest boots: each poll slows it a little."""


_KINDS: dict[str, Literal["poweroff", "quit", "reset", "panic", "error"]] = {
    "guest-shutdown": "poweroff",
    "host-qmp-quit": "quit",
    "host-signal": "quit",
    "guest-reset": "reset",
    "host-qmp-system-reset": "reset",
    "guest-panic": "panic",
    "host-error": "error",
}


@dataclass(slots=True)
class _Ending:
    """How the machine ended, collected from its events."""

    reason: str = ""
    panic: str = ""
    status: int | None = None
    seen: deque[Event] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))

    def take(self, event: Event) -> None:
        self.seen.append(event)
        if event.name == "SHUTDOWN":
            self.reason = event.data.get("reason", "")
            self.status = event.data.get("x-status")
        elif event.name == "GUEST_PANICKED":
            self.panic = event.data.get("x-text", "")


class Machine:
    """One virtual machine. The keywords are the options of `pyvmm run`, with `_` for `-`; `config` is a TOML file.

    `process=True` runs it in a process of its own even if this one could run it. Raises ConfigError and HostError.
    """

    def __init__(
        self,
        image: str | None = None,
        *,
        memory: str | int | None = None,
        cpus: int | None = None,
        kernel: str | PathLike[str] | None = None,
        initrd: str | PathLike[str] | None = None,
        kdir: str | PathLike[str] | None = None,
        modules: str | PathLike[str] | None = None,
        append: str | None = None,
        name: str | None = None,
        host: Literal["auto", "local", "emulated"] | None = None,
        hyperv: Literal["auto", "kernel", "user"] | None = None,
        config: str | PathLike[str] | None = None,
        process: bool = False,
        **options: object,
    ) -> None:
        given: dict[str, object] = {
            "image": image,
            "memory": memory,
            "cpus": cpus,
            "kernel": kernel,
            "initrd": initrd,
            "kdir": kdir,
            "modules": modules,
            "append": append,
            "name": name,
            "host": host,
            "hyperv": hyperv,
        }
        self._options = read_keywords(given | options, {} if config is None else load(Path(config)))
        self._own_process = process
        self._backend: Backend | None = None
        self._client: Client | None = None
        self._ending = _Ending()
        self._end: End | None = None
        self._has_sessions = True  # as far as is known

    # Life

    def start(self) -> Self:
        """Power the machine on. Returns as soon as its monitor answers, while the guest still boots."""
        if self._backend is not None:
            raise ConfigError("the machine was started already: make a new one")
        atexit.register(self.close)
        self._backend = self._make_backend()
        try:
            self._client = self._connect(self._backend)
        except BaseException:
            self.close()
            raise
        return self

    def _make_backend(self) -> Backend:
        options = self._options
        # Confinement is for a whole process, and so are forks, which serve shared folders: this one is the caller's.
        confined = options.sandbox == "require" or bool(options.share)
        if not self._own_process and not confined and runs_here(options.host):
            return ThreadBackend(lambda: _config(options), options)
        _config(options)  # raises for wrong options before a process is started
        return ProcessBackend(options.words(), options.name)

    def _connect(self, backend: Backend) -> Client:
        deadline = time.monotonic() + CONNECT_LIMIT
        while True:
            try:
                return Client(backend.socket)
            except HostError:
                if not backend.alive:
                    raise HostError(backend.trouble() or "the machine ended at once") from None
                if time.monotonic() > deadline:
                    raise TimedOut(f"the machine's monitor did not answer in {CONNECT_LIMIT:g} s") from None
            time.sleep(0.02)

    def close(self) -> None:
        """End the machine at once, if it still runs, and release its resources. May be called twice."""
        atexit.unregister(self.close)
        if self._backend is not None:
            self._backend.close()
        if self._client is not None:
            self._drain()
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "not started" if self._backend is None else "running" if self._backend.alive else "ended"
        return f"<pyvmm.Machine {self.name or ''} {state}>".replace("  ", " ")

    @property
    def name(self) -> str | None:
        """The machine's name for `pyvmm status`, `balloon` and `stop`; None before the start if none was given."""
        return self._options.name if self._backend is None else self._backend.name

    @property
    def running(self) -> bool:
        """Whether the machine was started and has not ended."""
        return self._backend is not None and self._backend.alive

    # Doing

    def wait_ready(self, timeout: float = 120.0) -> None:
        """Wait until the guest accepts commands, by pyvmm's init; a system of a disk's own begins to boot then.

        Raises TimedOut.
        """
        deadline = time.monotonic() + check_seconds(timeout)
        while not (agent := self.describe()["agent"])["ready"] and not agent["sessions-only"]:
            if time.monotonic() > deadline:
                raise TimedOut(f"the guest takes no commands after {timeout:g} s")
            time.sleep(READY_POLL)

    def run(self, command: str | Sequence[str], *, timeout: float = 60.0, check: bool = False) -> Completed:
        """Run a command in the guest and wait for its end; waits first for a guest that still boots.

        A string is for the guest's shell, a list is a program and its arguments. The status is 124 after `timeout`
        seconds; raises HostError if it has not answered 5 s later. With `check` a status other than 0 raises
        CommandFailed. It runs over Hyper-V sockets in a guest with the option `vsock` or `share`, or of which a
        session was wanted before (`pyvmm exec`); else over its serial port, which is slow, counts whole seconds, and
        keeps 256 KiB of output. A guest that runs the system of its disk has sockets only.
        """
        text = command if isinstance(command, str) else shlex.join(command)
        check_seconds(timeout)
        completed = self._run_in_session(text, timeout) or self._run_over_serial(text, timeout)
        if check and completed.status:
            raise CommandFailed(text, completed)
        return completed

    def _run_in_session(self, text: str, timeout: float) -> Completed | None:
        """Run a command over Hyper-V sockets; None if the guest has none, or they would have to be started first:
        that loads hv_sock, and hv_vmbus could not be unloaded any more.
        """
        from pyvmm.client.session import collect, open_session_at, shell_words

        backend, _ = self._started()
        if not self._has_sessions:
            return None
        try:
            start = self._options.vsock is not None or bool(self._options.share) or self._options.boots_a_disk
            session = open_session_at(backend.socket, start=start)
        except Refused as error:
            if error.qmp_class != "GenericError":
                raise
            self._has_sessions = not start
            return None
        except Disconnected:
            backend.join(5)
            raise Disconnected(backend.trouble() or f"machine {backend.name} has ended") from None
        status, out, err, truncated = collect(session, shell_words(text), seconds=timeout, limit=OUTPUT_LIMIT)
        return Completed(status, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"), truncated)

    def _run_over_serial(self, text: str, timeout: float) -> Completed:
        seconds = max(1, ceil(timeout))
        reply = self.qmp("x-execute", {"command": text, "timeout": seconds}, timeout=seconds + 15)
        out, err = (b64decode(reply[key]).decode("utf-8", "replace") for key in ("stdout", "stderr"))
        return Completed(reply["status"], out, err, reply["truncated"])

    def balloon(self, size: str | int, *, timeout: float = 60.0) -> Memory:
        """Resize the guest and wait for the end of the resize. The result has the size reached."""
        from pyvmm.client.resize import ResizeProgress

        wanted = size if isinstance(size, int) else parse_size(size)
        deadline = time.monotonic() + check_seconds(timeout)
        actual = self.qmp("query-balloon")["actual"]
        resize = ResizeProgress(wanted, self.qmp("x-balloon", {"value": wanted}), actual)
        client = self._started()[1]
        while not resize.result:
            try:
                event = Event(*client.wait_event(_Any(), max(0.0, deadline - time.monotonic())))
            except TimedOut:
                has, goal = format_size(resize.actual), format_size(resize.goal)
                raise TimedOut(f"the guest has {has} after {timeout:g} s, {goal} wanted") from None
            self._ending.take(event)
            resize.update(event.name, event.data)
        return self.memory

    def reload(self, module: str | PathLike[str], *parameters: str) -> bool:
        """Exchange a kernel module in the guest by the one in a file, as `pyvmm reload` does.

        Return whether it replaced one, else it was not loaded before. `parameters` are insmod's. Raises
        pyvmm.launch.reload.CannotReload, for a driver without module_exit() for instance.
        """
        from pyvmm.launch.reload import Ran, read_new_module, reload

        def run(command: str) -> Ran:
            done = self.run(command)
            return Ran(done.status, done.stdout, done.stderr)

        new = read_new_module(Path(module))
        return reload(new, run, parameters=parameters, progress=lambda line: None).replaced

    def pause(self) -> None:
        """Stop the virtual CPUs."""
        self.qmp("stop")

    def resume(self) -> None:
        """Resume the virtual CPUs."""
        self.qmp("cont")

    def reset(self) -> None:
        """Reset the machine, like its reset button."""
        self.qmp("system_reset")

    def shutdown(self, timeout: float = 60.0) -> End:
        """Ask the guest to power off, and wait for it. A paused machine is resumed first: it could not shut down."""
        if self.status in ("paused", "prelaunch", "io-error"):
            self.resume()
        self.qmp("system_powerdown")
        return self.wait(timeout)

    def quit(self) -> End:
        """End the machine at once."""
        if self.running:
            self.qmp("quit")
        return self.wait()

    def wait(self, timeout: float = 60.0) -> End:
        """Wait until the machine has ended. Raises TimedOut."""
        if self._end is None:
            backend, client = self._started()
            deadline = time.monotonic() + check_seconds(timeout)
            self._drain()
            try:
                while True:
                    self._ending.take(Event(*client.wait_event(_Any(), max(0.0, deadline - time.monotonic()))))
            except Disconnected:
                pass
            except TimedOut:
                raise TimedOut(f"the machine still runs after {timeout:g} s") from None
            if not backend.join(max(5.0, deadline - time.monotonic())):
                raise TimedOut(f"the machine still runs after {timeout:g} s")
            trouble = backend.trouble()
            kind = _KINDS.get(self._ending.reason, "error")
            text = self._ending.panic if kind == "panic" else trouble if kind == "error" else ""
            self._end = End(kind, text, self._ending.status)
        return self._end

    # Looking

    @property
    def status(self) -> str:
        """The machine's state in QEMU's terms: running, paused, prelaunch (not begun yet), ..."""
        state: str = self.qmp("query-status")["status"]
        return state

    @property
    def memory(self) -> Memory:
        """The machine's memory, as host and guest report it."""
        about = self.describe()
        memory, balloon = about["memory"], about.get("balloon") or {}
        plugged = self.qmp("query-memory-size-summary")["plugged-memory"]
        return Memory(
            memory["boot"],
            memory["actual"],
            memory["target"],
            plugged,
            memory["resident"],
            balloon.get("available"),
            balloon.get("committed"),
            balloon.get("max"),
        )

    def describe(self) -> dict[str, Any]:
        """Return what `pyvmm status --json` shows: engine, balloon, VMBus channels with their counters, exits."""
        about: dict[str, Any] = self.qmp("x-status")
        return about

    @property
    def console(self) -> str:
        """Return the most recent console output of the guest."""
        return self._started()[0].console.text()

    def send(self, text: str) -> None:
        """Send input to the guest's console."""
        self._started()[0].send(text.encode())

    def events(self) -> Iterator[Event]:
        """Return the events since the last call, oldest first; does not wait."""
        self._drain()
        while self._ending.seen:
            yield self._ending.seen.popleft()

    def wait_event(self, *names: str, timeout: float = 60.0) -> Event:
        """Return the next event with one of these names, or an unread one; others stay unread. Raises TimedOut."""
        deadline = time.monotonic() + check_seconds(timeout)
        self._drain()
        seen = self._ending.seen
        for event in seen:
            if event.name in names:
                seen.remove(event)
                return event
        while True:
            client = self._started()[1]
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimedOut(f"no {' or '.join(names)} within {timeout:g} s")
            try:
                event = Event(*client.wait_event(_Any(), left))
            except TimedOut:
                continue
            self._ending.take(event)
            if event.name in names:
                seen.pop()
                return event

    # Below

    def qmp(self, name: str, arguments: dict[str, Any] | None = None, *, timeout: float = 20.0) -> Any:
        """Run any command of the machine's monitor. Raises pyvmm.client.qmp.Refused for an error reply."""
        backend, client = self._started()
        client.timeout = check_seconds(timeout)
        try:
            return client.execute(name, arguments)
        except TimedOut:
            self._client = Client(backend.socket)  # a late answer must not be taken for that of another command
            client.close()
            raise
        except Disconnected:
            backend.join(5)
            raise Disconnected(backend.trouble() or f"machine {backend.name} has ended") from None
        finally:
            self._drain()

    def monitor(self, line: str) -> str:
        """Run a line in the human monitor, such as `info vmbus`, and return its output."""
        printed: str = self.qmp("human-monitor-command", {"command-line": line})
        return printed.replace("\r\n", "\n")

    @property
    def machine(self) -> InnerMachine:
        """The pyvmm.machine.Machine itself: memory, VMBus, devices. Access it only by `call` while it runs.

        Raises ConfigError for a machine that runs in a process of its own.
        """
        return self._here().machine

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Run `function(*arguments)` on the machine's thread, where all its state may be accessed; see `machine`."""
        return self._here().call(function, *arguments)

    def _here(self) -> ThreadBackend:
        backend, _ = self._started()
        if not isinstance(backend, ThreadBackend):
            raise ConfigError("this machine runs in a process of its own: use qmp() and monitor() to look into it")
        return backend

    def _started(self) -> tuple[Backend, Client]:
        if self._backend is None or self._client is None:
            raise ConfigError("the machine is not started: call start()")
        return self._backend, self._client

    def _drain(self) -> None:
        if self._client is not None:
            while self._client.events:
                self._ending.take(Event(*self._client.events.popleft()))


def _config(options: GuestOptions) -> MachineConfig:
    from pyvmm.launch.build import build_config

    return build_config(options, progress=where.print_message)


def runs_here(host: str = "auto") -> bool:
    """Return whether a machine for `host`, created on this thread, would run in this process."""
    # vCPU threads are woken by a signal, whose handler only the main thread can install.
    return threading.current_thread() is threading.main_thread() and where.runs_here(host)


class _Any:
    """A collection that contains every name."""

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0
