"""Finding and ordering kernel modules."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest
import zstandard

from pyvmm.errors import ConfigError
from pyvmm.images.modules import ModuleTree, depends
from tests.support.sample_modules import module


def names(order: list[tuple[str, bytes]]) -> list[str]:
    return [name for name, _ in order]


def tree(folder: Path) -> Path:
    (folder / "kernel/hv").mkdir(parents=True)
    (folder / "kernel/hv/hv_vmbus.ko.xz").write_bytes(lzma.compress(module("hv_vmbus")))
    (folder / "kernel/hv/hv_utils.ko.zst").write_bytes(
        zstandard.ZstdCompressor().compress(module("hv_utils", "hv_vmbus", "ptp"))
    )
    (folder / "kernel/ptp.ko.gz").write_bytes(gzip.compress(module("ptp", "pps-core")))
    (folder / "kernel/pps-core.ko").write_bytes(module("pps_core"))
    (folder / "modules.builtin").write_text("kernel/drivers/tty/serial/8250/8250.ko\n")
    return folder


def test_each_module_comes_after_what_it_needs_uncompressed(tmp_path: Path) -> None:
    order = ModuleTree(tree(tmp_path)).load_order(["hv_utils"])
    assert names(order) == ["hv_vmbus", "pps_core", "ptp", "hv_utils"]
    assert all(data.startswith(b"\x7fELF") for _, data in order)


def test_built_in_modules_are_left_out(tmp_path: Path) -> None:
    assert ModuleTree(tree(tmp_path)).load_order(["8250"]) == []


def test_missing_module_is_named_with_who_needs_it(tmp_path: Path) -> None:
    (tree(tmp_path) / "kernel/pps-core.ko").unlink()
    with pytest.raises(ConfigError, match=r"no module pps_core \(needed by ptp\)"):
        ModuleTree(tmp_path).load_order(["hv_utils"])


def test_modules_that_need_each_other_end(tmp_path: Path) -> None:
    (tmp_path / "a.ko").write_bytes(module("a", "b"))
    (tmp_path / "b.ko").write_bytes(module("b", "a"))
    assert names(ModuleTree(tmp_path).load_order(["a"])) == ["b", "a"]


@pytest.mark.parametrize("listing", ["kernel/drivers/hv/hv_vmbus.ko\n", "drivers/hv/hv_vmbus.o\n"])
def test_build_tree_is_found_through_its_listing(tmp_path: Path, listing: str) -> None:
    (tmp_path / "drivers/hv").mkdir(parents=True)
    (tmp_path / "drivers/hv/hv_vmbus.ko").write_bytes(module("hv_vmbus"))
    (tmp_path / "modules.order").write_text(listing)
    found = ModuleTree(tmp_path)
    assert found.find("hv_vmbus") == tmp_path / "drivers/hv/hv_vmbus.ko"
    assert names(found.load_order(["hv_vmbus"])) == ["hv_vmbus"]


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"\x7fELF" + b"\xff" * 200, bytes(300), module("a")[:150]])
def test_what_is_no_module_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigError, match="not a kernel module"):
        depends(data)


def test_installed_modules_are_found_by_depmods_list_whatever_packs_them(tmp_path: Path) -> None:
    (tree(tmp_path) / "modules.dep").write_text("kernel/hv/hv_vmbus.ko.xz:\nkernel/ptp.ko: kernel/pps-core.ko.zst\n")
    found = ModuleTree(tmp_path)
    assert found.find("hv_vmbus") == tmp_path / "kernel/hv/hv_vmbus.ko.xz"
    assert found.find("ptp") == tmp_path / "kernel/ptp.ko.gz"  # packed since then


def test_an_updated_module_goes_before_the_kernels_own(tmp_path: Path) -> None:
    (tree(tmp_path) / "updates").mkdir()
    (tmp_path / "updates/ptp.ko").write_bytes(module("ptp"))
    assert ModuleTree(tmp_path).find("ptp") == tmp_path / "updates/ptp.ko"


def test_a_file_is_loaded_in_place_of_the_trees_module(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/ptp.ko").write_bytes(changed := module("ptp", "pps-core", vermagic="mine"))
    order = ModuleTree(tree(tmp_path / "tree")).load_order([str(tmp_path / "mine/ptp.ko"), "hv-utils"])
    assert names(order) == ["pps_core", "ptp", "hv_vmbus", "hv_utils"]
    assert dict(order)["ptp"] == changed
