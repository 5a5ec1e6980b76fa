"""The guest's console as a test sees it: all output so far, and waits for text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pyvmm.testbed.waits import GuestEnded, TimedOut

if TYPE_CHECKING:
    from pyvmm.testbed.vm import VM

TAIL = 2000
"""Characters of the console in the text of an error."""


class Console:
    """Output of the guest's first serial port since the machine's start, and its input."""

    def __init__(self, vm: VM) -> None:
        self._vm = vm
        self._data = bytearray()
        self._expected = 0  # characters consumed by `expect`

    def received(self, data: bytes) -> None:
        """Append output. Called on vCPU threads too."""
        self._data += data

    @property
    def text(self) -> str:
        """All output, decoded and without carriage returns."""
        return bytes(self._data).decode("utf-8", "replace").replace("\r", "")

    def expect(self, pattern: str, timeout: float = 30.0) -> re.Match[str]:
        """Wait for text that matches a regular expression, after that of the previous `expect`; return the match.

        Raises TimedOut or GuestEnded, with the console's tail.
        """
        wanted = re.compile(pattern, re.MULTILINE)
        found: list[re.Match[str]] = []

        def happened() -> bool:
            match = wanted.search(self.text, self._expected)
            if match:
                found.append(match)
            return bool(match)

        try:
            self._vm.until(happened, timeout, f"text like {pattern!r} on the console")
        except (TimedOut, GuestEnded) as error:
            if not happened():
                raise type(error)(f"{error}; it ends: {self.text[-TAIL:]!r}") from None
        self._expected = found[-1].end()
        return found[-1]

    def send(self, text: str) -> None:
        """Send input to the guest's console."""
        self._vm.machine.board.serials[0].receive(text.encode())
