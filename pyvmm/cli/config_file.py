"""A TOML file in place of long options: `pyvmm run vm.toml`, with everything that `pyvmm run` takes.

    memory = "2G"
    cpus = 2
    image = "debian-6.12"
    trace = ["hv_balloon_*"]
    command = ["uname", "-a"]

Keys are the options' long names, values what the options take. The command line goes before the file; paths in it
count from the file's folder. Whatever options a command declares, its file takes: there is no list of them here.
"""

from __future__ import annotations

import json
import os
import reprlib
import shlex
from pathlib import Path
from typing import Any

import click

from pyvmm.cli.words import RepeatableCommand, keep_words
from pyvmm.errors import ConfigError
from pyvmm.files import FileError, read_file

SIZE_LIMIT = 1 << 20
"""Bytes of a file. Written by hand they have a few hundred."""

DOT_LIMIT = 1000
"""Dots in a line: tomllib takes quadratic time for a key of many."""

FIXED_CONSOLES = ("stdio", "pty", "none")
_ONE_SOURCE = ("kernel", "kdir", "initrd", "image")
"""Options that say together which guest it is: naming one on the command line sets the file's aside."""


class ConfiguredCommand(RepeatableCommand):
    """A command that takes `FILE.toml` as first word or by `--config`, and prints what comes out by `--print-config`.

    Its variable argument must be called `command`, and there must be options `config` and `print_config`.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        keep_words(ctx, args)
        if ctx.resilient_parsing or {"-h", "--help"} & set(_before_dashes(args)):
            return super().parse_args(ctx, args)
        if not any(word.startswith("--config") or word.endswith(".toml") for word in _before_dashes(args)):
            return super().parse_args(ctx, args)  # most are so, and the parser below takes as long as click's own
        given, _, _ = self.make_parser(ctx).parse_args(list(_before_dashes(args)))
        file, words = given.get("config"), given.get("command")  # both may be missing, or click's own "unset"
        if not isinstance(file, str):
            file = None
        if file is None and isinstance(words, tuple) and words and str(words[0]).endswith(".toml"):
            file = str(words[0])
            args.remove(file)
        if file is None:
            return super().parse_args(ctx, args)
        values = load(Path(file), self, ctx)
        if any(name in given for name in _ONE_SOURCE):
            values = {name: value for name, value in values.items() if name not in _ONE_SOURCE}
        command = values.pop("command", ())
        ctx.default_map = values
        rest = super().parse_args(ctx, args)
        ctx.params["command"] = ctx.params["command"] or command
        return rest


def _before_dashes(args: list[str]) -> list[str]:
    """What comes before `--`: the rest is the guest's."""
    return args[: args.index("--")] if "--" in args else args


def keys(command: click.Command) -> dict[str, click.Parameter]:
    """What may stand in a file for `command`, by the names used there."""
    found: dict[str, click.Parameter] = {}
    for param in command.params:
        if isinstance(param, click.Option) and not param.hidden and param.name not in ("config", "print_config"):
            longest = max(param.opts, key=len)
            found[longest.removeprefix("--")] = param
        elif isinstance(param, click.Argument) and param.name == "command":
            found["command"] = param
    return found


def load(file: Path, command: click.Command, ctx: click.Context) -> dict[str, Any]:
    """The values in `file` by the parameters' names, checked. ConfigError is one line that names file and key."""
    import tomllib

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
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is the former, as is a number of 5000 digits
        raise ConfigError(f"{file} is not TOML: {error}") from error
    known = keys(command)
    values: dict[str, Any] = {}
    for key, value in table.items():
        param = known.get(key)
        if param is None:
            from difflib import get_close_matches

            close = get_close_matches(key.replace("_", "-"), known, 1)
            hint = f"did you mean {close[0]!r}?" if close else "`pyvmm run --print-config` shows them all"
            raise ConfigError(f"{file}: {_short(key)} is no option; {hint}")
        assert param.name is not None
        values[param.name] = _value(file, key, value, param, ctx)
    return values


