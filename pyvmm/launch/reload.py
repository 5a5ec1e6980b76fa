"""Exchanges a kernel module in a running guest: for `pyvmm reload` and the Python API.

    inspect the file     its name, and the release that it was built for
    inspect the guest    loaded? permanent (no module_exit())? used by other modules, or built in?
    send                 stripped, packed and in base64, in commands to the guest's agent
    exchange             rmmod, insmod; if the kernel refuses the new module, the old one is loaded again

Each step is a shell command in the guest, by `run`: the QMP command x-execute. Source: Linux kernel/module/procfs.c
for the format of /proc/modules.
"""

from __future__ import annotations

import lzma
import re
import shlex
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyvmm.errors import ConfigError, HostError
from pyvmm.guest_text import one_line

PIECE = 24 << 10
"""Bytes of base64 sent in one command; the agent takes commands of 32 KiB."""

STEP_SECONDS = 60
"""Time limit of one command, in seconds of guest time; a piece takes some five in an emulated host."""

_NAME = re.compile(r"[A-Za-z0-9_]{1,56}")


@dataclass(frozen=True, slots=True)
class Ran:
    """The result of a command in the guest."""

    status: int
    output: str
    errors: str


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What `reload` did. `replaced` is False for a module that was not loaded before."""

    module: str
    replaced: bool
    sent: int  # bytes, packed


Run = Callable[[str], Ran]


class CannotReload(HostError):
    """The guest cannot exchange the module; the text says why, and what to do instead."""


@dataclass(frozen=True, slots=True)
class NewModule:
    """A module's file: what is sent, and what is known about it."""

    name: str
    release: str  # of the kernel that it was built for
    data: bytes  # stripped
    notes: tuple[str, ...] = ()  # about its sources, for the user


def read_new_module(path: Path) -> NewModule:
    """Read a module's file. Raises ConfigError."""
    from pyvmm.images.modules import modinfo_value, module_name, read_module
    from pyvmm.images.outdated import module_notes
    from pyvmm.images.strip import strip_debug

    data = read_module(path)
    try:
        name = modinfo_value(data, "name") or module_name(path)
        release = modinfo_value(data, "vermagic").partition(" ")[0]
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{path}: a module cannot be named {one_line(name)!r}")
    return NewModule(name, release, strip_debug(data), tuple(module_notes(path)))


def reload(new: NewModule, run: Run, *, parameters: Sequence[str], progress: Callable[[str], None]) -> Reloaded:
    """Exchange the module in the guest, or load it if it is not loaded. `parameters` are insmod's.

    Raises CannotReload, and whatever `run` raises.
    """
    for note in new.notes:
        progress(note)
    replaced = _check_guest(new, run)
    packed = lzma.compress(new.data, check=lzma.CHECK_CRC32)  # the check that busybox knows
    progress(f"sending {new.name}.ko: {len(new.data) >> 10} KiB, {len(packed) >> 10} packed")
    _send(new.name, packed, run)
    _exchange(new.name, parameters, run, replaced=replaced)
    return Reloaded(new.name, replaced, len(packed))


def _check_guest(new: NewModule, run: Run) -> bool:
    """Return whether the module is loaded and can be exchanged. Raises CannotReload if it cannot."""
    name = new.name
    there = run(
        f"uname -r; if [ ! -e /proc/modules ]; then echo none; elif ! grep '^{name} ' /proc/modules; then "
        f"[ -e /sys/module/{name} ] && echo built-in || echo absent; fi"
    )
    lines = there.output.splitlines()
    if there.status or len(lines) < 2:
        raise CannotReload(f"the guest's modules cannot be read: {_last(there)}")
    release, line = one_line(lines[0]), lines[1]
    if new.release and new.release != release:
        raise CannotReload(f"{name}.ko was built for Linux {new.release}, the guest runs {release}: run that one")
    match line.split():
        case ["none"]:
            raise CannotReload("the guest's kernel has no modules: set CONFIG_MODULES, or build and run it again")
        case ["built-in"]:
            raise CannotReload(f"{name} is built into the guest's kernel: make it a module, or build and run again")
        case ["absent"]:
            return False
        case [_, _, count, users, *_]:
            _check_users(name, count, users)
            return True
    raise CannotReload(f"/proc/modules of the guest has a line that is not understood: {one_line(line)}")


def _check_users(name: str, count: str, users: str) -> None:
    """Check the fields of /proc/modules: `hv_vmbus 180224 2 hv_balloon,hv_utils, Live`, `- ` if there are none."""
    names = [one_line(user) for user in users.split(",") if user and user != "-"]
    if "[permanent]" in names:
        raise CannotReload(
            f"{name} in the guest cannot be unloaded: it has no module_exit(); run the guest again with the new one"
        )
    if names:
        raise CannotReload(f"{name} is used by {', '.join(names)} in the guest: run the guest again with the new one")
    if count not in ("0", "-"):
        raise CannotReload(f"{name} is in use in the guest ({one_line(count)} times): end what uses it")


def _send(name: str, packed: bytes, run: Run) -> None:
    text = b64encode(packed).decode()
    for start in range(0, len(text), PIECE):
        how = ">>" if start else ">"
        done = run(f"mkdir -p /run/reload && echo {text[start : start + PIECE]} {how}/run/reload/{name}.xz64")
        if done.status:
            raise CannotReload(f"the guest did not take {name}.ko: {_last(done)}")


def _exchange(name: str, parameters: Sequence[str], run: Run, *, replaced: bool) -> None:
    words = " ".join(map(shlex.quote, parameters))
    unpack = f"cd /run/reload && base64 -d <{name}.xz64 | unxz >{name}.ko && rm {name}.xz64"
    given = "words=; for word in $(cat /proc/cmdline); do case $word in "
    given += f'{name}.*) words="$words ${{word#*.}}" ;; esac; done'
    remove = f"rmmod {name} || exit 3; " if replaced else ""
    before = f"[ -e /lib/modules/{name}.ko ] && insmod /lib/modules/{name}.ko $words && echo before; " * replaced
    done = run(
        f"{unpack} || exit 2; {given}; {remove}"
        f"if insmod {name}.ko $words {words}; then mv {name}.ko /lib/modules/; exit 0; fi; "
        f"dmesg | tail -n 2 >&2; {before}exit 4"
    )
    match done.status:
        case 0:
            return
        case 2:
            raise CannotReload(f"the guest cannot unpack {name}.ko: {_last(done)}")
        case 3:
            raise CannotReload(f"{name} cannot be unloaded: {_last(done)}; run the guest again with the new one")
        case 4:
            again = "the old one is loaded again" if "before" in done.output.split() else "it is not loaded now"
            again = again if replaced else "nothing was loaded"
            raise CannotReload(f"the guest's kernel refuses {name}.ko: {_last(done)}; {again}")
    raise CannotReload(f"exchanging {name} ended with status {done.status}: {_last(done)}")


def _last(done: Ran) -> str:
    """Return the command's last lines of errors in one, for a message."""
    lines = [one_line(line) for line in (done.errors or done.output).splitlines() if line.strip()]
    return "; ".join(lines[-4:]) or f"status {done.status}"
