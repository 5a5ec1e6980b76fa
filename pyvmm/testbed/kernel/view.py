"""A running kernel's own data, read by the host from guest memory: no command, no exit, a guest that hangs will do.

Symbols and layouts come from the kernel's image (`pyvmm.kallsyms`, `btf`) and are kept in the cache: to decode them
takes a second, in an emulated host ten.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from contextlib import suppress
from pathlib import Path
from struct import pack, unpack_from
from typing import Any, Final

from pyvmm.cache import mark_used
from pyvmm.errors import ConfigError, GuestMemoryError, PyvmmError
from pyvmm.firmware import elf
from pyvmm.gdb.page_tables import Paging
from pyvmm.kallsyms import NoSymbolsError, read_kallsyms
from pyvmm.memory import GuestMemory
from pyvmm.paths import cache_folder, write_private
from pyvmm.testbed.kernel.btf import Layout, Layouts, Member, NoLayoutError

KERNEL_MAP: Final = 0xFFFF_FFFF_8000_0000
PAGE: Final = 4096
_PG, _PAE, _LA57, _LMA = 1 << 31, 1 << 5, 1 << 12, 1 << 10

STRUCTURES: Final = (
    "printk_ringbuffer",
    "prb_desc_ring",
    "prb_desc",
    "prb_data_ring",
    "prb_data_blk_lpos",
    "printk_info",
    "task_struct",
    "thread_struct",
    "module",
    "module_memory",
    "module_layout",
    "mod_kallsyms",
)
"""What is kept of the layouts. Kernels lack some of them: module_layout became module_memory in 6.4."""

_FORMAT: Final = 1  # of the files in the cache
_HEADER: Final = "<8sI"
_MAGIC: Final = b"pyvmmsym"


class NoKernelError(PyvmmError):
    """The guest's kernel cannot be read: another than the image, none yet, or without symbols."""


class Symbols:
    """A kernel's symbols: the place of each address."""

    def __init__(self, data: bytes) -> None:
        magic, count = unpack_from(_HEADER, data.ljust(16, b"\0"))
        if magic != _MAGIC or len(data) < 16 + 8 * count:
            raise NoKernelError("a damaged table of symbols in the cache")
        self._addresses = memoryview(data)[16 : 16 + 8 * count].cast("Q")
        self._data, self._names_at = data, 16 + 8 * count
        self._names: list[str] | None = None

    @staticmethod
    def pack(addresses: list[int], names: list[str]) -> bytes:
        """Return the table as it is kept."""
        head = pack(_HEADER, _MAGIC, len(addresses)).ljust(16, b"\0")
        return head + array("Q", addresses).tobytes() + "\n".join(names).encode()

    def find(self, address: int) -> tuple[str, int] | None:
        """Return the symbol at or before `address`, and the distance; None before the first."""
        index = bisect_right(self._addresses, address) - 1
        if index < 0:
            return None
        if self._names is None:
            self._names = self._data[self._names_at :].decode().split("\n")
        return self._names[index], address - self._addresses[index]


