"""The zygote, a preforked interpreter (the name is Android's): a fork of it runs a command, by exec or in Python.

`python -m MODULE` with the agent's own interpreter runs in the fork, which has all modules imported already, unless
the environment sets special options of Python. To the module it looks like a fresh interpreter: arguments,
environment, working folder, sys.path, standard streams and signal handlers.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import json
import os
import signal
import sys
import termios
from pathlib import Path
from typing import Any, NoReturn

# Variables that the fork supports; with any other PYTHON... a new interpreter is started.
HONOURED = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PYTHONUTF8")
_OWN_PACKAGE = "pyvmm"
_FRESH_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGWINCH)


class Zygote:
    """The modules that the agent imported, with their sources, and forks of it that run commands."""

    def __init__(self, sources: str, repository: str) -> None:
        self.sources = sources
        self.repository = repository

    @classmethod
    def load(cls, listing: Path = Path("/host/preload.json")) -> Zygote:
        """Import all modules that the preload lists."""
        record = json.loads(listing.read_text())
        for name in record["modules"]:
            try:
                importlib.import_module(name)
            except Exception as error:
                print(f"pyvmm-host: import {name}: {type(error).__name__}: {error}", file=sys.stderr)
        gc.collect()
        gc.freeze()  # collections in the forks do not write to these pages
        return cls(record["sources"], record["repository"])

    def serves(self, argv: list[str], env: dict[str, str]) -> bool:
        """Return whether a fork of this interpreter can run the command without exec."""
        special = [name for name in env if name.startswith("PYTHON") and name not in HONOURED]
        return len(argv) >= 3 and argv[0] == sys.executable and argv[1] == "-m" and not special

    def run_in_child(self, request: dict[str, Any], descriptors: dict[int, int], failure: int) -> NoReturn:
        """Run the command in this process, a forked child. Writes an error to `failure`; success closes it."""
        argv: list[str] = request["argv"]
        env: dict[str, str] = request["env"]
        name = request["cwd"]
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            for number in (*_FRESH_SIGNALS, signal.SIGPIPE, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            # First move the descriptors above 2, then to 0, 1 and 2.
            high = {to: fcntl.fcntl(at, fcntl.F_DUPFD_CLOEXEC, 10) for to, at in descriptors.items()}
            for target, source in high.items():
                os.dup2(source, target)
            terminal = next((target for target in (0, 1, 2) if os.isatty(target)), None)
            if terminal is not None:
                fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
            os.chdir(name)
            os.umask(request.get("umask", 0o077))
            if not self.serves(argv, env):
                name = argv[0]
                os.execvpe(argv[0], argv, env)
            os.closerange(3, failure)
            os.close(failure)
            os.closerange(failure + 1, 1024)
        except OSError as error:
            os.write(failure, f"{error.errno} {name}".encode())
            os._exit(127)
        status = 1
        try:
            status = self._run(
                argv[2], argv[3:], env, request.get("sources", ""), request.get("repository") or self.repository
            )
        finally:
            os._exit(status)

    def _run(self, module: str, arguments: list[str], env: dict[str, str], sources: str, repository: str) -> int:
        """Run `module` like `python -m`, and return the exit status.

        pyvmm's own modules are those of the checkout that the command came from, `repository`, whatever the working
        folder holds.
        """
        import atexit
        import runpy
        import threading

        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        os.environ.clear()
        os.environ.update(env)
        sys.dont_write_bytecode = bool(env.get("PYTHONDONTWRITEBYTECODE"))
        _open_streams(unbuffered=bool(env.get("PYTHONUNBUFFERED")))
        sys.path[:] = [repository if place == self.repository else place for place in sys.path]
        sys.path.insert(0, os.getcwd())
        if module.partition(".")[0] == _OWN_PACKAGE:
            sys.path.insert(0, repository)
        importlib.invalidate_caches()
        if sources != self.sources:
            for name in [name for name in sys.modules if name.partition(".")[0] == _OWN_PACKAGE]:
                del sys.modules[name]
        else:
            sys.modules.pop(module, None)  # it runs as __main__; runpy would warn
        sys.argv = ["-m", *arguments]
        interrupted = False
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as end:
            status = _exit_status(end.code)
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            sys.excepthook(type(error), error, error.__traceback__)
            status = 1
        try:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:
            status = status or 120  # Python's status if output cannot be flushed
        if interrupted:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        return status


def _exit_status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def _open_streams(*, unbuffered: bool) -> None:
    """Open the standard streams as the interpreter does at its start."""
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    lines = os.isatty(1)
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False,
                      buffering=1 if lines else -1)  # fmt: skip
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)
    if unbuffered:
        sys.stdout.reconfigure(write_through=True)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
