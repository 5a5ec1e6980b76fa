"""unittests.cfg of kvm-unit-tests: which tests there are, and their settings.

Source: kvm-unit-tests scripts/common.bash (for_each_unittest), docs/unittests.rst.

    [name]
    file = name.flat          qemu_params = ...        groups = apic nodefault
    smp = 2                   test_args = "..."        check = /sys/...=Y

A value continues over several lines between triple quotes. What is no setting is ignored, as in the suite's scripts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pyvmm.errors import ConfigError

NAME = "unittests.cfg"
MAX_SIZE = 1 << 20
_SECTION = re.compile(r"\[(.*)\]\s*$")
_SETTING = re.compile(r"(\w+)\s*=\s*(.*)$")
_QUOTES = '"""'
_OTHER_NAMES = {"extra_params": "qemu_params"}
_NEXT_STEP = "give the folder of a built kvm-unit-tests (docs/kvm-unit-tests.md tells how to build it)"


@dataclass(slots=True)
class UnitTest:
    """One section. The fields are the file's words."""

    name: str
    file: str = ""
    smp: str = "1"
    test_args: str = ""
    qemu_params: str = ""
    groups: str = ""
    arch: str = ""
    machine: str = ""
    check: str = ""
    accel: str = ""
    timeout: str = ""
    disabled_if: str = ""


_SETTINGS = frozenset(UnitTest.__slots__) - {"name"}


@dataclass(frozen=True, slots=True)
class Suite:
    """The tests of one folder, in the file's order. `images`: the folder of their files."""

    images: Path
    tests: list[UnitTest]


def open_suite(folder: Path) -> Suite:
    """Read the suite in `folder`, the top of kvm-unit-tests or its x86 folder. Raises ConfigError."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}; {_NEXT_STEP}")
    for path in (folder / NAME, folder / "x86" / NAME):
        if path.is_file():
            break
    else:
        raise ConfigError(f"{folder}: it has no {NAME}, neither has {folder / 'x86'}; {_NEXT_STEP}")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if len(data) > MAX_SIZE:
        raise ConfigError(f"{path}: more than {MAX_SIZE >> 20} MiB; that is no list of tests")
    tests = parse(data.decode("utf-8", "replace"))
    if not tests:
        raise ConfigError(f"{path}: no [test] in it; {_NEXT_STEP}")
    return Suite(path.parent, tests)


def parse(text: str) -> list[UnitTest]:
    """Return the sections of a unittests.cfg."""
    tests: list[UnitTest] = []
    lines = iter(text.splitlines())
    for line in lines:
        section = _SECTION.match(line)
        if section is not None:
            tests.append(UnitTest(section[1]))
            continue
        setting = _SETTING.match(line)
        if setting is None or not tests:
            continue
        name, value = setting.groups()
        if value.startswith(_QUOTES):
            parts = [value.removeprefix(_QUOTES)]
            while not parts[-1].rstrip().endswith(_QUOTES):
                more = next(lines, None)
                if more is None:
                    break
                parts.append(more)
            value = " ".join(part.rstrip().removesuffix("\\") for part in parts).removesuffix(_QUOTES)
        name = _OTHER_NAMES.get(name, name)
        if name in _SETTINGS:
            setattr(tests[-1], name, value.strip())
    return tests
