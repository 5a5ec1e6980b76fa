"""Where a debugger connects, as a user writes it.

127.0.0.1:1234, localhost:1234, [::1]:1234, :1234 (this computer only)       TCP
./gdb.sock, /run/user/1000/gdb.sock                                          a Unix socket: it has a slash
"""

from __future__ import annotations

from pathlib import Path

from pyvmm.errors import ConfigError

Place = Path | tuple[str, int]
"""A Unix socket's path, or host and port."""

AUTO = "auto"
"""`--gdb` without a place: a Unix socket beside the monitor's."""

THIS_COMPUTER = "127.0.0.1"


def parse_place(text: str) -> Place:
    """Return the place that the user wrote. Raises ConfigError."""
    if "/" in text:
        return Path(text)
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal() and len(port) < 6) or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"{text[:60]!r} is neither HOST:PORT nor a path with a slash, as in :1234 or ./gdb.sock")
    return host.removeprefix("[").removesuffix("]") or THIS_COMPUTER, int(port)


def read_place(text: str) -> str:
    """Check a value of `--gdb` and return it. Raises ConfigError."""
    if text != AUTO:
        parse_place(text)
    return text


def gdb_place(text: str | None, monitor: Path) -> Place | None:
    """Return the place for a value of `--gdb`, of a machine whose monitor listens at `monitor`; None without one."""
    if text is None:
        return None
    return monitor.with_suffix(".gdb") if text == AUTO else parse_place(text)


def show_place(place: Place) -> str:
    """Return the place as GDB's `target remote` takes it."""
    if isinstance(place, Path):
        return str(place)
    host, port = place
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
