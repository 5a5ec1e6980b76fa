"""Building, finding and keeping images, with packages made up here: no network, no apt."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import struct
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from pyvmm import paths
from pyvmm.errors import ConfigError, HostError
from pyvmm.images import busybox, catalog, debian_root, initramfs, packages
from pyvmm.images.catalog import build_image, find_image, known_image, list_images
from pyvmm.images.cpio import read_cpio
from tests.support import sample_kernels as kernels
from tests.support.sample_modules import module

RELEASE = "6.1.0-99-cloud-amd64"


class Debian:
    """Stands in for apt: one kernel package, its version, and whether the network is up."""

    def __init__(self) -> None:
        self.version = "6.1.1-1"
        self.online = True
        self.downloads = 0
        self.kernel = kernels.bzimage(gzip.compress(kernels.vmlinux()))

    def find(self, pattern: str, suites: tuple[str, ...]) -> packages.Package:
        if not self.online:
            raise ConfigError(f"no package {pattern} found")
        return packages.Package(f"linux-image-{RELEASE}", self.version, (), packages.MACHINE)

    def download(self, package: packages.Package) -> Path:
        self.downloads += 1
        return Path(f"{package.name}_{package.version}.deb")

    def unpack(self, deb: Path, folder: Path) -> None:
        hv = folder / f"lib/modules/{RELEASE}/kernel/drivers/hv"
        hv.mkdir(parents=True)
        (folder / "boot").mkdir()
        (folder / f"boot/vmlinuz-{RELEASE}").write_bytes(self.kernel)
        (folder / f"boot/config-{RELEASE}").write_text("CONFIG_HYPERV=m\n")
        (hv / "hv_vmbus.ko").write_bytes(module("hv_vmbus"))
        for name in ("hv_utils", "hv_balloon"):
            (hv / f"{name}.ko").write_bytes(module(name, "hv_vmbus"))


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Debian:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    program = tmp_path / "busybox"
    program.write_bytes(b"\x7fELF the program")
    debian = Debian()
    monkeypatch.setattr(packages, "find_package", debian.find)
    monkeypatch.setattr(packages, "download", debian.download)
    monkeypatch.setattr(packages, "unpack", debian.unpack)
    monkeypatch.setattr(busybox, "busybox", lambda _progress: program)
    monkeypatch.setattr(busybox, "applets", lambda _program: ["busybox", "ls", "sh"])
    return debian


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders that should be gone."""
    return [str(path) for path in folder.rglob(".*")]


def test_built_image_is_whole(debian: Debian, tmp_path: Path) -> None:
    steps: list[str] = []
    image = build_image("debian-6.1", steps.append)
    assert image.built
    assert image.release == RELEASE
    assert image.kernel.read_bytes() == debian.kernel
    assert image.vmlinux.read_bytes()[:4] == b"\x7fELF"
    assert image.modules == ("hv_vmbus", "hv_utils", "hv_balloon")
    assert image.sizes["initrd"] == image.initrd.stat().st_size
    assert steps
    assert leftovers(tmp_path / "cache") == []


def test_initramfs_holds_init_agent_and_modules_in_load_order(debian: Debian) -> None:
    members = {entry.name: entry for entry in read_cpio(build_image().initrd.read_bytes())}
    assert members["etc/pyvmm/modules"].data == b"hv_vmbus\nhv_utils\nhv_balloon\n"
    assert members["lib/modules/hv_balloon.ko"].data == module("hv_balloon", "hv_vmbus")
    assert members["init"].mode & 0o777 == 0o755
    assert members["init"].data.index(b"pyvmm: init") < members["init"].data.index(b"\nmount")
    assert members["bin/sh"].data == b"busybox"
    assert members["dev/console"].device == (5, 1)
    assert "etc/pyvmm/agent" in members


def test_found_image_is_not_built_again(debian: Debian) -> None:
    built = build_image()
    debian.online = False
    assert find_image() == built
    assert debian.downloads == 1


def test_missing_image_is_built_when_looked_for(debian: Debian) -> None:
    assert find_image("debian-6.12").built
    with pytest.raises(ConfigError, match=r"pyvmm image build debian-7\.2"):
        find_image("debian-7.2", build=False)


def test_list_shows_which_are_built(debian: Debian) -> None:
    build_image()
    assert [(image.name, image.built, image.default) for image in list_images()] == [
        ("debian-5.10", False, False),
        ("debian-6.1", True, True),
        ("debian-6.12", False, False),
        ("debian-7.2", False, False),
        ("debian-7.3", False, False),
        ("debian-12-root", False, False),
    ]


def test_unknown_image_lists_the_known(debian: Debian) -> None:
    for function in (find_image, build_image):
        with pytest.raises(ConfigError, match=r"'debian-1'; there are debian-5\.10, debian-6\.1, "):
            function("debian-1")


