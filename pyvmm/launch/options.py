"""The options of a guest, each declared once: `pyvmm run`'s options, the API's keywords and a TOML file's keys.

    option(field) -- cli.guest_options --> click's option           `-m 2G`
                  -- read_keywords ------> a keyword of the API     `Machine(memory="2G")`
                  -- config_file.load ---> a key of a file          `memory = "2G"`

All of them make a GuestOptions, of which `build.build_config` makes a MachineConfig.
"""

# ruff: noqa: RUF009  (`option` is a dataclasses.field, as in attrs)

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pyvmm.disks.spec import DiskSpec, parse_disk
from pyvmm.errors import ConfigError
from pyvmm.gdb_place import AUTO, read_place
from pyvmm.net.spec import NetSpec, parse_net
from pyvmm.seconds import LONGEST
from pyvmm.share.spec import Share, parse_share
from pyvmm.sizes import MemorySpec, exact_size, parse_memory, parse_size

if TYPE_CHECKING:
    from pyvmm.machine.config import BalloonVersion, EngineChoice, EntryProtocol
    from pyvmm.machine.panic import Policy
    from pyvmm.sandbox.confine import Mode

MIB = 1 << 20
HELP = "help"
"""The word in place of a list of enlightenments or a fault rule that asks for their names."""

TRACE_FORMATS = ("text", "json", "chrome")
DEBUG_KINDS = ("exits", "mmio", "ports", "msr", "hypercalls")
"""What `--debug` can print."""


def read_number(text: str) -> int:
    """Parse an integer. Raises ConfigError."""
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{text[:40]!r} is not a valid integer") from None


def read_seconds(text: str) -> float:
    """Parse a positive number of seconds. Raises ConfigError."""
    try:
        seconds = float(text)
    except ValueError:
        raise ConfigError(f"{text[:40]!r} is not a valid float") from None
    if not 0 < seconds <= LONGEST:  # also refuses NaN
        raise ConfigError(f"{seconds} is not in the range 0<x<={LONGEST}")
    return seconds


def read_debug(text: str) -> str:
    """Check the kinds of `--debug`, separated by commas, and return `text`. Raises ConfigError."""
    for kind in text.split(","):
        if kind not in DEBUG_KINDS:
            raise ConfigError(f"{kind[:40]!r} is not one of {', '.join(DEBUG_KINDS)}")
    return text


def read_enlightenments(text: str) -> str:
    """Check a list of enlightenments, or the word help; return it as given. Raises ConfigError."""
    if text != HELP:
        from pyvmm.hyperv.enlightenments import parse_words

        parse_words(text)
    return text


def read_device(text: str) -> str:
    """Check the name of a device, or the word help; return it. Raises ConfigError."""
    from pyvmm.machine.devices import DEVICES

    if text != HELP and text not in DEVICES:
        raise ConfigError(f"no device is called {text[:40]!r}: there are {', '.join(DEVICES)}")
    return text


def read_fault(text: str) -> str:
    """Check a fault rule, or the word help; return it as given. Raises ConfigError."""
    from pyvmm.faults.parse import check_text

    return check_text(text)


WHOLE_SYSTEM = "debian-12-root"
"""The image that is a disk (pyvmm.images.debian_root.NAME, which is slow to import)."""


@dataclass(frozen=True, slots=True)
class Option:
    """Metadata of a field of GuestOptions besides type and default: help, parser, choices and names."""

    help: str
    read: Callable[[str], Any] = str
    choices: tuple[str, ...] = ()
    short: str = ""
    metavar: str | None = None
    shown_default: bool = False  # in `--help`
    in_api: bool = True
    bare: str | None = None  # the value of the option without one

    def value(self, given: object) -> Any:
        """Convert a value as the user wrote it to the field's type. Raises ConfigError."""
        text = str(given)
        if "\0" in text:
            raise ConfigError("there is a zero byte in it; remove it")
        if self.choices and text not in self.choices:
            raise ConfigError(f"{text[:40]!r} is not one of {', '.join(map(repr, self.choices))}")
        return self.read(text)


