"""Faults of hot add: addresses that are there already, that are not there at all, and requests that repeat."""

from __future__ import annotations

import pytest

from pyvmm.devices.balloon.protocol import MessageType
from tests.hv.guest_actions import BALLOON, committed, finished, hog_cpu, in_background, unbind, use_memory
from tests.hv.outcomes import breaks, fault, survives

pytestmark = [pytest.mark.long, pytest.mark.pyvmm(memory="512M,max=2G")]

BLOCK = 128 << 20
BLOCK_PAGES = BLOCK >> 12


@fault("new", "HOT_ADD of a block, twice in a row")
def test_honest_hot_add(vm, host, outcome):
    before = vm.guest.memory_total
    for number in range(2):
        start, pages = host.memory.hot_add_range(BLOCK)
        assert host.balloon.hot_add(start, pages, (start, pages)) == (pages, 1), number
    assert vm.guest.memory_total == before + 2 * BLOCK
    outcome(survives())


@fault("B8", "HOT_ADD over boot RAM, then an honest one")
def test_hot_add_over_boot_ram(vm, host, outcome):
    first = host.balloon.hot_add(BLOCK_PAGES, BLOCK_PAGES, (BLOCK_PAGES, BLOCK_PAGES))
    start, pages = host.memory.hot_add_range(BLOCK)
    later = host.balloon.hot_add(start, pages, (start, pages))
    outcome.shows("hot add is refused for good", (first, later) == ((0, 1), (0, 1)), figure=f"{first}, then {later}")


@fault("B8", "HOT_ADD over boot RAM; then the guest takes a block of it offline and online")
def test_blocks_of_a_refused_region_are_swallowed(vm, host, outcome):
    host.balloon.hot_add(2 * BLOCK_PAGES, 2 * BLOCK_PAGES, (2 * BLOCK_PAGES, 2 * BLOCK_PAGES))
    lost = offline_and_online(vm, (2, 3))
    outcome.shows("the block's pages never come back", lost > 100 << 20, figure=f"{lost >> 20} MiB lost")


@fault("B9", "nothing; the guest takes a block of boot RAM offline and online")
def test_block_of_boot_ram_offline_and_online(vm, host, outcome):
    lost = offline_and_online(vm, (1, 2, 3))
    outcome.shows(
        "the block's pages never come back",
        lost > 100 << 20,
        only=("5.10", "6.1", "6.12"),
        figure=f"{lost >> 20} MiB lost",
    )


@fault("B7", "HOT_ADD with its region again, as after a lost answer")
def test_repeated_hot_add(vm, host, outcome):
    start, pages = host.memory.hot_add_range(BLOCK)
    host.balloon.hot_add(start, pages, (start, pages))
    total = vm.guest.memory_total
    again = host.balloon.hot_add(start, pages, (start, pages))
    figure = f"answers {again}"
    outcome.shows(
        "it claims full success and adds nothing",
        again == (pages, 1) and vm.guest.memory_total == total,
        figure=figure,
    )


@fault("B7", "HOT_ADD without a region again, as after a lost answer")
def test_repeated_hot_add_without_a_region(vm, host, outcome):
    start, pages = host.memory.hot_add_range(BLOCK)
    host.balloon.hot_add(start, pages)
    total = vm.guest.memory_total
    again = host.balloon.hot_add(start, pages)
    outcome.shows(
        "it claims pages and adds nothing",
        bool(again[0]) and vm.guest.memory_total == total,
        figure=f"answers {again}",
    )


