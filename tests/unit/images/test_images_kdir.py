"""Kernels of the user's own: build trees, configurations, bzImages."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from pyvmm.errors import ConfigError
from pyvmm.images.kdir import open_kdir
from pyvmm.images.kernel_config import FRAGMENT, missing_options
from pyvmm.images.payload import cached_vmlinux
from tests.support import sample_kernels as kernels
from tests.support.sample_modules import module


def build_tree(folder: Path) -> Path:
    for name in ("arch/x86/boot", "include/config", "drivers/hv"):
        (folder / name).mkdir(parents=True)
    (folder / "arch/x86/boot/bzImage").write_bytes(b"bzImage")
    (folder / "include/config/kernel.release").write_text("6.13.0-mine\n")
    (folder / "modules.order").write_text("drivers/hv/hv_vmbus.o\ndrivers/hv/hv_balloon.o\n")
    (folder / "drivers/hv/hv_vmbus.ko").write_bytes(module("hv_vmbus"))
    (folder / "drivers/hv/hv_balloon.ko").write_bytes(module("hv_balloon", "hv_vmbus"))
    (folder / ".config").write_text(FRAGMENT.read_text().replace("CONFIG_HYPERV_UTILS=m", ""))
    return folder


def test_build_tree_tells_kernel_release_and_what_is_missing(tmp_path: Path) -> None:
    tree = open_kdir(build_tree(tmp_path))
    assert tree.kernel == tree.bzimage == tmp_path / "arch/x86/boot/bzImage"
    assert tree.release == "6.13.0-mine"
    assert tree.missing == ("CONFIG_HYPERV_UTILS=m",)


def test_vmlinux_goes_before_bzimage(tmp_path: Path) -> None:
    (build_tree(tmp_path) / "vmlinux").write_bytes(b"vmlinux")
    assert open_kdir(tmp_path).kernel == tmp_path / "vmlinux"


def test_modules_that_were_not_built_are_left_out(tmp_path: Path) -> None:
    order = open_kdir(build_tree(tmp_path)).load_order(["hv_vmbus", "hv_utils", "hv_balloon"])
    assert [name for name, _ in order] == ["hv_vmbus", "hv_balloon"]


def test_tree_without_a_kernel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no kernel tree"):
        open_kdir(tmp_path)
    (tmp_path / ".config").touch()
    with pytest.raises(ConfigError, match="run make there"):
        open_kdir(tmp_path)
    with pytest.raises(ConfigError, match="not a folder"):
        open_kdir(tmp_path / ".config")


def test_built_in_serves_where_a_module_is_wanted() -> None:
    assert missing_options(FRAGMENT.read_text().replace("=m", "=y")) == []
    assert "CONFIG_DEVTMPFS=y" in missing_options("CONFIG_DEVTMPFS=m\n# CONFIG_HYPERV is not set\n")


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "bzImage"
    path.write_bytes(kernels.bzimage(gzip.compress(kernels.vmlinux())))
    return path


def test_bzimage_is_unpacked_once(packed: Path) -> None:
    first = cached_vmlinux(packed)
    assert first.read_bytes()[:4] == b"\x7fELF"
    stamp = first.stat().st_mtime_ns
    assert cached_vmlinux(packed) == first
    assert first.stat().st_mtime_ns == stamp


def test_changed_bzimage_is_unpacked_again(packed: Path) -> None:
    first = cached_vmlinux(packed)
    packed.write_bytes(packed.read_bytes() + b"signature")
    assert cached_vmlinux(packed) != first


def test_what_is_no_bzimage_is_handed_back(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(kernels.vmlinux())
    assert cached_vmlinux(path) == path
    with pytest.raises(ConfigError, match="No such file"):
        cached_vmlinux(tmp_path / "none")
