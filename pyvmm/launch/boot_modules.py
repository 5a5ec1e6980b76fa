"""`--initrd` of a Multiboot kernel: several files, each with arguments, in QEMU's words.

--initrd 'root.cpio,vars.txt,acpi.dat verbose'        `,,` is a comma in a name or an argument
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from pyvmm.errors import ConfigError
from pyvmm.firmware.multiboot import Module

_SEPARATOR = re.compile(r"(?<!,)((?:,,)*),(?!,)")


def split_list(text: str) -> list[str]:
    """Return the parts of a list separated by commas; a doubled comma does not separate, and stays."""
    return _SEPARATOR.sub(lambda match: match[1] + "\0", text).split("\0")


def read_modules(initrd: Path) -> tuple[Module, ...]:
    """Return the modules that the option's value names. If the whole value is a file's name, that is the only one.

    Raises ConfigError for an empty name.
    A module's string is the file's name and its arguments, as the command line holds the kernel's.
    """
    text = str(initrd)
    if os.path.isfile(initrd):  # False for a value too long to be a path
        return (Module(initrd, initrd.name),)
    modules = []
    for part in split_list(text):
        name, space, arguments = part.replace(",,", ",").partition(" ")
        if not name:
            raise ConfigError(f"--initrd {text!r}: an empty name; modules are FILE[ ARGUMENTS], separated by commas")
        modules.append(Module(Path(name), f"{Path(name).name}{space}{arguments}"))
    return tuple(modules)