@fault("B7", "HOT_ADD again, as after a lost answer, and the status reports after it")
def test_repeated_hot_add_spoils_the_reports(vm, host, outcome):
    start, pages = host.memory.hot_add_range(BLOCK)
    host.balloon.hot_add(start, pages, (start, pages))
    before = committed(vm, host)
    host.balloon.hot_add(start, pages, (start, pages))
    more = committed(vm, host) - before
    outcome.shows("the block is called committed for ever", more > BLOCK_PAGES // 2, figure=f"{more} pages more")


@fault("B11", "HOT_ADD without a region of a block that begins in the middle of one")
def test_unaligned_hot_add(vm, host, outcome):
    start, _pages = host.memory.hot_add_range(2 * BLOCK)
    total = vm.guest.memory_total
    answer = host.balloon.hot_add(start + 100, BLOCK_PAGES)
    added = (vm.guest.memory_total - total) >> 12
    outcome.shows(
        "it claims more pages than it added", answer[0] > added, figure=f"{answer[0]} claimed, {added} added"
    )


@fault("new", "HOT_ADD with a region smaller than a block")
def test_region_smaller_than_a_block(vm, host, outcome):
    blocks = "ls -d /sys/devices/system/memory/memory[0-9]* | wc -l"
    start, _ = host.memory.hot_add_range(BLOCK)
    total, before = vm.guest.memory_total, int(vm.guest.sh(blocks))
    answer = host.balloon.hot_add(start, 256, (start, 256))
    more, used = int(vm.guest.sh(blocks)) - before, vm.guest.memory_total - total >> 12
    whole = answer == (256, 1) and more == 1
    figure = f"answers {answer}, {more} block more, {used} pages of it in use"
    outcome.shows("a whole block is added, beyond its region's end", whole, figure=figure)


@fault("new", "HOT_ADD with a region that does not begin at a block")
def test_region_not_aligned(vm, host, outcome):
    start, _ = host.memory.hot_add_range(2 * BLOCK)
    host.balloon.hot_add(start + 256, BLOCK_PAGES, (start + 256, BLOCK_PAGES))
    outcome(survives())


@fault("new", "HOT_ADD with a region elsewhere than the range")
def test_region_elsewhere(vm, host, outcome):
    start, _pages = host.memory.hot_add_range(2 * BLOCK)
    host.balloon.send_hot_add((start, BLOCK_PAGES), (start + BLOCK_PAGES, BLOCK_PAGES))
    outcome(survives(), settle=3)


@fault("new", "HOT_ADD of no pages")
def test_hot_add_of_no_pages(host, outcome):
    start, _ = host.memory.hot_add_range(BLOCK)
    host.balloon.send_hot_add((start, 0), (start, 0))
    host.balloon.send_hot_add((start, 0))
    outcome(survives(), settle=2)


@fault("new", "HOT_ADD beyond the guest's physical address space")
def test_hot_add_beyond_the_address_space(host, outcome):
    start = (1 << 40) - BLOCK_PAGES
    host.balloon.send_hot_add((start, BLOCK_PAGES), (start, BLOCK_PAGES))
    outcome(survives(), settle=2)


@fault("new", "HOT_ADD of device addresses below 4 GiB")
def test_hot_add_of_device_addresses(host, outcome):
    start = 0xF8000000 >> 12
    host.balloon.send_hot_add((start, BLOCK_PAGES), (start, BLOCK_PAGES))
    outcome(survives(), settle=2)


@pytest.mark.long
@fault("B24", "HOT_ADD of addresses without memory behind them")
def test_hot_add_without_memory(vm, host, outcome):
    start, pages = host.memory.hot_add_range(BLOCK, mapped=False)
    host.balloon.send_hot_add((start, pages), (start, pages))
    vm.run_for(2)
    if not vm.ended:
        use_memory(vm, 300)
    outcome(breaks(), settle=2)


@fault("B18", "HOT_ADD with a region, and one without before the driver's worker runs")
@pytest.mark.pyvmm(memory="512M,max=2G", cpus=1)
def test_two_hot_adds_at_once(vm, host, outcome):
    start, _pages = host.memory.hot_add_range(2 * BLOCK)
    hog_cpu(vm)
    host.balloon.send_hot_add((start, BLOCK_PAGES), (start, BLOCK_PAGES))
    host.balloon.send_hot_add((start + BLOCK_PAGES, BLOCK_PAGES))
    vm.run_for(4)
    answers = len(host.balloon.answers(MessageType.HOT_ADD_RESPONSE))
    outcome.shows("one answer is missing", answers == 1, figure=f"{answers} for 2")


@fault("B10", "200 HOT_ADDs over boot RAM, each with a region")
def test_many_refused_hot_adds(vm, host, outcome):
    for _ in range(200):
        host.balloon.send_hot_add((BLOCK_PAGES, 1), (BLOCK_PAGES, 1))
        vm.run_for(0.01)
    outcome(survives())


@pytest.mark.long
@fault("B12", "HOT_ADD of four blocks that the guest leaves offline, then unbind")
def test_hot_add_that_stays_offline(vm, host, outcome):
    vm.guest.sh("echo offline >/sys/devices/system/memory/auto_online_blocks")
    start, pages = host.memory.hot_add_range(4 * BLOCK)
    host.balloon.send_hot_add((start, pages), (start, pages))
    vm.run_for(0.5)
    vm.run(in_background(unbind("hv_balloon", BALLOON)))
    outcome.shows("unbind waits 5 s for each block", not finished(vm, 8))


@fault("new", "HOT_ADD, then the host takes the memory away")
def test_memory_taken_away_after_hot_add(vm, host, outcome):
    start, pages = host.memory.hot_add_range(BLOCK)
    host.balloon.hot_add(start, pages, (start, pages))
    host.memory.unmap(start << 12)
    outcome(breaks(), settle=2)


@fault("new", "HOT_ADD and a balloon request at once")
def test_hot_add_and_balloon_at_once(vm, host, outcome):
    start, pages = host.memory.hot_add_range(BLOCK)
    host.balloon.send_balloon(4096)
    host.balloon.send_hot_add((start, pages), (start, pages))
    vm.run_for(3)
    kinds = {each.type for each in host.balloon.received}
    assert {MessageType.BALLOON_RESPONSE, MessageType.HOT_ADD_RESPONSE} <= kinds
    outcome(survives())


def offline_and_online(vm, blocks):
    """Bytes of MemTotal that the first of `blocks` which can be taken offline costs, once it is online again."""
    before = vm.guest.memory_total
    numbers = " ".join(map(str, blocks))
    states = "/sys/devices/system/memory/memory$n/state"
    done = vm.run(
        f"for n in {numbers}; do echo offline >{states} && echo online >{states} && exit 0; done 2>/dev/null; exit 1"
    )
    assert done.status == 0, "no block can be taken offline"
    return before - vm.guest.memory_total
