"""The value of `--disk`: a file and its options, in the manner of QEMU's -drive.

FILE[,ro][,format=raw|qcow2|...][,id=NAME][,serial=TEXT][,werror=report|stop|enospc][,rerror=report|stop]
`,,` is a comma in FILE
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from pyvmm.errors import ConfigError

Format = Literal["raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc"]
ErrorPolicy = Literal["report", "stop", "enospc"]
"""What an error of writing does: the guest sees it; the machine pauses; it pauses for want of space, else report."""

PROGRAM = "qemu-storage-daemon"
"""What serves images of other formats than raw."""

ReadErrorPolicy = Literal["report", "stop"]
"""What an error of reading does."""

FORMATS = get_args(Format)
POLICIES = get_args(ErrorPolicy)
READ_POLICIES = get_args(ReadErrorPolicy)

_SEPARATOR = re.compile(r"(?<!,)((?:,,)*),(?!,)")
_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_SERIAL = re.compile(r"[!-+\--~]{1,36}")
_KEYS = "ro, format=, id=, serial=, werror=, rerror="


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """What the user asked for. `id` and `serial` may be empty: the machine chooses them."""

    path: str
    read_only: bool = False
    format: Format | None = None  # None: raw
    id: str = ""
    serial: str = ""
    werror: ErrorPolicy = "enospc"
    rerror: ReadErrorPolicy = "report"

    def __str__(self) -> str:
        """Return the value of `--disk`."""
        words = [self.path.replace(",", ",,")]
        words += ["ro"] if self.read_only else []
        words += [f"format={self.format}"] if self.format is not None else []
        words += [f"id={self.id}"] if self.id else []
        words += [f"serial={self.serial}"] if self.serial else []
        words += [f"werror={self.werror}"] if self.werror != "enospc" else []
        words += [f"rerror={self.rerror}"] if self.rerror != "report" else []
        return ",".join(words)

    def at(self, path: str) -> DiskSpec:
        """Return the same disk at another path."""
        return replace(self, path=path)


def parse_disk(text: str) -> DiskSpec:
    """Parse the value of `--disk`. Raises ConfigError."""
    path, *words = _SEPARATOR.sub(lambda match: match[1] + "\0", text).split("\0")
    path = path.replace(",,", ",")
    if not path:
        raise ConfigError(f"{text[:40]!r} names no file; a disk is FILE[,ro][,format=raw]...")
    spec = DiskSpec(path)
    for word in words:
        key, given, value = word.replace(",,", ",").partition("=")
        match key, given:
            case "ro", "":
                spec = replace(spec, read_only=True)
            case "format", "=":
                _check(key, value, value in FORMATS, ", ".join(FORMATS))
                spec = replace(spec, format=cast(Format, value))
            case "werror", "=":
                _check(key, value, value in POLICIES, ", ".join(POLICIES))
                spec = replace(spec, werror=cast(ErrorPolicy, value))
            case "rerror", "=":
                _check(key, value, value in READ_POLICIES, ", ".join(READ_POLICIES))
                spec = replace(spec, rerror=cast(ReadErrorPolicy, value))
            case "id", "=":
                check_id(value)
                spec = replace(spec, id=value)
            case "serial", "=":
                _check(key, value, _SERIAL.fullmatch(value) is not None, "1 to 36 printing ASCII characters")
                spec = replace(spec, serial=value)
            case _:
                raise ConfigError(f"{word[:40]!r} is no option of a disk; there are {_KEYS}")
    return spec


def check_id(text: str) -> None:
    """Raise ConfigError if `text` cannot be a disk's id."""
    _check("id", text, _ID.fullmatch(text) is not None, "a letter, then letters, digits and ._-, 64 in all")


def _check(key: str, value: str, good: bool, wanted: str) -> None:
    if not good:
        raise ConfigError(f"{key}={value[:40]!r}: it may be {wanted}")
