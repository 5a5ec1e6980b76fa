"""Faults of dynamic memory: pages given back that were not out, counts, sizes, answers out of order."""

from __future__ import annotations

import pytest

from pyvmm.devices.balloon.protocol import MessageType
from tests.hv.guest_actions import (
    answered_requests,
    committed,
    hog_cpu,
    use_memory,
)
from tests.hv.outcomes import KERNELS, breaks, fault, panics, survives

LATER = KERNELS[1:]
"""All but 5.10, which does not report free pages, nor lowers MemTotal by those that it gives."""

KERNEL_TEXT = 0x1000
"""Frame at 16 MiB, where our images' kernels lie (nokaslr)."""


@fault("B1", "UNBALLOON of a page beyond all RAM")
def test_page_beyond_ram(host, outcome):
    host.balloon.send_unballoon([(1 << 30, 1)])
    outcome(panics("free_balloon_pages|balloon_onchannelcallback"))


@fault("B1", "UNBALLOON of the last frame that 40 bits can name")
def test_last_frame(host, outcome):
    host.balloon.send_unballoon([((1 << 40) - 1, 1)])
    outcome(panics("free_balloon_pages|balloon_onchannelcallback"))


@pytest.mark.long
@fault("B1", "UNBALLOON of pages of the kernel's text")
def test_pages_of_the_kernel(host, outcome):
    host.balloon.send_unballoon([(KERNEL_TEXT, 64)])
    outcome(breaks())


@fault("B1", "UNBALLOON of page 0")
def test_page_0(vm, host, outcome):
    if outcome.kernel == "5.10":
        pytest.skip("5.10 does not tell the driver's counters")
    host.balloon.send_unballoon([(0, 1)])
    vm.run_for(0.5)
    found = [each.line for each in vm.oracles.check(vm.oracles.accounting) if "the driver counts" in each.line]
    outcome.shows("a page that was never out counts as given back", bool(found), figure="; ".join(found))


@pytest.mark.long
@fault("B1", "UNBALLOON of pages that the guest has free")
def test_free_pages(vm, host, outcome):
    pages = host.balloon.take(2048)
    host.balloon.send_unballoon(pages)
    vm.run_for(0.5)
    host.balloon.send_unballoon(pages)
    vm.run_for(0.3)
    use_memory(vm)
    outcome(breaks("Bad page|BUG|fault"), settle=2)


@pytest.mark.long
@fault("B1", "UNBALLOON of the same pages twice in one message")
def test_pages_twice_in_one_message(vm, host, outcome):
    pages = host.balloon.take(512)
    host.balloon.send_unballoon([*pages, *pages])
    vm.run_for(0.3)
    use_memory(vm)
    outcome(breaks("Bad page|BUG|fault"), settle=2)


@fault("B1", "UNBALLOON of more than was taken, by pages that were free anyway")
def test_counter_below_zero(vm, host, outcome):
    pages = host.balloon.take(512)
    host.balloon.send_unballoon(pages)
    vm.run_for(0.3)
    host.balloon.send_unballoon(pages)
    vm.run_for(0.3)
    figure = committed(vm, host)
    outcome.shows("the status reports call more than 8 TiB committed", figure > 1 << 31, figure=f"{figure} pages")


@fault("B2", "UNBALLOON that says 2000 ranges in a message of 16 bytes")
def test_range_count_2000(host, outcome):
    host.balloon.send_unballoon([], count=2000)
    outcome(panics("free_balloon_pages|balloon_onchannelcallback|balloon_down"))


@fault("B2", "UNBALLOON that says 600 ranges in a message of 16 bytes: 720 bytes behind the buffer")
def test_range_count_600(host, outcome):
    host.balloon.send_unballoon([], count=600)
    outcome(panics("free_balloon_pages"), k5_10=survives(), k6_1=survives())  # by what the module has there


@fault("B2", "UNBALLOON that says -1 ranges")
def test_range_count_negative(vm, host, outcome):
    host.balloon.send_unballoon([], count=0xFFFFFFFF)
    answered = bool(host.balloon.wait_for(MessageType.UNBALLOON_RESPONSE, 5))
    outcome.shows("nothing is freed, and it is answered", answered)


