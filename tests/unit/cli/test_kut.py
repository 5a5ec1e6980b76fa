"""`pyvmm kut`: the suite's file, settings made for QEMU, verdicts, and the command's own words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pyvmm.cli.commands.kut import complete_group, complete_test, kut
from pyvmm.cli.kut.plan import NOW, CannotRun, check_host, plan
from pyvmm.cli.kut.runner import End, judge
from pyvmm.cli.kut.suite import Suite, UnitTest, open_suite, parse
from pyvmm.errors import ConfigError

CONFIG = '''
##############
# a comment
[one]
file = one.flat
smp = 2
groups = apic slow

[two]
file = two.flat
test_args = "-a 'b c'"
qemu_params = -cpu max,+svm \\
junk

[three]
file = three.flat
extra_params = """-m 256 \\
-device hyperv-testdev"""
timeout = 2m
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "x86").mkdir()
    (tmp_path / "x86" / "unittests.cfg").write_text(CONFIG)
    for name in ("one", "two", "three"):
        (tmp_path / "x86" / f"{name}.flat").write_bytes(b"")
    return tmp_path


def test_the_file_is_read_as_the_suites_scripts_read_it(folder: Path) -> None:
    suite = open_suite(folder)
    one, two, three = suite.tests
    assert (one.name, one.file, one.smp, one.groups) == ("one", "one.flat", "2", "apic slow")
    assert two.test_args == "\"-a 'b c'\""
    assert three.qemu_params.split() == ["-m", "256", "-device", "hyperv-testdev"]
    assert open_suite(folder / "x86").tests == suite.tests
    made = plan(suite, three)
    assert (made.memory, made.timeout, made.cpus) == (256 << 20, 120, 1)
    assert plan(suite, three, timeout=5).timeout == 5
    assert parse('[a]\nqemu_params = """-m 1') == [UnitTest("a", qemu_params="-m 1")], "quotes never closed"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"file": "none.flat"}, "build it with make"),
        ({"file": ""}, "has no file"),
        ({"arch": "i386"}, "i386 only"),
        ({"accel": "tcg"}, "accelerator tcg"),
        ({"machine": "q35"}, "machine q35"),
        ({"disabled_if": "[ 1 ]"}, "does not evaluate"),
        ({"smp": "many"}, "wants many CPUs"),
        ({"smp": "9" * 5000}, "CPUs"),
        ({"smp": "0"}, "wants 0 CPUs"),
        ({"timeout": "soon"}, "'soon' is no number"),
        ({"timeout": "s"}, "'s' is no number"),
        ({"test_args": "`rm x`"}, "shell command"),
        ({"test_args": "$(rm x)"}, "shell command"),
        ({"test_args": '"open'}, "no shell words"),
        ({"qemu_params": "-m"}, "memory size"),
        ({"qemu_params": "-m 9999999999G"}, "memory size"),
        ({"qemu_params": "-m 4k"}, "wants 4k of memory"),
        ({"qemu_params": "-device intel-iommu,x=y"}, "device intel-iommu"),
        ({"qemu_params": "-M q35"}, "-M q35"),
        ({"qemu_params": "-cpu"}, "CPU "),
        ({"qemu_params": "-cpu EPYC"}, "CPU EPYC"),
        ({"qemu_params": "-cpu max,-vmx-mbec"}, "without vmx-mbec"),
        ({"qemu_params": "-cpu max,phys-bits=36"}, "phys-bits=36"),
        ({"qemu_params": "-cpu max,vendor=Intel"}, "vendor=Intel"),
        ({"qemu_params": "-overcommit cpu-pm=on"}, "-overcommit cpu-pm=on"),
        ({"groups": "x nodefault"}, "only by its name"),
    ],
)
def test_what_the_machine_does_not_have_skips_a_test(folder: Path, settings: dict[str, str], words: str) -> None:
    test = UnitTest("t", **{"file": "one.flat"} | settings)
    with pytest.raises(CannotRun) as caught:
        plan(Suite(folder / "x86", [test]), test)
    assert words in str(caught.value)


def test_the_date_is_no_shell_command_that_skips_a_test(folder: Path) -> None:
    test = UnitTest("t", file="one.flat", test_args='"10000000 `date +%s`"')
    assert plan(Suite(folder / "x86", [test]), test).arguments == f"10000000 {NOW}"


def test_a_check_compares_a_file_of_the_host(tmp_path: Path) -> None:
    path = tmp_path / "parameter"
    path.write_text("Y\n")
    check_host(UnitTest("t", check=f"{path}=Y"))
    with pytest.raises(CannotRun, match="is Y on this host, wanted N"):
        check_host(UnitTest("t", check=f"{path}=Y {path}=N"))
    with pytest.raises(CannotRun, match="is not there"):
        check_host(UnitTest("t", check=f"{path}x=N"))


