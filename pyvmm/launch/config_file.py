"""TOML files with the options of a guest: `pyvmm run vm.toml`.

    memory = "2G"
    cpus = 2
    image = "debian-6.12"
    trace = ["hv_balloon_*"]
    command = ["uname", "-a"]

Keys are the options' long names, values those of the options. The command line takes precedence over the file; paths
in the file are relative to its folder. All options of GuestOptions are accepted: there is no list of options here.
"""

from __future__ import annotations

import json
import os
import reprlib
import shlex
from pathlib import Path
from typing import Any

from pyvmm.disks.spec import DiskSpec, parse_disk
from pyvmm.errors import ConfigError
from pyvmm.files import FileError, read_file
from pyvmm.launch.options import (
    OPTIONS,
    Field,
    GuestOptions,
    Option,
    details,
    flag,
    read_number,
    read_seconds,
    text_of,
)
from pyvmm.sizes import parse_memory, parse_size

SIZE_LIMIT = 1 << 20
"""Maximum size of a file, in bytes. One written by hand has a few hundred."""

DOT_LIMIT = 1000
"""Maximum number of dots in a line: tomllib needs quadratic time for a dotted key."""

FIXED_CONSOLES = ("stdio", "pty", "none")


def keys() -> list[str]:
    """Return the keys that a file may have, in the order of `pyvmm run --help`."""
    return [*map(_key, OPTIONS), "command"]


def _key(name: str) -> str:
    return flag(name)[2:]


def load(file: Path) -> dict[str, Any]:
    """Read `file` and return its checked values by field of GuestOptions. A ConfigError names file and key."""
    import tomllib

    if "\0" in str(file):
        raise ConfigError("a zero byte is in the name of the configuration file; remove it")

    try:
        data = read_file(file, SIZE_LIMIT)
    except FileError as error:
        large = str(error).startswith(f"{file} is larger")
        raise ConfigError(str(error) if large else f"configuration {error}") from error
    try:
        text = data.decode()
        if any(line.count(".") > DOT_LIMIT for line in text.splitlines()):
            raise ConfigError(f"{file} is no configuration: a line has more than {DOT_LIMIT} dots")
        table = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8: a TOML file has to be") from error
    except (ValueError, RecursionError) as error:  # ValueError: TOMLDecodeError, or a number of 5000 digits
        raise ConfigError(f"{file} is not TOML: {error}") from error
    known = keys()
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            from difflib import get_close_matches

            close = get_close_matches(key.replace("_", "-"), known, 1)
            hint = f"did you mean {close[0]!r}?" if close else "`pyvmm run --print-config` shows them all"
            raise ConfigError(f"{file}: {_short(key)} is no option; {hint}")
        name = key.replace("-", "_")
        values[name] = _command(file, value) if key == "command" else _value(file, key, value, OPTIONS[name])
    return values


def _value(file: Path, key: str, value: Any, field: Field) -> Any:
    """Convert `value` to the field's type. Raises ConfigError."""
    option, multiple = details(field), isinstance(field.default, tuple)
    wanted = _wanted(field, option)
    items = value if multiple and isinstance(value, list) else [value]
    for item in items:
        if type(item) not in wanted:
            words = " or ".join(_WORDS[each] for each in wanted)
            what = f"a list of them, each {words}" if multiple else words
            raise ConfigError(f"{file}: {key} takes {what}, not {_short(item)}")
        _check(file, key, item)
    if wanted == (bool,):
        return value
    if option.read is Path or (key == "console" and value not in FIXED_CONSOLES):
        items = [_initrd(file, item) if key == "initrd" else str(_from_folder(file, str(item))) for item in items]
    if key == "share":
        items = [str(_from_folder(file, item)) if not item.startswith(("/", "~")) else item for item in items]
    try:
        if option.read is parse_disk:
            items = [_disk(file, item) for item in items]
        read = [option.value(item) for item in items]
    except ConfigError as error:
        raise ConfigError(f"{file}: {key}: {error}") from error
    return tuple(read) if multiple else read[0]


def _check(file: Path, key: str, item: Any) -> None:
    """Refuse values that only TOML can express: a zero byte, and hexadecimal numbers of any length."""
    if isinstance(item, str) and "\0" in item:
        raise ConfigError(f"{file}: {key} holds a zero byte (\\u0000); remove it")
    if isinstance(item, int) and abs(item) >= 1 << 64:
        raise ConfigError(f"{file}: {key} is a number of more than 64 bits")


_WORDS = {bool: "true or false", str: "a text", int: "a number", float: "a number"}


def _wanted(field: Field, option: Option) -> tuple[type, ...]:
    if isinstance(field.default, bool):
        return (bool,)
    if option.read is read_seconds:
        return (float, int)
    if option.read is read_number:
        return (int,)
    return (str, int) if option.read in (parse_size, parse_memory) else (str,)


def _command(file: Path, value: Any) -> tuple[str, ...]:
    words = [value] if isinstance(value, str) else value
    if isinstance(words, list) and all(isinstance(word, str) for word in words):
        for word in words:
            _check(file, "command", word)
        return tuple(words)
    raise ConfigError(f"{file}: command takes a text or a list of words, not {_short(value)}")


def _initrd(file: Path, text: str) -> str:
    """Return `initrd` with each of its files from the configuration's folder: a Multiboot kernel may have several."""
    from pyvmm.launch.boot_modules import split_list

    parts = split_list(text)
    if len(parts) == 1 or not all(parts):
        return str(_from_folder(file, text))
    folder = str(_from_folder(file, ".")).replace(",", ",,")
    return ",".join(os.path.join(folder, os.path.expanduser(part)) for part in parts)


def _disk(file: Path, text: str) -> str:
    """Return the value of `disk` with its file from the configuration's folder. Raises ConfigError."""
    spec = parse_disk(text)
    return str(spec.at(str(_from_folder(file, spec.path))))


def _from_folder(file: Path, text: str) -> Path:
    return Path(os.path.abspath(file)).parent / os.path.expanduser(text)  # an unknown ~name is left unchanged


def _short(value: Any) -> str:
    text = reprlib.repr(value)  # limits the depth
    return text if len(text) <= 60 else text[:59] + "…"


def render(options: GuestOptions) -> str:
    """Return `options` as TOML; options that are not set appear as comments with their help."""
    lines = []
    for name, field in OPTIONS.items():
        value, option = getattr(options, name), details(field)
        if value is None or value in ((), "") or (value is False and field.default is False):
            lines.append(f"# {_key(name)}: {' '.join(option.help.split())}")
        else:
            lines.append(f"{_key(name)} = {_toml(value, option)}")
    lines.append(f"command = {_toml(options.command)}" if options.command else "# command: What the guest runs.")
    return "\n".join(lines) + "\n"


def _toml(value: Any, option: Option | None = None) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float() if option is None or option.read is not parse_size:
            return repr(value)
        case tuple():
            return "[" + ", ".join(_quoted(_item(each)) for each in value) + "]"
        case Path():
            return _quoted(os.path.abspath(value))
    return _quoted(str(value) if option is None else text_of(value, option))


def _item(value: object) -> str:
    return str(value.at(os.path.abspath(value.path)) if isinstance(value, DiskSpec) else value)


def _quoted(text: str) -> str:
    """Return a TOML basic string: a JSON string, with DEL escaped as well."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def command_line(words: tuple[str, ...]) -> str | None:
    """Return the guest's shell command: one word is used as it is, several are a program and its arguments."""
    if not words:
        return None
    return shlex.join(words) if len(words) > 1 else words[0]
