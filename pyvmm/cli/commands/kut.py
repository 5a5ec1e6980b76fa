"""`pyvmm kut`: runs kvm-unit-tests, KVM's own test suite, and prints a table of results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyvmm.cli import output
from pyvmm.cli.seconds import Seconds
from pyvmm.cli.words import RepeatableCommand, command_words
from pyvmm.errors import ConfigError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from pyvmm.cli.kut.plan import Plan
    from pyvmm.cli.kut.runner import Result, Verdict
    from pyvmm.cli.kut.suite import Suite, UnitTest
    from pyvmm.machine.config import EngineChoice

_COLOURS: dict[Verdict, str] = {"PASS": "green", "FAIL": "red", "SKIP": "yellow", "TIMEOUT": "red"}


def complete_test(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the names of the suite's tests."""
    return [test.name for test in _suite_of(ctx) if test.name.startswith(incomplete)]


def complete_group(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the suite's groups."""
    groups = sorted({group for test in _suite_of(ctx) for group in test.groups.split()})
    return [group for group in groups if group.startswith(incomplete)]


def complete_folder(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete folders."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="dir")]


def _suite_of(ctx: click.Context) -> list[UnitTest]:
    from pyvmm.cli.kut.suite import open_suite

    try:
        return open_suite(Path(ctx.params["folder"])).tests
    except (ConfigError, KeyError, TypeError):
        return []


@click.command(cls=RepeatableCommand)
@click.argument("folder", type=click.Path(path_type=Path), shell_complete=complete_folder)
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_test)
@click.option(
    "--group",
    "-g",
    "groups",
    multiple=True,
    metavar="GROUP",
    shell_complete=complete_group,
    help="Those of a group; repeatable.",
)
@click.option("--list", "-l", "only_list", is_flag=True, help="List the tests, and end.")
@click.option(
    "--hyperv",
    "--engine",
    type=click.Choice(["auto", "kernel", "user"]),
    default="auto",
    show_default=True,
    help="Who implements Hyper-V: KVM itself, or pyvmm in Python.",
)
@click.option(
    "--host",
    type=click.Choice(["auto", "local", "emulated"]),
    default="auto",
    show_default=True,
    help="Run on this machine's KVM, or in a Linux with KVM that QEMU emulates.",
)
@click.option(
    "--timeout",
    type=Seconds(min_open=True),
    metavar="SECONDS",
    help="Seconds for each test, in place of the suite's.",
)
@click.option("--verbose", "-v", is_flag=True, help="Show the tests' output as it comes.")
@click.option(
    "--logs", type=click.Path(path_type=Path), metavar="FOLDER", help="Keep each test's output as NAME.log."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, at the end.")
@click.pass_context
def kut(
    ctx: click.Context,
    folder: Path,
    names: Sequence[str],
    groups: Sequence[str],
    only_list: bool,
    hyperv: EngineChoice,
    host: str,
    timeout: float | None,
    verbose: bool,
    logs: Path | None,
    as_json: bool,
) -> None:
    """Run kvm-unit-tests from FOLDER, a built tree: all, or those with these names.

    unittests.cfg says which there are and what each needs. They run one at a time, each in a machine of its own with
    --test-devices. A test that needs what pyvmm or this host does not have is skipped, with the reason.

    \b
    git clone https://gitlab.com/kvm-unit-tests/kvm-unit-tests && cd kvm-unit-tests && ./configure && make
    pyvmm kut .
    pyvmm kut . -g hyperv --hyperv user
    pyvmm kut . smptest hyperv_synic -v

    \b
    Exit status: 0 if no test failed, 1 if one failed or timed out, 2 usage.
    """
    from pyvmm.cli.kut.suite import open_suite

    suite = open_suite(folder)
    chosen = _choose(suite, names, groups)
    by_name = bool(names or groups)
    if only_list:
        _list(suite, chosen, by_name, as_json)
        return
    plans = [_plan(suite, test, timeout, by_name) for test in chosen]
    from pyvmm.launch.where import run_emulated, wants_emulated

    if logs is not None:
        try:
            logs.mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--logs {logs}: {error.strerror}") from error
    from pyvmm.host.inside import inside

    memory = max((plan.memory for plan in plans if not isinstance(plan, str)), default=0)
    if not inside() and memory and wants_emulated(host):
        ctx.exit(run_emulated(command_words(ctx), memory, [], input=False, live=True))
    show = _Show(as_json, [test.name for test in chosen])
    for test, plan in zip(chosen, plans, strict=True):
        show.begin(test.name)
        show.end(_run(test, plan, hyperv, verbose and not as_json, logs))
    ctx.exit(show.finish())


def _choose(suite: Suite, names: Sequence[str], groups: Sequence[str]) -> list[UnitTest]:
    """Return the tests with these names or in these groups; all without any. Raises ConfigError."""
    known = [test.name for test in suite.tests]
    known_groups = sorted({group for test in suite.tests for group in test.groups.split()})
    for kind, words, there in (("test", names, known), ("group", groups, known_groups)):
        for word in words:
            if word not in there:
                import difflib

                close = difflib.get_close_matches(word, there, 1)
                hint = f"did you mean {close[0]!r}?" if close else "--list shows them"
                raise ConfigError(f"no {kind} is named {word[:40]!r} in {suite.images}: {hint}")
    if not names and not groups:
        return suite.tests
    return [test for test in suite.tests if test.name in names or set(groups) & set(test.groups.split())]


def _plan(suite: Suite, test: UnitTest, timeout: float | None, by_name: bool) -> Plan | str:
    """Return how to run the test, or why it cannot be run."""
    from pyvmm.cli.kut.plan import CannotRun, plan

    try:
        return plan(suite, test, timeout=timeout, by_name=by_name)
    except CannotRun as reason:
        return str(reason)


def _list(suite: Suite, chosen: Sequence[UnitTest], by_name: bool, as_json: bool) -> None:
    plans = [_plan(suite, test, None, by_name) for test in chosen]
    if as_json:
        rows = [
            {"name": test.name, "groups": test.groups.split(), "skip": plan if isinstance(plan, str) else None}
            for test, plan in zip(chosen, plans, strict=True)
        ]
        output.print_json(rows)
        return
    output.table(
        ("TEST", "GROUPS", "CPUS", "SKIPPED BECAUSE IT"),
        [
            (test.name, " ".join(test.groups.split()), test.smp, plan if isinstance(plan, str) else "")
            for test, plan in zip(chosen, plans, strict=True)
        ],
    )


def _run(test: UnitTest, plan: Plan | str, engine: EngineChoice, verbose: bool, logs: Path | None) -> Result:
    from pyvmm.cli.kut.plan import CannotRun, check_host
    from pyvmm.cli.kut.runner import Result, log_to, run_test
    from pyvmm.host.inside import inside

    if isinstance(plan, str):
        return Result(test.name, "SKIP", 0, plan)
    try:
        check_host(test, emulated=inside())
    except CannotRun as reason:
        return Result(test.name, "SKIP", 0, str(reason))
    with log_to(logs, test.name) as log:

        def show(data: bytes) -> None:
            log(data)
            if verbose:
                output.echo(data.decode("utf-8", "replace").replace("\r", ""), nl=False)

        return run_test(plan, engine, show)


class _Show:
    """Prints the results: a line each as it comes and a summary, or one JSON document at the end."""

    def __init__(self, as_json: bool, names: Sequence[str]) -> None:
        self._as_json = as_json
        self._widths = (7, 7, max(map(len, names), default=0), 0)
        self._results: list[Result] = []
        self._count = len(names)
        if not as_json:
            output.row(("RESULT", "SECONDS", "TEST", "DETAILS"), self._widths, bold=True)

    def begin(self, name: str) -> None:
        """Show on a terminal which test runs."""
        output.progress(f"{len(self._results) + 1}/{self._count} {name} ...")

    def end(self, result: Result) -> None:
        """Print the result's line."""
        self._results.append(result)
        output.progress("")
        if not self._as_json:
            seconds = f"{result.seconds:7.1f}" if result.seconds else ""
            cells = (result.verdict, seconds, result.name, result.why)
            output.row(cells, self._widths, colour=_COLOURS[result.verdict])

    def finish(self) -> int:
        """Print the summary, and return the exit status."""
        count = {verdict: sum(each.verdict == verdict for each in self._results) for verdict in _COLOURS}
        engines = sorted({each.engine for each in self._results if each.engine})
        if self._as_json:
            output.print_json({"tests": [each.as_dict() for each in self._results], "count": count})
        else:
            spent = sum(each.seconds for each in self._results)
            words = f"{count['PASS']} passed, {count['FAIL']} failed, {count['TIMEOUT']} timed out"
            engine = f", {' and '.join(engines)} engine" if engines else ""
            output.echo(f"{words}, {count['SKIP']} skipped, in {spent:.1f} s{engine}")
        return 1 if count["FAIL"] or count["TIMEOUT"] else 0
