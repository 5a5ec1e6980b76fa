"""Atomic instructions for memory that a running guest changes concurrently.

CPython has no atomic read-modify-write and no memory fence. Both come from a few bytes of machine code in an
executable anonymous page, called through ctypes with the GIL held (they take nanoseconds). Every locked instruction
is a full barrier on x86 (Intel SDM vol. 3, "Memory Ordering").
"""

from __future__ import annotations

import ctypes
import mmap

from pyvmm.errors import HostError

# lock bts [rdi], esi; setc al; movzx eax, al; ret: the bit index may reach past 31, the CPU addresses the bit string
_BIT_TEST_AND_SET = bytes.fromhex("f0 0f ab 37 0f 92 c0 0f b6 c0 c3")
# mov eax, esi; lock cmpxchg [rdi], edx; ret: eax is the old value
_COMPARE_EXCHANGE = bytes.fromhex("89 f0 f0 0f b1 17 c3")
# lock or dword [rsp], 0; ret
_MEMORY_BARRIER = bytes.fromhex("f0 83 0c 24 00 c3")

try:
    _code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
except OSError as error:
    raise HostError(f"no executable page for atomic instructions: {error.strerror} (SELinux or PaX?)") from error
_code[0 : len(_BIT_TEST_AND_SET)] = _BIT_TEST_AND_SET
_code[64 : 64 + len(_COMPARE_EXCHANGE)] = _COMPARE_EXCHANGE
_code[128 : 128 + len(_MEMORY_BARRIER)] = _MEMORY_BARRIER
_base = ctypes.addressof(ctypes.c_char.from_buffer(_code))

bit_test_and_set = ctypes.PYFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32)(_base)
"""bit_test_and_set(address, bit) -> the old bit. `address` must be 4-byte aligned host memory."""
compare_exchange = ctypes.PYFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32)(_base + 64)
"""compare_exchange(address, expected, new) -> the old u32; `new` was stored if it equals `expected`."""

memory_barrier = ctypes.PYFUNCTYPE(None)(_base + 128)
"""memory_barrier(): a full store-load barrier. Comment each call with its partner on the guest's side."""
