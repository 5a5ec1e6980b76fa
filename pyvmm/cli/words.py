"""A command's arguments as the user gave them, for the emulated host to repeat and the registry to show."""

from __future__ import annotations

import click

_WORDS = "pyvmm.cli.words"


class RepeatableCommand(click.Command):
    """A click command that keeps its arguments as given, so that the emulated host can repeat it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        keep_words(ctx, args)
        return super().parse_args(ctx, args)


def keep_words(ctx: click.Context, args: list[str]) -> None:
    """Keep a command's arguments in its context, before parsing consumes them. Only the first call has an effect."""
    ctx.meta.setdefault(_WORDS, list(args))


def command_words(ctx: click.Context) -> list[str]:
    """Return the name and arguments of a RepeatableCommand: the command line after `pyvmm`."""
    return [ctx.command.name or "run", *ctx.meta[_WORDS]]
