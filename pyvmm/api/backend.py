"""Backends of the API: run a machine on a thread of this process, or as a child process `pyvmm run`.

caller                      thread "pyvmm NAME"                    caller              process
Machine.run -- QMP ------>  Loop, ControlServer, Machine           Machine.run -- QMP --> pyvmm run (here, or in
                            one thread a vCPU                                             the emulated host)
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pyvmm.client import registry
from pyvmm.errors import HostError
from pyvmm.host.inside import inside, socket_path
from pyvmm.paths import runtime_folder
from pyvmm.process import kill_with_parent
from pyvmm.tail import Tail

if TYPE_CHECKING:
    from pyvmm.launch.options import GuestOptions
    from pyvmm.machine import Machine, MachineConfig

Result = TypeVar("Result")

CONSOLE_LIMIT = 1 << 20
"""Bytes of the most recent console output that are kept."""

STDERR_LIMIT = 64 << 10
"""Bytes of the stderr of `pyvmm run` that are kept, for an error's text."""

_HERE = str(Path(__file__).parents[2])
_START = """import sys
here = sys.argv.pop(1)
if here not in sys.path:
    sys.path.insert(0, here)
from pyvmm.cli.main import main
sys.exit(main())"""
"""Starts the same pyvmm as this process's, by its path. -P: no modules from the working folder."""
_RUN = (sys.executable, "-P", "-c", _START, _HERE, "run")
_numbers = count(1)


class Backend(Protocol):
    """A running machine, as `Machine` uses it. `socket` is the path of its monitor."""

    name: str
    socket: Path
    console: Tail

    @property
    def alive(self) -> bool:
        """Return whether the machine still runs."""

    def trouble(self) -> str:
        """Return the error that ended the machine; empty without one."""

    def send(self, data: bytes) -> None:
        """Send input to the guest's console."""

    def join(self, timeout: float) -> bool:
        """Wait until the thread or process has ended; return False after `timeout` seconds."""

    def close(self) -> None:
        """End the machine at once and release its resources. May be called twice."""


class ThreadBackend:
    """Runs a `pyvmm.machine.Machine` with its loop on a thread of this process. Created on the main thread only.

    `make` returns its config, after the name has been claimed: it may build an image first.
    """

    def __init__(self, make: Callable[[], MachineConfig], options: GuestOptions) -> None:
        from pyvmm.gdb_place import gdb_place
        from pyvmm.launch.consoles import CallbackConsole
        from pyvmm.launch.session import Session
        from pyvmm.launch.trace_sinks import TraceSettings

        self.console = Tail(CONSOLE_LIMIT)
        self.error: BaseException | None = None
        self._outcome_text = ""
        trace = TraceSettings(options.trace, options.trace_file, options.trace_format)
        with contextlib.ExitStack() as stack:
            registration = stack.enter_context(registry.claim(options.name, sys.argv))
            config = make()
            self.name = config.name = registration.name
            self.socket = Path(socket_path(registration.socket))
            sockets = [path for path in (registration.socket, options.qmp) if path is not None]
            place = gdb_place(options.gdb, registration.socket)
            console = CallbackConsole(self.console, place="api")
            session = Session(
                config, sockets=sockets, console=lambda: console, trace=trace, gdb=place, vsock=options.vsock
            )
            stack.enter_context(session)
            self.machine: Machine = session.machine
            session.start()
            self._closing = stack.pop_all()
        self._thread = threading.Thread(target=self._serve, name=f"pyvmm {self.name}", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            outcome = self.machine.run()
            if outcome.kind == "error":
                self._outcome_text = outcome.text
        except BaseException as error:  # a bug in pyvmm: raised by the next call of `trouble`
            self.error = error
        finally:
            self._closing.close()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def trouble(self) -> str:
        if self.error is not None:
            raise RuntimeError(f"the machine's thread failed: {self.error!r}") from self.error
        return self._outcome_text

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Run `function(*arguments)` on the loop's thread, where all state of the machine may be accessed."""
        if threading.current_thread() is self._thread:
            return function(*arguments)
        done = threading.Event()
        results: list[Result] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(function(*arguments))
            except BaseException as error:
                errors.append(error)
            finally:
                done.set()

        self.machine.loop.post(run)
        while not done.wait(0.05):
            if not self.alive and not done.is_set():
                raise HostError(f"machine {self.name} has ended")
        if errors:
            raise errors[0]
        return results[0]

    def send(self, data: bytes) -> None:
        self.call(self.machine.board.serials[0].receive, data)

    def join(self, timeout: float) -> bool:
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def close(self) -> None:
        if self._thread.is_alive():
            self.machine.loop.post(self.machine.quit)
            self._thread.join()


class ProcessBackend:
    """Runs `pyvmm run` with these arguments as a child process, its console on pipes."""

    def __init__(self, arguments: Sequence[str], name: str | None) -> None:
        self.name = name or f"api-{os.getpid()}-{next(_numbers)}"
        registry.claim(self.name).release()  # refuse a name in use: another machine's monitor would answer
        place = runtime_folder() / f"{self.name}.sock"
        self.socket = Path(socket_path(place))
        # In an emulated host `run` is the inner side, which serves the monitor only where it is asked to.
        monitor = ["--control-socket", str(place)] if inside() else []
        self.console = Tail(CONSOLE_LIMIT)
        self._stderr = Tail(STDERR_LIMIT)
        self._process = subprocess.Popen(
            [*_RUN, "--name", self.name, "--console", "stdio", "--tied", *monitor, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the notebook signals only the caller
            preexec_fn=kill_with_parent(signal.SIGTERM),
        )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self._readers = [
            self._read(self._process.stdout, self.console),
            self._read(self._process.stderr, self._stderr),
        ]

    def _read(self, stream: Any, into: Tail) -> threading.Thread:
        def read() -> None:
            while data := stream.read1(65536):
                into(data)

        thread = threading.Thread(target=read, name=f"pyvmm {self.name} output", daemon=True)
        thread.start()
        return thread

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def trouble(self) -> str:
        if self._process.poll() in (None, 0):
            return ""
        for reader in self._readers:
            reader.join(1)
        lines = [line for line in self._stderr.text().splitlines() if line.strip()]
        return lines[-1].removeprefix("pyvmm: ") if lines else f"pyvmm ended with status {self._process.returncode}"

    def send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        view = memoryview(data)
        deadline = time.monotonic() + 10
        while view:
            try:
                view = view[os.write(self._process.stdin.fileno(), view) :]
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise HostError(f"machine {self.name} takes no input") from None
                time.sleep(0.01)
            except OSError as error:
                raise HostError(f"machine {self.name} has ended") from error

    def join(self, timeout: float) -> bool:
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        for reader in self._readers:
            reader.join(5)
        return True

    def close(self) -> None:
        for end in (self._process.terminate, self._process.kill):
            if self._process.poll() is not None:
                break
            end()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
        self.join(5)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
