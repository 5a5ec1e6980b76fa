"""A module that is built into the kernel, as hv_vmbus is since Linux 7: its part of a vmlinux as an Image.

The functions of one folder of the kernel's source follow one another in .text, because they are linked in that order:
from the first to the last symbol with a name of the module's, all are its. The cold parts lie elsewhere and are found
by name. What is known by relocations in a module is read from the kernel's tables here, whose places symbols tell.

Source: Linux include/asm-generic/vmlinux.lds.h for the tables' names.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

from pyvmm.cover.image import Image, Place, Rewrite, Site
from pyvmm.cover.tools import load
from pyvmm.errors import ConfigError
from pyvmm.files import read_file
from pyvmm.kallsyms import NoSymbolsError, read_kallsyms

BUILT_IN: Final = {"hv_vmbus": re.compile(r"vmbus|^hv_(ring|synic|pkt|hyp_synic)")}
"""Modules that are found in a vmlinux: what their functions' names have in common."""

VMLINUX_LIMIT: Final = 2 << 30
_GAP: Final = 60  # symbols of other names within a module's functions
_PADDING: Final = ("__pfx_", "__cfi_")
_SECTION: Final = 0
_UD2: Final = b"\x0f\x0b"
_RELATIVE: Final = (
    # first and last symbol, bytes of an entry, bytes of the site, why
    ("__start_static_call_sites", "__stop_static_call_sites", 8, 5, Rewrite.STATIC_CALL),
    ("__smp_locks", "__smp_locks_end", 4, 1, Rewrite.SMP_LOCK),
    ("__retpoline_sites", "__retpoline_sites_end", 4, 5, Rewrite.RETPOLINE),
    ("__return_sites", "__return_sites_end", 4, 5, Rewrite.RETURN),
)


def identity(build: str, name: str) -> str:
    """Return what stands for the build id of a module in a vmlinux."""
    return hashlib.sha1(f"{build} {name}".encode()).hexdigest()


def load_builtin(path: Path, name: str, build: str) -> Image:
    """Return the Image of a module in a vmlinux of this build id. Raises ConfigError."""
    elf = load("elftools.elf.elffile").ELFFile(io.BytesIO(read_file(path, VMLINUX_LIMIT)))
    kernel = _Kernel(elf, str(path))
    functions = kernel.functions(BUILT_IN[name])
    if not functions:
        raise ConfigError(f"{path}: has no functions of {name}")
    return kernel.image(name, identity(build, name), functions)


