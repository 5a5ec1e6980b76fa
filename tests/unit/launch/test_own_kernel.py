"""Preparing the boot of a kernel of the user's own: the initramfs, what is printed, what the inner process finds."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from pyvmm.errors import ConfigError
from pyvmm.images import busybox
from pyvmm.images.cpio import read_cpio
from pyvmm.launch.options import GuestOptions, read_keywords
from pyvmm.launch.own_kernel import BootPlan, known_plan, plan_boot
from tests.support import sample_kernels as kernels
from tests.support.sample_modules import module

RELEASE = "6.1.0-test"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "busybox").write_bytes(b"\x7fELF the program")
    monkeypatch.setattr(busybox, "busybox", lambda progress=None: tmp_path / "busybox")
    monkeypatch.setattr(busybox, "applets", lambda program: ["sh", "mount"])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    for part in ("arch/x86/boot", "include/config", "drivers/hv"):
        (folder / part).mkdir(parents=True)
    (folder / "arch/x86/boot/bzImage").write_bytes(kernels.bzimage(gzip.compress(kernels.vmlinux())))
    (folder / "drivers/hv/hv_vmbus.ko").write_bytes(module("hv_vmbus", vermagic=RELEASE))
    (folder / ".config").write_text("CONFIG_HYPERV=m\n# CONFIG_HYPERV_BALLOON is not set\nCONFIG_HYPERV_UTILS=y\n")
    return folder


def plan(said: list[str] | None = None, **options: object) -> BootPlan:
    return plan_boot(read_keywords(options, {}), (said if said is not None else []).append, cpus=1, grows=False)


def members(initrd: Path | None) -> set[str]:
    assert initrd is not None
    return {each.name for each in read_cpio(initrd.read_bytes())}


def test_a_tree_boots_with_our_init_and_its_own_drivers(tree: Path) -> None:
    made = plan(kdir=tree)
    assert made.kernel == tree / "arch/x86/boot/bzImage"
    assert {"init", "bin/busybox", "etc/pyvmm/agent", "lib/modules/hv_vmbus.ko"} <= members(made.initrd)
    assert made.absent == {
        "hv_balloon": "CONFIG_HYPERV_BALLOON is not set",
        "hv_sock": "CONFIG_HYPERV_VSOCKETS is not set",
    }


def test_the_initramfs_is_made_again_only_when_a_module_has_changed(tree: Path) -> None:
    first = plan(kdir=tree).initrd
    assert first is not None
    stamp = first.stat().st_mtime_ns
    assert plan(kdir=tree).initrd == first
    assert first.stat().st_mtime_ns == stamp
    (tree / "drivers/hv/hv_vmbus.ko").write_bytes(module("hv_vmbus", vermagic=RELEASE) + b"changed")
    assert plan(kdir=tree).initrd != first


def test_missing_kernel_options_are_reported_with_how_to_set_them(tree: Path) -> None:
    said: list[str] = []
    plan(said, kdir=tree)
    assert f"{tree}: CONFIG_HYPERV_BALLOON is not set: no balloon" in said
    assert f"cd {tree} && source/scripts/kconfig/merge_config.sh .config " in said[-1], "as after `make O=`"
    (tree / "scripts/kconfig").mkdir(parents=True)
    (tree / "scripts/kconfig/merge_config.sh").touch()
    plan(said, kdir=tree)
    assert f"cd {tree} && scripts/kconfig/merge_config.sh .config " in said[-1]


def test_a_kernel_in_a_tree_has_the_trees_modules(tree: Path) -> None:
    made = plan(kernel=tree / "arch/x86/boot/bzImage")
    assert "lib/modules/hv_vmbus.ko" in members(made.initrd)


def test_the_process_inside_the_emulated_host_finds_what_was_prepared(tree: Path) -> None:
    options = GuestOptions(kdir=tree, command=("true",))
    assert known_plan(options) is None
    made = plan_boot(options, lambda line: None, cpus=1, grows=False)
    assert known_plan(options) == made
    assert known_plan(GuestOptions(kdir=tree)) is None


def test_an_initramfs_of_the_users_is_taken_as_it_is(tree: Path, tmp_path: Path) -> None:
    made = plan(kdir=tree, initrd=tmp_path / "root.cpio")
    assert (made.initrd, made.absent) == (tmp_path / "root.cpio", None)
    assert plan(kdir=tree, initrd="none").initrd is None


def test_a_built_in_initramfs_is_left_alone_unless_there_is_a_command(tree: Path) -> None:
    said: list[str] = []
    with (tree / ".config").open("a") as config:
        config.write('CONFIG_INITRAMFS_SOURCE="root.cpio"\n')
    assert plan(said, kdir=tree).initrd is None
    assert "built-in initramfs" in said[-1]
    options = GuestOptions(kdir=tree, command=("true",))
    assert plan_boot(options, said.append, cpus=1, grows=False).initrd is not None


@pytest.mark.parametrize("value", ['""', "", "n"])  # .config, auto.conf since Linux 5.17
def test_an_empty_built_in_initramfs_is_none(tree: Path, value: str) -> None:
    (tree / "include/config/auto.conf").write_text(f"CONFIG_HYPERV=m\nCONFIG_INITRAMFS_SOURCE={value}\n")
    assert plan(kdir=tree).initrd is not None


def test_a_kernel_that_is_not_linux_gets_no_initramfs(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(kernels.vmlinux())
    assert plan(kernel=kernel) == BootPlan(kernel, None, None)
    with pytest.raises(ConfigError, match="not a Linux kernel"):
        plan(kernel=kernel, module="hv_sock")


def test_contradictions_are_reported_with_the_next_step(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave --initrd out"):
        plan(kdir=tree, initrd=tmp_path / "x", module="y")
    with pytest.raises(ConfigError, match="COMMAND needs pyvmm's own initramfs"):
        plan_boot(GuestOptions(kdir=tree, initrd=tmp_path, command=("true",)), print, cpus=1, grows=False)
    with pytest.raises(ConfigError, match="a build tree is --kdir"):
        plan(kernel=tree)
    with pytest.raises(ConfigError, match="no module nothing"):
        plan(kdir=tree, module="nothing")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"share": "."}, "CONFIG_HYPERV_VSOCKETS and CONFIG_FUSE_FS are not set: no shared folders"),
        ({"vsock": "v.sock"}, "CONFIG_HYPERV_VSOCKETS is not set: no sockets (--vsock)"),
        ({"net": "none"}, "CONFIG_HYPERV_NET and CONFIG_INET are not set: no network"),
        ({"net": "none"}, "CONFIG_PACKET is not set: no address by DHCP"),
        ({"disk": "disk.img"}, "CONFIG_HYPERV_STORAGE and CONFIG_BLK_DEV_SD are not set: no disks"),
        ({"device": "keyboard"}, "CONFIG_HYPERV_KEYBOARD and CONFIG_KEYBOARD_ATKBD are not set: no keyboard"),
        ({"device": "echo"}, "CONFIG_UIO_HV_GENERIC is not set: no /dev/uio0"),
    ],
)
def test_what_a_device_needs_is_reported_by_option_and_effect_before_the_boot(
    tree: Path, options: dict[str, str], line: str
) -> None:
    said: list[str] = []
    made = plan(said, kdir=tree, **options)
    assert f"{tree}: {line}" in said
    assert made.initrd is not None, "it boots all the same"


def test_a_shared_folder_s_modules_are_in_the_initramfs_of_guests_with_one(tree: Path) -> None:
    with (tree / ".config").open("a") as config:
        config.write("CONFIG_VSOCKETS=m\nCONFIG_HYPERV_VSOCKETS=m\nCONFIG_FUSE_FS=m\n")
    for place, name, *depends in (
        ("net/vmw_vsock", "vsock"),
        ("net/vmw_vsock", "hv_sock", "vsock", "hv_vmbus"),
        ("fs/fuse", "fuse"),
    ):
        (tree / place).mkdir(parents=True, exist_ok=True)
        (tree / place / f"{name}.ko").write_bytes(module(name, *depends, vermagic=RELEASE))
    made = plan(kdir=tree, share=".")
    assert {f"lib/modules/{name}.ko" for name in ("vsock", "hv_sock", "fuse")} <= members(made.initrd)
    assert made.absent is not None
    assert not {"hv_sock", "fuse"} & made.absent.keys()
    assert "lib/modules/fuse.ko" not in members(plan(kdir=tree).initrd)
