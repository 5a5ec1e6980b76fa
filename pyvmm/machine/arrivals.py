"""Modules that are covered from their first instruction on: found in memory before their init function runs.

The kernel has put a module in place, relocated and patched it, and is about to call do_init_module(mod). A breakpoint
lies on that call. struct module tells the name; its pointers are tried until one leads to the module's code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pyvmm.machine.watched import Site

if TYPE_CHECKING:
    from pyvmm.machine.guest_code import GuestCode

KERNEL_MAP: Final = 0xFFFF_FFFF_8000_0000
"""Where an x86-64 kernel maps physical address 0 for its code."""

_PAGE: Final = 4096
_POINTER: Final = 8
_TRIED: Final = 16  # known sites that a pointer's target is compared with


@dataclass(frozen=True, slots=True)
class Arrival:
    """A module that the guest has yet to load.

    `name_at`: the offset of the name in its struct module of `size` bytes. Addresses in `sites` and `exits` count
    from the start of its code.
    """

    name: str
    build_id: str
    name_at: int
    size: int
    sites: tuple[Site | None, ...]
    exits: tuple[int, ...]

    def is_at(self, address: int, code: GuestCode) -> bool:
        """Return whether the struct module at `address` has this module's name."""
        name = self.name.encode() + b"\0"
        return code.read(address + self.name_at, len(name)) == name

    def base(self, address: int, code: GuestCode) -> int | None:
        """Return where the code of the module at `address` begins: where one of its pointers leads to. None if none
        does: the guest's module is not the one of the file.
        """
        known = [site for site in self.sites if site is not None and site.expected is not None][:_TRIED]
        data = code.read(address, self.size)
        for at in range(0, len(data) - _POINTER + 1, _POINTER):
            base = int.from_bytes(data[at : at + _POINTER], "little")
            if base < KERNEL_MAP or base % _PAGE:
                continue
            if known and all(
                code.read(base + each.address, len(each.expected or b"")) == each.expected for each in known
            ):
                return base
        return None

    def sites_at(self, base: int) -> list[Site | None]:
        """Return the sites with code that begins at `base`."""
        return [None if each is None else Site(base + each.address, each.expected) for each in self.sites]
