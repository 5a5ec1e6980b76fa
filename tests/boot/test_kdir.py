"""A kernel of the user's own, laid out as `make` leaves it: from files of our images, so that nothing is compiled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pyvmm
from pyvmm.images.catalog import find_image
from pyvmm.launch.reload import CannotReload
from tests.support.booted import MIB


def lay_out(image: str, folder: Path) -> str:
    """Make a build tree of an image's vmlinux, configuration and modules; return its release."""
    found = find_image(image, build=False)
    parts = found.vmlinux.parent
    hv = folder / "drivers/hv"
    hv.mkdir(parents=True)
    (folder / "vmlinux").symlink_to(found.vmlinux)
    (folder / ".config").symlink_to(parts / "config")
    for module in (parts / "modules").iterdir():
        (hv / module.name).symlink_to(module)
    return found.release


@pytest.mark.parametrize(("image", "engine"), [("debian-6.1", "user"), ("debian-6.12", "kernel")])
def test_a_build_tree_gives_what_an_image_gives_and_its_modules_can_be_exchanged(
    image: str, engine: str, tmp_path: Path
) -> None:
    release = lay_out(image, tmp_path)
    with pyvmm.Machine(kdir=tmp_path, hyperv=engine, host="local") as vm:  # type: ignore[arg-type]
        vm.start()
        assert vm.run("uname -r").stdout.strip() == release
        assert vm.balloon("320M").actual == 320 * MIB
        assert vm.reload(tmp_path / "drivers/hv/hv_utils.ko")
        assert vm.run("dmesg | grep -c 'Shutdown IC version'").stdout.strip() == "2"
        with pytest.raises(CannotReload, match="hv_balloon in the guest cannot be unloaded: it has no module_exit"):
            vm.reload(tmp_path / "drivers/hv/hv_balloon.ko")
        vm.reset()
        assert vm.run("uname -r").stdout.strip() == release
        assert vm.shutdown().kind == "poweroff"


def test_run_reports_missing_options_before_and_after_and_returns_the_commands_status(tmp_path: Path) -> None:
    lay_out("debian-6.12", tmp_path)
    (tmp_path / "drivers/hv/hv_balloon.ko").unlink()
    words = ["run", "--host", "local", "--kdir", str(tmp_path), "--", "cat /proc/modules; exit 7"]
    done = subprocess.run([sys.executable, "-m", "pyvmm", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 7
    assert "hv_vmbus" in done.stdout
    reason = f"there is no hv_balloon.ko; `make -C {tmp_path} modules` builds it"
    said = [line for line in done.stderr.splitlines() if "hv_balloon" in line]
    assert said == [
        f"pyvmm: {tmp_path}: {reason}: no balloon",
        f"pyvmm: the guest never used its balloon: hv_balloon was not loaded because {reason}",
    ]
