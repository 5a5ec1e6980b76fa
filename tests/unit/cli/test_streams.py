"""Standard streams that are closed, full, left by their reader or non-blocking: a status, one line, no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest

PYVMM = f"{sys.executable} -m pyvmm"
COMMANDS = ("", "--help", "run --print-config", "trace list", "ps --json")


def shell(script: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, **more)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_one_line_and_status_1(command: str) -> None:
    done = shell(f"{PYVMM} {command} >/dev/full")
    assert (done.returncode, done.stderr) == (1, "pyvmm: standard output: No space left on device\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_closed_output_is_one_line_and_status_1(command: str) -> None:
    done = shell(f"{PYVMM} {command} >&-")
    assert (done.returncode, done.stderr) == (1, "pyvmm: standard output: Bad file descriptor\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_is_gone_is_sigpipe_s_status_and_nothing_else(command: str) -> None:
    done = shell(f"{PYVMM} {command} | true; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout, done.stderr) == ("141\n", "")


@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-", "2>&- <&-", "2>&1 >&-", "2>&- >&- <&-"])
def test_errors_that_cannot_be_printed_leave_the_status(where: str) -> None:
    assert shell(f"{PYVMM} nonsense {where}").returncode == 2


def test_no_file_of_ours_gets_the_number_of_a_closed_stream() -> None:
    program = (
        "import os, socket; from pyvmm.cli import streams; streams.prepare(); own = socket.socket();"
        "assert own.fileno() > 2, own; assert os.read(0, 9) == b''; assert all(map(os.get_inheritable, range(3)))"
    )
    assert shell(f'{sys.executable} -c "{program}" <&- >&- 2>&-').returncode == 0


def test_a_non_blocking_output_gets_all_of_it_and_stays_as_it_was() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.write(writer, bytes(60_000))  # another program's output fills the pipe
    found = bytearray()

    def read_all() -> None:
        with open(reader, "rb", buffering=0) as pipe:
            while part := pipe.read(5000):
                found.extend(part)

    thread = threading.Thread(target=read_all)
    command = [*PYVMM.split(), "trace", "list", "--json"]
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE) as started:
        time.sleep(0.5)  # long enough for it to find the pipe full
        thread.start()
        assert (started.wait(60), started.communicate()[1]) == (0, b"")
    assert not os.get_blocking(writer)
    os.close(writer)
    thread.join()
    assert json.loads(found[60_000:])[0]["name"]
