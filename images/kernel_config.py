"""A kernel's configuration: read from a .config or the kernel itself, and what a guest loses by what it lacks.

Source: Linux scripts/kconfig/confdata.c (the format), kernel/configs.c (IKCONFIG).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm.errors import ConfigError
from pyvmm.files import TEXT_LIMIT, FileBytes
from pyvmm.firmware import elf

if TYPE_CHECKING:
    from pyvmm.wire import Buffer

FRAGMENT = Path(__file__).parent / "kernel.config"

IKCONFIG_START, IKCONFIG_END = b"IKCFG_ST", b"IKCFG_ED"
_BANNER = re.compile(rb"Linux version ([0-9][!-~]{1,64}) \(")

_PIECE = 4 << 20
"""Bytes of a kernel's segment that are searched at a time."""

_OVERLAP = 512 << 10
"""Bytes of the next piece that are searched too: a packed configuration on the border is found whole."""


class KernelConfig:
    """The options of one kernel. `source` is the file that they come from."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self.values = options(text)
        self._unset = {
            line.split()[1]
            for line in text.splitlines()
            if line.startswith("# CONFIG_") and line.rstrip().endswith(" is not set")
        }

    def __getitem__(self, name: str) -> str:
        """Return the option's value; n for one that is not set, or that this kernel does not know."""
        return self.values.get(name, "n")

    def knows(self, name: str) -> bool:
        """Return whether this kernel version asked for the option."""
        return name in self.values or name in self._unset


def options(config_text: str) -> dict[str, str]:
    """Return CONFIG_ names and values of a .config, without unset ones."""
    found = {}
    for line in config_text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and name.startswith("CONFIG_"):
            found[name] = value
    return found


def missing_options(config_text: str) -> list[str]:
    """Return the fragment's lines that `config_text` does not fulfil, e.g. `CONFIG_HYPERV_BALLOON=m`.

    y fulfils m, and a larger number a smaller one. m fulfils CONFIG_HYPERV=y: Linux before 6.18 takes m too, and has
    no CONFIG_HYPERV_VMBUS.
    """
    have = options(config_text)
    missing = []
    for name, wanted in options(FRAGMENT.read_text()).items():
        value = have.get(name, "n")
        if value == wanted or (wanted == "m" and value == "y") or (name == "CONFIG_HYPERV" and value == "m"):
            continue
        if 0 < _number(wanted) <= _number(value):
            continue
        if name == "CONFIG_HYPERV_VMBUS" and "CONFIG_HYPERV" in have and name not in config_text:
            continue
        missing.append(f"{name}={wanted}")
    return missing


@dataclass(frozen=True, slots=True)
class Need:
    """An option that guests need, what is lost without it, and the need that makes it moot if that lacks already."""

    option: str
    effect: str
    unless: str = ""


_NO_INIT = "/init cannot run and the kernel panics"
_NO_AGENT = "no guest agent: no COMMAND, no `pyvmm reload`"
_NO_CONSOLE = "no console"

