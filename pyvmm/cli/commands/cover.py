"""`pyvmm cover`: code coverage of a running guest's kernel modules, by its monitor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyvmm.cli.output import echo, print_json, progress
from pyvmm.cli.target import complete_machine, connect, find, machine_options
from pyvmm.errors import ConfigError

if TYPE_CHECKING:
    from pyvmm.cover.figures import Figures
    from pyvmm.cover.lines import Lines
    from pyvmm.cover.record import Record

MODULES = ("hv_balloon", "hv_vmbus", "hv_utils")
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)


class _CoverGroup(click.Group):
    """A click group whose default subcommand is `on`: `pyvmm cover web hv_balloon`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["on", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[click.shell_completion.CompletionItem]:
        from click.shell_completion import CompletionItem

        machines = [CompletionItem(name) for name in complete_machine(ctx, click.Argument(["vm"]), incomplete)]
        return super().shell_complete(ctx, incomplete) + machines


def complete_module(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the names of Hyper-V's modules."""
    given = ctx.params.get(param.name or "") or ()
    return [name for name in MODULES if name.startswith(incomplete) and name not in given]


def complete_first(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete a machine's name, or a module's if only one machine runs."""
    return complete_machine(ctx, param, incomplete) + complete_module(ctx, param, incomplete)


@click.group(cls=_CoverGroup, subcommand_metavar="[on] [VM] MODULE... | COMMAND ...")
def cover() -> None:
    """Find out which code of the guest's kernel modules runs: block by block, on a stock kernel.

    Each block gets a breakpoint that is taken out when it is hit for the first time: once all is seen, it costs
    nothing. The guest needs no rebuilt kernel. Modules of Debian's images are found by name; --modules names the
    folder of others.

    \b
    pyvmm cover web hv_balloon hv_vmbus          begin
    pyvmm balloon web 256M; pyvmm balloon web 512M
    pyvmm cover report web                       what ran so far, by function
    pyvmm cover report web --missed              which blocks did not, and how one gets there
    pyvmm cover report web --html cover.html     a page with the coloured disassembly
    pyvmm cover off web --save run1.json         end, and keep what was seen
    pyvmm cover report run1.json run2.json       several runs together

    Reading modules needs `pip install 'pyvmm[cover]'`. docs/coverage.md has what cannot be seen, and why.
    """


@cover.command()
@click.argument("given", required=False, metavar="[VM]", shell_complete=complete_first)
@click.argument("modules", nargs=-1, metavar="MODULE...", shell_complete=complete_module)
@machine_options
@click.option("--modules", "folder", type=FOLDER, help="The folder with the modules' files; a build tree is one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def on(
    given: str | None,
    modules: tuple[str, ...],
    name: str | None,
    socket: Path | None,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Watch modules of a running guest: names, or paths of their files. Seen before is forgotten.

    \b
    pyvmm cover on web hv_balloon
    pyvmm cover on hv_balloon hv_vmbus hv_utils       the only machine
    pyvmm cover on web ~/linux/drivers/hv/hv_balloon.ko
    """
    from pyvmm.cover.remote import start

    if given is not None and (name is not None or socket is not None or _is_module(given, alone=not modules)):
        given, modules = None, (str(given), *modules)
    if not modules:
        raise click.UsageError("name the modules: `pyvmm cover on hv_balloon`")
    with connect(find(given, name, socket)) as client:
        answers = start(client, modules, folder, progress)
    figures = [_placed(each) for each in answers]
    if as_json:
        print_json(figures)
        return
    for each in figures:
        echo(f"{each['module']}: breakpoints in {each['placed']} of {each['blocks']} blocks")


def _is_module(word: str, *, alone: bool) -> bool:
    """Return whether the first word is a module, not a machine: no machine has that name."""
    from pyvmm.client.registry import running

    names = [each.name for each in running()]
    return word not in names and (alone or word in MODULES or word.endswith(".ko") or "/" in word)


def _placed(answer: dict[str, Any]) -> dict[str, Any]:
    from pyvmm.cover_sites import parse_hits

    blocks, placed, _ = parse_hits(answer["hits"])
    return {"module": answer["module"], "build-id": answer["build-id"], "placed": len(placed), "blocks": blocks}


def report_options(command: Any) -> Any:
    """Add the options of a report."""
    for option in reversed(
        (
            click.option("--missed", is_flag=True, help="List the blocks that did not run, too."),
            click.option(
                "--function", metavar="NAME", default="", help="Show one function's blocks and instructions."
            ),
            click.option("--tracing", is_flag=True, help="Count the tracepoints' own functions, too."),
            click.option("--html", type=FILE, help="Write a page with the coloured disassembly."),
            click.option("--lcov", type=FILE, help="Write lcov's tracefile: modules with debug information."),
            click.option("--drcov", type=FILE, help="Write drcov's file, for Lighthouse and others."),
            click.option("--save", type=FILE, help="Keep what was seen, for a later report."),
            click.option("--rules", type=FILE, help="Leave out blocks that cannot run, as this TOML file says."),
            click.option(
                "--least",
                metavar="GOALS",
                default="",
                help="End with status 1 if less of the reachable blocks ran: hv_balloon=90,hv_vmbus=60 (percent).",
            ),
            click.option("--modules", "folder", type=FOLDER, help="The folder with the modules' files."),
            click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        )
    ):
        command = option(command)
    return command


@cover.command()
@click.argument("words", nargs=-1, metavar="[VM | FILE...]", shell_complete=complete_machine)
@machine_options
@report_options
def report(words: tuple[str, ...], name: str | None, socket: Path | None, **options: Any) -> None:
    """Show what ran: of a running guest, or of files that --save wrote, together.

    \b
    pyvmm cover report web --missed
    pyvmm cover report run1.json run2.json --html all.html
    pyvmm cover report web --lcov cover.info --modules ~/linux && genhtml cover.info -o html
    """
    from pyvmm.cover.record import merged, read_record
    from pyvmm.cover.remote import record

    files = [Path(word) for word in words if word.endswith(".json") or "/" in word]
    if files and (len(files) < len(words) or name is not None or socket is not None):
        raise click.UsageError("either a machine, or files that --save wrote")
    if files:
        _report(merged(map(read_record, files)), None, **options)
        return
    if len(words) > 1:
        raise click.UsageError("one machine, or files that --save wrote (FILE.json)")
    with connect(find(words[0] if words else None, name, socket)) as client:
        kernel = Path(client.execute("x-status")["kernel"])
        answers = client.execute("x-query-cover")
        found = record(client, answers)
    if not found.modules:
        raise ConfigError("coverage is not on: `pyvmm cover on hv_balloon` begins it")
    _note_states(answers)
    _report(found, kernel, **options)


@cover.command()
@click.argument("given", required=False, metavar="[VM]", shell_complete=complete_machine)
@click.argument("modules", nargs=-1, metavar="[MODULE]...", shell_complete=complete_module)
@machine_options
@report_options
def off(given: str | None, modules: tuple[str, ...], name: str | None, socket: Path | None, **options: Any) -> None:
    """Take out the breakpoints, of all modules or of some, and show what ran.

    \b
    pyvmm cover off web --save run1.json
    """
    from pyvmm.cover.remote import record

    if given is not None and (name is not None or socket is not None or _is_module(given, alone=False)):
        given, modules = None, (str(given), *modules)
    with connect(find(given, name, socket)) as client:
        kernel = Path(client.execute("x-status")["kernel"])
        answers: list[dict[str, Any]] = []
        for module in modules or (None,):
            answers += client.execute("x-cover-stop", {} if module is None else {"module": module})
        found = record(client, answers)
    if not found.modules:
        raise ConfigError("coverage is not on")
    _note_states(answers)
    _report(found, kernel, **options)


def _note_states(answers: Sequence[dict[str, Any]]) -> None:
    why = {"unloaded": "the guest has unloaded it", "gone": "the guest has another kernel now, or was reset",
           "suspended": "the guest's kernel has left the VMBus"}  # fmt: skip
    for each in answers:
        if each["state"] in why:
            echo(f"pyvmm: {each['module']} is watched no more: {why[each['state']]}", err=True)


def _report(
    found: Record,
    kernel: Path | None,
    *,
    missed: bool,
    function: str,
    tracing: bool,
    html: Path | None,
    lcov: Path | None,
    drcov: Path | None,
    save: Path | None,
    rules: Path | None,
    least: str,
    folder: Path | None,
    as_json: bool,
) -> None:
    from pyvmm.cover.figures import Figures
    from pyvmm.cover.goals import missed_goals, parse_goals
    from pyvmm.cover.remote import program_of
    from pyvmm.cover.rules import read_rules

    known = None if rules is None else read_rules(rules)
    goals = parse_goals(least)

    if save is not None:
        _write(save, found.to_json().encode())
    figures = [
        Figures(program_of(each, kernel, folder, progress), each, glue=tracing, rules=known)
        for each in found.modules.values()
    ]
    if function and not any(each.name == function for one in figures for each in one.functions):
        raise ConfigError(f"no function {function} in {', '.join(one.program.name for one in figures)}")
    _export(figures, kernel, folder, html, lcov, drcov)
    if as_json:
        print_json([_json(each, missed) for each in figures])
    else:
        _show(figures, missed, function)
    if wrong := missed_goals(goals, figures):
        for text in wrong:
            echo(f"pyvmm: too little coverage: {text}", err=True)
        raise click.exceptions.Exit(1)


def _export(
    figures: list[Figures],
    kernel: Path | None,
    folder: Path | None,
    html: Path | None,
    lcov: Path | None,
    drcov: Path | None,
) -> None:
    from pyvmm.cover import export
    from pyvmm.cover.page import page

    if html is not None or lcov is not None:
        with_lines = [(each, _lines(each, kernel, folder)) for each in figures]
        if html is not None:
            names = ", ".join(each.program.name for each in figures)
            _write(html, page(f"Coverage of {names}", with_lines).encode())
        if lcov is not None:
            _write(lcov, export.lcov(with_lines).encode())
    if drcov is not None:
        _write(drcov, export.drcov(figures, "pyvmm"))


def _lines(figures: Figures, kernel: Path | None, folder: Path | None) -> Lines:
    from pyvmm.cover.lines import NO_LINES, read_lines
    from pyvmm.cover.store import find_module

    try:
        path = find_module(figures.program.name, kernel or Path(), folder)
    except ConfigError:
        return NO_LINES
    progress(f"reading the lines of {figures.program.name}")
    return read_lines(path)


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    echo(f"pyvmm: wrote {path}", err=True)


def _show(figures: list[Figures], missed: bool, function: str) -> None:
    from pyvmm.cover.report import lines

    for number, each in enumerate(figures):
        if function and not any(one.name == function for one in each.functions):
            continue
        if number and not function:
            echo()
        for line in lines(each, missed=missed, function=function):
            echo(line)


def _json(figures: Figures, missed: bool) -> dict[str, Any]:
    from pyvmm.cover.export import counts

    result: dict[str, Any] = {
        "module": figures.program.name,
        "build-id": figures.seen.build_id,
        "kernel": figures.seen.kernel,
        "blocks": figures.counted,
        "covered": figures.covered,
        "percent": round(figures.percent, 2),
        "states": counts(figures),
        "functions": [{"name": f.name, "blocks": f.counted, "covered": f.covered} for f in figures.functions],
    }
    if figures.rules is not None:
        reached = figures.reached()
        result["reachable"] = {"blocks": reached.reachable, "percent": round(reached.percent, 2)}
        result["parts"] = {
            name: {"blocks": each.reachable, "covered": each.covered, "percent": round(each.percent, 2)}
            for name, each in figures.parts().items()
        }
    if missed:
        result["missed"] = [figures.describe(number) for number in figures.missed()]
    return result
