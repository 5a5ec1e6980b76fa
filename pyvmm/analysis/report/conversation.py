"""Events as messages between guest and host: the VMBus handshake, the balloon's negotiation and each resize.

Source: Linux include/linux/hyperv.h and drivers/hv/hv_balloon.c, for the names of messages.

One message leaves several events; the one that says its type becomes the arrow, the others add what it said:

    vmbus_recv_message type 5  -->  vmbus_process_incoming_message type 5, vmbus_open_channel chan_id 1
                                     guest ---- OPEN  #1 hv-balloon ----> host
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from pyvmm.analysis.entry import Entry
from pyvmm.analysis.read import Trace
from pyvmm.devices.balloon.protocol import MessageType as BalloonMessage
from pyvmm.vmbus.protocol import MessageType

PAGES_PER_MIB = 256


@dataclass(slots=True)
class Message:
    """An arrow. `begin` is when it was sent where the trace tells both ends, else the same as `time`."""

    time: float
    to_host: bool
    label: str
    detail: str = ""
    begin: float | None = None
    bad: bool = False


@dataclass(slots=True)
class Note:
    """Something one side does by itself."""

    time: float
    text: str


@dataclass(slots=True)
class Sequence:
    """A conversation. `result` is how it ended, empty if the trace does not say."""

    title: str
    steps: list[Message | Note] = field(default_factory=list)
    result: str = ""
    end: float | None = None

    @property
    def begin(self) -> float:
        return self.steps[0].time if self.steps else 0.0

    @property
    def messages(self) -> list[Message]:
        return [step for step in self.steps if isinstance(step, Message)]


def _name(number: int) -> str:
    try:
        return MessageType(number).name
    except ValueError:
        return f"type {number}"


def _mib(pages: int) -> str:
    return f"{pages / PAGES_PER_MIB:g} MiB"


def counted(number: int, what: str) -> str:
    """`1 message`, `2 messages`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


class _Vmbus:
    """Collects the control messages; a contact begins a new sequence."""

    def __init__(self, trace: Trace) -> None:
        self._start = trace.start
        self._names: dict[int, str] = {}
        self._received: dict[int, deque[float]] = {}
        self._saying = ""  # what the next message to the guest says
        self._status = 0
        self.sequences: list[Sequence] = []
        for entry in trace.entries:
            self._take(entry)

    def _channel(self, entry: Entry) -> str:
        number = entry.number("chan_id")
        return f"#{number} {self._names.get(number, '')}".rstrip()

    def _add(self, step: Message | Note) -> None:
        if not self.sequences:
            self.sequences.append(Sequence("VMBus before a contact"))
        self.sequences[-1].steps.append(step)

    def _say(self, detail: str) -> None:
        """Add what the newest message from the guest said."""
        messages = self.sequences[-1].messages if self.sequences else []
        if messages and messages[-1].to_host:
            messages[-1].detail = detail

    def _take(self, entry: Entry) -> None:
        time = entry.time - self._start
        match entry.name:
            case "vmbus.channel_state":
                self._names[entry.number("chan_id")] = entry.text("name")
            case "vmbus_recv_message":
                self._received.setdefault(entry.number("type"), deque()).append(time)
            case "vmbus_process_incoming_message":
                kind = entry.number("message_type")
                waiting = self._received.get(kind)
                if kind == MessageType.INITIATE_CONTACT:
                    self.sequences.append(Sequence("VMBus handshake"))
                self._add(Message(time, True, _name(kind), begin=waiting.popleft() if waiting else None))
            case "vmbus_initiate_contact":
                version = f"version {entry.number('major')}.{entry.number('minor')}"
                self._say(f"{version}, messages to vp {entry.number('vcpu')}")
            case "vmbus_gpadl_header":
                self._say(f"gpadl #{entry.number('gpadl_id')}, {entry.number('num_gfns')} pages")
            case "vmbus_gpadl_body" | "vmbus_gpadl_teardown":
                self._say(f"gpadl #{entry.number('gpadl_id')}")
            case "vmbus_open_channel":
                self._say(f"{self._channel(entry)}, gpadl #{entry.number('gpadl_id')}")
            case "vmbus_close_channel" | "vmbus.relid_released":
                self._say(self._channel(entry))
            case "vmbus.modify_channel":
                self._say(f"{self._channel(entry)} to vp {entry.number('target_vp')}")
            case "vmbus.version_response":
                answer = "supported" if entry.number("supported") else "not supported"
                self._saying = f"{entry.number('major')}.{entry.number('minor')} {answer}"
                self._status = 0 if entry.number("supported") else 1
            case "vmbus_send_offer" | "vmbus.rescind":
                self._saying = self._channel(entry)
            case "vmbus_gpadl_created" | "vmbus_gpadl_torndown":
                self._saying = f"gpadl #{entry.number('gpadl_id')}"
            case "vmbus_channel_open":
                self._status = entry.number("status")
                self._saying = f"{self._channel(entry)}, status {self._status:#x}"
            case "vmbus_post_msg":
                label = _name(entry.number("type"))
                self._add(Message(time, False, label, self._saying, bad=self._status != 0))
                self._saying, self._status = "", 0
            case "vmbus.message_refused":
                self._add(Note(time, f"refused: {entry.text('reason')}"))
            case "vmbus.open_refused" | "vmbus.gpadl_refused":
                self._add(Note(time, f"refused: {entry.text('reason')}"))


