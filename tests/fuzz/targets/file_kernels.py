"""Binary files: kernels, what is packed in them, modules, archives. A damaged one is a ConfigError or a ValueError
where the function says so, and never takes more than its limit.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

from pyvmm.cli.kut.plan import CannotRun, plan
from pyvmm.cli.kut.suite import Suite, parse
from pyvmm.errors import ConfigError, HostError
from pyvmm.firmware import bzimage, elf, multiboot
from pyvmm.firmware.decompress import PackedError, decompress
from pyvmm.firmware.linux import check_linux
from pyvmm.firmware.sniff import describe
from pyvmm.images.busybox import is_static
from pyvmm.images.cpio import read_cpio
from pyvmm.images.modules import depends
from pyvmm.images.programs import linking
from pyvmm.images.strip import strip_debug

LIMIT = 1 << 20
RAM = 128 << 20
MAGICS = (b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"\x5d\0\0", b"BZh9", b"\x02\x21\x4c\x18", b"\x28\xb5\x2f\xfd", b"\x7fELF")
SECTORS, KERNEL_AT = 1, 1024
HEADER_SIZE = 0x290


def packed(data: bytes) -> None:
    """The first byte chooses the packing, the rest follows its magic."""
    magic = MAGICS[data[0] % len(MAGICS)] if data else b""
    with suppress(PackedError):
        assert len(decompress(magic + data[1:], LIMIT)) <= LIMIT


def bzimage_header(data: bytes) -> None:
    """A file with the magic in its place, fuzzed around it: parsed, and loaded by each protocol."""
    file = bytearray(data.ljust(HEADER_SIZE, b"\0"))
    file[0x202:0x206] = bzimage.HEADER_MAGIC
    _load(bytes(file))


def bzimage_payload(data: bytes) -> None:
    """A whole bzImage around a fuzzed payload."""
    kernel = data + bytes(-len(data) % 16)
    head = bytearray(KERNEL_AT)
    head[0x1F1] = SECTORS
    head[0x1F4:0x1F8] = (len(kernel) // 16).to_bytes(4, "little")
    head[0x202:0x208] = bzimage.HEADER_MAGIC + b"\x0f\x02"
    head[0x236:0x238] = b"\x7f\0"
    head[0x24C:0x250] = len(data).to_bytes(4, "little")
    with suppress(ConfigError):
        bzimage.unpack_kernel(bytes(head) + kernel)


def vmlinux(data: bytes) -> None:
    """An ELF file of the right kind, fuzzed from there on."""
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + b"\x02\0\x3e\0\x01\0\0\0"
    _load(head + data)
    with suppress(ConfigError):
        elf.trim_zeros(bytearray(head + data))


def multiboot_image(data: bytes) -> None:
    """A Multiboot header before, in and behind an ELF file's headers, and with addresses of its own."""
    header = struct.pack("<II", multiboot.HEADER_MAGIC, flags := (data[0] & 3) << 16 if data else 0)
    header += struct.pack("<I", -(multiboot.HEADER_MAGIC + flags) & 0xFFFFFFFF)
    elf32 = (b"\x7fELF\x01\x01\x01".ljust(16, b"\0") + b"\x02\0\x03\0\x01\0\0\0" + data).ljust(84, b"\0")
    elf64 = (b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + b"\x02\0\x3e\0\x01\0\0\0" + data).ljust(120, b"\0")
    for file in (header + data[1:], *(head[: len(head) & -4] + header + data for head in (elf32, elf64))):
        _load(file)


def suite(data: bytes) -> None:
    """A unittests.cfg of kvm-unit-tests, and a machine for each of its tests."""
    tests = parse(data.decode("utf-8", "replace"))
    for test in tests:
        test.file = test.file and __file__  # one that is there, else no test gets further
        with suppress(CannotRun):
            plan(Suite(Path("/"), tests), test)


def _load(file: bytes) -> None:
    for protocol in ("auto", "pvh"):
        with suppress(ConfigError):
            check_linux(kernel=file, initrd=b"x", ram_size=RAM, protocol=protocol)  # type: ignore[arg-type]


def module(data: bytes) -> None:
    for file in (data, b"\x7fELF\x02" + data):
        with suppress(ConfigError):
            depends(file)
        assert len(strip_debug(file)) <= len(file)
        is_static(file)
        describe(file)


def cpio(data: bytes) -> None:
    for file in (data, b"070701" + data):
        with suppress(ValueError):
            for _ in read_cpio(file):
                pass


def program(data: bytes) -> None:
    """A program whose libraries are looked for."""
    for start in (b"", b"\x7fELF\x02"):
        with suppress(HostError):
            linking(start + data)


TARGETS = {
    "file_program": program,
    "file_multiboot": multiboot_image,
    "file_kut_suite": suite,
    "file_packed": packed,
    "file_bzimage_header": bzimage_header,
    "file_bzimage_payload": bzimage_payload,
    "file_vmlinux": vmlinux,
    "file_module": module,
    "file_cpio": cpio,
}
