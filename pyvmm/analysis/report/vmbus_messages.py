"""The VMBus's trace events as messages between guest and host: each contact and its handshake.

Source: Linux include/linux/hyperv.h, for the names of messages. Devices declare their own (`pyvmm.trace.views`).

One message causes several events; the one with its type becomes the arrow, the others add its contents:

    vmbus_recv_message type 5  -->  vmbus_process_incoming_message type 5, vmbus_open_channel chan_id 1
                                     guest ---- OPEN  #1 hv-balloon ----> host
"""

from __future__ import annotations

from collections import deque

from pyvmm.analysis.entry import Entry
from pyvmm.analysis.read import Trace
from pyvmm.trace.sequences import Message, Note, Sequence
from pyvmm.vmbus.protocol import MessageType


def _name(number: int) -> str:
    try:
        return MessageType(number).name
    except ValueError:
        return f"type {number}"


class _VmbusMessages:
    """Collects control messages into sequences; a contact begins a new one."""

    def __init__(self, trace: Trace) -> None:
        self._start = trace.start
        self._names: dict[int, str] = {}
        self._received: dict[int, deque[float]] = {}
        self._detail = ""  # contents of the next message to the guest
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

    def _describe(self, detail: str) -> None:
        """Add contents to the newest message from the guest."""
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
                self._describe(f"{version}, messages to vp {entry.number('vcpu')}")
            case "vmbus_gpadl_header":
                self._describe(f"gpadl #{entry.number('gpadl_id')}, {entry.number('num_gfns')} pages")
            case "vmbus_gpadl_body" | "vmbus_gpadl_teardown":
                self._describe(f"gpadl #{entry.number('gpadl_id')}")
            case "vmbus_open_channel":
                self._describe(f"{self._channel(entry)}, gpadl #{entry.number('gpadl_id')}")
            case "vmbus_close_channel" | "vmbus.relid_released":
                self._describe(self._channel(entry))
            case "vmbus.modify_channel":
                self._describe(f"{self._channel(entry)} to vp {entry.number('target_vp')}")
            case "vmbus.version_response":
                answer = "supported" if entry.number("supported") else "not supported"
                self._detail = f"{entry.number('major')}.{entry.number('minor')} {answer}"
                self._status = 0 if entry.number("supported") else 1
            case "vmbus_send_offer" | "vmbus.rescind":
                self._detail = self._channel(entry)
            case "vmbus_gpadl_created" | "vmbus_gpadl_torndown":
                self._detail = f"gpadl #{entry.number('gpadl_id')}"
            case "vmbus_channel_open":
                self._status = entry.number("status")
                self._detail = f"{self._channel(entry)}, status {self._status:#x}"
            case "vmbus_post_msg":
                label = _name(entry.number("type"))
                self._add(Message(time, False, label, self._detail, bad=self._status != 0))
                self._detail, self._status = "", 0
            case "vmbus.message_refused":
                self._add(Note(time, f"refused: {entry.text('reason')}"))
            case "vmbus.open_refused" | "vmbus.gpadl_refused":
                self._add(Note(time, f"refused: {entry.text('reason')}"))


def vmbus_sequences(trace: Trace) -> list[Sequence]:
    """Return one sequence for each contact, up to the next."""
    return _VmbusMessages(trace).sequences
