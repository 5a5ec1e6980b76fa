"""Safe reading of files that a user names or a cache holds: with a size limit, and with errors of one line.

A path may lead to anything: a folder, a FIFO without a writer, /dev/zero, a file of any size that is truncated while
it is read. Only regular files are read here, opening one never blocks, and every failure is a FileError that names
the file. Code that reads a cache treats FileError as a cache miss.
"""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pyvmm.errors import ConfigError

MIB = 1 << 20
TEXT_LIMIT = 16 * MIB
"""Largest text file in bytes; kernel configurations and module lists have half a megabyte."""

JSON_LIMIT = 16 * MIB
"""Limit in bytes of a JSON file of ours; the largest, a saved host's description, has some 100 KiB."""

DEPTH_LIMIT = 100
"""Deepest nesting of objects and arrays in a JSON text: parsing and encoding recurse."""

NUMBER_LIMIT = 20
"""Longest integer in JSON, in characters: 64 bits have 20 digits. Longer ones stay text: no size or count."""

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class FileError(ConfigError):
    """A file cannot be read, or has unexpected contents."""


def open_regular(path: str | os.PathLike[str]) -> int:
    """Open the regular file at `path` and return its descriptor. Raises FileError, also for other types of file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise FileError(f"{shown(path)}: {_reason(path, error)}") from error
    except ValueError as error:
        raise FileError(f"{shown(path)}: no file can have such a name") from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            if stat.S_ISDIR(mode):
                raise FileError(f"{shown(path)}: {os.strerror(errno.EISDIR)}")
            kind = next((words for test, words in _KINDS if test(mode)), "something else")
            raise FileError(f"{shown(path)}: it is {kind}, not a file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _reason(path: str | os.PathLike[str], error: OSError) -> str:
    """Return the text for a failed open: a socket fails with ENXIO, whose own text is unspecific."""
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            return "it is a socket, not a file"
    except OSError:
        pass
    return error.strerror or str(error)


def read_file(path: str | os.PathLike[str], limit: int) -> bytes:
    """Return the contents of a regular file of at most `limit` bytes. Raises FileError."""
    descriptor = open_regular(path)
    try:
        with io.FileIO(descriptor) as file:
            made = bytearray()
            while len(made) <= limit and (piece := file.read(min(4 * MIB, limit + 1 - len(made)))):
                made += piece
    except OSError as error:
        raise FileError(f"{shown(path)}: {error.strerror}") from error
    if len(made) > limit:
        raise FileError(f"{shown(path)} is larger than {_size(limit)}, the most that is read of such a file")
    return bytes(made)


def read_text(path: str | os.PathLike[str], limit: int = TEXT_LIMIT) -> str:
    """Return a regular file's contents as text; bytes that are no UTF-8 become U+FFFD."""
    return read_file(path, limit).decode("utf-8", "replace")


class FileBytes:
    """A regular file as a sequence of bytes: `len`, and slices that are read on demand.

    A read past a truncated file's end raises FileError; in a mapping it would be a fatal SIGBUS.
    """

    def __init__(self, path: Path, opener: Callable[[Path], int] = open_regular) -> None:
        self.name = shown(path)
        self.descriptor = opener(path)
        self._size = os.fstat(self.descriptor).st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, where: slice) -> bytes:
        start, end, _ = where.indices(self._size)
        made = bytearray()
        while start + len(made) < end:
            try:
                piece = os.pread(self.descriptor, min(end - start - len(made), 16 * MIB), start + len(made))
            except OSError as error:
                raise FileError(f"{self.name}: {error.strerror}") from error
            if not piece:
                raise FileError(f"{self.name}: became shorter while it was read")
            made += piece
        return bytes(made)

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __del__(self) -> None:
        if getattr(self, "descriptor", -1) >= 0:
            self.close()


def _integer(text: str) -> int | str:
    return int(text) if len(text) <= NUMBER_LIMIT else text


def _float(text: str) -> float | str:
    number = float(text)
    return number if abs(number) < float("inf") else text


DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_float, parse_constant=str)
"""Decodes untrusted JSON: numbers beyond 64 bits or a double, NaN and Infinity stay text."""


def parse_json(text: str) -> Any:
    """Parse a JSON text. Raises ValueError if it is invalid, or nested deeper than DEPTH_LIMIT."""
    if text.count("[") + text.count("{") > DEPTH_LIMIT and _depth(text) > DEPTH_LIMIT:
        raise ValueError("nested too deep")
    return DECODER.decode(text)


def _depth(text: str) -> int:
    """Return the nesting depth of brackets, those in strings included: files of ours are far from the limit."""
    depth = most = 0
    for letter in text:
        if letter in "[{":
            depth += 1
            most = max(most, depth)
        elif letter in "]}":
            depth -= 1
    return most


Shape = type | tuple[type, ...] | list[Any] | dict[Any, Any]
"""The required type of a member: a type, `[type]` for a list of them, `{str: type}` for an object of them."""


def load_object(path: str | os.PathLike[str], members: Mapping[str, Shape]) -> dict[str, Any]:
    """Load a file's JSON object, and check that `members` exist in their shapes; others pass. Raises FileError."""
    try:
        return parse_object(read_text(path, JSON_LIMIT), members)
    except ValueError as error:
        raise FileError(f"{shown(path)}: damaged: {error}; remove it") from error


def parse_object(text: str, members: Mapping[str, Shape]) -> dict[str, Any]:
    """Parse a JSON object and check its members as `load_object` does. Raises ValueError."""
    found = parse_json(text)
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    for name, shape in members.items():
        if name not in found:
            raise ValueError(f"no member {name!r}")
        if not _fits(found[name], shape):
            raise ValueError(f"member {name!r} is of another kind")
    return found


def _fits(value: Any, shape: Shape) -> bool:
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(each, shape[0]) for each in value)
    if isinstance(shape, dict):
        [inner] = shape.values()
        return isinstance(value, dict) and all(_fits(each, inner) for each in value.values())
    if isinstance(value, bool):
        return bool in shape if isinstance(shape, tuple) else shape is bool
    if isinstance(value, str) and "\0" in value:
        return False  # no path or name of ours contains one
    return isinstance(value, shape)


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path for a message, shortened beyond 300 characters."""
    text = os.fspath(path)
    text = text if isinstance(text, str) else os.fsdecode(text)
    return text if len(text) <= 300 else f"{text[:140]}…{text[-140:]}"


def _size(limit: int) -> str:
    return f"{limit >> 20} MiB" if limit >= MIB else f"{limit >> 10} KiB"
