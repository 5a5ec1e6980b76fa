"""The pytest plugin in sample projects, with stand-ins for guests: outcomes, processes, pytest's own options."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvmm.client import registry
from tests.support import pytest_runs
from tests.support.pytest_runs import Run, project, run

SAMPLE = """
    import os, signal, sys, time, warnings
    import pytest

    def test_plain():
        assert True

    def test_passes(vm, balloon, vmbus, console, guest, host):
        print("from a passing test")
        assert balloon is vm.balloon and host is vm.host and guest.sh("true") == "true"

    def test_fails(vm):
        print("from a failing test")
        assert vm.balloon.actual == 3

    def test_asks_for_a_wrong_size(vm):
        from pyvmm.sizes import parse_size
        parse_size("much")

    def test_skips(vm):
        pytest.skip("no reason")

    @pytest.mark.xfail(reason="known")
    def test_xfails(vm):
        assert False

    def test_exits(vm):
        os._exit(7)

    def test_is_killed(vm):
        os.kill(os.getpid(), signal.SIGKILL)

    @pytest.mark.pyvmm(timeout=0.5)
    def test_hangs(vm):
        time.sleep(100)

    @pytest.mark.parametrize("number", [1, 2])
    def test_takes_parameters(vm, number):
        assert number

    class TestClass:
        def test_in_a_class(self, guest):
            self.mine = guest

    @pytest.fixture(scope="session")
    def made(tmp_path_factory):
        yield os.getpid()
        (tmp_path_factory.getbasetemp() / "unmade").write_text("x")

    @pytest.fixture(scope="module")
    def of_module():
        yield os.getpid()

    def test_inherits_session_fixtures(vm, made, of_module):
        assert made != os.getpid() and of_module == os.getpid()

    def test_asks_for_a_guest_too_late(request):
        request.getfixturevalue("vm")

    @pytest.fixture
    def broken(vm):
        raise ValueError("in a fixture")

    def test_has_a_broken_fixture(broken):
        pass

    def test_warns(vm):
        warnings.warn("a warning from a test")

    @pytest.mark.parametrize("number", [1, 2])
    def test_has_a_folder(vm, tmp_path, number):
        (tmp_path / "x").write_text("x")

    @pytest.mark.pyvmm(append="never-boots")
    def test_of_a_guest_that_never_boots(vm):
        pass
