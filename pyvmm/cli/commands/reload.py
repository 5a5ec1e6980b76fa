"""`pyvmm reload`: exchanges a kernel module in a running guest."""

from __future__ import annotations

import time
from base64 import b64decode
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from pyvmm.cli.commands.completion import files_by_ending
from pyvmm.cli.output import echo, print_json
from pyvmm.cli.target import complete_machine, connect, find, machine_options
from pyvmm.launch.where import print_message

if TYPE_CHECKING:
    from pyvmm.client.qmp import Client
    from pyvmm.launch.reload import Run


def complete_words(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a machine's name as the first word, and a module's file as the first or second."""
    words = ctx.params.get("words") or ()
    if any(str(word).endswith(".ko") for word in words):
        return []
    names = [] if words else complete_machine(ctx, param, incomplete)
    return [*map(CompletionItem, names), *files_by_ending(".ko", incomplete)]


@click.command()
@click.argument("words", nargs=-1, metavar="[NAME] MODULE.ko [PARAMETER=VALUE]...", shell_complete=complete_words)
@machine_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def reload(words: tuple[str, ...], name: str | None, socket: Path | None, as_json: bool) -> int:
    """Exchange a kernel module in a running guest: unload it, load MODULE.ko in its place.

    The file may be packed (.xz, .zst, .gz) and hold debugging information. A module that is not loaded is loaded.
    PARAMETERs are added to those on the guest's kernel command line. The guest needs pyvmm's agent: it is one of
    our images, or runs by --kdir, or by --kernel without --initrd.

    A driver without module_exit(), hv_balloon for one, cannot be unloaded, nor can one that others use: run the
    guest again then. That takes seconds.

    \b
    pyvmm reload linux/drivers/hv/hv_utils.ko
    pyvmm reload web linux/drivers/net/hyperv/hv_netvsc.ko ring_size=64

    \b
    Status 1 if the guest cannot exchange it; the old module stays then, or is loaded again.
    """
    at = next((number for number, word in enumerate(words) if ".ko" in word), None)
    if at is None or at > 1:
        raise click.UsageError("name the module's file: MODULE.ko")
    from pyvmm.launch.reload import read_new_module
    from pyvmm.launch.reload import reload as exchange

    new = read_new_module(Path(words[at]))  # an error of the file comes before those of the machine
    entry = find(words[0] if at else None, name, socket)
    begin = time.monotonic()
    with connect(entry) as client:
        done = exchange(new, _runner(client), parameters=words[at + 1 :], progress=print_message)
    seconds = time.monotonic() - begin
    if as_json:
        print_json(
            {"name": entry.name, "module": done.module, "replaced": done.replaced, "seconds": round(seconds, 3)}
        )
    else:
        how = "exchanged" if done.replaced else "loaded; it was not loaded before"
        echo(f"{entry.name}: {done.module} {how} ({seconds:.1f} s)")
    return 0


def _runner(client: Client) -> Run:
    from pyvmm.launch.reload import STEP_SECONDS, Ran

    def run(command: str) -> Ran:
        client.timeout = STEP_SECONDS + 15.0
        reply = client.execute("x-execute", {"command": command, "timeout": STEP_SECONDS})
        out, err = (b64decode(reply[key]).decode("utf-8", "replace") for key in ("stdout", "stderr"))
        return Ran(reply["status"], out, err)

    return run
