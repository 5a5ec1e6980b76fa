"""A debugger's way to a running machine: its monitor's connection, turned into GDB's remote protocol by `x-gdb`."""

from __future__ import annotations

import base64
import os
import re
import select
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from pyvmm.client.qmp import Client, Refused
from pyvmm.errors import ConfigError, HostError
from pyvmm.gdb_place import Place, show_place
from pyvmm.tcp_socket import TcpListener
from pyvmm.unix_socket import ListeningSocket

_CHUNK: Final = 64 << 10
_ELF: Final = b"\x7fELF"
_UP_FROM_BZIMAGE: Final = 4  # TREE/arch/x86/boot/bzImage
_AGENT_SECONDS: Final = 10

_LIST_SECTIONS: Final = (
    "cd /sys/module && for m in */sections; do for s in $m/.text $m/.data $m/.bss $m/.rodata $m/.init.text "
    "$m/.text.unlikely; do [ -r $s ] && echo ${m%/sections} ${s##*/} $(cat $s); done; done; true"
)
_SECTION: Final = re.compile(r"([A-Za-z0-9_]+) (\.[a-z.]+) (0x[0-9a-f]{1,16})")


def relay(client: Client, reader: int, writer: int) -> None:
    """Connect a debugger on two descriptors to the machine, until one of them ends. Raises HostError.

    Takes over the client's connection.
    """
    client.execute("x-gdb")
    machine, first = client.detach()
    with machine:
        machine.setblocking(True)
        _write(writer, first)
        while True:
            ready, _, _ = select.select([reader, machine.fileno()], [], [])
            try:
                if machine.fileno() in ready:
                    data = machine.recv(_CHUNK)
                    if not data:
                        return
                    _write(writer, data)
                if reader in ready:
                    data = os.read(reader, _CHUNK)
                    if not data:
                        return
                    machine.sendall(data)
            except (BrokenPipeError, ConnectionResetError):
                return


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def serve(place: Place, connect: Callable[[], Client], say: Callable[[str], None]) -> None:
    """Serve debuggers that connect at `place`, one after the other, until the machine ends. Raises ConfigError."""
    listener = ListeningSocket(place, 1) if isinstance(place, Path) else TcpListener(place, 1)
    try:
        say(f"pyvmm: in gdb: target remote {show_place(place)}")
        while True:
            select.select([listener], [], [])
            with suppress(BlockingIOError):
                connection, _ = listener.socket.accept()
                with connection:
                    connection.setblocking(True)
                    try:
                        relay(connect(), connection.fileno(), connection.fileno())
                    except Refused as error:
                        say(f"pyvmm: {error}")
    finally:
        listener.close()


def find_vmlinux(kernel: Path) -> Path | None:
    """Return the ELF file with symbols: the kernel itself, or its build tree's vmlinux; None if neither."""
    for path in (kernel, *(kernel.parents[_UP_FROM_BZIMAGE - 1 : _UP_FROM_BZIMAGE]), kernel.parent):
        file = path / "vmlinux" if path.is_dir() else path
        with suppress(OSError), file.open("rb") as opened:
            if opened.read(4) == _ELF:
                return file
    return None


def find_scripts(vmlinux: Path | None) -> list[Path]:
    """Return what GDB must trust to run the kernel's own scripts beside `vmlinux`. Raises ConfigError if none are."""
    script = vmlinux.with_name(f"{vmlinux.name}-gdb.py") if vmlinux is not None else None
    if script is None or not script.exists():
        where = f"beside {vmlinux}" if vmlinux is not None else "without a vmlinux"
        raise ConfigError(f"--scripts: no vmlinux-gdb.py {where}: build with CONFIG_GDB_SCRIPTS, `make scripts_gdb`")
    return list(dict.fromkeys((script.absolute(), script.resolve())))


def symbol_commands(client: Client, folder: Path) -> list[str]:
    """Return GDB's `add-symbol-file` commands for the modules loaded in the guest whose files are in `folder`.

    Asks the agent, so the guest must run. Raises ConfigError and HostError.
    """
    if not folder.is_dir():
        raise ConfigError(f"--modules {folder}: no such folder")
    if client.execute("query-status")["status"] != "running":
        raise ConfigError("--modules asks the guest for its modules, and the guest does not run: leave it out")
    reply = client.execute("x-execute", {"command": _LIST_SECTIONS, "timeout": _AGENT_SECONDS})
    sections: dict[str, dict[str, str]] = {}
    for line in base64.b64decode(reply["stdout"]).decode("ascii", "replace").splitlines():
        if found := _SECTION.fullmatch(line):
            module, section, address = found.groups()
            sections.setdefault(module, {})[section] = address
    if not sections:
        raise HostError("the guest has no addresses of modules: none is loaded, or no /sys/module/*/sections")
    files = dict(_module_files(folder))
    return [_add_symbol_file(files[module], places) for module, places in sections.items() if module in files]


def _module_files(folder: Path) -> Iterator[tuple[str, Path]]:
    for root, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".ko"):
                yield name.removesuffix(".ko").replace("-", "_"), Path(root, name)


def _add_symbol_file(file: Path, places: dict[str, str]) -> str:
    text = places.get(".text", "0x0")
    more = [f"-s {name} {address}" for name, address in places.items() if name != ".text"]
    return " ".join([f'add-symbol-file "{file}" {text}', *more])
