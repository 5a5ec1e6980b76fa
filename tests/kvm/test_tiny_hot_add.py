"""What a guest can touch of the window for hot-added memory: what it was given, to the byte."""

from __future__ import annotations

from struct import pack

import pytest

from pyvmm.kvm import Exit, IoOut, MmioRead, MmioWrite, Vm
from pyvmm.machine.hotplug import HotAddWindow
from pyvmm.memory import GuestMemory, HostMemory, Region

pytestmark = pytest.mark.kvm

MIB = 1 << 20
GPA = 256 * MIB  # within the GiB that the tiny guest's page tables map
LIMIT = 16 * MIB  # of a block of 128 MiB, as with -m 64M,max=80M
PAGE = 4096
PORT = 0x10


def window_of(vm: Vm, slots: int | None = None) -> HotAddWindow:
    def map_slot(slot: int, region: Region) -> None:
        vm.set_memory(slot, region.gpa, region.size, region.address)

    def unmap_slot(slot: int) -> None:
        vm.set_memory(slot, 0, 0, 0)

    return HotAddWindow(GuestMemory(), HostMemory(128 * MIB), GPA, LIMIT, slots=slots, map=map_slot, unmap=unmap_slot)


def pokes(*addresses: int) -> str:
    """Code that writes 0x5A to each address, reads it back, and tells what it read."""
    code = b""
    for address in addresses:
        # mov ebx, address; mov byte [rbx], 0x5a; mov al, [rbx]; out 0x10, al
        code += b"\xbb" + pack("<I", address) + bytes.fromhex("c6035a 8a03 e610")
    return (code + b"\xf4").hex()


def told(exits: list[Exit]) -> list[int]:
    return [each.data[0] for each in exits if isinstance(each, IoOut)]


def touched(exits: list[Exit]) -> list[int]:
    """Addresses that were no RAM."""
    return [each.gpa for each in exits if isinstance(each, MmioRead | MmioWrite)]


@pytest.mark.parametrize("given", [PAGE, 3 * MIB, LIMIT])
def test_a_page_beyond_what_was_given_is_no_ram(make_guest, given: int) -> None:
    guest = make_guest(pokes(GPA, GPA + given - 1, GPA + given, GPA + 128 * MIB - 1))
    guest.long_mode()
    window = window_of(guest.vm)
    window.provide(GPA // PAGE, given // PAGE)
    exits = guest.until_halt()
    assert told(exits)[:2] == [0x5A, 0x5A]
    assert touched(exits) == [GPA + given] * 2 + [GPA + 128 * MIB - 1] * 2
    assert window.mapped_pages == given // PAGE


def test_what_the_guest_did_not_take_is_no_ram_any_more(make_guest) -> None:
    guest = make_guest(pokes(GPA, GPA + PAGE))
    guest.long_mode()
    window = window_of(guest.vm)
    window.provide(GPA // PAGE, 100)
    window.keep_below(GPA // PAGE + 1)
    exits = guest.until_halt()
    assert told(exits)[0] == 0x5A
    assert touched(exits) == [GPA + PAGE] * 2


def test_memory_given_in_many_pieces_is_all_there_and_nothing_more(make_guest) -> None:
    count = 20
    guest = make_guest(pokes(*[GPA + n * PAGE for n in range(count + 1)]))
    guest.long_mode()
    window = window_of(guest.vm, slots=3)
    for n in range(count):
        window.provide(GPA // PAGE + n, 1)
    exits = guest.until_halt()
    assert told(exits)[:count] == [0x5A] * count
    assert touched(exits) == [GPA + count * PAGE] * 2
    assert window.mapped <= 3
