"""Kernels that are not in a build tree: their release, configuration and modules; packages of them."""

from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from pyvmm.errors import ConfigError
from pyvmm.images import kernel_package
from pyvmm.images.kernel_config import embedded_config
from pyvmm.images.kernel_file import kernel_release, modules_folder, open_kernel
from tests.support import sample_kernels as kernels
from tests.support.sample_modules import module
from tests.support.tiny_multiboot import elf32

RELEASE = "6.1.0-test"
"""The one in the sample bzImage's header."""

CONFIG = "CONFIG_HYPERV=m\nCONFIG_HYPERV_BALLOON=m\n# CONFIG_HYPERV_UTILS is not set\n"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))


def linux(*, banner: str = RELEASE, config: str = "", padding: int = 0) -> bytes:
    """A vmlinux with Linux's banner and an embedded configuration."""
    text = bytes(padding) + f"Linux version {banner} (someone@here) #1".encode()
    if config:
        text += b"IKCFG_ST" + gzip.compress(config.encode()) + b"IKCFG_ED"
    return kernels.elf([(0x1000000, text, len(text))], entry=0x1000000)


def install(root: Path, *, suffix: str = ".ko.xz") -> Path:
    """Lay out what a kernel package holds, and return the kernel."""
    hv = root / f"lib/modules/{RELEASE}/kernel/drivers/hv"
    hv.mkdir(parents=True)
    (root / "boot").mkdir()
    (root / f"boot/vmlinuz-{RELEASE}").write_bytes(kernels.bzimage(gzip.compress(linux())))
    (root / f"boot/config-{RELEASE}").write_text(CONFIG)
    pack = lzma.compress if suffix.endswith(".xz") else bytes
    (hv / f"hv_vmbus{suffix}").write_bytes(pack(module("hv_vmbus", vermagic=RELEASE)))
    (hv / f"hv_balloon{suffix}").write_bytes(pack(module("hv_balloon", "hv_vmbus", vermagic=RELEASE)))
    return root / f"boot/vmlinuz-{RELEASE}"


def test_the_release_is_in_each_kind_of_kernel(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    for data, release in (
        (kernels.bzimage(b"\x7fELF"), RELEASE),
        (linux(banner="6.13.0-rc1+"), "6.13.0-rc1+"),
        (linux(banner="6.13.0", padding=(4 << 20) - 20), "6.13.0"),
        (kernels.vmlinux(), ""),
    ):
        kernel.write_bytes(data)
        assert kernel_release(kernel) == release


def test_the_configuration_is_taken_from_the_kernel_itself(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(linux(config=CONFIG))
    found = embedded_config(tmp_path / "vmlinux")
    assert found is not None
    assert (found["CONFIG_HYPERV"], found["CONFIG_HYPERV_UTILS"], found["CONFIG_ACPI"]) == ("m", "n", "n")
    assert found.knows("CONFIG_HYPERV_UTILS")
    assert not found.knows("CONFIG_ACPI")
    (tmp_path / "vmlinux").write_bytes(linux())
    assert embedded_config(tmp_path / "vmlinux") is None


def test_a_damaged_configuration_in_a_kernel_is_reported(tmp_path: Path) -> None:
    damaged = linux(config=CONFIG).replace(b"\x1f\x8b\x08", b"\x1f\x8b\x09")
    (tmp_path / "vmlinux").write_bytes(damaged)
    with pytest.raises(ConfigError, match="CONFIG_IKCONFIG"):
        embedded_config(tmp_path / "vmlinux")


def test_an_installed_kernel_finds_its_modules_and_configuration(tmp_path: Path) -> None:
    kernel = open_kernel(install(tmp_path))
    assert [name for name, _ in kernel.select().modules] == ["hv_vmbus", "hv_balloon"]
    assert any(line.startswith("CONFIG_HYPERV_UTILS is not set: ") for line in kernel.lacks(kernel.select()))


@pytest.mark.parametrize("given", ["", "lib/modules", f"lib/modules/{RELEASE}"])
def test_modules_are_given_by_their_folder_or_one_above(tmp_path: Path, given: str) -> None:
    install(tmp_path, suffix=".ko")
    assert modules_folder(tmp_path / given, RELEASE) == tmp_path / "lib/modules" / RELEASE


def test_modules_of_another_kernel_are_reported(tmp_path: Path) -> None:
    install(tmp_path)
    for given in (tmp_path, tmp_path / "lib/modules"):
        with pytest.raises(ConfigError, match=rf"no modules of Linux 6.2.0; it has those of {RELEASE}"):
            modules_folder(given, "6.2.0")
    with pytest.raises(ConfigError, match="not a folder"):
        modules_folder(tmp_path / "none", RELEASE)
    with pytest.raises(ConfigError, match="give /lib/modules/RELEASE or its parent"):
        modules_folder(tmp_path / "boot", RELEASE)


def test_a_modular_kernel_without_modules_is_reported_with_the_next_step(tmp_path: Path) -> None:
    kernel = install(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(kernel, tmp_path / "elsewhere/bzImage")
    (tmp_path / "elsewhere/config").write_text(CONFIG)
    found = open_kernel(tmp_path / "elsewhere/bzImage")
    assert found.select().absent["hv_vmbus"] == "CONFIG_HYPERV=m, and there are no modules; give --modules DIR"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg-deb")
    install(tmp_path / "root")
    (tmp_path / "root/DEBIAN").mkdir()
    (tmp_path / "root/DEBIAN/control").write_text(
        "Package: linux-image-test\nVersion: 1\nArchitecture: amd64\nMaintainer: none <none@example.org>\n"
        "Depends: linux-binary-test (= 1), kmod\nDescription: test\n"
    )
    _build(tmp_path / "root", tmp_path / "linux-image-test_1_amd64.deb")
    return tmp_path / "linux-image-test_1_amd64.deb"


def _build(root: Path, package: Path) -> None:
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "-b", root, package], check=True, capture_output=True)


def test_a_package_is_unpacked_once(package: Path) -> None:
    said: list[str] = []
    kernel = kernel_package.open_package(package, None, said.append)
    assert [name for name, _ in kernel.select().modules] == ["hv_vmbus", "hv_balloon"]
    assert kernel_package.open_package(package, None, said.append).kernel == kernel.kernel
    assert said == [f"unpacking {package.name}"]


def test_the_parts_of_a_split_package_are_found_beside_it(package: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "root/lib")
    (tmp_path / "root/boot").rename(tmp_path / "boot")
    _build(tmp_path / "root", package)
    with pytest.raises(ConfigError, match="no kernel in this package; put linux-binary-test beside it"):
        kernel_package.open_package(package, None, lambda line: None)
    (tmp_path / "boot").rename(tmp_path / "root/boot")
    _build(tmp_path / "root", package.with_name("linux-binary-test_1_amd64.deb"))
    assert kernel_package.open_package(package, None, lambda line: None).release == RELEASE


def test_a_package_is_distinguished_from_a_kernel(package: Path, tmp_path: Path) -> None:
    assert kernel_package.is_package(package)
    assert not kernel_package.is_package(tmp_path / f"root/boot/vmlinuz-{RELEASE}")


def test_a_multiboot_kernel_is_no_linux_with_a_release(tmp_path: Path) -> None:
    """A 32-bit ELF file: the images of kvm-unit-tests."""
    (tmp_path / "test.flat").write_bytes(elf32(b"\xfa\xf4"))
    assert kernel_release(tmp_path / "test.flat") == ""
    assert open_kernel(tmp_path / "test.flat").release == ""