def option(default: Any, help: str, read: Callable[[str], Any] = str, *choices: str, **more: Any) -> Any:
    """Declare a field of GuestOptions that users can set."""
    if choices:
        more["choices"] = choices
    return dataclasses.field(default=default, metadata={"option": Option(help, read, **more)})


@dataclass(slots=True, kw_only=True)
class GuestOptions:
    """The options of a guest, parsed but not yet checked. The fields are in the order of `pyvmm run --help`."""

    kernel: Path | None = option(None, "A bzImage, an ELF vmlinux or a linux-image-*.deb.", Path)
    kdir: Path | None = option(None, "A kernel build tree, in place or O=: its kernel and modules.", Path)
    modules: Path | None = option(None, "The kernel's modules: /lib/modules/RELEASE or its parent.", Path)
    module: tuple[str, ...] = option(
        (), "Load one more module of --kdir or --modules, or a .ko file. Repeatable.", metavar="NAME"
    )
    initrd: Path | None = option(
        None,
        "Another initramfs than pyvmm's, with --kernel or --kdir; `none` for none. A Multiboot kernel takes modules: "
        "FILE[ ARGUMENTS],...",
        Path,
    )
    image: str | None = option(None, "One of our images; `pyvmm image list` shows them.")
    append: str = option(
        "",
        "Additional kernel parameters. A kernel without ACPI or 8250_PNP wants 'console=ttyS0'.",
        metavar="ARGS",
    )
    memory: MemorySpec = option(
        MemorySpec(512 * MIB),
        "RAM at boot; max= is the size to which it may grow. min= or buffer= enable sizing by the guest's demand.",
        parse_memory,
        short="-m",
        shown_default=True,
        metavar="SIZE[,max=SIZE][,min=SIZE][,buffer=N%]",
    )
    hot_add: int | None = option(None, "Memory that may be hot-added: max= minus the boot size.", parse_size)
    mem_backend: str = option(
        "anon",
        "Host memory behind guest RAM: anon, memfd, file=PATH or hugetlb=2M|1G; then ,prealloc=on and ,numa=NODE.",
        shown_default=True,
        metavar="KIND",
    )
    slots: int | None = option(None, "KVM memory slots for hot-added memory, at most.  [default: 64]", read_number)
    balloon_version: BalloonVersion = option(
        "3.0",
        "The newest Dynamic Memory protocol to speak; Linux's log calls these 0.3, 1.0 and 2.0.",
        str,
        *("1.0", "2.0", "3.0"),
        shown_default=True,
    )
    balloon_piece: int = option(
        128 * MIB, "Maximum size of one request to the guest.", parse_size, shown_default=True
    )
    keep_target: bool = option(True, "Apply the balloon's last target again after a reset.", shown_default=True)
    status_report: bool = option(True, "Use the guest's reports of its memory pressure.", shown_default=True)
    page_reporting: bool = option(
        True, "Return the guest's free memory to the host (free page reporting).", shown_default=True
    )
    disk: tuple[DiskSpec, ...] = option(
        (),
        "A disk: a raw image, a block device, or with format= an image of QEMU's. werror=report|stop|enospc: an "
        "error of writing is the guest's, or pauses the machine; by default if there is no space. Repeatable.",
        parse_disk,
        metavar="FILE[,ro][,format=F][,id=ID][,serial=S][,werror=W][,rerror=R]",
    )
    net: tuple[NetSpec, ...] = option(
        (),
        "A network card: user (through passt; hostfwd=tcp::2222-:22 brings the host's port 2222 to the guest's 22), "
        "tap=NAME, or none. Repeatable.",
        parse_net,
        metavar="user|tap=NAME|none[,mac=MAC][,mtu=N][,hostfwd=...]",
    )
    cpus: int = option(1, "Virtual CPUs.", read_number, shown_default=True)
    hyperv: EngineChoice = option(
        "auto",
        "What implements Hyper-V: KVM (kernel) or pyvmm in Python (user).",
        str,
        "auto",
        "kernel",
        "user",
        shown_default=True,
    )
    enlightenments: tuple[str, ...] = option(
        (),
        "Change what of Hyper-V the guest is offered: 'stimer,-crash' adds and removes; 'help' lists the names.",
        read_enlightenments,
        metavar="LIST",
    )
    host: Literal["auto", "local", "emulated"] = option(
        "auto",
        "Run on this machine's KVM, or in a Linux with KVM that QEMU emulates.",
        str,
        *("auto", "local", "emulated"),
        shown_default=True,
    )
    entry: EntryProtocol = option("auto", "How the kernel is entered.", str, "auto", "64", "pvh", shown_default=True)
    max_vmbus: str = option(
        "5.3",
        "The newest VMBus protocol to speak.",
        str,
        *("2.4", "3.0", "4.0", "4.1", "5.0", "5.1", "5.2", "5.3", "6.0"),
        shown_default=True,
    )
    device: tuple[str, ...] = option(
        (),
        "Add a device to the VMBus besides the usual ones; 'help' lists them. Repeatable.",
        read_device,
        metavar="NAME",
    )
    console: str | None = option(None, "Where the guest's console goes.", metavar="stdio|FILE|pty|none", in_api=False)
    name: str | None = option(None, "The machine's name, for `pyvmm status`, `balloon`, `stop` and the others.")
    qmp: Path | None = option(None, "Serve QMP on this Unix socket too.", Path)
    gdb: str | None = option(
        None,
        "Let GDB connect there, or at a Unix socket beside the monitor's. `pyvmm gdb` needs no such place.",
        read_place,
        metavar="[HOST:PORT|PATH]",
        bare=AUTO,
    )
    vsock: Path | None = option(
        None,
        "Connect programs at Unix sockets to AF_VSOCK in the guest: on PATH, 'CONNECT port' reaches a port of the "
        "guest; at PATH_port a program serves the guest's connections to the host.",
        Path,
    )
    share: tuple[Share, ...] = option(
        (),
        "A folder of this computer in the guest, by default at its own path; ro: the guest only reads. COMMAND "
        "starts in it if pyvmm does. Repeatable.",
        parse_share,
        metavar="DIR[:PATH][,ro]",
    )
    paused: bool = option(
        False, "Wait before the first instruction, for GDB or the monitor's `cont`.", short="-S", in_api=False
    )
    trace: tuple[str, ...] = option((), "Show trace events, e.g. 'vmbus_*'. Repeatable.", metavar="PATTERN")
    trace_file: Path | None = option(None, "Write the trace to a file: JSON lines.", Path)
    trace_format: str | None = option(
        None,
        "Format; default by the file's suffix: .txt text, .json chrome (for Perfetto), else JSON lines.",
        str,
        *TRACE_FORMATS,
    )
    debug: tuple[str, ...] = option(
        (),
        "Print what the guest does and nothing handles, and a table of it at the end: ports, mmio, msr, hypercalls; "
        "exits: every exit. Repeatable.",
        read_debug,
        metavar="KIND[,KIND...]",
    )
    fault: tuple[str, ...] = option(
        (),
        "Break a rule between host and guest: 'torndown-withheld', or 'message.out:drop,type=OPEN_RESULT'; 'help' "
        "lists faults, points and actions. Repeatable.",
        read_fault,
        metavar="RULE",
    )
    cover: tuple[str, ...] = option(
        (),
        "Watch which code of this module of the guest runs, from its first instruction on, for `pyvmm cover report`. "
        "Needs `pip install 'pyvmm[cover]'`. Repeatable.",
        metavar="MODULE",
    )
    fault_file: Path | None = option(None, "Read fault rules from a TOML file.", Path)
    timeout: float | None = option(None, "End with status 124 after SECONDS.", read_seconds, in_api=False)
    sandbox: Mode = option(
        "on",
        "Confine pyvmm by Landlock, seccomp and capabilities: as far as this kernel can, not at all, or completely.",
        str,
        *("on", "off", "require"),
        shown_default=True,
    )
    test_devices: bool = option(
        False, "Devices for test programs such as kvm-unit-tests; a write to port 0xf4 ends the machine."
    )
    no_reboot: bool = option(False, "End when the guest resets.")
    on_panic: Policy = option(
        "auto",
        "When the guest panics: end the machine, keep it, or end it unless it goes on to a crash kernel (kdump).",
        str,
        *("auto", "stop", "keep"),
        shown_default=True,
    )
    command: tuple[str, ...] = ()  # run in the guest; an argument, not an option

    @property
    def on_terminal(self) -> bool:
        """Return whether the guest's console is standard input and output."""
        return self.console in (None, "stdio") and not self.command

    @property
    def boots_a_disk(self) -> bool:
        """Return whether our init goes on to the system of a disk."""
        return self.image == WHOLE_SYSTEM or any(word.startswith("root=/dev/") for word in self.append.split())

    def words(self) -> list[str]:
        """Return the equivalent arguments of `pyvmm run`, without the name."""
        words: list[str] = []
        for name, each in OPTIONS.items():
            value = getattr(self, name)
            if name == "name" or value == each.default:
                continue
            if isinstance(value, bool):
                words.append(flag(name) if value else f"--no-{flag(name)[2:]}")
            else:
                for item in value if isinstance(value, tuple) else (value,):
                    words.append(f"{flag(name)}={text_of(item, details(each))}")
        return [*words, "--", *self.command] if self.command else words


