"""What a machine can change in its guest's CPUID: the vendor, and features to hide, by QEMU's names.

Source: Intel SDM vol. 2, CPUID; AMD APM vol. 3, appendix E; QEMU target/i386/cpu.c for the names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from pyvmm.kvm import CpuidEntry

FEATURES = {
    "vmx": (1, 0, "ecx", 5),
    "pcid": (1, 0, "ecx", 17),
    "x2apic": (1, 0, "ecx", 21),
    "tsc-deadline": (1, 0, "ecx", 24),
    "xsave": (1, 0, "ecx", 26),
    "smep": (7, 0, "ebx", 7),
    "invpcid": (7, 0, "ebx", 10),
    "smap": (7, 0, "ebx", 20),
    "umip": (7, 0, "ecx", 2),
    "pku": (7, 0, "ecx", 3),
    "la57": (7, 0, "ecx", 16),
    "svm": (0x80000001, 0, "ecx", 2),
    "skinit": (0x80000001, 0, "ecx", 12),
    "rdtscp": (0x80000001, 0, "edx", 27),
    "npt": (0x8000000A, 0, "edx", 0),
}
"""(leaf, subleaf, register, bit)."""


VENDOR_LEAVES = (0, 0x80000000)


def with_vendor(entries: Iterable[CpuidEntry], vendor: str) -> list[CpuidEntry]:
    """Return the CPUID table with this vendor's name, twelve letters such as GenuineIntel."""
    first, second, third = (int.from_bytes(vendor.encode()[at : at + 4], "little") for at in (0, 4, 8))
    return [replace(e, ebx=first, edx=second, ecx=third) if e.function in VENDOR_LEAVES else e for e in entries]


def without(entries: Iterable[CpuidEntry], names: Collection[str]) -> list[CpuidEntry]:
    """Return the CPUID table with the bits of these features clear."""
    masks: dict[tuple[int, int], dict[str, int]] = {}
    for name in names:
        leaf, subleaf, register, bit = FEATURES[name]
        registers = masks.setdefault((leaf, subleaf), {})
        registers[register] = registers.get(register, 0) | 1 << bit
    return [
        replace(
            e, **{register: getattr(e, register) & ~mask for register, mask in masks[e.function, e.index].items()}
        )
        if (e.function, e.index) in masks
        else e
        for e in entries
    ]
