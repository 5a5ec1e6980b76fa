"""One machine with its trace sinks, loop, monitor and console, created and closed in a fixed order.

    with Session(config, sockets=[path], trace=TraceSettings(("vmbus_*",))) as session:
        session.machine.monitor.on_event(...)      # all is made; nothing runs
        session.start()                    # the guest boots, the monitor answers
        outcome = session.machine.run()

Made in this order: trace sinks, loop, the monitor's sockets, console, machine. Started in this order: signal
handlers, confinement, threads that waited for it, the vCPUs, the monitor, the console's input. The machine's name is
claimed before (`where.dispatch_run` or the API), because making its config may take minutes.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pyvmm import held_threads, process
from pyvmm.client.registry import stall_note
from pyvmm.errors import ConfigError
from pyvmm.gdb_place import Place
from pyvmm.host.inside import inside, socket_place, user_pid
from pyvmm.launch.confined import confine_session, open_listeners
from pyvmm.launch.consoles import Console
from pyvmm.launch.debug_lines import DebugLines
from pyvmm.launch.fault_report import report_faults
from pyvmm.launch.trace_sinks import TraceSettings, traces
from pyvmm.loop import Loop
from pyvmm.machine import Machine, MachineConfig
from pyvmm.sandbox.confine import Mode
from pyvmm.share.spec import FIRST_PORT

if TYPE_CHECKING:
    from pyvmm.faults import FaultSet
    from pyvmm.launch.vsock import VsockPrograms
    from pyvmm.share.server import ShareServer
    from pyvmm.share.spec import Share

SWITCH_INTERVAL = 0.001
"""GIL switch interval, in seconds: how long a busy Python thread may delay a vCPU's thread."""


class Session:
    """One machine with its traces, loop, monitor and console. Close it on any thread, once the machine has ended.

    `sockets` are the paths, as the user gave them, where the monitor listens, `gdb` is where debuggers connect,
    `vsock` where programs do for the guest's sockets; `shares` are served by processes of their own.
    `console` makes the guest's console.
    """

    def __init__(
        self,
        config: MachineConfig,
        *,
        sockets: Sequence[Path] = (),
        console: Callable[[], Console] = Console,
        trace: TraceSettings | None = None,
        sandbox: Mode = "off",
        gdb: Place | None = None,
        vsock: Path | None = None,
        shares: Sequence[Share] = (),
    ) -> None:
        self._config = config
        self._sockets = sockets
        self._make_console = console
        self._trace = trace or TraceSettings()
        self._sandbox: Mode = sandbox
        self._gdb = gdb
        self._vsock_place = vsock
        self._vsock: VsockPrograms | None = None
        self._shares = shares
        self._servers: list[ShareServer] = []
        self._debug: DebugLines | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            interval = sys.getswitchinterval()
            sys.setswitchinterval(min(interval, SWITCH_INTERVAL))
            stack.callback(sys.setswitchinterval, interval)
            held_threads.hold()
            stack.callback(held_threads.release)
            self.tracing = stack.enter_context(traces(self._trace, machine=self._config.name))
            self.loop = Loop()
            stack.callback(self.loop.close)
            places = [socket_place(each) for each in (*self._sockets, *([] if self._gdb is None else [self._gdb]))]
            opened = open_listeners(places, self.loop, stack, confined=self._sandbox != "off")
            if self._vsock_place is not None:
                from pyvmm.launch.vsock import VsockPrograms

                confined = self._sandbox != "off"
                self._vsock = stack.enter_context(VsockPrograms(self._vsock_place, self.loop, confined=confined))
            self._listeners, self._debuggers = opened[: len(self._sockets)], opened[len(self._sockets) :]
            if self._shares:
                from pyvmm.share.server import ShareServer

                for each in self._shares:
                    self._servers.append(ShareServer(each, self.loop))
                    stack.callback(self._servers[-1].close)
            stack.callback(self._end_debug)
            self.console = stack.enter_context(self._make_console())
            self.machine = stack.enter_context(Machine(self._config, self.loop, console=self.console.write))
            self._stack_faults(stack)
            if self._config.debug:
                self._debug = DebugLines(self.machine, self._config.debug)
            self._stack = stack.pop_all()
        return self

    def _stack_faults(self, stack: contextlib.ExitStack) -> None:
        """Add the configuration's fault rules, and those of the monitor later; report on them at the end."""
        machine = self.machine

        def rules() -> FaultSet:
            from pyvmm.faults import FaultSet

            return FaultSet.of(machine)

        machine.monitor.fault_rules = rules
        for each in self._config.faults:
            rules().add(each)
        stack.callback(report_faults, machine)

    def _end_debug(self) -> None:
        if self._debug is not None:
            self._debug.finish()

    def start(self, on_signal: Callable[[int], None] | None = None) -> None:
        """Confine this process if it is pyvmm's own, power the machine on and serve its monitor.

        `on_signal` is called on the loop with the number of a terminating signal; without it signal handlers are left
        unchanged. Raises ConfigError and HostError.
        """
        machine = self.machine
        if on_signal is not None:
            self._stack.enter_context(_signals(self.loop, on_signal))
        if self._sockets:
            machine.watchdog.keep_note(stall_note(self._sockets[0]))
            self._stack.callback(machine.watchdog.stop)
        if self._config.cover:
            from pyvmm.cover.session import Coverage

            machine.start_services()
            Coverage(machine).expect(*self._config.cover)
        vsock = [] if self._vsock is None else [self._vsock.listener]
        confine_session(self._sandbox, machine, [*self._listeners, *self._debuggers, *vsock])
        # All files are open; threads are started only now, so they inherit the confinement.
        held_threads.release()
        machine.start()
        # From here on the guest boots, concurrently.
        machine.monitor.pid = user_pid()
        if self._listeners:
            from pyvmm.control.server import ControlServer

            self._stack.enter_context(ControlServer(self.loop, machine.monitor, *self._listeners))
        for listener in self._debuggers:
            listener.open(self._on_debugger)
        if self._vsock is not None:
            self._vsock.serve(machine)
        for number, server in enumerate(self._servers):
            machine.services.vsock(self.loop).services[FIRST_PORT + number] = server.dial
        if process.is_own():
            # Start-up objects live as long as the machine; a collection that scans them would delay the guest.
            gc.collect()
            gc.freeze()
        self.console.attach(machine)
        machine.monitor.console_place = self.console.place

    def _on_debugger(self, connection: socket.socket, path: Path) -> None:
        from pyvmm.control import hmp

        monitor = self.machine.monitor
        try:
            monitor.debug(connection, partial(hmp.execute, monitor))
        except ConfigError:  # there is one already, or the machine has ended
            connection.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


@contextlib.contextmanager
def _signals(loop: Loop, on_signal: Callable[[int], None]) -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP end the machine, with the status a shell would show. A signal that was ignored
    at the start (`nohup`, a script's `&`) stays ignored.
    """
    before: dict[int, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, lambda n, frame: loop.post_first(on_signal, n))
    if inside():
        # SIGSTOP on SIGTSTP: without a shell the kernel would ignore SIGTSTP's default action. The outer side stops
        # itself after the agent's STOPPED frame.
        before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, lambda *_: os.kill(os.getpid(), signal.SIGSTOP))
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
