"""Where a running guest has loaded its modules, and the breakpoints for their blocks.

The kernel tells the addresses of a module's sections to root, in /sys/module/NAME/sections: the guest's agent reads
them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pyvmm.cover.program import Block, Candidate, Program
from pyvmm.errors import ConfigError, HostError

_LINE: Final = re.compile(r"([A-Za-z0-9_]+)/sections/(\.[A-Za-z0-9_.]+):0x([0-9a-f]{1,16})")
_SECTION: Final = re.compile(r"\.[A-Za-z0-9_.]+")
_MODULE: Final = re.compile(r"[A-Za-z0-9_]+")
_WORD: Final = 8  # bytes that a CPU stores at once

Placed = tuple[int, bytes | None]
"""A breakpoint's virtual address and the bytes expected there, None if they are not known."""


def sections_command(programs: Sequence[Program]) -> str:
    """Return the shell command that prints the addresses of the sections with code.

    By one program: the kernel refuses to let a file in sections/ be read byte by byte, as a shell's `read` does.
    """
    wanted = []
    for program in programs:
        if not _MODULE.fullmatch(program.name):
            raise ConfigError(f"{program.name!r} is no module's name")
        if program.builtin:
            continue
        used = {program.sections[block.section] for block in program.blocks if block.kind in ("code", "tracing")}
        wanted += [f"{program.name}/sections/{name}" for name in sorted(used) if _SECTION.fullmatch(name)]
    symbols = [
        f"sed -n '/ _text$/{{s/ .*//;s,^,{program.name}/sections/.text:0x,p;q}}' /proc/kallsyms"
        for program in programs
        if program.builtin
    ]
    sections = [f"cd /sys/module && grep -H 0x {' '.join(wanted)} 2>/dev/null"] if wanted else []
    return "; ".join([*sections, *symbols, "true"])


def parse_sections(output: str) -> dict[str, dict[str, int]]:
    """Return the addresses of sections, by module. Other lines are ignored."""
    found: dict[str, dict[str, int]] = {}
    for line in output.splitlines():
        if match := _LINE.fullmatch(line.strip()):
            module, section, digits = match.groups()
            found.setdefault(module, {})[section] = int(digits, 16)
    return found


@dataclass(slots=True)
class Layout:
    """The addresses of one module's sections in the guest."""

    program: Program
    sections: dict[str, int]

    @classmethod
    def of(cls, program: Program, found: dict[str, dict[str, int]]) -> Layout:
        """Return a module's layout. Raises ConfigError if the guest has not loaded it, HostError if it hides it."""
        sections = found.get(program.name)
        if sections is None:
            raise ConfigError(f"the guest has not loaded the module {program.name}")
        if not any(sections.values()):
            raise HostError(
                f"the guest hides the addresses of {program.name}: boot it with sysctl.kernel.kptr_restrict=0"
            )
        return cls(program, sections)

    def address(self, section: int, offset: int) -> int | None:
        """Return the address of an offset in a section; None if the section is not in memory."""
        start = self.sections.get(self.program.sections[section], 0)
        return start - self.program.base[section] + offset if start else None

    def sites(self) -> list[Placed | None]:
        """Return where each block's breakpoint goes; None for those without a place."""
        return [self._site(block) for block in self.program.blocks]

    def exits(self) -> list[int]:
        """Return the addresses where the module begins to unload: its exit function's first block."""
        found = []
        for name in self.program.exits:
            section, offset, _ = self.program.functions[name]
            site = next(
                (self._site(b) for b in self.program.blocks if (b.section, b.offset) == (section, offset)), None
            )
            if site is not None:
                found.append(site[0])
        return found

    def _site(self, block: Block) -> Placed | None:
        if block.kind in ("init", "load"):
            return None
        best: tuple[int, int, int, Candidate] | None = None
        for order, candidate in enumerate(block.candidates):
            address = self.address(block.section, candidate.offset)
            if address is None:
                return None
            rank = (2 * (not candidate.whole) + (address % _WORD == _WORD - 1), order, address, candidate)
            if best is None or rank[:2] < best[:2]:
                best = rank
        if best is None:
            return None
        expected = best[3].expected
        return best[2], bytes.fromhex(expected) if expected else None
