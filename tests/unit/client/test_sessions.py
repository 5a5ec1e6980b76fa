"""Sessions with the guest's own program, run on this machine behind a monitor: descriptors, signals, terminal,
copies.
"""

from __future__ import annotations

import os
import pty
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.client.copy import CopyFailed, Counts, from_guest, to_guest
from pyvmm.client.qmp import TimedOut
from pyvmm.client.session import (
    TIMED_OUT,
    Session,
    SessionLost,
    _Escape,
    attend,
    collect,
    login_words,
    open_session_at,
    shell_words,
)
from pyvmm.errors import ConfigError, GuestProtocolError, HostError
from pyvmm.session_protocol import START_LIMIT, FrameReader, Kind, frame, start_frame
from tests.support.fake_machine import FakeMachine, serving


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "vm.sock"
    with serving(FakeMachine(), place):
        yield place


@pytest.fixture
def session(path: Path) -> Session:
    return open_session_at(path)


def words(command: str) -> list[bytes]:
    return [b"/bin/sh", b"-c", command.encode()]


def test_a_shell_command_runs_in_its_folder(session: Session, tmp_path: Path) -> None:
    command = shell_words("pwd; echo $0", folder=str(tmp_path))
    assert collect(session, command, seconds=10, limit=100)[1] == f"{tmp_path}\n/bin/sh\n".encode()


def test_output_is_collected_up_to_a_limit(session: Session) -> None:
    status, out, err, truncated = collect(session, words("echo abc; echo d >&2; exit 4"), seconds=10, limit=3)
    assert (status, out, err, truncated) == (4, b"abc", b"d\n", True)


def test_a_command_that_takes_too_long_is_killed(session: Session) -> None:
    assert collect(session, words("sleep 60"), seconds=0.3, limit=9)[0] == TIMED_OUT


def test_a_command_that_ignores_sigterm_is_killed_all_the_same(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyvmm.client.session.KILL_AFTER", 0.2)
    command = words("trap '' TERM; echo ready; while :; do sleep 0.05; done")
    assert collect(session, command, seconds=0.3, limit=99)[0] == TIMED_OUT


def test_a_guest_that_hangs_is_given_up(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "kill", lambda self, number: None)
    with pytest.raises(TimedOut):
        collect(session, words("sleep 3"), seconds=0.1, limit=9, grace=0.3)


def test_descriptors_are_passed_on(session: Session) -> None:
    in_reader, in_writer = os.pipe()
    out_reader, out_writer = os.pipe()
    err_reader, err_writer = os.pipe()
    data = os.urandom(200_000)

    def feed() -> None:
        os.write(in_writer, data[:1000])
        time.sleep(0.05)
        with open(in_writer, "wb") as file:
            file.write(data[1000:])

    got = bytearray()

    def drain() -> None:
        while part := os.read(out_reader, 1 << 16):
            got.extend(part)

    threads = [threading.Thread(target=feed), threading.Thread(target=drain)]
    for each in threads:
        each.start()
    status = attend(
        session, words("cat; echo end >&2; exit 5"), stdin=in_reader, stdout=out_writer, stderr=err_writer
    )
    os.close(out_writer)
    for each in threads:
        each.join(10)
    assert (status, bytes(got), os.read(err_reader, 100)) == (5, data, b"end\n")
    for descriptor in (in_reader, out_reader, err_reader, err_writer):
        os.close(descriptor)


def test_a_command_without_input_gets_its_end_at_once(session: Session, capfd: pytest.CaptureFixture[str]) -> None:
    assert attend(session, words("cat; echo done"), stdin=None) == 0
    assert capfd.readouterr() == ("done\n", "")


def test_signals_reach_the_command(session: Session, capfd: pytest.CaptureFixture[str]) -> None:
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    command = words("trap 'echo caught; exit 9' INT; while :; do sleep 0.05; done")
    assert attend(session, command, stdin=None) == 9
    assert capfd.readouterr().out == "caught\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_ends_the_wait(session: Session) -> None:
    for delay in (0.3, 0.6):
        threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        attend(session, words("trap '' INT; sleep 5"), stdin=None)


def test_the_end_of_the_guest_is_told(session: Session) -> None:
    with pytest.raises(SessionLost):
        attend(session, words("kill -9 $PPID; sleep 5"), stdin=None)


def test_an_output_without_a_reader_ends_the_command(session: Session) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        attend(session, words("echo x; sleep 20"), stdin=None, stdout=writer)
    os.close(writer)


def test_a_terminal_is_passed_on(path: Path) -> None:
    script = f"""import sys
from pyvmm.client.session import attend, open_session_at
words = [b"/bin/sh", b"-c", b"stty size; read line; echo got $line; tty"]
sys.exit(attend(open_session_at({str(path)!r}), words, tty=True))"""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", script])
    out = b""

    def until(word: bytes) -> None:
        nonlocal out
        while word not in out:
            out += os.read(terminal, 4096)

    until(b"24 80")
    os.write(terminal, b"hello\r")
    until(b"got hello\r\n/dev/pts")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)


