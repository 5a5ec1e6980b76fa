"""Bounded decompression of kernels and modules: gzip, xz, lzma, bzip2, LZ4 (legacy frames) and zstd.

Source: Linux lib/decompress.c for the magics, scripts/Makefile.lib for how each is packed.

Every exception that a damaged or hostile payload causes in the libraries becomes a PackedError. Output is produced in
pieces of at most PIECE bytes, so that a bomb is detected before it fills memory; dictionaries have their own limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import unpack_from
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Protocol

    class _Decompressor(Protocol):
        @property
        def eof(self) -> bool: ...
        @property
        def needs_input(self) -> bool: ...
        def decompress(self, data: bytes, max_length: int = ...) -> bytes: ...


MEMORY_LIMIT = 256 << 20
"""Largest dictionary or window in bytes: Linux packs with up to 128 MiB (zstd -22, xz since 6.12)."""

PIECE = 1 << 20
STEP = 64 << 10
ZSTD_STEP = 512  # a block of 4 bytes may be 128 KiB of one byte, and the API has no output bound: 16 MiB a step
LZ4_BLOCK = 8 << 20  # block size of `lz4 -l`


class PackedError(ValueError):
    """The payload cannot be unpacked; the text says why."""


def decompress(payload: bytes, limit: int) -> bytearray:
    """Unpack a payload in the format of its magic bytes. Raises PackedError, nothing else."""
    made = bytearray()
    try:
        for piece in _pieces(payload, limit):
            made += piece
            if len(made) > limit:
                raise PackedError(f"decompresses to more than {limit >> 20} MiB")
    except PackedError:
        raise
    except MemoryError:
        raise PackedError("not enough memory to decompress it") from None
    except Exception as error:  # six libraries raise various classes for damaged input
        raise PackedError(str(error) or type(error).__name__) from error
    return made


def _pieces(payload: bytes, limit: int) -> Iterator[bytes]:
    # Most boots find the kernel unpacked, so the libraries are imported only here.
    import bz2
    import lzma
    import zlib

    if payload.startswith(b"\x1f\x8b"):
        return _gzip(zlib.decompressobj(31), payload)
    if payload.startswith(b"\xfd7zXZ\0"):
        return _fed(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY_LIMIT), payload)
    if payload.startswith(b"BZh"):
        return _fed(bz2.BZ2Decompressor(), payload)
    if payload.startswith(b"\x5d\0\0"):
        return _fed(lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=MEMORY_LIMIT), payload)
    if payload.startswith(b"\x02\x21\x4c\x18"):
        return _lz4_legacy(payload, limit)
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return _zstd(payload)
    if payload.startswith(b"\x7fELF"):
        return iter([payload])  # CONFIG_KERNEL_UNCOMPRESSED
    raise PackedError(f"unknown compression (starts with {payload[:6].hex(' ')})")


def _fed(decompressor: _Decompressor, payload: bytes) -> Iterator[bytes]:
    """Drive lzma and bz2: drain the output of each piece of input before the next piece."""
    for start in range(0, len(payload), STEP):
        yield decompressor.decompress(payload[start : start + STEP], PIECE)
        while not decompressor.eof and not decompressor.needs_input:
            yield decompressor.decompress(b"", PIECE)
        if decompressor.eof:
            return
    raise PackedError("its compressed data is truncated")


def _gzip(decompressor: object, payload: bytes) -> Iterator[bytes]:
    """Unpack gzip: zlib returns the input that it did not consume."""
    import zlib

    unpacker = decompressor
    assert isinstance(unpacker, type(zlib.decompressobj()))
    for start in range(0, len(payload), STEP):
        rest = payload[start : start + STEP]
        while rest and not unpacker.eof:
            yield unpacker.decompress(rest, PIECE)
            rest = unpacker.unconsumed_tail
        if unpacker.eof:
            return
    raise PackedError("its compressed data is truncated")


def _zstd(payload: bytes) -> Iterator[bytes]:
    import zstandard  # 30 ms, only where it is needed

    unpacker = zstandard.ZstdDecompressor(max_window_size=MEMORY_LIMIT).decompressobj()
    for start in range(0, len(payload), ZSTD_STEP):
        yield unpacker.decompress(payload[start : start + ZSTD_STEP])
        if unpacker.eof:
            return
    raise PackedError("its compressed data is truncated")


def _lz4_legacy(payload: bytes, limit: int) -> Iterator[bytes]:
    """Unpack `lz4 -l`: blocks of 8 MiB, each after its packed size, up to the end; the kernel's size comes last."""
    import lz4.block

    total, at = 0, 4
    (expected,) = unpack_from("<I", payload, len(payload) - 4)
    if expected > limit:
        raise PackedError(f"decompresses to more than {limit >> 20} MiB")
    while total < expected:
        if at + 4 > len(payload):
            raise PackedError("its compressed data is truncated")
        (size,) = unpack_from("<I", payload, at)
        if size > len(payload) - at - 4:
            raise PackedError("an LZ4 block reaches past the end")
        piece = lz4.block.decompress(payload[at + 4 : at + 4 + size], uncompressed_size=LZ4_BLOCK)
        total += len(piece)
        if len(piece) < LZ4_BLOCK and total < expected:
            raise PackedError("an LZ4 block is shorter than it must be")
        yield piece
        at += 4 + size
