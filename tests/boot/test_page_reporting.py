"""Free page reporting: memory that the guest has freed goes back to the host by itself, on both engines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.booted import MIB, Booted

DIRTIED = 200 * MIB
REPORT_LIMIT = 40.0  # seconds; Linux reports 2 s after memory was freed, and emulation stretches that

DIRTY = "mkdir -p /mnt && mount -t tmpfs -o size=400m none /mnt && head -c 209715200 /dev/zero > /mnt/file"
FREE = "umount /mnt"
DIRTY_LIMIT = 150.0  # seconds; each page is a fault of the guest, of the emulated host and of the emulator

MATRIX = [
    pytest.param((image, engine), id=f"{image}-{engine}")
    for image in ("debian-6.1", "debian-6.12")
    for engine in ("kernel", "user")
]


@pytest.fixture(scope="module", params=MATRIX)
def guest(request: pytest.FixtureRequest) -> Iterator[Booted]:
    image, engine = request.param
    with Booted(image, engine=engine, memory=512 * MIB) as booted:
        booted.wait_balloon_ready()
        yield booted


def reported(guest: Booted) -> int:
    """Bytes discarded by reports so far."""
    found = guest.machine.monitor.page_reporting()
    assert found is not None
    return int(found["discarded"])


def test_linux_turns_reporting_on(guest: Booted) -> None:
    assert "Cold memory discard hint enabled" in guest.sh("dmesg")


def test_freed_memory_goes_back_to_the_host_without_a_balloon(guest: Booted) -> None:
    guest.sh(DIRTY, limit=DIRTY_LIMIT)
    dirtied = guest.machine.monitor.resident()
    guest.sh(FREE)
    guest.until(
        lambda: guest.machine.monitor.resident() < dirtied - DIRTIED * 9 // 10,
        REPORT_LIMIT,
        "fall of the resident memory",
    )
    assert guest.machine.monitor.balloon_actual() == 512 * MIB


def test_every_report_was_taken(guest: Booted) -> None:
    found = guest.machine.monitor.page_reporting()
    assert found is not None
    assert found["calls"] > 0
    assert (found["refused"], found["failed"]) == (0, 0)


def test_memory_in_use_survives_reports(guest: Booted) -> None:
    guest.sh("mkdir -p /mnt && mount -t tmpfs none /mnt && head -c 52428800 /dev/urandom > /mnt/kept")
    before = guest.sh("sha256sum /mnt/kept")
    done = reported(guest)
    guest.sh("head -c 104857600 /dev/zero > /mnt/freed && rm /mnt/freed")
    guest.until(lambda: reported(guest) > done + 50 * MIB, REPORT_LIMIT, "reports")
    assert guest.sh("echo 3 > /proc/sys/vm/drop_caches; sha256sum /mnt/kept") == before
    guest.sh("umount /mnt")


def test_reporting_goes_on_after_a_reboot(guest: Booted) -> None:
    with guest.expect_reset():
        guest.send("reboot -f")
    guest.wait_balloon_ready()
    before = reported(guest)
    guest.sh(DIRTY, limit=DIRTY_LIMIT)
    guest.sh(FREE)
    guest.until(lambda: reported(guest) > before + DIRTIED // 2, REPORT_LIMIT, "reports")


@pytest.mark.parametrize("engine", ["kernel", "user"])
def test_it_can_be_left_out(engine: str) -> None:
    with Booted("debian-6.1", engine=engine, page_reporting=False) as guest:
        guest.wait_balloon_ready()
        assert "Cold memory" not in guest.sh("dmesg")
        assert guest.machine.monitor.page_reporting() is None
