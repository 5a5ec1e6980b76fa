"""Coverage of a machine in another process, by its monitor: what `pyvmm cover` does."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pyvmm.client.qmp import Client
from pyvmm.cover.guest import Layout, parse_sections, sections_command
from pyvmm.cover.program import Program
from pyvmm.cover.record import Record, Seen
from pyvmm.cover.store import Progress, find_program
from pyvmm.cover_sites import pack_sites, parse_hits
from pyvmm.errors import ConfigError

_AGENT_SECONDS: Final = 30


def start(client: Client, names: Sequence[str], folder: Path | None, progress: Progress) -> list[dict[str, Any]]:
    """Place breakpoints in the blocks of these modules; return the monitor's answers. Raises ConfigError."""
    kernel = Path(client.execute("x-status")["kernel"])
    programs = [find_program(name, kernel, folder, progress) for name in names]
    if client.execute("query-status")["status"] != "running":
        raise ConfigError("the guest is asked where its modules are, and it does not run: resume it first")
    progress("asking the guest where its modules are")
    answer = client.execute("x-execute", {"command": sections_command(programs), "timeout": _AGENT_SECONDS})
    found = parse_sections(base64.b64decode(answer["stdout"]).decode("ascii", "replace"))
    layouts = [Layout.of(program, found) for program in programs]
    return [_start(client, layout) for layout in layouts]


def _start(client: Client, layout: Layout) -> dict[str, Any]:
    base, sites = pack_sites(layout.sites(), layout.exits())
    program = layout.program
    arguments = {"module": program.name, "build-id": program.build_id, "base": base, "sites": sites}
    answer: dict[str, Any] = client.execute("x-cover-start", arguments)
    return answer


def seen(answer: dict[str, Any], release: str) -> Seen:
    """Return what the monitor tells of one module."""
    blocks, placed, hits = parse_hits(answer["hits"])
    return Seen(answer["module"], answer["build-id"], release, blocks, placed, hits)


def record(client: Client, answers: Sequence[dict[str, Any]] | None = None) -> Record:
    """Return what was seen so far; or what `answers`, of x-cover-stop, tell."""
    status = client.execute("x-status")
    found = Record()
    for each in client.execute("x-query-cover") if answers is None else answers:
        found.add(seen(each, status["agent"]["release"]))
    return found


def program_of(each: Seen, kernel: Path | None, folder: Path | None, progress: Progress) -> Program:
    """Return the blocks of a module that was seen: from the cache, or from its file. Raises ConfigError."""
    from pyvmm.cover.store import cached

    program = cached(each.build_id)
    if program is None:
        if kernel is None and folder is None:
            raise ConfigError(
                f"the blocks of {each.module} are not in the cache any more: name its folder by --modules"
            )
        program = find_program(each.module, kernel or Path(), folder, progress)
        if program.build_id != each.build_id:
            raise ConfigError(
                f"the file of {each.module} is another build than the one that ran: name it by --modules"
            )
    if len(program.blocks) != each.blocks:
        raise ConfigError(f"{each.module} was analysed by another version of pyvmm: run it again")
    return program
