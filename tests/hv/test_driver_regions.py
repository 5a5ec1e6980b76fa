"""Hot-added regions as hv_balloon keeps them: ranges that begin late, gaps, several requests, blocks off and on."""

from __future__ import annotations

import pytest

from pyvmm.devices.balloon.protocol import MessageType
from tests.hv.guest_actions import BALLOON, finished, in_background, unbind
from tests.hv.outcomes import HOST_SIDE

pytestmark = pytest.mark.pyvmm(memory="512M,max=1G")

MIB = 1 << 20
BLOCK = 128 * MIB
PAGES = BLOCK >> 12
STATES = "/sys/devices/system/memory"
DEBUG = "/sys/kernel/debug/hv-balloon"


@pytest.fixture
def start(host):
    """The first frame of 512 MiB that can be added; the raw host alone is at the other end."""
    first, _ = host.memory.hot_add_range(4 * BLOCK)
    host.balloon.silence()
    return first


def grown(guest, before):
    """Pages that the guest has more than before."""
    return (guest.memory_total - before) >> 12


def test_a_range_that_begins_within_its_region(host, guest, start):
    before = guest.memory_total
    assert host.balloon.hot_add(start + 0x100, PAGES - 0x100, (start, 2 * PAGES))[0] == PAGES - 0x100
    assert grown(guest, before) == PAGES - 0x100


def test_a_region_filled_by_several_requests(host, guest, start):
    before = guest.memory_total
    for part in range(4):
        assert host.balloon.hot_add(start + part * PAGES // 2, PAGES // 2, (start, 2 * PAGES) if not part else None)
    assert grown(guest, before) == 2 * PAGES


def test_a_request_that_leaves_a_gap(host, guest, start):
    before = guest.memory_total
    host.balloon.hot_add(start, PAGES // 2, (start, 2 * PAGES))
    host.balloon.hot_add(start + PAGES + PAGES // 4, PAGES // 4)
    assert grown(guest, before) == PAGES // 2 + PAGES // 4


def test_a_request_that_leaves_a_gap_within_a_block(host, guest, start):
    before = guest.memory_total
    host.balloon.hot_add(start, PAGES // 4)
    host.balloon.hot_add(start + PAGES // 2, PAGES // 4)
    assert grown(guest, before) == PAGES // 2


def test_a_driver_with_a_gap_is_unbound(vm, host, start):
    host.balloon.hot_add(start, PAGES // 2, (start, 2 * PAGES))
    host.balloon.hot_add(start + PAGES + PAGES // 4, PAGES // 4)
    vm.run(in_background(unbind("hv_balloon", BALLOON)))
    assert finished(vm)


def test_a_request_past_the_end_of_its_region(host, guest, start):
    before = guest.memory_total
    host.balloon.hot_add(start, PAGES // 2)
    assert host.balloon.hot_add(start + PAGES // 2, PAGES)[0] == PAGES
    assert grown(guest, before) == 3 * PAGES // 2


def test_a_request_for_more_than_is_left_of_its_region(host, start):
    host.balloon.hot_add(start, PAGES // 2, (start, PAGES))
    given, _ = host.balloon.hot_add(start + PAGES // 4, PAGES // 2, (start, PAGES))
    assert given >= 0


def test_no_pages(host, start):
    host.balloon.send_hot_add((start, 0))
    host.balloon.send_hot_add((start, 0), (start, PAGES))
    host.balloon.wait_for(MessageType.HOT_ADD_RESPONSE, 20)


def test_two_requests_at_once(vm, host, start):
    host.balloon.send_hot_add((start, PAGES), (start, PAGES))
    host.balloon.send_hot_add((start + PAGES, PAGES), (start + PAGES, PAGES))
    host.balloon.wait_for(MessageType.HOT_ADD_RESPONSE, 10)
    vm.run_for(0.5)


def test_an_added_block_goes_offline_and_online(host, guest, start):
    guest.sh("echo online_movable >/sys/devices/system/memory/auto_online_blocks")
    before = guest.memory_total
    host.balloon.hot_add(start, PAGES, (start, PAGES))
    number = start // PAGES
    guest.sh(f"echo offline >{STATES}/memory{number}/state")
    assert grown(guest, before) == 0
    guest.sh(f"cat {DEBUG}")
    guest.sh(f"echo online >{STATES}/memory{number}/state")
    assert grown(guest, before) == PAGES


def test_a_block_of_boot_ram_goes_offline_and_online_beside_a_region(vm, host, guest, start):
    host.balloon.hot_add(start, PAGES, (start, PAGES))
    guest.sh(
        f"for n in 3 2 1; do echo offline >{STATES}/memory$n/state && echo online >{STATES}/memory$n/state && exit 0;"
        " done 2>/dev/null; exit 1"
    )
    assert vm.survives(without=HOST_SIDE)


def test_blocks_that_the_guest_leaves_offline(vm, host, guest, start):
    """The driver waits 5 s for a block, and debugfs tells meanwhile what is added and not online."""
    guest.sh("echo offline >/sys/devices/system/memory/auto_online_blocks")
    host.balloon.send_hot_add((start, PAGES), (start, PAGES))
    vm.run_for(0.5)
    assert "hot" in guest.read(DEBUG).lower()
    guest.sh(f"echo online >{STATES}/memory{start // PAGES}/state")
    host.balloon.wait_for(MessageType.HOT_ADD_RESPONSE, 10)
