"""The synthetic interrupt controller: message slots, event flags and sixteen SINTs for each virtual processor.

Source: TLFS section 11; Linux drivers/hv/hv.c and vmbus_drv.c for the other side.

    SIMP page   16 slots of 256 bytes, one a SINT: {type u32, size u8, flags u8, u16, sender u64, payload 240}
    SIEFP page  16 strings of 2048 flags, one a SINT

One message is in flight a slot; the guest frees the slot by setting type to 0 and, if it saw the pending flag, writes
EOM. The loop's thread drives the queues; vCPU threads change registers and `offer` messages, under `lock`, so that no
page is written after the guest took it back.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from pyvmm.contain import contained
from pyvmm.errors import GuestMemoryError, HostError
from pyvmm.hyperv import events as trace
from pyvmm.hyperv.tlfs import (
    EVENT_FLAGS,
    EVENT_FLAGS_SIZE,
    MAX_PAYLOAD,
    MESSAGE_PENDING,
    MESSAGE_SIZE,
    SINT_COUNT,
    SINT_RESET,
    MessageHeader,
    PageMsr,
    SintValue,
)
from pyvmm.memory import PAGE_SIZE, GuestMemory, memory_barrier
from pyvmm.tap import Item, Tap

NO_PAGE = PageMsr(0)

MAX_QUEUED = 4096
"""Messages queued for one SINT. VMBus bounds what a guest can cause well below this: reaching it is a bug of ours."""


@dataclass(slots=True)
class _Message:
    type: int
    payload: bytes
    done: Callable[[int], None]


@dataclass(slots=True)
class VpSynic:
    """The SynIC registers of one VP, as last written by the guest (user engine) or seen by KVM (kernel engine)."""

    control: int = 1
    simp: PageMsr = NO_PAGE
    siefp: PageMsr = NO_PAGE
    sints: list[SintValue] = field(default_factory=lambda: [SintValue(SINT_RESET)] * SINT_COUNT)
    queues: dict[int, deque[_Message]] = field(default_factory=dict)


def _nothing(status: int) -> None:
    """Do nothing when a message has been delivered."""


class Synic:
    """The SynICs of all VPs. `interrupt(vp, sint)`, of the engine, raises the SINT's vector.

    `masks_known`: whether `sints` holds the values that the guest wrote; the kernel engine never learns them.
    """

    def __init__(
        self,
        vp_count: int,
        memory: GuestMemory,
        interrupt: Callable[[int, int], None],
        *,
        masks_known: bool,
        tap: Tap | None = None,
    ) -> None:
        self.memory = memory
        self.lock = threading.RLock()
        self.vps = [VpSynic() for _ in range(vp_count)]
        self.exclusive: Callable[[], AbstractContextManager[object]] = nullcontext
        """Makes a context in which nothing but us writes message slots; entered for each delivery."""
        self.blocked: Callable[[int], object] = _nothing
        """Called with a VP's number when a message finds its slot busy: the guest's EOM is awaited from then on."""
        self._raise = interrupt
        self._tap = Tap("interrupt") if tap is None else tap
        self._masks_known = masks_known

    def _interrupt(self, vp: int, sint: int) -> None:
        if self._tap.on:
            self._tap.cross("out", b"", {"vp": vp, "sint": sint}, self._tapped)
        else:
            self._raise(vp, sint)

    def _tapped(self, item: Item) -> None:
        vp, sint = int(item.fields["vp"]), int(item.fields["sint"])
        if not (0 <= vp < len(self.vps) and 0 <= sint < SINT_COUNT):
            raise HostError(f"no SINT {sint} of VP {vp}")
        self._raise(vp, sint)

    def reset(self) -> None:
        """Return to the power-on state; queued messages are dropped."""
        with self.lock:
            self.vps = [VpSynic() for _ in self.vps]

    def set_page(self, vp: int, page: str, value: int) -> None:
        """Store `simp` or `siefp`. A page that becomes enabled is zeroed: a stale type would block its slot for ever.

        Raises GuestMemoryError if the page is not RAM; then nothing changed.
        """
        new = PageMsr(value)
        with self.lock:
            state = self.vps[vp]
            old = state.simp if page == "simp" else state.siefp
            if new.enable and (not old.enable or new.gfn != old.gfn):
                self.memory.write(new.gpa, bytes(PAGE_SIZE))
            if page == "simp":
                state.simp = new
            else:
                state.siefp = new
        if trace.synic_page.on:
            trace.synic_page(vp, page, value)

    def post(self, vp: int, sint: int, type: int, payload: bytes, done: Callable[[int], None]) -> None:
        """Queue a message, and deliver it if the slot is free. See Partition.post_message."""
        assert len(payload) <= MAX_PAYLOAD, f"message of {len(payload)} bytes"
        if vp >= len(self.vps):
            done(-errno.EINVAL)
            return
        queue = self.vps[vp].queues.setdefault(sint, deque())
        if len(queue) >= MAX_QUEUED:
            if trace.message_dropped.on:
                trace.message_dropped(vp, sint, "queue full")
            done(-errno.ENOBUFS)
            return
        queue.append(_Message(type, payload, done))
        self.deliver(vp, sint)

    def drop(self, sint: int) -> None:
        """Drop the messages queued for `sint`."""
        for vp in self.vps:
            vp.queues.pop(sint, None)

    def awaits_eom(self, vp: int) -> bool:
        """Whether messages are queued for a VP."""
        return any(self.vps[vp].queues.values())

    @contained("SynIC")
    def retry(self, vp: int) -> None:
        """Deliver queued messages. Called when the guest wrote EOM on `vp`, or changed its SynIC."""
        for sint, queue in list(self.vps[vp].queues.items()):
            if queue:
                self.deliver(vp, sint)

    def deliver(self, vp: int, sint: int) -> None:
        """Move the first queued message into the slot, if it is free."""
        queue = self.vps[vp].queues.get(sint)
        while queue:
            message = queue[0]
            with self.exclusive(), self.lock:
                try:
                    placed = self._place(vp, sint, message)
                except GuestMemoryError:
                    placed = False  # the page went away with its memory; a new one may come
            if not placed:
                self.blocked(vp)
                if trace.message_busy.on:
                    trace.message_busy(vp, sint, len(queue))
                message.done(-errno.EAGAIN)
                return
            queue.popleft()
            if trace.message_delivered.on:
                trace.message_delivered(vp, sint, message.type, len(message.payload))
            self._interrupt(vp, sint)
            message.done(0)

    def offer(self, vp: int, sint: int, type: int, payload: bytes, *, wait: bool) -> bool:
        """Deliver a message at once, without a queue; return whether it lies in the slot. Callable from any thread.

        With `wait` a guest whose slot is busy is asked to write EOM when it has freed it. Queued messages go first.
        """
        with self.lock:
            try:
                placed = not self.vps[vp].queues.get(sint) and self._place(
                    vp, sint, _Message(type, payload, _nothing), wait=wait
                )
            except GuestMemoryError:
                placed = False
        if trace.message_delivered.on and placed:
            trace.message_delivered(vp, sint, type, len(payload))
        if placed:
            self._interrupt(vp, sint)
        return placed

    def _place(self, vp: int, sint: int, message: _Message, *, wait: bool = True) -> bool:
        state = self.vps[vp]
        if not (state.control & 1 and state.simp.enable):
            return False
        if self._masks_known and state.sints[sint].masked:
            return False
        slot = state.simp.gpa + sint * MESSAGE_SIZE
        page = self.memory.view(slot, MESSAGE_SIZE)
        types = page.cast("I")
        if types[0] and not wait:
            return False
        if types[0]:
            page[5] = page[5] | MESSAGE_PENDING
            # Partner: Linux vmbus_signal_eom() frees the slot (cmpxchg), then reads the flag. If it was free before
            # it could see our flag, there will be no EOM.
            memory_barrier()
            if types[0]:
                return False
        header = MessageHeader(0, len(message.payload), 0, 0, 0).build()
        page[4:16] = header[4:]
        page[16 : 16 + len(message.payload)] = message.payload
        self.memory.compare_exchange(slot, 0, message.type)  # last, in one store: now the guest may look
        return True

    def signal(self, vp: int, sint: int, flag: int) -> bool:
        """Set event flag `flag` (0..2047). See Partition.signal_event."""
        assert 0 <= flag < EVENT_FLAGS
        with self.lock:
            state = self.vps[vp] if vp < len(self.vps) else None
            try:
                if state is None or not (state.control & 1 and state.siefp.enable):
                    raise GuestMemoryError("no event page")
                was_clear = self.memory.set_bit(state.siefp.gpa + sint * EVENT_FLAGS_SIZE, flag)
            except GuestMemoryError:
                if trace.event_lost.on:
                    trace.event_lost(vp, sint, flag)
                return False
        if trace.event_flag.on:
            trace.event_flag(vp, sint, flag, int(not was_clear))
        if was_clear:
            self._interrupt(vp, sint)
        return True
