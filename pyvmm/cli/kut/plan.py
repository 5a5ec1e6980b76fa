"""Reads a test's settings, which are written for QEMU's command line, as options of a machine.

What pyvmm's machine does not have makes a test skip, with the reason, rather than run as another test.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from pyvmm.cli.kut.suite import Suite, UnitTest
from pyvmm.errors import ConfigError
from pyvmm.machine.cpu_features import FEATURES
from pyvmm.seconds import LONGEST
from pyvmm.sizes import parse_size

MEMORY = 128 << 20
"""RAM of a test that does not say how much, as QEMU gives it."""

TIMEOUT = 90.0
"""Seconds for a test that does not say how long, as the suite's scripts have it."""

MOST_CPUS = 64
NOT_BY_DEFAULT = "nodefault"
NOW = "`date +%s`"
_ENDS_QEMU = ("emulator.flat",)
_DEVICES = ("hyperv-testdev",)
_MACHINE_OPTIONS = ("pit=off",)  # without it AVIC stays on; a PIT that is not programmed has no other effect
_CPU_MODELS = re.compile(r"(max|host|qemu64|Opteron_G1|IvyBridge|Skylake-Server)$")
_HARMLESS_CPU = ("host-phys-bits", "migratable=no")


@dataclass(frozen=True, slots=True)
class Plan:
    """A test as a machine: its kernel and options."""

    name: str
    kernel: Path
    arguments: str  # NOW stands for the time at the test's start
    cpus: int
    memory: int  # bytes
    timeout: float
    vendor: str = ""  # of the CPU; empty: the host's
    hidden: frozenset[str] = frozenset()  # features that the CPU must not have
    hyperv: bool = False  # it finds Hyper-V, with all enlightenments that the engine has; else KVM, as under QEMU


class CannotRun(Exception):
    """A test is skipped, for the reason in the text."""


def plan(suite: Suite, test: UnitTest, *, timeout: float | None = None, by_name: bool = False) -> Plan:
    """Return the machine for `test`. Raises CannotRun. `timeout`: in place of the test's; `by_name`: the user named
    the test or a group of it, so that a test which does not run by default does.
    """
    if NOT_BY_DEFAULT in test.groups.split() and not by_name:
        raise CannotRun("runs only by its name or group")
    if test.arch not in ("", "x86_64"):
        raise CannotRun(f"{test.arch} only")
    if test.accel not in ("", "kvm"):
        raise CannotRun(f"wants accelerator {test.accel}")
    if test.machine:
        raise CannotRun(f"wants QEMU's machine {test.machine}")
    if test.disabled_if:
        raise CannotRun(f"has a shell condition that pyvmm does not evaluate: {test.disabled_if}")
    if not test.file:
        raise CannotRun("has no file in unittests.cfg")
    kernel = suite.images / test.file
    if not kernel.is_file():
        raise CannotRun(f"{kernel} is not there: build it with make")
    memory, cpu = _qemu_params(test.qemu_params)
    return Plan(
        test.name,
        kernel,
        _arguments(test.test_args),
        _cpus(test.smp),
        memory,
        timeout or _seconds(test.timeout),
        cpu.vendor,
        frozenset(cpu.hidden),
        cpu.hyperv,
    )


def check_host(test: UnitTest, *, emulated: bool = False) -> None:
    """Raise CannotRun unless this host's files hold what the test wants (`check`). `emulated`: it is emulated."""
    if emulated and test.file in _ENDS_QEMU:
        raise CannotRun("would end the emulated host: QEMU aborts on an instruction in it")
    for word in test.check.split():
        path, _, wanted = word.partition("=")
        try:
            found = Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError):
            raise CannotRun(f"{path} is not there on this host, wanted {wanted}") from None
        if found != wanted:
            raise CannotRun(f"{path} is {found[:40]} on this host, wanted {wanted}")


def _cpus(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:9]) <= MOST_CPUS:
        raise CannotRun(f"wants {text} CPUs")
    return int(text)


def _seconds(text: str) -> float:
    """Return a timeout as timeout(1) reads it: 30, 30s, 2m."""
    if not text:
        return TIMEOUT
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], units[text[-1]]) if text[-1] in units else (text, 1)
    try:
        seconds = float(number) * unit
    except ValueError:
        raise CannotRun(f"its timeout {text!r} is no number of seconds") from None
    return seconds if 0 < seconds <= LONGEST else LONGEST  # 0: none


def _arguments(text: str) -> str:
    """Return the test's command line: the words as a shell would leave them, with NOW for the time."""
    words = " ".join(_words(text))
    if "`" in words.replace(NOW, "") or "$(" in words:
        raise CannotRun(f"its arguments run a shell command: {words}")
    return words


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise CannotRun(f"its settings are no shell words: {error}") from None


@dataclass(slots=True)
class _Cpu:
    """The CPU of QEMU's -cpu."""

    vendor: str = ""
    hidden: list[str] = field(default_factory=list)
    hyperv: bool = False  # with all that the engine has


def _qemu_params(text: str) -> tuple[int, _Cpu]:
    """Return RAM size and CPU that QEMU's parameters ask for. Raises CannotRun for what pyvmm lacks."""
    memory, cpu = MEMORY, _Cpu()
    words = iter(_words(text))
    for word in words:
        match word:
            case "-enable-kvm":
                continue
            case "-m":
                memory = _memory(next(words, ""))
            case "-cpu":
                cpu = _read_cpu(next(words, ""))
            case "-device" if (device := next(words, "")).split(",")[0] not in _DEVICES:
                raise CannotRun(f"wants QEMU's device {device.split(',')[0]}")
            case "-device":
                continue
            case "-machine" | "-M" if (options := next(words, "")) not in _MACHINE_OPTIONS:
                raise CannotRun(f"wants QEMU's {word} {options}")
            case "-machine" | "-M":
                continue
            case _:
                raise CannotRun(f"wants QEMU's {word} {next(words, '')}".rstrip())
    return memory, cpu


def _memory(text: str) -> int:
    try:
        size = parse_size(text)
    except ConfigError:
        raise CannotRun(f"its memory size {text!r} is none") from None
    if not 1 << 20 <= size <= 64 << 30:
        raise CannotRun(f"wants {text} of memory")
    return size


def _read_cpu(text: str) -> _Cpu:
    """Return the CPU that QEMU's `-cpu text` names. Raises CannotRun if the host's CPU, as KVM has it, cannot be it.

    A feature that is wanted is left to the test: each looks for it in CPUID and skips without it.
    """
    model, *features = text.split(",")
    if not _CPU_MODELS.match(model):
        raise CannotRun(f"wants QEMU's CPU {model}")
    cpu = _Cpu()
    for feature in features:
        name = feature.strip("+-").removesuffix("=off")
        if re.fullmatch(r"vendor=[!-~]{12}", feature):
            cpu.vendor = feature.removeprefix("vendor=")
        elif feature == "hv_passthrough":
            cpu.hyperv = True
        elif feature.startswith("-") or feature.endswith("=off"):
            if name not in FEATURES:
                raise CannotRun(f"wants a CPU without {name}, which pyvmm cannot hide")
            cpu.hidden.append(name)
        elif not feature.startswith("+") and feature not in _HARMLESS_CPU:
            raise CannotRun(f"wants a CPU with {feature}")
    return cpu
