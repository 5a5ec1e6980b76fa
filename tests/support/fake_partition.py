"""The hypervisor as VMBus sees it (pyvmm.hyperv.partition.Partition), without KVM."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pyvmm.hyperv.partition import MessageListener
from pyvmm.tap import Taps


@dataclass
class Message:
    """A message that waits for its slot or lies in it."""

    type: int
    payload: bytes
    done: Callable[[int], None]


class FakePartition:
    """Message slots and event flags of `vp_count` VPs.

    `on_message(vp, payload)` and `on_event(vp, flag)` are the guest's interrupt handlers. While `slots_busy` the
    guest does not take messages out of its slots: one lies there, the rest is queued.
    """

    def __init__(self, vp_count: int = 1) -> None:
        self.vp_count = vp_count
        self.taps = Taps()
        self.on_message: Callable[[int, bytes], None] = lambda vp, payload: None
        self.on_event: Callable[[int, int], None] = lambda vp, flag: None
        self.slots_busy = False
        self.synic_off: set[int] = set()  # VPs whose SynIC the guest has not set up
        self.flags: set[tuple[int, int]] = set()  # (vp, flag) set and not seen by the guest yet
        self.queues: dict[tuple[int, int], deque[Message]] = {}  # by (vp, sint); the first lies in the slot
        self.dropped = 0
        self.types: list[int] = []  # of the messages that the guest took
        self.interrupts: list[tuple[int, int]] = []  # (vp, sint) raised without a message or event
        self._signals: dict[int, Callable[[], None]] = {}
        self._listener: MessageListener = lambda connection_id, message_type, payload: 0x12

    # What VMBus calls

    def post_message(self, vp: int, sint: int, type: int, payload: bytes, done: Callable[[int], None]) -> None:
        assert len(payload) <= 240
        queue = self.queues.setdefault((vp, sint), deque())
        queue.append(Message(type, payload, done))
        if len(queue) == 1:
            self._into_slot(vp, sint)
        else:
            done(-errno.EAGAIN)

    def drop_messages(self, sint: int) -> None:
        for (_, queue_sint), queue in self.queues.items():
            while queue_sint == sint and len(queue) > 1:  # what lies in the slot stays
                queue.pop()
                self.dropped += 1

    def signal_event(self, vp: int, sint: int, flag: int) -> bool:
        if vp in self.synic_off:
            return False
        if (vp, flag) not in self.flags:
            self.flags.add((vp, flag))
            self.on_event(vp, flag)
        return True

    def interrupt(self, vp: int, sint: int) -> None:
        self.interrupts.append((vp, sint))

    def listen(self, listener: MessageListener) -> None:
        self._listener = listener

    def connect_signal(self, connection_id: int, callback: Callable[[], None]) -> None:
        assert connection_id not in self._signals, f"connection {connection_id} connected twice"
        self._signals[connection_id] = callback

    def disconnect_signal(self, connection_id: int) -> None:
        self._signals.pop(connection_id, None)

    # What the guest does

    def hypercall_post(self, connection_id: int, payload: bytes, message_type: int = 1) -> int:
        """HvPostMessage; its status."""
        return self._listener(connection_id, message_type, payload)

    def hypercall_signal(self, connection_id: int) -> int:
        """HvSignalEvent; its status."""
        callback = self._signals.get(connection_id)
        if callback is None:
            return 0x12
        callback()
        return 0

    def clear_flag(self, vp: int, flag: int) -> bool:
        """The guest's test-and-clear of an event flag."""
        seen = (vp, flag) in self.flags
        self.flags.discard((vp, flag))
        return seen

    def free_slots(self) -> None:
        """The guest takes messages again: the one in each slot, then all that were queued."""
        self.slots_busy = False
        for (vp, sint), queue in list(self.queues.items()):
            if queue:
                self._take(vp, sint)

    def _into_slot(self, vp: int, sint: int) -> None:
        self.queues[vp, sint][0].done(0)
        if not self.slots_busy:
            self._take(vp, sint)

    def _take(self, vp: int, sint: int) -> None:
        queue = self.queues[vp, sint]
        message = queue.popleft()
        self.types.append(message.type)
        self.on_message(vp, message.payload)
        if queue:
            self._into_slot(vp, sint)
