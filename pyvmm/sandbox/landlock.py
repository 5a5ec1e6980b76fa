"""Landlock: a process irrevocably drops its own rights to files, network and signals.

Source: landlock(7); Linux include/uapi/linux/landlock.h, Documentation/userspace-api/landlock.rst.

A ruleset names the rights that it *handles*, that is, refuses; rules give some back for a file, or for a folder and
all below it. Descriptors that are open already keep what they could. Each thread restricts itself, and threads and
processes that it starts later inherit that.

    ABI 1 (Linux 5.13) files   2 (5.19) moves between folders   3 (6.2) truncation   4 (6.7) TCP
    ABI 5 (6.10) ioctls of devices   6 (6.12) signals and abstract sockets
"""

from __future__ import annotations

import ctypes
import os
import stat
from enum import IntFlag
from struct import pack
from typing import Self

from pyvmm.sandbox.syscalls import syscall

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1


class Access(IntFlag):
    """LANDLOCK_ACCESS_FS_*."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13  # ABI 2
    TRUNCATE = 1 << 14  # ABI 3
    IOCTL_DEV = 1 << 15  # ABI 5


FILE_ACCESS = Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
"""The rights that a rule for anything but a folder may grant."""

BIND_TCP, CONNECT_TCP = 1, 2
SCOPE_ABSTRACT_UNIX_SOCKET, SCOPE_SIGNAL = 1, 2

_NEW_ACCESS = {2: Access.REFER, 3: Access.TRUNCATE, 5: Access.IOCTL_DEV}
_FIRST_ACCESS = Access(Access.REFER - 1)


def abi() -> int:
    """The ABI version of this kernel's Landlock; 0 if it has none, or it is off."""
    try:
        return syscall(_CREATE_RULESET, 0, 0, _CREATE_RULESET_VERSION)
    except OSError:  # ENOSYS: not built in; EOPNOTSUPP: not in lsm=; EPERM: a container's seccomp filter
        return 0


def handled(version: int) -> Access:
    """All file rights that this version of Landlock can handle."""
    access = _FIRST_ACCESS
    for since, more in _NEW_ACCESS.items():
        if version >= since:
            access |= more
    return access


class Ruleset:
    """A Landlock ruleset that refuses all it can, except what `allow` grants. Raises OSError if the kernel refuses.

    Rules are tied to inodes. A file system like 9p makes a new inode when it looks a file up again, unless the old
    one is in use: so the descriptors that name the rules' files stay open in `kept`.
    """

    def __init__(self, version: int, *, files_only: bool = False, handle: Access | None = None) -> None:
        self._access = handled(version) if handle is None else handle & handled(version)
        network = BIND_TCP | CONNECT_TCP if version >= 4 and not files_only else 0
        scopes = SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL if version >= 6 and not files_only else 0
        size = 24 if version >= 6 else 16 if version >= 4 else 8
        attributes = ctypes.create_string_buffer(pack("<3Q", self._access, network, scopes)[:size], size)
        self._fd = syscall(_CREATE_RULESET, ctypes.addressof(attributes), size, 0)
        self.kept: list[int] = []

    def allow(self, path: str | os.PathLike[str], access: Access) -> bool:
        """Grant `access` to a file, or to a folder and all below it. False if `path` cannot be reached."""
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return False
        self.kept.append(fd)
        mode = os.fstat(fd).st_mode
        if not stat.S_ISDIR(mode):
            access &= FILE_ACCESS
        rule = ctypes.create_string_buffer(pack("<Qi", access & self._access, fd), 12)
        syscall(_ADD_RULE, self._fd, _RULE_PATH_BENEATH, ctypes.addressof(rule), 0)
        return True

    def enforce(self) -> None:
        """Restrict the calling thread. It must have no_new_privs."""
        syscall(_RESTRICT_SELF, self._fd, 0)

    def close(self) -> None:
        """Close the ruleset's descriptor; the restriction stays."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
