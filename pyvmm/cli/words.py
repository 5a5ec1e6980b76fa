"""The words of a command as the user gave them: what the emulated host runs again, and the registry shows."""

from __future__ import annotations

import click

_WORDS = "pyvmm.cli.words"


class RepeatableCommand(click.Command):
    """A command that keeps its arguments as they were given, so that the emulated host can run the same."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        keep_words(ctx, args)
        return super().parse_args(ctx, args)


def keep_words(ctx: click.Context, args: list[str]) -> None:
    """Keep a command's arguments in its context, before parsing takes some away. The first call counts."""
    ctx.meta.setdefault(_WORDS, list(args))


def command_words(ctx: click.Context) -> list[str]:
    """The name and arguments of a RepeatableCommand: what comes after `pyvmm`."""
    return [ctx.command.name or "run", *ctx.meta[_WORDS]]
