"""A guest's configuration from marker, options and matrix."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.errors import ConfigError
from pyvmm.testbed.plugin.configuration import Configuration, read_marker, read_matrix, read_settings
from tests.support.pytest_runs import project, run


def test_an_id_is_short_and_says_what_is_not_the_default() -> None:
    assert str(Configuration(kernel="6.12", engine="user", cpus=2)) == "6.12-user-2cpu"
    assert str(Configuration(memory="1G", vmbus="4.0", protocol="1.0")) == "6.1-auto-1cpu-1G-vmbus4.0-balloon1.0"
    assert str(Configuration(kdir="/home/me/linux")) == "linux-auto-1cpu"


def test_a_matrix_is_all_combinations_of_each_line() -> None:
    found = read_matrix(
        ["kernel=6.1,6.12 cpus=1,2", "kernel=debian-6.1 cpus=1", "kernel=5.10 memory=512M,max=1G  # more"]
    )
    assert [str(Configuration().with_settings(each)) for each in found] == [
        "6.1-auto-1cpu",
        "6.1-auto-2cpu",
        "6.12-auto-1cpu",
        "6.12-auto-2cpu",
        "5.10-auto-1cpu-512M,max=1G",
    ]
    assert read_matrix(["none"]) == []


def test_later_settings_win_and_kernel_and_build_tree_replace_each_other(tmp_path: Path) -> None:
    tree = read_settings({"kdir": tmp_path})
    assert Configuration().with_settings({"cpus": 1, "engine": "user"}, {"cpus": 2}) == Configuration(
        cpus=2, engine="user"
    )
    assert Configuration().with_settings(tree, {"kernel": "6.12"}) == Configuration(kernel="6.12")
    assert Configuration().with_settings({"kernel": "6.12"}, tree).keywords()["kdir"] == str(tmp_path)


def test_a_configuration_becomes_options_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "bzImage").write_bytes(b"")
    settings = read_settings({"kernel": tmp_path / "bzImage", "cpus": 2, "memory": 256, "protocol": "2.0"})
    options = Configuration().with_settings(settings, {"vmbus": "4.1", "append": "a b"}).options()
    assert (options.kernel, options.cpus, options.memory.boot) == (tmp_path / "bzImage", 2, 256 << 20)
    assert (options.balloon_version, options.max_vmbus, options.append) == ("2.0", "4.1", "a b")
    assert Configuration(kernel="6.12").options().image == "debian-6.12"
    assert Configuration(devices="kvp+vss").options().device == ("kvp", "vss")
    assert str(Configuration(devices="kvp+vss")) == "6.1-auto-1cpu-kvp+vss"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"kernle": "6.1"}, "unknown keyword 'kernle', did you mean 'kernel'?"),
        ({"colour": "red"}, "unknown keyword 'colour'; there are kernel, "),
        ({"kernel": "4.4"}, "kernel: '4.4' is neither a file nor one of 5.10, 6.1, 6.12"),
        ({"kernel": 6.1, "kdir": "."}, "kernel and kdir contradict each other"),
        ({"kdir": "/nonexistent"}, "kdir: '/nonexistent' is no folder"),
        ({"engine": "fast"}, "engine: 'fast' is not one of"),
        ({"cpus": 0}, "cpus: 0 is less than 1"),
        ({"cpus": "two"}, "cpus: 'two' is not a valid integer"),
        ({"cpus": True}, "cpus: 'True' is neither a text nor a number"),
        ({"cpus": [1, 2]}, "cpus: '[1, 2]' is neither a text nor a number"),
        ({"vmbus": "9.9"}, "vmbus: '9.9' is not one of"),
        ({"protocol": "0.3"}, "protocol: '0.3' is not one of"),
        ({"memory": "lots"}, "memory: 'lots' is not a size"),
        ({"append": "a\0b"}, "append: there is a zero byte in it"),
        ({"timeout": "soon"}, "timeout: 'soon' is not a number of seconds"),
        ({"timeout": -1}, "timeout: timeout -1: give seconds"),
        ({"timeout": 0}, "timeout: 0 leaves no time"),
        ({"timeout": float("nan")}, "timeout: timeout nan: give seconds"),
    ],
)
def test_a_wrong_keyword_or_value_is_one_line(given: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_marker((), given)
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("6.1", "'6.1': write NAME=VALUE"),
        ("kernel=6.1 kernel=6.12", "kernel= is there twice"),
        ("kernel=6.1,", "kernel: '' is neither a file"),
        ("append='", "No closing quotation"),
        ("cpus=" + ",".join(map(str, range(1, 300))), "a matrix of more than 256 configurations"),
        ("timeout=3", "unknown keyword 'timeout'"),
    ],
)
def test_a_wrong_matrix_is_one_line(line: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_matrix([line])
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


MATRIX = """
    import pytest

    @pytest.mark.parametrize("x", ["a", "b"])
    def test_some(vm, x, pyvmm_configuration):
        assert (x, pyvmm_configuration.cpus) != ("b", 2)

    @pytest.mark.pyvmm(cpus=2)
    class TestClass:
        def test_two(self, pyvmm_configuration, vm):
            assert pyvmm_configuration.cpus == 2

        @pytest.mark.pyvmm(cpus=1, engine="user")
        def test_pinned(self, pyvmm_configuration, vm):
            assert (pyvmm_configuration.engine, pyvmm_configuration.cpus) == ("user", 1)

    def test_plain():
        pass
