"""Other ways into Linux than the default (an unpacked vmlinux at its 64-bit entry), and much memory."""

from __future__ import annotations

import pytest

from pyvmm.images.catalog import find_image
from tests.support.booted import MIB, Booted


def test_a_bzimage_boots() -> None:
    with Booted(engine="user", kernel=find_image("debian-6.1", build=False).kernel) as guest:
        assert guest.sh("uname -r").strip() == guest.image.release


def test_a_vmlinux_boots_at_its_pvh_entry() -> None:
    with Booted("debian-6.12", engine="kernel", entry="pvh") as guest:
        assert guest.sh("uname -r").strip() == guest.image.release
        guest.wait_balloon_ready()
        assert guest.balloon.resize(448 * MIB).reached


@pytest.mark.parametrize("engine", ["kernel", "user"])
def test_memory_beyond_4_gib_is_used_and_ballooned(engine: str) -> None:
    """Address space only: the guest touches little of it, so a small host will do."""
    memory = 5120 * MIB
    with Booted(engine=engine, memory=memory) as guest:
        guest.wait_balloon_ready()
        assert "100000000-" in guest.sh("grep 'System RAM' /proc/iomem")
        total = guest.guest.memory_total
        assert total > memory - 256 * MIB
        assert guest.balloon.resize(memory - 128 * MIB).reached
        assert guest.guest.memory_total == total - 128 * MIB
        high = [r for r in guest.machine.balloon.machine.ledger.removed_both if r[0] >= 1 << 20]
        assert high, "no page above 4 GiB was ballooned"
        assert guest.balloon.resize(memory).reached