class KernelImage:
    """What is known of a kernel by its image. `symbols` are the few that the readers need, `layouts` likewise."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.symbols: dict[str, int] = {}
        self.layouts: dict[str, Layout] = {}
        self._all: Symbols | None = None
        try:
            status = path.stat()
            self._key = f"{_FORMAT}-{status.st_size:x}-{status.st_mtime_ns:x}"
        except OSError as error:
            raise NoKernelError(f"{path}: {error.strerror}") from error
        self._load()

    def layout(self, name: str) -> Layout:
        """Return a structure's layout. Raises NoKernelError."""
        if name not in self.layouts:
            raise NoKernelError(f"{self.path.name} has no layout of {name}")
        return self.layouts[name]

    def symbol(self, name: str) -> int:
        """Return the address of one of NEEDED. Raises NoKernelError."""
        if name not in self.symbols:
            raise NoKernelError(f"{self.path.name} has no symbol {name}")
        return self.symbols[name]

    @property
    def all(self) -> Symbols:
        """Return all symbols."""
        if self._all is None:
            try:
                self._all = Symbols(self._file("symbols").read_bytes())
            except OSError as error:
                raise NoKernelError(f"the cached symbols: {error.strerror}") from error
        return self._all

    def _file(self, kind: str) -> Path:
        return cache_folder("symbols") / f"{self._key}.{kind}"

    def _load(self) -> None:
        try:
            self._take(json.loads(self._file("json").read_bytes()))
            mark_used(self._file("json"))
            mark_used(self._file("symbols"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not there, or damaged
            self._take(self._make())

    def _take(self, kept: Any) -> None:
        self.symbols = {name: int(address) for name, address in kept["symbols"].items()}
        self.layouts = {
            name: Layout(size, {member: Member(*place) for member, place in members.items()})
            for name, (size, members) in kept["layouts"].items()
        }

    def _make(self) -> dict[str, dict[str, object]]:
        try:
            data = self.path.read_bytes()
            segments = elf.parse(data, self.path.name).segments

            def virtual(at: int) -> int:
                segment = next(each for each in segments if each.offset <= at < each.offset + each.file_size)
                return KERNEL_MAP + segment.gpa + at - segment.offset

            tables = read_kallsyms(data, virtual)
            layouts = Layouts(data)
        except OSError as error:
            raise NoKernelError(f"{self.path}: {error.strerror}") from error
        except (ConfigError, NoSymbolsError, NoLayoutError) as error:
            raise NoKernelError(f"{self.path.name}: {error}") from error
        needed = set(NEEDED)
        found: dict[str, object] = {}
        for name in STRUCTURES:
            with suppress(NoLayoutError):
                layout = layouts.layout(name)
                places = {key: (each.offset, each.shift, each.bits) for key, each in layout.members.items()}
                found[name] = (layout.size, places)
        symbols: dict[str, object] = {
            name: address for address, name in zip(tables.addresses, tables.names, strict=True) if name in needed
        }
        kept = {"symbols": symbols, "layouts": found}
        with suppress(OSError):
            write_private(self._file("symbols"), Symbols.pack(tables.addresses, tables.names))
            write_private(self._file("json"), json.dumps(kept).encode())
        self._all = Symbols(Symbols.pack(tables.addresses, tables.names))
        return kept


NEEDED: Final = (
    "linux_banner",
    "init_top_pgt",
    "init_task",
    "prb",
    "modules",
    "_totalram_pages",
    "__pgtable_l5_enabled",
    "_stext",
    "_etext",
)
"""Symbols that the readers use."""


class KernelView:
    """The memory of a guest's kernel, by virtual address. Raises NoKernelError if the guest runs no such kernel."""

    def __init__(self, memory: GuestMemory, image: KernelImage) -> None:
        self.memory, self.image = memory, image
        banner = image.symbol("linux_banner")
        try:
            text = memory.read(banner - KERNEL_MAP, 14)
            five = image.symbols.get("__pgtable_l5_enabled")
            levels5 = five is not None and memory.read(five - KERNEL_MAP, 4) != bytes(4)
        except GuestMemoryError:
            text, levels5 = b"", False
        if text != b"Linux version ":
            raise NoKernelError("the guest's kernel is not the image, or lies elsewhere (KASLR)")
        root = image.symbol("init_top_pgt") - KERNEL_MAP
        self._paging = Paging(_PG, root, _PAE | (_LA57 if levels5 else 0), _LMA)
        self._pages: dict[int, int] = {}

    def physical(self, address: int) -> int:
        """Return where a virtual address lies. Raises NoKernelError if it is not mapped."""
        page = address // PAGE
        known = self._pages.get(page)
        if known is None:
            found = self._paging.translate(self.memory, page * PAGE)
            if found is None:
                raise NoKernelError(f"{address:#x} is not mapped")
            known = self._pages[page] = found
        return known + address % PAGE

    def forget(self) -> None:
        """Forget translations: the kernel may have changed its page tables."""
        self._pages.clear()

    def read(self, address: int, length: int) -> bytes:
        """Return `length` bytes at a virtual address. Raises NoKernelError."""
        data = b""
        try:
            while len(data) < length:
                at = address + len(data)
                size = min(length - len(data), PAGE - at % PAGE)
                data += self.memory.read(self.physical(at), size)
        except GuestMemoryError as error:
            raise NoKernelError(str(error)) from error
        return data

    def u64(self, address: int) -> int:
        """Return the 8-byte number at a virtual address."""
        return int.from_bytes(self.read(address, 8), "little")

    def u32(self, address: int) -> int:
        """Return the 4-byte number at a virtual address."""
        return int.from_bytes(self.read(address, 4), "little")

    def text(self, address: int, limit: int = 64) -> str:
        """Return the string at a virtual address, of `limit` bytes at most."""
        size = min(limit, 2 * PAGE - address % PAGE)
        return self.read(address, size).partition(b"\0")[0].decode("utf-8", "replace")
