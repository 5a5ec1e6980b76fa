"""`pyvmm completion`: the script a shell needs to complete our words, names of machines and images included."""

from __future__ import annotations

import click


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
    # Not made.source(): for bash it starts a bash to look at its version, which this computer need not have.
    click.echo(made.source_template % made.source_vars())
