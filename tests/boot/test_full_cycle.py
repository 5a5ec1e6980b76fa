"""The whole life of a balloon on each kernel and engine: 1 GiB out, back, added, and out below the boot size, twice.

Guest and host agree to the page at each step, and what the guest has written all over its memory stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.booted import MIB, Booted

BOOT = 1536 * MIB
MOVED = 1024 * MIB
MAX = BOOT + MOVED
PIECES = {"first": 28, "after-reboot": 14}  # of the pattern, each followed by FILLER
FILLER = 40  # MiB, freed once all is written
LINES = 58254  # numbers of eight digits that make half a MiB
WRITE_LIMIT = 150.0
OVERHEAD = 128 * MIB
"""Of the machine's process, besides the guest's memory."""
ASKED_AGAIN = 40.0  # seconds: three pauses, under emulation

GUESTS = [
    pytest.param((image, engine, cpus), id=f"{image}-{engine}-{cpus}cpu")
    for image, engine, cpus in (
        ("debian-6.1", "kernel", 2),
        ("debian-6.1", "user", 1),
        ("debian-6.12", "kernel", 1),
        ("debian-6.12", "user", 2),
        ("debian-7.2", "kernel", 2),
        ("debian-7.2", "user", 1),
        ("debian-5.10", "kernel", 1),
        ("debian-5.10", "user", 2),
    )
]


@pytest.fixture(scope="module", params=GUESTS)
def guest(request: pytest.FixtureRequest) -> Iterator[Booted]:
    image, engine, cpus = request.param
    with Booted(image, engine=engine, cpus=cpus, memory=BOOT, max_memory=MAX) as booted:
        yield booted


def write_pattern(guest: Booted, pieces: int) -> None:
    """Half a MiB in every 40: no two pages are the same, so that none can stand for another."""
    guest.sh(
        "mkdir -p /mnt; mount -t tmpfs -o size=95% pattern /mnt; cd /mnt; n=0; first=10000000; "
        f"while [ $n -lt {pieces} ]; do next=$((first + {LINES})); seq $first $((next - 1)) >p$n; first=$next; "
        f"dd if=/dev/zero of=fill$n bs=1M count={FILLER} 2>/dev/null; n=$((n + 1)); done; md5sum p* >sums; rm fill*",
        limit=WRITE_LIMIT,
    )


def check(guest: Booted, size: int, total: int, *, added: int) -> None:
    """After a resize to `size`. `total`: MemTotal in bytes at the boot size; `added`: bytes hot-added so far."""
    outcome = guest.balloon.resize(size)
    if not outcome.reached and "floor" in outcome.reason:
        # While Linux reports free pages it holds up to 64 MiB of them apart: the host asks for them again by itself.
        guest.until(lambda: guest.balloon.outcomes[-1] is not outcome, ASKED_AGAIN, "end of the further tries")
        outcome = guest.balloon.outcomes[-1]
    assert outcome.reached, outcome.reason
    assert outcome.actual == size
    out = BOOT + added - size
    assert guest.guest.memory_total == total + added - guest.missing(out)
    info = guest.machine.balloon.info()
    assert info["actual"] == size
    assert info["removed-guest"] + info["removed-both"] == out
    assert info["hot-add"]["added"] == added
    assert not any(info["refused-pages"].values()), info["refused-pages"]
    assert guest.added_ranges() == ([(guest.machine.window.gpa, added)] if added else [])
    resident = guest.machine.monitor.resident
    guest.until(lambda: resident() <= size + OVERHEAD, 20, f"{resident() >> 20} MiB resident: the pages discarded")
    guest.sh("cd /mnt; md5sum -c sums")


@pytest.mark.parametrize("life", ["first", "after-reboot"])
def test_out_back_added_and_out_again(guest: Booted, life: str) -> None:
    if life == "after-reboot":
        guest.machine.monitor.balloon_set(BOOT)
        with guest.expect_reset():
            guest.send("reboot")
    guest.wait_balloon_ready()
    total = guest.guest.memory_total
    write_pattern(guest, PIECES[life])
    full = guest.machine.monitor.resident()
    check(guest, BOOT - MOVED, total, added=0)
    if life == "first":  # of less, the guest may have reported the most as free before it is looked at
        assert full - guest.machine.monitor.resident() > MOVED - 200 * MIB
    check(guest, BOOT, total, added=0)
    check(guest, MAX, total, added=MOVED)
    check(guest, BOOT - MOVED // 2, total, added=MOVED)


@pytest.mark.parametrize("engine", ["kernel", "user"])
@pytest.mark.parametrize(("newest", "spoken"), [("1.0", "0.3"), ("2.0", "1.0"), ("3.0", "2.0")])
def test_the_protocol_asked_for_is_spoken(engine: str, newest: str, spoken: str) -> None:
    """The header's names and what goes over the bus, which Linux logs, differ by one."""
    with Booted(engine=engine, memory=512 * MIB, max_memory=768 * MIB, balloon_version=newest) as guest:
        guest.wait_balloon_ready()
        assert f"Using Dynamic Memory protocol version {spoken}" in guest.log("Dynamic Memory protocol")
        total = guest.guest.memory_total
        for size in (384 * MIB, 768 * MIB):
            assert guest.balloon.resize(size).reached
            assert guest.guest.memory_total == total + size - 512 * MIB
