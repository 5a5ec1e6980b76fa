"""Faults in the rings of an open channel: indices, masks, and packets whose headers are wrong."""

from __future__ import annotations

from struct import pack

import pytest

from pyvmm.api.results import CommandFailed
from pyvmm.devices.balloon.protocol import Info
from tests.hv.guest_actions import BALLOON, finished, in_background, unbind
from tests.hv.outcomes import HOST_SIDE, breaks, fault, hangs, survives

SPINNING = 0.5
"""Share of a second's CPU time in softirqs from which on a CPU counts as lost to them."""


def softirq_share(vm):
    """The share of a CPU that ksoftirqd or softirqs took during a second; 1 if the guest does not answer."""
    find = 'for p in /proc/[0-9]*; do read -r n <$p/comm; [ "$n" = ksoftirqd/0 ] && break; done'
    ticks = "$(cut -d' ' -f15 $p/stat) $(awk 'NR==1 {print $8}' /proc/stat)"
    try:
        output = vm.run(f"{find}; echo {ticks}; sleep 1; echo {ticks}", timeout=6, check=True).stdout
    except (AssertionError, CommandFailed):
        return 1.0
    first, second = ([int(word) for word in line.split()] for line in output.splitlines())
    return min(1.0, max(after - before for before, after in zip(first, second, strict=True)) / 100)


def info(pages):
    """A harmless message: the guest logs it."""
    return Info.of(1, pages).build() + bytes(8)  # with its header and trailer 64 bytes of the ring


def maxima(vm):
    """How often the guest has logged its largest size, which INFO tells it."""
    return int(vm.guest.sh("dmesg | grep -c 'Max. dynamic memory size' || true"))


@fault("V3", "the guest's own write index moved to 1 MiB, beyond its ring of 16 KiB")
def test_write_index_of_the_guest_beyond_its_ring(host, outcome):
    host.ring().to_host.write_index = 0x100000
    host.balloon.send_balloon(16)
    outcome(breaks("hv_ringbuffer_write|hv_copyto_ringbuffer|memcpy"), settle=2, k6_12=survives(), k7_3=survives())


@fault("V3b", "the guest's own write index moved beyond its ring, then a balloon request")
def test_write_index_beyond_the_ring_silences_the_guest(vm, host, outcome):
    host.ring().to_host.write_index = 0x100000
    host.balloon.send_balloon(16)
    vm.run_for(2)
    silent = not vm.ended and not host.balloon.answers(7) and bool(vm.survives(without=HOST_SIDE))
    outcome.shows("the guest lives unharmed, and never answers", silent, only=("6.12", "7.3"))


@fault("new", "the guest's own write index moved by 8 bytes")
def test_write_index_of_the_guest_moved_by_8(host, outcome):
    ring = host.ring().to_host
    ring.write_index = (ring.write_index + 8) % ring.size
    outcome(survives(), settle=3)


@fault("new", "the read index of the guest's sending ring, which is the host's, beyond the ring")
def test_read_index_of_the_host_beyond_the_ring(host, outcome):
    host.ring().to_host.read_index = 0xFFFFFFF0
    host.balloon.send_balloon(16)
    outcome(survives(), settle=3)


@fault("B13", "a full ring to the host, and a balloon request")
def test_full_ring_to_the_host(vm, host, outcome):
    ring = host.ring().to_host
    ring.read_index = (ring.write_index + 8) % ring.size
    host.balloon.send_balloon(16)
    vm.run_for(1)
    vm.run(in_background(unbind("hv_balloon", BALLOON)))
    outcome.shows("the worker tries again for ever, and unbind waits for it", not finished(vm))


