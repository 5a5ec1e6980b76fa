"""The boot loader: loads a Linux kernel, its initramfs, boot parameters and tables; gives the entry point.

Addresses are in `pyvmm.address_map`. The kernel goes where it was linked (16 MiB), the initramfs to the end of
RAM below 3 GiB.

There are four entries. A bzImage (64-bit boot protocol) unpacks itself in the guest. A vmlinux (same protocol) is
already unpacked, which saves the guest that work. A vmlinux by PVH starts in 32-bit mode and gets the same data in
another structure. So does a kernel with a Multiboot header, which is not Linux.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from pyvmm import address_map
from pyvmm.address_map import ACPI_TABLES, EXTENDED_RAM, MIB
from pyvmm.errors import ConfigError
from pyvmm.files import FileBytes, open_regular, shown
from pyvmm.firmware import bzimage, elf, entry, multiboot, pvh, zero_page
from pyvmm.firmware.acpi import AcpiConfig, build_acpi
from pyvmm.firmware.e820 import E820Entry, e820_map, ram_layout
from pyvmm.firmware.sniff import describe

if TYPE_CHECKING:
    from pyvmm.firmware.entry import BootState
    from pyvmm.wire import Buffer

Entry = Literal["auto", "64", "pvh"]
Opener = Callable[[Path], int]

PAGE = 4096
BZIMAGE_ENTRY64 = 0x200  # startup_64, after the start of the protected-mode kernel
VMLINUX_CMDLINE_SIZE = 2047  # COMMAND_LINE_SIZE of x86, less the closing zero
INITRD_MAX = 0x7FFFFFFF  # a vmlinux has no header with a limit; this is a bzImage's
READ_SIZE = 16 * MIB  # a read cannot be interrupted; smaller ones take half as long again over a network
HEADROOM = 16 * MIB  # beyond kernel and initramfs: with less, Linux panics without a message


class Memory(Protocol):
    """The part of pyvmm.memory.GuestMemory that the boot loader uses."""

    def write(self, gpa: int, data: Buffer, /) -> None: ...

    def view(self, gpa: int, length: int, /) -> memoryview: ...


def load_linux(
    memory: Memory,
    *,
    kernel: Path | bytes,
    initrd: Path | bytes | None = None,
    modules: Sequence[multiboot.Module] = (),
    cmdline: str = "",
    ram_size: int,
    acpi: AcpiConfig | None = None,
    protocol: Entry = "auto",
    fresh: bool = True,
    opener: Opener = open_regular,
) -> BootState:
    """Fill `memory` (`ram_size` bytes, laid out as `ram_layout` says) and return the first vCPU's registers.

    `acpi` None leaves the tables out. `fresh` says that the memory holds zeros, so that zeros need not be written;
    False for loading again after a reset. Raises ConfigError, one line with the next step, if the files or sizes
    are unsuitable. Guest memory may be partly written then. `opener` opens the files. A Multiboot kernel
    gets `modules`, or `initrd` as its only one.
    """
    plan = _plan(kernel, initrd, modules, cmdline, ram_size, protocol, opener)
    loader, rsdp, e820 = plan.loader, 0, e820_map(ram_size)
    loader.write(memory, fresh)
    for each in plan.files:
        each.source.copy(memory, each.gpa, 0, each.size)
    memory.write(address_map.CMDLINE.start, plan.cmdline + b"\0")
    if acpi is not None:
        tables = build_acpi(acpi, ACPI_TABLES.start, ACPI_TABLES.size)
        memory.write(ACPI_TABLES.start, tables.data)
        rsdp = tables.rsdp_gpa
    if isinstance(loader, _Multiboot):
        memory.write(address_map.START_INFO.start, plan.information(e820))
    else:
        gpa, size = (plan.files[0].gpa, plan.files[0].size) if plan.files else (0, 0)
        _write_parameters(memory, loader, e820, gpa, size, rsdp)
    state = loader.state
    memory.write(address_map.GDT.start, state.gdt())
    return state


@dataclass(slots=True)
class _Plan:
    """The load plan: checked files and their addresses."""

    loader: _Bzimage | _Vmlinux | _Multiboot
    files: list[_Placed]
    cmdline: bytes

    def information(self, e820: list[E820Entry]) -> bytes:
        """Return the Multiboot information. Raises ConfigError if the modules' strings do not fit."""
        place, modules = address_map.START_INFO, [(each.gpa, each.size, each.string) for each in self.files]
        data = multiboot.build(place.start, e820=e820, cmdline_gpa=address_map.CMDLINE.start, modules=modules)
        if len(data) > place.size:
            raise ConfigError(
                f"--initrd: {len(modules)} modules and their arguments take {len(data)} bytes of boot information, "
                f"{place.size} are there: give fewer"
            )
        return data


