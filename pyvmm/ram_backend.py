"""Memory backends of guest RAM: anonymous memory, a memfd, a file, or huge pages of the host.

Source: mmap(2), memfd_create(2), mbind(2); Linux Documentation/admin-guide/mm/hugetlbpage.rst.

    anon                 private to this process, huge pages where the host has them to spare; the default
    memfd                shared, so that another process could map it
    file=PATH            a file (made, or emptied if it is one of ours by its size), or one without a name in a folder
    hugetlb=2M|1G        huge pages set aside by the administrator; only whole ones are ever discarded
    ...,prealloc=on      the host allocates the memory at once, not when the guest first touches it
    ...,numa=N           the memory comes from NUMA node N
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyvmm.errors import ConfigError, HostError
from pyvmm.memory import PAGE_SIZE, HostMemory
from pyvmm.sizes import parse_size

HUGE_PAGES = Path("/sys/kernel/mm/hugepages")
NUMA_NODES = Path("/sys/devices/system/node")
FORM = "anon, memfd, file=PATH or hugetlb=2M|1G, then ,prealloc=on and ,numa=NODE if wanted"

_SYS_MBIND = 237
_MPOL_BIND = 2
_MFD_HUGE_SHIFT = 26
_NODE_LIMIT = 1024

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True, slots=True)
class Backend:
    """A memory backend as configured by the user. `parse` reads the form of `--mem-backend`; `open` allocates."""

    kind: Literal["anon", "memfd", "file", "hugetlb"] = "anon"
    path: Path | None = None
    page_size: int = PAGE_SIZE
    prealloc: bool = False
    node: int | None = None

    @classmethod
    def parse(cls, text: str) -> Backend:
        """Parse the form of `--mem-backend`. Raises ConfigError."""
        first, *more = text.split(",")
        kind, _, value = first.partition("=")
        path, page_size, prealloc, node = None, PAGE_SIZE, False, None
        match kind, value:
            case (("anon" | "memfd"), ""):
                pass
            case "file", name if name:
                path = Path(name)
            case "hugetlb", size if size:
                page_size = parse_size(size)
                if page_size not in (2 << 20, 1 << 30):
                    raise ConfigError(f"memory backend {first!r}: huge pages are 2M or 1G")
            case _:
                raise ConfigError(f"memory backend {text!r}: write {FORM}")
        for option in more:
            match option.split("=", 1):
                case ["prealloc", ("on" | "off") as word]:
                    prealloc = word == "on"
                case ["numa", number] if number.isdecimal() and int(number) < _NODE_LIMIT:
                    node = int(number)
                case _:
                    raise ConfigError(f"memory backend option {option!r}: write {FORM}")
        return cls(kind, path, page_size, prealloc, node)

    def __str__(self) -> str:
        match self.kind:
            case "file":
                text = f"file={self.path}"
            case "hugetlb":
                text = f"hugetlb={'2M' if self.page_size == 2 << 20 else '1G'}"
            case _:
                text = self.kind
        return text + ",prealloc=on" * self.prealloc + (f",numa={self.node}" if self.node is not None else "")

    def open(self, size: int) -> Pool:
        """Open a pool of `size` bytes. Raises ConfigError or HostError in one line."""
        if self.node is not None and not (NUMA_NODES / f"node{self.node}").is_dir():
            raise ConfigError(f"memory backend {self}: this host has no NUMA node {self.node}")
        return Pool(self, size)


ANONYMOUS = Backend()


class Pool:
    """Memory of one backend, allocated in pieces by `take`, which stay valid after `close`."""

    def __init__(self, backend: Backend, size: int) -> None:
        self.backend = backend
        self._size = size
        self._taken = 0
        try:
            self._fd = self._open()
        except OSError as error:
            raise HostError(f"memory backend {backend}: {error.strerror}") from error

    def _open(self) -> int:
        match self.backend.kind:
            case "memfd":
                fd = os.memfd_create("pyvmm-ram", os.MFD_CLOEXEC)
            case "hugetlb":
                self._check_huge_pages()
                shift = self.backend.page_size.bit_length() - 1
                flags = os.MFD_CLOEXEC | os.MFD_HUGETLB | shift << _MFD_HUGE_SHIFT
                fd = os.memfd_create("pyvmm-ram", flags)
            case "file":
                fd = self._open_file()
            case _:
                return -1
        try:
            os.ftruncate(fd, self._size)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _open_file(self) -> int:
        path = self.backend.path
        assert path is not None
        if path.is_dir():
            return os.open(path, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the mapping holds the lock
            if os.fstat(fd).st_size not in (0, self._size):
                raise ConfigError(f"memory backend {self.backend}: the file holds something else; name a new one")
            os.ftruncate(fd, 0)
        except BlockingIOError:
            os.close(fd)
            raise ConfigError(f"memory backend {self.backend}: another machine uses this file") from None
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _check_huge_pages(self) -> None:
        size = self.backend.page_size
        folder = HUGE_PAGES / f"hugepages-{size >> 10}kB"
        if not folder.is_dir():
            raise ConfigError(f"memory backend {self.backend}: this host has no huge pages of that size")
        needed = self._size // size
        free = int((folder / "free_hugepages").read_text())
        if free < needed:
            total = int((folder / "nr_hugepages").read_text())
            raise HostError(
                f"memory backend {self.backend}: {needed} huge pages needed, {free} free; "
                f"echo {total + needed - free} > {folder}/nr_hugepages"
            )

    def take(self, size: int, *, populate: bool | None = None) -> HostMemory:
        """Return the next `size` bytes. `populate`: allocate pages now; None: by the backend. Raises HostError."""
        backend = self.backend
        assert self._taken + size <= self._size, "the pool is used up"
        memory = HostMemory(
            size,
            fd=self._fd,
            file_offset=self._taken,
            page_size=backend.page_size,
        )
        self._taken += size
        try:
            if backend.node is not None:
                _bind(memory, backend.node)
            if backend.prealloc if populate is None else populate:
                memory.populate(0, size)
        except HostError as error:
            memory.close()
            raise HostError(f"memory backend {backend}: {error}") from error
        return memory

    def close(self) -> None:
        """Allocate no more pieces. Harmless twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _bind(memory: HostMemory, node: int) -> None:
    mask = (ctypes.c_ulong * (_NODE_LIMIT // 64))()
    mask[node // 64] = 1 << node % 64
    address, size = ctypes.c_void_p(memory.address), ctypes.c_ulong(memory.size)
    bits = ctypes.c_ulong(_NODE_LIMIT + 1)  # the kernel subtracts one
    if _libc.syscall(
        ctypes.c_long(_SYS_MBIND), address, size, ctypes.c_long(_MPOL_BIND), mask, bits, ctypes.c_ulong(0)
    ):
        raise HostError(f"mbind to NUMA node {node}: {os.strerror(ctypes.get_errno())}")
