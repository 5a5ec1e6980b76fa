from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAVY = (
    "rich",
    "asyncio",
    "images",
    "devices",
    "firmware",
    "pyvmm.machine",
    "pyvmm.kvm",
    "pyvmm.host.boot_image",
    "subprocess",
)


def python(*arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, **more)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["balloon", "--help"], ["run", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"import sys\nfrom pyvmm.cli.main import main\nmain({arguments!r})\nprint(*sys.modules, file=sys.stderr)"
    loaded = set(python("-c", code).stderr.split())
    assert "click" in loaded
    assert not [each for each in HEAVY if each in loaded]


def test_start_up_time_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    def best(*arguments: str) -> float:
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            python(*arguments)
            times.append(time.perf_counter() - begin)
        return min(times)

    nothing, help = best("-c", "pass"), best("-m", "pyvmm.cli.main", "--help")
    with capsys.disabled():
        print(f"\npyvmm --help: {help * 1000:.0f} ms, {help / nothing:.1f} times an empty Python")


def test_every_command_explains_itself() -> None:
    from pyvmm.cli.main import COMMANDS, cli

    with cli.make_context("pyvmm", ["ps"]) as context:
        for name in COMMANDS:
            command = cli.get_command(context, name)
            assert command is not None
            assert command.help, name


def test_a_reader_that_left_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "pyvmm.cli.main", "--help"], stdout=writer, stderr=subprocess.PIPE, timeout=60
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_disk_under_stdout_is_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pyvmm.cli.main", "--help"], stdout=full, stderr=subprocess.PIPE, timeout=60
        )
    assert done.returncode != 0
    assert b"Traceback" not in done.stderr


def test_no_colours_in_a_pipe() -> None:
    done = python("-m", "pyvmm.cli.main", "nonsense")
    assert "\x1b" not in done.stderr
    assert done.returncode == 2
