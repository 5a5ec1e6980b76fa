"""Copies files between host and guest: tar streams over a session, read and written here.

    to the guest     `tar -x` there; its first line tells whether the target is a folder, which decides about names
    from the guest   `tar -c` there; here each name is looked up from an open folder, and no link is followed

A guest's archive is not to be trusted: names that leave the target, devices and anything but files, folders and links
are refused or left out, and so are set-user-id bits. Owners are not kept.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from pyvmm.client.session import AS_ANY_OTHER, Session
from pyvmm.errors import ConfigError, HostError
from pyvmm.session_protocol import INPUT_LIMIT, Kind

ERRORS_LIMIT = 4096
"""Bytes kept of what the guest's tar complains."""

DEPTH_LIMIT = 128
"""Folders in each other that a guest's archive may have."""

_TO_GUEST = f"""\
{AS_ANY_OTHER}
if [ -d "$1" ]; then
	echo folder
	cd -- "$1" || exit 1
else
	parent=$(dirname -- "$1")
	[ -d "$parent" ] || {{ echo "$parent: no such folder in the guest" >&2; exit 1; }}
	echo other
	cd -- "$parent" || exit 1
fi
exec tar -xf -"""

_FROM_GUEST = (
    AS_ANY_OTHER
    + """
[ -e "$1" ] || [ -L "$1" ] || { echo "$1: no such file in the guest" >&2; exit 1; }
path=$1
[ "$path" = / ] || path=${path%/}
cd -- "$(dirname -- "$path")" && exec tar -cf - -- "$(basename -- "$path")\""""
)

Say = Callable[[str], None]


@dataclass(slots=True)
class Counts:
    """What was copied."""

    files: int = 0
    bytes: int = 0


class CopyFailed(HostError):
    """The guest's tar failed; the text is what it said."""


class _Stream:
    """What the session's command writes, and what it complains."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.errors = b""
        self._output = bytearray()

    def _more(self) -> None:
        for kind, data in self.session.receive():
            if kind is Kind.OUTPUT:
                self._output += data
            else:
                self.errors = (self.errors + data)[:ERRORS_LIMIT]

    def line(self) -> bytes:
        """Return the first line of the output; empty if there is none."""
        while b"\n" not in self._output and self.session.status is None and len(self._output) < ERRORS_LIMIT:
            self._more()
        line, _, rest = bytes(self._output).partition(b"\n")
        self._output[:] = rest
        return line

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes of output, as a file does: for tarfile."""
        while not self._output and self.session.status is None:
            self._more()
        taken = bytes(self._output[:size])
        del self._output[:size]
        return taken

    def write(self, data: bytes) -> int:
        """Send input, as to a file: for tarfile."""
        for start in range(0, len(data), INPUT_LIMIT):
            while not self.session.ready_for_input and self.session.status is None:
                self._more()
            if self.session.status is not None:
                raise CopyFailed(self.complaint())
            self.session.write(data[start : start + INPUT_LIMIT])
        return len(data)

    def finish(self) -> None:
        """Wait for the command's end. Raises CopyFailed if it failed."""
        while self.session.status is None:
            self._more()
        if self.session.status:
            raise CopyFailed(self.complaint())

    def complaint(self) -> str:
        """Return the last line of what the command complained."""
        from pyvmm.guest_text import one_line

        lines = self.errors.decode("utf-8", "replace").strip().splitlines()
        return one_line(lines[-1]) if lines else f"the guest's tar ended with status {self.session.status}"


def _start(session: Session, script: str, path: str) -> _Stream:
    session.start([os.fsencode(word) for word in ("/bin/sh", "-c", script, "sh", path)])
    return _Stream(session)


# To the guest


def to_guest(session: Session, sources: Sequence[Path], target: str, counts: Counts) -> None:
    """Copy files and folders to a path in the guest: into it if it is a folder there, else one of them as it.
    `counts` goes on meanwhile.
    """
    for source in sources:
        if not os.path.lexists(source):
            raise ConfigError(f"{source}: no such file")
    with session:
        stream = _start(session, _TO_GUEST, target or ".")
        answer = stream.line()
        if answer not in (b"folder", b"other"):
            stream.finish()
            raise CopyFailed(stream.complaint())
        if answer == b"other" and len(sources) > 1:
            raise ConfigError(f"{target}: no folder in the guest, and there are {len(sources)} files to copy")
        if answer == b"other" and target.endswith("/"):
            raise ConfigError(f"{target}: no such folder in the guest")

        def note(info: tarfile.TarInfo) -> tarfile.TarInfo:
            info.uid = info.gid = 0
            info.uname = info.gname = "root"
            counts.files += not info.isdir()
            counts.bytes += info.size
            return info

        with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="w|", format=tarfile.GNU_FORMAT) as archive:
            for source in sources:
                name = _name_of(source) if answer == b"folder" else PurePosixPath(target).name
                archive.add(source, name, filter=note)
        while not session.ready_for_input and session.status is None:
            stream._more()
        if session.status is None:
            session.write(b"")
        stream.finish()