def vmbus_sequences(trace: Trace) -> list[Sequence]:
    """One sequence for each contact, up to the next."""
    return _Vmbus(trace).sequences


class _Balloon:
    """Collects the balloon's messages: a negotiation for each open, a sequence for each resize."""

    def __init__(self, trace: Trace) -> None:
        self._current: Sequence | None = None
        self._resize: Sequence | None = None  # the one that has not finished
        self._channel = -1
        self._owed: deque[Message] = deque()  # answers that become packets in a moment
        self.sequences: list[Sequence] = []
        for entry in trace.entries:
            for step in self._steps(entry, entry.time - trace.start):
                self._add(step)
        self._settle()

    def _begin(self, title: str) -> None:
        self._current = Sequence(title)
        self.sequences.append(self._current)

    def _settle(self) -> None:
        """Answers whose packets the trace leaves out."""
        while self._owed:
            self._add(self._owed.popleft())

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
            case "vmbus.packet_sent" if self._owed and number("chan_id") == self._channel:
                answer = self._owed.popleft()
                answer.time = time
                yield answer
            case "hv_balloon_incoming_version":
                if self._current is None or self._current.title != "hv-balloon negotiation":
                    self._begin("hv-balloon negotiation")
                version = f"{number('major')}.{number('minor')}"
                yield _from_guest(time, BalloonMessage.VERSION_REQUEST, f"version {version}")
                self._owed.append(_from_host(time, BalloonMessage.VERSION_RESPONSE))
            case "hv_balloon_incoming_caps":
                yield _from_guest(time, BalloonMessage.CAPABILITIES, f"caps {number('caps'):#x}")
                self._owed.append(_from_host(time, BalloonMessage.CAPABILITIES_RESPONSE))
            case "balloon.info_sent":
                self._owed.append(_from_host(time, BalloonMessage.INFO, f"at most {_mib(number('pages'))}"))
            case "balloon.target_set":
                self._settle()
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
                yield _from_host(time, BalloonMessage.BALLOON_REQUEST, _mib(number("count")))
            case "hv_balloon_incoming_balloon":
                more = ", more to come" if number("more_pages") else ""
                ranges = counted(number("range_count"), "range")
                yield _from_guest(time, BalloonMessage.BALLOON_RESPONSE, ranges + more)
            case "hv_balloon_outgoing_unballoon":
                yield _from_host(time, BalloonMessage.UNBALLOON_REQUEST, _mib(number("count")))
            case "hv_balloon_incoming_unballoon":
                yield _from_guest(time, BalloonMessage.UNBALLOON_RESPONSE)
            case "hv_balloon_outgoing_hot_add":
                where = f"{_mib(number('count'))} @ {number('start'):#x}"
                yield _from_host(time, BalloonMessage.HOT_ADD_REQUEST, where)
            case "hv_balloon_incoming_hot_add":
                result = f"{_mib(number('count'))}, result {number('result')}"
                yield _from_guest(time, BalloonMessage.HOT_ADD_RESPONSE, result)
            case "balloon.status_report" if self._current is not None:
                figures = f"{_mib(number('available'))} available, {_mib(number('committed'))} committed"
                yield _from_guest(time, BalloonMessage.STATUS_REPORT, figures)
            case "balloon.timed_out":
                yield Note(time, f"no answer in {entry.text('in') or entry.text('state')}")
            case "balloon.pages_refused" | "balloon.discard_failed" | "balloon.late_answer":
                yield Note(time, f"{entry.name.partition('.')[2].replace('_', ' ')}: {entry.message()}")


def _from_guest(time: float, kind: BalloonMessage, detail: str = "") -> Message:
    return Message(time, True, kind.name, detail)


def _from_host(time: float, kind: BalloonMessage, detail: str = "") -> Message:
    return Message(time, False, kind.name, detail)


def balloon_sequences(trace: Trace) -> list[Sequence]:
    """The negotiation and the resizes, in order."""
    return _Balloon(trace).sequences