@fault("V6", "a packet without its trailer of 8 bytes, after a lap of the ring")
def test_packet_without_a_trailer(vm, host, outcome):
    rings = host.ring()
    for number in range(rings.to_guest.size // 64):  # a lap, so that old packets lie just behind
        host.balloon.send(info(256 * number))
        vm.until(lambda: rings.to_guest.read_index == rings.to_guest.write_index, 5, "reading")
    vm.guest.sh("dmesg -c >/dev/null")  # else the log overflows
    rings.send(rings.packet(info(1), trailer=False))
    vm.run_for(2)
    more = maxima(vm)
    outcome.shows("old packets of the last lap are executed again", more > 1, figure=f"{more} messages from one")


@fault("V7", "a message of 5000 bytes for the balloon, whose buffer has 4096")
def test_packet_longer_than_the_buffer(vm, host, outcome):
    host.balloon.send(pack("<HHI", 12, 5000, 1) + bytes(4992))
    share = softirq_share(vm)
    outcome.shows("a tasklet spins for ever", share > SPINNING, figure=f"{share:.0%} of a CPU")


@fault("V7", "8 stray bytes in the ring to the guest")
def test_stray_bytes(vm, host, outcome):
    host.ring().send(bytes(8))
    share = softirq_share(vm)
    outcome.shows("a tasklet spins for ever", share > SPINNING, figure=f"{share:.0%} of a CPU")


@fault("V7", "the read index of the guest's receiving ring, which is the guest's, moved by 8")
def test_read_index_of_the_guest_moved(vm, host, outcome):
    ring = host.ring().to_guest
    ring.read_index = (ring.read_index + 8) % ring.size
    host.ring().signal()
    share = softirq_share(vm)
    outcome.shows("a tasklet spins for ever", share > SPINNING, figure=f"{share:.0%} of a CPU")


@fault("new", "the write index of the ring to the guest beyond the ring")
def test_write_index_beyond_the_ring(vm, host, outcome):
    rings = host.ring()
    rings.to_guest.write_index = 0x7FFFFFF8
    rings.signal()
    share = softirq_share(vm)
    outcome.shows("a tasklet spins for ever", share > SPINNING, figure=f"{share:.0%} of a CPU")


@fault("new", "the write index of the ring to the guest no multiple of 8")
def test_write_index_not_aligned(vm, host, outcome):
    rings = host.ring()
    rings.send(rings.packet(info(1)), advance=53)
    share = softirq_share(vm)
    outcome.shows("a tasklet spins for ever", share > SPINNING, figure=f"{share:.0%} of a CPU")


@pytest.mark.long
@fault("new", "a packet of length 0 in its header")
def test_packet_of_length_0(host, outcome):
    rings = host.ring()
    rings.send(rings.packet(info(1), length8=0))
    outcome(hangs())


@pytest.mark.long
@fault("new", "a packet longer in its header than the ring holds")
def test_packet_longer_than_the_ring(host, outcome):
    rings = host.ring()
    rings.send(rings.packet(info(1), length8=0xFFFF))
    outcome(hangs())


@fault("new", "a packet whose data begins behind its end")
def test_packet_with_data_behind_its_end(host, outcome):
    rings = host.ring()
    rings.send(rings.packet(info(1), offset8=0xFFFF))
    outcome(survives(), k5_10=hangs("spins"))


@fault("new", "a packet whose data begins at its start")
def test_packet_with_data_at_its_start(host, outcome):
    rings = host.ring()
    rings.send(rings.packet(info(1), offset8=0))
    outcome(survives())


@fault("new", "packets of every type from 0 to 20")
def test_packets_of_every_type(vm, host, outcome):
    for kind in range(21):
        rings = host.ring()
        rings.send(rings.packet(info(1), type=kind, descriptor=bytes(8), flags=kind & 1, transaction_id=kind))
        vm.run_for(0.05)
    outcome(survives())


@fault("new", "a completion for a request that the balloon did not make")
def test_completion_without_a_request(host, outcome):
    rings = host.ring()
    rings.send(rings.packet(bytes(64), type=11, transaction_id=(1 << 64) - 1))
    outcome(survives())


@fault("new", "a packet without a payload")
def test_packet_without_a_payload(host, outcome):
    rings = host.ring()
    rings.send(rings.packet(b""))
    outcome(survives())


@fault("new", "500 events of a channel whose ring is empty")
def test_events_of_an_empty_ring(vm, host, outcome):
    rings = host.ring()
    for _ in range(500):
        rings.signal()
        vm.run_for(0.001)
    outcome(survives(), settle=0.5)


@fault("new", "a pending size beyond the ring in the ring to the guest")
def test_pending_size_beyond_the_ring(vm, host, outcome):
    rings = host.ring()
    for size in (1, 0x7FFFFFFF, 0xFFFFFFFF):
        rings.to_guest.pending = size
        host.balloon.send(info(1))
        vm.run_for(0.2)
    outcome(survives())


@fault("new", "both interrupt masks set for ever")
def test_masks_set(vm, host, outcome):
    rings = host.ring()
    rings.to_guest.mask = rings.to_host.mask = 0xFFFFFFFF
    host.balloon.send(info(1))
    vm.run_for(1)
    outcome(survives())


@fault("new", "random bytes all over the ring to the guest")
def test_noise_in_the_ring(vm, host, outcome):
    rings = host.ring()
    noise = bytes((7 * n * n + 13 * n + 5) >> 3 & 0xFF for n in range(8192))
    rings.send(noise)
    share = softirq_share(vm)
    outcome.shows("a tasklet spins for ever", share > SPINNING, figure=f"{share:.0%} of a CPU")


@pytest.mark.long
@fault("new", "a packet longer than its buffer for the heartbeat")
def test_packet_longer_than_the_buffer_of_a_service(vm, host, outcome):
    host.ic.heartbeat.send_raw(bytes(5000))
    outcome(hangs())
