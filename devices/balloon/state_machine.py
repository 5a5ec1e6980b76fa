"""The host's side of the Dynamic Memory protocol as a state machine: guest messages and targets in, messages out.

Source: QEMU hw/hyperv/hv-balloon.c for the shape of the states; Linux drivers/hv/hv_balloon.c for the other side.

    Closed --opened--> AwaitVersion --version taken--> AwaitCaps --caps--> Idle      (closed: from any to Closed)

             target below          room in the ring         `more`: once again
    Idle -----------------> BalloonPosting ----> BalloonWaiting <--+
      ^                                              |  +---response
      |<---------------------------------------------+ last response, or no progress for REQUEST_TIMEOUT
      |        later: once more                      |
      |<----------------------- BalloonPausing <-----+ last response, pages missing
      |      target above, pages out   room: a message each      last message
    Idle ----------------------------> UnballoonPosting <--+  ----------> UnballoonWaiting
      ^                                      +-------------+                     |
      |<-------------------------------------------------------------------------+ response, or no progress

             target above, no pages out                room
    Idle ---------------------------> HotAddPosting ----> HotAddWaiting
      ^     (a piece made RAM first)        ^ later: once more |  |
      |                                     +-- HotAddPausing <+  | not now
      |<----------------------------------------------------------+ taken, refused, or silence

At Idle the target is compared with the guest's size, and the next piece requested, until they are equal or the guest
stops: that is one attempt. A new target begins a new attempt, as soon as the outstanding request is answered. `retry`
schedules further requests to a guest that stopped; the pause is a state, so leaving it ends the retries.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pyvmm.devices.balloon import events as trace
from pyvmm.devices.balloon.driver import Driver
from pyvmm.devices.balloon.growth import GUEST_COULD_NOT, GUEST_REFUSED, LEFT_OFFLINE, Growth
from pyvmm.devices.balloon.hot_add import Grant
from pyvmm.devices.balloon.ledger import PAGE_SIZE, Ledger
from pyvmm.devices.balloon.plan import CANNOT_BALLOON, UNCONFIRMED, ResizeOutcome, ResizePlan, forecast
from pyvmm.devices.balloon.protocol import (
    RANGE_PAGES_LIMIT,
    RANGES_AT,
    BalloonRequest,
    BalloonResponse,
    Capabilities,
    CapabilitiesReport,
    GuestMessage,
    HotAddRequest,
    HotAddResponse,
    MessageType,
    StatusReport,
    UnballoonRequest,
    UnballoonResponse,
    Version,
    VersionRequest,
)
from pyvmm.devices.balloon.retry import RetrySchedule
from pyvmm.devices.balloon.states import (
    TRANSITIONS,
    AwaitCaps,
    AwaitVersion,
    BalloonPausing,
    BalloonPosting,
    BalloonWaiting,
    Closed,
    HotAddPausing,
    HotAddPosting,
    HotAddWaiting,
    Idle,
    State,
    UnballoonPosting,
    UnballoonWaiting,
)
from pyvmm.devices.balloon.tuning import Tuning
from pyvmm.errors import ConfigError, GuestProtocolError, HostError
from pyvmm.transitions import check
from pyvmm.vmbus.ring import MAX_PAYLOAD


@dataclass(frozen=True, slots=True)
class Changed:
    """The guest has more or less memory than before."""

    actual: int  # bytes


Notification = Changed | ResizeOutcome | StatusReport


class BalloonMachine:
    """The balloon's state machine, without I/O. Inputs: `receive`, `set_target`, `opened`, `closed`, `power_on` and
    `check_time`; outputs: `next_message`, `happened`, and discards through the ledger."""

    def __init__(self, ledger: Ledger, *, clock: Callable[[], float], tuning: Tuning | None = None) -> None:
        self.ledger = ledger
        self.tuning = tuning or Tuning()
        self.clock = clock
        self.state: State = Closed()
        self.driver = Driver(self.tuning.newest_version)
        self.target: int | None = None  # pages
        self.outcome: ResizeOutcome | None = None  # of the last attempt that ended
        self.notifications: deque[Notification] = deque()
        self._attempting = False
        self._attempt = 0
        self.retry = RetrySchedule(self.tuning.balloon_pauses)
        self._trans_id = 0
        self._late_balloons = self._late_unballoons = 0  # requests that timed out; answers may still come
        self.growth = self._new_growth()
        self._ranges_limit = _ranges_in(MAX_PAYLOAD)  # of an unballoon message

    @property
    def version(self) -> Version | None:
        """Return the protocol version agreed on with the bound driver."""
        return self.driver.version

    @property
    def caps(self) -> Capabilities | None:
        """Return the driver's capabilities; None before it has sent them."""
        return self.driver.caps

    @property
    def status(self) -> StatusReport | None:
        """Return the bound driver's last status report."""
        return self.driver.status

    def _new_growth(self) -> Growth:
        piece, whole = self.tuning.hot_add_piece, self.tuning.hot_add_whole_blocks
        return Growth(self.ledger, piece=piece, whole_blocks=whole)

    # Channel and machine events

    def opened(self, *, message_limit: int = MAX_PAYLOAD) -> None:
        """Handle an opened channel, which takes messages of at most `message_limit` bytes."""
        self._forget_driver()
        self._ranges_limit = _ranges_in(message_limit)
        self._enter(AwaitVersion())

    def closed(self) -> None:
        """Handle a closed channel. Ranges sent to the guest are the guest's; ranges not sent stay out."""
        hot_range = self.ledger.hot_range
        if hot_range is not None:
            if isinstance(self.state, HotAddWaiting):
                hot_range.timed_out(self.state.grant)
                self._notify_change()
            hot_range.driver_unbound()
            hot_range.trim()
        self._forget_driver()
        self._enter(Closed())

    def _forget_driver(self) -> None:
        self.driver = Driver(self.tuning.newest_version)
        self.growth = self._new_growth()
        self._late_balloons = self._late_unballoons = 0

    def forget_pages(self, reason: str) -> None:
        """Clear the ledger for a possible new kernel: it has the pages that were out; hot-added memory is unknown."""
        before = self._sizes_before_forgetting(reason)
        self.ledger.invalidate()
        self._notify_change_since(before)

    def power_on(self, *, keep_target: bool) -> None:
        """Handle a machine reset, after `closed`: boot size, empty ledger; the target waits for the next driver."""
        before = self._sizes_before_forgetting("machine reset")
        self.ledger.reset()
        self._notify_change_since(before)
        self.outcome = None
        if not keep_target:
            if self._attempting and self.target is not None:
                self._end_attempt("the machine was reset")
            self.target = None

    def _sizes_before_forgetting(self, reason: str) -> tuple[int, int]:
        if trace.forgotten.on:
            trace.forgotten(self.ledger.removed_pages, reason)
        return self.ledger.current_pages, self.ledger.actual_pages

    def _notify_change_since(self, before: tuple[int, int]) -> None:
        if (self.ledger.current_pages, self.ledger.actual_pages) != before:
            self._notify_change()

    # Targets

    def set_target(self, size: int, *, retry_in_background: bool = True) -> ResizePlan:
        """Set the target to `size` bytes and start the resize. Raises ConfigError for none or less.

        Setting the same target again starts a new attempt. `retry_in_background`: a guest that stops above the target
        gets further requests for a while after the result was reported.
        """
        if size < PAGE_SIZE:
            raise ConfigError(f"balloon target of {size} bytes: give the guest at least a page")
        self.target = size // PAGE_SIZE
        plan = forecast(size, self.growth, self.caps, self.driver.available_pages(self.ledger.current_pages))
        if trace.target_set.on:
            trace.target_set(self.target, self.ledger.current_pages, plan.reason)
        self._attempting = True
        self._attempt += 1
        self.retry.in_background = retry_in_background
        self.outcome = None
        match self.state:
            case BalloonPosting() | UnballoonPosting(started=False) | HotAddPosting():
                self._enter(Idle())
            case BalloonPausing() | HotAddPausing():
                self._enter(Idle())
            case UnballoonPosting() as state:
                state.unsent, state.left = [], 0  # an empty message without `more` ends the transfer
        self._advance()
        return plan

    def stop_retrying(self) -> None:
        """Stop background retries of a resize whose result was reported: another resize policy takes over."""
        self.retry.in_background = False
        match self.state:
            case BalloonPausing(tries) if self.retry.pause_after(tries - 1) is None:
                self._attempting = False
                self._enter(Idle())

    # Messages in

    def receive(self, message: GuestMessage) -> None:
        """Handle one message of the guest. Raises GuestProtocolError for an unsolicited one."""
        match message, self.state:
            case StatusReport(), _:
                self._on_status(message)
            case VersionRequest(), AwaitVersion():
                if self.driver.on_version(message):
                    self._enter(AwaitCaps())
            case CapabilitiesReport(), AwaitCaps():
                self._on_capabilities(message)
            case BalloonResponse(), BalloonWaiting() as state:
                self._on_balloon_response(message, state)
            case BalloonResponse(), _ if self._late_balloons:
                self._trace_late(MessageType.BALLOON_RESPONSE)
                self._record(message)
                if not message.more:
                    self._late_balloons -= 1
                self._advance()
            case UnballoonResponse(), UnballoonWaiting():
                if trace.incoming_unballoon.on:
                    trace.incoming_unballoon(message.trans_id)
                self._end_request()
            case UnballoonResponse(), _ if self._late_unballoons:
                self._trace_late(MessageType.UNBALLOON_RESPONSE)
                self._late_unballoons -= 1
            case HotAddResponse(), HotAddWaiting() as state:
                self._on_hot_add_response(message, state)
            case HotAddResponse(), _ if self.growth.late_answers and self.ledger.hot_range is not None:
                self._trace_late(MessageType.HOT_ADD_RESPONSE)
                self.ledger.hot_range.accepted_late(self.growth.late_answers.popleft(), message.pages)
                self._notify_change()
                self._advance()
            case _:
                name = type(message).__name__
                raise GuestProtocolError(f"balloon: {name} in state {self.state.NAME}")

    def _on_status(self, report: StatusReport) -> None:
        self.driver.on_status(report, self.ledger.current_pages)
        self.growth.on_status(report)
        self.notifications.append(report)

    def _on_capabilities(self, report: CapabilitiesReport) -> None:
        caps = self.driver.on_capabilities(report, suppress_reports=not self.tuning.wants_status)
        self.growth.on_capabilities(hot_add=bool(caps.hot_add), alignment_log2_mib=caps.alignment_log2_mib)
        if self.tuning.send_info:
            self.driver.queue_info(self._trans_id, self.ledger.maximum_pages)
        self._enter(Idle())
        self._attempting = self.target is not None
        self._advance()

    def _on_balloon_response(self, response: BalloonResponse, state: BalloonWaiting) -> None:
        accepted = self._record(response)
        state.got += accepted
        if accepted:
            state.deadline = self._deadline()  # only pages are progress, or a guest could hold the request for ever
        if response.more:
            return
        if state.got > state.asked and trace.too_many_pages.on:
            trace.too_many_pages(state.asked, state.got)
        if state.got < state.asked and state.attempt == self._attempt:
            self._on_shortfall(state)
        else:
            self._end_request()

    def _on_shortfall(self, state: BalloonWaiting) -> None:
        """Handle a guest that stopped above the target, permanently or for the moment."""
        pause = self.retry.pause_after(state.tries)
        if self.retry.is_reported_after(state.tries):
            short = "nothing" if not state.got else f"{state.got >> 8} of {state.asked >> 8} MiB"
            self._end_attempt(f"the guest gave {short}: it keeps the rest (its floor)", final=pause is None)
        if pause is None:
            self._end_request()
            return
        if trace.asks_again.on:
            trace.asks_again(state.asked - state.got, state.tries + 1, pause)
        self._next_trans_id()
        self._enter(BalloonPausing(state.tries + 1, self.clock() + pause))

    def _record(self, response: BalloonResponse) -> int:
        if trace.incoming_balloon.on:
            trace.incoming_balloon(response.trans_id, len(response.ranges), int(response.more))
        accepted = self.ledger.record_released(response.ranges).accepted
        if accepted:
            self._notify_change()
        return accepted

    def _on_hot_add_response(self, response: HotAddResponse, state: HotAddWaiting) -> None:
        if trace.incoming_hot_add.on:
            trace.incoming_hot_add(response.trans_id, response.result, response.pages)
        hot_range, grant = self.ledger.hot_range, state.grant
        assert hot_range is not None
        pages = hot_range.accepted(grant, response.pages, self.growth.alignment)
        if pages:
            self._notify_change()
        if response.pages != grant.pages and trace.hot_add_short.on:
            trace.hot_add_short(grant.pages, response.pages, response.result)
        current = state.attempt == self._attempt
        if pages:
            offline = self.growth.on_accepted(grant, pages, self.clock() - state.asked_at, self.status)
            if offline and current:
                self._end_attempt(LEFT_OFFLINE)
        elif response.result:
            hot_range.refused(grant)
            self.growth.refused = GUEST_REFUSED
        elif current and state.tries < self.tuning.hot_add_tries:
            hot_range.trim()
            self._next_trans_id()
            self._enter(HotAddPausing(state.tries + 1, self.clock() + self.tuning.hot_add_pause))
            return
        elif current:
            self._end_attempt(GUEST_COULD_NOT)
        self._end_request()

    def _trace_late(self, kind: MessageType) -> None:
        if trace.late_answer.on:
            trace.late_answer(int(kind))

    # Messages out

    @property
    def next_size(self) -> int:
        """Return the size in bytes of the next message; 0 if there is none to send."""
        if self.driver.replies:
            return len(self.driver.replies[0])
        match self.state:
            case BalloonPosting():
                return BalloonRequest.SIZE
            case UnballoonPosting(unsent=unsent):
                return RANGES_AT + 8 * min(len(unsent), self._ranges_limit)
            case HotAddPosting(grant):
                return len(self._hot_add(grant).build())
        return 0

    def next_message(self) -> bytes:
        """Return the message of `next_size` bytes, which the caller sends now, and make the state transition."""
        if self.driver.replies:
            return self.driver.replies.popleft()
        match self.state:
            case BalloonPosting(pages, tries):
                self._trace_posting("S_BALLOON_POSTING")
                if trace.outgoing_balloon.on:
                    trace.outgoing_balloon(self._trans_id, pages, self.ledger.current_pages - (self.target or 0))
                self._enter(BalloonWaiting(pages, 0, tries, self._attempt, self._deadline()))
                return BalloonRequest.of(self._trans_id, pages).build()
            case UnballoonPosting() as state:
                return self._next_unballoon(state)
            case HotAddPosting(grant, tries):
                self._trace_posting("S_HOT_ADD_POSTING")
                if trace.outgoing_hot_add.on:
                    trace.outgoing_hot_add(self._trans_id, grant.pages, grant.start)
                now = self.clock()
                deadline = now + self.growth.time_limit(grant, self.tuning.request_timeout)
                self._enter(HotAddWaiting(grant, tries, self._attempt, now, deadline))
                return self._hot_add(grant).build()
        raise AssertionError("nothing to send")

    def _hot_add(self, grant: Grant) -> HotAddRequest:
        return self.growth.request(grant, self._trans_id, self.version)

    def _next_unballoon(self, state: UnballoonPosting) -> bytes:
        self._trace_posting("S_UNBALLOON_POSTING")
        ranges = state.unsent[-self._ranges_limit :]
        del state.unsent[-self._ranges_limit :]
        pages = sum(r.pages for r in ranges)
        self.ledger.give_back(ranges)
        state.left -= pages
        state.started = True
        state.deadline = self._deadline()
        if trace.outgoing_unballoon.on:
            trace.outgoing_unballoon(self._trans_id, pages, ranges[0].start if ranges else 0, state.left)
        message = UnballoonRequest(self._trans_id, bool(state.unsent), list(ranges)).build()
        if pages:
            self._notify_change()
        if not state.unsent:
            self._enter(UnballoonWaiting(self._deadline()))
        return message

    # Time

    def check_time(self) -> None:
        """Time out a request without progress. The device calls this about once a second."""
        state = self.state
        if isinstance(state, Closed | AwaitVersion | AwaitCaps | Idle) or self.clock() < state.deadline:
            return
        if isinstance(state, BalloonPausing | HotAddPausing):
            if self.ledger.waiting_pages:
                return
            self._attempting = True
            self._enter(Idle())
            self._advance(tries=state.tries)
            return
        if trace.timed_out.on:
            trace.timed_out(state.NAME)
        match state:
            case BalloonWaiting():
                self._late_balloons += 1
            case UnballoonWaiting():
                self._late_unballoons += 1
            case HotAddWaiting(grant) if self.ledger.hot_range is not None:
                self.ledger.hot_range.timed_out(grant)
                self.growth.late_answers.append(grant)
                self._notify_change()
        waited = state.deadline - state.asked_at if isinstance(state, HotAddWaiting) else self.tuning.request_timeout
        self._end_attempt(f"the guest did not answer for {waited:g} s")
        self._end_request()

    def _deadline(self) -> float:
        return self.clock() + self.tuning.request_timeout

    # The next step

    def discarded(self) -> None:
        """Handle progress of the queued discards."""
        self._notify_change()
        self._advance()

    def _advance(self, *, tries: int = 1) -> None:
        """At Idle: request the next piece towards the target, or end the attempt."""
        if isinstance(self.state, Idle) and self.ledger.hot_range is not None:
            self.ledger.hot_range.trim()
        if self.ledger.waiting_pages:
            return  # `discarded` resumes here: requests wait for the host's discards
        if not self._attempting or self.target is None or not isinstance(self.state, Idle) or self.caps is None:
            return
        surplus = self.ledger.current_pages - self.target
        if surplus == 0:
            self._end_attempt("")
        elif surplus > 0 and not self.caps.balloon:
            self._end_attempt(CANNOT_BALLOON)
        elif surplus > 0:
            self._enter(BalloonPosting(min(surplus, self.tuning.balloon_piece), tries, self._deadline()))
        elif self.ledger.removed_pages:
            ranges = self.ledger.choose(min(-surplus, self.tuning.unballoon_piece), self.tuning.unballoon_ranges)
            unsent = [part for r in reversed(ranges) for part in r.parts(RANGE_PAGES_LIMIT)]
            pages = sum(r.pages for r in unsent)
            self._enter(UnballoonPosting(unsent, pages, started=False, deadline=self._deadline()))
        elif reason := self.growth.refusal_reason():
            self._end_attempt(reason)
        elif -surplus <= self.ledger.unconfirmed_pages:
            self._end_attempt(UNCONFIRMED)
        else:
            self._begin_hot_add(-surplus - self.ledger.unconfirmed_pages, tries)

    def _begin_hot_add(self, wanted: int, tries: int) -> None:
        self._trace_posting("S_HOT_ADD_SETUP")
        try:
            grant = self.growth.next_grant(wanted)
        except HostError as error:
            self._end_attempt(f"the host cannot provide the memory: {error}")
            return
        if grant is None:
            self._end_attempt(self.growth.no_grant_reason())
        else:
            self._enter(HotAddPosting(grant, tries, self._deadline()))

    def _end_request(self) -> None:
        self._next_trans_id()
        self._enter(Idle())
        self._advance()

    def _next_trans_id(self) -> None:
        self._trans_id = (self._trans_id + 1) & 0xFFFFFFFF

    def _end_attempt(self, reason: str, *, final: bool = True) -> None:
        assert self.target is not None
        self._attempting = False
        if trace.finished.on:
            trace.finished(self.target, self.ledger.current_pages, reason)
        actual = self.ledger.actual_pages * PAGE_SIZE
        self.outcome = ResizeOutcome(self.target * PAGE_SIZE, actual, reason, final)
        self.notifications.append(self.outcome)

    def _notify_change(self) -> None:
        self.notifications.append(Changed(self.ledger.actual_pages * PAGE_SIZE))

    def _enter(self, state: State) -> None:
        if trace.state_change.on and state.QEMU_NAME != self.state.QEMU_NAME:
            trace.state_change(state.QEMU_NAME)
        check(TRANSITIONS, type(self.state), type(state))
        self.state = state

    def _trace_posting(self, name: str) -> None:
        if trace.state_change.on:
            trace.state_change(name)


def _ranges_in(message_size: int) -> int:
    """Return the number of ranges in an unballoon message of so many bytes."""
    return max(1, (message_size - RANGES_AT) // 8)
