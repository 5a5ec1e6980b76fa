"""What each vCPU says of itself."""

from __future__ import annotations

import pytest

from pyvmm.kvm import Cap, CpuidEntry
from pyvmm.machine.cpu import FIRMWARE_MSRS, entries_for, has_invariant_tsc, host_entries, kvm_entries
from pyvmm.machine.cpu_features import without

HOST = [
    CpuidEntry(0, 0, 0, 0xD, 1, 2, 3),
    CpuidEntry(1, 0, 0, 0xA20F12, 0x05100800, 0, 1 << 28),
    CpuidEntry(4, 0, 1, 0x1C004121, 1, 1, 0),
    CpuidEntry(4, 3, 1, 0, 0, 0, 0),
    CpuidEntry(0xB, 0, 1, 9, 9, 9, 9),
    CpuidEntry(0x80000007, 0, 0, 0, 0, 0, 1 << 8),
    CpuidEntry(0x80000008, 0, 0, 0x3030, 0, 0x5007, 0),
]
HYPERVISOR = [CpuidEntry(0x40000000, 0, 0, 0x4000000A, 1, 2, 3)]


def table(index: int, count: int) -> dict[tuple[int, int], CpuidEntry]:
    entries = entries_for(HOST, HYPERVISOR, index, count)
    made = {(e.function, e.index): e for e in entries}
    assert len(made) == len(entries), "a leaf twice"
    return made


def test_memory_is_write_back_as_firmware_leaves_it() -> None:
    assert FIRMWARE_MSRS == {0x2FF: 0x806}


@pytest.mark.parametrize(("index", "count"), [(0, 1), (1, 2), (3, 4), (2, 3)])
def test_the_apic_id_is_the_index_everywhere(index: int, count: int) -> None:
    leaves = table(index, count)
    assert leaves[1, 0].ebx >> 24 == index
    assert leaves[1, 0].ebx >> 16 & 0xFF == count
    assert [leaves[0xB, level].edx for level in range(3)] == [index] * 3


@pytest.mark.parametrize(("count", "bits"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_the_topology_is_one_socket_of_cores_with_one_thread(count: int, bits: int) -> None:
    leaves = table(0, count)
    assert (leaves[0xB, 0].eax, leaves[0xB, 0].ebx, leaves[0xB, 0].ecx) == (0, 1, 0x100)
    assert (leaves[0xB, 1].eax, leaves[0xB, 1].ebx, leaves[0xB, 1].ecx) == (bits, count, 0x201)
    assert leaves[0xB, 2].ecx == 2
    assert leaves[4, 0].eax >> 26 == (1 << bits) - 1
    assert leaves[4, 0].eax & 0x3FFF == 0x121
    assert leaves[0x80000008, 0].ecx & 0xFF == count - 1


def test_the_end_of_the_cache_list_stays_its_end() -> None:
    assert table(0, 4)[4, 3].eax == 0


def test_cpuid_shows_the_guest_that_there_is_a_hypervisor_and_which() -> None:
    leaves = table(0, 1)
    assert leaves[1, 0].ecx & 1 << 31
    assert leaves[0x40000000, 0] == HYPERVISOR[0]


def test_one_cpu_is_not_multi_threaded() -> None:
    assert not table(0, 1)[1, 0].edx & 1 << 28
    assert table(0, 2)[1, 0].edx & 1 << 28


def test_a_cpu_without_the_topology_leaf_gets_none() -> None:
    old = [CpuidEntry(0, 0, 0, 0xA, 0, 0, 0)]
    assert not [e for e in entries_for(old, [], 0, 2) if e.function == 0xB]


def test_the_invariant_tsc_is_read_from_the_host() -> None:
    assert has_invariant_tsc(HOST)
    assert not has_invariant_tsc(HOST[:-2])


class FakeKvm:
    def __init__(self, *caps: Cap) -> None:
        self.caps = caps

    def supported_cpuid(self) -> list[CpuidEntry]:
        return [
            *HOST,
            CpuidEntry(0x40000000, 0, 0, 0x40000001, 0x4B4D564B, 0, 0),
            CpuidEntry(0x40000001, 0, 0, 1, 0, 0, 0),
        ]

    def check(self, cap: Cap) -> int:
        return cap in self.caps


def test_kvm_s_own_signature_is_left_out() -> None:
    entries = host_entries(FakeKvm())  # type: ignore[arg-type]
    assert [e.function for e in entries] == [e.function for e in HOST]
    assert next(e.ecx for e in entries if e.function == 1) == 1 << 21, "x2APIC, which KVM's own APICs have"


def test_features_can_be_hidden() -> None:
    host = [CpuidEntry(7, 0, 1, 1, (1 << 32) - 1, 0xF, 0), CpuidEntry(7, 1, 1, 0, 1 << 10, 0, 0), *HOST]
    hidden = without(host, ["invpcid", "smap", "pku", "npt"])
    assert hidden[0] == CpuidEntry(7, 0, 1, 1, (1 << 32) - 1 & ~(1 << 10 | 1 << 20), 0xF & ~8, 0)
    assert hidden[1:] == host[1:]


def test_the_vendor_can_be_another() -> None:
    entries = host_entries(FakeKvm(), vendor="GenuineIntel")  # type: ignore[arg-type]
    (first,) = (e for e in entries if e.function == 0)
    name = b"".join(word.to_bytes(4, "little") for word in (first.ebx, first.edx, first.ecx))
    assert (name, first.eax) == (b"GenuineIntel", 0xD)


def test_hidden_features_are_hidden_from_each_vcpu() -> None:
    entries = host_entries(FakeKvm(Cap.TSC_DEADLINE_TIMER), hidden=["tsc-deadline", "x2apic"])  # type: ignore[arg-type]
    (features,) = (e.ecx for e in entries_for(entries, HYPERVISOR, 0, 1) if e.function == 1)
    assert features & (1 << 24 | 1 << 21) == 0


def test_a_guest_may_find_kvm_instead() -> None:
    assert [e.function for e in kvm_entries(FakeKvm())] == [0x40000000, 0x40000001]  # type: ignore[arg-type]


def test_the_deadline_timer_is_offered_where_kvm_has_it() -> None:
    with_timer = {e.function: e for e in host_entries(FakeKvm(Cap.TSC_DEADLINE_TIMER))}  # type: ignore[arg-type]
    assert with_timer[1].ecx & 1 << 24
