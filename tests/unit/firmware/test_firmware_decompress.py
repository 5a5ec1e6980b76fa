from __future__ import annotations

import bz2
import gzip
import lzma
import random
import resource
import struct
import subprocess
import sys

import lz4.block
import pytest
import zstandard

from pyvmm.errors import ConfigError
from pyvmm.firmware import bzimage
from pyvmm.firmware.decompress import PackedError, decompress
from tests.support import sample_kernels as kernels

LIMIT = 64 << 20
DATA = random.Random(1).randbytes(5000) + bytes(300_000) + b"end" * 1000


def lz4_legacy(data: bytes) -> bytes:
    blocks = [lz4.block.compress(data[at : at + (8 << 20)], store_size=False) for at in range(0, len(data), 8 << 20)]
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(each)) + each for each in blocks)


PACKERS = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "lz4": lz4_legacy,
}


def packed(name: str, data: bytes = DATA) -> bytes:
    """As the kernel's build leaves it: the size follows."""
    return PACKERS[name](data) + struct.pack("<I", len(data))


@pytest.mark.parametrize("name", PACKERS)
def test_each_packing_is_undone(name: str) -> None:
    assert decompress(packed(name), LIMIT) == DATA


@pytest.mark.parametrize("name", PACKERS)
def test_damage_of_any_kind_is_a_packed_error(name: str) -> None:
    whole, noise = packed(name), random.Random(name)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(noise.randint(1, 8)):
            damaged[noise.randrange(4, len(damaged))] = noise.randrange(256)
        try:
            decompress(bytes(damaged[: noise.randint(5, len(damaged))]), LIMIT)
        except PackedError:
            pass


@pytest.mark.parametrize("name", PACKERS)
def test_a_bzimage_with_a_corrupt_payload_is_one_line(name: str) -> None:
    damaged = bytearray(packed(name, kernels.vmlinux()))
    for at in range(10, len(damaged) - 4, 5):
        damaged[at] ^= 0x5A
    with pytest.raises(ConfigError, match=r"cannot decompress its kernel: .*; copy it again"):
        bzimage.unpack_kernel(kernels.bzimage(bytes(damaged)))


@pytest.mark.parametrize("name", PACKERS)
def test_a_bomb_is_noticed_before_it_fills_memory(name: str) -> None:
    """256 MiB of zeros and a limit of 1 MiB, in a process that may not have them."""
    bomb = packed(name, bytes(256 << 20))
    program = (
        "import resource, sys; from firmware.decompress import PackedError, decompress; import lz4.block, zstandard\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({400 << 20}, {400 << 20}))\n"
        "try: decompress(sys.stdin.buffer.read(), 1 << 20)\n"
        "except PackedError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], input=bomb, capture_output=True, check=True, timeout=60)
    assert done.stdout == b"decompresses to more than 1 MiB\n"


@pytest.mark.parametrize(
    "payload", [b"\x1f\x8b", b"\xfd7zXZ\0", b"BZh", b"\x5d\0\0", b"\x28\xb5\x2f\xfd", b"\x02\x21\x4c\x18", b"??"]
)
def test_a_magic_alone_is_refused(payload: bytes) -> None:
    with pytest.raises(PackedError):
        decompress(payload, LIMIT)


def test_a_dictionary_beyond_the_limit_is_refused() -> None:
    header = b"\x5d" + struct.pack("<IQ", 0xFFFFFFFF, 1 << 20)
    with pytest.raises(PackedError):
        decompress(header + bytes(1000), LIMIT)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 << 20
