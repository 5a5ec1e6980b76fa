"""The SynIC as the raw host uses it: message slots, event flags and interrupts, without the rules of VMBus.

A message slot holds one message, and the guest frees it by storing type 0 and, if the pending flag is set, writing
EOM. `post` keeps that rule; `overwrite` and `set_pending` do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvmm.hyperv.synic import Synic, VpSynic
from pyvmm.hyperv.tlfs import EVENT_FLAGS, MAX_PAYLOAD, MESSAGE_PENDING, MESSAGE_SIZE, SINT_COUNT, MessageHeader
from pyvmm.vmbus.protocol import SINT, SYNIC_MESSAGE_TYPE

if TYPE_CHECKING:
    from pyvmm.testbed.host.host import Host

TIMER_EXPIRED = 0x80000010
"""HVMSG_TIMER_EXPIRED: a synthetic timer without direct mode sends it."""
UNMAPPED_GPA = 0x80000000
GPA_INTERCEPT = 0x80000001
UNRECOVERABLE_EXCEPTION = 0x80000021


class RawSynic:
    """Message slots, event flags and interrupts of every VP. SINT 2 is VMBus's."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._partition = host.parts.partition

    def post(self, type: int, payload: bytes = bytes(24), *, vp: int = 0, sint: int = SINT) -> list[int]:
        """Post a message of any type; type 1 is VMBus's. Returns a list that gets its statuses, 0 once it lies in the
        slot (Partition.post_message). Raises ValueError for more than 240 bytes, or type 0, which is no message."""
        if not 0 < type < 1 << 32 or len(payload) > MAX_PAYLOAD:
            raise ValueError(
                f"message type {type:#x} of {len(payload)} bytes: 1 to 0xffffffff, at most {MAX_PAYLOAD}"
            )
        statuses: list[int] = []
        self._partition.post_message(self._vp(vp), _sint(sint), type, payload, statuses.append)
        return statuses

    def timer_message(self, *, vp: int = 0, sint: int = SINT, timer: int = 0) -> list[int]:
        """Post what an expired synthetic timer sends: index u32, reserved, expiration and delivery time."""
        return self.post(TIMER_EXPIRED, timer.to_bytes(4, "little") + bytes(20), vp=vp, sint=sint)

    def signal(self, flag: int, *, vp: int = 0, sint: int = SINT) -> bool:
        """Set an event flag, on SINT 2 a channel's relid, and interrupt if it was clear. False: SynIC off."""
        if not 0 <= flag < EVENT_FLAGS:
            raise ValueError(f"event flag {flag}: 0 to {EVENT_FLAGS - 1}")
        return self._partition.signal_event(self._vp(vp), _sint(sint), flag)

    def interrupt(self, *, vp: int = 0, sint: int = SINT) -> None:
        """Raise a SINT's vector with nothing to tell. The kernel engine has only SINT 2 open."""
        self._partition.interrupt(self._vp(vp), _sint(sint))

    def slot(self, *, vp: int = 0, sint: int = SINT) -> bytes:
        """Return the 256 bytes of a message slot."""
        return self._host.parts.memory.read(self._slot_gpa(vp, sint), MESSAGE_SIZE)

    def overwrite(
        self,
        type: int,
        payload: bytes = b"",
        *,
        vp: int = 0,
        sint: int = SINT,
        size: int | None = None,
        flags: int = 0,
        interrupt: bool = True,
    ) -> None:
        """Store a message in the slot whether or not it is free; `size` as given, even above 240."""
        header = MessageHeader(type, len(payload) if size is None else size, flags, 0, 0).build()
        gpa = self._slot_gpa(vp, sint)
        memory = self._host.parts.memory
        memory.write(gpa + 4, (header + payload)[4:MESSAGE_SIZE])
        memory.write(gpa, header[:4])  # the type last: now the guest may look
        if interrupt:
            self._partition.interrupt(vp, sint)

    def set_pending(self, *, vp: int = 0, sint: int = SINT) -> None:
        """Set the pending flag of a slot: the guest writes EOM at the next message, though none waits."""
        gpa = self._slot_gpa(vp, sint) + 5
        memory = self._host.parts.memory
        memory.write(gpa, bytes([memory.read(gpa, 1)[0] | MESSAGE_PENDING]))

    def vmbus_message(self, payload: bytes, *, vp: int = 0) -> list[int]:
        """Post a message of the bus (type 1) on any VP."""
        return self.post(SYNIC_MESSAGE_TYPE, payload, vp=vp)

    def _vp(self, vp: int) -> int:
        if not 0 <= vp < self._partition.vp_count:
            raise ValueError(f"VP {vp} of {self._partition.vp_count}")
        return vp

    def _slot_gpa(self, vp: int, sint: int) -> int:
        synic = getattr(self._partition, "synic", None)
        state: VpSynic | None = synic.vps[self._vp(vp)] if isinstance(synic, Synic) else None
        if state is None or not state.simp.enable:
            raise ValueError(f"VP {vp} has no message page")
        return state.simp.gpa + _sint(sint) * MESSAGE_SIZE


def _sint(sint: int) -> int:
    if not 0 <= sint < SINT_COUNT:
        raise ValueError(f"SINT {sint}: 0 to {SINT_COUNT - 1}")
    return sint
