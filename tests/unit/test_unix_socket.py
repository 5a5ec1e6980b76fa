"""A dead socket is replaced, a live one and everything else never."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyvmm.errors import ConfigError
from pyvmm.unix_socket import ListeningSocket


@pytest.fixture(autouse=True)
def _runtime(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture(params=[0o000, 0o077, 0o777], ids="umask {:03o}".format)
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("_umask")
def test_only_the_user_can_connect_whatever_the_umask(path: Path) -> None:
    with ListeningSocket(path, 1):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


def leave_dead(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> None:
    with socket.socket(socket.AF_UNIX, kind) as dead:
        dead.bind(str(path))


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_dead_socket_is_replaced(path: Path, kind: socket.SocketKind) -> None:
    leave_dead(path, kind)
    with ListeningSocket(path, 1), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


@pytest.mark.parametrize("state", ["listening", "full", "bound", "bound by a relative name", "datagrams"])
def test_a_live_socket_is_left_alone(path: Path, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    kind = socket.SOCK_DGRAM if state == "datagrams" else socket.SOCK_STREAM
    with socket.socket(socket.AF_UNIX, kind) as alive, socket.socket(socket.AF_UNIX) as waiting:
        alive.bind(path.name if "relative" in state else str(path))
        if state in ("listening", "full"):
            alive.listen(0)
        if state == "full":
            waiting.connect(str(path))
        before = path.stat().st_ino
        name = Path(path.name) if "relative" in state else path
        with pytest.raises(ConfigError, match="in use by another program"):
            ListeningSocket(name, 1)
        assert path.stat().st_ino == before


@pytest.mark.parametrize("kind", ["file", "folder", "pipe", "link", "link to nothing"])
def test_what_is_no_socket_is_left_alone(path: Path, kind: str) -> None:
    match kind:
        case "file":
            path.write_text("mine")
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "link":
            leave_dead(path.with_name("dead"))
            path.symlink_to("dead")
        case _:
            path.symlink_to("nowhere")
    before = path.lstat()
    with pytest.raises(ConfigError, match="is not a socket"):
        ListeningSocket(path, 1)
    assert os.path.samestat(before, path.lstat())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_dead_socket_of_another_user_is_left_alone(path: Path) -> None:
    leave_dead(path)
    os.chown(path, 65534, 65534)
    with pytest.raises(ConfigError, match="belongs to another user"):
        ListeningSocket(path, 1)
    assert path.exists()


def test_closing_leaves_what_another_put_there(path: Path) -> None:
    first = ListeningSocket(path, 1)
    path.unlink()
    with ListeningSocket(path, 1):
        first.close()
        assert path.exists()


def test_closing_finds_a_relative_path_after_a_change_of_folder(
    path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    opened = ListeningSocket(Path(path.name), 1)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    opened.close()
    assert not path.exists()


COMPETITOR = """
import sys
from pathlib import Path
from pyvmm.errors import ConfigError
from pyvmm.unix_socket import ListeningSocket
print("ready", flush=True)
sys.stdin.readline()
try:
    made = ListeningSocket(Path(sys.argv[1]), 1)
except ConfigError as error:
    print(error, flush=True)
else:
    print("won", flush=True)
    sys.stdin.readline()
    made.close()
"""


def test_of_many_that_find_a_dead_socket_one_replaces_it(path: Path) -> None:
    """Without a lock the second removes the first one's: it looked before and removed after."""
    command = [sys.executable, "-c", COMPETITOR, str(path)]
    with ExitStack() as stack:
        many = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(4)
        ]
        leave_dead(path)

        def say(to: list[subprocess.Popen[str]]) -> None:
            for each in to:
                assert each.stdin is not None
                each.stdin.write("\n")
                each.stdin.flush()

        def hear() -> list[str]:
            return [each.stdout.readline().strip() for each in many if each.stdout is not None]

        assert hear() == ["ready"] * 4
        say(many)
        told = hear()
        assert sorted(text == "won" for text in told) == [False, False, False, True], told
        assert all("in use" in text for text in told if text != "won")
        say([each for each, text in zip(many, told, strict=True) if text == "won"])  # the others have ended
