"""A guest kernel's own data as the test bed reads it: a guest may have overwritten all of it."""

from __future__ import annotations

from contextlib import suppress

from pyvmm.testbed.kernel.backtrace import Names
from pyvmm.testbed.kernel.printk import LogReader
from pyvmm.testbed.kernel.tasks import read_tasks
from pyvmm.testbed.kernel.view import KERNEL_MAP, NoKernelError
from tests.fuzz.feed import Feed
from tests.support.fake_kernel import DATA, LOG, MODULE_TEXT, MODULES, SYMBOLS, TASKS, FakeKernel

PLACES = (LOG, LOG + 48, LOG + 0x1000, LOG + 0x2000, LOG + 0x4000, TASKS, TASKS + 256, MODULES, DATA + 0x200, 0x3000)


def memory(data: bytes) -> None:
    """A log, tasks and a module, overwritten in places."""
    feed = Feed(data)
    kernel = FakeKernel()
    for number in range(20):
        kernel.log(f"line {number}")
    kernel.add_task(1, "init")
    kernel.add_module("hv_balloon", {"balloon_up": 0x100})
    view = kernel.view
    reader, names = LogReader(view), Names(view)
    while feed:
        kernel.memory.write(feed.choice(PLACES) + 8 * feed.below(8), feed.word().to_bytes(8, "little"))
        view.forget()
        with suppress(NoKernelError):
            reader.read()
        with suppress(NoKernelError):
            read_tasks(view)
    names.backtrace(MODULE_TEXT + 0x110, KERNEL_MAP + TASKS)
    names.name(SYMBOLS["_stext"])


TARGETS = {"guest_kernel_memory": memory}