@fault("new", "UNBALLOON of a range of 0 pages")
def test_range_of_no_pages(host, outcome):
    host.balloon.send_unballoon([(100, 0), (1 << 39, 0)])
    outcome(survives())


@fault("new", "UNBALLOON with more to come, and nothing comes; then a balloon request")
def test_more_to_come(vm, host, outcome):
    host.balloon.send_unballoon([], more=True)
    vm.run_for(0.3)
    assert sum(pages for _, pages in host.balloon.take(16)) == 16
    outcome(survives())


@fault("new", "UNBALLOON while the guest still gives memory")
def test_unballoon_while_ballooning(vm, host, outcome):
    host.balloon.send_balloon(40000)
    host.balloon.send_unballoon([])
    vm.run_for(2)
    outcome(survives())


@fault("new", "a balloon request for 0 pages")
def test_request_for_no_pages(host, outcome):
    assert host.balloon.take(0) == []
    outcome(survives())


@fault("new", "a balloon request for 2^32 - 1 pages")
def test_request_for_all_pages(host, outcome):
    taken = sum(pages for _, pages in host.balloon.take(0xFFFFFFFF, 60))
    assert 30000 < taken < 131072
    outcome(survives())


@fault("B17", "two balloon requests before the driver's worker runs")
@pytest.mark.pyvmm(cpus=1)
def test_two_requests_at_once(vm, host, outcome):
    hog_cpu(vm)
    host.balloon.send_balloon(2048)
    host.balloon.send_balloon(4096)
    vm.run_for(4)
    answers = answered_requests(host)
    outcome.shows("one answer is missing", answers == 1, figure=f"{answers} for 2")


@fault("B17", "a balloon request while the driver's worker is busy with another")
def test_request_while_another_is_answered(vm, host, outcome):
    host.balloon.send_balloon(50000)
    vm.run_for(0.05)
    host.balloon.send_balloon(16)
    vm.until(lambda: answered_requests(host), 20, "an answer")
    vm.run_for(1)
    answers = answered_requests(host)
    outcome.shows("one answer is missing", answers == 1, only=(), figure=f"{answers} for 2")


@fault("B14", "a BALLOON_RESPONSE that cannot be sent (EIO, as after V3b), then another request")
def test_response_that_cannot_be_sent(vm, host, outcome):
    forced = vm.fail("vmbus_sendpacket", in_="balloon_up", returns=-5)
    host.balloon.send_balloon(16)
    vm.until(lambda: forced.done, 5, "the response")
    vm.run_for(1)
    host.balloon.send_balloon(16)
    vm.run_for(2)
    answers = answered_requests(host)
    still = "still" if vm.guest.dmesg("Currently ballooning") else "not"  # the state is set before the sending
    outcome.shows("it is never answered", answers == 1, figure=f"{answers} for 2, the driver {still} ballooning")


@fault("B19", "nothing but honest: 200 MiB and more are given back in one message")
@pytest.mark.pyvmm(cpus=1)
def test_all_pages_back_in_one_message(vm, host, outcome):
    pages = host.balloon.take(60000)
    assert len(pages) < 500
    ticks = []
    tick = "while usleep 2000; do echo; done"
    vm.machine.agent.execute(
        tick, lambda stream, data: ticks.append(vm.loop.clock()), lambda status: None, seconds=20
    )
    vm.until(lambda: len(ticks) > 10, 10, "ticks of a process")
    begin, before = vm.loop.clock(), len(ticks)
    host.balloon.send_unballoon(pages)
    host.balloon.wait_for(MessageType.UNBALLOON_RESPONSE, 60)
    seconds, during = vm.loop.clock() - begin, len(ticks) - before
    ordinary = sum(begin - seconds < tick < begin for tick in ticks)
    mib = sum(count for _, count in pages) >> 8
    figure = f"{seconds:.2f} s for {mib} MiB; {during} ticks of a process, else {ordinary}"
    outcome.shows("no process runs until all are free", during <= 1 < ordinary, figure=figure)


@fault("B21", "an empty UNBALLOON each 5 ms, for six seconds")
def test_reports_under_traffic(vm, host, outcome):
    committed(vm, host)
    before = len(host.balloon.answers(MessageType.STATUS_REPORT))
    limit = vm.loop.clock() + 6
    while vm.loop.clock() < limit:
        host.balloon.send_unballoon([])
        vm.run_for(0.005)
    reports = len(host.balloon.answers(MessageType.STATUS_REPORT)) - before
    outcome.shows("status reports do not come any more", reports < 2, only=(), figure=f"{reports} in 6 s")


