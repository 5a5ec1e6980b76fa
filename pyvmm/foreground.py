"""Raw mode of the user's terminal, set only while this process is in the terminal's foreground process group.

    Background --fg: SIGCONT, or `acquire`--> Foreground: raw mode, keys are read
        ^                                     |  stop: mode restored, stopped by SIGTSTP as the shell expects
        +-------------- bg -------------------+  end, signal, exception: mode restored

A shell gives the terminal to one process group. A background process that changes its mode is stopped by SIGTTOU, one
that reads it by SIGTTIN: so every change and every read first checks the foreground group. `fg` on a job that runs in
the background sends no signal, so a reader checks again every FOREGROUND_POLL seconds.

TCSANOW everywhere: the other kinds wait until a terminal with stopped output has shown all of it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import termios
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

FOREGROUND_POLL = 0.25
"""Seconds between two checks whether a background process is in the foreground group now."""

WINDOW_LIMIT = 4096
"""Most rows and columns; the smallest font on the largest screens gives some 2,000."""

_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)

Mode = list[Any]
"""A terminal's attributes, as tcgetattr returns them."""


def guest_console(mode: Mode) -> None:
    """Set raw input; output keeps OPOST, as in QEMU: a host message's "\\n" in between still starts a new line."""
    mode[0] &= ~(
        termios.BRKINT
        | termios.ICRNL
        | termios.IGNBRK
        | termios.IGNCR
        | termios.INLCR
        | termios.INPCK
        | termios.ISTRIP
        | termios.IXON
        | termios.PARMRK
    )
    mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN | termios.ISIG)
    mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0


def all_raw(mode: Mode) -> None:
    """Make input and output raw: the terminal inside the emulated host does all processing."""
    guest_console(mode)
    mode[1] &= ~termios.OPOST


def key_by_key(mode: Mode) -> None:
    """Read keys one by one, without echo; Ctrl-C and Ctrl-Z still send signals."""
    mode[3] &= ~(termios.ECHO | termios.ICANON)
    mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0


def in_foreground(fd: int) -> bool:
    """Return whether this process may read and change the terminal `fd`; always if it is not its controlling one."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return True


def stop_by(number: int) -> None:
    """Stop this process by signal `number`, which the parent then sees; on return it was continued, or never stopped
    because no shell would continue it (its process group is orphaned).
    """
    before = signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    signal.signal(number, before)


def window_of(fd: int) -> tuple[int, int] | None:
    """Return rows and columns of the terminal `fd`; None if it is no terminal, or its size is unknown or absurd."""
    try:
        size = os.get_terminal_size(fd)
    except OSError:
        return None
    known = 0 < size.lines <= WINDOW_LIMIT and 0 < size.columns <= WINDOW_LIMIT
    return (size.lines, size.columns) if known else None


class Terminal:
    """One terminal, whose mode `change_mode(mode)` changes for us. On the main thread."""

    def __init__(self, fd: int, change_mode: Callable[[Mode], None] = guest_console) -> None:
        self.fd = fd
        self.held = False
        """Whether the terminal is in our mode."""
        self._change_mode = change_mode
        self._owner = os.getpid()
        self._before: Mode | None = None
        self._ours: Mode | None = None

    def acquire(self, *, resumed: bool = False) -> bool:
        """Return whether we are in the foreground; if so, set our mode. After a stop (`resumed`) it is set again,
        because the shell has changed it.
        """
        if not in_foreground(self.fd):
            self.held = False
            return False
        if not self.held or resumed:
            with contextlib.suppress(termios.error, OSError):  # hung up: the next read fails
                self._enter()
        return True

    def _enter(self) -> None:
        mode = termios.tcgetattr(self.fd)
        if mode != self._ours:  # else a shell kept our mode while we were stopped
            self._before = mode
        ours = termios.tcgetattr(self.fd)
        self._change_mode(ours)
        self.held = True
        termios.tcsetattr(self.fd, termios.TCSANOW, ours)
        self._ours = termios.tcgetattr(self.fd)

    def restore(self) -> None:
        """Restore the previous mode, if ours is set. Does nothing in a forked child: the parent restores it."""
        if os.getpid() != self._owner or not self.held or self._before is None:
            return
        self.held = False
        if not in_foreground(self.fd):
            return
        with contextlib.suppress(termios.error, OSError):  # hung up: nothing left to restore
            # The shell may take the terminal between the check and this call: then it must not stop us.
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
            try:
                termios.tcsetattr(self.fd, termios.TCSANOW, self._before)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextlib.contextmanager
def acquired(terminal: Terminal, *, watch: bool = True) -> Iterator[Terminal]:
    """Set a terminal's mode for the block, as soon as and as long as this process is in its foreground.

    Its mode is restored when the block ends, however it ends, and at interpreter exit. With `watch`, on the main
    thread, also before the process dies of a signal or is stopped by one. Previously installed handlers
    are called after that; ignored signals stay ignored.
    """
    atexit.register(terminal.restore)
    try:
        with _signals(terminal) if watch else contextlib.nullcontext():
            terminal.acquire()
            yield terminal
    finally:
        terminal.restore()
        atexit.unregister(terminal.restore)


@contextlib.contextmanager
def raw_terminal(fd: int, change_mode: Callable[[Mode], None] = guest_console) -> Iterator[Terminal | None]:
    """Set the terminal `fd` to raw mode for the block: see `acquired`. None if it is no terminal."""
    if not os.isatty(fd):
        yield None
        return
    with acquired(Terminal(fd, change_mode)) as terminal:
        yield terminal


@contextlib.contextmanager
def _signals(terminal: Terminal) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def ending(number: int, frame: FrameType | None) -> None:
        terminal.restore()
        previous = before.get(number)
        if callable(previous):
            previous(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def stopping(number: int, frame: FrameType | None) -> None:
        terminal.restore()
        previous = before.get(number)
        if callable(previous):
            previous(number, frame)
        else:
            stop_by(number)
        terminal.acquire(resumed=True)

    def continued(number: int, frame: FrameType | None) -> None:
        terminal.acquire(resumed=True)
        previous = before.get(number)
        if callable(previous):
            previous(number, frame)

    handlers = dict.fromkeys(_ENDING, ending) | {signal.SIGTSTP: stopping, signal.SIGCONT: continued}
    for each, handler in handlers.items():
        if signal.getsignal(each) is not signal.SIG_IGN:
            before[int(each)] = signal.signal(each, handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
