"""Growing past the boot size, played against a guest that adds memory line by line as Linux does."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvmm.devices.balloon import discards
from pyvmm.devices.balloon import protocol as p
from pyvmm.devices.balloon.growth import GUEST_CANNOT, GUEST_COULD_NOT, GUEST_REFUSED, LEFT_OFFLINE, UNANSWERED
from pyvmm.devices.balloon.hot_add import HotAddRange
from pyvmm.devices.balloon.plan import ROUNDED, UNCONFIRMED
from pyvmm.devices.balloon.ranges import PageRanges
from pyvmm.devices.balloon.states import HotAddPausing, HotAddPosting, HotAddWaiting, Idle
from pyvmm.errors import GuestProtocolError, HostError
from tests.support.balloon_guest import BalloonGuest
from tests.support.balloon_harness import BalloonHarness as BalloonPlay

PAGE = 4096
BOOT = 4096  # pages: 16 MiB
BLOCK = 256  # pages: the smallest alignment a guest can ask for
START = 1 << 20
LIMIT = 10 * BLOCK + 50
END = START + 11 * BLOCK


class FakeWindow:
    """Remembers what is RAM."""

    def __init__(self, start: int = START, end: int = END, pages: int = LIMIT) -> None:
        self.start, self.end, self.pages = start, end, pages
        self.ram = PageRanges()
        self.withdrawn = 0
        self.broken = ""

    def provide(self, start: int, pages: int) -> None:
        assert self.start <= start and start + pages <= self.end
        if self.broken:
            raise HostError(self.broken)
        assert all(r.end <= start for r in self.ram), "not above what is RAM"
        assert self.ram.pages + pages <= self.pages, "more than the guest may have"
        self.ram.insert([(start, pages)])

    def keep_below(self, end: int) -> None:
        self.ram.subtract(PageRanges(r for r in self.ram if r.start >= end))
        for start, pages in list(self.ram):
            if start + pages > end:
                self.ram.subtract(PageRanges([(end, start + pages - end)]))

    def withdraw(self) -> None:
        self.withdrawn += 1
        self.ram.clear()


class BalloonHarness(BalloonPlay):
    """A machine with room to grow, and a guest."""

    def __init__(self, window: FakeWindow | None = None, **tuning: object) -> None:
        self.window = window or FakeWindow()
        guest = BalloonGuest(BOOT, unit=16)
        guest.block = BLOCK
        pieces = {"balloon_piece": 4 * BLOCK, "unballoon_piece": 1024 << 8, "hot_add_piece": 2 * BLOCK}
        super().__init__(guest, boot=BOOT, window=self.window, **pieces | tuning)

    @property
    def our(self) -> HotAddRange:
        assert self.ledger.hot_range is not None
        return self.ledger.hot_range

    def check_sent(self, message: p.HostMessage) -> None:
        if isinstance(message, p.HotAddRequest):
            asked = PageRanges([message.range])
            assert (asked & self.window.ram) == asked, "offered before it was there"

    def grow(self, pages: int) -> BalloonHarness:
        """To so many pages more than at boot."""
        self.machine.set_target((BOOT + pages) * PAGE)
        return self.run()

    def rebind(self) -> BalloonHarness:
        self.machine.closed()
        self.guest.rebind()
        return self.boot()

    def hot_adds(self) -> list[p.HotAddRequest]:
        return [m for m in self.sent if isinstance(m, p.HotAddRequest)]


def answer(pages: int, result: int) -> bytes:
    return p.HotAddResponse(p.MessageType.HOT_ADD_RESPONSE, 16, 1, pages, result).build()


@pytest.fixture(autouse=True)
def slow_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are turns, each is used up by one call."""
    monkeypatch.setattr(discards, "SECONDS_A_TURN", 0.0)


@pytest.fixture
def play() -> BalloonHarness:
    return BalloonHarness().boot()


@pytest.mark.parametrize("pages", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 5 * BLOCK + 7, LIMIT])
def test_growth_is_exact_to_the_page(play: BalloonHarness, pages: int) -> None:
    plan = play.machine.set_target((BOOT + pages) * PAGE)
    assert (plan.will_reach, plan.reason) == ((BOOT + pages) * PAGE, "")
    play.run()
    assert play.outcome().reached
    assert play.ledger.current_pages == len(play.guest.free) == BOOT + pages
    assert play.hot_adds()[0].range[1] <= 2 * BLOCK, "a piece first"