@fault("B22", "access denied for each report of free pages")
def test_reporting_is_denied(vm, outcome):
    counts = []
    with vm.faults.add("reporting-refused"):
        for _ in range(3):
            use_memory(vm, 100)
            vm.run_for(3)
            counts.append(int(vm.guest.sh("dmesg | grep -c 'memory discard hypercall failed' || true")))
    figure = f"{', '.join(map(str, counts))} lines in the log"
    on = 0 < counts[1] < counts[2]
    outcome.shows("each try is an error in the log, and reporting goes on", on, only=LATER, figure=figure)


@pytest.mark.long
@fault("B20", "many small balloon requests, down as far as the guest goes")
def test_many_small_requests(vm, host, outcome):
    host.balloon.silence()
    once = taken = sum(pages for _, pages in host.balloon.take(0xFFFFFFFF, 60))
    for _ in range(60):
        more = sum(pages for _, pages in host.balloon.take(0xFFFFFFFF, 60))
        taken += more
        if not more:
            break
    figure = f"{once >> 8} MiB after one request, {taken >> 8} after all"
    # 5.10 leaves ballooned pages in MemTotal, from which the floor is computed.
    outcome.shows("the floor sinks with each request", taken > once + (8 << 8), only=LATER, figure=figure)


@fault("new", "a balloon request of 12 bytes")
def test_short_request(host, outcome):
    host.balloon.send_type(MessageType.BALLOON_REQUEST, bytes(4))
    outcome(survives())


@fault("new", "a message of 4 bytes")
def test_message_of_4_bytes(host, outcome):
    host.balloon.send(bytes(4))
    outcome(survives())


@fault("new", "a message that says 65535 bytes and has 16")
def test_size_beyond_the_message(host, outcome):
    host.balloon.send_type(MessageType.BALLOON_REQUEST, bytes(8), size=0xFFFF)
    outcome(survives())


@fault("new", "messages of every type from 0 to 20 and 65535")
def test_messages_of_every_type(vm, host, outcome):
    for kind in (*range(21), 0xFFFF):
        if kind not in (MessageType.UNBALLOON_REQUEST, MessageType.HOT_ADD_REQUEST):
            host.balloon.send_type(kind, bytes(24))
            vm.run_for(0.05)
    outcome(survives())


@fault("new", "200 messages of an unknown type")
def test_flood_of_unknown_types(vm, host, outcome):
    for _ in range(200):
        host.balloon.send_type(77, bytes(24))
        vm.run_for(0.005)
    outcome(survives())


@fault("new", "INFO of unknown type, of wrong sizes, and cut short")
def test_info_of_every_kind(vm, host, outcome):
    host.balloon.send_info(1, type=9)
    host.balloon.send_info(1, data_size=0xFFFFFFFF)
    host.balloon.send_info(1, info_size=0xFFFFFFFF)
    host.balloon.send_info(data=b"")
    host.balloon.send_type(MessageType.INFO)
    outcome(survives())


@fault("new", "INFO that says the guest may have 2^64 - 1 pages")
def test_info_of_all_pages(host, outcome):
    host.balloon.send_info((1 << 64) - 1)
    outcome(survives())


@fault("new", "the pages of a balloon response are discarded, and stay the guest's until then: an honest discard")
def test_discard_of_pages_that_are_out(vm, host, outcome):
    for start, pages in host.balloon.take(4096):
        host.memory.discard(start << 12, pages << 12)
    outcome(survives())


@fault("new", "the host discards 16 MiB of the guest's free memory, unasked")
def test_discard_of_free_memory(vm, host, outcome):
    pages = host.balloon.take(4096)
    host.balloon.send_unballoon(pages)
    vm.run_for(0.5)
    for start, count in pages:
        host.memory.discard(start << 12, count << 12)
    use_memory(vm)
    outcome(survives())


@pytest.mark.long
@fault("new", "the host discards a page of the kernel's text")
def test_discard_of_the_kernel(vm, host, outcome):
    host.memory.discard(KERNEL_TEXT << 12, 4 << 20)
    outcome(breaks(), settle=2)
