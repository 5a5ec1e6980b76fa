"""Loading kernels: what is in memory afterwards, and what is refused."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest

from pyvmm import address_map
from pyvmm.errors import ConfigError
from pyvmm.firmware.acpi import AcpiConfig
from pyvmm.firmware.e820 import E820Type
from pyvmm.firmware.linux import check_linux, load_linux
from pyvmm.memory import GuestMemory
from tests.support import sample_kernels as kernels

MIB = 1 << 20
RAM = 64 * MIB
VMLINUX = kernels.vmlinux()
BZIMAGE = kernels.bzimage(gzip.compress(VMLINUX))
ZERO_PAGE = address_map.ZERO_PAGE.start


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory.flat(RAM)


def u32(memory: GuestMemory, gpa: int) -> int:
    return int.from_bytes(memory.read(gpa, 4), "little")


def u64(memory: GuestMemory, gpa: int) -> int:
    return int.from_bytes(memory.read(gpa, 8), "little")


def test_vmlinux_lies_at_its_addresses(memory: GuestMemory) -> None:
    state = load_linux(memory, kernel=VMLINUX, ram_size=RAM)
    assert memory.read(0x1000000, 4) == b"\x90" * 4
    assert memory.read(0x1200000, 4) == b"data"
    assert state.rip == 0x1000000


def test_bzimage_is_entered_0x200_after_its_start(memory: GuestMemory) -> None:
    state = load_linux(memory, kernel=BZIMAGE, ram_size=RAM)
    assert state.rip == 0x1000200
    assert memory.read(0x1000000 + 1024, 2) == b"\x1f\x8b"


@pytest.mark.parametrize("kernel", [VMLINUX, BZIMAGE], ids=["vmlinux", "bzImage"])
def test_zero_page_names_command_line_initrd_map_and_rsdp(memory: GuestMemory, kernel: bytes) -> None:
    initrd = b"070701" * 1000
    load_linux(
        memory, kernel=kernel, initrd=initrd, cmdline="console=ttyS0", ram_size=RAM, acpi=AcpiConfig.for_cpus(2)
    )
    assert memory.read(ZERO_PAGE + 0x202, 4) == b"HdrS"
    assert memory.read(u32(memory, ZERO_PAGE + 0x228), 14) == b"console=ttyS0\0"
    initrd_gpa, size = u32(memory, ZERO_PAGE + 0x218), u32(memory, ZERO_PAGE + 0x21C)
    assert size == len(initrd)
    assert memory.read(initrd_gpa, size) == initrd
    assert initrd_gpa % 4096 == 0
    assert initrd_gpa + 2 * 4096 == RAM, "as high as it goes"
    assert memory.read(u64(memory, ZERO_PAGE + 0x70), 8) == b"RSD PTR "
    count = memory.read(ZERO_PAGE + 0x1E8, 1)[0]
    table = list(struct.iter_unpack("<QQI", memory.read(ZERO_PAGE + 0x2D0, 20 * count)))
    assert table[0] == (0, 0x9FC00, E820Type.RAM)
    assert table[-1] == (MIB, RAM - MIB, E820Type.RAM)
    assert memory.read(ZERO_PAGE + 0x1EF, 1) == b"\0", "the sentinel"


def test_pvh_start_info_names_the_same_things(memory: GuestMemory) -> None:
    initrd = b"070701"
    state = load_linux(
        memory, kernel=VMLINUX, initrd=initrd, cmdline="quiet", ram_size=RAM, acpi=AcpiConfig(), protocol="pvh"
    )
    assert (state.rip, state.rbx) == (0x1000040, address_map.START_INFO.start)
    info = struct.unpack("<IIIIQQQQII", memory.read(address_map.START_INFO.start, 56))
    magic, version, _flags, modules, module_list, cmdline, rsdp, memory_map, entries, _ = info
    assert (magic, version, modules, rsdp) == (0x336EC578, 1, 1, address_map.ACPI_TABLES.start)
    initrd_gpa, size, _, _ = struct.unpack("<4Q", memory.read(module_list, 32))
    assert memory.read(initrd_gpa, size) == initrd
    assert memory.read(cmdline, 6) == b"quiet\0"
    assert struct.unpack("<QQII", memory.read(memory_map, 24)) == (0, 0x9FC00, E820Type.RAM, 0)
    assert entries == 4


def test_bzimage_is_unpacked_for_pvh(memory: GuestMemory) -> None:
    assert load_linux(memory, kernel=BZIMAGE, ram_size=RAM, protocol="pvh").rip == 0x1000040


def test_files_are_loaded_as_bytes_are(memory: GuestMemory, tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(VMLINUX)
    (tmp_path / "initrd").write_bytes(b"archive")
    load_linux(memory, kernel=tmp_path / "vmlinux", initrd=tmp_path / "initrd", ram_size=RAM)
    assert memory.read(0x1200000, 4) == b"data"
    assert memory.read(RAM - 4096, 7) == b"archive"


def test_loading_again_clears_what_the_last_guest_left(memory: GuestMemory) -> None:
    memory.write(0x1201000, b"old" * 100)
    load_linux(memory, kernel=VMLINUX, ram_size=RAM, fresh=False)
    assert memory.read(0x1201000, 0x2000) == bytes(0x2000)


def test_loading_again_gives_the_same_memory_as_the_first_time(memory: GuestMemory) -> None:
    acpi = AcpiConfig.for_cpus(2)
    load_linux(memory, kernel=VMLINUX, initrd=b"x", cmdline="quiet", ram_size=RAM, acpi=acpi)
    first = memory.read(0x1000, 0x100000 - 0x1000)
    load_linux(memory, kernel=VMLINUX, initrd=b"x", cmdline="quiet", ram_size=RAM, acpi=acpi, fresh=False)
    assert memory.read(0x1000, 0x100000 - 0x1000) == first


REFUSED = {
    "empty file": (b"", "the file is empty"),
    "text": (b"hello, world\n", "not a Linux kernel but a text file"),
    "gzip": (gzip.compress(VMLINUX), "not a Linux kernel but a gzip file"),
    "initramfs": (b"070701" + bytes(200), "not a Linux kernel but an initramfs"),
    "program": (b"MZ" + bytes(1000), "not a Linux kernel but an EFI"),
    "zeros": (bytes(1000), "not a Linux kernel but a file that starts with 00 00"),
    "truncated vmlinux": (VMLINUX[:-1], "truncated"),
    "truncated bzImage": (BZIMAGE[:-100], "truncated"),
    "ordinary program": (kernels.elf([(0x400000 - 0x400000, bytes(64), 64)], entry=0), "below 1 MiB"),
    "32-bit bzImage": (kernels.bzimage(b"packed", xloadflags=0), "32-bit kernel"),
}


@pytest.mark.parametrize(("kernel", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_kernel_is_refused(memory: GuestMemory, kernel: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_linux(memory, kernel=kernel, ram_size=RAM)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder_are_refused(memory: GuestMemory, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_linux(memory, kernel=tmp_path / "none", ram_size=RAM)
    with pytest.raises(ConfigError, match="Is a directory"):
        load_linux(memory, kernel=tmp_path, ram_size=RAM)


def test_empty_initrd_is_refused(memory: GuestMemory, tmp_path: Path) -> None:
    (tmp_path / "initrd").touch()
    with pytest.raises(ConfigError, match="initrd: the file is empty"):
        load_linux(memory, kernel=VMLINUX, initrd=tmp_path / "initrd", ram_size=RAM)


def test_initrd_larger_than_memory_is_refused(memory: GuestMemory) -> None:
    with pytest.raises(ConfigError, match=r"initrd: 65 MiB do not fit in 64 MiB .* at least --memory 10\dM"):
        load_linux(memory, kernel=VMLINUX, initrd=bytes(65 * MIB), ram_size=RAM)


def test_initrd_that_meets_the_kernel_is_refused(memory: GuestMemory) -> None:
    with pytest.raises(ConfigError, match="64 MiB of memory are too little"):
        load_linux(memory, kernel=VMLINUX, initrd=bytes(40 * MIB), ram_size=RAM)


@pytest.mark.parametrize("kernel", [VMLINUX, BZIMAGE], ids=["vmlinux", "bzImage"])
def test_1_mib_of_memory_is_refused_with_what_is_needed(kernel: bytes) -> None:
    with pytest.raises(ConfigError, match=r"1 MiB of memory are too little .* --memory 3\dM"):
        load_linux(GuestMemory.flat(MIB), kernel=kernel, ram_size=MIB)


def test_long_command_line_is_refused(memory: GuestMemory) -> None:
    with pytest.raises(ConfigError, match="3000 bytes long, this kernel takes 2047"):
        load_linux(memory, kernel=VMLINUX, cmdline="x" * 3000, ram_size=RAM)


def test_pvh_without_an_entry_is_refused(memory: GuestMemory) -> None:
    with pytest.raises(ConfigError, match="CONFIG_PVH=y"):
        load_linux(memory, kernel=kernels.vmlinux(pvh=False), ram_size=RAM, protocol="pvh")


def test_check_says_what_loading_would_without_memory() -> None:
    with pytest.raises(ConfigError, match="not a Linux kernel"):
        check_linux(kernel=b"hello", ram_size=64 << 20)