NEEDS = (
    Need("CONFIG_BLK_DEV_INITRD", _NO_INIT),
    Need("CONFIG_BINFMT_ELF", _NO_INIT),
    Need("CONFIG_BINFMT_SCRIPT", _NO_INIT),
    Need("CONFIG_PRINTK", "no kernel messages"),
    Need("CONFIG_TTY", f"{_NO_CONSOLE}, {_NO_AGENT}"),
    Need("CONFIG_SERIAL_8250", f"{_NO_CONSOLE}, {_NO_AGENT}", unless="CONFIG_TTY"),
    Need("CONFIG_SERIAL_8250_CONSOLE", _NO_CONSOLE, unless="CONFIG_SERIAL_8250"),
    Need("CONFIG_PROC_FS", _NO_AGENT),
    Need("CONFIG_DEVTMPFS", _NO_AGENT),
    Need("CONFIG_ACPI", "no VMBus, no balloon, no power-off"),
    Need("CONFIG_PCI", "ACPI finds no tables: no VMBus, no balloon, no power-off", unless="CONFIG_ACPI"),
    Need("CONFIG_HYPERVISOR_GUEST", "no VMBus, no balloon"),
    Need("CONFIG_HYPERV", "no VMBus, no balloon", unless="CONFIG_HYPERVISOR_GUEST"),
    Need("CONFIG_HYPERV_VMBUS", "no VMBus, no balloon", unless="CONFIG_HYPERV"),
    Need("CONFIG_HYPERV_BALLOON", "no balloon", unless="CONFIG_HYPERV"),
    Need("CONFIG_HYPERV_UTILS", "no shutdown request, heartbeat or time synchronisation", unless="CONFIG_HYPERV"),
    Need("CONFIG_MEMORY_HOTPLUG", "memory does not grow past its size at boot"),
    Need("CONFIG_SMP", "one CPU only"),
    Need("CONFIG_BUG", "WARN() and BUG() do nothing"),
)
"""What pyvmm's guests use, each with its effect; the order is that of the messages."""


def lacking(config: KernelConfig, *, cpus: int = 1, grows: bool = True) -> list[str]:
    """Return what a guest with this kernel will lack, a line each: options and their effect.

    `cpus` and `grows` (memory past the boot size) tell whether the machine asks for those at all.
    """
    found: dict[str, list[str]] = {}
    lacks = set()
    for need in NEEDS:
        if config[need.option] != "n":
            continue
        if need.option == "CONFIG_HYPERV_VMBUS" and not config.knows(need.option):
            continue  # before Linux 6.18, CONFIG_HYPERV includes it
        lacks.add(need.option)
        if need.unless in lacks or (need.option == "CONFIG_SMP" and cpus == 1):
            continue
        if need.option == "CONFIG_MEMORY_HOTPLUG" and not grows:
            continue
        found.setdefault(need.effect, []).append(need.option)
    lines = [
        f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} not set: {effect}"
        for effect, names in found.items()
    ]
    most = _number(config["CONFIG_NR_CPUS"])
    if 0 < most < cpus and config["CONFIG_SMP"] != "n":
        lines.append(f"CONFIG_NR_CPUS={most}: it uses {most} of the {cpus} CPUs")
    return lines


def _number(value: str) -> int:
    """Return an option's decimal number; 0 for what is none."""
    return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else 0


def embedded_config(kernel: Path) -> KernelConfig | None:
    """Return the configuration inside a vmlinux (CONFIG_IKCONFIG); None if it has none. Raises ConfigError."""
    file = FileBytes(kernel)
    for piece in _loaded(file):
        start = piece.find(IKCONFIG_START)
        if start >= 0:
            return _unpack(piece[start + len(IKCONFIG_START) :], str(kernel))
    return None


def vmlinux_release(kernel: Path) -> str:
    """Return the release of an ELF kernel by Linux's banner; empty for another kernel. Raises ConfigError."""
    for piece in _loaded(FileBytes(kernel)):
        found = _BANNER.search(piece)
        if found is not None:
            return found[1].decode()
    return ""


def _loaded(file: FileBytes) -> Iterator[bytes]:
    """Return an ELF kernel's loaded contents in pieces that overlap."""
    for segment in elf.parse(file, file.name).segments:
        for start in range(segment.offset, segment.offset + segment.file_size, _PIECE):
            end = min(start + _PIECE + _OVERLAP, segment.offset + segment.file_size)
            yield file[start:end]


def _unpack(data: Buffer, source: str) -> KernelConfig | None:
    from pyvmm.firmware.decompress import PackedError, decompress

    packed = bytes(data).partition(IKCONFIG_END)[0]
    try:
        text = decompress(packed, TEXT_LIMIT)
    except PackedError as error:
        raise ConfigError(f"{source}: its configuration (CONFIG_IKCONFIG) is damaged: {error}") from error
    return KernelConfig(text.decode("utf-8", "replace"), source)