def test_the_image_that_ends_qemu_is_left_out_where_qemu_is_the_host() -> None:
    check_host(UnitTest("t", file="emulator.flat"))
    with pytest.raises(CannotRun, match="would end the emulated host"):
        check_host(UnitTest("t", file="emulator.flat"), emulated=True)


def test_a_cpu_without_features_hides_them(folder: Path) -> None:
    test = UnitTest("t", file="one.flat", qemu_params="-cpu qemu64,-pcid,+invpcid,x2apic=off,vendor=GenuineIntel")
    made = plan(Suite(folder / "x86", [test]), test)
    assert (made.hidden, made.vendor, made.hyperv) == ({"pcid", "x2apic"}, "GenuineIntel", False)
    test = UnitTest("t", file="one.flat", qemu_params="-cpu host,hv_passthrough")
    assert plan(Suite(folder / "x86", [test]), test).hyperv


@pytest.mark.parametrize(
    ("end", "output", "verdict", "why"),
    [
        (End("exit", status=1), "PASS: x\nSUMMARY: 3 tests, 1 skipped\n", "PASS", "3 tests, 1 skipped"),
        (End("exit", status=1), "Hello", "PASS", ""),
        (End("exit", status=77), "SKIP: no SVM\n", "SKIP", "no SVM"),
        (End("exit", status=77), "PKU not enabled\nSUMMARY: 0 tests\n", "SKIP", "PKU not enabled"),
        (End("exit", status=3), "FAIL: a\nFAIL: b\nFAIL: c\nFAIL: d\nSUMMARY: 4 tests", "FAIL", "FAIL: c and 1 more"),
        (End("exit", status=0xFD), "Unhandled exception 13", "FAIL", "Unhandled exception 13"),
        (End("exit", status=9), "", "FAIL", "exit(4): no output"),
        (End("quit"), "a\nb\n\n", "TIMEOUT", "no end after 9 s; its last line: b"),
        (End("killed"), "", "TIMEOUT", "its last line: no output"),
        (End("reset", "triple fault"), "a", "FAIL", "reset (triple fault)"),
        (End("poweroff"), "a", "FAIL", "powered off without a result"),
        (End("error", "KVM internal error"), "a", "FAIL", "KVM internal error"),
    ],
)
def test_verdicts(end: End, output: str, verdict: str, why: str) -> None:
    found, said = judge(end, output, 9)
    assert found == verdict
    assert why in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{}/none"], "no such folder"),
        (["{}/x86/one.flat"], "not a folder"),
        (["{}/empty"], "no unittests.cfg"),
        (["{}", "two2"], "no test is named 'two2'"),
        (["{}", "-g", "apics"], "no group is named 'apics' in {}/x86: did you mean 'apic'?"),
    ],
)
def test_bad_input_is_one_line(folder: Path, words: list[str], message: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ConfigError) as caught:
        CliRunner().invoke(
            kut, [word.format(folder) for word in words], standalone_mode=False, catch_exceptions=False
        )
    assert message.format(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_says_what_is_skipped_and_why(folder: Path) -> None:
    def listed(*words: str) -> str:
        return CliRunner().invoke(kut, [str(folder), "--list", *words], standalone_mode=False).output

    (folder / "x86" / "two.flat").unlink()
    assert "two" in listed()
    assert "build it with make" in listed()
    assert "two" not in listed("-g", "apic")
    assert [row["name"] for row in json.loads(listed("--json"))] == ["one", "two", "three"]


def test_a_run_without_a_test_that_can_run_needs_no_kvm(folder: Path) -> None:
    for name in ("one", "two", "three"):
        (folder / "x86" / f"{name}.flat").unlink()
    found = CliRunner().invoke(kut, [str(folder)], standalone_mode=False)
    assert "0 passed, 0 failed, 0 timed out, 3 skipped" in found.output
    rows = json.loads(CliRunner().invoke(kut, [str(folder), "--json"], standalone_mode=False).output)
    assert rows["count"] == {"PASS": 0, "FAIL": 0, "SKIP": 3, "TIMEOUT": 0}


def test_tests_and_groups_complete(folder: Path) -> None:
    context = kut.make_context("kut", [str(folder)])
    assert complete_test(context, kut.params[1], "t") == ["two", "three"]
    assert complete_group(context, kut.params[2], "") == ["apic", "slow"]
    context.params["folder"] = folder / "none"
    assert complete_test(context, kut.params[1], "t") == []
