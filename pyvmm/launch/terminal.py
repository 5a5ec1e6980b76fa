"""Processes keyboard input for the guest's console: the Ctrl-A keys and the monitor's prompt.

    keyboard --> ConsoleInput --> the guest's serial port
                     |  Ctrl-A c
                     +----------> MonitorPrompt --> a line for the human monitor

The keys are those of QEMU's `-nographic`. No I/O here: bytes in, bytes and calls out. `pyvmm.foreground`
handles the terminal itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyvmm.guest_text import clean

ESCAPE = 0x01  # Ctrl-A

KEYS_HELP = (
    "Ctrl-A h  list these keys\n"
    "Ctrl-A x  end the machine\n"
    "Ctrl-A c  switch between the guest's console and the monitor\n"
    "Ctrl-A a  send a Ctrl-A to the guest (Ctrl-A Ctrl-A too)\n"
)


@dataclass(frozen=True, slots=True)
class Typed:
    """Input bytes for the guest or the monitor's prompt, whichever has the console."""

    data: bytes


@dataclass(frozen=True, slots=True)
class End:
    """Ctrl-A x: end the machine."""


@dataclass(frozen=True, slots=True)
class Toggle:
    """Ctrl-A c: switch between the guest and the monitor's prompt."""


@dataclass(frozen=True, slots=True)
class Help:
    """Ctrl-A h or Ctrl-A ?: list the keys."""


Key = Typed | End | Toggle | Help


class ConsoleKeys:
    """Parses the Ctrl-A keys: Plain --Ctrl-A--> Escaped --any key--> Plain. An unknown key is sent alone."""

    def __init__(self) -> None:
        self._escaped = False

    def feed(self, data: bytes) -> list[Key]:
        """Return the keys in `data`, in order; bytes between two keys are one `Typed`."""
        keys: list[Key] = []
        plain = bytearray()
        for byte in data:
            if not self._escaped:
                if byte == ESCAPE:
                    self._escaped = True
                else:
                    plain.append(byte)
                continue
            self._escaped = False
            key = _KEYS.get(byte)
            if key is None:
                plain.append(byte)
                continue
            if plain:
                keys.append(Typed(bytes(plain)))
                plain.clear()
            keys.append(key)
        if plain:
            keys.append(Typed(bytes(plain)))
        return keys


_KEYS: dict[int, Key] = {
    ord("x"): End(),
    ord("c"): Toggle(),
    ord("h"): Help(),
    ord("?"): Help(),
    ord("a"): Typed(bytes([ESCAPE])),
    ESCAPE: Typed(bytes([ESCAPE])),
}


LINE_LIMIT = 1024
"""Maximum length of a line of the prompt; further characters are ignored."""

HISTORY_LIMIT = 100


