"""FUSE's requests, done in the shared folder. Each either returns the reply's body or raises OSError, which is the
reply.

Set-user-id bits are dropped, devices are not made, and owners other than the server's own cannot be set.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct, pack

from pyvmm.errors import GuestProtocolError
from pyvmm.sandbox.syscalls import syscall
from pyvmm.share import protocol as p
from pyvmm.share.folder import Folder
from pyvmm.share.protocol import Op, Owners, Request

HANDLES_LIMIT = 4096
"""Limit of files and folders that the guest may have open: each is a descriptor, or a list of names."""
NAMES_LIMIT = 1 << 20
"""Limit of names read from one folder."""
READ_LIMIT = 1 << 20
"""Bytes of the largest reply; the guest asks for MAX_WRITE at most."""

_RENAMEAT2 = 316
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_MODE = 0o1777
"""Bits of modes that are kept: not set-user-id and set-group-id."""

_OPEN_FLAGS = os.O_RDONLY | os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_TRUNC | os.O_SYNC | os.O_DSYNC | os.O_NOATIME

_INIT = Struct("<IIII")
_GETATTR = Struct("<IIQ")
_SETATTR = Struct("<IIQQQQQQIIIIIIII")
_TWO = Struct("<II")
_MKNOD = Struct("<IIII")
_RENAME = Struct("<Q")
_RENAME2 = Struct("<QII")
_LINK = Struct("<Q")
_OPEN = Struct("<II")
_READ = Struct("<QQIIQII")
_RELEASE = Struct("<QIIQ")
_FSYNC = Struct("<QII")
_FALLOCATE = Struct("<QQQII")

_CHANGES = frozenset(
    (
        Op.SETATTR, Op.SYMLINK, Op.MKNOD, Op.MKDIR, Op.UNLINK, Op.RMDIR, Op.RENAME, Op.RENAME2, Op.LINK, Op.WRITE,
        Op.CREATE, Op.FALLOCATE,
    )
)  # fmt: skip


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@dataclass(slots=True)
class _Listing:
    """An open folder: its names when it was opened."""

    node: int
    names: list[str]


class Operations:
    """The requests of one connection. `read_only` refuses all that would change the folder."""

    def __init__(self, folder: Folder, owners: Owners, *, read_only: bool) -> None:
        self._folder = folder
        self._owners = owners
        self._read_only = read_only
        self._handles: dict[int, int | _Listing] = {}
        self._next = 0
        self._table: dict[int, Callable[[Request], bytes]] = {
            op: getattr(self, f"_{op.name.lower()}") for op in Op if hasattr(self, f"_{op.name.lower()}")
        }

    def close(self) -> None:
        """Close what the guest has open."""
        for handle in self._handles.values():
            if isinstance(handle, int):
                os.close(handle)
        self._handles.clear()

    def handle(self, request: Request) -> bytes | None:
        """Return the reply, None if the request has none."""
        operation = self._table.get(request.op)
        try:
            if operation is None:
                raise _error(errno.ENOSYS)
            if self._read_only and request.op in _CHANGES:
                raise _error(errno.EROFS)
            body = operation(request)
        except OSError as error:
            return None if request.op in p.NO_REPLY else p.failure(request.unique, error.errno or errno.EIO)
        except (ValueError, OverflowError):  # numbers that the system refuses to take
            return None if request.op in p.NO_REPLY else p.failure(request.unique, errno.EINVAL)
        return None if request.op in p.NO_REPLY else p.reply(request.unique, body)

    # The connection

    def _init(self, request: Request) -> bytes:
        major, minor, readahead, flags = p.fields(_INIT, request.body)
        if major != p.MAJOR or minor < p.MINOR:
            raise _error(errno.EPROTO)
        # struct fuse_init_out: background 16, congestion 12, time granularity 1 ns, the rest unused
        return pack("<IIIIHHIIHH32x", p.MAJOR, p.MINOR, readahead, flags & p.WANTED, 16, 12, p.MAX_WRITE, 1, 0, 0)

    def _destroy(self, request: Request) -> bytes:
        return b""

    _interrupt = _fsyncdir = _destroy  # nothing to do either

    # Names

    def _entry(self, parent: int, name: str) -> bytes:
        with self._folder.opened(parent) as folder:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        return p.entry(self._folder.look_up(parent, name), found, self._owners)

    def _lookup(self, request: Request) -> bytes:
        (name,) = p.names(request.body, 1)
        try:
            return self._entry(request.node, name)
        except FileNotFoundError:
            return p.no_entry()

    def _forget(self, request: Request) -> bytes:
        (count,) = p.fields(_RENAME, request.body)
        self._folder.forget(request.node, count)
        return b""

    def _batch_forget(self, request: Request) -> bytes:
        for node, count in p.batch(request.body):
            self._folder.forget(node, count)
        return b""

    def _readlink(self, request: Request) -> bytes:
        with self._folder.opened(request.node) as found:
            return os.fsencode(os.readlink("", dir_fd=found))

    def _symlink(self, request: Request) -> bytes:
        name, rest = request.body.split(b"\0", 1) if b"\0" in request.body else (b"", b"")
        (name_text,) = p.names(name + b"\0", 1)
        target = rest.split(b"\0")[0]
        with self._folder.opened(request.node) as folder:
            os.symlink(target, os.fsencode(name_text), dir_fd=folder)
        return self._entry(request.node, name_text)

    def _mknod(self, request: Request) -> bytes:
        mode, _, umask, _ = p.fields(_MKNOD, request.body)
        (name,) = p.names(request.body[_MKNOD.size :], 1)
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            raise _error(errno.EPERM)
        with self._folder.opened(request.node) as folder:
            os.mknod(name, stat.S_IFMT(mode) | mode & _MODE & ~umask, dir_fd=folder)
        return self._entry(request.node, name)

    def _mkdir(self, request: Request) -> bytes:
        mode, umask = p.fields(_TWO, request.body)
        (name,) = p.names(request.body[_TWO.size :], 1)
        with self._folder.opened(request.node) as folder:
            os.mkdir(name, mode & _MODE & ~umask, dir_fd=folder)
        return self._entry(request.node, name)

    def _unlink(self, request: Request) -> bytes:
        (name,) = p.names(request.body, 1)
        with self._folder.opened(request.node) as folder:
            os.unlink(name, dir_fd=folder)
        self._folder.removed(request.node, name)
        return b""

    def _rmdir(self, request: Request) -> bytes:
        (name,) = p.names(request.body, 1)
        with self._folder.opened(request.node) as folder:
            os.rmdir(name, dir_fd=folder)
        self._folder.removed(request.node, name)
        return b""

    def _rename(self, request: Request) -> bytes:
        (target,) = p.fields(_RENAME, request.body)
        return self._move(request.node, target, request.body[_RENAME.size :], 0)

    def _rename2(self, request: Request) -> bytes:
        target, flags, _ = p.fields(_RENAME2, request.body)
        if flags & ~(_RENAME_NOREPLACE | _RENAME_EXCHANGE):
            raise _error(errno.EINVAL)
        return self._move(request.node, target, request.body[_RENAME2.size :], flags)

    def _move(self, parent: int, to_parent: int, body: bytes, flags: int) -> bytes:
        name, to_name = p.names(body, 2)
        with self._folder.opened(parent) as source, self._folder.opened(to_parent) as target:
            if flags:
                texts = [ctypes.create_string_buffer(os.fsencode(each)) for each in (name, to_name)]
                first, second = map(ctypes.addressof, texts)
                syscall(_RENAMEAT2, source, first, target, second, flags)
            else:
                os.rename(name, to_name, src_dir_fd=source, dst_dir_fd=target)
        if flags & _RENAME_EXCHANGE:
            self._folder.swapped(parent, name, to_parent, to_name)
        else:
            self._folder.moved(parent, name, to_parent, to_name)
        return b""

    def _link(self, request: Request) -> bytes:
        (old,) = p.fields(_LINK, request.body)
        (name,) = p.names(request.body[_LINK.size :], 1)
        parent, last = self._folder.place(old)
        with self._folder.opened(parent) as source, self._folder.opened(request.node) as folder:
            os.link(last, name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
        return self._entry(request.node, name)

    # Attributes

    def _getattr(self, request: Request) -> bytes:
        return p.attr_out(self._stat(request.node), self._owners)

    def _stat(self, node: int) -> os.stat_result:
        with self._folder.opened(node) as found:
            return os.fstat(found)

    def _setattr(self, request: Request) -> bytes:
        values = p.fields(_SETATTR, request.body)
        valid, _, handle, size, _, atime, mtime = values[:7]
        atime_ns, mtime_ns = values[8:10]
        mode, _, uid, gid = values[11:15]
        found = self._stat(request.node)
        if valid & (p.SET_UID | p.SET_GID):
            shown = self._owners.shown(found.st_uid, found.st_gid)
            if (valid & p.SET_UID and uid != shown[0]) or (valid & p.SET_GID and gid != shown[1]):
                raise _error(errno.EPERM)
        if valid & p.SET_SIZE:
            opened = self._handles.get(handle) if valid & p.SET_FH else None
            descriptor = opened if isinstance(opened, int) else self._folder.open_file(request.node, os.O_WRONLY)
            try:
                os.ftruncate(descriptor, size)
            finally:
                if descriptor != opened:
                    os.close(descriptor)
        if valid & p.SET_MODE:
            if stat.S_ISLNK(found.st_mode):
                raise _error(errno.EOPNOTSUPP)
            with self._folder.opened(request.node) as descriptor:
                os.chmod(f"/proc/self/fd/{descriptor}", mode & _MODE)
        if valid & (p.SET_ATIME | p.SET_MTIME):
            times = (
                _time(atime, atime_ns, valid & p.SET_ATIME, valid & p.SET_ATIME_NOW, found.st_atime_ns),
                _time(mtime, mtime_ns, valid & p.SET_MTIME, valid & p.SET_MTIME_NOW, found.st_mtime_ns),
            )
            parent, last = self._folder.place(request.node)
            with self._folder.opened(parent) as folder:
                os.utime(last, ns=times, dir_fd=folder, follow_symlinks=False)
        return self._getattr(request)

    def _statfs(self, request: Request) -> bytes:
        with self._folder.opened(p.ROOT) as root:
            found = os.fstatvfs(root)
        return pack(
            "<QQQQQIIII24x",
            found.f_blocks,
            found.f_bfree,
            found.f_bavail,
            found.f_files,
            found.f_ffree,
            found.f_bsize,
            p.NAME_MAX,
            found.f_frsize,
            0,
        )

    # Files

    def _opened(self, handle: int | _Listing) -> bytes:
        self._next += 1
        self._handles[self._next] = handle
        # The guest keeps what it has read until the file's time or size changes (AUTO_INVAL_DATA).
        return pack("<QII", self._next, p.KEEP_CACHE if isinstance(handle, int) else 0, 0)

    def _check_handles(self) -> None:
        if len(self._handles) >= HANDLES_LIMIT:
            raise _error(errno.EMFILE)

    def _flags(self, given: int) -> int:
        """Return the flags of open(2) to use. Raises OSError for writing in a folder that is read-only."""
        flags = given & _OPEN_FLAGS & ~os.O_NOATIME
        if self._read_only and flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            raise _error(errno.EROFS)
        if flags & os.O_APPEND:  # the guest's kernel gives the place of each write
            flags &= ~os.O_APPEND
        return flags

    def _open(self, request: Request) -> bytes:
        given, _ = p.fields(_OPEN, request.body)
        self._check_handles()
        return self._opened(self._folder.open_file(request.node, self._flags(given)))

    def _create(self, request: Request) -> bytes:
        given, mode, umask, _ = p.fields(_MKNOD, request.body)
        (name,) = p.names(request.body[_MKNOD.size :], 1)
        self._check_handles()
        flags = self._flags(given) | os.O_CREAT | given & os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        with self._folder.opened(request.node) as folder:
            descriptor = os.open(name, flags, mode & _MODE & ~umask, dir_fd=folder)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise _error(errno.EACCES)
        try:
            found = self._entry(request.node, name)
        except OSError:
            os.close(descriptor)
            raise
        return found + self._opened(descriptor)

    def _file(self, handle: int) -> int:
        found = self._handles.get(handle)
        if not isinstance(found, int):
            raise _error(errno.EBADF)
        return found

    def _read(self, request: Request) -> bytes:
        handle, offset, size, *_ = p.fields(_READ, request.body)
        return os.pread(self._file(handle), min(size, READ_LIMIT), offset)

    def _write(self, request: Request) -> bytes:
        handle, offset, size, *_ = p.fields(_READ, request.body)
        data = memoryview(request.body)[_READ.size :]
        if len(data) < size:
            raise GuestProtocolError("share: a write without its data")
        return pack("<II", os.pwrite(self._file(handle), data[:size], offset), 0)

    def _release(self, request: Request) -> bytes:
        (handle, *_) = p.fields(_RELEASE, request.body)
        found = self._handles.pop(handle, None)
        if isinstance(found, int):
            os.close(found)
        return b""

    _releasedir = _release

    def _fsync(self, request: Request) -> bytes:
        handle, flags, _ = p.fields(_FSYNC, request.body)
        (os.fdatasync if flags & 1 else os.fsync)(self._file(handle))
        return b""

    def _fallocate(self, request: Request) -> bytes:
        handle, offset, length, mode, _ = p.fields(_FALLOCATE, request.body)
        if mode:
            raise _error(errno.EOPNOTSUPP)
        os.posix_fallocate(self._file(handle), offset, length)
        return b""

    # Folders

    def _opendir(self, request: Request) -> bytes:
        self._check_handles()
        descriptor = self._folder.open(request.node, os.O_RDONLY | os.O_DIRECTORY)
        try:
            names = os.listdir(descriptor)[:NAMES_LIMIT]
        finally:
            os.close(descriptor)
        return self._opened(_Listing(request.node, [".", "..", *names]))

    def _readdir(self, request: Request) -> bytes:
        return self._list(request, plus=False)

    def _readdirplus(self, request: Request) -> bytes:
        return self._list(request, plus=True)

    def _list(self, request: Request, *, plus: bool) -> bytes:
        handle, offset, size, *_ = p.fields(_READ, request.body)
        listing = self._handles.get(handle)
        if not isinstance(listing, _Listing):
            raise _error(errno.EBADF)
        pieces, left = [], min(size, READ_LIMIT)
        with self._folder.opened(listing.node) as folder:
            for number in range(offset, len(listing.names)):
                name = listing.names[number]
                special = name in (".", "..")
                try:
                    found = os.stat("." if special else name, dir_fd=folder, follow_symlinks=False)
                except OSError:
                    continue  # it is gone
                piece = p.directory_entry(os.fsencode(name), found.st_ino, number + 1, found.st_mode >> 12)
                if len(piece) + (128 if plus else 0) > left:
                    break
                if plus:
                    known = bytes(128) if special else self._known(listing.node, name, found)
                    piece = known + piece
                left -= len(piece)
                pieces.append(piece)
        return b"".join(pieces)

    def _known(self, parent: int, name: str, found: os.stat_result) -> bytes:
        """Return a name's entry, which counts as a lookup; none if there can be no more nodes."""
        try:
            return p.entry(self._folder.look_up(parent, name), found, self._owners)
        except OSError:
            return bytes(128)


def _time(seconds: int, nanoseconds: int, given: int, now: int, before: int) -> int:
    """Return a time in nanoseconds for utime."""
    if not given:
        return before
    if now:
        return time.time_ns()
    signed = seconds - (1 << 64) if seconds >> 63 else seconds
    return signed * 1_000_000_000 + min(nanoseconds, 999_999_999)
