"""Pages that are left out of KVM's memory slots: a tiny guest's read and write there stop it at its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyvmm.address_map import HOT_ADD_SLOTS, READONLY_SLOTS
from pyvmm.devices.balloon.ranges import PageRanges
from pyvmm.errors import HostError
from pyvmm.kvm import Kvm
from pyvmm.launch.session import Session
from pyvmm.machine.config import MachineConfig
from pyvmm.machine.withheld_pages import RANGES_LIMIT, WithheldPages
from pyvmm.memory import HostMemory, Region
from pyvmm.testbed.kernel.backtrace import Names
from pyvmm.testbed.oracles.poison import Poison
from tests.support.flooded import ENTRY, kernel

pytestmark = pytest.mark.kvm

MIB = 1 << 20
AT = 0x1800000
READ = bytes.fromhex("A1") + AT.to_bytes(4, "little")  # mov eax, [AT]
WRITE = bytes.fromhex("B8 78 56 34 12 A3") + (AT + 0x1000).to_bytes(4, "little")  # mov [...], eax
END = bytes.fromhex("66 BA 04 06  66 B8 00 34 66 EF  EB FE")  # mov dx, 0x604; mov ax, 0x3400: S5; out dx, ax; jmp $


class Bed:
    """A machine with the tiny kernel, stopped before its first instruction."""

    def __init__(self, path: Path, code: bytes) -> None:
        file = path / "kernel"
        file.write_bytes(kernel(code))
        config = MachineConfig(kernel=file, memory=32 * MIB, entry="pvh", engine="user", reboot=False, paused=True)
        self.session = Session(config)

    def __enter__(self) -> Bed:
        made = self.session.__enter__()
        self.machine, self.loop = made.machine, made.loop
        made.start()
        self.poison = Poison(self, lambda: Names(None))
        self.poison.on()
        return self

    def __exit__(self, *unused: Any) -> None:
        self.session.__exit__(None, None, None)

    def withhold(self, *ranges: tuple[int, int]) -> None:
        """Give pages to the host, as the guest's balloon would."""
        assert self.machine.balloon is not None
        self.machine.balloon.machine.ledger.boot.removed_both.insert(ranges)
        self.poison.sync()

    def run(self) -> None:
        """Run until the guest ends or is stopped."""
        self.machine.resume()
        self.loop.after(20, self.machine.quit)
        while self.machine.outcome is None and self.machine.state == "running":
            self.loop.step(1)


