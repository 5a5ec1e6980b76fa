"""What pytest loads (entry point `pyvmm`): options, the marker, fixtures, and the way to the inner pytest.

A project that has no test of ours pays for this module alone: all other imports wait for such a test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyvmm.testbed.balloon import Balloon
    from pyvmm.testbed.console import Console
    from pyvmm.testbed.guest import Guest
    from pyvmm.testbed.plugin.configuration import Configuration
    from pyvmm.testbed.plugin.outer import Outer
    from pyvmm.testbed.plugin.table import Results
    from pyvmm.testbed.vm import VM
    from pyvmm.testbed.vmbus import Bus

CONFIGURATION = "pyvmm_configuration"
MARKER = "pyvmm"

GUEST: pytest.StashKey[VM] = pytest.StashKey()
"""The guest of the test that runs in this process."""
INNER = pytest.StashKey[bool]()
"""Whether this is the inner pytest."""
RESOLVED: pytest.StashKey[tuple[Configuration, float]] = pytest.StashKey()
"""A test's configuration and time limit."""
_outer: pytest.StashKey[Outer] = pytest.StashKey()

_OPTIONS = (
    ("kernel", "KERNEL", "Kernel of the guests: 6.1, 6.12, ... or a file. A test's marker wins over it."),
    ("kdir", "DIR", "Kernel build tree for the guests."),
    ("engine", "ENGINE", "What implements Hyper-V for the guests: kernel (KVM), user (pyvmm) or auto."),
    ("cpus", "N", "Virtual CPUs of the guests."),
)