@pytest.mark.parametrize(
    ("keys", "sent", "over"),
    [
        (b"ls\r", b"ls\r", False),
        (b"~.", b"", True),
        (b"a~.", b"a~.", False),
        (b"\r~.", b"\r", True),
        (b"\r~~x", b"\r~x", False),
        (b"\r~x", b"\r~x", False),
    ],
)
def test_keys_that_end_a_session(keys: bytes, sent: bytes, over: bool) -> None:
    whole, bytewise = _Escape(), _Escape()
    assert whole.feed(keys) == (sent, over)
    found = [bytewise.feed(bytes([key])) for key in keys]
    assert b"".join(part for part, _ in found) == sent and found[-1][1] is over


def test_words_of_a_login_shell_have_the_terminals_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert login_words()[-1] == b"xterm" and b"TERM=xterm; top" in shell_words("top", terminal=True)[-1]


@pytest.mark.parametrize(
    "data",
    [frame(Kind.START), frame(Kind.EXIT), frame(Kind.OUTPUT, bytes(40_000)), b"\xff" * 8, frame(Kind.TAKEN, b"x")],
)
def test_what_no_guest_sends_is_refused(data: bytes) -> None:
    with pytest.raises(GuestProtocolError):
        list(FrameReader().feed(data))


def test_a_command_that_is_too_long_is_refused() -> None:
    for command in ([], [b"x"] * 2000, [b"x" * START_LIMIT], [b"a\0b"]):
        with pytest.raises(ConfigError):
            start_frame(command)


# Copies