"""


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = project(tmp_path_factory.mktemp("sample"), test_sample=SAMPLE)
    os.environ["PYVMM_STANDIN_BOOTS"] = str(folder / "boots")
    try:
        found = run(folder, "-v", f"--basetemp={folder / 'tmp'}")
    finally:
        del os.environ["PYVMM_STANDIN_BOOTS"]
    found.stdout += "\nfolders: " + " ".join(path.parent.name for path in sorted(folder.glob("tmp/**/x")))
    found.stdout += "\nboots:\n" + (folder / "boots").read_text()
    return found


@pytest.mark.parametrize(
    ("test", "outcome"),
    [
        ("test_plain", "passed"),
        ("test_passes", "passed"),
        ("test_fails", "failure"),
        ("test_skips", "skipped"),
        ("test_xfails", "skipped"),
        ("test_exits", "failure"),
        ("test_is_killed", "failure"),
        ("test_hangs", "failure"),
        ("test_takes_parameters[1]", "passed"),
        ("test_takes_parameters[2]", "passed"),
        ("test_in_a_class", "passed"),
        ("test_inherits_session_fixtures", "passed"),
        ("test_has_a_broken_fixture", "error"),
        ("test_warns", "passed"),
        ("test_asks_for_a_guest_too_late", "failure"),
        ("test_has_a_folder[1]", "passed"),
        ("test_of_a_guest_that_never_boots", "error"),
    ],
)
def test_a_test_with_a_guest_has_the_outcome_that_it_would_have_without(sample: Run, test: str, outcome: str) -> None:
    assert sample.outcomes[test] == outcome, sample.stdout


@pytest.mark.parametrize(
    ("test", "text"),
    [
        ("test_exits", "the test's process ended without a report: status 7"),
        ("test_is_killed", "the test's process ended without a report: signal 9 (SIGKILL)"),
        ("test_hangs", "the test has not ended within 0.5 s"),
        ("test_hangs", "time.sleep(100)"),
        ("test_fails", "assert 536870912 == 3"),
        ("test_asks_for_a_guest_too_late", "must be arguments of the test"),
        ("test_has_a_broken_fixture", "ValueError: in a fixture"),
        ("test_of_a_guest_that_never_boots", "did not get ready for tests: no guest's agent within 1 s"),
    ],
)
def test_a_failure_says_what_happened(sample: Run, test: str, text: str) -> None:
    assert text in sample.texts[test]


def test_a_failed_test_shows_console_messages_and_how_to_repeat_it(sample: Run) -> None:
    report = sample.stdout.partition("_ test_fails _")[2].partition("_ test_exits _")[0]
    for part in (
        "from a failing test",
        "the guest's console ends",
        "guest console's last line",
        "messages between host and guest",
        "repeat this test",
        "pytest test_sample.py::test_fails",
    ):
        assert part in report, report


def test_the_traceback_of_a_wrong_call_ends_at_the_tests_line(sample: Run) -> None:
    report = sample.stdout.partition("_ test_asks_for_a_wrong_size _")[2].partition("_ test_exits _")[0]
    assert '>       parse_size("much")' in report
    assert "'much' is not a size" in report
    assert "sizes.py" not in report


def test_what_a_guest_writes_cannot_control_the_terminal(sample: Run) -> None:
    assert "\\x1b[31mguest console's last line" in sample.stdout
    assert "\x1b" not in sample.stdout


def test_what_a_passing_test_prints_is_captured(sample: Run) -> None:
    assert "from a passing test" not in sample.stdout + sample.stderr


def test_warnings_are_told_as_ever(sample: Run) -> None:
    assert "UserWarning: a warning from a test" in sample.stdout


def test_a_guest_is_booted_once_for_all_tests_of_its_configuration(sample: Run) -> None:
    assert len(sample.stdout.partition("\nboots:\n")[2].splitlines()) == 1


def test_folders_of_tests_stay(sample: Run) -> None:
    assert "folders: test_has_a_folder_1_0 test_has_a_folder_2_0\n" in sample.stdout


def test_the_collection_tells_what_runs_and_where(sample: Run) -> None:
    assert "pyvmm: 17 with a guest (6.1-auto-1cpu, 6.1-auto-1cpu-never-boots), on the local KVM" in sample.stdout


def two_tests(folder: Path) -> Path:
    return project(
        folder,
        test_two="""
            import pytest
            def test_fails(vm): assert False
            def test_passes(vm): print("printed by a test")
            def test_prints_a_lot(vm): print("x" * 300_000); assert False
        """,
    )


@pytest.mark.parametrize(
    ("words", "outcomes"),
    [
        (["-x"], {"test_fails": "failure"}),
        (["test_two.py::test_passes"], {"test_passes": "passed"}),
        (["--co", "-q"], {}),
        (["-n2"], {"test_fails": "failure", "test_passes": "passed", "test_prints_a_lot": "failure"}),
    ],
)
def test_options_of_pytest_work_as_ever(tmp_path: Path, words: list[str], outcomes: dict[str, str]) -> None:
    if "-n2" in words:
        pytest.importorskip("xdist")
    assert run(two_tests(tmp_path), *words).outcomes == outcomes


def test_last_failed_runs_those_that_failed(tmp_path: Path) -> None:
    cache = two_tests(tmp_path) / ".pytest_cache/v/cache/lastfailed"
    cache.parent.mkdir(parents=True)
    cache.write_text('{"test_two.py::test_fails": true}')
    assert run(tmp_path, "-p", "cacheprovider", "--lf").outcomes == {"test_fails": "failure"}
    assert "test_two.py::test_fails" in cache.read_text()


def test_without_capture_a_test_prints_at_once(tmp_path: Path) -> None:
    assert "printed by a test" in run(two_tests(tmp_path), "-s", "-k", "passes").stderr


def test_the_plugin_can_be_switched_off(tmp_path: Path) -> None:
    project(tmp_path, test_plain="def test_plain(): pass")
    (tmp_path / "conftest.py").write_text("")
    done = run(tmp_path, "-p", "no:pyvmm")
    assert done.outcomes == {"test_plain": "passed"}
    assert "pyvmm" not in done.stdout.partition("plugins:")[2].partition("\n")[0]


def test_a_project_without_such_tests_imports_the_hooks_alone(tmp_path: Path) -> None:
    project(
        tmp_path,
        test_plain="""
            import sys
            def test_imports():
                found = {name for name in sys.modules if name.partition(".")[0] == "pyvmm"}
                assert found == {"pyvmm", "pyvmm.testbed", "pyvmm.testbed.plugin", "pyvmm.testbed.plugin.hooks"}
        """,
    )
    (tmp_path / "conftest.py").write_text("")
    assert run(tmp_path).outcomes == {"test_imports": "passed"}


def test_fixtures_of_these_names_that_others_have_stay_theirs(tmp_path: Path) -> None:
    project(
        tmp_path,
        test_own="""
            import pytest
            @pytest.fixture
            def vm(): return "mine"
            def test_own(vm): assert vm == "mine"
        """,
    )
    done = run(tmp_path)
    assert done.outcomes == {"test_own": "passed"}
    assert "with a guest" not in done.stdout


def test_an_exit_asked_for_in_a_test_ends_the_session(tmp_path: Path) -> None:
    project(
        tmp_path,
        test_ends="""
            import pytest
            def test_ends(vm): pytest.exit("enough", 5)
            def test_never(vm): pass
        """,
    )
    done = run(tmp_path)
    assert done.status == 5
    assert "enough" in done.stdout
    assert "test_never" not in done.outcomes


class Running:
    """A pytest that runs, and its output."""

    def __init__(self, folder: Path, *words: str) -> None:
        self._output = folder / "output"
        self.process = subprocess.Popen(
            pytest_runs.command(*words), cwd=folder, env=pytest_runs.environment(), stdout=self._output.open("w")
        )

    @property
    def text(self) -> str:
        """What it has written."""
        return self._output.read_text()

    def until(self, happened: Callable[[], object], limit: float = 60) -> None:
        """Wait for something that it does."""
        end = time.monotonic() + limit
        while not happened():
            assert time.monotonic() < end and self.process.poll() is None, self.text
            time.sleep(0.05)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(*words: str) -> Running:
        started.append(Running(tmp_path, *words))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


def test_ctrl_c_ends_all_processes(tmp_path: Path, start: Callable[..., Running]) -> None:
    project(
        tmp_path,
        test_long="""
            import os, time
            def test_long(vm):
                with open("pids", "w") as file:
                    file.write(f"{os.getpid()} {os.getppid()}")
                time.sleep(100)
        """,
    )
    pids = tmp_path / "pids"
    outer = start()
    outer.until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    outer.process.send_signal(signal.SIGINT)
    assert outer.process.wait(30) == 2, outer.text
    assert "KeyboardInterrupt" in outer.text
    left = [Path("/proc", pid) for pid in pids.read_text().split()]
    end = time.monotonic() + 10  # the kernel kills them as their parent dies
    while any(each.exists() for each in left) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [each for each in left if each.exists()]


@pytest.mark.parametrize("end", ["its guest's end", "Ctrl-C"])
def test_a_failed_tests_guest_is_kept_until(
    tmp_path: Path, start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    outer = start("--pyvmm-keep-failed", str(two_tests(tmp_path)), "-k", "fails or passes")
    outer.until(lambda: "Ctrl-C ends them" in outer.text)
    assert "pyvmm: kept failed: pyvmm status failed" in outer.text
    assert [entry.name for entry in registry.running()] == ["failed"]
    if end == "Ctrl-C":
        outer.process.send_signal(signal.SIGINT)
    else:
        (tmp_path / "stop").touch()
    assert outer.process.wait(30) == 1, outer.text
    assert "1 failed, 1 passed" in outer.text
    assert registry.running() == []


@pytest.mark.parametrize(("variable", "outcome"), [("CI", "error"), ("NOTHING", "skipped")])
def test_without_anywhere_to_run_tests_are_skipped_with_the_reason_and_fail_in_ci(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, outcome: str
) -> None:
    project(
        tmp_path,
        conftest="""
            from pyvmm.testbed.plugin import where
            where._find = lambda asked: where.Where(True, "qemu-system-x86_64 is not installed")
        """,
        test_some="def test_some(vm): pass",
    )
    changed = pytest_runs.environment() | {variable: "true"}
    monkeypatch.setattr(pytest_runs, "environment", lambda: changed)
    done = run(tmp_path)
    assert done.outcomes == {"test_some": outcome}
    assert "qemu-system-x86_64 is not installed" in done.texts["test_some"]
