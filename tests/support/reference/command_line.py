"""The command line's page: what each command's help says, in Markdown."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from pyvmm.cli.main import cli


def command_line() -> Iterator[str]:
    """Yield the page's lines: one section for each command, with those of its subcommands."""
    yield "`pyvmm COMMAND --help` says the same."
    yield ""
    for name in cli.list_commands(click.Context(cli)):
        yield from _command(cli, name, "pyvmm")


def _command(group: click.Group, name: str, before: str) -> Iterator[str]:
    context = click.Context(group, info_name=before)
    command = group.get_command(context, name)
    if command is None or command.hidden:
        return
    full = f"{before} {name}"
    yield f"{'##' if before == 'pyvmm' else '###'} {full}"
    yield ""
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    words = [full, *(each.metavar or (each.name or "").upper() for each in arguments)]
    yield f"`{' '.join(words)}`"
    yield ""
    yield from _text(command.help or "")
    options = [each for each in command.params if isinstance(each, click.Option) and not each.hidden]
    if options:
        yield "| option | |"
        yield "|---|---|"
        for each in options:
            yield f"| {_names(each)} | {_cell(each.help or '')} |"
        yield ""
    if isinstance(command, click.Group):
        for sub in command.list_commands(context):
            yield from _command(command, sub, full)


def _names(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    if option.is_flag or option.count:
        return names
    choices = getattr(option.type, "choices", None)
    value = option.metavar or ("\\|".join(map(str, choices)) if choices else option.type.name.upper())
    return f"{names} {_cell(value)}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "\\|").replace("\\\\|", "\\|")


def _text(text: str) -> Iterator[str]:
    """Yield a help text: paragraphs, and those after a \\b as they stand."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if "\b" in paragraph:
            yield "```text"
            yield from (line.rstrip() for line in paragraph.replace("\b", "").strip("\n").splitlines())
            yield "```"
        else:
            yield " ".join(paragraph.split()).replace("<", "&lt;")
        yield ""
