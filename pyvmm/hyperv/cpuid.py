"""The Hyper-V CPUID leaves, 0x4000xxxx: the hypervisor's identity and features.

Source: TLFS section 2; Linux arch/x86/kernel/cpu/mshyperv.c for the bits that Linux reads. Only what an engine
implements is offered; docs/hyperv.md lists what is left out, and what Linux would do if it were set.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pyvmm.hyperv.enlightenments import NO_FEATURE, TABLE
from pyvmm.hyperv.tlfs import Access, Feature, Hint, Leaf, Privilege
from pyvmm.kvm import CpuidEntry

VENDOR = b"Microsoft Hv"
INTERFACE = b"Hv#1"
MAX_LEAF = 0x4000000A
BUILD = 14393  # Windows Server 2016, as KVM itself says; Linux only logs it
VERSION = 10 << 16
NEVER_NOTIFY = 0xFFFFFFFF  # spin count after which a guest reports that it waits for a lock
ZERO_LEAVES = (*range(0x40000006, 0x4000000D), *range(0x40000080, 0x40000083))
"""Leaves Linux may read although they are empty. Without an entry an Intel KVM answers with another leaf's data."""


@dataclass(slots=True)
class Offer:
    """What leaves 3 and 4 say. Without names: what every guest has; `of` adds the chosen enlightenments."""

    access: Access = Access.HYPERCALL
    privileges: Privilege = Privilege.POST_MESSAGES | Privilege.SIGNAL_EVENTS
    features: Feature = NO_FEATURE
    # Without this hint Linux does not write EOI after a SINT, and nothing clears the LAPIC's in-service bit.
    hints: Hint = Hint.AUTO_EOI_DEPRECATED

    @classmethod
    def of(cls, names: Iterable[str]) -> Offer:
        """Return the offer of the enlightenments with these names."""
        offer = cls()
        for name in names:
            each = TABLE[name]
            offer.access |= each.access
            offer.features |= each.features
            offer.hints |= each.hints
        return offer


def leaves(offer: Offer, vp_count: int) -> list[CpuidEntry]:
    """All entries at 0x4000xxxx, for KVM_SET_CPUID2."""

    def words(text: bytes) -> list[int]:
        return [int.from_bytes(text[i : i + 4], "little") for i in range(0, len(text), 4)]

    table: dict[int, tuple[int, int, int, int]] = dict.fromkeys(ZERO_LEAVES, (0, 0, 0, 0))
    vendor = words(VENDOR)
    table[Leaf.VENDOR] = (MAX_LEAF, vendor[0], vendor[1], vendor[2])
    table[Leaf.INTERFACE] = (words(INTERFACE)[0], 0, 0, 0)
    table[Leaf.VERSION] = (BUILD, VERSION, 0, 0)
    table[Leaf.FEATURES] = (int(offer.access), int(offer.privileges), 0, int(offer.features))
    table[Leaf.RECOMMENDATIONS] = (int(offer.hints), NEVER_NOTIFY, 0, 0)
    table[Leaf.LIMITS] = (vp_count, vp_count, 0, 0)
    return [CpuidEntry(function, 0, 0, *table[function]) for function in sorted(table)]
