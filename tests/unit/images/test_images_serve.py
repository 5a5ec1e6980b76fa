"""The guest's program that runs a command and passes its output on."""

from __future__ import annotations

import os
import shutil
import subprocess
from base64 import b64decode
from pathlib import Path

import pytest

from pyvmm.images.serve import PROGRAM, machine_code, source


def test_the_machine_code_is_that_of_its_source(tmp_path: Path) -> None:
    if shutil.which("as") is None or shutil.which("objcopy") is None:
        pytest.skip("as and objcopy (package binutils) are not installed")
    (tmp_path / "serve.s").write_text(source())
    subprocess.run(["as", "-o", "serve.o", "serve.s"], cwd=tmp_path, check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", "serve.o", "serve.bin"], cwd=tmp_path, check=True)
    assert (tmp_path / "serve.bin").read_bytes() == machine_code()


def serve(folder: Path, *command: str) -> tuple[bytes, bytes, int]:
    """Run a command; return its stdout and stderr as the lines said, and the status."""
    program, lines = folder / "serve", folder / "lines"
    program.write_bytes(PROGRAM)
    program.chmod(0o755)
    pid_file = folder / "7.pid"
    with lines.open("wb") as port:
        script = f'exec 4>&{port.fileno()} {port.fileno()}>&-; exec "$@"'
        done = subprocess.run(
            ["bash", "-c", script, "-", program, "7", pid_file, *command], pass_fds=[port.fileno()], timeout=20
        )
    assert not pid_file.exists()
    found = {b"out": b"", b"err": b""}
    for line in lines.read_bytes().splitlines():
        stream, number, text = line.split(b" ")
        assert number == b"7"
        found[stream] += b64decode(text, validate=True)
    return found[b"out"], found[b"err"], done.returncode


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 48 << 10, 100_001])
def test_output_of_any_size_comes_whole(tmp_path: Path, size: int) -> None:
    data = tmp_path / "data"
    data.write_bytes(os.urandom(size))
    assert serve(tmp_path, "/bin/cat", str(data)) == (data.read_bytes(), b"", 0)


def test_streams_are_told_apart_and_the_status_is_the_commands(tmp_path: Path) -> None:
    assert serve(tmp_path, "/bin/sh", "-c", "echo a; echo b >&2; exit 3") == (b"a\n", b"b\n", 3)
    assert serve(tmp_path, "/bin/sh", "-c", "kill -15 $$") == (b"", b"", 143)
    assert serve(tmp_path, "/nowhere") == (b"", b"", 127)


def test_the_command_is_in_a_session_and_group_of_its_own_with_three_descriptors(tmp_path: Path) -> None:
    (tmp_path / "7.pid").write_text("an older and longer one")
    show = f"ls -l /proc/$$/fd | wc -l; read -r p c s x g n rest </proc/$$/stat; echo $$ $g $n; cat {tmp_path}/7.pid"
    out, err, status = serve(tmp_path, "/bin/sh", "-c", f"sleep 0.2; {show}")
    descriptors, process, group, session, told = out.decode().split()
    assert (descriptors, err, status) == ("4", b"", 0)  # three, and a line of `ls`
    assert process == group == session == told


def test_the_command_is_an_ordinary_task_unlike_the_agents(tmp_path: Path) -> None:
    """Fields 40 and 41 are priority and class."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        pytest.skip("no right to real-time scheduling (CAP_SYS_NICE)")
    try:
        command = "for p in $$ $PPID; do cut -d' ' -f40,41 /proc/$p/stat; done"
        assert serve(tmp_path, "/bin/sh", "-c", command) == (b"0 0\n1 2\n", b"", 0)
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def test_the_command_may_be_chosen_by_the_oom_killer_unlike_the_program(tmp_path: Path) -> None:
    score = Path("/proc/self/oom_score_adj")
    before = score.read_text()
    score.write_text("500")
    try:
        command = "cat /proc/$$/oom_score_adj /proc/$PPID/oom_score_adj"
        assert serve(tmp_path, "/bin/sh", "-c", command) == (b"0\n500\n", b"", 0)
    finally:
        score.write_text(before)