class _Kernel:
    """A vmlinux: its sections by address, and its symbols."""

    def __init__(self, elf: Any, where: str) -> None:
        sections = [s for s in elf.iter_sections() if s["sh_addr"] and s["sh_type"] == "SHT_PROGBITS"]
        self._parts = {s.name: (int(s["sh_addr"]), int(s["sh_offset"]), s.data()) for s in sections}
        if ".text" not in self._parts or ".rodata" not in self._parts:
            raise ConfigError(f"{where}: not a vmlinux")
        self.text, self.file_offset, self.code = self._parts[".text"]
        table = elf.get_section_by_name(".symtab")
        self._symbols: list[tuple[int, str, str]] = []  # address, nm's letter, name
        if table is not None:
            kinds = {"STT_FUNC": "t"}
            found = [(int(s["st_value"]), str(s["st_info"]["type"]), str(s.name)) for s in table.iter_symbols()]
            self._symbols = sorted((at, kinds.get(kind, "d"), symbol) for at, kind, symbol in found)
        else:
            address, _, data = self._parts[".rodata"]
            try:
                tables = read_kallsyms(data, lambda at: address + at)
            except NoSymbolsError as error:
                raise ConfigError(f"{where}: {error}; a vmlinux that was not stripped has symbols") from None
            self._symbols = list(zip(tables.addresses, tables.types, tables.names, strict=True))
        self._by_name = {symbol: at for at, _, symbol in self._symbols}
        end = self.text + len(self.code)
        code = [(at, symbol) for at, kind, symbol in self._symbols if kind in "tTwW" and self.text <= at < end]
        self._ends = [*dict.fromkeys(at for at, _ in code), end]
        self._code = [(at, symbol) for at, symbol in code if not symbol.startswith(_PADDING)]
        self._starts = [at for at, _ in self._code]

    def functions(self, pattern: re.Pattern[str]) -> dict[Place, tuple[str, int]]:
        """Return the module's functions by place: those in the longest run of such names, and their cold parts."""
        matching = [n for n, (_, symbol) in enumerate(self._code) if pattern.search(symbol) and ".cold" not in symbol]
        runs: list[list[int]] = []
        for n in matching:
            if runs and n - runs[-1][-1] <= _GAP:
                runs[-1].append(n)
            else:
                runs.append([n])
        if not runs:
            return {}
        longest = max(runs, key=len)
        names = {self._code[n][1] for n in range(longest[0], longest[-1] + 1)}
        chosen = set(range(longest[0], longest[-1] + 1))
        cold = [(n, symbol.partition(".cold")) for n, (_, symbol) in enumerate(self._code)]
        chosen |= {n for n, (name, suffix, _) in cold if suffix and name in names}
        found: dict[Place, tuple[str, int]] = {}
        for n in sorted(chosen):
            at, symbol = self._code[n]
            following = self._ends[bisect_right(self._ends, at)]
            found.setdefault(Place(_SECTION, at - self.text), (symbol, following - at))
        return found

    def image(self, name: str, build_id: str, functions: dict[Place, tuple[str, int]]) -> Image:
        """Return the Image of these functions."""
        ranges = sorted((place.offset, place.offset + size) for place, (_, size) in functions.items())
        starts = [start for start, _ in ranges]

        def inside(offset: int) -> bool:
            n = bisect_right(starts, offset) - 1
            return n >= 0 and offset < ranges[n][1]

        def branch(at: Place, size: int, operand: int | None) -> Place | str | None:
            if operand is None:
                return None
            return Place(_SECTION, operand) if inside(operand) else self._name(self.text + operand)

        image = Image(
            name=name,
            build_id=build_id,
            sections={_SECTION: ".text"},
            code={_SECTION: self.code},
            base={_SECTION: 0},
            file_offsets={_SECTION: self.file_offset},
            functions=functions,
            branch=branch,
            operand=lambda at, size, operand: None,
            builtin=True,
        )
        for site in self._sites():
            if inside(site.place.offset):
                image.sites.append(site)
        for place, target in self._jump_labels():
            if inside(place.offset) and inside(target.offset):
                image.jump_labels[place] = target
                image.sites.append(Site(place, self._label_size(place.offset), Rewrite.JUMP_LABEL))
        step = self._bug_step()
        for at, entry in self._entries("__start___bug_table", "__stop___bug_table", step):
            offset = self._relative(at, entry) - self.text
            if inside(offset):
                image.traps[Place(_SECTION, offset)] = bool(entry[step - 2] & 1)
        for at, entry in self._entries("__start___ex_table", "__stop___ex_table", 12):
            offset = self._relative(at + 4, entry[4:]) - self.text
            if inside(offset):
                image.leaders.add(Place(_SECTION, offset))
        return image

    def _name(self, address: int) -> str:
        """Return the name of the code at an address outside of the module."""
        n = bisect_right(self._starts, address) - 1
        if n < 0:
            return f"{address:#x}"
        start, symbol = self._code[n]
        return symbol if start == address else f"{symbol}+{address - start:#x}"

    # Tables

    def _entries(self, first: str, last: str, step: int) -> Iterator[tuple[int, bytes]]:
        """Yield address and bytes of a table's entries."""
        start, end = self._by_name.get(first), self._by_name.get(last)
        if start is None or end is None:
            return
        for address, _, data in self._parts.values():
            if address <= start and end <= address + len(data):
                for at in range(start - address, end - address - step + 1, step):
                    yield address + at, data[at : at + step]
                return

    @staticmethod
    def _relative(at: int, field: bytes) -> int:
        (value,) = struct.unpack_from("<i", field)
        return at + int(value)

    def _sites(self) -> Iterator[Site]:
        for first, last, step, size, why in _RELATIVE:
            for at, entry in self._entries(first, last, step):
                yield Site(Place(_SECTION, self._relative(at, entry) - self.text), size, why)
        for _, entry in self._entries("__start_mcount_loc", "__stop_mcount_loc", 8):
            yield Site(Place(_SECTION, int.from_bytes(entry, "little") - self.text), 5, Rewrite.FENTRY)
        for at, entry in self._entries("__alt_instructions", "__alt_instructions_end", 14):
            yield Site(Place(_SECTION, self._relative(at, entry) - self.text), entry[12], Rewrite.ALTERNATIVE)

    def _jump_labels(self) -> Iterator[tuple[Place, Place]]:
        for at, entry in self._entries("__start___jump_table", "__stop___jump_table", 16):
            code, target = self._relative(at, entry), self._relative(at + 4, entry[4:])
            yield Place(_SECTION, code - self.text), Place(_SECTION, target - self.text)

    def _label_size(self, offset: int) -> int:
        from pyvmm.cover.elf import jump_label_size

        return jump_label_size(self.code, offset)

    def _bug_step(self) -> int:
        """Return the bytes of a struct bug_entry: with which most of them are of UD2."""
        found = {}
        for step in (12, 16):
            entries = self._entries("__start___bug_table", "__stop___bug_table", step)
            found[step] = sum(self._code_at(self._relative(*entry)) == _UD2 for entry in islice(entries, 256))
        return max(found, key=lambda step: found[step])

    def _code_at(self, address: int) -> bytes:
        for start, _, data in self._parts.values():
            if start <= address < start + len(data):
                return bytes(data[address - start : address - start + 2])
        return b""
