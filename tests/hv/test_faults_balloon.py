"""Faults of dynamic memory: pages given back that were not out, counts, sizes, answers out of order."""

from __future__ import annotations

import pytest

from pyvmm.devices.balloon.protocol import MessageType
from tests.hv.guest_actions import (
    BALLOON,
    begin_negotiation,
    bind,
    committed,
    finished,
    in_background,
    unbind,
    use_memory,
)
from tests.hv.outcomes import breaks, fault, panics, survives

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
    outcome(survives())


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


@pytest.mark.long  # a race: Linux 6.1 answered once in some runs and twice in others
@fault("new", "two balloon requests at once")
def test_two_requests_at_once(vm, host, outcome):
    vm.machine.pause()  # both are there before the driver looks
    host.balloon.send_balloon(2048)
    host.balloon.send_balloon(4096)
    vm.machine.resume()
    vm.run_for(3)
    finals = [each for each in host.balloon.answers(MessageType.BALLOON_RESPONSE) if not each.data[12] & 1]
    outcome.shows("one answer is missing", len(finals) == 1, figure=f"{len(finals)} for 2")


@pytest.mark.long
@fault("B20", "many small balloon requests, down as far as the guest goes")
def test_many_small_requests(vm, host, outcome):
    whole = vm.guest.memory_total
    host.balloon.silence()
    host.balloon.take(0xFFFFFFFF, 60)
    once = vm.guest.memory_total
    for _ in range(60):
        if not host.balloon.take(0xFFFFFFFF, 60):
            break
    often = vm.guest.memory_total
    figure = f"{whole >> 20} MiB, {once >> 20} after one request, {often >> 20} after all"
    outcome.shows("the floor sinks with each request", often < once - (8 << 20), figure=figure)


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


@fault("new", "a second VERSION_RESPONSE that says no, long after the negotiation")
def test_late_refusal_of_the_version(vm, host, outcome):
    before = len(host.balloon.answers(MessageType.VERSION_REQUEST))
    host.balloon.send_version_response(0)
    vm.run_for(1)
    again = len(host.balloon.answers(MessageType.VERSION_REQUEST)) > before
    outcome.shows("the driver negotiates again", again)


@fault("new", "a second CAPABILITIES_RESPONSE that says no, then unbind")
def test_late_refusal_of_the_capabilities(vm, host, outcome):
    host.balloon.send_caps_response(0)
    vm.run_for(0.5)
    vm.run(in_background(unbind("hv_balloon", BALLOON)))
    vm.run_for(2)
    left_open = host.parts.bus.channel(host.device("hv-balloon")) is not None
    outcome.shows("the driver goes and leaves its channel open", left_open)


@fault("new", "a second CAPABILITIES_RESPONSE that says no, then unbind, then a message")
def test_message_to_a_channel_left_open(vm, host, outcome):
    host.balloon.send_caps_response(0)
    vm.run_for(0.5)
    vm.run(in_background(unbind("hv_balloon", BALLOON)))
    vm.run_for(1)
    host.balloon.send_info(1)
    outcome(panics("balloon_onchannelcallback"))


@fault("new", "a second VERSION_RESPONSE that says no, then RESCIND")
def test_rescind_after_a_late_refusal(vm, host, outcome):
    host.balloon.send_version_response(0)
    vm.run_for(0.5)
    host.vmbus.remove("hv-balloon")
    outcome(survives(), settle=3)


@pytest.mark.long
@fault("new", "no answer to VERSION_REQUEST")
def test_no_answer_to_the_version(vm, host, outcome):
    vm.guest.sh(unbind("hv_balloon", BALLOON))
    host.balloon.silence()
    vm.run(in_background(bind("hv_balloon", BALLOON)))
    assert finished(vm, 8)
    host.balloon.resume()
    vm.guest.sh(bind("hv_balloon", BALLOON))
    outcome(survives())


@fault("new", "no to every version")
def test_no_version_is_served(vm, host, outcome):
    vm.guest.sh(unbind("hv_balloon", BALLOON))
    host.balloon.silence()
    vm.run(in_background(bind("hv_balloon", BALLOON)))
    for number in range(3):
        host.balloon.wait_for(MessageType.VERSION_REQUEST, 5, since=number)
        host.balloon.send_version_response(0)
    assert finished(vm, 8)
    outcome(survives())


@fault("new", "yes to the version, no to the capabilities")
def test_capabilities_are_refused(vm, host, outcome):
    begin_negotiation(vm, host)
    host.balloon.send_version_response(1)
    host.balloon.wait_for(MessageType.CAPABILITIES, 5)
    host.balloon.send_caps_response(0)
    assert finished(vm, 8)
    outcome(survives())


@fault("new", "requests before the capabilities are answered")
def test_requests_during_the_negotiation(vm, host, outcome):
    begin_negotiation(vm, host)
    host.balloon.send_balloon(256)
    host.balloon.send_unballoon([])
    host.balloon.send_version_response(1)
    host.balloon.wait_for(MessageType.CAPABILITIES, 5)
    host.balloon.send_caps_response(1)
    assert finished(vm, 8)
    outcome(survives())


@fault("new", "the negotiation's answers before they are asked for")
def test_answers_before_the_requests(vm, host, outcome):
    begin_negotiation(vm, host)
    host.balloon.send_caps_response(1)
    host.balloon.send_caps_response(1)
    host.balloon.send_version_response(1)
    host.balloon.send_version_response(1)
    assert finished(vm, 8)
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
