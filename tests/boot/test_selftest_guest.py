"""All steps of `pyvmm selftest` with a Linux guest, on one engine with one vCPU."""

from __future__ import annotations

from pyvmm.images.catalog import find_image
from pyvmm.selftest.initrd import selftest_initrd
from pyvmm.selftest.report import build
from pyvmm.selftest.rows import Row
from pyvmm.selftest.run import Plan, SelfTest
from pyvmm.selftest.steps import STEPS


def test_every_step_is_ok_where_linux_runs() -> None:
    image = find_image(build=False)
    shown: list[Row] = []
    test = SelfTest(
        image.vmlinux,
        selftest_initrd(image),
        (Plan("kernel", 1, tuple(STEPS)),),
        lambda row, done: shown.append(row) if done else None,
    )
    test.run()
    failed = [f"{row.group}, {row.name}: {row.detail}" for row in test.rows if row.status != "ok"]
    assert not failed, "\n".join(failed)
    assert shown == test.rows
    made = build(test.rows, emulated=True, outside="", complete=True)
    assert made["counts"]["ok"] == len(test.rows)
    out = next(row for row in test.rows if row.name == "balloon out")
    assert int(out.figures["resident-after"]) > 0
