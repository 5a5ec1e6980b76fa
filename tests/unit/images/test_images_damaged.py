"""Damaged files where images, modules and kernels are looked for: made anew in the cache, one line elsewhere."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from pyvmm.errors import ConfigError, HostError
from pyvmm.images import busybox, catalog, packages
from pyvmm.images.cpio import CpioWriter, Entry, read_cpio
from pyvmm.images.kdir import open_kdir
from pyvmm.images.modules import CHAIN_LIMIT, ModuleTree, read_module
from pyvmm.images.payload import cached_vmlinux
from tests.support import sample_kernels as kernels

DAMAGED = [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 50_000, b'{"release": 1}']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_manifest_is_an_image_that_is_not_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: bytes
) -> None:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path))
    manifest = tmp_path / "images" / "debian-6.1.json"
    manifest.parent.mkdir()
    manifest.write_bytes(text)
    assert not next(each for each in catalog.list_images() if each.name == "debian-6.1").built
    with pytest.raises(ConfigError, match="is not built"):
        catalog.find_image("debian-6.1", build=False)


@pytest.mark.parametrize("text", DAMAGED)
def test_a_kernel_folder_with_damaged_facts_is_made_anew(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "kernel.json").write_bytes(text)
    assert not catalog._whole(tmp_path)


def test_a_cut_kernel_in_the_cache_is_unpacked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    packed = tmp_path / "bzImage"
    packed.write_bytes(kernels.bzimage(gzip.compress(kernels.vmlinux())))
    kept = cached_vmlinux(packed)
    whole = kept.read_bytes()
    for size in (0, 10, 100, len(whole) // 2):
        os.truncate(kept, size)
        assert cached_vmlinux(packed).read_bytes() == whole


def test_a_damaged_package_in_the_cache_is_fetched_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deb = tmp_path / "x.deb"
    fetched: list[bytes] = [b"damaged", b"good"]

    def download(package: packages.Package) -> Path:
        if not deb.exists():
            deb.write_bytes(fetched.pop(0))
        return deb

    def unpack(file: Path, folder: Path) -> None:
        if file.read_bytes() != b"good":
            raise HostError("dpkg-deb failed: not a Debian archive")

    monkeypatch.setattr(packages, "download", download)
    monkeypatch.setattr(packages, "unpack", unpack)
    packages.unpack_package(packages.Package("x", "1", (), packages.MACHINE), tmp_path)
    assert deb.read_bytes() == b"good"


@pytest.mark.parametrize("suffix", [".xz", ".gz", ".zst"])
def test_a_damaged_packed_module_is_one_line(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"m.ko{suffix}"
    file.write_bytes(b"\x1f\x8b\x08 no such thing")
    with pytest.raises(ConfigError, match="cannot unpack it"):
        read_module(file)


def test_modules_that_need_each_other_without_end_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for number in range(CHAIN_LIMIT + 5):
        (tmp_path / f"m{number}.ko").write_bytes(b"x")
    monkeypatch.setattr("pyvmm.images.modules.read_module", lambda path: path.name.encode())
    monkeypatch.setattr("pyvmm.images.modules.depends", lambda data: [f"m{int(data[1:-3]) + 1}"])
    with pytest.raises(ConfigError, match="each need the next"):
        ModuleTree(tmp_path).load_order(["m0"])


def test_a_build_tree_with_bytes_for_texts_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(kernels.vmlinux())
    (tmp_path / "include/config").mkdir(parents=True)
    (tmp_path / "include/config/kernel.release").write_bytes(b"6.1\xff\n")
    (tmp_path / ".config").write_bytes(b"CONFIG_HYPERV=\xff\n")
    assert open_kdir(tmp_path).release == "6.1\ufffd"


@pytest.mark.parametrize("data", [b"\x7fELF\x02", b"\x7fELF\x02" + b"\xff" * 60, b"\x7fELF\x02" + b"\xff" * 200])
def test_a_cut_program_is_no_static_one(data: bytes) -> None:
    assert not busybox.is_static(data)


def test_names_that_are_no_utf8_come_back_from_an_archive() -> None:
    archive = CpioWriter()
    archive.file("a/\udcff", b"x")
    assert [each.name for each in read_cpio(archive.build())] == ["a", "a/\udcff"]
    with pytest.raises(ConfigError, match="zero byte"):
        archive.add(Entry("a\0b", 0o100644))


@pytest.mark.parametrize("field", range(13))
@pytest.mark.parametrize("text", [b"-0000001", b"+0000001", b" 1     ", b"0x000001", b"1_000000"])
def test_a_number_of_an_archive_is_eight_hex_digits(field: int, text: bytes) -> None:
    archive = bytearray(CpioWriter().build())
    archive[6 + 8 * field : 14 + 8 * field] = text.ljust(8)
    with pytest.raises(ValueError, match="no cpio header"):
        list(read_cpio(bytes(archive)))
