"""Kernels of the user's own: build trees, configurations, bzImages."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest
import zstandard

from pyvmm.errors import ConfigError
from pyvmm.images.kdir import open_kdir, tree_of
from pyvmm.images.kernel_config import FRAGMENT, NEEDS, missing_options, options
from pyvmm.images.kernel_file import kernel_release
from pyvmm.images.payload import cached_vmlinux
from tests.support import sample_kernels as kernels
from tests.support.sample_modules import module

RELEASE = "6.13.0-mine"


def build_tree(folder: Path) -> Path:
    """Lay out a tree with a bzImage, and of the drivers hv_vmbus and hv_balloon."""
    for name in ("arch/x86/boot", "include/config", "drivers/hv"):
        (folder / name).mkdir(parents=True)
    (folder / "arch/x86/boot/bzImage").write_bytes(kernels.bzimage(gzip.compress(kernels.vmlinux())))
    (folder / "include/config/kernel.release").write_text(f"{RELEASE}\n")
    (folder / "modules.order").write_text("drivers/hv/hv_vmbus.o\ndrivers/hv/hv_balloon.o\n")
    (folder / "drivers/hv/hv_vmbus.ko").write_bytes(module("hv_vmbus", vermagic=release(folder)))
    (folder / "drivers/hv/hv_balloon.ko").write_bytes(module("hv_balloon", "hv_vmbus", vermagic=release(folder)))
    configure(folder, CONFIG_HYPERV_UTILS="n")
    return folder


def release(folder: Path) -> str:
    return kernel_release(folder / "arch/x86/boot/bzImage") or RELEASE


def configure(folder: Path, **options: str) -> None:
    have = {need.option: "y" for need in NEEDS if need.option != "CONFIG_HYPERV_VMBUS"}
    have |= {"CONFIG_HYPERV": "m", "CONFIG_HYPERV_UTILS": "m", "CONFIG_HYPERV_BALLOON": "m"} | options
    lines = [f"# {name} is not set" if value == "n" else f"{name}={value}" for name, value in have.items()]
    (folder / ".config").write_text("\n".join(lines) + "\n")


def loaded(folder: Path, *extra: str) -> list[str]:
    return [name for name, _ in open_kdir(folder).select(extra).modules]


def lacks(folder: Path) -> list[str]:
    tree = open_kdir(folder)
    return tree.lacks(tree.select())


def test_drivers_are_loaded_in_the_order_of_their_needs(tmp_path: Path) -> None:
    assert loaded(build_tree(tmp_path)) == ["hv_vmbus", "hv_balloon"]


def test_modules_are_found_before_the_tree_has_a_list_of_them(tmp_path: Path) -> None:
    (build_tree(tmp_path) / "modules.order").unlink()  # `make bzImage`, then `make M=drivers/hv`
    assert loaded(tmp_path) == ["hv_vmbus", "hv_balloon"]


def test_what_a_kernel_has_built_in_is_not_loaded_even_if_an_old_module_lies_there(tmp_path: Path) -> None:
    configure(build_tree(tmp_path), CONFIG_HYPERV="y", CONFIG_HYPERV_BALLOON="y", CONFIG_HYPERV_UTILS="y")
    assert loaded(tmp_path) == []
    assert lacks(tmp_path) == []


def test_a_driver_that_is_not_set_is_reported_with_its_effect(tmp_path: Path) -> None:
    assert lacks(build_tree(tmp_path)) == [
        "CONFIG_HYPERV_UTILS is not set: no shutdown request, heartbeat or time synchronisation"
    ]
    configure(tmp_path, CONFIG_HYPERV="n")
    assert lacks(tmp_path) == ["CONFIG_HYPERV is not set: no VMBus, no balloon"]
    assert open_kdir(tmp_path).select().absent["hv_vmbus"] == "CONFIG_HYPERV is not set"


def test_without_the_bus_no_other_driver_is_loaded(tmp_path: Path) -> None:
    configure(build_tree(tmp_path), CONFIG_HYPERV="n", CONFIG_HYPERV_BALLOON="m")
    assert loaded(tmp_path) == []


def test_since_linux_6_18_the_bus_has_an_option_of_its_own(tmp_path: Path) -> None:
    configure(build_tree(tmp_path), CONFIG_HYPERV="y", CONFIG_HYPERV_VMBUS="n", CONFIG_HYPERV_UTILS="m")
    assert "CONFIG_HYPERV_VMBUS is not set: no VMBus, no balloon" in lacks(tmp_path)
    configure(tmp_path, CONFIG_HYPERV="y", CONFIG_HYPERV_VMBUS="m", CONFIG_HYPERV_UTILS="n")
    assert loaded(tmp_path) == ["hv_vmbus", "hv_balloon"]


def test_options_with_the_same_effect_share_a_line(tmp_path: Path) -> None:
    configure(build_tree(tmp_path), CONFIG_BINFMT_ELF="n", CONFIG_BINFMT_SCRIPT="n", CONFIG_HYPERV_UTILS="y")
    assert lacks(tmp_path) == [
        "CONFIG_BINFMT_ELF and CONFIG_BINFMT_SCRIPT are not set: /init cannot run and the kernel panics"
    ]


def test_fewer_cpus_than_requested_are_reported(tmp_path: Path) -> None:
    configure(build_tree(tmp_path), CONFIG_NR_CPUS="2", CONFIG_HYPERV_UTILS="y")
    tree = open_kdir(tmp_path)
    assert tree.lacks(tree.select(), cpus=2) == []
    assert tree.lacks(tree.select(), cpus=4) == ["CONFIG_NR_CPUS=2: it uses 2 of the 4 CPUs"]
    configure(tmp_path, CONFIG_SMP="n", CONFIG_HYPERV_UTILS="y")
    tree = open_kdir(tmp_path)
    assert tree.lacks(tree.select(), cpus=2) == ["CONFIG_SMP is not set: one CPU only"]


def test_a_module_that_was_not_built_is_reported_with_the_next_step(tmp_path: Path) -> None:
    (build_tree(tmp_path) / "drivers/hv/hv_balloon.ko").unlink()
    configure(tmp_path, CONFIG_HYPERV_UTILS="y")
    [line] = lacks(tmp_path)
    assert line.endswith(f"there is no hv_balloon.ko; `make -C {tmp_path} modules` builds it: no balloon")


def test_a_module_of_another_build_is_reported_and_left_out(tmp_path: Path) -> None:
    (build_tree(tmp_path) / "drivers/hv/hv_balloon.ko").write_bytes(module("hv_balloon", vermagic="6.1.0-old"))
    configure(tmp_path, CONFIG_HYPERV_UTILS="y")
    [line] = lacks(tmp_path)
    assert line.startswith("hv_balloon.ko was built for Linux 6.1.0-old, this kernel is ")
    assert loaded(tmp_path) == ["hv_vmbus"]


def test_other_modules_are_loaded_by_name(tmp_path: Path) -> None:
    (build_tree(tmp_path) / "drivers/uio").mkdir()
    (tmp_path / "drivers/uio/uio-hv.ko").write_bytes(module("uio_hv", "hv_vmbus"))
    assert loaded(tmp_path, "uio-hv") == ["hv_vmbus", "hv_balloon", "uio_hv"]
    with pytest.raises(ConfigError, match="no module nothing"):
        loaded(tmp_path, "nothing")


def test_a_file_given_goes_before_the_trees_module_of_that_name(tmp_path: Path) -> None:
    mine = tmp_path / "mine/hv_vmbus.ko"
    mine.parent.mkdir()
    tree = build_tree(tmp_path / "tree")
    mine.write_bytes(module("hv_vmbus", vermagic=release(tree)) + b"mine")
    order = open_kdir(tree).select((str(mine),)).modules
    assert [name for name, _ in order] == ["hv_vmbus", "hv_balloon"]
    assert order[0][1].endswith(b"mine")
    mine.write_bytes(module("hv_vmbus", vermagic="6.1.0-old"))
    with pytest.raises(ConfigError, match=r"--module hv_vmbus: hv_vmbus.ko was built for Linux 6.1.0-old"):
        open_kdir(tree).select((str(mine),))


@pytest.mark.parametrize("suffix", [".ko.gz", ".ko.xz", ".ko.zst"])
def test_modules_that_the_user_has_packed_are_found(tmp_path: Path, suffix: str) -> None:
    packed = {".ko.gz": gzip.compress, ".ko.xz": lzma.compress, ".ko.zst": zstandard.ZstdCompressor().compress}
    build_tree(tmp_path)
    for plain in list((tmp_path / "drivers/hv").glob("*.ko")):
        plain.with_suffix(suffix).write_bytes(packed[suffix](plain.read_bytes()))
        plain.unlink()
    assert loaded(tmp_path) == ["hv_vmbus", "hv_balloon"]
    (tmp_path / "modules.order").unlink()
    assert loaded(tmp_path) == ["hv_vmbus", "hv_balloon"]


def test_a_kernel_without_bug_is_reported(tmp_path: Path) -> None:
    configure(build_tree(tmp_path), CONFIG_BUG="n", CONFIG_HYPERV_UTILS="y")
    assert lacks(tmp_path) == ["CONFIG_BUG is not set: WARN() and BUG() do nothing"]


def test_a_driver_whose_dependencies_were_not_built_is_reported(tmp_path: Path) -> None:
    (build_tree(tmp_path) / "drivers/hv/hv_balloon.ko").write_bytes(module("hv_balloon", "hv_vmbus", "ptp"))
    assert loaded(tmp_path) == ["hv_vmbus"]
    assert "no module ptp (needed by hv_balloon)" in open_kdir(tmp_path).select().absent["hv_balloon"]


def test_vmlinux_goes_before_bzimage(tmp_path: Path) -> None:
    (build_tree(tmp_path) / "vmlinux").write_bytes(kernels.vmlinux())
    assert open_kdir(tmp_path).kernel == tmp_path / "vmlinux"


def test_an_option_that_was_set_after_the_build_is_noted(tmp_path: Path) -> None:
    (build_tree(tmp_path) / "include/config/auto.conf").write_text("CONFIG_HYPERV=m\n")
    configure(tmp_path, CONFIG_HYPERV="m", CONFIG_HYPERV_BALLOON="y", CONFIG_HYPERV_UTILS="n")
    [note] = open_kdir(tmp_path).notes
    assert "CONFIG_HYPERV_BALLOON=y" in note
    assert open_kdir(tmp_path).select().absent["hv_balloon"] == "CONFIG_HYPERV_BALLOON is not set"


def test_the_tree_of_a_kernel_file_is_found(tmp_path: Path) -> None:
    build_tree(tmp_path)
    assert tree_of(tmp_path / "arch/x86/boot/bzImage") == tree_of(tmp_path / "vmlinux") == tmp_path
    assert tree_of(Path("vmlinuz")) is None


def test_tree_without_a_kernel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no kernel tree"):
        open_kdir(tmp_path)
    (tmp_path / ".config").touch()
    with pytest.raises(ConfigError, match="run `make -C"):
        open_kdir(tmp_path)
    (tmp_path / "Module.symvers").touch()
    with pytest.raises(ConfigError, match="headers of an installed kernel"):
        open_kdir(tmp_path)
    with pytest.raises(ConfigError, match="not a folder; a kernel's file is --kernel"):
        open_kdir(tmp_path / ".config")
    (tmp_path / "vmlinux").touch()
    (tmp_path / "drivers/hv").mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"a part of a build tree; give {tmp_path}$"):
        open_kdir(tmp_path / "drivers/hv")


def test_built_in_serves_where_a_module_is_wanted() -> None:
    assert missing_options(FRAGMENT.read_text().replace("=m", "=y")) == []
    assert missing_options(FRAGMENT.read_text().replace("HYPERV=y", "HYPERV=m")) == []
    assert "CONFIG_DEVTMPFS=y" in missing_options("CONFIG_DEVTMPFS=m\n# CONFIG_HYPERV is not set\n")


@pytest.mark.parametrize(
    ("cpus", "lacks"), [("64", False), ("8192", False), ("2", True), ("8.5", True), ("9" * 30, True)]
)
def test_a_larger_number_serves_where_a_smaller_is_wanted(cpus: str, lacks: bool) -> None:
    text = FRAGMENT.read_text().replace("CONFIG_NR_CPUS=64", f"CONFIG_NR_CPUS={cpus}")
    assert missing_options(text) == ["CONFIG_NR_CPUS=64"] * lacks


def test_the_fragment_sets_all_options_whose_absence_is_reported() -> None:
    assert {need.option for need in NEEDS} <= options(FRAGMENT.read_text()).keys()


def test_the_bus_has_an_option_of_its_own_since_linux_6_18() -> None:
    line = "CONFIG_HYPERV_VMBUS=m"
    old = FRAGMENT.read_text().replace(line, "")
    assert missing_options(old) == []
    assert missing_options(f"{old}# CONFIG_HYPERV_VMBUS is not set\n") == [line]


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
