"""The wheel: what a user gets from `pip install`, in an environment that has nothing else of this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.boot_hosts import lacks_qemu, runs_here

ROOT = Path(__file__).parents[2]
LIMIT = 300  # seconds; the emulated host is saved anew, with the installed package in it


def run(*argv: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(part) for part in argv], cwd=cwd, env=env, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, f"{argv}: {done.stdout[-1000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `make build` makes: from the source distribution, as an index would offer both."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    (found,) = folder.glob("*.whl")
    assert len(list(folder.glob("*.tar.gz"))) == 1
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The programs of an environment with the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    programs = folder / "venv" / "bin"
    run(programs / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel, cwd=folder)
    yield programs
    run(programs / "pyvmm", "host", "stop", cwd=folder)


def test_the_wheel_has_one_package_at_its_top_and_all_its_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"pyvmm"}
    tracked = subprocess.check_output(
        ["git", "ls-files", "pyvmm", "devices", "firmware", "images"], cwd=ROOT, text=True
    ).split()
    expected = {name if name.startswith("pyvmm/") else f"pyvmm/{name}" for name in tracked}
    expected -= {f"pyvmm/{name}" for name in ("devices", "firmware", "images")}  # the links
    assert expected <= set(names)
    assert any(name.endswith("/licenses/LICENSE") for name in names)


@pytest.mark.skipif(lacks_qemu() and not runs_here(), reason="needs qemu-system-x86_64, or a KVM that runs Linux")
@pytest.mark.parametrize(("engine", "cpus", "image"), [("kernel", 1, "debian-6.1"), ("user", 2, "debian-6.12")])
def test_an_installed_wheel_boots_a_guest(
    installed: Path, tmp_path: Path, engine: str, cpus: int, image: str
) -> None:
    own = run(installed / "python", "-c", "import pyvmm.devices.balloon as b; print(b.__file__)", cwd=tmp_path)
    assert own.startswith(str(installed.parent)), own
    options = ("--hyperv", engine, "--cpus", str(cpus), "--image", image, "--timeout", "120")
    shown = run(installed / "pyvmm", "run", *options, "--", "nproc; ls /sys/bus/vmbus/drivers", cwd=tmp_path)
    assert shown.split()[0] == str(cpus)
    assert "hv_balloon" in shown
