"""The Multiboot header, the formats behind it, and the information that the kernel finds."""

from __future__ import annotations

from pathlib import Path
from struct import pack, unpack_from

import pytest

from pyvmm.address_map import CMDLINE, START_INFO
from pyvmm.errors import ConfigError
from pyvmm.firmware import multiboot
from pyvmm.firmware.linux import check_linux, is_multiboot, load_linux
from pyvmm.memory import GuestMemory
from tests.support.sample_kernels import vmlinux
from tests.support.tiny_multiboot import GPA, HEADER, elf32, flat

RAM = 64 << 20
CODE = b"\xfa\xf4\xeb\xfc"


def text_at(memory: GuestMemory, gpa: int) -> bytes:
    return bytes(memory.read(gpa, 64)).split(b"\0")[0]


def test_a_32_bit_elf_file_goes_to_its_addresses_with_its_bss_cleared() -> None:
    memory = GuestMemory.flat(RAM)
    memory.write(GPA, b"\xff" * 8192)
    state = load_linux(memory, kernel=elf32(CODE), ram_size=RAM, fresh=False)
    assert memory.read(GPA, 16) == HEADER + CODE
    assert memory.read(GPA + 16, 0x1000) == bytes(0x1000)
    assert (state.rip, state.rax, state.rbx) == (GPA + 12, 0x2BADB002, START_INFO.start)
    assert state.cr0 & 1 << 31 == 0, "no paging"


def test_a_file_without_elf_headers_goes_where_its_header_says() -> None:
    memory = GuestMemory.flat(RAM)
    kernel = flat(CODE)
    state = load_linux(memory, kernel=kernel, ram_size=RAM)
    assert (memory.read(0x100000, len(kernel)), state.rip) == (kernel, 0x100020)


def test_a_64_bit_elf_file_with_a_header_is_entered_in_32_bit_mode() -> None:
    file = bytearray(vmlinux())
    nops = file.index(b"\x90" * 16)
    at = (nops + 3) & -4
    file[at : at + 12] = HEADER
    state = load_linux(GuestMemory.flat(RAM), kernel=bytes(file), ram_size=RAM)
    assert (state.rax, state.cr0 >> 31) == (multiboot.LOADER_MAGIC, 0)


def test_the_information_has_command_line_module_and_memory_map() -> None:
    memory = GuestMemory.flat(RAM)
    load_linux(memory, kernel=elf32(CODE), initrd=b"NR_CPUS=2\n", cmdline="test.flat direct", ram_size=RAM)
    at = START_INFO.start
    flags, lower, upper, _, cmdline, modules, modules_gpa = unpack_from("<7I", memory.read(at, 28))
    map_length, map_gpa = unpack_from("<II", memory.read(at + 44, 8))
    (loader,) = unpack_from("<I", memory.read(at + 64, 4))
    assert flags & 0b1001101 == 0b1001101, "memory, command line, modules, map"
    assert (lower, upper) == (639, (RAM >> 10) - 1024)
    assert (cmdline, text_at(memory, cmdline)) == (CMDLINE.start, b"test.flat direct")
    assert text_at(memory, loader) == b"pyvmm"
    start, end, string, _ = unpack_from("<4I", memory.read(modules_gpa, 16))
    assert (modules, memory.read(start, end - start), text_at(memory, string)) == (1, b"NR_CPUS=2\n", b"initrd")
    entries = []
    while map_length:
        size, gpa, length, kind = unpack_from("<IQQI", memory.read(map_gpa, 24))
        entries.append((gpa, length, kind))
        map_gpa, map_length = map_gpa + size + 4, map_length - size - 4
    assert (0x100000, RAM - 0x100000, 1) in entries
    assert any(kind == 2 for _, _, kind in entries), "reserved ranges"


def test_several_modules_lie_on_pages_of_their_own_in_order() -> None:
    memory = GuestMemory.flat(RAM)
    given = [multiboot.Module(b"a" * 5000, "a"), multiboot.Module(b"b", "b x=1"), multiboot.Module(b"c" * 10, "c")]
    load_linux(memory, kernel=elf32(CODE), modules=given, ram_size=RAM)
    count, table = unpack_from("<II", memory.read(START_INFO.start + 20, 8))
    found, last = [], 0
    for at in range(table, table + 16 * count, 16):
        start, end, string, _ = unpack_from("<4I", memory.read(at, 16))
        assert start % 4096 == 0 and last <= start and end <= RAM
        found.append((memory.read(start, end - start), text_at(memory, string).decode()))
        last = end
    assert found == [(each.source, each.string) for each in given]


def test_linux_takes_one_initrd() -> None:
    with pytest.raises(ConfigError, match="not a Multiboot kernel, so it takes one --initrd, not 2 modules"):
        load_linux(GuestMemory.flat(RAM), kernel=vmlinux(), modules=[multiboot.Module(b"a", "a")] * 2, ram_size=RAM)


def test_without_an_initrd_there_is_no_module() -> None:
    memory = GuestMemory.flat(RAM)
    load_linux(memory, kernel=elf32(CODE), ram_size=RAM)
    assert unpack_from("<II", memory.read(START_INFO.start + 20, 8)) == (0, 0)


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (elf32(CODE, gpa=0x1000), "over the boot loader: GDT"),
        (elf32(CODE, gpa=0x20000), "kernel command line"),
        (elf32(CODE, gpa=0xFFFFF000, bss=0x2000), "beyond 4 GiB"),
        (elf32(CODE)[:0x60], "truncated"),
        (elf32(CODE)[:0x54] + b"x" * 12, "not for x86-64"),  # no header: an ELF file like others
        (elf32(CODE, header=pack("<III", 0x1BADB002, 4, -(0x1BADB002 + 4) & 0xFFFFFFFF)), "wants 0x4 "),
        (HEADER + CODE, "neither ELF nor"),
        (flat(CODE)[:-1], "truncated"),
        (flat(CODE)[:28] + pack("<I", 0x5000) + CODE, "entry point 0x5000"),
        (flat(CODE)[:12] + pack("<I", 0x1000) + flat(CODE)[16:], "before the file does"),
        (elf32(b""), "entry point"),
    ],
)
def test_a_kernel_that_cannot_be_loaded_is_refused_in_one_line(kernel: bytes, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_linux(kernel=kernel, ram_size=RAM)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_kernel_may_lie_below_1_mib() -> None:
    assert load_linux(GuestMemory.flat(RAM), kernel=elf32(CODE, gpa=0x8000), ram_size=RAM).rip == 0x800C


def test_a_header_past_the_first_8_kib_or_with_a_wrong_sum_is_none() -> None:
    assert multiboot.find_header(bytes(8192) + HEADER) is None
    assert multiboot.find_header(bytes(8180) + HEADER) == 8180
    assert multiboot.find_header(bytes(2) + HEADER) is None, "not aligned"
    assert multiboot.find_header(HEADER[:8] + bytes(4)) is None


def test_an_entry_by_name_leaves_the_header_aside(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(elf32(CODE))
    assert is_multiboot(path)
    assert not is_multiboot(path, "64")
    with pytest.raises(ConfigError, match="not for x86-64"):
        check_linux(kernel=path, ram_size=RAM, protocol="64")
