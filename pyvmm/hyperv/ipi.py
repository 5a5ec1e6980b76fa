"""Hypercalls that send an interrupt to many virtual processors: HvCallSendSyntheticClusterIpi and its Ex form.

Source: TLFS 10.5; Linux arch/x86/hyperv/hv_apic.c, struct hv_send_ipi and hv_send_ipi_ex.

    0x0B  {vector u32, reserved u32, mask u64}, by memory or fast (RDX, R8)
    0x15  {vector u32, reserved u32, format u64, valid banks u64, banks u64[]}, by memory
          Bank n holds VPs 64n to 64n+63; the control word's variable header counts them. Format 0: sparse, 1: all VPs
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from struct import unpack_from

from pyvmm.hyperv.tlfs import HypercallCode, HypercallControl, HypercallStatus, SendIpi, SendIpiEx
from pyvmm.memory import PAGE_SIZE, GuestMemory

LOW_VECTOR, HIGH_VECTOR = 0x10, 0xFF
_SPARSE, _ALL = 0, 1
_BANK = 64
_LOW = 0xFFFFFFFF

Send = Callable[[int, Iterable[int]], None]
"""send(vector, vps): raise the interrupt on these VPs. From any thread."""


class IpiCalls:
    """Handles IPI hypercalls on the vCPU thread that made them; `send` gets existing VPs only."""

    def __init__(self, vp_count: int, memory: GuestMemory, send: Send) -> None:
        self._vp_count = vp_count
        self._memory = memory
        self._send = send

    def call(self, word: HypercallControl, input1: int, input2: int) -> int:
        """Return the status. Raises GuestMemoryError for input outside of RAM."""
        if word.rep_count or word.rep_start:
            return HypercallStatus.INVALID_HYPERCALL_INPUT
        if word.code == HypercallCode.SEND_IPI:
            if word.variable_header:
                return HypercallStatus.INVALID_HYPERCALL_INPUT
            if word.fast:
                request = SendIpi(input1 & _LOW, input1 >> 32, input2)
            elif input1 % 8 or input1 % PAGE_SIZE > PAGE_SIZE - SendIpi.SIZE:
                return HypercallStatus.INVALID_ALIGNMENT
            else:
                request = SendIpi.parse(self._memory.read(input1, SendIpi.SIZE))
            return self._raise(request.vector, request.reserved, self._members(0, request.mask))
        return self._extended(word, input1)

    def _extended(self, word: HypercallControl, gpa: int) -> int:
        if word.fast:  # its third and later words would be in XMM registers, which are not offered as input
            return HypercallStatus.INVALID_HYPERCALL_INPUT
        size = SendIpiEx.SIZE + 8 * word.variable_header
        if gpa % 8 or gpa % PAGE_SIZE + size > PAGE_SIZE:
            return HypercallStatus.INVALID_ALIGNMENT
        block = self._memory.read(gpa, size)  # one copy: the guest may change it under us
        head = SendIpiEx.parse(block)
        if head.format == _ALL:
            return self._raise(head.vector, head.reserved, range(self._vp_count))
        if head.format != _SPARSE or head.valid_banks.bit_count() != word.variable_header:
            return HypercallStatus.INVALID_HYPERCALL_INPUT
        banks = [bank for bank in range(_BANK) if head.valid_banks >> bank & 1]
        masks: tuple[int, ...] = unpack_from(f"<{len(banks)}Q", block, SendIpiEx.SIZE)
        vps = [vp for bank, mask in zip(banks, masks, strict=True) for vp in self._members(bank, mask)]
        return self._raise(head.vector, head.reserved, vps)

    def _members(self, bank: int, mask: int) -> list[int]:
        first = bank * _BANK
        return [vp for vp in range(first, min(first + _BANK, self._vp_count)) if mask >> vp - first & 1]

    def _raise(self, vector: int, reserved: int, vps: Iterable[int]) -> int:
        if reserved or not LOW_VECTOR <= vector <= HIGH_VECTOR:
            return HypercallStatus.INVALID_HYPERCALL_INPUT
        self._send(vector, vps)
        return HypercallStatus.SUCCESS
