"""Guest RAM is frozen: kept as it is, shared with forks until one writes, and discarded pages are zeros."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvmm import memory as memory_module
from pyvmm.errors import HostError
from pyvmm.memory import PAGE_SIZE, HostMemory
from pyvmm.private_copy import CHUNK, GRANULE

SIZE = 4 * GRANULE
PLACES = (0, CHUNK - 1, GRANULE + PAGE_SIZE, SIZE - 1)


@pytest.fixture(params=["anonymous", "memfd"])
def memory(request: pytest.FixtureRequest) -> HostMemory:
    """Memory with a byte at each of PLACES, in all granules but the third."""
    if request.param == "memfd":
        fd = os.memfd_create("test")
        os.ftruncate(fd, SIZE)
        made = HostMemory(SIZE, fd=fd)
        os.close(fd)
    else:
        made = HostMemory(SIZE)
    for place in PLACES:
        made.view[place] = 0x5A
    return made


def mappings() -> list[str]:
    return [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if "pyvmm-frozen" in line]


def in_child(work) -> int:  # type: ignore[no-untyped-def]
    pid = os.fork()
    if not pid:
        status = 99
        try:
            status = int(work())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def content(memory: HostMemory) -> dict[int, int]:
    data = bytes(memory.view)
    return {place: data[place] for place in range(SIZE) if data[place]} if data.count(0) < SIZE else {}


def test_the_content_stays_where_it_was(memory: HostMemory) -> None:
    before = content(memory)
    assert before == dict.fromkeys(PLACES, 0x5A)
    memory.freeze()
    assert (content(memory), memory.shared) == (before, False)


def test_empty_granules_are_not_part_of_the_file(memory: HostMemory) -> None:
    before = mappings()
    memory.freeze()
    made = [each for each in mappings() if each not in before]
    spans = [tuple(int(end, 16) - memory.address for end in each.split("-")) for each in made]
    assert memory.frozen_parts == [(0, 2 * GRANULE), (3 * GRANULE, GRANULE)]
    assert spans == [(0, 2 * GRANULE), (3 * GRANULE, 4 * GRANULE)]


def test_a_forks_writes_are_its_own(memory: HostMemory) -> None:
    memory.freeze()

    def write() -> bool:
        memory.view[0], memory.view[2 * GRANULE] = 1, 2
        return (memory.view[0], memory.view[2 * GRANULE]) != (1, 2)

    assert in_child(write) == 0
    assert (memory.view[0], memory.view[2 * GRANULE]) == (0x5A, 0)
    assert in_child(lambda: memory.view[0] != 0x5A) == 0


def test_discarded_pages_are_zeros_and_not_what_was_frozen(memory: HostMemory) -> None:
    memory.freeze()
    memory.view[PAGE_SIZE] = 7
    memory.discard(0, 2 * PAGE_SIZE)
    assert (memory.view[0], memory.view[PAGE_SIZE]) == (0, 0)
    assert memory.view[CHUNK - 1] == 0x5A
    memory.view[0] = 3
    memory.discard(0, PAGE_SIZE)
    assert memory.view[0] == 0


def test_pages_that_cannot_be_mapped_anew_are_filled_with_zeros(memory: HostMemory, monkeypatch) -> None:
    memory.freeze()

    def refuse(*arguments: object) -> int:
        raise HostError("too many mappings")

    monkeypatch.setattr(memory_module, "_map", refuse)
    memory.discard(0, PAGE_SIZE)
    monkeypatch.undo()
    assert memory.view[0] == 0


def test_frozen_memory_can_be_frozen_again_with_what_was_written_since(memory: HostMemory) -> None:
    memory.freeze()
    memory.view[1], memory.view[2 * GRANULE + 5] = 1, 2
    memory.discard(SIZE - PAGE_SIZE, PAGE_SIZE)
    memory.freeze()
    assert content(memory) == {0: 0x5A, 1: 1, CHUNK - 1: 0x5A, GRANULE + PAGE_SIZE: 0x5A, 2 * GRANULE + 5: 2}


def test_memory_with_nothing_in_it_takes_no_file() -> None:
    before = mappings()
    empty = HostMemory(SIZE)
    empty.freeze()
    assert mappings() == before
    assert not any(empty.view)