@pytest.mark.parametrize(
    ("code", "access", "gpa", "value"), [(READ, "read", AT, None), (WRITE, "write", AT + 0x1000, 0x12345678)]
)
def test_a_touch_stops_the_guest(
    kvm: Kvm, tmp_path: Path, code: bytes, access: str, gpa: int, value: int | None
) -> None:
    with Bed(tmp_path, code + END) as bed:
        bed.withhold((AT // 4096, 2))
        bed.run()
        (touch,) = bed.poison.touches
        assert (touch.vcpu, touch.access, touch.gpa, touch.size, touch.value) == (0, access, gpa, 4, value)
        assert ENTRY <= touch.rip <= ENTRY + len(code)
        assert bed.machine.state == "paused"
        (finding,) = bed.poison.judge(None)
        assert finding.line.startswith(f"a {access}")
        assert "rsp" in finding.details
        assert bed.poison.judge(None) == []
        bed.poison.resume()
        while bed.machine.outcome is None:
            bed.loop.step(1)
        assert bed.machine.outcome.kind == "poweroff"


def test_other_pages_are_the_guests(kvm: Kvm, tmp_path: Path) -> None:
    with Bed(tmp_path, READ + WRITE + END) as bed:
        bed.withhold((AT // 4096 - 3, 3), (AT // 4096 + 2, 100))
        bed.run()
        assert bed.poison.touches == []
        assert bed.machine.outcome is not None
        assert bed.machine.outcome.kind == "poweroff"
        assert bed.machine.memory.read(AT + 0x1000, 4) == bytes.fromhex("78 56 34 12")


def test_pages_come_and_go_and_the_slots_cover_the_rest(kvm: Kvm, tmp_path: Path) -> None:
    with Bed(tmp_path, END) as bed:
        hardware = bed.machine.slot.hardware
        assert hardware is not None
        whole = sum(hardware.vm.slots.values())
        withheld = WithheldPages(hardware, kvm)
        for ranges in (
            [(4096, 16), (5000, 1)],
            [(5000, 1)],
            [(0, 3), (8191, 1)],
            [(n, 1) for n in range(4096, 6000, 2)],
        ):
            withheld.apply(PageRanges(ranges))
            assert withheld.pages.pages == min(sum(pages for _, pages in ranges), withheld.limit)
            assert whole - sum(hardware.vm.slots.values()) == 4096 * withheld.pages.pages
            assert len(list(withheld.pages)) <= RANGES_LIMIT
        withheld.apply(PageRanges([(1 << 20, 5)]))  # not RAM
        assert sum(hardware.vm.slots.values()) == whole


# Hot-added memory

ADDED = 64 * MIB
SLOT = HOT_ADD_SLOTS.start
READ_ADDED = bytes.fromhex("A1") + (ADDED + 0x5000).to_bytes(4, "little")


def hot_add(bed: Bed, slot: int, start: int, pages: int, backing: HostMemory) -> Region:
    region = Region(start, pages * 4096, backing, start - ADDED)
    bed.machine.slot.map_memory(slot, region)
    return region


@pytest.mark.parametrize("first", ["withheld", "added"])
def test_a_touch_of_hot_added_memory_stops_the_guest(kvm: Kvm, tmp_path: Path, first: str) -> None:
    with Bed(tmp_path, READ_ADDED + END) as bed:
        assert bed.machine.balloon is not None
        record = bed.machine.balloon.machine.ledger.added
        backing = HostMemory(MIB)
        if first == "added":
            hot_add(bed, SLOT, ADDED, 16, backing)
        record.ram.insert([(ADDED // 4096, 16)])
        record.removed_both.insert([(ADDED // 4096 + 5, 3)])
        bed.poison.sync()
        if first == "withheld":
            hot_add(bed, SLOT, ADDED, 16, backing)
        bed.run()
        (touch,) = bed.poison.touches
        assert (touch.access, touch.gpa) == ("read", ADDED + 0x5000)
        bed.poison.off()
        hardware = bed.machine.slot.hardware
        assert hardware is not None
        assert hardware.vm.slots[SLOT] == 16 * 4096
        readonly = range(READONLY_SLOTS.start, READONLY_SLOTS.end)
        assert set(hardware.vm.slots) <= {*hardware.boot_ram, SLOT, *readonly}, "all is in its own slot again"


def test_hot_added_memory_is_merged_and_cut_while_pages_are_withheld(kvm: Kvm, tmp_path: Path) -> None:
    with Bed(tmp_path, END) as bed:
        hardware = bed.machine.slot.hardware
        assert hardware is not None
        boot = sum(hardware.vm.slots.values()) // 4096
        at = ADDED // 4096

        def mapped() -> int:
            return sum(hardware.vm.slots.values()) // 4096 - boot

        backing = HostMemory(MIB)
        hot_add(bed, SLOT, ADDED, 16, backing)
        hot_add(bed, SLOT + 1, ADDED + 16 * 4096, 16, backing)
        withheld = WithheldPages(hardware, kvm)
        withheld.apply(PageRanges([(at + 14, 4), (at + 30, 2)]))
        assert mapped() == 26
        for slot in (SLOT, SLOT + 1):
            bed.machine.slot.unmap_memory(slot)
        assert mapped() == 0
        assert withheld.pages.pages == 0
        hot_add(bed, SLOT, ADDED, 32, backing)
        assert mapped() == 26
        assert list(withheld.pages) == [(at + 14, 4), (at + 30, 2)]
        bed.machine.slot.unmap_memory(SLOT)
        hot_add(bed, SLOT, ADDED, 31, backing)
        assert mapped() == 26
        withheld.limit = 1
        withheld.apply(withheld.pages)
        hot_add(bed, SLOT + 1, ADDED + 64 * 4096, 4, backing)
        assert mapped() == 31
        with pytest.raises(HostError, match="switch poison off"):
            hardware.protect({AT: True})
        withheld.end()
        assert mapped() == 35
        assert {SLOT, SLOT + 1} <= set(hardware.vm.slots)
        hot_add(bed, SLOT + 2, ADDED + 100 * 4096, 1, backing)
        assert SLOT + 2 in hardware.vm.slots