@dataclass(slots=True)
class _Placed:
    """An initramfs or a Multiboot module, and its address."""

    source: _Source
    string: str
    gpa: int = 0

    @property
    def size(self) -> int:
        return len(self.source.view)


def check_linux(
    *,
    kernel: Path | bytes,
    initrd: Path | bytes | None = None,
    modules: Sequence[multiboot.Module] = (),
    cmdline: str = "",
    ram_size: int,
    protocol: Entry = "auto",
) -> None:
    """Raise the ConfigError that `load_linux` would raise, before any memory is allocated."""
    plan = _plan(kernel, initrd, modules, cmdline, ram_size, protocol)
    if isinstance(plan.loader, _Multiboot):
        plan.information(e820_map(ram_size))


def is_multiboot(kernel: Path, protocol: Entry = "auto") -> bool:
    """Return whether `load_linux` would enter the file by its Multiboot header. Raises ConfigError."""
    return protocol == "auto" and _has_multiboot(_Source(kernel, shown(kernel)).view)


def _has_multiboot(kernel: Buffer | FileBytes) -> bool:
    return not bzimage.is_bzimage(kernel) and multiboot.find_header(kernel) is not None


def _plan(
    kernel: Path | bytes,
    initrd: Path | bytes | None,
    modules: Sequence[multiboot.Module],
    cmdline: str,
    ram_size: int,
    protocol: Entry,
    opener: Opener = open_regular,
) -> _Plan:
    name = shown(kernel) if isinstance(kernel, Path) else "kernel"
    kernel_source = _Source(kernel, name, opener)
    if initrd is not None:
        modules = [multiboot.Module(initrd, initrd.name if isinstance(initrd, Path) else "initrd"), *modules]
    files = [_Placed(_Source(each.source, _name_of(each), opener), each.string) for each in modules]
    try:
        text = cmdline.encode("utf-8", "surrogateescape")  # as Python took it from the user's own command line
    except UnicodeEncodeError as error:
        raise ConfigError("the kernel command line is not valid Unicode: it contains a lone surrogate") from error
    if b"\0" in text:
        raise ConfigError("the kernel command line holds a zero byte; remove it")

    loader: _Bzimage | _Vmlinux | _Multiboot
    kernel_data = kernel_source.view
    if protocol == "auto" and _has_multiboot(kernel_data):
        loader = _Multiboot(kernel_source, name, len(text))
    elif bytes(kernel_data[:4]) == elf.ELF_MAGIC:
        loader = _Vmlinux(kernel_source, name, protocol)
    elif bzimage.is_bzimage(kernel_data):
        if protocol == "pvh":
            loader = _Vmlinux(_Source(bzimage.unpack_kernel(kernel_data, name), name), name, protocol)
        else:
            loader = _Bzimage(kernel_source, name)
    else:
        raise ConfigError(
            f"{name}: not a Linux kernel but {describe(bytes(kernel_data[:512]))}; "
            "give a bzImage, a vmlinux or a Multiboot image"
        )

    if len(text) > loader.cmdline_size:
        raise ConfigError(
            f"the kernel command line is {len(text)} bytes long, this kernel takes {loader.cmdline_size}; shorten it"
        )
    if len(files) > 1 and not isinstance(loader, _Multiboot):
        raise ConfigError(f"{name}: not a Multiboot kernel, so it takes one --initrd, not {len(files)} modules")
    pages = [(each.size + PAGE - 1) & -PAGE for each in files]
    gpa = _place_initrd(loader, sum(pages), ram_size, name, " and ".join(map(_name_of, modules)))
    for each, size in zip(files, pages, strict=True):
        each.gpa = gpa
        gpa += size
    return _Plan(loader, files, text)


