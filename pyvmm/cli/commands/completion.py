"""`pyvmm completion`: prints a shell script that completes commands, options, machines and images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem


def kinds_or_file(kinds: Iterable[str], incomplete: str) -> list[CompletionItem]:
    """Complete with those of `kinds` that match, or a file. Bash offers files only if no other candidate is left."""
    return [CompletionItem(incomplete, type="file"), *_beginning(kinds, incomplete)]


def files_by_ending(ending: str, incomplete: str) -> list[CompletionItem]:
    """Complete with the files of suffix `ending` in the folder that `incomplete` names, or with folders."""
    folder = incomplete.rpartition("/")[0] + "/" if "/" in incomplete else ""
    try:
        files = sorted(folder + each.name for each in Path(folder).iterdir() if each.suffix == ending)
    except OSError:
        files = []
    return [CompletionItem(incomplete, type="dir"), *_beginning(files, incomplete)]


def complete_event(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete names of trace events."""
    from pyvmm.launch.trace_events import load_events

    return [event.name for event in load_events() if event.name.startswith(incomplete)]


def _beginning(words: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that makes SHELL complete pyvmm's commands, options, machines and images.

    \b
    bash:  eval "$(pyvmm completion bash)"                  in ~/.bashrc
    zsh:   eval "$(pyvmm completion zsh)"                   in ~/.zshrc
    fish:  pyvmm completion fish > ~/.config/fish/completions/pyvmm.fish
    """
    from click.shell_completion import get_completion_class

    from pyvmm.cli.main import cli

    found = get_completion_class(shell)
    assert found is not None
    made = found(cli, {}, "pyvmm", "_PYVMM_COMPLETE")
    # Not made.source(): for bash it runs bash to check its version, and bash may not be installed.
    script = made.source_template % made.source_vars()
    # click's fish script (8.5) splits at every comma, so a description would be cut at its first one.
    click.echo(script.replace('(string split "," $completion)', '(string split --max 1 "," $completion)'))
