"""A machine's keywords are the options of `pyvmm run`: from the one to the other, and read as a user's are."""

from __future__ import annotations

from typing import Any

from pyvmm.errors import ConfigError

_NOT_OURS = ("print_config", "control_socket", "console", "timeout", "tied")
"""Options of `pyvmm run` that the API has calls for, or needs itself."""


def arguments_for(options: dict[str, object]) -> list[str]:
    """A command line of `pyvmm run` with these options. Raises ConfigError for one that it does not have."""
    import click

    from pyvmm.cli.run import run

    known = {each.name: each for each in run.params if isinstance(each, click.Option)}
    words: list[str] = []
    for name, value in options.items():
        option = known.get(name)
        if option is None or name in _NOT_OURS:
            import difflib

            close = difflib.get_close_matches(name, [each for each in known if each], 1)
            hint = f", did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"no option of a machine is named {name!r}{hint}")
        flag = max(option.opts, key=len)
        if value is None:
            continue
        if isinstance(value, bool):
            if value:
                words.append(flag)
            elif option.secondary_opts:
                words.append(option.secondary_opts[0])
        elif isinstance(value, (list, tuple)):
            words += [word for each in value for word in (flag, str(each))]
        else:
            words += [flag, str(value)]
    return words


def parse(arguments: list[str]) -> dict[str, Any]:
    """What `pyvmm run` reads from this command line. Raises ConfigError."""
    import click

    from pyvmm.cli.run import run

    if any("\0" in word for word in arguments):
        raise ConfigError("a zero byte is in an option of the machine; remove it")
    try:
        with run.make_context("pyvmm run", list(arguments)) as context:
            return context.params
    except click.ClickException as error:
        raise ConfigError(error.format_message().rstrip(".")) from error
