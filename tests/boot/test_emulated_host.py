"""The emulated host: commands in it, what they are connected to, and what is left when it ends."""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.host.emulated import EmulatedHost
from pyvmm.host.qemu import PROGRAM
from tests.support.boot_hosts import lacks_qemu

pytestmark = [
    pytest.mark.boot,
    pytest.mark.skipif(lacks_qemu(), reason=f"needs {PROGRAM}"),
]
EXEC = [sys.executable, "-m", "pyvmm.host", "exec", "--"]
LIMIT = 180  # seconds; the first start of all makes and saves the host


@pytest.fixture(scope="module")
def host() -> Iterator[EmulatedHost]:
    with EmulatedHost.start() as started:
        yield started


def output(host: EmulatedHost, *argv: str, stdin: bytes = b"") -> tuple[int, bytes]:
    """Status and standard output of a command."""
    (in_read, in_write), (out_read, out_write) = os.pipe(), os.pipe()
    os.write(in_write, stdin)
    os.close(in_write)
    try:
        status = host.run(argv, stdin=in_read, stdout=out_write)
    finally:
        os.close(in_read)
        os.close(out_write)
    with open(out_read, "rb") as pipe:
        return status, pipe.read()


def own_qemus() -> set[int]:
    """Process ids of the QEMUs that this process or its children started."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "comm").read_text().startswith("qemu-system"):
                found.add(int(folder.name))
        except OSError:
            pass
    return found


def test_a_command_has_kvm_with_hyper_v_and_says_so(host: EmulatedHost) -> None:
    status, said = output(host, "sh", "-c", "test -c /dev/kvm && echo yes")
    assert (status, said) == (0, b"yes\n")


def test_the_status_is_the_commands(host: EmulatedHost) -> None:
    assert output(host, "sh", "-c", "exit 7")[0] == 7
    assert output(host, "sh", "-c", "kill -9 $$")[0] == -9


def test_input_reaches_the_command_whole(host: EmulatedHost) -> None:
    assert output(host, "cat", stdin=b"x" * 60_000) == (0, b"x" * 60_000)


def test_files_are_the_machines_both_ways(host: EmulatedHost, tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / "in").write_text(f"{number}")
        output(host, "cp", f"{tmp_path}/in", f"{tmp_path}/out")
        assert (tmp_path / "out").read_text() == f"{number}"


def test_the_clock_is_the_machines(host: EmulatedHost) -> None:
    _, said = output(host, "date", "+%s")
    assert abs(int(said) - time.time()) < 5


def test_a_python_module_runs_like_in_a_fresh_interpreter(host: EmulatedHost, tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text("import os, sys\nprint(__name__, sys.argv[1:], os.getcwd())\nsys.exit(3)\n")
    out_read, out_write = os.pipe()
    status = host.run(
        [sys.executable, "-m", "told", "a b"],
        stdin=os.open("/dev/null", os.O_RDONLY),
        stdout=out_write,
        cwd=str(tmp_path),
    )
    os.close(out_write)
    with open(out_read) as pipe:
        assert pipe.read() == f"__main__ ['a b'] {tmp_path}\n"
    assert status == 3


def test_a_socket_inside_is_reached_by_its_path_outside(host: EmulatedHost, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    server = tmp_path / "server.py"
    server.write_text(
        "import socket, sys\nfrom pyvmm.host.inside import socket_path\n"
        "s = socket.socket(socket.AF_UNIX)\ns.bind(socket_path(sys.argv[1]))\ns.listen()\n"
        "c, _ = s.accept()\nc.sendall(c.recv(100).upper())\nc.close()\n"
    )
    client = subprocess.Popen(
        [sys.executable, "-c",
         "import socket, sys, time, os\n"
         "while not os.path.exists(sys.argv[1]): time.sleep(0.05)\n"
         "s = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\ns.sendall(b'hello')\n"
         "print(s.recv(100).decode(), s.recv(100) == b'')", str(path)],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    status = host.run([sys.executable, str(server), str(path)], forward_sockets=[path])
    said, _ = client.communicate(timeout=20)
    assert (status, said) == (0, b"HELLO True\n")
    assert not path.exists()


def in_terminal(argv: list[str], typed: bytes) -> tuple[int, bytes, bool]:
    """Run in a terminal of 33 by 99, typing once a prompt ends in '?'. Status, screen, terminal restored."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(argv[0], argv)
    termios.tcsetwinsize(terminal, (33, 99))
    before = termios.tcgetattr(terminal)
    screen, until = b"", time.monotonic() + LIMIT
    while time.monotonic() < until and select.select([terminal], [], [], LIMIT)[0]:
        try:
            part = os.read(terminal, 4096)
        except OSError:
            break
        if not part:
            break
        screen += part
        if typed and b"?" in screen:
            os.write(terminal, typed)
            typed = b""
    after = before
    try:
        after = termios.tcgetattr(terminal)
    except termios.error:
        pass
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), screen, after == before