def tree(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for each in sorted(folder.rglob("*")):
        name = str(each.relative_to(folder))
        if each.is_symlink():
            found[name] = f"-> {os.readlink(each)}"
        elif each.is_dir():
            found[name] = "folder"
        elif each.is_file():
            found[name] = each.read_bytes(), stat.S_IMODE(each.stat().st_mode), int(each.stat().st_mtime)
    return found


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    folder = tmp_path / "sample"
    (folder / "a b" / "deep").mkdir(parents=True)
    (folder / "a b" / "deep" / "data").write_bytes(os.urandom(100_000))
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    os.utime(folder / "run.sh", (1_000_000_000, 1_000_000_000))
    (folder / "link").symlink_to("/etc/passwd")
    os.link(folder / "run.sh", folder / "same")
    (folder / "empty").mkdir()
    return folder


def test_a_folder_goes_to_the_guest_and_comes_back(path: Path, sample: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    there, back = Counts(), Counts()
    to_guest(open_session_at(path), [sample], str(tmp_path / "there"), there)
    assert tree(tmp_path / "there" / "sample") == tree(sample) and there.files == 4
    from_guest(open_session_at(path), str(tmp_path / "there/sample/"), tmp_path / "back", back, print)
    assert tree(tmp_path / "back") == tree(sample) and (back.files, back.bytes) == (4, 100_010)


def test_a_file_is_renamed_on_the_way(path: Path, sample: Path, tmp_path: Path) -> None:
    to_guest(open_session_at(path), [sample / "run.sh"], str(tmp_path / "new"), Counts())
    assert (tmp_path / "new").read_text() == "#!/bin/sh\n"
    from_guest(open_session_at(path), str(tmp_path / "new"), tmp_path / "again", Counts(), print)
    from_guest(open_session_at(path), str(tmp_path / "new"), sample / "empty", Counts(), print)
    assert tree(sample / "empty").keys() == {"new"} and (tmp_path / "again").exists()


def test_copies_that_cannot_be_are_one_line(path: Path, sample: Path, tmp_path: Path) -> None:
    def say(line: str) -> None:
        raise AssertionError(line)

    with pytest.raises(CopyFailed, match="/no/such: no such file in the guest"):
        from_guest(open_session_at(path), "/no/such", tmp_path, Counts(), say)
    with pytest.raises(CopyFailed, match="/no: no such folder in the guest"):
        to_guest(open_session_at(path), [sample], "/no/such", Counts())
    with pytest.raises(ConfigError, match="no such file"):
        to_guest(open_session_at(path), [tmp_path / "missing"], "/tmp", Counts())
    with pytest.raises(ConfigError, match="no folder in the guest, and there are 2"):
        to_guest(open_session_at(path), [sample, sample], str(tmp_path / "new"), Counts())
    with pytest.raises(ConfigError, match="no such folder"):
        from_guest(open_session_at(path), "/etc/passwd", tmp_path / "x/y", Counts(), say)


@pytest.mark.parametrize(
    "script",
    [
        # names that leave the target, or go through a link
        "t.addfile(member('x'), None); m = member('x/../../evil', b'e'); t.addfile(m, io.BytesIO(b'e'))",
        "m = member('/evil', b'e'); t.addfile(m, io.BytesIO(b'e'))",
        "m = member('x'); m.type = tarfile.DIRTYPE; t.addfile(m); m = member('x/l'); m.type = tarfile.SYMTYPE; "
        "m.linkname = OUT; t.addfile(m); m = member('x/l/evil', b'e'); t.addfile(m, io.BytesIO(b'e'))",
        "m = member('x'); m.type = tarfile.SYMTYPE; m.linkname = OUT; t.addfile(m); "
        "m = member('x/evil', b'e'); t.addfile(m, io.BytesIO(b'e'))",
        "m = member('x'); m.type = tarfile.LNKTYPE; m.linkname = '../secret'; t.addfile(m)",
    ],
)
def test_hostile_archives_write_nothing_outside(path: Path, tmp_path: Path, script: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "in").mkdir()
    code = f"""import io, sys, tarfile
OUT = {str(outside)!r}
def member(name, data=b""):
    info = tarfile.TarInfo(name); info.size = len(data); return info
t = tarfile.open(fileobj=sys.stdout.buffer, mode="w|")
{script.replace("; ", chr(10))}
t.close()"""
    (tmp_path / "bin").mkdir()
    tar = tmp_path / "bin" / "tar"
    tar.write_text(f"#!{sys.executable}\n{code}\n")
    tar.chmod(0o755)
    (tmp_path / "x").write_text("")
    before = tree(tmp_path)
    session = open_session_at(path)
    real = session.start
    session.start = (
        lambda words, **_: real(  # type: ignore[method-assign]
            [*words[:2], f"PATH={tmp_path / 'bin'}:$PATH; ".encode() + words[2], *words[3:]]
        )
    )
    with pytest.raises(HostError):
        from_guest(session, str(tmp_path / "x"), tmp_path / "in", Counts(), print)
    after = tree(tmp_path)
    assert {name: after[name] for name in after if not name.startswith("in/")} == before


def test_devices_and_set_user_id_are_left_out(path: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    os.mkfifo(source / "pipe")
    (source / "file").write_text("x")
    (source / "file").chmod(0o4755)
    notes: list[str] = []
    from_guest(open_session_at(path), str(source), tmp_path / "copy", Counts(), notes.append)
    assert notes == ["copy/pipe: a device or pipe, left out"]
    assert stat.S_IMODE((tmp_path / "copy/file").stat().st_mode) == 0o755


def test_a_link_in_the_way_is_replaced_not_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "victim").write_text("old")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "new").symlink_to(tmp_path / "victim")
    from_guest(open_session_at(path), str(tmp_path / "new"), tmp_path / "in", Counts(), print)
    assert (tmp_path / "victim").read_text() == "old" and (tmp_path / "in/new").read_text() == "new"


def test_there_is_a_tar_for_the_tests() -> None:
    assert subprocess.run(["tar", "--version"], capture_output=True, check=True).stdout
