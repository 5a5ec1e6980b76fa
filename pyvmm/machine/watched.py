"""What self-handling breakpoints (`pyvmm.machine.traps`) are placed for: blocks of a module, and calls that fail."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pyvmm import qapi
from pyvmm.cover_sites import pack_hits


class Site(NamedTuple):
    """A place for a block's breakpoint: its virtual address and the two bytes there, None if they are not known."""

    address: int
    expected: bytes | None = None


class Watched:
    """The blocks of one module. `sites`: one a block, None for blocks without a place.

    `hits` has a byte for each block, in memory that forked processes share.
    """

    def __init__(self, name: str, build_id: str, sites: Sequence[Site | None]) -> None:
        self.name = name
        self.build_id = build_id
        self.sites = tuple(sites)
        self.hits = mmap.mmap(-1, max(1, len(sites)))
        self.placed: set[int] = set()  # blocks whose breakpoint was placed
        self.state: qapi.CoverState = "on"

    @property
    def seen(self) -> list[int]:
        """Return the numbers of the blocks that were hit."""
        return [number for number, hit in enumerate(self.hits[: len(self.sites)]) if hit]

    def describe(self) -> qapi.CoverInfo:
        """Return the monitor's answer about this module."""
        return {
            "module": self.name,
            "build-id": self.build_id,
            "state": self.state,
            "blocks": len(self.sites),
            "hits": pack_hits(len(self.sites), self.placed, set(self.seen)),
        }


@dataclass(slots=True)
class ForcedReturn:
    """Calls that return `value` without being made: after the first `skip` calls, `times` times (0: ever).

    `addresses`: where the calls are; they are counted together.
    """

    addresses: tuple[int, ...]
    value: int
    times: int
    skip: int = 0
    done: int = 0
    passed: int = 0

    @property
    def spent(self) -> bool:
        """Whether it has failed as often as it should."""
        return bool(self.times) and self.done >= self.times