_COVER_OPTIONS = (
    (
        "cover",
        "MODULES",
        "Show which code of these modules of the guest ran in the tests: hv_balloon,hv_vmbus,hv_utils. Needs "
        "pip install 'pyvmm[cover]'.",
    ),
    ("cover-html", "FILE", "Write that as a page with the disassembly."),
    ("cover-lcov", "FILE", "Write lcov's tracefile of source lines: modules with debug information (--pyvmm-kdir)."),
    ("cover-save", "FILE", "Keep what was seen, for `pyvmm cover report FILE`."),
    ("cover-rules", "FILE", "Leave out the blocks that cannot run, as this TOML file says (docs/coverage.md)."),
    ("cover-least", "GOALS", "Fail if less of the reachable blocks ran: hv_balloon=90,hv_vmbus=60 (percent)."),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pyvmm", "pyvmm: tests with a Linux guest (docs/testbed.md)")
    for name, metavar, text in _OPTIONS:
        group.addoption(f"--pyvmm-{name}", metavar=metavar, help=text)
    group.addoption(
        "--pyvmm-matrix",
        metavar="LINE",
        action="append",
        help="Run each test in all these configurations, 'kernel=6.1,6.12 cpus=1,2' for instance, instead of the ini "
        "file's pyvmm_matrix; 'none' for no matrix. Repeatable.",
    )
    group.addoption(
        "--pyvmm-host",
        metavar="WHERE",
        choices=("auto", "local", "emulated"),
        default="auto",
        help="Run guests on this machine's KVM (local), or in a Linux with KVM that QEMU emulates.",
    )
    group.addoption(
        "--pyvmm-keep-failed",
        action="store_true",
        help="Keep the guest of a failed test running, for pyvmm status, gdb and others, until Ctrl-C.",
    )
    for name, metavar, text in _COVER_OPTIONS:
        group.addoption(f"--pyvmm-{name}", metavar=metavar, help=text)
    parser.addini(
        "pyvmm_matrix",
        "Configurations of the guests, a line each: NAME=VALUE[,VALUE...]... makes all combinations.",
        type="linelist",
        default=[],
    )


def pytest_configure(config: pytest.Config) -> None:
    keywords = "kernel, engine, cpus, vmbus, protocol, memory, append, timeout"
    config.addinivalue_line("markers", f"{MARKER}({keywords}): the guest of a test with pyvmm's fixtures")
    config.pluginmanager.register(_Table(), "pyvmm-table")
    if config.getoption("pyvmm_keep_failed") and config.getoption("dist", "no") != "no":
        raise pytest.UsageError("--pyvmm-keep-failed needs a terminal to wait at: leave -n out")
    if any(config.getoption(f"pyvmm_{name}") is not None for name, *_ in _OPTIONS):
        _selection(config)  # a wrong value is reported before the collection
    if any(config.getoption(f"pyvmm_{name.replace('-', '_')}") is not None for name, *_ in _COVER_OPTIONS):
        from pyvmm.testbed.plugin.cover import configure

        configure(config)


# Configurations


def _selection(config: pytest.Config) -> Any:
    from pyvmm.testbed.plugin.selection import selection

    return selection(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if CONFIGURATION in metafunc.fixturenames:
        try:
            selection = _selection(metafunc.config)
        except pytest.UsageError:
            return  # raised again after the collection, where it is one line
        selection.parametrize(metafunc)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if any(needs_guest(item) for item in items):
        _selection(config).arrange(items)


def needs_guest(item: pytest.Item) -> bool:
    """Return whether a fixture of ours is among the item's: another plugin's `vm` or `host` is none."""
    return CONFIGURATION in getattr(item, "fixturenames", ())


# Running


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    if INNER in item.config.stash or not needs_guest(item):
        return None
    stash = item.config.stash
    if _outer not in stash:
        from pyvmm.testbed.plugin.outer import Outer

        stash[_outer] = Outer(item.session)
    stash[_outer].run(item)
    return True


def pytest_sessionfinish(session: pytest.Session) -> None:
    outer = session.config.stash.get(_outer, None)
    if outer is not None:
        outer.close()


class _Table:
    """Collects the outcomes of tests of ours, and writes them at the end."""

    def __init__(self) -> None:
        self._results: Results | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if hasattr(report, "pyvmm_configuration"):
            if self._results is None:
                from pyvmm.testbed.plugin.table import Results

                self._results = Results()
            self._results.take(report)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self._results is not None:
            self._results.write(terminalreporter)


def pytest_report_collectionfinish(config: pytest.Config, items: Iterable[pytest.Item]) -> list[str]:
    chosen = [item for item in items if RESOLVED in item.stash]
    if not chosen:
        return []
    from pyvmm.testbed.plugin.selection import header

    return header(config, chosen)


# Fixtures


@pytest.fixture
def pyvmm_configuration(request: pytest.FixtureRequest) -> Configuration:
    """The configuration of this test's guest: kernel, engine, cpus, ..."""
    if GUEST not in request.config.stash:
        pytest.fail("pyvmm's fixtures must be arguments of the test, not asked for by getfixturevalue", pytrace=False)
    configuration: Configuration = request.node.stash[RESOLVED][0]
    return configuration


@pytest.fixture
def vm(request: pytest.FixtureRequest, pyvmm_configuration: Configuration) -> VM:
    """A booted Linux guest, hv_balloon bound, for this test alone (pyvmm.testbed.vm.VM)."""
    return request.config.stash[GUEST]


@pytest.fixture
def balloon(vm: VM) -> Balloon:
    """The guest's hv-balloon device: resize, actual, ..."""
    return vm.balloon


@pytest.fixture
def vmbus(vm: VM) -> Bus:
    """The guest's VMBus: devices, channels, counters."""
    return vm.vmbus


@pytest.fixture
def console(vm: VM) -> Console:
    """The guest's console: text, expect, send."""
    return vm.console


@pytest.fixture
def guest(vm: VM) -> Guest:
    """The guest's own side: commands, files, its kernel's log."""
    return vm.guest


@pytest.fixture
def host(vm: VM) -> Any:
    """Raw access to everything that the host can say to the guest."""
    return vm.host