class MonitorPrompt:
    """A line editor over a raw terminal: `feed` takes keys and returns what to show. `execute` runs a line.

    Enter runs the line, Backspace and Ctrl-W take back a character and a word, Ctrl-U and Ctrl-C the line, Tab
    completes a command, the up and down arrows walk through earlier lines.
    """

    PROMPT = "(pyvmm) "

    def __init__(self, execute: Callable[[str], str], words: Callable[[], list[str]] = list) -> None:
        self._execute = execute
        self._words = words
        self._line = ""
        self._pending = b""  # an incomplete escape sequence or UTF-8 character
        self._history: list[str] = []
        self._back = 0  # position in the history, from its end
        self._after_return = False

    def start(self) -> bytes:
        """Return the text to show when the console switches to the monitor."""
        self._line, self._pending, self._back = "", b"", 0
        return b"\r\n" + self.PROMPT.encode()

    def feed(self, data: bytes) -> bytes:
        """Process keys and return the output for the screen, with CR LF line ends."""
        self._pending += data
        shown = ""
        while self._pending and (key := self._take()) is not None:
            shown += self._press(key)
        return shown.encode()

    def _take(self) -> str | None:
        """Return one key: a character or an escape sequence; None while it is incomplete."""
        first = self._pending[0]
        if first == 0x1B:
            return self._take_sequence()
        length = 1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
        if len(self._pending) < length:
            return None
        raw, self._pending = self._pending[:length], self._pending[length:]
        return raw.decode("utf-8", "replace")

    def _take_sequence(self) -> str | None:
        """Return ESC [ parameters letter, or ESC O letter; before anything else ESC alone. None while incomplete."""
        data = self._pending
        if len(data) == 1:
            self._pending = b""
            return "\x1b"
        if data[1] not in b"[O":
            self._pending = data[1:]
            return "\x1b"
        for at in range(2, len(data)):
            if 0x40 <= data[at] <= 0x7E:
                self._pending = data[at + 1 :]
                return "\x1b[" + chr(data[at])
        if len(data) > 32:  # longer than any sequence of a terminal
            self._pending = b""
            return "\x1b"
        return None

    def _press(self, key: str) -> str:
        after_return, self._after_return = self._after_return, key == "\r"
        match key:
            case "\r":
                return self._enter()
            case "\n":
                return "" if after_return else self._enter()
            case "\x7f" | "\b":
                return self._erase(1)
            case "\x15":
                return self._erase(len(self._line))
            case "\x17":
                stripped = self._line.rstrip()
                return self._erase(len(self._line) - (stripped.rfind(" ") + 1))
            case "\x03":
                self._line, self._back = "", 0
                return "^C\r\n" + self.PROMPT
            case "\t":
                return self._complete()
            case "\x1b[A":
                return self._recall(self._back + 1)
            case "\x1b[B":
                return self._recall(self._back - 1)
            case _ if len(key) == 1 and key.isprintable() and len(self._line) < LINE_LIMIT:
                self._line += key
                return key
        return ""

    def _enter(self) -> str:
        line, self._line, self._back = self._line.strip(), "", 0
        if line:
            if self._history[-1:] != [line]:
                self._history = [*self._history, line][-HISTORY_LIMIT:]
            output = self._execute(line)
        else:
            output = ""
        return "\r\n" + clean(output).replace("\n", "\r\n") + self.PROMPT

    def _erase(self, count: int) -> str:
        count = min(count, len(self._line))
        self._line = self._line[: len(self._line) - count]
        return "\b \b" * count

    def _recall(self, back: int) -> str:
        if not 0 <= back <= len(self._history):
            return ""
        self._back = back
        shown = self._erase(len(self._line))
        self._line = self._history[-back] if back else ""
        return shown + self._line

    def _complete(self) -> str:
        fits = [word for word in self._words() if word.startswith(self._line)]
        if not fits:
            return ""
        common = _common_start(fits)
        if len(fits) == 1:
            common += " "
        if common != self._line:
            added, self._line = common[len(self._line) :], common
            return added
        return "\r\n" + "  ".join(fits) + "\r\n" + self.PROMPT + self._line


def _common_start(words: list[str]) -> str:
    low, high = min(words), max(words)
    at = next((i for i, letter in enumerate(low) if i >= len(high) or letter != high[i]), len(low))
    return low[:at]


class ConsoleInput:
    """Routes keyboard input to the guest or the monitor: Guest --Ctrl-A c--> Monitor --Ctrl-A c--> Guest.

    `send` takes bytes for the guest, `show` bytes for the terminal, `end` ends the machine. While `monitor` is true
    the guest's output continues; it only gets no input.
    """

    def __init__(
        self,
        send: Callable[[bytes], Any],
        show: Callable[[bytes], Any],
        end: Callable[[], Any],
        prompt: MonitorPrompt | None = None,
    ) -> None:
        self._send = send
        self._show = show
        self._end = end
        self._prompt = prompt
        self._keys = ConsoleKeys()
        self.monitor = False

    def feed(self, data: bytes) -> None:
        """Process typed bytes."""
        for key in self._keys.feed(data):
            match key:
                case Typed(text) if self.monitor and self._prompt is not None:
                    self._show(self._prompt.feed(text))
                case Typed(text):
                    self._send(text)
                case End():
                    self._end()
                case Help():
                    self._show(b"\r\n" + KEYS_HELP.replace("\n", "\r\n").encode())
                case Toggle() if self._prompt is not None:
                    self.monitor = not self.monitor
                    self._show(self._prompt.start() if self.monitor else b"\r\n")