def _name_of(module: multiboot.Module) -> str:
    return shown(module.source) if isinstance(module.source, Path) else "initrd"


def _write_parameters(
    memory: Memory,
    loader: _Bzimage | _Vmlinux,
    e820: list[E820Entry],
    initrd_gpa: int,
    initrd_size: int,
    rsdp: int,
) -> None:
    """Write the zero page and page tables, or the PVH start info."""
    if loader.pvh:
        info = pvh.build(
            address_map.START_INFO.start,
            e820=e820,
            cmdline_gpa=address_map.CMDLINE.start,
            initrd_gpa=initrd_gpa,
            initrd_size=initrd_size,
            rsdp_gpa=rsdp,
        )
        memory.write(address_map.START_INFO.start, info)
        return
    page = zero_page.build(
        header=loader.header,
        e820=e820,
        cmdline_gpa=address_map.CMDLINE.start,
        cmdline_size=loader.cmdline_size,
        initrd_gpa=initrd_gpa,
        initrd_size=initrd_size,
        rsdp_gpa=rsdp,
    )
    memory.write(address_map.ZERO_PAGE.start, page)
    memory.write(address_map.PAGE_TABLES.start, entry.page_tables())


class _Source:
    """A kernel or initramfs: bytes, or a file.

    `view` serves to parse the headers. The bulk is read directly into guest memory.
    """

    def __init__(self, source: Path | bytes | bytearray, name: str, opener: Opener = open_regular) -> None:
        self._name = name
        self.view: memoryview | FileBytes = (
            FileBytes(source, opener) if isinstance(source, Path) else memoryview(source)
        )
        if not len(self.view):
            raise ConfigError(f"{name}: the file is empty")

    def copy(self, memory: Memory, gpa: int, offset: int, size: int) -> None:
        """Copy `size` bytes from `offset` to `gpa`."""
        if isinstance(self.view, memoryview):
            memory.write(gpa, self.view[offset : offset + size])
            return
        target = memory.view(gpa, size)
        while target:
            try:
                done = os.preadv(self.view.descriptor, [target[:READ_SIZE]], offset)
            except OSError as error:
                raise ConfigError(f"{self._name}: cannot read it: {error.strerror}") from error
            if not done:
                raise ConfigError(f"{self._name}: became shorter while it was read")
            target, offset = target[done:], offset + done


class _Bzimage:
    """A packed kernel: its protected-mode part goes to its preferred address."""

    pvh = False

    def __init__(self, source: _Source, name: str) -> None:
        self.image = bzimage.parse(source.view, name)
        if not self.image.entry64:
            raise ConfigError(f"{name}: a 32-bit kernel; pyvmm runs 64-bit x86 kernels only")
        if self.image.pref_address < EXTENDED_RAM.start:
            raise ConfigError(f"{name}: is linked to run at {self.image.pref_address:#x}, below 1 MiB")
        self.source = source
        self.header: bytes | None = self.image.header
        self.cmdline_size = self.image.cmdline_size
        self.initrd_max = self.image.initrd_addr_max
        self.end = self.image.pref_address + max(self.image.init_size, self.image.kernel_size)
        self.state = entry.long_mode(self.image.pref_address + BZIMAGE_ENTRY64)

    def write(self, memory: Memory, fresh: bool) -> None:
        self.source.copy(memory, self.image.pref_address, self.image.kernel_offset, self.image.kernel_size)


