"""MSR filters: which MSR accesses KVM hands to user space instead of handling them itself.

Source: Linux arch/x86/include/uapi/asm/kvm.h, struct kvm_msr_filter.

A range holds a bit for each MSR: 1 lets KVM handle it, 0 denies. Denied accesses raise #GP in the guest, or
exit with MsrExitReason.FILTER once Cap.X86_USER_SPACE_MSR was enabled with that reason.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from pyvmm.errors import HostError
from pyvmm.kvm.abi import (
    MSR_FILTER_DEFAULT_DENY,
    MSR_FILTER_MAX_BITMAP_SIZE,
    MSR_FILTER_MAX_RANGES,
    MSR_FILTER_READ,
    MSR_FILTER_WRITE,
)
from pyvmm.kvm.structs import MsrFilterStruct


@dataclass(frozen=True, slots=True)
class MsrRange:
    """A range of MSRs from `base`, one bit each in `bitmap` (1 = KVM handles it), for reads, writes or both."""

    base: int
    count: int
    bitmap: bytes
    read: bool = True
    write: bool = True

    @classmethod
    def deny(cls, base: int, count: int = 1, *, read: bool = True, write: bool = True) -> Self:
        """A range whose accesses all go to user space."""
        return cls(base, count, bytes((count + 7) // 8), read, write)

    @classmethod
    def deny_only(
        cls, indices: Iterable[int], base: int, count: int, *, read: bool = True, write: bool = True
    ) -> Self:
        """A range of which only the accesses to `indices` go to user space."""
        bitmap = bytearray(b"\xff" * ((count + 7) // 8))
        for index in indices:
            byte, bit = divmod(index - base, 8)
            bitmap[byte] &= ~(1 << bit)
        return cls(base, count, bytes(bitmap), read, write)


def build_filter(
    ranges: Sequence[MsrRange], *, default_deny: bool = False
) -> tuple[MsrFilterStruct, list[ctypes.Array[ctypes.c_char]]]:
    """Build struct kvm_msr_filter and the bitmaps it points to, which must live until the ioctl has returned."""
    if len(ranges) > MSR_FILTER_MAX_RANGES:
        raise HostError(f"KVM takes {MSR_FILTER_MAX_RANGES} MSR ranges, not {len(ranges)}")
    result = MsrFilterStruct(flags=MSR_FILTER_DEFAULT_DENY if default_deny else 0)
    bitmaps = []
    for slot, wanted in zip(result.ranges, ranges, strict=False):
        if len(wanted.bitmap) > MSR_FILTER_MAX_BITMAP_SIZE or len(wanted.bitmap) * 8 < wanted.count:
            raise HostError(
                f"MSR range {wanted.base:#x}+{wanted.count}: a bitmap of {len(wanted.bitmap)} bytes; "
                f"KVM takes up to {MSR_FILTER_MAX_BITMAP_SIZE}, and it needs {(wanted.count + 7) // 8}"
            )
        bitmap = ctypes.create_string_buffer(wanted.bitmap, len(wanted.bitmap))
        bitmaps.append(bitmap)
        slot.flags = MSR_FILTER_READ * wanted.read | MSR_FILTER_WRITE * wanted.write
        slot.nmsrs, slot.base, slot.bitmap = wanted.count, wanted.base, ctypes.addressof(bitmap)
    return result, bitmaps
