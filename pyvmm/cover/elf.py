"""A kernel module's ELF file as an Image: what its relocations and the kernel's tables in it say.

Source: Linux include/linux/{jump_label,static_call_types}.h, arch/x86/include/asm/{alternative,bug,extable,smp}.h,
arch/x86/kernel/module.c; the psABI for relocations.

A table's entry is relative to itself, so its relocation's symbol plus addend is the address. In code the field of a
call or a jump ends four bytes later, which is why its addend lacks four.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from pyvmm.cover.image import Image, Loading, Place, Rewrite, Site
from pyvmm.cover.tools import load
from pyvmm.errors import ConfigError
from pyvmm.images.modules import module_name, read_module

_ALLOCATED, _EXECUTABLE = 2, 4
_THIS_MODULE: Final = ".gnu.linkonce.this_module"
_PC_RELATIVE: Final = (2, 4)  # R_X86_64_PC32, PLT32
_WIDTH: Final = {1: 8, 2: 4, 4: 4, 10: 4, 11: 4, 24: 8}  # bytes of a relocation's field
_SIGNED_32, _ADDRESS_64 = 11, 1
_NOT_FUNCTIONS: Final = ("__pfx_", "__cfi_")
_TABLES: Final = {
    # section: bytes of an entry, bytes of the site, why
    ".retpoline_sites": (4, 5, Rewrite.RETPOLINE),
    ".return_sites": (4, 5, Rewrite.RETURN),
    ".call_sites": (4, 5, Rewrite.CALL),
    ".static_call_sites": (8, 5, Rewrite.STATIC_CALL),
    ".smp_locks": (4, 1, Rewrite.SMP_LOCK),
    "__mcount_loc": (8, 5, Rewrite.FENTRY),
}


class Relocation(NamedTuple):
    """One relocation: the symbol's section (None: outside), its name, its value, and type and addend."""

    section: int | None
    name: str
    value: int
    type: int
    addend: int

    def target(self, correction: int = 0) -> Place | str:
        """Return where it points; `correction` is added to the addend."""
        if self.section is None:
            return self.name
        return Place(self.section, self.value + self.addend + correction)