def test_a_terminal_inside_has_the_outer_ones_size_and_keys() -> None:
    script = "sleep 1; stty size; trap 'echo caught; exit 4' INT; echo 'ready?'; while :; do sleep 0.2; done"
    status, screen, restored = in_terminal([*EXEC, "sh", "-c", script], b"\x03")
    assert b"33 99" in screen
    assert b"caught" in screen
    assert (status, restored) == (4, True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_qemu_outlives_its_command(number: signal.Signals) -> None:
    before = own_qemus()
    process = subprocess.Popen([*EXEC, "sh", "-c", "echo up; sleep 100"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    ours = {pid for pid in own_qemus() - before if parent_of(pid) == process.pid}
    assert len(ours) == 1
    process.send_signal(number)
    process.wait(20)
    process.stdout.close()
    until = time.monotonic() + 10
    while ours & own_qemus() and time.monotonic() < until:
        time.sleep(0.05)
    assert not ours & own_qemus()


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def test_a_missing_program_is_one_line() -> None:
    done = subprocess.run([*EXEC, "/nonexistent/program"], capture_output=True, text=True, timeout=LIMIT)
    assert (done.returncode, done.stderr) == (125, "pyvmm: /nonexistent/program: No such file or directory\n")


def test_a_missing_qemu_is_one_line_with_the_remedy() -> None:
    done = subprocess.run(
        [*EXEC, "true"], capture_output=True, text=True, timeout=LIMIT, env={"PATH": "/nonexistent"}
    )
    assert done.returncode == 125
    assert "apt-get install qemu-system-x86" in done.stderr.splitlines()[-1]


def test_two_hosts_at_once() -> None:
    both = [subprocess.Popen([*EXEC, "hostname"], stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.wait(LIMIT) for process in both] == [0, 0]
    for process in both:
        process.communicate()


def test_a_host_is_kept_up_between_commands(tmp_path: Path) -> None:
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    manage = [sys.executable, "-m", "pyvmm.host"]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*manage, *words], env=env, capture_output=True, text=True, timeout=LIMIT)

    try:
        assert run("start", "--memory", "1536").returncode == 0
        assert "an emulated host is running" in run("status").stderr
        boots = {run("exec", "--", "cat", "/proc/sys/kernel/random/boot_id").stdout for _ in range(2)}
        marked = run("exec", "--", "sh", "-c", "echo 1 > /run/mark").returncode
        assert (len(boots), marked) == (1, 0)
        assert run("exec", "--", "cat", "/run/mark").stdout == "1\n"
    finally:
        run("stop")
    assert "no emulated host" in run("status").stderr


def test_a_socket_that_is_taken_is_refused(tmp_path: Path, host: EmulatedHost) -> None:
    from pyvmm.errors import HostError

    path = tmp_path / "taken.sock"
    with socket.socket(socket.AF_UNIX) as holder:
        holder.bind(str(path))
        with pytest.raises(HostError, match=r"taken\.sock"):
            host.run(["true"], forward_sockets=[path])
    assert path.exists()
