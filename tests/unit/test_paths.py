"""What pyvmm keeps for itself is its user's alone, and what a killed process left there is removed."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm import paths
from pyvmm.errors import HostError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777], ids="umask {:03o}".format)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_folders_and_files_are_the_users_alone_whatever_the_umask(umask: int, tmp_path: Path) -> None:
    paths.write_private(tmp_path / "a/b/file", b"x")
    os.close(paths.open_private(tmp_path / "a/lock"))
    with paths.new_folder(tmp_path / "a/made") as made:
        (made / "data").write_bytes(b"1")
        paths.write_private(made / "more", b"1")
        paths.make_folder(made / "sub")
    assert [mode(tmp_path / name) for name in ("a", "a/b", "a/made", "a/made/sub")] == [0o700] * 4
    assert [mode(tmp_path / name) for name in ("a/b/file", "a/lock", "a/made/data", "a/made/more")] == [0o600] * 4


def test_the_runtime_folder_has_mode_0700_whatever_the_umask(
    umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert mode(paths.runtime_folder()) == 0o700


def test_a_folder_that_others_could_only_read_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir(mode=0o755)
    paths.private_folder(tmp_path / "own", "")
    assert mode(tmp_path / "own") == 0o700


@pytest.mark.parametrize("bits", [0o777, 0o770, 0o702, 0o720])
def test_a_cache_that_others_can_write_is_refused(bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(bits)
    with pytest.raises(HostError, match=r"not yours alone.*chmod go-w.*PYVMM_CACHE"):
        paths.cache_folder("images")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
def test_folders_and_files_of_another_user_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for name in ("cache", "pyvmm"):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, 65534, 65534)
    (tmp_path / "lock").touch()
    os.chown(tmp_path / "lock", 65534, 65534)
    for call in (paths.cache_folder, paths.runtime_folder):
        with pytest.raises(HostError, match="another user owns it"):
            call()
    with pytest.raises(PermissionError, match="not a file of yours alone"):
        paths.open_private(tmp_path / "lock")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
def test_a_runtime_folder_of_another_user_in_the_environment_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `sudo -E`: making ours in there would lock that user out."""
    os.chown(tmp_path, 65534, 65534)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert paths.runtime_folder() == Path(f"/tmp/pyvmm-{os.geteuid()}")


def test_a_cache_may_be_a_link_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir(mode=0o700)
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    assert paths.cache_folder("a") == tmp_path / "cache/a"
    (tmp_path / "disk").chmod(0o777)
    with pytest.raises(HostError, match="not yours alone"):
        paths.cache_folder("a")


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "lock"
    match kind:
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
    with pytest.raises(OSError):
        paths.open_private(path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_whose_maker_died_before_it_had_its_mode_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    path.chmod(0)
    os.close(paths.open_private(path))
    assert mode(path) == 0o600


KILLED = """
    import os, sys
    from pathlib import Path
    from pyvmm import paths
    folder = Path(sys.argv[1])
    with paths.new_folder(folder / "made") as made, paths.scratch_folder(folder):
        (made / "half").write_bytes(bytes(1000))
        with paths._temporary(folder, folder=False):
            print("here", flush=True)
            sys.stdin.read()
"""


def test_what_a_killed_maker_left_goes_with_the_next_and_what_a_live_one_makes_stays(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as dead,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as alive,
    ):
        for each in (dead, alive):
            assert each.stdout is not None
            assert each.stdout.readline() == b"here\n"
        dead.kill()
        dead.wait()
        assert len(list(tmp_path.iterdir())) == 6
        paths.write_private(tmp_path / "file", b"")
        assert len(list(tmp_path.iterdir())) == 3 + 1
        alive.communicate(b"")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "made"]
    assert (tmp_path / "made/half").stat().st_size == 1000


def test_a_folder_that_is_there_is_replaced_whole(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with paths.new_folder(tmp_path / "made") as made:
            (made / text).touch()
    assert [each.name for each in (tmp_path / "made").iterdir()] == ["new"]
    assert [each.name for each in tmp_path.iterdir()] == ["made"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    with paths.new_folder(tmp_path / "made"):
        pass
    with pytest.raises(ZeroDivisionError), paths.new_folder(tmp_path / "made") as made:
        (made / "half").touch()
        1 / 0  # noqa: B018
    assert [each.name for each in tmp_path.rglob("*")] == ["made"]
