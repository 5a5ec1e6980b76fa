"""The balloon's trace events as messages: a negotiation, and a sequence for each resize.

Source: Linux drivers/hv/hv_balloon.c, for the names of messages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from pyvmm.devices.balloon.protocol import MessageType
from pyvmm.trace.sequences import Entry, Message, Note, Sequence, counted

PAGES_PER_MIB = 256


def _mib(pages: int) -> str:
    return f"{pages / PAGES_PER_MIB:g} MiB"


class MessageSequences:
    """Collects the balloon's messages: a negotiation for each open, a sequence for each resize."""

    def __init__(self, entries: Iterable[Entry], start: float) -> None:
        self._current: Sequence | None = None
        self._resize: Sequence | None = None  # the one that has not finished
        self._channel = -1
        self._pending_replies: deque[Message] = deque()  # answers whose packets are still to be traced
        self.sequences: list[Sequence] = []
        for entry in entries:
            for step in self._steps(entry, entry.time - start):
                self._add(step)
        self._flush_replies()

    def _begin(self, title: str) -> None:
        self._current = Sequence(title)
        self.sequences.append(self._current)

    def _flush_replies(self) -> None:
        """Record answers whose packets the trace leaves out."""
        while self._pending_replies:
            self._add(self._pending_replies.popleft())

    def _add(self, step: Message | Note) -> None:
        if self._current is None:
            self._begin("hv-balloon, between resizes")
        assert self._current is not None
        self._current.steps.append(step)

    def _steps(self, entry: Entry, time: float) -> Iterator[Message | Note]:
        number = entry.number
        match entry.name:
            case "vmbus.channel_state" if entry.fields.get("name") == "hv-balloon":
                self._channel = number("chan_id")
            case "vmbus.packet_sent" if self._pending_replies and number("chan_id") == self._channel:
                answer = self._pending_replies.popleft()
                answer.time = time
                yield answer
            case "hv_balloon_incoming_version":
                if self._current is None or self._current.title != "hv-balloon negotiation":
                    self._begin("hv-balloon negotiation")
                version = f"{number('major')}.{number('minor')}"
                yield _from_guest(time, MessageType.VERSION_REQUEST, f"version {version}")
                self._pending_replies.append(_from_host(time, MessageType.VERSION_RESPONSE))
            case "hv_balloon_incoming_caps":
                yield _from_guest(time, MessageType.CAPABILITIES, f"caps {number('caps'):#x}")
                self._pending_replies.append(_from_host(time, MessageType.CAPABILITIES_RESPONSE))
            case "balloon.info_sent":
                self._pending_replies.append(_from_host(time, MessageType.INFO, f"at most {_mib(number('pages'))}"))
            case "balloon.target_set":
                self._flush_replies()
                if self._resize is not None:
                    self._resize.steps.append(Note(time, f"replaced by target {_mib(number('target'))}"))
                    self._resize.result = "replaced"
                self._begin(f"{_mib(number('current'))} to {_mib(number('target'))}")
                self._resize = self._current
                reason = entry.text("reason")
                yield Note(time, f"target {_mib(number('target'))}" + (f": {reason}" if reason else ""))
            case "balloon.finished":
                yield Note(time, f"at {_mib(number('current'))}")
                if self._current is not None:
                    self._current.result = entry.text("reason") or "reached"
                    self._current.end = time
                    self._current = self._resize = None
            case "balloon.asks_again":
                short = f"{_mib(number('pages'))} short: the guest is asked again in {entry.text('seconds')} s"
                yield Note(time, short)
            case "hv_balloon_outgoing_balloon":
                yield _from_host(time, MessageType.BALLOON_REQUEST, _mib(number("count")))
            case "hv_balloon_incoming_balloon":
                more = ", more to come" if number("more_pages") else ""
                ranges = counted(number("range_count"), "range")
                yield _from_guest(time, MessageType.BALLOON_RESPONSE, ranges + more)
            case "hv_balloon_outgoing_unballoon":
                yield _from_host(time, MessageType.UNBALLOON_REQUEST, _mib(number("count")))
            case "hv_balloon_incoming_unballoon":
                yield _from_guest(time, MessageType.UNBALLOON_RESPONSE)
            case "hv_balloon_outgoing_hot_add":
                where = f"{_mib(number('count'))} @ {number('start'):#x}"
                yield _from_host(time, MessageType.HOT_ADD_REQUEST, where)
            case "hv_balloon_incoming_hot_add":
                result = f"{_mib(number('count'))}, result {number('result')}"
                yield _from_guest(time, MessageType.HOT_ADD_RESPONSE, result)
            case "balloon.status_report" if self._current is not None:
                figures = f"{_mib(number('available'))} available, {_mib(number('committed'))} committed"
                yield _from_guest(time, MessageType.STATUS_REPORT, figures)
            case "balloon.timed_out":
                yield Note(time, f"no answer in {entry.text('in') or entry.text('state')}")
            case "balloon.pages_refused" | "balloon.discard_failed" | "balloon.late_answer":
                yield Note(time, f"{entry.name.partition('.')[2].replace('_', ' ')}: {entry.message()}")


def _from_guest(time: float, kind: MessageType, detail: str = "") -> Message:
    return Message(time, True, kind.name, detail)


def _from_host(time: float, kind: MessageType, detail: str = "") -> Message:
    return Message(time, False, kind.name, detail)