def test_a_request_names_whole_blocks_and_the_part_of_them_that_is_given(play: BalloonHarness) -> None:
    play.grow(2 * BLOCK + 7)
    first, second = play.hot_adds()
    assert (first.range, first.region) == ((START, 2 * BLOCK), (START, 2 * BLOCK))
    assert (second.range, second.region) == ((START + 2 * BLOCK, 7), (START + 2 * BLOCK, BLOCK))


def test_the_rest_of_a_block_is_given_without_making_it_again(play: BalloonHarness) -> None:
    play.grow(7).sent.clear()
    play.grow(2 * BLOCK)
    first, second = play.hot_adds()
    assert (first.range, first.region) == ((START + 7, BLOCK - 7), None)
    assert second.range == second.region == (START + BLOCK, BLOCK)


def test_requests_grow_while_the_guest_takes_them_whole() -> None:
    play = BalloonHarness(FakeWindow(START, START + 64 * BLOCK, 64 * BLOCK)).boot().grow(64 * BLOCK)
    assert [m.range[1] // BLOCK for m in play.hot_adds()] == [2, 4, 8, 16, 16, 16, 2]


def test_ballooned_pages_go_back_before_memory_is_added(play: BalloonHarness) -> None:
    play.machine.set_target((BOOT - 100) * PAGE)
    play.run().sent.clear()
    play.grow(BLOCK)
    assert [type(m) for m in play.sent] == [p.UnballoonRequest, p.HotAddRequest]


def test_shrinking_below_the_boot_size_after_growth_and_back_again(play: BalloonHarness) -> None:
    play.grow(3 * BLOCK)
    play.machine.set_target(BOOT // 2 * PAGE)
    play.run()
    assert play.ledger.current_pages == len(play.guest.free) == BOOT // 2
    play.guest.free.clear()
    play.guest.free |= (set(range(BOOT)) | play.guest.hot_added) - play.guest.out
    play.grow(3 * BLOCK)
    assert play.guest.out == set()
    assert len(play.hot_adds()) == 2, "nothing was added again"


def test_pages_of_added_memory_are_discarded_and_come_back(play: BalloonHarness) -> None:
    play.grow(BLOCK)
    play.guest.free -= set(range(BOOT))
    play.machine.set_target((BOOT + BLOCK - 16) * PAGE)
    play.run()
    assert play.discarded == [(START, 16)]
    assert play.ledger.added.removed_pages == 16
    play.grow(BLOCK)
    assert play.guest.out == set()


def test_what_was_not_given_is_never_discarded(play: BalloonHarness) -> None:
    play.grow(BLOCK)
    play.machine.set_target(BOOT * PAGE)
    play.host_turn()
    play.send_to_host(p.BalloonResponse(1, False, [(START + BLOCK - 8, 16), (END, 5)]).build())
    assert play.discarded == [(START + BLOCK - 8, 8)]
    assert play.ledger.counters.outside == 13


def test_a_guest_that_takes_whole_blocks_only_is_reported() -> None:
    play = BalloonHarness(hot_add_whole_blocks=True).boot()
    plan = play.machine.set_target((BOOT + BLOCK + 3) * PAGE)
    assert plan.will_reach == (BOOT + BLOCK) * PAGE
    assert "blocks of 1 MiB" in plan.reason
    play.run()
    assert play.ledger.current_pages == BOOT + BLOCK
    assert "blocks of 1 MiB" in play.outcome().reason


def test_more_than_there_is_ends_at_what_there_is(play: BalloonHarness) -> None:
    plan = play.machine.set_target((BOOT + LIMIT + 1) * PAGE)
    assert plan.will_reach == (BOOT + LIMIT) * PAGE
    assert "most" in plan.reason
    play.run()
    assert play.ledger.current_pages == BOOT + LIMIT
    assert "the most this machine may have" in play.outcome().reason


def test_a_partial_answer_is_followed_by_a_request_for_the_rest(play: BalloonHarness) -> None:
    play.machine.set_target((BOOT + 2 * BLOCK) * PAGE)
    (request,) = play.host_turn()
    play.guest.blocks_left = 1
    for reply in play.guest.answers(request):
        play.send_to_host(reply)
    assert play.ledger.added_pages == BLOCK
    play.guest.blocks_left = 9
    play.run()
    assert play.ledger.current_pages == len(play.guest.free) == BOOT + 2 * BLOCK


def test_not_now_is_tried_again_after_a_while(play: BalloonHarness) -> None:
    play.guest.out_of_memory = 1
    play.grow(BLOCK)
    assert isinstance(play.machine.state, HotAddPausing)
    play.machine.check_time()
    assert play.host_turn() == []
    play.now += 1
    play.machine.check_time()
    play.run()
    assert play.outcome().reached
    assert len(play.guest.free) == BOOT + BLOCK


def test_not_now_three_times_ends_the_attempt_and_the_next_one_tries_again(play: BalloonHarness) -> None:
    play.guest.out_of_memory = 3
    play.grow(BLOCK)
    for _ in range(5):
        play.now += 1
        play.machine.check_time()
        play.run()
    assert len(play.hot_adds()) == 3
    assert play.outcome().reason == GUEST_COULD_NOT
    assert play.grow(BLOCK).outcome().reached


def test_a_new_target_ends_the_pause(play: BalloonHarness) -> None:
    play.guest.out_of_memory = 1
    play.grow(BLOCK)
    play.machine.set_target((BOOT - 10) * PAGE)
    play.run()
    assert play.outcome().reached


def test_a_guest_without_hot_add_is_not_asked() -> None:
    play = BalloonHarness()
    play.machine.opened()
    play.send_to_host(play.guest.version())
    play.send_to_host(play.guest.caps(1))
    plan = play.machine.set_target((BOOT + 1) * PAGE)
    play.host_turn()
    assert (plan.will_reach, plan.reason) == (BOOT * PAGE, GUEST_CANNOT)
    assert (play.hot_adds(), play.outcome().reason) == ([], GUEST_CANNOT)


def test_a_refusal_holds_until_the_driver_is_bound_again(play: BalloonHarness) -> None:
    play.guest.hot_adds_refused = True
    play.grow(BLOCK)
    assert play.outcome().reason == GUEST_REFUSED
    assert play.machine.set_target((BOOT + BLOCK) * PAGE).reason == GUEST_REFUSED
    assert len(play.run().hot_adds()) == 1
    play.rebind()
    assert play.ledger.current_pages == BOOT + BLOCK


def test_an_address_the_guest_knows_is_refused_and_passed_over_later(play: BalloonHarness) -> None:
    play.guest.known = {START}
    play.grow(BLOCK)
    assert play.outcome().reason == GUEST_REFUSED
    play.rebind()
    assert play.outcome().reached
    assert play.hot_adds()[-1].range == (START + BLOCK, BLOCK)


def test_a_driver_bound_again_keeps_its_memory_and_is_never_offered_it(play: BalloonHarness) -> None:
    play.grow(BLOCK + 7)
    play.rebind()
    assert play.ledger.current_pages == BOOT + BLOCK + 7
    play.grow(3 * BLOCK)
    assert play.outcome().reached
    assert play.hot_adds()[-1].range[0] == START + 2 * BLOCK, "the rest of the block is lost until a reset"
    assert play.our.lost_pages == BLOCK - 7
    assert len(play.guest.free) == BOOT + 3 * BLOCK


def test_a_channel_closed_amid_a_request_leaves_it_in_doubt_and_a_page_of_it_proves_it(play: BalloonHarness) -> None:
    play.machine.set_target((BOOT + BLOCK) * PAGE)
    (request,) = play.host_turn()
    list(play.guest.answers(request))  # taken, but the answer is lost
    play.rebind()
    assert play.outcome().reason == UNCONFIRMED
    assert (play.our.unconfirmed.pages, play.ledger.added_pages) == (BLOCK, 0)
    assert play.ledger.actual_pages == BOOT + BLOCK, "it may use it"
    plan = play.machine.set_target((BOOT + 2 * BLOCK) * PAGE)
    assert plan.will_reach == (BOOT + BLOCK) * PAGE and UNCONFIRMED in plan.reason
    play.run()
    assert play.hot_adds()[-1].range == (START + BLOCK, BLOCK)
    assert play.ledger.actual_pages == BOOT + 2 * BLOCK
    play.machine.set_target((BOOT - 16) * PAGE)
    play.host_turn()
    play.send_to_host(p.BalloonResponse(1, False, [(START, 16)]).build())
    assert (play.our.unconfirmed.pages, play.ledger.added_pages) == (0, 2 * BLOCK)
    assert play.ledger.added.removed_pages == 16


def test_an_answer_that_comes_late_counts_and_nothing_is_asked_before(play: BalloonHarness) -> None:
    play.machine.set_target((BOOT + BLOCK) * PAGE)
    (request,) = play.host_turn()
    play.now += 34
    play.machine.check_time()
    assert isinstance(play.machine.state, HotAddWaiting), "5 s a block are Linux's own"
    play.now += 2
    play.machine.check_time()
    assert isinstance(play.machine.state, Idle)
    assert "did not answer for 35 s" in play.outcome().reason
    assert play.machine.set_target((BOOT + BLOCK) * PAGE).reason == UNANSWERED
    assert play.host_turn() == []
    for reply in play.guest.answers(request):
        play.send_to_host(reply)
    assert play.ledger.added_pages == BLOCK
    play.grow(2 * BLOCK)
    assert play.outcome().reached
    with pytest.raises(GuestProtocolError):
        play.send_to_host(answer(1, 1))


def test_after_a_new_contact_all_is_in_doubt_and_never_offered_again(play: BalloonHarness) -> None:
    play.grow(BLOCK)
    play.machine.closed()
    play.machine.forget_pages("new contact")
    assert (play.ledger.current_pages, play.our.unconfirmed.pages) == (BOOT, BLOCK)
    assert play.ledger.actual_pages == BOOT + BLOCK, "it may use it"
    play.guest.rebind()
    play.boot().grow(2 * BLOCK)
    assert play.hot_adds()[-1].range == (START + BLOCK, BLOCK)
    assert play.window.withdrawn == 0


def test_a_machine_reset_takes_it_all_away_and_gives_it_again(play: BalloonHarness) -> None:
    play.grow(BLOCK + 7)
    play.machine.closed()
    play.machine.power_on(keep_target=True)
    assert (play.ledger.actual_pages, play.window.withdrawn) == (BOOT, 1)
    play.guest = BalloonGuest(BOOT)
    play.guest.block = BLOCK
    play.sent.clear()
    play.boot()
    assert play.hot_adds()[0].range == (START, BLOCK + 7)
    assert play.ledger.current_pages == len(play.guest.free) == BOOT + BLOCK + 7


def test_memory_left_offline_is_distinguished_from_slow_onlining(play: BalloonHarness) -> None:
    play.machine.set_target((BOOT + 4 * BLOCK) * PAGE)
    (request,) = play.host_turn()
    play.send_to_host(play.guest.status(committed=1000))
    play.now += 10  # two blocks, 5 s each
    for reply in play.guest.answers(request):
        play.send_to_host(reply)
    assert play.outcome().reason == LEFT_OFFLINE
    assert play.host_turn() == [], "not waited for again"
    assert play.ledger.added_pages == play.machine.growth.offline_pages == 2 * BLOCK
    assert "left 2 MiB" in play.machine.set_target((BOOT + 4 * BLOCK) * PAGE).reason
    play.send_to_host(play.guest.status(committed=1000 + 2 * BLOCK))
    assert play.machine.growth.offline_pages == 2 * BLOCK
    play.send_to_host(play.guest.status(committed=1100))
    assert play.machine.growth.offline_pages == 0, "the guest has brought it online"


def test_the_oldest_protocol_has_no_regions() -> None:
    play = BalloonHarness(newest_version=p.WIN7)
    play.machine.opened()
    for version in (0x20000, 0x10000, 3):
        play.send_to_host(play.guest.version(version))
    play.run()
    play.grow(BLOCK + 7)
    assert [m.region for m in play.hot_adds()] == [None]
    assert len(play.guest.free) == BOOT + BLOCK + 7


def test_a_host_without_memory_for_it_ends_the_attempt_with_its_words(play: BalloonHarness) -> None:
    play.window.broken = "KVM has no slot left"
    play.grow(BLOCK)
    assert "KVM has no slot left" in play.outcome().reason
    assert (play.hot_adds(), isinstance(play.machine.state, Idle)) == ([], True)


def test_a_guest_with_larger_blocks_starts_at_one_of_them() -> None:
    play = BalloonHarness(FakeWindow(START + BLOCK, START + 16 * BLOCK, 12 * BLOCK))
    play.guest.block = 4 * BLOCK
    play.boot()
    plan = play.machine.set_target((BOOT + 12 * BLOCK) * PAGE)
    assert plan.will_reach == (BOOT + 12 * BLOCK) * PAGE
    play.run()
    assert play.hot_adds()[0].range == (START + 4 * BLOCK, 4 * BLOCK), "at least a block"
    assert play.ledger.current_pages == BOOT + 12 * BLOCK


def test_a_guest_that_claims_more_than_it_was_given_gets_what_it_was_given(play: BalloonHarness) -> None:
    play.machine.set_target((BOOT + BLOCK) * PAGE)
    play.host_turn()
    play.send_to_host(answer(0xFFFFFFFF, 1))
    assert play.ledger.added_pages == BLOCK
    assert play.outcome().reached


def test_only_what_is_on_offer_or_was_taken_is_ram(play: BalloonHarness) -> None:
    play.machine.set_target((BOOT + 3 * BLOCK) * PAGE)
    play.host_turn()
    assert list(play.window.ram) == [(START, 2 * BLOCK)], "the request that is out"
    play.send_to_host(answer(BLOCK + 5, 1))
    assert list(play.window.ram & PageRanges([(START, 2 * BLOCK)])) == [(START, 2 * BLOCK)], "the rest is asked for"
    play.send_to_host(answer(0, 0)) if play.host_turn() else None
    assert isinstance(play.machine.state, HotAddPausing)
    assert list(play.window.ram) == [(START, BLOCK + 5)]


def test_the_guest_gets_its_maximum() -> None:
    play = BalloonHarness(send_info=True).boot()
    assert isinstance(play.sent[-1], p.Info)
    assert play.sent[-1].pages == BOOT + LIMIT


def test_a_target_that_is_no_whole_page_is_rounded_and_said() -> None:
    play = BalloonHarness().boot()
    plan = play.machine.set_target(BOOT * PAGE - 1)
    assert (plan.target, plan.will_reach, plan.reason) == (BOOT * PAGE - 1, (BOOT - 1) * PAGE, ROUNDED)


def test_a_new_target_forgets_the_last_result(play: BalloonHarness) -> None:
    play.grow(BLOCK)
    play.machine.set_target((BOOT + 2 * BLOCK) * PAGE)
    assert play.machine.outcome is None


def test_a_target_set_before_a_hot_add_is_sent_takes_its_place(play: BalloonHarness) -> None:
    play.machine.set_target((BOOT + BLOCK) * PAGE)
    assert isinstance(play.machine.state, HotAddPosting)
    play.machine.set_target(BOOT * PAGE)
    assert (play.host_turn(), play.outcome().reached) == ([], True)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("target"), st.integers(1, BOOT + LIMIT + 500)),
        st.tuples(st.just("host"), st.integers(1, 3)),
        st.tuples(st.just("answer"), st.integers(0, 3)),
        st.tuples(st.just("lie"), st.tuples(st.integers(0, 3 * BLOCK), st.integers(0, 1))),
        st.tuples(st.just("claim"), st.tuples(st.integers(START - 300, END + 300), st.integers(0, 400))),
        st.tuples(st.just("fail"), st.integers(0, 2)),
        st.tuples(st.just("wait"), st.integers(1, 50)),
        st.tuples(st.just("turn"), st.integers(1, 300)),
        st.tuples(st.just("rebind"), st.none()),
        st.tuples(st.just("contact"), st.none()),
        st.tuples(st.just("reset"), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps, st.booleans())
def test_no_page_is_added_twice_or_discarded_unless_given(steps: list[tuple[str, object]], in_turns: bool) -> None:
    """Any operations in any order; the guest answers rightly, late, wrongly or not at all. BalloonGuest objects to
    memory added twice and to pages given back that are not out."""
    play = BalloonHarness().boot()
    turns = deque[Callable[[], object]]()
    if in_turns:
        play.ledger.turns.later = turns.append
        play.ledger.turns.progress = play.machine.discarded
    waiting = deque[p.HostMessage]()
    offered = PageRanges()  # since the last reset
    highest = BOOT  # target
    for what, value in steps:
        try:
            match what, value:
                case "target", int(pages):
                    play.machine.set_target(pages * PAGE)
                    highest = max(highest, pages)
                case "host", int(limit):
                    for message in play.host_turn(limit):
                        waiting.append(message)
                        if isinstance(message, p.HotAddRequest):
                            given_now = PageRanges([message.range])
                            # again only where the guest said that it did not take it
                            known = PageRanges([(page, 1) for page in play.guest.hot_added])
                            assert given_now.isdisjoint(play.ledger.added.ram)
                            assert given_now.isdisjoint(play.our.unconfirmed)
                            assert given_now.isdisjoint(known & offered)
                            offered.update(given_now)
                case "answer", int(count):
                    for _ in range(min(count, len(waiting))):
                        for reply in play.guest.answers(waiting.popleft()):
                            play.send_to_host(reply)
                case "lie", (int(pages), int(result)) if not isinstance(play.machine.state, HotAddWaiting):
                    play.send_to_host(answer(pages, result))
                case "claim", (int(start), int(count)) if not play.guest.out:
                    play.send_to_host(p.BalloonResponse(1, False, [(start, count)]).build())
                    play.guest.out |= {q for r in play.ledger.added.removed_both for q in range(r.start, r.end)}
                    play.guest.free -= play.guest.out
                case "fail", int(count):
                    play.guest.out_of_memory = count
                case "wait", int(seconds):
                    play.now += seconds
                    play.machine.check_time()
                case "turn", int(count):
                    for _ in range(min(count, len(turns))):
                        turns.popleft()()
                case "rebind", None:
                    waiting.clear()
                    play.machine.closed()
                    play.guest.rebind()
                    play.machine.opened()
                    play.send_to_host(play.guest.version())
                    waiting.extend(play.host_turn())
                case "contact", None:
                    waiting.clear()
                    play.machine.closed()
                    play.machine.forget_pages("contact")
                    play.guest.rebind()
                    play.guest.free |= play.guest.out
                    play.guest.out.clear()
                    play.machine.opened()
                    play.send_to_host(play.guest.version())
                case "reset", None:
                    waiting.clear()
                    play.machine.closed()
                    play.machine.power_on(keep_target=True)
                    play.guest = BalloonGuest(BOOT, unit=16)
                    play.guest.block = BLOCK
                    offered.clear()
                    play.machine.opened()
                    play.send_to_host(play.guest.version())
        except GuestProtocolError:
            pass
        ledger, our = play.ledger, play.our
        assert our.ram.isdisjoint(our.unconfirmed)
        assert our.granted_pages <= play.window.pages
        assert our.lost_pages >= 0
        assert START <= our.next <= our.block_end or our.next == our.block_end
        given_or_doubted = our.ram | our.unconfirmed
        match play.machine.state:
            case HotAddPosting(grant) | HotAddWaiting(grant):
                given_or_doubted.insert([(grant.start, grant.pages)])
        assert play.window.ram == given_or_doubted, "RAM is what was given, and what is on offer"
        assert BOOT + play.window.ram.pages <= highest, "the guest can touch more than it was ever to have"
        for record in (ledger.boot, ledger.added):
            assert record.removed_guest.isdisjoint(record.removed_both)
            removed = record.removed_guest | record.removed_both
            assert (removed & record.ram) == removed
            assert (record.waiting & record.removed_both) == record.waiting
        assert ledger.current_pages + ledger.removed_pages == BOOT + our.ram.pages
        ram = ledger.boot.ram | our.ram
        for start, count in play.discarded:
            named = PageRanges([(start, count)])
            assert (named & ram) == named or what == "reset", "discarded what is not the guest's"
            if what == "turn":
                removed = ledger.removed_both
                assert (named & removed) == named, "discarded what the guest has again"
        play.discarded.clear()
