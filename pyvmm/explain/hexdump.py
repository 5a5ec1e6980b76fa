"""Bytes as people paste them: hexadecimal digits in any grouping, dumps of xxd, hexdump -C and Linux, C and Python.

0e00000000000000          0e 00 00 00           0x0e, 0x00, 0x00         b"\\x0e\\x00"
00000000: 0e00 0000 0300 0500  ........         00000000  0e 00 00 00  00 00 00 00  |........|
"""

from __future__ import annotations

import re
from pathlib import Path

from pyvmm.errors import ConfigError

SIZE_LIMIT = 1 << 16
"""Bytes that are decoded: the largest packet of a ring that Linux sends is shorter."""
TEXT_LIMIT = 8 * SIZE_LIMIT

_OFFSET = re.compile(r"^\s*(?:\[[^\]]*\]\s*)?(?:[\w .-]*?:\s+)?(?:0x)?[0-9a-fA-F]{4,16}:\s+")
_CANONICAL = re.compile(r"^\s*[0-9a-fA-F]{6,16}(?:  |$)")
_SHORT_NUMBER = re.compile(r"0[xX][0-9a-fA-F]{1,16}")


def looks_like_bytes(word: str) -> bool:
    """Return whether a word is bytes rather than a number: digits in pairs, several groups, or more than 64 bits."""
    text = word.strip()
    if "\n" in text or re.match(r"b?['\"]?\\x", text):
        return True
    if _SHORT_NUMBER.fullmatch(text):
        return False
    groups = re.split(r"[\s,:;]+", text.strip(" ,:;{}[]"))
    if not all(re.fullmatch(r"(?:0[xX])?(?:[0-9a-fA-F]{2})+", group) for group in groups):
        return False
    digits = sum(len(group.lower().removeprefix("0x")) for group in groups)
    if len(groups) > 1:
        return digits >= 4
    return digits > 16 or (not text.isdecimal() and digits >= 8) or (text.startswith("0") and digits >= 8)


def parse(text: str) -> bytes:
    """Return the bytes that a text shows. Raises ConfigError."""
    if len(text) > TEXT_LIMIT:
        raise ConfigError(f"{len(text)} characters of bytes: give {TEXT_LIMIT} at most")
    lines = text.splitlines()
    if "|" in text and re.fullmatch(r"[0-9a-fA-F]{6,16}", lines[-1].strip()):
        lines.pop()  # hexdump -C ends with the length
    digits = "".join(map(_line, lines))
    wrong = re.search(r"[^0-9a-fA-F]", digits)
    if wrong:
        raise ConfigError(f"{wrong[0]!r} is no hexadecimal digit: give bytes as in 0e000000, or a dump of xxd")
    if len(digits) % 2:
        raise ConfigError(f"{len(digits)} hexadecimal digits are no whole bytes: two for each")
    if not digits:
        raise ConfigError("no bytes: give hexadecimal digits, as in 0e000000, or a dump of xxd")
    if len(digits) > 2 * SIZE_LIMIT:
        raise ConfigError(f"{len(digits) // 2} bytes: give {SIZE_LIMIT} at most")
    return bytes.fromhex(digits)


def _line(line: str) -> str:
    """Return the hexadecimal digits of a line, without its offset and its characters."""
    if "|" in line:  # hexdump -C
        line = line.partition("|")[0]
        line = _CANONICAL.sub("", line, count=1)
    elif found := _OFFSET.match(line):  # xxd, print_hex_dump()
        line = re.split(r"\s{2,}", line[found.end() :].strip(), maxsplit=1)[0]
    line = re.sub(r"\\x|0[xX]|b['\"]", " ", line)
    return re.sub(r"[\s,:;{}\[\]()'\"]+", "", line)


def read(path: Path) -> bytes:
    """Return the bytes of a file: those that its text shows, or its own if it is no text. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"{path}: no file")
    with path.open("rb") as file:
        data = file.read(TEXT_LIMIT + 1)
    if len(data) > TEXT_LIMIT:
        raise ConfigError(f"{path}: longer than {TEXT_LIMIT} bytes")
    try:
        return parse(data.decode("ascii"))
    except (UnicodeDecodeError, ConfigError):
        if data.isascii() and data.decode("ascii").isprintable():
            raise
    return data[:SIZE_LIMIT]
