"""The two buffers that the guest lends the card by GPADLs, and their division.

    send buffer     1 MiB; the guest chooses a section of SECTION_SIZE bytes and copies small frames there
    receive buffer  16 MiB; the host chooses a slot, fills it with a batch of messages, and names it in a packet; the
                    slot is free again when the guest completes that packet

Linux copies each message from the receive buffer and checks it against the size of a section that the host named, so
a section has room for one message of the largest frame; a slot has as many as a batch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

from pyvmm.errors import GuestProtocolError
from pyvmm.memory import GuestMemory
from pyvmm.vmbus.gpadl import Gpadl
from pyvmm.wire import Buffer

SEND_SECTION_SIZE = 6144
SLOT_SIZE = 128 << 10
"""Bytes of a slot, or a section's if that is more: 128 batches may be with the guest."""
CONTROL_SLOTS = 2
"""Slots kept for answers to control messages: the guest waits for them, whatever else arrives."""


class LentBuffer:
    """A GPADL's bytes. The device drops it when the guest revokes the buffer, and at the latest when it closes.

    Raises GuestProtocolError if the GPADL is not one range, GuestMemoryError if it is no longer RAM.
    """

    def __init__(self, gpadl: Gpadl, memory: GuestMemory) -> None:
        if len(gpadl.ranges) != 1:
            raise GuestProtocolError(f"a buffer of {len(gpadl.ranges)} ranges")
        self.gpadl = gpadl
        self.size = gpadl.ranges[0].length
        self._views = gpadl.views(memory)
        self._starts: list[int] = []
        start = 0
        for view in self._views:
            self._starts.append(start)
            start += len(view)

    def cut(self, offset: int, length: int) -> list[memoryview]:
        """Return live views of a part. Raises GuestProtocolError if it is not inside."""
        if offset + length > self.size:
            raise GuestProtocolError(f"{length} bytes at {offset} of a buffer of {self.size}")
        piece = bisect_right(self._starts, offset) - 1
        skip = offset - self._starts[piece]
        view = self._views[piece][skip : skip + length]
        if len(view) == length:
            return [view]
        found, missing = [view], length - len(view)
        while missing:
            piece += 1
            found.append(self._views[piece][:missing])
            missing -= len(found[-1])
        return found

    def write(self, offset: int, data: Buffer) -> None:
        """Store `data` at `offset`."""
        done, data = 0, memoryview(data)
        for view in self.cut(offset, len(data)):
            view[:] = data[done : done + len(view)]
            done += len(view)


class SendBuffer(LentBuffer):
    """The buffer with the guest's frames."""

    def section(self, number: int, size: int) -> list[memoryview]:
        """Return the first `size` bytes of a section. Raises GuestProtocolError if there is no such part."""
        if size > SEND_SECTION_SIZE or not size:
            raise GuestProtocolError(f"{size} bytes in a section of {SEND_SECTION_SIZE}")
        return self.cut(number * SEND_SECTION_SIZE, size)


class ReceiveBuffer(LentBuffer):
    """The buffer for frames and answers to the guest. `section_size` bytes have room for one message.

    Raises GuestProtocolError if the buffer is too small for that.
    """

    def __init__(self, gpadl: Gpadl, memory: GuestMemory, section_size: int) -> None:
        super().__init__(gpadl, memory)
        self.section_size = section_size
        self.sections = self.size // section_size
        if self.sections <= CONTROL_SLOTS:
            raise GuestProtocolError(f"a receive buffer of {self.size} bytes, {section_size} are one section")
        self.slot_size = max(section_size, min(SLOT_SIZE, self.size // (4 * CONTROL_SLOTS)))
        self.slots = self.size // self.slot_size
        self._free = deque(range(self.slots))
        self._taken: set[int] = set()

    def take(self, *, control: bool = False) -> int | None:
        """Take a slot for a batch; None if all are with the guest."""
        if len(self._free) <= (0 if control else CONTROL_SLOTS):
            return None
        slot = self._free.popleft()
        self._taken.add(slot)
        return slot

    def give_back(self, slot: int) -> None:
        """Free a slot that the guest has completed. Raises GuestProtocolError if it did not have it."""
        if slot not in self._taken:
            raise GuestProtocolError(f"completes batch {slot}, which it does not have")
        self._taken.remove(slot)
        self._free.append(slot)

    @property
    def out(self) -> int:
        """Return the number of slots with the guest."""
        return len(self._taken)
