"""VMBus channels that come and go while Linux runs: a device of tests on the bus of a running machine."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from pyvmm.devices.ic.heartbeat import Heartbeat
from tests.support.booted import Booted
from tests.support.queues_device import Queues

INSTANCE = UUID(int=0xC0FFEE)
CHANNELS = f"/sys/bus/vmbus/devices/{INSTANCE}/channels"


@pytest.mark.parametrize(("engine", "image", "cpus"), [("user", "debian-6.12", 1), ("kernel", "debian-6.1", 2)])
def test_linux_follows_offers_and_rescinds_of_a_device_and_its_sub_channels(
    engine: str, image: str, cpus: int
) -> None:
    """hv_utils takes the device for a heartbeat, opens it, and waits for packets that never come."""
    queues = Queues(replace(Heartbeat.OFFER, name="queues", instance=INSTANCE))
    with Booted(image, engine=engine, cpus=cpus, devices=("hv-balloon",)) as guest:
        bus = guest.machine.services.bus

        def relids() -> set[int]:
            return set(map(int, guest.sh(f"ls {CHANNELS}").split()))

        for _ in range(2):
            bus.add(queues)
            guest.until(lambda: 0 in queues.channels, 30, "OPEN of the device")
            assert relids() == {queues.channels[0].relid}
            for number in (1, 2):
                queues.channels[0].offer_sub_channel(number)
            served = {c.relid: c.offer.sub_channel for c in bus.server.offered.values() if c.offer.name == "queues"}
            assert sorted(served.values()) == [0, 1, 2]
            guest.sh(f"until test -e {CHANNELS}/{max(served)}; do sleep 0.1; done")
            assert relids() == set(served)

            queues.channels[0].rescind_sub_channel(1)
            left = {relid for relid, number in served.items() if number != 1}
            guest.until(lambda: len(bus.server.channels) == 3, 30, "RELID_RELEASED of a sub-channel")
            for relid in set(served) - left:  # Linux releases the relid first
                guest.sh(f"while test -e {CHANNELS}/{relid}; do sleep 0.1; done")
            assert relids() == left

            bus.remove(queues)
            guest.until(lambda: len(bus.server.channels) == 1, 30, "RELID_RELEASED of all channels")
            guest.sh(f"while test -e {CHANNELS}; do sleep 0.1; done")
        assert queues.calls == ["opened 0", "leaving", "closed 0"] * 2
        assert bus.refused.total() == 0
        assert "WARNING" not in guest.log("WARNING")
        guest.wait_balloon_ready()
