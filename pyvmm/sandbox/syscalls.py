"""System calls for which Python and libc have no function, made with syscall(2)."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def syscall(number: int, *arguments: int) -> int:
    """Make a system call with integer arguments, addresses among them. Raises OSError."""
    result: int = _libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


PRCTL = 157


def prctl(option: int, *arguments: int) -> int:
    """prctl(2), the arguments left out being zero. Raises OSError."""
    return syscall(PRCTL, option, *arguments, *[0] * (4 - len(arguments)))