def test_changed_init_makes_a_new_initramfs_without_the_network(
    debian: Debian, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyvmm.images import initramfs

    before = build_image()
    files = initramfs.guest_files()
    monkeypatch.setattr(initramfs, "guest_files", lambda: {**files, "init": b"#!/bin/sh\nnew\n"})
    debian.online = False
    after = find_image()
    assert after.initrd != before.initrd
    assert after.vmlinux == before.vmlinux
    assert before.initrd.exists(), "a running machine may have it mapped"


def test_newer_package_is_taken_by_build(debian: Debian) -> None:
    before = build_image()
    debian.version = "6.1.2-1"
    after = build_image()
    assert (before.package, after.package) == (f"linux-image-{RELEASE} 6.1.1-1", f"linux-image-{RELEASE} 6.1.2-1")
    assert after.kernel != before.kernel
    assert debian.downloads == 2


def test_build_offline_uses_what_is_there_unless_forced(debian: Debian) -> None:
    built = build_image()
    debian.online = False
    assert build_image() == built
    with pytest.raises(ConfigError, match="no package"):
        build_image(force=True)


def test_forced_build_replaces_the_kernel(debian: Debian, tmp_path: Path) -> None:
    build_image().vmlinux.write_bytes(b"spoilt")
    assert build_image(force=True).vmlinux.read_bytes()[:4] == b"\x7fELF"
    assert leftovers(tmp_path / "cache") == []


def test_cut_file_or_manifest_makes_the_image_unbuilt(debian: Debian) -> None:
    image = build_image()
    image.initrd.write_bytes(b"cut")
    assert not list_images()[1].built
    manifest = paths.cache_folder("images", "debian-6.1.json")
    for text in ("", "[]", "{}", json.dumps({"kernel": 1})):
        manifest.write_text(text)
        assert not list_images()[1].built
    assert find_image().built


@pytest.mark.parametrize("part", ["vmlinuz", "vmlinux", "hv_utils.ko", "kernel.json", ".cpio", "debian-6.1.json"])
def test_full_disk_is_one_line_and_leaves_nothing(
    debian: Debian, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    whole = Path.write_bytes

    def write_bytes(path: Path, data: bytes) -> int:
        if path.name == part and "unpack" not in str(path):
            whole(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(path, data)

    def replace(source: str, target: Path) -> None:
        if str(target).endswith(part):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.rename(source, target)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    monkeypatch.setattr(Path, "write_text", lambda path, text: write_bytes(path, text.encode()))
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(HostError, match=r"cannot build image debian-6.1: no space left") as caught:
        build_image()
    assert "\n" not in str(caught.value)
    assert leftovers(tmp_path / "cache") == []
    assert not list_images()[1].built
    monkeypatch.undo()


def test_damaged_kernel_leaves_nothing(debian: Debian, tmp_path: Path) -> None:
    debian.kernel = debian.kernel[:-100]
    with pytest.raises(ConfigError, match="truncated"):
        build_image()
    assert leftovers(tmp_path / "cache") == []
    assert not list((tmp_path / "cache/kernels").iterdir())


def test_cache_that_cannot_be_written_is_one_line(debian: Debian, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    with pytest.raises(HostError, match="cannot build image"):
        build_image()


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_CACHE", "/a")
    assert paths.cache_folder("b") == Path("/a/b")
    monkeypatch.delenv("PYVMM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert paths.cache_folder() == Path("/x/pyvmm")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert paths.cache_folder() == Path("/home/someone/.cache/pyvmm")


def test_other_modules_get_an_initramfs_of_their_own(debian: Debian) -> None:
    first = catalog.initrd_for("my/tree", [("hv_vmbus", b"one")])
    assert first == catalog.initrd_for("my/tree", [("hv_vmbus", b"one")])
    assert first != catalog.initrd_for("my/tree", [("hv_vmbus", b"two")])
    assert struct.unpack("6s", first.read_bytes()[:6]) == (b"070701",)


def test_static_program_is_distinguished_from_a_dynamic_one() -> None:
    assert busybox.is_static(kernels.elf([(0x400000, b"x", 1)], entry=0x400000))
    assert not busybox.is_static(Path(shutil.which("bash") or "/bin/sh").read_bytes())
    assert not busybox.is_static(b"#!/bin/sh\n")


def test_an_image_can_be_taken_at_its_manifests_word(debian: Debian) -> None:
    built = find_image()
    built.initrd.unlink()
    assert known_image() == built
    assert find_image().initrd.exists()


def test_checkouts_with_another_init_share_all_but_the_initramfs_and_make_it_once(
    debian: Debian, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    ours = build_image()
    other = {**initramfs.guest_files(), "init": b"another"}
    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(initramfs, "guest_files", lambda: other)
            theirs = find_image(progress=told.append)
            assert known_image() == theirs
        assert known_image() == find_image(progress=told.append) == ours
        assert (theirs.kernel, theirs.vmlinux) == (ours.kernel, ours.vmlinux)
        assert theirs.initrd != ours.initrd
    assert told == ["making the initramfs"]


def test_a_lost_initramfs_is_made_again_without_a_look_for_packages(debian: Debian) -> None:
    build_image().initrd.unlink()
    debian.online = False
    assert find_image().initrd.exists()


def test_what_images_no_longer_need_goes_by_age_and_size(debian: Debian, monkeypatch: pytest.MonkeyPatch) -> None:
    image = build_image()
    folder = image.initrd.parent
    for name, used in (("old.cpio", 1), ("new.cpio", time.time())):
        (folder / name).write_bytes(bytes(100))
        os.utime(folder / name, (used, 1))
    (folder / ".new-left").write_bytes(b"by a killed process")
    assert [path.name for path in catalog.tidy()] == ["old.cpio"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([image.initrd.name, "new.cpio"])
    monkeypatch.setitem(catalog.LIMITS, "initrd", 99)
    assert [path.name for path in catalog.tidy()] == ["new.cpio"]
    assert find_image() == image


def with_disk_drivers(debian: Debian, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack = debian.unpack

    def more(deb: Path, folder: Path) -> None:
        unpack(deb, folder)
        scsi = folder / f"lib/modules/{RELEASE}/kernel/drivers/scsi"
        scsi.mkdir()
        (scsi / "scsi_mod.ko").write_bytes(module("scsi_mod"))
        (scsi / "hv_storvsc.ko").write_bytes(module("hv_storvsc", "hv_vmbus,scsi_mod"))
        (scsi / "sd_mod.ko").write_bytes(module("sd_mod", "scsi_mod"))

    monkeypatch.setattr(packages, "unpack", more)


def test_feature_has_an_initramfs_of_its_own_and_the_default_stays_small(
    debian: Debian, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_disk_drivers(debian, monkeypatch)
    plain, disk = find_image(), find_image(features=("disk",))
    members = {entry.name: entry for entry in read_cpio(disk.initrd.read_bytes())}
    assert members["etc/pyvmm/modules"].data.split() == [
        b"hv_vmbus", b"hv_utils", b"hv_balloon", b"scsi_mod", b"hv_storvsc", b"sd_mod",
    ]  # fmt: skip
    assert "lib/modules/hv_storvsc.ko" not in {entry.name for entry in read_cpio(plain.initrd.read_bytes())}
    assert known_image(features=("disk",)).initrd == disk.initrd == find_image(features=("disk",)).initrd
    assert find_image() == plain
    assert debian.downloads == 1


def test_image_of_an_older_pyvmm_is_unpacked_again_for_a_feature(
    debian: Debian, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_disk_drivers(debian, monkeypatch)
    image = find_image()
    for path in (image.kernel.parent / "kernel.json", paths.cache_folder("images", "debian-6.1.json")):
        facts = json.loads(path.read_text())
        facts.pop("features", None)
        path.write_text(json.dumps(facts))
    assert find_image() is not None and debian.downloads == 1
    assert known_image(features=("disk",)).initrd.exists()
    assert debian.downloads == 2


def test_kernel_without_the_drivers_of_a_feature_says_so(debian: Debian) -> None:
    with pytest.raises(ConfigError, match=r"its kernel has no modules for disk; take another image"):
        find_image(features=("disk",))
    assert find_image().built


def test_whole_debian_is_a_disk_beside_a_kernel_with_its_drivers(
    debian: Debian, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_disk_drivers(debian, monkeypatch)
    made: list[list[str]] = []

    def run(*command: str, cwd: Path | None = None) -> str:
        made.append(list(command))
        with tarfile.open(command[-2], "w") as tar:
            tar.add(Path(__file__), "sbin/init")
        return ""

    monkeypatch.setattr(debian_root, "run", run)
    monkeypatch.setattr(debian_root, "_mmdebstrap", lambda progress: ["mmdebstrap"])
    monkeypatch.setattr(debian_root, "SIZE", 8 << 20)
    with pytest.raises(ConfigError, match="is not built; `pyvmm image build debian-12-root`"):
        find_image("debian-12-root", build=False)
    image = build_image("debian-12-root")
    assert image.root is not None and image.root.stat().st_size == 8 << 20
    assert "--include=" in made[0][2] and made[0][-3] == "bookworm"
    assert {entry.name for entry in read_cpio(image.initrd.read_bytes())} >= {"lib/modules/hv_storvsc.ko"}
    assert find_image("debian-12-root") == known_image("debian-12-root") == image
    assert list_images()[-1].built and len(made) == 1
    listed = subprocess.run(["debugfs", "-R", "ls sbin", str(image.root)], capture_output=True, text=True)
    assert "init" in listed.stdout
    build_image("debian-12-root", force=True)
    assert len(made) == 2
