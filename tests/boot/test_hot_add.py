"""Linux grows past its boot size, shrinks below it, and starts anew at it after a reboot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pyvmm.devices.balloon.growth import GUEST_REFUSED, LEFT_OFFLINE
from pyvmm.devices.balloon.plan import ResizeOutcome
from tests.support.booted import MIB, Booted

BOOT = 512 * MIB
MAX = 1024 * MIB
PATTERN = 24  # MiB
LIMIT = 200.0  # seconds for one resize: half a GiB is zeroed by the guest on its way out, under emulation

GUESTS = [
    pytest.param(("debian-6.1", "kernel", 1), id="debian-6.1-kernel"),
    pytest.param(("debian-6.12", "user", 2), id="debian-6.12-user-2cpu"),
    pytest.param(("debian-7.2", "kernel", 2), id="debian-7.2-kernel-2cpu"),
    pytest.param(("debian-5.10", "user", 1), id="debian-5.10-user"),
]


@pytest.fixture(scope="module", params=GUESTS)
def guest(request: pytest.FixtureRequest) -> Iterator[Booted]:
    image, engine, cpus = request.param
    with Booted(image, engine=engine, cpus=cpus, memory=BOOT, max_memory=MAX) as booted:
        booted.wait_balloon_ready()
        yield booted


def resize(guest: Booted, size: int) -> ResizeOutcome:
    known = len(guest.balloon.outcomes)
    guest.machine.monitor.balloon_set(size)
    guest.until(lambda: len(guest.balloon.outcomes) > known, LIMIT, f"answer to a target of {size >> 20} MiB")
    return guest.balloon.outcomes[-1]


def size_changes(guest: Booted) -> list[dict[str, Any]]:
    """What MEMORY_DEVICE_SIZE_CHANGE told so far."""
    return [data for name, data in guest.events if name == "MEMORY_DEVICE_SIZE_CHANGE"]


def test_growth_to_the_page_is_seen_by_both_sides(guest: Booted) -> None:
    guest.sh(
        f"cd /tmp; (cat /lib/modules/*.ko; cat /bin/busybox) >seed; while [ $(stat -c %s p 2>/dev/null || echo 0) "
        f"-lt {PATTERN * MIB} ]; do cat seed >>p; done; md5sum p >sum; rm seed"
    )
    total = guest.guest.memory_total
    for size in (896 * MIB, 900 * MIB + 4096):
        assert resize(guest, size).reached
        assert guest.guest.memory_total - total == size - BOOT
    window = guest.machine.window
    assert window is not None
    (found,) = guest.added_ranges()
    assert found == (window.gpa, 4 * 128 * MIB), "whole blocks"
    assert window.mapped_pages * 4096 == 900 * MIB + 4096 - BOOT, "of which the guest can touch what it was given"


def test_shrinking_below_the_boot_size_and_back_to_the_most(guest: Booted) -> None:
    total = guest.guest.memory_total
    before = guest.machine.balloon.actual
    assert resize(guest, 384 * MIB).reached
    assert total - guest.guest.memory_total == guest.missing(before - 384 * MIB)
    assert resize(guest, MAX).reached
    assert guest.guest.memory_total - total == MAX - before
    info = guest.machine.balloon.info()
    assert not any(info["refused-pages"].values()), info["refused-pages"]
    assert (info["hot-add"]["added"], info["hot-add"]["removed"]) == (512 * MIB, 0)
    guest.sh("cd /tmp; md5sum -c sum")


def test_more_than_the_most_is_refused_with_a_reason(guest: Booted) -> None:
    reply = guest.machine.monitor.balloon_set(2 * MAX)
    assert reply["will-reach"] == MAX
    assert "1024 MiB are the most" in reply["reason"]


def test_a_driver_bound_again_keeps_what_was_added(guest: Booted) -> None:
    total = guest.guest.memory_total
    guest.balloon.unbind()
    guest.balloon.bind()
    assert resize(guest, MAX - 32 * MIB).reached
    assert guest.guest.memory_total == total - guest.missing(32 * MIB)
    assert resize(guest, MAX).reached
    assert guest.guest.memory_total == total
    assert not guest.log("hot_add memory failed")


def test_a_reboot_is_the_boot_size_and_then_the_target_again(guest: Booted) -> None:
    target = 640 * MIB
    resize(guest, BOOT)
    sizes = len(size_changes(guest))
    with guest.expect_reset():
        guest.machine.reset()
    assert [each["size"] for each in size_changes(guest)[sizes:]] == [0], "though it had as much as at boot"
    guest.wait_balloon_ready()
    resize(guest, target)
    known = len(guest.balloon.outcomes)
    with guest.expect_reset():
        guest.send("reboot")
    guest.until(
        lambda: len(guest.balloon.outcomes) > known and guest.balloon.outcomes[-1].reached,
        LIMIT,
        "target applied again",
    )
    assert guest.machine.balloon.actual == target
    assert [size for _, size in guest.added_ranges()] == [128 * MIB]


def test_memory_left_offline_is_said_at_once() -> None:
    with Booted(
        "debian-6.1", engine="user", memory=256 * MIB, max_memory=MAX, append="memhp_default_state=offline"
    ) as g:
        g.wait_balloon_ready()
        total = g.guest.memory_total
        outcome = resize(g, MAX)
        assert outcome.reason == LEFT_OFFLINE
        assert outcome.actual == 384 * MIB, "one block, and no further five seconds"
        assert g.guest.memory_total == total


@pytest.mark.parametrize("engine", ["kernel", "user"])
def test_a_driver_with_hot_add_off_refuses_and_module_parameters_reach_it(engine: str) -> None:
    with Booted(
        "debian-6.12",
        engine=engine,
        memory=256 * MIB,
        max_memory=MAX,
        append="hv_balloon.hot_add=0 hv_balloon.pressure_report_delay=2",
    ) as g:
        g.wait_balloon_ready()
        outcome = resize(g, MAX)
        assert (outcome.reached, outcome.actual, outcome.reason) == (False, 256 * MIB, GUEST_REFUSED)
        assert resize(g, 224 * MIB).reached
        g.until(lambda: g.machine.balloon.last_status is not None, 20, "a status report before the usual 45 s")
