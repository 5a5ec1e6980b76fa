"""Code of a kernel module before it is disassembled: sections, functions and what the kernel's tables say of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol


class Place(NamedTuple):
    """An address in the file: an offset in one of its sections."""

    section: int
    offset: int

    def plus(self, count: int) -> Place:
        """Return the place `count` bytes on."""
        return Place(self.section, self.offset + count)


class Rewrite(StrEnum):
    """Why the kernel writes to a site of the code."""

    FENTRY = "ftrace"
    JUMP_LABEL = "jump label"
    STATIC_CALL = "static call"
    SMP_LOCK = "lock prefix"
    ALTERNATIVE = "alternative"
    PARAVIRT = "paravirt"
    RETPOLINE = "retpoline"
    RETURN = "return"
    CALL = "call"

    @property
    def live(self) -> bool:
        """Whether the site is written at any time, not only while the module is loaded."""
        return self in (Rewrite.FENTRY, Rewrite.JUMP_LABEL, Rewrite.STATIC_CALL, Rewrite.SMP_LOCK)


@dataclass(frozen=True, slots=True)
class Site:
    """Bytes that the kernel rewrites."""

    place: Place
    size: int
    why: Rewrite


class Branches(Protocol):
    """Resolves the operand of a branch."""

    def __call__(self, at: Place, size: int, operand: int | None) -> Place | str | None:
        """Return where the instruction of `size` bytes at `at` goes: a place, or the name of a symbol outside.

        `operand`: the displacement's target as decoded, None for an indirect branch. None: it is not known.
        """


class Loading(NamedTuple):
    """What finds a module in memory before its init function has run: the offset of `name` in its struct module, the
    size of that, in which a pointer to the module's code is, and where each section lies from there.
    """

    name_at: int
    size: int
    sections: dict[int, int]


@dataclass(slots=True)
class Image:
    """A module's code and tables."""

    name: str
    build_id: str
    sections: dict[int, str]  # names, of sections with code
    code: dict[int, bytes]
    base: dict[int, int]  # the address at which a section was linked: 0 in a module
    file_offsets: dict[int, int]
    functions: dict[Place, tuple[str, int]]  # name, size
    branch: Branches
    operand: Branches
    """Like `branch`, of a data operand or immediate: for the text of an instruction."""
    jump_labels: dict[Place, Place] = field(default_factory=dict)  # to where it jumps when it is on
    traps: dict[Place, bool] = field(default_factory=dict)  # ud2 of WARN (True) and BUG (False)
    leaders: set[Place] = field(default_factory=set)  # exception fix-ups, jumps of alternatives
    tables: dict[Place, list[Place]] = field(default_factory=dict)  # an indirect jump's switch table
    sites: list[Site] = field(default_factory=list)
    relocated: dict[int, set[int]] = field(default_factory=dict)  # offsets of bytes that loading changes
    builtin: bool = False  # whether it is part of a vmlinux
    loading: Loading | None = None  # None: it cannot be found before the guest tells of it
