"""The interface between VMBus and the Hyper-V engine, the same for both engines.

All calls are made on the loop's thread, except the message listener (see `listen`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pyvmm.tap import Taps

MessageListener = Callable[[int, int, bytes], int]
"""(connection_id, message_type, payload) -> hypercall status."""


class Partition(Protocol):
    """Messages and event signals between VMBus and the guest of one virtual machine."""

    vp_count: int
    taps: Taps
    """The machine's taps."""

    def post_message(self, vp: int, sint: int, type: int, payload: bytes, done: Callable[[int], None]) -> None:
        """Queue a message (payload <= 240 bytes) for the slot of `sint` on `vp`.

        `done(status)` is called on the loop's thread: 0 when the message lies in the slot, -EAGAIN when the slot was
        busy and the message stays queued (then once more), another negative number when it was dropped.
        """

    def drop_messages(self, sint: int) -> None:
        """Drop the messages queued for `sint` on every VP. One that is in a slot stays until the guest frees it."""

    def signal_event(self, vp: int, sint: int, flag: int) -> bool:
        """Set an event flag; raise the interrupt if it was clear. False if the SynIC of `vp` is off (event lost)."""

    def listen(self, listener: MessageListener) -> None:
        """Set the receiver of HvPostMessage. It runs on vCPU threads: checks, posts to the loop, returns a status."""

    def connect_signal(self, connection_id: int, callback: Callable[[], None]) -> None:
        """Call `callback` on the loop's thread after HvSignalEvent on that connection (several may merge)."""

    def disconnect_signal(self, connection_id: int) -> None:
        """Undo `connect_signal`; harmless if there is none."""