"""


def test_a_matrix_becomes_parameters_grouped_by_configuration_and_a_table(tmp_path: Path) -> None:
    project(tmp_path, ini="pyvmm_matrix = kernel=6.1 cpus=1,2\n", test_matrix=MATRIX)
    done = run(tmp_path, "-v")
    ran = [line.split()[0].partition("::")[2] for line in done.stdout.splitlines() if "%]" in line]
    assert ran == [
        "test_some[6.1-auto-1cpu-a]",
        "test_some[6.1-auto-1cpu-b]",
        "test_some[6.1-auto-2cpu-a]",
        "test_some[6.1-auto-2cpu-b]",
        "TestClass::test_two",
        "TestClass::test_pinned",
        "test_plain",
    ]
    table = done.stdout.partition("tests and configurations =")[2].partition("short test summary")[0]
    assert [line.rstrip() for line in table.splitlines()[2:9]] == [
        "6.1-auto-1cpu  2 passed",
        "  6.1-auto-2cpu  2 passed, 1 failed",
        "    6.1-user-1cpu  1 passed",
        ". .    test_matrix.py::test_some[a]",
        ". F    test_matrix.py::test_some[b]",
        "  .    test_matrix.py::TestClass::test_two",
        "    .  test_matrix.py::TestClass::test_pinned",
    ]
    assert "'test_matrix.py::test_some[6.1-auto-2cpu-b]'" in done.stdout


@pytest.mark.parametrize(
    ("ini", "words", "mark", "text"),
    [
        ("", ["--pyvmm-kernel", "4.4"], "", "ERROR: --pyvmm-kernel: '4.4' is neither a file nor one of"),
        ("", ["--pyvmm-matrix", "cpus=x"], "", "ERROR: --pyvmm-matrix: cpus: 'x' is not a valid integer"),
        ("pyvmm_matrix = kernel\n", [], "", "ERROR: pyvmm_matrix: 'kernel': write NAME=VALUE"),
        ("", [], "@pytest.mark.pyvmm(kernle='6.1')", "ERROR: test_it.py::test_it: marker pyvmm: unknown keyword"),
        ("", [], "@pytest.mark.pyvmm('6.1')", "ERROR: test_it.py::test_it: marker pyvmm: '6.1' has no keyword"),
    ],
)
def test_what_is_wrong_ends_pytest_with_one_line(
    tmp_path: Path, ini: str, words: list[str], mark: str, text: str
) -> None:
    project(tmp_path, ini=ini, test_it=f"import pytest\n{mark}\ndef test_it(vm): pass\n")
    done = run(tmp_path, *words)
    assert done.status == 4
    assert done.last.startswith(text)
    assert "Traceback" not in done.stdout + done.stderr


def test_the_marker_of_a_parameter_counts(tmp_path: Path) -> None:
    project(
        tmp_path,
        ini="pyvmm_matrix = kernel=6.1 cpus=1,2\n",
        test_it="""
            import pytest

            @pytest.mark.parametrize(
                "memory", ["512M", pytest.param("1G", marks=pytest.mark.pyvmm(memory="1G", cpus=2))]
            )
            def test_it(vm, memory, pyvmm_configuration):
                assert str(pyvmm_configuration.memory) == memory and (memory, pyvmm_configuration.cpus) != ("1G", 1)
        """,
    )
    assert set(run(tmp_path).outcomes.values()) == {"passed"}


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["one"], "'one/test_a.py::test_a[6.1-auto-1cpu]'"),
        (["two"], "'two/test_b.py::test_b[6.1-auto-1cpu]'"),
        (["one", "two"], "-c {0}/one/pytest.ini 'two/test_b.py::test_b[6.1-auto-1cpu]'"),
        (["two", "-o", "pyvmm_matrix=cpus=2,3"], "-o pyvmm_matrix=cpus=2,3 'two/test_b.py::test_b[6.1-auto-3cpu]'"),
        (["-c", "one/pytest.ini", "two"], "-c {0}/one/pytest.ini 'two/test_b.py::test_b[6.1-auto-1cpu]'"),
    ],
)
def test_the_command_that_repeats_a_test_has_its_matrix_wherever_the_ini_file_is(
    tmp_path: Path, words: list[str], command: str
) -> None:
    for name, ini in (("one", "pyvmm_matrix = cpus=1,2\n"), ("two", "")):
        (tmp_path / name).mkdir()
        test = f"def test_{'a' if name == 'one' else 'b'}(vm): assert False\n"
        project(tmp_path / name, ini=ini, **{"test_a" if name == "one" else "test_b": test})
    if words == ["two"]:
        (tmp_path / "two/pytest.ini").unlink()
        (tmp_path / "tox.ini").write_text("[pytest]\npyvmm_matrix = cpus=1,2\n")
    elif words == ["one", "two"]:
        (tmp_path / "two/pytest.ini").unlink()
    done = run(tmp_path, *words)
    assert f"pytest {command.format(tmp_path)}" in done.stdout, done.stdout
