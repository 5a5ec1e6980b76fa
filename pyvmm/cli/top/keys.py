"""Keys of a terminal that sends them one by one, as words: `up`, `down`, `+`, `q`."""

from __future__ import annotations

import os
import select
import time

from pyvmm.foreground import Terminal

_SEQUENCES = {b"\x1b[A": "up", b"\x1b[B": "down", b"\x1bOA": "up", b"\x1bOB": "down", b"\x03": "q", b"\x1b": "q"}
_SINGLE = {b"k": "up", b"j": "down", b"=": "+", b"_": "-"}


def decode(data: bytes) -> list[str]:
    """Return the keys in one read from the terminal; an escape that begins no sequence means `q`."""
    keys: list[str] = []
    while data:
        for length in (3, 1):
            word = data[:length]
            if word in _SEQUENCES and (word != b"\x1b" or len(data) == 1):
                keys.append(_SEQUENCES[word])
                break
        else:
            length = 1
            if data[:1] == b"\x1b":  # some other sequence: its letter ends it
                length = next((n + 1 for n, byte in enumerate(data) if n > 1 and 0x40 <= byte <= 0x7E), len(data))
            else:
                keys.append(_SINGLE.get(data[:1], data[:1].decode("ascii", "replace")))
        data = data[length:]
    return keys


def read_keys(terminal: Terminal, seconds: float) -> list[str]:
    """Keys pressed within `seconds`; `q` when the terminal is gone. None while another has it."""
    ready = select.select([terminal.fd], [], [], seconds)[0]
    if not terminal.acquire():
        if ready:
            time.sleep(seconds)  # what is typed there is the shell's
        return []
    if not ready:
        return []
    try:
        data = os.read(terminal.fd, 64)
    except OSError:
        data = b""
    return decode(data) if data else ["q"]
