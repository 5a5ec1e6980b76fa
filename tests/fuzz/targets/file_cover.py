"""Coverage: modules' ELF files, the kernel's table of symbols, what the monitor and saved records hold."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pyvmm.cover.descent import analyse
from pyvmm.cover.elf import module_image
from pyvmm.cover.goals import parse_goals
from pyvmm.cover.guest import parse_sections
from pyvmm.cover.program import Program
from pyvmm.cover.record import parse_record
from pyvmm.cover.rules import parse_rules
from pyvmm.cover_sites import parse_hits, parse_sites
from pyvmm.errors import ConfigError
from pyvmm.kallsyms import NoSymbolsError, read_kallsyms
from tests.support.sample_code import assemble


@cache
def _module() -> bytes:
    try:
        with TemporaryDirectory() as folder:
            return assemble(Path(folder)).read_bytes()
    except pytest.skip.Exception:  # no gcc
        return b"\x7fELF\x02\x01\x01"


def elf(data: bytes) -> None:
    """A module, some of whose bytes are others: each three of the input are a place and a value."""
    whole = bytearray(_module())
    for at in range(0, len(data) - 2, 3):
        whole[int.from_bytes(data[at : at + 2], "little") % len(whole)] = data[at + 2]
    for each in (bytes(whole), data):
        with suppress(ConfigError):
            analyse(module_image(each, "x", "x"))


def text(data: bytes) -> None:
    """What is kept in the cache and in records, told by the guest, and sent over the monitor."""
    words = data.decode("utf-8", "replace")
    Program.from_json(words, lambda: words)
    parse_sections(words)
    for read in (
        lambda: parse_sites(len(data), words),
        lambda: parse_hits(words),
        lambda: parse_record(words, "x"),
        lambda: parse_rules(words, "x"),
        lambda: parse_goals(words),
    ):
        with suppress(ConfigError):
            read()


def symbols(data: bytes) -> None:
    """A table of symbols whose first part is of one that is whole."""
    tokens = b"".join(b"%c\0" % n if 32 < n < 127 else b"\0" for n in range(256))
    for each in (data, data[: len(data) // 2] + tokens + data[len(data) // 2 :]):
        with suppress(NoSymbolsError):
            read_kallsyms(each, lambda at: 0xFFFF_FFFF_8200_0000 + at)


TARGETS = {"file_cover_module": elf, "file_cover_text": text, "file_cover_symbols": symbols}