Field = dataclasses.Field[Any]
OPTIONS: dict[str, Field] = {each.name: each for each in dataclasses.fields(GuestOptions) if each.metadata}
"""The fields of GuestOptions that are options, by name."""

ONE_SOURCE = ("kernel", "kdir", "modules", "module", "initrd", "image")
"""Options that together select the guest: if one is given, those of a file are ignored."""


def details(field: Field) -> Option:
    """Return the Option metadata of a field."""
    found: Option = field.metadata["option"]
    return found


def flag(name: str) -> str:
    """Return the option's long name: --balloon-piece for balloon_piece."""
    return "--" + name.replace("_", "-")


def text_of(value: object, option: Option) -> str:
    """Format a value as a user would write it."""
    if isinstance(value, int) and option.read is parse_size:
        return exact_size(value)
    return str(value)


def read_keywords(given: Mapping[str, object], more: Mapping[str, Any]) -> GuestOptions:
    """Return GuestOptions from keywords of the API. None counts as not given; a number for `memory` is in bytes.

    `more` are values parsed from a file, for options without a keyword. Raises ConfigError.
    """
    known = {name: each for name, each in OPTIONS.items() if details(each).in_api}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            import difflib

            close = difflib.get_close_matches(name, [*known, "config"], 1)
            hint = f", did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"no option of a machine is named {name!r}{hint}")
        if value is not None:
            values[name] = _read_keyword(known[name], value)
    aside = ONE_SOURCE if any(name in values for name in ONE_SOURCE) else ()
    return GuestOptions(**{name: value for name, value in more.items() if name not in aside} | values)


def _read_keyword(field: Field, value: object) -> Any:
    about = details(field)
    try:
        if isinstance(field.default, bool):
            if not isinstance(value, bool):
                raise ConfigError(f"{str(value)[:40]!r} is neither True nor False")
            return value
        if isinstance(field.default, tuple):
            items = value if isinstance(value, (list, tuple)) else (value,)
            return tuple(about.value(item) for item in items)
        if isinstance(value, int) and about.read is parse_memory:  # else 512 would be MiB
            value = f"{value}b"
        return about.value(value)
    except ConfigError as error:
        raise ConfigError(f"{field.name}: {error}") from error