def _name_of(source: Path) -> str:
    name = source.name if source.name not in ("", "..") else source.resolve().name
    return name or "root"


# From the guest


def from_guest(session: Session, source: str, target: Path, counts: Counts, say: Say) -> None:
    """Copy a file or folder of the guest to a path: into it if it is a folder, else as it. `say` gets notes."""
    root = PurePosixPath(source).name or "root"
    into = target.is_dir()
    folder, name = (target, root) if into else (target.parent, target.name)
    if not into and (not folder.is_dir() or str(target).endswith("/")):
        raise ConfigError(f"{target if folder.is_dir() else folder}: no such folder")
    with session:
        stream = _start(session, _FROM_GUEST, source)
        session.write(b"")
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _extract(stream, descriptor, name, counts, say)
        finally:
            os.close(descriptor)
        stream.finish()


def _extract(stream: _Stream, folder: int, name: str, counts: Counts, say: Say) -> None:
    times: list[tuple[list[str], float, int]] = []  # of folders, once they are filled
    try:
        with tarfile.open(
            fileobj=io.BufferedReader(cast("io.RawIOBase", _Raw(stream)), 1 << 16), mode="r|"
        ) as archive:
            for member in archive:
                parts = _parts(member.name, name)
                _extract_member(archive, member, folder, parts, name, counts, say)
                if member.isdir():
                    times.append((parts, member.mtime, member.mode))
    except tarfile.ReadError:
        stream.finish()  # the guest's error is the better message
        raise HostError("the guest sent no archive") from None
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise HostError(f"the guest sent a damaged archive: {error}") from error
    for parts, mtime, mode in reversed(times):
        with contextlib.suppress(OSError), _opened(folder, parts) as descriptor:
            os.fchmod(descriptor, mode & 0o777 | 0o700)
            os.utime(descriptor, (mtime, mtime))


class _Raw(io.RawIOBase):
    """A session's output as a raw file."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _parts(given: str, name: str) -> list[str]:
    """Return the path below the target's folder of a member. Its first part, the copied file's own name, becomes
    `name`.

    Raises HostError for a name that leaves it.
    """
    parts = [part for part in given.split("/") if part not in ("", ".")]
    if given.startswith("/") or ".." in parts or "\0" in given or len(parts) > DEPTH_LIMIT:
        raise HostError(f"the guest's archive holds the name {given[:80]!r}: refused")
    return [name, *parts[1:]]


def _extract_member(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    folder: int,
    parts: list[str],
    name: str,
    counts: Counts,
    say: Say,
) -> None:
    shown = "/".join(parts)
    if member.isdir():
        with _made(folder, parts):
            return
    with _made(folder, parts[:-1]) as parent:
        last = parts[-1]
        if member.issym():
            _remove(parent, last)
            os.symlink(member.linkname, last, dir_fd=parent)
        elif member.islnk():
            linked = _parts(member.linkname, name)
            with _opened(folder, linked[:-1]) as source:
                _remove(parent, last)
                os.link(linked[-1], last, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        elif member.isreg():
            counts.bytes += _write_file(archive, member, parent, last, shown)
        else:
            say(f"{shown}: a device or pipe, left out")
            return
        counts.files += 1


def _write_file(archive: tarfile.TarFile, member: tarfile.TarInfo, parent: int, last: str, shown: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(last, flags, 0o600, dir_fd=parent)
    except OSError:
        _remove(parent, last)  # a link, or a file that may not be written: as `cp -f`
        try:
            descriptor = os.open(last, flags | os.O_EXCL, 0o600, dir_fd=parent)
        except OSError as error:
            raise HostError(f"{shown}: {error.strerror}") from error
    with open(descriptor, "wb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise HostError(f"{shown}: exists, and is no file")
        file.truncate()
        source = archive.extractfile(member)
        size = 0
        while source is not None and (data := source.read(1 << 18)):
            file.write(data)
            size += len(data)
        file.flush()
        os.fchmod(descriptor, member.mode & 0o777)
        os.utime(descriptor, (member.mtime, member.mtime))
    return size


def _remove(parent: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=parent)


@contextlib.contextmanager
def _opened(folder: int, parts: Sequence[str], *, make: bool = False) -> Iterator[int]:
    """Open the folder at `parts` below `folder`, without following a link."""
    descriptor = os.dup(folder)
    try:
        for part in parts:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=descriptor)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                below = os.open(part, flags, dir_fd=descriptor)
            except OSError as error:
                raise HostError(f"{'/'.join(parts)}: {error.strerror}") from error
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def _made(folder: int, parts: Sequence[str]) -> contextlib.AbstractContextManager[int]:
    return _opened(folder, parts, make=True)
