from __future__ import annotations

import tomllib
from pathlib import Path

import click
import pytest

from pyvmm.cli.commands.run import run as run_command
from pyvmm.errors import ConfigError
from pyvmm.launch.config_file import keys, load, render
from pyvmm.launch.options import OPTIONS, GuestOptions
from tests.support.command_line import Run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vm.toml"


def effective(pyvmm: Run, *arguments: str) -> dict[str, object]:
    found = pyvmm("run", "--print-config", *arguments)
    assert found.status == 0, found.err
    return tomllib.loads(found.out)


def test_a_file_stands_for_options(pyvmm: Run, file: Path) -> None:
    file.write_text('memory = "2G"\ncpus = 2\ntrace = ["vmbus_*", "hv_*"]\nno-reboot = true\ntimeout = 5\n')
    found = effective(pyvmm, str(file))
    assert (found["memory"], found["cpus"], found["no-reboot"], found["timeout"]) == ("2G", 2, True, 5.0)
    assert found["trace"] == ["vmbus_*", "hv_*"]


def test_a_file_may_be_named_by_an_option(pyvmm: Run, file: Path) -> None:
    file.write_text("memory = 768\n")
    assert effective(pyvmm, "--config", str(file))["memory"] == "768M"


def test_the_command_line_goes_before_the_file(pyvmm: Run, file: Path) -> None:
    file.write_text('memory = "2G"\ncpus = 2\nkernel = "bzImage"\ncommand = "uname -a"\n')
    found = effective(pyvmm, str(file), "--memory", "1G", "--image", "debian-6.1", "--", "free", "-m")
    assert (found["memory"], found["cpus"], found["image"]) == ("1G", 2, "debian-6.1")
    assert found["command"] == ["free", "-m"]
    assert "kernel" not in found


def test_what_is_printed_is_a_file_of_the_same_meaning(pyvmm: Run, file: Path) -> None:
    options = ["-m", "1025k", "--append", 'a "b" \\ ü\x7f', "--trace", "x", "--cpus", "3", "--console", "pty"]
    first = pyvmm("run", "--print-config", *options, "--", "sh", "-c", "exit 3").out
    file.write_text(first)
    assert pyvmm("run", str(file), "--print-config").out == first


def test_paths_count_from_the_files_folder(pyvmm: Run, file: Path) -> None:
    file.write_text('kernel = "bzImage"\nconsole = "log/out"\ninitrd = "/root.cpio"\ntrace-file = "../t"\n')
    found = effective(pyvmm, str(file))
    assert found["kernel"] == str(file.parent / "bzImage")
    assert found["console"] == str(file.parent / "log/out")
    assert found["initrd"] == "/root.cpio"


def test_a_word_after_dashes_is_the_guests(pyvmm: Run) -> None:
    assert effective(pyvmm, "--", "vm.toml")["command"] == ["vm.toml"]


def test_every_option_of_run_has_a_key() -> None:
    hidden_or_ours = {"config", "print_config"}
    options = {p.name for p in run_command.params if isinstance(p, click.Option) and not p.hidden}
    assert {key.replace("-", "_") for key in keys()} == (options - hidden_or_ours) | {"command"}
    assert OPTIONS.keys() == options - hidden_or_ours


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("memry = 1", "'memry' is no option; did you mean 'memory'?"),
        ("trace_file = 1", "'trace_file' is no option; did you mean 'trace-file'?"),
        ("zzz = 1", "'zzz' is no option; `pyvmm run --print-config` shows them all"),
        ("config = 'x'", "'config' is no option"),
        ("control-socket = 'x'", "'control-socket' is no option"),
        ("memory = true", "memory takes a text or a number, not True"),
        ("memory = '5X'", "memory: size '5X' has an unknown unit"),
        ("cpus = '2'", "cpus takes a number, not '2'"),
        ("cpus = 1.5", "cpus takes a number, not 1.5"),
        ("timeout = -1", "timeout: -1.0 is not in the range"),
        ("trace = [1]", "trace takes a list of them, each a text, not 1"),
        ("no-reboot = 'yes'", "no-reboot takes true or false, not 'yes'"),
        ("host = 'moon'", "host: 'moon' is not one of"),
        ("command = 1", "command takes a text or a list of words, not 1"),
        ("command = ['a', 1]", "command takes a text or a list of words"),
        ("[memory]", "memory takes a text or a number, not {}"),
        ("x", "is not TOML: "),
        ("a = 1\na = 2", "is not TOML: "),
        ("\udcff", "is not UTF-8"),
        ("#" * (2 << 20), "is larger than 1 MiB"),
    ],
)
def test_a_wrong_file_is_reported_in_one_line_with_the_key(pyvmm: Run, file: Path, text: str, line: str) -> None:
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    found = pyvmm("run", str(file))
    assert (found.status, found.out, found.err.count("\n")) == (1, "", 1)
    assert found.err.startswith(f"pyvmm: {file}"), found.err
    assert line in found.err


def test_no_file_is_reported_in_one_line(pyvmm: Run, tmp_path: Path) -> None:
    assert pyvmm("run", "nowhere.toml").err == "pyvmm: configuration nowhere.toml: No such file or directory\n"
    assert pyvmm("run", "--config", str(tmp_path)).err == f"pyvmm: configuration {tmp_path}: Is a directory\n"


def test_a_wrong_option_beside_a_file_is_a_usage_error(pyvmm: Run, file: Path) -> None:
    file.write_text("cpus = 2\n")
    assert pyvmm("run", str(file), "--cpuz", "1").status == 2


def test_disks_are_files_of_the_configurations_folder(tmp_path: Path) -> None:
    file = tmp_path / "vm.toml"
    file.write_text('disk = ["a,,b.img,ro", "/dev/x,id=d"]')
    disks = load(file)["disk"]
    assert [str(each) for each in disks] == [f"{tmp_path}/a,,b.img,ro", "/dev/x,id=d"]
    assert f'disk = ["{tmp_path}/a,,b.img,ro", "/dev/x,id=d"]' in render(GuestOptions(disk=disks))
    file.write_text('disk = "a.img,rw"')
    with pytest.raises(ConfigError, match=r"vm[.]toml: disk: 'rw' is no option of a disk"):
        load(file)
