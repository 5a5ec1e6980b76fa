"""Command lines, options and environments of rubbish: one line and status 1 or 2, whatever they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from pyvmm import Machine
from pyvmm.cli import main as command
from pyvmm.cli.main import LINE_LIMIT
from pyvmm.client.qmp import Client
from pyvmm.errors import ConfigError, HostError
from pyvmm.seconds import check_seconds
from tests.support.command_line import Run


@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf", "1e400", "-1", "-1e-9", "1e300", "x", "9" * 5000])
@pytest.mark.parametrize(
    "words",
    [["run"], ["wait", "vm"], ["stop", "vm"], ["balloon", "vm", "1G"], ["trace", "follow"]],
    ids=lambda w: w[0],
)
def test_seconds_beyond_the_clocks_range_are_refused(pyvmm: Run, words: list[str], seconds: str) -> None:
    found = pyvmm(*words, "--timeout", seconds)
    assert (found.status, found.out, found.err.count("\n")) == (2, "", 1)
    assert len(found.err) < LINE_LIMIT + 100


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 1e300, "x", None, 1 << 5000])
def test_seconds_from_a_program_are_checked_too(value: float) -> None:
    with pytest.raises(ConfigError, match="give seconds"):
        check_seconds(value)
    with pytest.raises(ConfigError, match="give seconds"):
        Client("/nonexistent", value)


@pytest.mark.parametrize(
    "words", [["run", "--kernel", "a\0b"], ["report", "a\0b"], ["a\0b"], ["run", "--", "a\0b"], ["wait", "a\0b"]]
)
def test_a_zero_byte_in_an_argument_is_a_usage_error(pyvmm: Run, words: list[str]) -> None:
    found = pyvmm(*words)
    assert (found.status, found.err.count("\n")) == (2, 1)
    assert "zero byte" in found.err


@pytest.mark.parametrize("option", ["kernel", "initrd", "kdir", "append", "trace_file", "qmp", "config"])
def test_a_zero_byte_in_a_keyword_is_a_config_error(option: str) -> None:
    with pytest.raises(ConfigError, match="zero byte"):
        Machine(**{option: "a\0b"})  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/tmp/a\0b", "/tmp/\ud800", "x" * 5000])
def test_a_socket_of_an_impossible_name_is_a_host_error(path: str) -> None:
    with pytest.raises(HostError):
        Client(path)


@pytest.mark.parametrize(
    "text",
    [
        'kernel = "a\\u0000b"',
        'append = "a\\u0000b"',
        'command = ["a\\u0000b"]',
        'trace = ["a\\u0000b"]',
        "cpus = " + "9" * 5000,
        "cpus = 0x" + "f" * 5000,
        "timeout = nan",
        "timeout = inf",
        "timeout = 1e400",
        "kernel = " + "[" * 5000,
        "memory" + ".a" * 5000 + " = 1",
        "memory" + ".a" * 900 + " = 1",
        "kernel = 2024-99-99",
        'kernel = "~nobody-of-that-name/x"',
    ],
)
def test_a_toml_file_of_rubbish_is_one_line(pyvmm: Run, tmp_path: Path, text: str) -> None:
    file = tmp_path / "vm.toml"
    file.write_text(text)
    found = pyvmm("run", str(file))
    assert (found.status, found.out, found.err.count("\n")) == (1, "", 1)
    assert "internal error" not in found.err and len(found.err) < LINE_LIMIT + 100


def test_an_error_of_our_own_is_one_line_that_asks_for_a_report(pyvmm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(context: click.Context) -> None:
        raise KeyError("x")

    monkeypatch.setattr(command.cli, "invoke", broken)
    monkeypatch.delenv("PYVMM_DEBUG", raising=False)
    found = pyvmm("ps")
    assert found.status == 1 and found.err.count("\n") == 1
    assert "internal error, KeyError" in found.err and "PYVMM_DEBUG=1" in found.err
    monkeypatch.setenv("PYVMM_DEBUG", "1")
    with pytest.raises(KeyError):
        pyvmm("ps")


@pytest.mark.parametrize(
    "environment",
    [
        {"PYVMM_CACHE": "/dev/null"},
        {"PYVMM_CACHE": "/proc/1"},
        {"XDG_RUNTIME_DIR": "relative"},
        {"XDG_RUNTIME_DIR": "/dev/null"},
        {"HOME": "/nonexistent", "PYVMM_CACHE": ""},
        {"COLUMNS": "abc", "LINES": "-1", "TERM": "\x1b"},
        {"LC_ALL": "nonsense", "LANG": "\udcff"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYVMM_DEBUG": ""},
    ],
    ids=lambda each: " ".join(each),
)
def test_an_environment_of_rubbish_gets_no_traceback(environment: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    given = {name: value for name, value in os.environ.items() if name != "PYVMM_DEBUG"} | environment
    for words in (["ps"], ["image", "list"], ["report", "/no/\udcff.jsonl"], ["trace", "list", "vmbus*"]):
        done = subprocess.run(
            [sys.executable, "-m", "pyvmm", *words],
            env=given,
            cwd=folder,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert b"Traceback" not in done.stderr and b"internal error" not in done.stderr, done.stderr
        assert done.returncode in (0, 1) and done.stderr.count(b"\n") <= 1


def test_a_folder_that_is_gone_gets_no_traceback(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    script = f"import os, sys; gone = {str(gone)!r}; os.mkdir(gone); os.chdir(gone); os.rmdir(gone)\n"
    for words in (["ps"], ["run", "x.toml"], ["report", "x.jsonl"], ["trace", "convert", "a", "b"]):
        code = f"{script}from pyvmm.cli.main import main; sys.exit(main({words!r}))"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[3],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert b"Traceback" not in done.stderr and b"internal error" not in done.stderr, done.stderr
