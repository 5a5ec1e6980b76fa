"""Confinement of a process, each time one of its own: what is left of files, signals and root's rights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.errors import ConfigError
from pyvmm.sandbox import confine, landlock, seccomp
from pyvmm.sandbox.landlock import Access

ROOT = Path(__file__).parents[3]
HEAD = "import os, sys; from pathlib import Path; from pyvmm.sandbox.confine import confine\n"


def run(code: str, *arguments: str | Path) -> str:
    """What a confined Python prints. Its traceback is the failure."""
    if not landlock.abi() or not seccomp.available():
        pytest.skip("this kernel lacks Landlock or seccomp")
    done = subprocess.run(
        [sys.executable, "-c", HEAD + code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_code_can_be_imported_and_shown_in_tracebacks_later() -> None:
    assert run(
        "confine('on')\nimport traceback, bz2, lzma, pyvmm.control.server, zstandard, lz4.block\n"
        "try: pyvmm.control.server.ControlServer()\n"
        "except TypeError: pass\n"
        'import linecache; print(linecache.getline(pyvmm.control.server.__file__, 1).startswith(\'"""\'))'
    ).endswith("True")


def test_own_folders_files_can_be_removed_and_no_others(tmp_path: Path) -> None:
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    code = "confine('on', [Path(sys.argv[1], 'own')])\nfor n in ('own', 'other'):\n"
    code += (
        "  try: Path(sys.argv[1], n, 'file').unlink(); print('removed')\n  except PermissionError: print('refused')"
    )
    assert run(code, tmp_path).split() == ["removed", "refused"]
    assert not (tmp_path / "own" / "file").exists()
    assert (tmp_path / "other" / "file").exists()


def test_open_descriptors_and_new_threads_work_on(tmp_path: Path) -> None:
    code = (
        "import threading\nout = open(sys.argv[1], 'wb', buffering=0)\nconfine('require')\n"
        "t = threading.Thread(target=lambda: out.write(b'written')); t.start(); t.join()\n"
        "os.kill(os.getpid(), 0); print(open('/proc/self/statm').read() != '')\n"
        "print(os.write(os.open(os.devnull, os.O_WRONLY), b'x'))"
    )
    assert run(code, tmp_path / "out") == "True\n1"
    assert (tmp_path / "out").read_bytes() == b"written"


def test_nothing_of_root_is_left() -> None:
    code = "print(confine('on').capabilities); print([l for l in open('/proc/self/statm')] and 'ok')\n"
    assert run(code).split("\n")[0] == "()"


@pytest.mark.skipif(os.getuid() != 0, reason="only root has capabilities to keep")
def test_root_whose_code_is_in_a_closed_folder_of_another_user_can_still_read_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    packages = home / "site-packages"
    packages.mkdir(parents=True)
    (packages / "late.py").write_text("print('imported')")
    home.chmod(0o700)
    os.chown(home, 12345, 12345)
    code = "sys.path.append(sys.argv[1]); print(confine('on').capabilities); import late"
    assert run(code, packages) == "('dac_read_search',)\nimported"


def test_off_does_nothing() -> None:
    assert run("print(confine('off').describe()['mode']); os.close(os.open('/etc/passwd', os.O_RDONLY))") == "off"


@pytest.mark.parametrize("what", ["Landlock", "seccomp"])
def test_require_says_what_is_missing_in_one_line(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0 if what == "Landlock" else 7)
    monkeypatch.setattr(seccomp, "available", lambda: what != "seccomp")
    with pytest.raises(ConfigError, match=f"^--sandbox require: this kernel has no {what}: needed is Linux"):
        confine.check("require")
    confine.check("on")


def test_without_landlock_and_seccomp_the_rest_is_done_and_reported(tmp_path: Path) -> None:
    code = (
        "from pyvmm.sandbox import landlock, seccomp\nlandlock.abi = lambda: 0\nseccomp.available = lambda: False\n"
        "print(confine('on').describe())\nos.close(os.open(sys.argv[1], os.O_RDONLY))"
    )
    assert run(code, tmp_path) == (
        "{'mode': 'on', 'landlock-abi': 0, 'seccomp': False, 'no-new-privileges': True, 'capabilities': 'none', "
        "'missing': ['Landlock', 'seccomp']}"
    )


@pytest.mark.parametrize(("version", "newest"), [(1, Access.MAKE_SYM), (2, Access.REFER), (3, Access.TRUNCATE)])
def test_only_rights_that_the_kernel_s_version_knows_are_handled(version: int, newest: Access) -> None:
    assert max(landlock.handled(version)) == newest
    assert Access.IOCTL_DEV in landlock.handled(5)
    assert Access.IOCTL_DEV not in landlock.handled(4)


def test_places_of_code_are_named_once_and_the_working_folder_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", "/home/user", "/home/user/venv/lib/python3.11/site-packages", *sys.path])
    places = confine.code_places()
    assert "/home/user/venv/lib/python3.11/site-packages" in places
    assert "/home/user" not in places
    assert "" not in places
    assert len(places) == len(set(places))
    for place in places:
        assert not any(str(parent) in places for parent in Path(place).parents)
