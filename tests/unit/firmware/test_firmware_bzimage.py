"""Reading a bzImage and unpacking the kernel inside."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct

import lz4.block
import pytest
import zstandard

from pyvmm.errors import ConfigError
from pyvmm.firmware import bzimage
from tests.support import sample_kernels as kernels

VMLINUX = kernels.vmlinux()
SIZE = struct.pack("<I", len(VMLINUX))


def lz4_legacy(data: bytes) -> bytes:
    block = lz4.block.compress(data, store_size=False)
    return b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block


PACKED = {
    "gzip": gzip.compress(VMLINUX),
    "xz": lzma.compress(VMLINUX) + SIZE,
    "xz with x86 filter": lzma.compress(
        VMLINUX, check=lzma.CHECK_CRC32, filters=[{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2}]
    )
    + SIZE,
    "lzma": lzma.compress(VMLINUX, lzma.FORMAT_ALONE) + SIZE,
    "bzip2": bz2.compress(VMLINUX) + SIZE,
    "lz4": lz4_legacy(VMLINUX) + SIZE,
    "zstd": zstandard.ZstdCompressor().compress(VMLINUX) + SIZE,
    "none": VMLINUX,
}


@pytest.mark.parametrize("payload", PACKED.values(), ids=PACKED)
def test_unpacks_each_compression(payload: bytes) -> None:
    assert bzimage.unpack_kernel(kernels.bzimage(payload))[: len(VMLINUX)] == VMLINUX


@pytest.mark.parametrize("name", [name for name in PACKED if name != "none"])
def test_cut_payload_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot decompress"):
        bzimage.unpack_kernel(kernels.bzimage(PACKED[name][: len(PACKED[name]) // 2]))


def test_lz4_that_announces_too_much_is_refused() -> None:
    with pytest.raises(ConfigError, match="more than 1024 MiB"):
        bzimage.unpack_kernel(kernels.bzimage(lz4_legacy(VMLINUX) + b"\xff\xff\xff\xff"))


def test_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bzimage, "MAX_VMLINUX", 1 << 20)
    with pytest.raises(ConfigError, match="more than 1 MiB"):
        bzimage.unpack_kernel(kernels.bzimage(gzip.compress(bytes(8 << 20))))


def test_packed_thing_that_is_no_kernel_is_refused() -> None:
    with pytest.raises(ConfigError, match="not an ELF kernel"):
        bzimage.unpack_kernel(kernels.bzimage(gzip.compress(b"hello")))


def test_header_is_read() -> None:
    image = bzimage.parse(kernels.bzimage(b"payload"))
    assert image.release == "6.1.0-test"
    assert image.entry64
    assert (image.pref_address, image.init_size) == (0x1000000, 0x200000)
    assert (image.kernel_offset, image.payload_offset) == (1024, 2048)


@pytest.mark.parametrize("length", [0, 1, 0x205, 0x26B])
def test_short_file_is_no_bzimage(length: int) -> None:
    with pytest.raises(ConfigError, match="not a bzImage"):
        bzimage.parse(kernels.bzimage(b"payload")[:length])


@pytest.mark.parametrize("length", [0x300, 1024, 1500, 2000])
def test_truncated_file_is_refused(length: int) -> None:
    with pytest.raises(ConfigError, match="truncated"):
        bzimage.parse(kernels.bzimage(b"payload" * 100)[:length])


def test_old_boot_protocol_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"2\.9 is too old"):
        bzimage.parse(kernels.bzimage(b"payload", version=0x209))


def test_payload_outside_the_file_is_refused() -> None:
    image = bytearray(kernels.bzimage(b"payload"))
    struct.pack_into("<II", image, 0x248, 0xFFFFFFF0, 0xFFFFFFFF)
    with pytest.raises(ConfigError, match="payload lies outside"):
        bzimage.parse(image)
