"""CPUID tables in the layout of KVM_GET_SUPPORTED_CPUID and KVM_SET_CPUID2.

Source: Linux arch/x86/include/uapi/asm/kvm.h, struct kvm_cpuid2, struct kvm_cpuid_entry2.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

from pyvmm.kvm.abi import CPUID_FLAG_SIGNIFICANT_INDEX, Op
from pyvmm.kvm.handle import Handle, KvmError

_HEAD: Final = Struct("<II")  # nent, padding
_ENTRY: Final = Struct("<7I12x")  # function, index, flags, eax, ebx, ecx, edx, padding[3]
_FIRST_GUESS: Final = 128  # entries; real tables have 30 to 100
_MAX_ENTRIES: Final = 4096


@dataclass(slots=True)
class CpuidEntry:
    """The result of CPUID for one leaf. `flags` bit 0: the entry is for subleaf `index` (ECX) only."""

    function: int
    index: int = 0
    flags: int = 0
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0

    @property
    def index_matters(self) -> bool:
        """Whether the leaf has subleaves (KVM_CPUID_FLAG_SIGNIFCANT_INDEX)."""
        return bool(self.flags & CPUID_FLAG_SIGNIFICANT_INDEX)


def pack_cpuid(entries: Sequence[CpuidEntry]) -> bytearray:
    """struct kvm_cpuid2 holding `entries`."""
    table = bytearray(_HEAD.size + _ENTRY.size * len(entries))
    _HEAD.pack_into(table, 0, len(entries), 0)
    for position, e in enumerate(entries):
        offset = _HEAD.size + position * _ENTRY.size
        _ENTRY.pack_into(table, offset, e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx)
    return table


def unpack_cpuid(table: bytearray) -> list[CpuidEntry]:
    """The entries of a struct kvm_cpuid2."""
    count, _ = _HEAD.unpack_from(table)
    body = memoryview(table)[_HEAD.size : _HEAD.size + count * _ENTRY.size]
    return [CpuidEntry(*values) for values in _ENTRY.iter_unpack(body)]


def read_cpuid(handle: Handle, op: Op) -> list[CpuidEntry]:
    """Read a CPUID table from `handle`; doubles the buffer until the table fits."""
    room = _FIRST_GUESS
    while True:
        table = bytearray(_HEAD.size + _ENTRY.size * room)
        _HEAD.pack_into(table, 0, room, 0)
        try:
            handle.ioctl(op, table, f"room for {room} entries")
        except KvmError as error:
            if error.errno != errno.E2BIG or room >= _MAX_ENTRIES:
                raise
            room *= 2
        else:
            return unpack_cpuid(table)
