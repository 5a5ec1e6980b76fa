"""CPUID and MTRRs of each vCPU: KVM's CPUID with Hyper-V's leaves instead of KVM's, and a corrected topology.

Source: KVM API 4.46 (KVM_GET_SUPPORTED_CPUID); Intel SDM vol. 2, CPUID, and vol. 3, Memory Type Range Registers; AMD
APM vol. 3, appendix E.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from enum import IntEnum

from pyvmm.kvm import Cap, CpuidEntry, Kvm


class Leaf(IntEnum):
    """The CPU's own CPUID leaves that differ from what KVM supports; all others pass as they are.

    Source: Intel SDM vol. 2, CPUID; AMD APM vol. 3, appendix E.
    """

    VERSION = 1  # Features; here the vCPU's APIC id, and the bit that says that a hypervisor is there.
    CACHES = 4  # Caches, and how many CPUs share each.
    TOPOLOGY = 0xB  # Which CPUs are threads and cores of one package: here each vCPU is a core.
    TOPOLOGY_V2 = 0x1F  # The same with more levels.
    POWER = 0x80000007  # Power management: whether the TSC is invariant.
    SIZES = 0x80000008  # Widths of addresses; AMD: the number of cores.
    AMD_TOPOLOGY = 0x8000001E  # AMD: APIC id, core and node.


_HYPERVISOR_PRESENT = 1 << 31
_TSC_DEADLINE = 1 << 24
_X2APIC = 1 << 21
_MULTI_THREADED = 1 << 28
_INVARIANT_TSC = 1 << 8
_SIGNIFICANT_INDEX = 1
_HYPERVISOR = 0x4000  # leaves 0x4000xxxx

_MTRR_DEF_TYPE = 0x2FF
_MTRR_ENABLED = 1 << 11
_WRITE_BACK = 6
FIRMWARE_MSRS = {_MTRR_DEF_TYPE: _MTRR_ENABLED | _WRITE_BACK}
"""MTRR default type as a PC's firmware sets it on each CPU. With MTRRs off all memory counts as uncached, and Linux
does without PAT, so without write-combining. No ranges: memory types come from the page tables.
"""


def host_entries(kvm: Kvm, *, hidden: Collection[str] = (), vendor: str = "") -> list[CpuidEntry]:
    """Return the CPUID that this KVM supports, without KVM's signature: given both, Linux prefers it to Hyper-V's.

    `hidden`: without these CPU features; `vendor`: as a CPU of that vendor says it.
    """
    entries = [e for e in kvm.supported_cpuid() if e.function >> 16 != _HYPERVISOR]
    always = _X2APIC | (_TSC_DEADLINE if kvm.check(Cap.TSC_DEADLINE_TIMER) else 0)  # by KVM's own APICs
    entries = [replace(e, ecx=e.ecx | always) if e.function == 1 else e for e in entries]
    if hidden or vendor:
        from pyvmm.machine.cpu_features import with_vendor, without

        entries = without(entries, hidden)
        return with_vendor(entries, vendor) if vendor else entries
    return entries


def kvm_entries(kvm: Kvm) -> list[CpuidEntry]:
    """Return KVM's signature and features, for a guest that finds KVM instead of Hyper-V."""
    return [e for e in kvm.supported_cpuid() if e.function >> 16 == _HYPERVISOR]


def has_invariant_tsc(entries: Iterable[CpuidEntry]) -> bool:
    """Return whether the guest's TSC is invariant, i.e. runs at a constant rate."""
    return any(e.function == Leaf.POWER and e.edx & _INVARIANT_TSC for e in entries)


def entries_for(host: Iterable[CpuidEntry], hypervisor: list[CpuidEntry], index: int, count: int) -> list[CpuidEntry]:
    """Return the CPUID of vCPU `index` of `count`: one socket, one core per vCPU, APIC id = index."""
    core_bits = (count - 1).bit_length()
    result = []
    for e in host:
        match e.function:
            case Leaf.VERSION:
                ebx = e.ebx & 0xFFFF | (count & 0xFF) << 16 | index << 24
                edx = e.edx | _MULTI_THREADED if count > 1 else e.edx & ~_MULTI_THREADED
                e = replace(e, ebx=ebx, ecx=e.ecx | _HYPERVISOR_PRESENT, edx=edx)
            case Leaf.CACHES if e.eax & 0x1F:
                # Caches: threads that share it 1, cores in the package count
                e = replace(e, eax=e.eax & 0x3FFF | (1 << core_bits) - 1 << 26)
            case Leaf.TOPOLOGY | Leaf.TOPOLOGY_V2:
                continue  # ours below
            case Leaf.SIZES:
                e = replace(e, ecx=core_bits << 12 | count - 1)
            case Leaf.AMD_TOPOLOGY:
                e = replace(e, eax=index, ebx=index & 0xFF, ecx=0)
        result.append(e)
    if any(e.function == 0 and e.eax >= 0xB for e in result):
        result += [
            CpuidEntry(Leaf.TOPOLOGY, 0, _SIGNIFICANT_INDEX, 0, 1, 1 << 8, index),  # SMT level: one thread
            CpuidEntry(Leaf.TOPOLOGY, 1, _SIGNIFICANT_INDEX, core_bits, count, 2 << 8 | 1, index),
            CpuidEntry(Leaf.TOPOLOGY, 2, _SIGNIFICANT_INDEX, 0, 0, 2, index),
        ]
    return result + hypervisor
