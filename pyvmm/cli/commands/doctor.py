"""`pyvmm doctor`: checks whether this computer can run guests, and suggests fixes."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from pyvmm.address_map import MAP, Place
from pyvmm.cli import output
from pyvmm.launch import exit_status
from pyvmm.sizes import format_size

DISK_WANTED = 1 << 30
"""Free bytes wanted in the cache folder: two kernels, their packages, and a saved emulated host."""

MEMORY_WANTED = 1 << 30
"""Available bytes wanted: a default guest of 512 MiB, in the emulated host if necessary."""


@dataclass(slots=True)
class Finding:
    """The result of one check. If one that is `needed` fails, no guest runs."""

    group: str
    what: str
    ok: bool
    detail: str
    fix: str = ""
    needed: bool = True


@click.command()
@click.option("--fresh", is_flag=True, help="Time the local KVM again instead of using the cached result.")
@click.option("--map", "show_map", is_flag=True, help="Print the machine's address map instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(fresh: bool, show_map: bool, as_json: bool) -> int:
    """Show what this computer can do, and what would make it able to do more.

    \b
    ok  is there     --  is missing     ??  would be nice to have
    Status 0 if guests can run here, on its own KVM or in the emulated host; 1 if not.

    --map: guest physical addresses, I/O ports, interrupt lines and KVM memory slots of every machine.
    """
    if show_map:
        return _print_map(as_json)
    findings = [*_python(), *_kvm(fresh), *_confinement(), *_emulated(), *_images(), *_room()]
    where = _where(findings)
    if as_json:
        output.print_json({"guests": where, "findings": [asdict(each) for each in findings]})
        return 0 if where != "nowhere" else exit_status.ERROR
    group = ""
    for each in findings:
        if each.group != group:
            group = each.group
            output.echo(group, bold=True)
        output.finding("ok" if each.ok else "missing" if each.needed else "note", each.what, each.detail, each.fix)
    output.echo(_VERDICTS[where], bold=True)
    return 0 if where != "nowhere" else exit_status.ERROR


_SPACES = {
    "memory": ("Guest physical memory", "013x", 29),
    "ports": ("I/O ports", "04x", 11),
    "lines": ("Interrupt lines", "d", 8),
    "slots": ("KVM memory slots", "d", 8),
}
"""Title, number format and width of a range of each address space."""


def _print_map(as_json: bool) -> int:
    """Print `pyvmm.address_map` by ascending address; a range inside another is indented below it."""
    if as_json:
        output.print_json({space: [each._asdict() for each in places] for space, places in MAP.items()})
        return 0
    for space, (title, form, width) in _SPACES.items():
        output.echo(title, bold=True)
        around: list[Place] = []
        for each in sorted(MAP[space], key=lambda place: (place.start, -place.size)):
            while around and around[-1].end <= each.start:
                around.pop()
            first, last = f"{each.start:{form}}", f"{each.end - 1:{form}}"
            numbers = first if first == last else f"{first}-{last}"
            output.echo(f"  {numbers:{width}}{'  ' * len(around)}{each.what}")
            around.append(each)
    return 0


_VERDICTS = {
    "local": "Guests run here, on this computer's own KVM.",
    "emulated": "Guests run here, in the emulated host: slower, but otherwise alike.",
    "nowhere": "Guests cannot run here yet: see the lines marked --.",
}


def _where(findings: list[Finding]) -> str:
    """Return where guests would run: local, emulated or nowhere."""
    lacking = {each.group for each in findings if each.needed and not each.ok}
    if "Software" in lacking:
        return "nowhere"
    if "KVM" not in lacking:
        return "local"
    return "emulated" if "Emulated host" not in lacking else "nowhere"


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    enough = sys.version_info >= (3, 11)
    fix = "" if enough else "apt-get install python3.11, and make the environment anew with it"
    yield Finding("Software", "Python", enough, f"{version} at {sys.executable}", fix)
    machine = platform.machine()
    yield Finding(
        "Software", "processor", machine == "x86_64", machine, "" if machine == "x86_64" else "an x86-64 one"
    )


def _kvm(fresh: bool) -> Iterator[Finding]:
    from pyvmm.launch.probe import probe

    found = probe(fresh=fresh)
    for each in found.findings:
        fix = each.fix
        if each.what == "/dev/kvm" and not each.ok and not _virtualization():
            fix = "virtualization in the firmware setup (VT-x, AMD-V), or nested virtualization where this runs"
        yield Finding("KVM", each.what, each.ok, each.detail, fix, each.needed)


def _virtualization() -> bool:
    """Check whether the processor reports VMX or SVM."""
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return "vmx" in words or "svm" in words


def _confinement() -> Iterator[Finding]:
    from pyvmm.sandbox import landlock
    from pyvmm.sandbox.confine import missing

    lacking = dict(missing())
    version = landlock.abi()
    for what, detail in (("Landlock", f"ABI {version}"), ("seccomp", "takes filters")):
        fix = lacking.get(what, "")
        yield Finding("Confinement", what, not fix, "not in this kernel" if fix else detail, fix, needed=False)


def _emulated() -> Iterator[Finding]:
    from pyvmm.errors import HostError
    from pyvmm.host.qemu import find_qemu, has_sandbox, version

    try:
        program = find_qemu()
        yield Finding("Emulated host", "QEMU", True, version(program).removeprefix("QEMU emulator "))
        confined = has_sandbox(program)
        fix = "" if confined else "a QEMU built with seccomp (Debian's is): apt-get install qemu-system-x86"
        detail = "can be used" if confined else "not in this QEMU, or the kernel has no seccomp"
        yield Finding("Emulated host", "QEMU's sandbox", confined, detail, fix, needed=False)
    except HostError as error:
        yield Finding("Emulated host", "QEMU", False, str(error), "apt-get install qemu-system-x86")


def _images() -> Iterator[Finding]:
    for program, purpose in (("apt-get", "fetches kernels"), ("dpkg-deb", "unpacks them")):
        path = shutil.which(program)
        detail = path or f"not found ({purpose})"
        fix = "" if path else "Debian or Ubuntu; elsewhere bring your own kernel with --kernel and --initrd"
        yield Finding("Images", program, path is not None, detail, fix, needed=False)
    from pyvmm.images.catalog import DEFAULT, list_images

    built = [each.name for each in list_images() if each.built]
    fix = "" if DEFAULT in built else f"pyvmm image build {DEFAULT} (`pyvmm run` does it automatically)"
    yield Finding("Images", "guest images", DEFAULT in built, ", ".join(built) or "none built yet", fix, needed=False)


def _room() -> Iterator[Finding]:
    from pyvmm.errors import HostError
    from pyvmm.paths import cache_folder, runtime_folder

    try:
        cache = cache_folder()
    except HostError as error:
        yield Finding("Room", "cache folder", False, str(error))
        return
    there = _first_that_exists(cache)
    writable = os.access(there, os.W_OK | os.X_OK)
    fix = "" if writable else "PYVMM_CACHE set to a folder you can write"
    detail = str(cache) if writable else f"{cache}: no permission to write"
    yield Finding("Room", "cache folder", writable, detail, fix)
    free = shutil.disk_usage(there).free
    fix = "" if free >= DISK_WANTED else f"free {format_size(DISK_WANTED)}, or PYVMM_CACHE set to a folder elsewhere"
    yield Finding("Room", "disk space", free >= DISK_WANTED, f"{format_size(free)} free", fix, needed=False)
    available = _available_memory()
    if available is not None:
        enough = available >= MEMORY_WANTED
        fix = "" if enough else "fewer programs, or smaller guests: pyvmm run -m 128M"
        yield Finding("Room", "memory", enough, f"{format_size(available)} available", fix, needed=False)
    try:
        yield Finding("Room", "runtime folder", True, str(runtime_folder()))
    except HostError as error:
        yield Finding("Room", "runtime folder", False, str(error))


def _first_that_exists(folder: Path) -> Path:
    return next((each for each in (folder, *folder.parents) if each.exists()), Path("/"))


def _available_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)