def _value(file: Path, key: str, value: Any, param: click.Parameter, ctx: click.Context) -> Any:
    """`value` as the parameter's own type."""
    if key == "command":
        return _command(file, value)
    wanted = _wanted(param)
    items = value if param.multiple and isinstance(value, list) else [value]
    for item in items:
        if type(item) not in wanted:
            words = " or ".join(_WORDS[each] for each in wanted)
            what = f"a list of them, each {words}" if param.multiple else words
            raise ConfigError(f"{file}: {key} takes {what}, not {_short(item)}")
        _check(file, key, item)
    texts = [item if isinstance(item, bool) else str(item) for item in items]
    if _is_path(key, param, str(value)):
        texts = [str(_from_folder(file, str(text))) for text in texts]
    try:
        return param.type_cast_value(ctx, texts if param.multiple else texts[0])
    except click.BadParameter as error:
        raise ConfigError(f"{file}: {key}: {error.message.rstrip('.')}") from error


def _check(file: Path, key: str, item: Any) -> None:
    """What TOML can say and the command line cannot: a zero byte, and numbers of any length in hexadecimal."""
    if isinstance(item, str) and "\0" in item:
        raise ConfigError(f"{file}: {key} holds a zero byte (\\u0000); remove it")
    if isinstance(item, int) and abs(item) >= 1 << 64:
        raise ConfigError(f"{file}: {key} is a number of more than 64 bits")


_WORDS = {bool: "true or false", str: "a text", int: "a number", float: "a number"}


def _wanted(param: click.Parameter) -> tuple[type, ...]:
    if getattr(param, "is_flag", False):
        return (bool,)
    match param.type:
        case click.FloatRange() | click.types.FloatParamType():
            return (float, int)
        case click.IntRange() | click.types.IntParamType():
            return (int,)
        case _ if param.type.name == "size":
            return (str, int)
    return (str,)


def _command(file: Path, value: Any) -> tuple[str, ...]:
    words = [value] if isinstance(value, str) else value
    if isinstance(words, list) and all(isinstance(word, str) for word in words):
        for word in words:
            _check(file, "command", word)
        return tuple(words)
    raise ConfigError(f"{file}: command takes a text or a list of words, not {_short(value)}")


def _is_path(key: str, param: click.Parameter, value: str) -> bool:
    return isinstance(param.type, click.Path) or (key == "console" and value not in FIXED_CONSOLES)


def _from_folder(file: Path, text: str) -> Path:
    return Path(os.path.abspath(file)).parent / os.path.expanduser(text)  # ~name of nobody stays as it is


def _short(value: Any) -> str:
    text = reprlib.repr(value)  # which goes a few levels deep and no further
    return text if len(text) <= 60 else text[:59] + "…"


def render(command: click.Command, params: dict[str, Any]) -> str:
    """The TOML of what `params` amount to; options that are not set come as comments that explain them."""
    lines = []
    for key, param in keys(command).items():
        assert param.name is not None
        value = params.get(param.name)
        if value is None or value in ((), "") or (value is False and param.default is not True):
            help = " ".join((getattr(param, "help", None) or "What the guest runs.").split())
            lines.append(f"# {key}: {help}")
        else:
            lines.append(f"{key} = {_toml(value, param)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any, param: click.Parameter) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() if param.type.name == "size":
            return _quoted(_size(value))
        case int() | float():
            return repr(value)
        case tuple() | list():
            return "[" + ", ".join(_quoted(str(each)) for each in value) + "]"
        case Path():
            return _quoted(os.path.abspath(value))
    return _quoted(str(value))


def _size(size: int) -> str:
    for shift, unit in ((30, "G"), (20, "M"), (10, "k")):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift}{unit}"
    return f"{size}b"


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's, but that JSON leaves DEL as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def command_line(words: tuple[str, ...]) -> str | None:
    """What the guest's shell runs: one word is a shell command, several are a program and its arguments."""
    if not words:
        return None
    return shlex.join(words) if len(words) > 1 else words[0]
