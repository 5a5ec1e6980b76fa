"""A kernel's log, tasks and modules are read from guest memory, and damaged ones are not followed for ever."""

from __future__ import annotations

from struct import pack

import pytest

from pyvmm.testbed.kernel.backtrace import MODULES_LIMIT, Names
from pyvmm.testbed.kernel.printk import LogReader
from pyvmm.testbed.kernel.tasks import read_tasks
from pyvmm.testbed.kernel.view import KERNEL_MAP, KernelView, NoKernelError
from pyvmm.testbed.oracles.kernel_log import KernelLog
from tests.support.fake_bed import FakeBed
from tests.support.fake_kernel import DATA, LOG, MODULE_TEXT, SYMBOLS, TASKS, FakeKernel


def test_records_are_read_once_with_level_and_time() -> None:
    kernel = FakeKernel()
    kernel.log("one", level=4, seconds=1.5)
    kernel.log("two\nthree")
    reader = LogReader(kernel.view)
    assert [(each.level, each.time, each.text) for each in reader.read()] == [
        (4, 1.5, "one"),
        (6, 1.0, "two"),
        (6, 1.0, "three"),
    ]
    assert reader.read() == []
    kernel.log("four", state=1)  # committed, and open for a continuation
    assert [each.text for each in reader.read()] == ["four"]


def test_a_record_that_is_being_written_waits_for_the_next_read() -> None:
    kernel = FakeKernel()
    kernel.log("whole")
    kernel.log("half", state=0)
    reader = LogReader(kernel.view)
    assert [each.text for each in reader.read()] == ["whole"]
    kernel.records -= 1
    kernel.log("half")
    assert [each.text for each in reader.read()] == ["half"]


def test_the_ring_goes_round_and_lost_records_are_passed_over() -> None:
    kernel = FakeKernel()
    reader = LogReader(kernel.view)
    for number in range(100):
        kernel.log(f"line {number} " + "x" * (number % 60))
    lines = [each.text.split("x")[0].strip() for each in reader.read()]
    assert lines == [f"line {number}" for number in range(84, 100)]
    for number in range(100, 105):
        kernel.log(f"line {number}")
    assert [each.text for each in reader.read()] == [f"line {number}" for number in range(100, 105)]


@pytest.mark.parametrize("at", [0, 8, 16, 24, 32, 48, 56])
@pytest.mark.parametrize("value", [0, 1, 63, 1 << 20, 1 << 62, (1 << 64) - 1])
def test_a_damaged_ring_ends_the_read(at: int, value: int) -> None:
    kernel = FakeKernel()
    kernel.log("one")
    kernel.put(LOG + at, value)
    try:
        assert len(LogReader(kernel.view).read()) <= 16
    except NoKernelError:
        pass


def test_tasks_and_which_of_them_are_stuck() -> None:
    kernel = FakeKernel()
    kernel.add_task(1, "init", state=1)
    kernel.add_task(2, "kworker/0:2", state=2, switches=7, sp=5)
    kernel.add_task(3, "idle kthread", state=0x402)
    tasks = read_tasks(kernel.view)
    assert [(each.pid, each.name, each.is_stuck) for each in tasks] == [
        (0, "", False),
        (1, "init", False),
        (2, "kworker/0:2", True),
        (3, "idle kthread", False),
    ]
    assert (tasks[2].switches, tasks[2].sp) == (7, 5)


def test_a_damaged_list_of_tasks_is_refused() -> None:
    kernel = FakeKernel()
    kernel.add_task(1, "loop")
    kernel.put(TASKS + 256 + 8, KERNEL_MAP + TASKS + 256 + 8)
    with pytest.raises(NoKernelError, match="no end"):
        read_tasks(kernel.view)
    kernel.put(TASKS + 256 + 8, 0x1234)
    with pytest.raises(NoKernelError, match="not mapped"):
        read_tasks(kernel.view)


def test_addresses_are_named_and_a_stack_is_searched_for_calls() -> None:
    kernel = FakeKernel()
    kernel.add_module("hv_balloon", {"balloon_up": 0x100, "balloon_down": 0x400})
    names = Names(kernel.view)
    assert names.name(SYMBOLS["_stext"] + 0x108) == "vmbus_isr+0x8"
    assert names.name(MODULE_TEXT + 0x410) == "balloon_down+0x10 [hv_balloon]"
    assert names.name(MODULE_TEXT + 1) == ".text+0x1 [hv_balloon]"
    assert names.name(0x1234) == "0x1234"
    stack = KERNEL_MAP + 0x80000
    kernel.memory.write(0x70000 + 0x410 - 5, b"\xe8")
    called, not_called = MODULE_TEXT + 0x410, MODULE_TEXT + 0x510
    kernel.memory.write(0x80000, pack("<3Q", not_called, called, 5))
    assert names.backtrace(SYMBOLS["_stext"], stack) == ["start+0x0", "? balloon_down+0x10 [hv_balloon]"]
    assert names.backtrace(1, 0x1000) == ["0x1"]  # a user stack
    assert Names(None).backtrace(1, stack) == ["0x1"]


def test_an_endless_list_of_modules_is_cut() -> None:
    kernel = FakeKernel()
    kernel.add_module("a", {})
    kernel.put(0x60000 + 8, KERNEL_MAP + 0x60000 + 8)
    names = Names(kernel.view)
    assert names.name(MODULE_TEXT + 0x2000) == hex(MODULE_TEXT + 0x2000)
    assert len(names._modules) == MODULES_LIMIT


def test_another_kernel_is_not_read() -> None:
    kernel = FakeKernel()
    kernel.memory.write(DATA, b"something else")
    with pytest.raises(NoKernelError, match="not the image"):
        KernelView(kernel.memory, kernel.image)


def test_the_log_oracle_reads_memory_and_asks_where_it_cannot() -> None:
    kernel = FakeKernel()
    view = kernel.view
    log = KernelLog(FakeBed(), lambda: view)
    assert log.command == ""
    kernel.log("BUG: unable to handle page fault for address: ffffea00", level=1)
    kernel.log("Call Trace:", level=4)
    (found,) = log.judge(None)
    assert found.line.startswith("oops: BUG: unable to handle")
    assert found.details.count("\n") == 1
    assert log.judge(None) == []
    assert "dmesg" in KernelLog(FakeBed()).command


def test_the_log_oracle_reads_a_log_anew_after_a_reset() -> None:
    kernel, bed = FakeKernel(), FakeBed()
    view = kernel.view
    log = KernelLog(bed, lambda: view)
    kernel.log("pyvmm: init", level=6)
    assert len(log.read() or []) == 1
    assert log.read() == []
    bed.machine.resets += 1
    assert len(log.read() or []) == 1