class _Vmlinux:
    """An unpacked kernel: its segments go to their addresses."""

    header: bytes | None = None
    cmdline_size = VMLINUX_CMDLINE_SIZE
    initrd_max = INITRD_MAX

    def __init__(self, source: _Source, name: str, protocol: Entry) -> None:
        self.image = elf.parse(source.view, name)
        self.source = source
        self.end = self.image.end
        self.pvh = protocol == "pvh"
        low = min(segment.gpa for segment in self.image.segments)
        if low < EXTENDED_RAM.start:
            raise ConfigError(f"{name}: is linked at {low:#x}, below 1 MiB: not a Linux kernel")
        if not self.pvh:
            self.state = entry.long_mode(self.image.entry64)
        elif self.image.pvh_entry is not None:
            self.state = entry.protected_mode(self.image.pvh_entry)
        else:
            raise ConfigError(f"{name}: has no PVH entry; build it with CONFIG_PVH=y or leave the protocol to pyvmm")

    def write(self, memory: Memory, fresh: bool) -> None:
        _write_segments(self.source, self.image.segments, memory, fresh)


class _Multiboot:
    """A kernel with a Multiboot header: its segments go to their addresses, above 1 MiB or below."""

    cmdline_size = address_map.CMDLINE.size - 1
    initrd_max = INITRD_MAX

    def __init__(self, source: _Source, name: str, cmdline_size: int) -> None:
        self.image = multiboot.parse(source.view, name)
        self.source = source
        self.end = self.image.end
        ours = (address_map.GDT, address_map.START_INFO, address_map.CMDLINE._replace(size=cmdline_size + 1))
        for segment in self.image.segments:
            for place in ours:
                if segment.gpa < place.end and place.start < segment.gpa + segment.size:
                    raise ConfigError(
                        f"{name}: wants to be at {segment.gpa:#x}, over the {place.what} at {place.start:#x}; "
                        "link it elsewhere, at 1 MiB for instance"
                    )
        self.state = entry.protected_mode(self.image.entry)
        self.state.rax = multiboot.LOADER_MAGIC

    def write(self, memory: Memory, fresh: bool) -> None:
        _write_segments(self.source, self.image.segments, memory, fresh)


def _write_segments(source: _Source, segments: list[elf.Segment], memory: Memory, fresh: bool) -> None:
    for segment in segments:
        source.copy(memory, segment.gpa, segment.offset, segment.file_size)
        if not fresh:
            _clear(memory, segment.gpa + segment.file_size, segment.gpa + segment.size)


def _clear(memory: Memory, start: int, end: int) -> None:
    zeros = memoryview(bytes(MIB))
    for gpa in range(start, end, MIB):
        memory.write(gpa, zeros[: min(MIB, end - gpa)])


def _place_initrd(
    loader: _Bzimage | _Vmlinux | _Multiboot, size: int, ram_size: int, name: str, initrd_name: str
) -> int:
    """Return the initramfs's address: as high as kernel and low RAM allow. Raises ConfigError if memory is short."""
    low_ram = ram_layout(ram_size)[0].size
    pages = (size + PAGE - 1) & -PAGE
    if size and size > low_ram:
        raise ConfigError(
            f"{initrd_name}: {_mib(size)} MiB do not fit in {ram_size / MIB:g} MiB of memory; "
            f"the guest needs at least --memory {_mib(loader.end + pages + HEADROOM)}M"
        )
    if loader.end + pages + HEADROOM > low_ram:
        raise ConfigError(
            f"{ram_size / MIB:g} MiB of memory are too little for {name}"
            f"{' and ' + initrd_name if size else ''}: the guest needs at least "
            f"--memory {_mib(loader.end + pages + HEADROOM)}M"
        )
    gpa = (min(low_ram, loader.initrd_max + 1) & -PAGE) - pages
    if gpa < loader.end:
        raise ConfigError(f"{initrd_name}: {_mib(size)} MiB are more than {name} can take")
    return gpa if size else 0


def _mib(size: int) -> int:
    return -(-size // MIB)