class ModuleFile:
    """The parts of a module's ELF file that are used. Raises ConfigError for another file."""

    def __init__(self, data: bytes, where: str) -> None:
        import io

        elffile, exceptions = load("elftools.elf.elffile"), load("elftools.common.exceptions")
        construct_error = load("elftools.construct").ConstructError
        try:
            elf = elffile.ELFFile(io.BytesIO(data))
            if elf["e_machine"] != "EM_X86_64" or elf["e_type"] != "ET_REL":
                raise ConfigError(f"{where}: not a kernel module for x86-64")
            self._read(elf, where)
        except (
            exceptions.ELFError,
            construct_error,
            AttributeError,
            KeyError,
            IndexError,
            TypeError,
            ValueError,
            struct.error,
            UnicodeDecodeError,
            OverflowError,
            MemoryError,
        ) as error:  # what pyelftools raises for a damaged file
            raise ConfigError(f"{where}: not a whole ELF file: {error or type(error).__name__}") from None

    def _read(self, elf: Any, where: str) -> None:
        sections = list(elf.iter_sections())
        self.offsets = {number: int(each["sh_offset"]) for number, each in enumerate(sections)}
        self.names = {number: str(each.name) for number, each in enumerate(sections)}
        self.data = {
            number: each.data()
            for number, each in enumerate(sections)
            if each["sh_type"] in ("SHT_PROGBITS", "SHT_NOTE")
        }
        self.code = {n: d for n, d in self.data.items() if sections[n]["sh_flags"] & _EXECUTABLE}
        both = _ALLOCATED | _EXECUTABLE
        self.alignments = {
            n: int(sections[n]["sh_addralign"]) for n in self.code if sections[n]["sh_flags"] & both == both
        }
        table = elf.get_section_by_name(".symtab")
        if table is None:
            raise ConfigError(f"{where}: it has no symbols, without which its functions cannot be found")
        symbols = [
            (str(s.name), s["st_shndx"], s["st_value"], s["st_size"], s["st_info"]["type"])
            for s in table.iter_symbols()
        ]
        self.functions: dict[Place, tuple[str, int]] = {}
        self.objects: list[tuple[Place, str, int]] = []
        for name, section, value, size, kind in symbols:
            if not isinstance(section, int):
                continue
            if kind == "STT_FUNC" and size and section in self.code and not name.startswith(_NOT_FUNCTIONS):
                self.functions.setdefault(Place(section, value), (name, size))
            elif kind == "STT_OBJECT":
                self.objects.append((Place(section, value), name, size))
        self.relocations: dict[int, dict[int, Relocation]] = {}
        for each in sections:
            if each["sh_type"] == "SHT_RELA":
                found = self.relocations.setdefault(each["sh_info"], {})
                for entry in each.iter_relocations():
                    name, section, value, _, _ = symbols[entry["r_info_sym"]]
                    inside = section if isinstance(section, int) else None
                    found[entry["r_offset"]] = Relocation(
                        inside, name, value, entry["r_info_type"], entry["r_addend"]
                    )

    def section(self, name: str) -> tuple[int, bytes]:
        """Return number and contents of the first section called `name`; (-1, b"") if there is none."""
        number = next((n for n, each in self.names.items() if each == name and n in self.data), -1)
        return number, self.data.get(number, b"")

    def pointer(self, section: int, offset: int) -> Place | str | None:
        """Return what the field at `offset` of a table points at."""
        found = self.relocations.get(section, {}).get(offset)
        return None if found is None else found.target()

    def build_id(self) -> str:
        """Return the build id in hexadecimal digits; of a file without one, its contents' digest."""
        _, note = self.section(".note.gnu.build-id")
        if len(note) > 16:
            return note[16:].hex()
        import hashlib

        return hashlib.sha1(b"".join(self.code.values())).hexdigest()


def load_module(path: Path) -> Image:
    """Read the module in a file, packed or not. Raises ConfigError."""
    return module_image(read_module(path), str(path), module_name(path))


def module_image(data: bytes, where: str, name: str) -> Image:
    """Return the Image of a module's contents. Raises ConfigError."""
    file = ModuleFile(data, where)

    def inside(at: Place, size: int) -> tuple[int, Relocation] | None:
        table = file.relocations.get(at.section, {})
        return next(((o, table[o]) for o in range(at.offset + 1, at.offset + size) if o in table), None)

    def branch(at: Place, size: int, operand: int | None) -> Place | str | None:
        found = inside(at, size)
        if found is None:
            return None if operand is None else Place(at.section, operand)
        offset, relocation = found
        if relocation.type in _PC_RELATIVE:
            return relocation.target(at.offset + size - offset)
        return relocation.target()

    image = Image(
        name=name,
        build_id=file.build_id(),
        sections={number: file.names[number] for number in file.code},
        code=file.code,
        base=dict.fromkeys(file.code, 0),
        file_offsets=file.offsets,
        functions=file.functions,
        branch=branch,
        operand=branch,
        loading=_loading(file, name),
    )
    _add_tables(file, image)
    for number in file.code:
        image.relocated[number] = {
            offset + n
            for offset, each in file.relocations.get(number, {}).items()
            for n in range(_WIDTH.get(each.type, 8))
        }
    return image


