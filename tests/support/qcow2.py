"""Images in the format qcow2."""

from __future__ import annotations

from pathlib import Path
from struct import pack


def make_qcow2(path: Path, size: int) -> None:
    """Make an image as `qemu-img create -f qcow2` does, with one cluster each of refcounts, their table and L1."""
    cluster = 1 << 16
    tables = size // (cluster * (cluster // 8)) + 1
    head = pack(
        ">4sIQIIQIIQQIIQQQQII",
        b"QFI\xfb",
        3,
        0,
        0,
        16,
        size,
        0,
        tables,
        3 * cluster,
        cluster,
        1,
        0,
        0,
        0,
        0,
        0,
        4,
        104,
    )
    refcounts = pack(">4H", 1, 1, 1, 1)
    path.write_bytes(
        head.ljust(cluster, b"\0")
        + pack(">Q", 2 * cluster).ljust(cluster, b"\0")
        + refcounts.ljust(2 * cluster, b"\0")
    )
