"""Bytes of FUSE, as far as a shared folder needs them.

Source: Linux include/uapi/linux/fuse.h, version 7.31; fs/fuse/dev.c for the order of requests.

    request   len u32 | opcode u32 | unique u64 | nodeid u64 | uid gid pid u32 | 2 x u16 | body
    reply     len u32 | error i32, negative | unique u64 | body
"""

from __future__ import annotations

import os
import stat
from enum import IntEnum
from struct import Struct, pack, unpack_from
from typing import NamedTuple

from pyvmm.errors import GuestProtocolError
from pyvmm.wire import Buffer

MAJOR, MINOR = 7, 31
HEADER = Struct("<IIQQIIII")
REPLY = Struct("<IiQ")
ROOT = 1
"""The folder's node."""

MAX_WRITE = 128 << 10
"""Bytes of the largest write and read."""
REQUEST_LIMIT = MAX_WRITE + 4096
"""Bytes of the largest request: a write, or two names."""
NAME_MAX = 255


class Op(IntEnum):
    """FUSE_*: the requests that are served."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45


NO_REPLY = frozenset((Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT))

# Flags of INIT
ASYNC_READ, ATOMIC_O_TRUNC, BIG_WRITES = 1 << 0, 1 << 3, 1 << 5
AUTO_INVAL_DATA, DO_READDIRPLUS, READDIRPLUS_AUTO, PARALLEL_DIROPS = 1 << 12, 1 << 13, 1 << 14, 1 << 18
WANTED = (
    ASYNC_READ | ATOMIC_O_TRUNC | BIG_WRITES | AUTO_INVAL_DATA | DO_READDIRPLUS | READDIRPLUS_AUTO | PARALLEL_DIROPS
)

KEEP_CACHE = 1 << 1
"""Flag of an opened file."""

# Members that SETATTR changes
SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_ATIME, SET_MTIME = 1, 2, 4, 8, 16, 32
SET_FH, SET_ATIME_NOW, SET_MTIME_NOW = 64, 128, 256

ATTR_SECONDS = 1
"""Seconds for which the guest may take names and attributes from its cache: how late it sees changes of the host."""


class Request(NamedTuple):
    """One request; `body` follows its header."""

    op: int
    unique: int
    node: int
    body: bytes


def parse_header(data: Buffer) -> tuple[int, int, int, int]:
    """Return length, opcode, unique and node of a request. Raises GuestProtocolError for an impossible length."""
    length, op, unique, node, *_ = HEADER.unpack_from(data)
    if not HEADER.size <= length <= REQUEST_LIMIT:
        raise GuestProtocolError(f"share: a request of {length} bytes")
    return length, op, unique, node


def reply(unique: int, body: bytes = b"") -> bytes:
    """Return a successful reply."""
    return REPLY.pack(REPLY.size + len(body), 0, unique) + body


def failure(unique: int, error: int) -> bytes:
    """Return a reply with an errno."""
    return REPLY.pack(REPLY.size, -error, unique)


def fields(layout: Struct, body: bytes) -> tuple[int, ...]:
    """Return the members of a request. Raises GuestProtocolError if it is too short."""
    if len(body) < layout.size:
        raise GuestProtocolError(f"share: a request with {len(body)} bytes, needs {layout.size}")
    return layout.unpack_from(body)


def names(body: bytes, count: int) -> list[str]:
    """Return `count` names, each ended by a zero byte. Raises GuestProtocolError for others than names in a
    folder.
    """
    parts = body.split(b"\0")
    if len(parts) < count + 1:
        raise GuestProtocolError("share: a name without an end")
    found = parts[:count]
    for name in found:
        if not name or name in (b".", b"..") or b"/" in name or len(name) > NAME_MAX:
            raise GuestProtocolError("share: a name that is none")
    return [os.fsdecode(name) for name in found]


class Owners(NamedTuple):
    """Maps the server's user and group to root and back: what the guest's root makes is the user's."""

    uid: int
    gid: int

    def shown(self, uid: int, gid: int) -> tuple[int, int]:
        return 0 if uid == self.uid else uid, 0 if gid == self.gid else gid


def attributes(found: os.stat_result, owners: Owners) -> bytes:
    """Return struct fuse_attr."""
    uid, gid = owners.shown(found.st_uid, found.st_gid)
    times = [
        divmod(nanoseconds, 1_000_000_000)
        for nanoseconds in (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)
    ]
    return pack(
        "<QQQQQQIIIIIIIIII",
        found.st_ino,
        found.st_size,
        found.st_blocks,
        *(seconds & (1 << 64) - 1 for seconds, _ in times),
        *(rest for _, rest in times),
        found.st_mode,
        min(found.st_nlink, (1 << 32) - 1),
        uid,
        gid,
        _device(found),
        found.st_blksize & 0xFFFFFFFF,
        0,
    )


def _device(found: os.stat_result) -> int:
    if not (stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        return 0
    major, minor = os.major(found.st_rdev), os.minor(found.st_rdev)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def entry(node: int, found: os.stat_result, owners: Owners) -> bytes:
    """Return struct fuse_entry_out: a node that was looked up."""
    return pack("<QQQQII", node, 0, ATTR_SECONDS, ATTR_SECONDS, 0, 0) + attributes(found, owners)


def no_entry() -> bytes:
    """Return struct fuse_entry_out that lets the guest remember for ATTR_SECONDS that there is no such name."""
    return pack("<QQQQII", 0, 0, ATTR_SECONDS, 0, 0, 0) + bytes(88)


def attr_out(found: os.stat_result, owners: Owners) -> bytes:
    """Return struct fuse_attr_out."""
    return pack("<QII", ATTR_SECONDS, 0, 0) + attributes(found, owners)


def directory_entry(name: bytes, inode: int, offset: int, kind: int) -> bytes:
    """Return struct fuse_dirent, padded; `kind` is DT_*."""
    head = pack("<QQII", inode, offset, len(name), kind)
    return (head + name).ljust(len(head) + len(name) + 7 & ~7, b"\0")


def batch(body: bytes) -> list[tuple[int, int]]:
    """Return node and count of each item of BATCH_FORGET."""
    (count,) = unpack_from("<I", body) if len(body) >= 8 else (0,)
    most = min(count, (len(body) - 8) // 16)
    return [unpack_from("<QQ", body, 8 + 16 * number) for number in range(most)]
