"""Which lines of a kernel log tell of damage, and how they become reports. Texts in the kernels' own formats."""

from __future__ import annotations

import pytest

from pyvmm.testbed.oracles.asking import Answer
from pyvmm.testbed.oracles.kernel_log import KernelLog
from pyvmm.testbed.oracles.log_lines import KNOWN_WARNINGS, parse, reports
from tests.support.fake_bed import FakeBed

ORDINARY = """\
<5>[    0.000000] Linux version 6.1.0-56-cloud-amd64 (debian-kernel@lists.debian.org)
<6>[    0.151000] x86/fpu: x87 FPU will use FXSAVE
<6>[    4.751626] hv_utils: Registering HyperV Utility Driver
<3>[    5.100000] hv_balloon: Unhandled message: type: 0
<6>[    5.156460] hv_balloon: Max. dynamic memory size: 512 MB
<4>[    6.000000] hv_balloon: Balloon request will be partially fulfilled. Balloon floor reached.
<4>[    6.100000] sched: RT throttling activated
<4>[    6.200000] clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc' as unstable
"""

LIST_BUG = """\
<3>[   12.000100] list_del corruption, ffff888003c0->next is LIST_POISON1 (dead000000000100)
<4>[   12.000200] ------------[ cut here ]------------
<2>[   12.000300] kernel BUG at lib/list_debug.c:56!
<4>[   12.000400] invalid opcode: 0000 [#1] PREEMPT SMP PTI
<4>[   12.000500] CPU: 0 PID: 37 Comm: kworker/0:2 Not tainted 6.1.0-56-cloud-amd64 #1
<4>[   12.000600] RIP: 0010:__list_del_entry_valid.cold+0x1d/0x69
<4>[   12.000700] Call Trace:
<4>[   12.000800]  vmbus_onoffer_rescind+0x1c/0x90 [hv_vmbus]
<4>[   12.000900] ---[ end trace 0000000000000000 ]---
"""


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("WARNING: CPU: 1 PID: 9 at drivers/hv/channel_mgmt.c:940 vmbus_onoffer+0x1f/0x2b0 [hv_vmbus]", "warning"),
        ("BUG: kernel NULL pointer dereference, address: 0000000000000008", "oops"),
        ("BUG: unable to handle page fault for address: ffffea0040000034", "oops"),
        ("general protection fault, probably for non-canonical address 0x6b6b6b6b6b6b6b6b: 0000 [#1] SMP", "oops"),
        ("Oops: 0002 [#1] PREEMPT SMP NOPTI", "oops"),
        ("Oops: Oops: 0000 [#1] SMP PTI", "oops"),
        ("Oops: invalid opcode: 0000 [#1] SMP", "oops"),
        ("kernel BUG at mm/page_alloc.c:1500!", "kernel BUG"),
        ("BUG: Bad page state in process kworker/0:1  pfn:07a00", "bad page"),
        ("page dumped because: nonzero _refcount", "bad page"),
        ("list_add corruption. prev->next should be next (ffff), but was dead. (prev=beef).", "list corruption"),
        ("list_add double add: new=ffff888004, prev=ffff888004, next=ffff888008.", "list corruption"),
        ("refcount_t: underflow; use-after-free.", "reference count"),
        ("BUG: KFENCE: use-after-free read in balloon_remove+0x1d/0x1b0 [hv_balloon]", "KFENCE"),
        ("BUG: KASAN: slab-out-of-bounds in vmbus_recvpacket+0x10/0x20", "KASAN"),
        ("UBSAN: array-index-out-of-bounds in drivers/hv/hv_balloon.c:1300:3", "UBSAN"),
        ("watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [kworker/0:3:91]", "soft lockup"),
        ("watchdog: Watchdog detected hard LOCKUP on cpu 1", "hard lockup"),
        ("rcu: INFO: rcu_preempt self-detected stall on CPU", "RCU stall"),
        ("rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", "RCU stall"),
        ("rcu: rcu_preempt kthread starved for 5250 jiffies! g1 f0x0 RCU_GP_WAIT_FQS(5) ->state=0x0", "RCU stall"),
        ("INFO: task kworker/0:2:37 blocked for more than 120 seconds.", "hung task"),
        ("BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 41s!", "workqueue lockup"),
        ("WARNING: possible circular locking dependency detected", "lockdep"),
        ("WARNING: inconsistent lock state", "lockdep"),
        ("WARNING: suspicious RCU usage", "lockdep"),
        ("BUG: sleeping function called from invalid context at mm/slab.h:421", "atomic sleep"),
        ("BUG: scheduling while atomic: hv_balloon/58/0x00000100", "atomic sleep"),
        ("kworker/u4:1: page allocation failure: order:4, mode:0xcc0(GFP_KERNEL)", "allocation failure"),
        ("sh invoked oom-killer: gfp_mask=0x100cca(GFP_HIGHUSER_MOVABLE), order=0", "out of memory"),
        ("irq 9: nobody cared (try booting with the \"irqpoll\" option)", "interrupt"),
        ("BUG kmalloc-64 (Not tainted): Poison overwritten", "slab corruption"),
        ("Call Trace:", "call trace"),
        ("Kernel panic - not syncing: Fatal exception in interrupt", "panic"),
    ],
)  # fmt: skip
def test_each_kind_of_damage_is_recognised(text: str, kind: str) -> None:
    (report,) = reports(parse(f"<4>[    9.100000] {text}\n"))
    assert (report.kind, report.headline.text) == (kind, text)


def test_a_critical_line_counts_whatever_it_says() -> None:
    (report,) = reports(parse("<10>[    9.100000] thermal: too hot\n"))  # facility 1, level 2
    assert report.kind == "critical"


def test_an_ordinary_log_has_no_report_nor_have_known_warnings() -> None:
    assert reports(parse(ORDINARY)) == []
    assert reports(parse("".join(f"<2>[    0.100000] {text}\n" for text in KNOWN_WARNINGS))) == []


def test_a_report_keeps_its_trace_and_is_named_by_its_most_special_line() -> None:
    (report,) = reports(parse(ORDINARY + LIST_BUG + "<6>[   12.001000] hv_vmbus: fine\n"))
    assert (report.kind, len(report.lines)) == ("list corruption", 9)
    assert report.lines[-1].text.startswith("---[ end trace")
    assert len(reports(parse(LIST_BUG + LIST_BUG))) == 2


def test_lines_without_times_and_with_callers_and_garbage_are_parsed() -> None:
    lines = list(parse("<4>WARNING: one\n<6>[    1.000000][    T1] two\n<6>[ 1.5][  C0] three\n--\nnoise\n<x>y\n<4"))
    assert [each.text for each in lines] == ["WARNING: one", "two", "three"]


def test_a_report_is_found_once_and_an_allowed_one_not_at_all() -> None:
    log = KernelLog(FakeBed())
    (found,) = log.judge(Answer(output=LIST_BUG))
    assert found.line.startswith("list corruption: list_del corruption")
    assert log.judge(Answer(output=LIST_BUG)) == []
    log.allow("drivers/hv")
    assert log.judge(Answer(output="<4>[   20.000000] WARNING: at drivers/hv/channel.c:3\n")) == []
    assert len(log.judge(Answer(output="<4>[   21.000000] WARNING: at mm/slub.c:3\n"))) == 1


def test_what_was_there_at_the_beginning_does_not_count() -> None:
    log = KernelLog(FakeBed())
    log.begin(Answer(output=LIST_BUG))
    assert log.judge(Answer(output=LIST_BUG)) == []
    assert len(log.judge(Answer(output=LIST_BUG.replace("   12.", "   13.")))) == 1