def _loading(file: ModuleFile, name: str) -> Loading | None:
    """Return how the module is found in memory; None for a file that lacks struct module.

    The kernel puts all sections with code but .init* one behind the other, in the file's order (kernel/module/main.c,
    layout_sections). struct module is a section of the file.
    """
    sections: dict[int, int] = {}
    end = 0
    for number in sorted(file.alignments):
        if not file.names[number].startswith(".init"):
            step = max(1, file.alignments[number])
            sections[number] = -(-end // step) * step
            end = sections[number] + len(file.code[number])
    _, data = file.section(_THIS_MODULE)
    name_at = data.find(name.encode() + b"\0")
    return Loading(name_at, len(data), sections) if name_at >= 0 else None


def _places(file: ModuleFile, name: str, step: int, at: int = 0) -> Iterator[tuple[int, Place, bytes]]:
    """Yield the section's number, the place that a table's entry points at in field `at`, and the entry."""
    number, data = file.section(name)
    for offset in range(0, len(data) - step + 1, step):
        found = file.pointer(number, offset + at)
        if isinstance(found, Place) and found.section in file.code:
            yield offset, found, data[offset : offset + step]


def _add_tables(file: ModuleFile, image: Image) -> None:
    for name, (step, size, why) in _TABLES.items():
        image.sites += [Site(place, size, why) for _, place, _ in _places(file, name, step)]
    number, _ = file.section("__jump_table")
    for offset, place, _ in _places(file, "__jump_table", 16):
        target = file.pointer(number, offset + 4)
        if isinstance(target, Place):
            image.jump_labels[place] = target
            image.sites.append(
                Site(place, jump_label_size(file.code[place.section], place.offset), Rewrite.JUMP_LABEL)
            )
    step = _bug_entry(file)
    for _, place, entry in _places(file, "__bug_table", step):
        (flags,) = struct.unpack_from("<H", entry, step - 2)
        image.traps[place] = bool(flags & 1)  # BUGFLAG_WARNING
    for _, place, _ in _places(file, "__ex_table", 12, at=4):
        image.leaders.add(place)
    _add_alternatives(file, image)
    number, data = file.section(".parainstructions")
    for offset in sorted(file.relocations.get(number, {})):
        site = file.pointer(number, offset)
        if isinstance(site, Place) and offset + 10 <= len(data):
            image.sites.append(Site(site, data[offset + 9], Rewrite.PARAVIRT))
    _add_switches(file, image)


def _bug_entry(file: ModuleFile) -> int:
    """Return the bytes of a struct bug_entry, whose flags are last: 12, or 16 with a WARN's text (7.2)."""
    number, data = file.section("__bug_table")
    code = [at for at, each in file.relocations.get(number, {}).items() if each.section in file.code]
    steps = [second - first for first, second in itertools.pairwise(sorted(code))]
    return min(steps, default=len(data) or 12)


def jump_label_size(code: bytes, offset: int) -> int:
    """Return the bytes of a jump label as compiled: a NOP or a jump of two or five."""
    return 2 if code[offset : offset + 2] in (b"\x66\x90",) or code[offset : offset + 1] == b"\xeb" else 5


def _add_alternatives(file: ModuleFile, image: Image) -> None:
    """Add the sites of .altinstructions. An entry has 12 bytes; since Linux 6.4 (flags of 32 bits) 14."""
    number, data = file.section(".altinstructions")
    count = len(file.relocations.get(number, {})) // 2
    step = len(data) // count if count else 12
    for offset, place, entry in _places(file, ".altinstructions", step):
        size, replacement_size = entry[step - 2], entry[step - 1]
        image.sites.append(Site(place, size, Rewrite.ALTERNATIVE))
        replacement = file.pointer(number, offset + 4)
        if isinstance(replacement, Place) and replacement_size == 5:  # a jump: into .altinstr_aux or the function
            target = image.branch(replacement, 5, None)
            if isinstance(target, Place):
                image.leaders.add(target)


def _add_switches(file: ModuleFile, image: Image) -> None:
    """Find the tables of addresses in .rodata that code refers to: switches, where retpolines do not forbid them."""
    for section in file.code:
        for offset, relocation in file.relocations.get(section, {}).items():
            if relocation.type != _SIGNED_32 or relocation.section is None:
                continue
            if not file.names[relocation.section].startswith(".rodata"):
                continue
            entries = file.relocations.get(relocation.section, {})
            at, targets = relocation.value + relocation.addend, []
            while (entry := entries.get(at)) is not None and entry.type == _ADDRESS_64:
                target = entry.target()
                if not isinstance(target, Place) or target.section not in file.code:
                    break
                targets.append(target)
                at += 8
            if targets:
                image.tables[Place(section, offset)] = targets
