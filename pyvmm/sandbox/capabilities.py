"""Capabilities of the process: how they are read, dropped, and never gained again by exec.

Source: prctl(2), capset(2), capabilities(7); Linux include/uapi/linux/capability.h.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterable, Iterator
from struct import pack, unpack

from pyvmm.sandbox.syscalls import prctl, syscall

_CAPGET, _CAPSET = 125, 126
_VERSION_3 = 0x20080522
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_MOST = 64  # capabilities that the sets have room for

SETPCAP = 8
DAC_OVERRIDE = 1
DAC_READ_SEARCH = 2
FOWNER = 3
NAMES = {DAC_OVERRIDE: "dac_override", DAC_READ_SEARCH: "dac_read_search"}


def forbid_new_privileges() -> None:
    """Set no_new_privs: exec grants no privileges any more (set-user-ID, file capabilities). Raises OSError."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def sets() -> tuple[int, int, int]:
    """The calling thread's effective, permitted and inheritable capabilities, as bit masks."""
    header = ctypes.create_string_buffer(pack("<Ii", _VERSION_3, 0), 8)
    data = ctypes.create_string_buffer(24)
    syscall(_CAPGET, ctypes.addressof(header), ctypes.addressof(data))
    e0, p0, i0, e1, p1, i1 = unpack("<6I", data.raw)
    return e0 | e1 << 32, p0 | p1 << 32, i0 | i1 << 32


def set_sets(effective: int, permitted: int, inheritable: int) -> None:
    """Set the calling thread's capabilities; the permitted set can only shrink. Raises OSError."""
    header = ctypes.create_string_buffer(pack("<Ii", _VERSION_3, 0), 8)
    low, mask = (effective, permitted, inheritable), 0xFFFFFFFF
    words = [each & mask for each in low] + [each >> 32 for each in low]
    data = ctypes.create_string_buffer(pack("<6I", *words), 24)
    syscall(_CAPSET, ctypes.addressof(header), ctypes.addressof(data))


@contextlib.contextmanager
def without(*numbers: int) -> Iterator[bool]:
    """Clear these in the effective set while the block runs. Yields whether one of them was set."""
    effective, permitted, inheritable = sets()
    reduced = effective & ~sum(1 << number for number in numbers)
    if reduced == effective:
        yield False
        return
    set_sets(reduced, permitted, inheritable)
    try:
        yield True
    finally:
        set_sets(effective, permitted, inheritable)


def drop_all(keep: Iterable[int] = ()) -> None:
    """Drop all capabilities but `keep`: effective, permitted, inheritable, ambient, and the bounding set.

    The bounding set needs CAP_SETPCAP to be emptied; a process without it cannot gain from the set either once
    `forbid_new_privileges` was called. Raises OSError.
    """
    _, permitted, _ = sets()
    kept = sum(1 << each for each in keep) & permitted
    if permitted >> SETPCAP & 1:
        for number in range(_MOST):
            try:
                prctl(_PR_CAPBSET_DROP, number)
            except OSError:  # past the last that this kernel knows
                break
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    set_sets(kept, kept, 0)
