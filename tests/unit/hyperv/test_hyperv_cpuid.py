"""What the guest is told of its hypervisor: Linux's own checks, and nothing that is not there."""

from __future__ import annotations

from pyvmm.hyperv.cpuid import Offer, leaves
from pyvmm.hyperv.enlightenments import DEFAULT
from pyvmm.hyperv.tlfs import Access, Feature, Hint, Privilege

LEAVES = {e.function: e for e in leaves(Offer.of(DEFAULT), 3)}


def test_linux_takes_it_for_hyper_v() -> None:
    """ms_hyperv_platform(): the vendor, a highest leaf from 0x40000005 to 0x4000ffff, and two MSR privileges."""
    top = LEAVES[0x40000000]
    name = b"".join(word.to_bytes(4, "little") for word in (top.ebx, top.ecx, top.edx))
    assert name == b"Microsoft Hv"
    assert 0x40000005 <= top.eax <= 0x4000FFFF
    assert LEAVES[0x40000001].eax.to_bytes(4, "little") == b"Hv#1"
    assert LEAVES[0x40000003].eax & Access.HYPERCALL
    assert LEAVES[0x40000003].eax & Access.VP_INDEX


def test_what_is_implemented_is_offered() -> None:
    leaf = LEAVES[0x40000003]
    for access in (Access.SYNIC, Access.TIME_REF_COUNT, Access.REFERENCE_TSC, Access.FREQUENCY, Access.RESET):
        assert leaf.eax & access, access
    assert leaf.ebx == Privilege.POST_MESSAGES | Privilege.SIGNAL_EVENTS
    assert leaf.edx == Feature.FREQUENCY_MSRS | Feature.CRASH_MSRS


def test_synthetic_timers_and_apic_registers_are_not_offered() -> None:
    assert not LEAVES[0x40000003].eax & (1 << 3 | 1 << 4)


def test_cpuid_recommends_the_guest_to_write_eoi_itself() -> None:
    assert LEAVES[0x40000004].eax == Hint.AUTO_EOI_DEPRECATED


def test_the_processor_limits_are_the_machine_s() -> None:
    assert (LEAVES[0x40000005].eax, LEAVES[0x40000005].ebx) == (3, 3)


def test_every_leaf_up_to_the_highest_exists() -> None:
    """A missing one would be answered with another leaf's data on Intel."""
    assert set(range(0x40000000, LEAVES[0x40000000].eax + 1)) <= set(LEAVES)
    assert LEAVES[0x4000000A].eax == 0


def test_an_invariant_tsc_is_offered_only_on_demand() -> None:
    assert not LEAVES[0x40000003].eax & Access.TSC_INVARIANT
    offer = Offer()
    offer.access |= Access.TSC_INVARIANT
    assert {e.function: e for e in leaves(offer, 1)}[0x40000003].eax & Access.TSC_INVARIANT
