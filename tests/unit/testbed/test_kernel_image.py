"""Symbols and layouts are decoded from a kernel's image, in each form that kernels have had."""

from __future__ import annotations

from pathlib import Path
from struct import pack

import pytest

from pyvmm.kallsyms import NoSymbolsError, read_kallsyms
from pyvmm.testbed.kernel.btf import Layouts, Member, NoLayoutError
from pyvmm.testbed.kernel.view import KernelImage, NoKernelError, Symbols

BASE = 0xFFFF_FFFF_8100_0000
COUNT = 6000
NAMES = [f"{'T' if n % 2 else 'd'}symbol_{n}" + "_" * (n == 77) * 150 for n in range(COUNT)]


def image(form: str) -> bytes:
    """Return an image with COUNT symbols, 16 bytes apart."""
    pair = {0x80: b"sym", 0x81: b"bol_"}
    tokens = [pair.get(n, bytes([n or 1])) for n in range(256)]
    table, index = b"", []
    for each in tokens:
        index.append(len(table))
        table += each + b"\0"
    names, markers = b"", []
    for number, name in enumerate(NAMES):
        if number % 256 == 0:
            markers.append(len(names))
        code = name.encode().replace(b"sym", b"\x80").replace(b"bol_", b"\x81")
        names += (bytes([len(code)]) if len(code) < 128 else bytes([len(code) & 0x7F | 0x80, len(code) >> 7])) + code

    def padded(part: bytes, to: int = 8) -> bytes:
        return part + bytes(-len(part) % to)

    to = 4 if form == "7.2" else 8
    count = padded(pack("<I", COUNT), to)
    middle = padded(names, to) + padded(pack(f"<{len(markers)}I", *markers), to)
    if form == "6.2":
        middle += padded(bytes(3 * COUNT), to)
    tail = padded(table, to) + pack("<256H", *index)
    relative = [-1 - 16 * n for n in range(COUNT)] if form in ("5.10", "6.4") else [16 * n for n in range(COUNT)]
    front = bytes(4096)
    if form in ("5.10", "6.2"):
        offsets = padded(pack(f"<{COUNT}i", *relative))
        return front + offsets + pack("<Q", BASE) + count + middle + tail + bytes(64)
    head = front + count + middle + tail
    if form == "7.2":
        return head + pack(f"<{COUNT}i", *(12 * n - len(head) for n in range(COUNT))) + b"\x01" * 64
    return head + padded(pack(f"<{COUNT}i", *relative)) + pack("<Q", BASE) + bytes(64)


@pytest.mark.parametrize("form", ["5.10", "6.2", "6.4", "6.15", "7.2"])
def test_symbols_of_each_form(form: str) -> None:
    tables = read_kallsyms(image(form), lambda at: BASE + at)
    assert tables.addresses == [BASE + 16 * n for n in range(COUNT)]
    assert tables.names == [name[1:] for name in NAMES]
    assert tables.types[:4] == "dTdT"


@pytest.mark.parametrize("data", [b"", bytes(5000), b"".join(b"%d\0" % n for n in range(10)) * 30])
def test_an_image_without_symbols(data: bytes) -> None:
    with pytest.raises(NoSymbolsError):
        read_kallsyms(data, lambda at: BASE + at)


def test_a_truncated_image_has_no_symbols_and_no_other_error() -> None:
    whole = image("6.4")
    for size in range(4096, len(whole) - 4 * COUNT - 80, 3001):
        with pytest.raises(NoSymbolsError):
            read_kallsyms(whole[:size], lambda at: BASE + at)


def btf(types: bytes, strings: bytes) -> bytes:
    return (
        bytes(100) + b"\x9f\xeb\x01\x00" + pack("<5I", 24, 0, len(types), len(types), len(strings)) + types + strings
    )


STRINGS = b"\0task_struct\0pid\0flags\0"
TASK = pack("<3I", 1, 4 << 24 | 1 << 31 | 2, 64) + pack("<6I", 13, 5, 32 * 8, 17, 5, 3 << 24 | 40 * 8 + 5)


def test_a_layout_with_its_members_and_bit_fields() -> None:
    filler = pack("<3I", 13, 1 << 24, 4) + pack("<I", 0)  # an integer whose name is a member's
    found = Layouts(btf(filler + TASK, STRINGS)).layout("task_struct")
    assert (found.size, found.members) == (64, {"pid": Member(32), "flags": Member(40, 5, 3)})
    assert found.at("nothing", "pid") == 32
    with pytest.raises(NoLayoutError, match="no member nothing"):
        found.at("nothing")


@pytest.mark.parametrize(
    "data",
    [b"", bytes(500), btf(b"", STRINGS), btf(TASK[:20], STRINGS), btf(TASK, b"\0x\0"), btf(TASK, STRINGS)[:130]],
)
def test_an_image_without_the_layout(data: bytes) -> None:
    with pytest.raises(NoLayoutError):
        Layouts(data).layout("task_struct")


def test_a_table_of_symbols_finds_the_one_before() -> None:
    symbols = Symbols(Symbols.pack([100, 200], ["a", "b"]))
    assert symbols.find(99) is None
    assert (symbols.find(100), symbols.find(250)) == (("a", 0), ("b", 50))
    for damaged in (b"", b"pyvmmsym\xff\xff\xff\xff" + bytes(4), bytes(40)):
        with pytest.raises(NoKernelError):
            Symbols(damaged)


def test_a_file_that_is_no_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(NoKernelError, match="No such file"):
        KernelImage(tmp_path / "none")
    (tmp_path / "kernel").write_bytes(b"\x7fELF")
    with pytest.raises(NoKernelError, match="kernel: not an ELF kernel"):
        KernelImage(tmp_path / "kernel")


def test_what_is_kept_is_read_again_and_made_anew_when_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    kernel = tmp_path / "kernel"
    kernel.write_bytes(vmlinux(image("6.4") + btf(TASK, STRINGS)))
    for _ in range(2):
        found = KernelImage(kernel)
        assert found.layout("task_struct").at("pid") == 32
        assert found.all.find(BASE + 17) == ("symbol_1", 1)
        with pytest.raises(NoKernelError, match="no symbol prb"):
            found.symbol("prb")
    for path in (tmp_path / "cache/symbols").iterdir():
        path.write_bytes(b"{}")
    found = KernelImage(kernel)
    assert found.layout("task_struct").at("pid") == 32
    assert found.all.find(BASE + 17) == ("symbol_1", 1)


def vmlinux(data: bytes) -> bytes:
    """Return an ELF file with one segment."""
    kind = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head = kind + pack("<HHIQQQIHHHHHH", 2, 62, 1, 0x1000000, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    at, size = 4096, len(data)
    segment = pack("<IIQQQQQQ", 1, 5, at, BASE, 0x1000000, size, size, 4096)
    return (head + segment).ljust(at, b"\0") + data
