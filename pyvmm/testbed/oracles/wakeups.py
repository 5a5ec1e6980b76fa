"""The wake-up oracle: something waits for one side, and that side does not know.

    guest -> host   bytes in the ring, and the host reads only once the guest signals
    host -> guest   bytes in the ring that the guest does not read
    room            the host waits for room that is there, and the guest does not signal it
    message         the host waits for the end of the message in a SynIC's slot

Each is an ordinary moment of a channel; it is found if it lasts, with the same indices, while the guest runs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import ClassVar, Final

from pyvmm.errors import GuestError
from pyvmm.hyperv.tlfs import EVENT_FLAGS_SIZE
from pyvmm.testbed.oracles.asking import Answer, can_answer
from pyvmm.testbed.oracles.oracle import Finding, Oracle
from pyvmm.vmbus import protocol
from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.ring import INTERRUPT_MASK, READ_INDEX, WRITE_INDEX
from pyvmm.vmbus.states import Open, ServedChannel

PATIENCE: Final = 4.0
"""Seconds for which something may wait: as long as a guest in a busy emulated host may take to be scheduled."""

PERIOD: Final = 0.1


@dataclass(frozen=True, slots=True)
class Wait:
    """What waits, and what stays the same as long as it does: a place, a kind and an index."""

    line: str = field(compare=False)
    same: tuple[object, ...] = ()
    details: str = field(default="", compare=False)


class Wakeups(Oracle):
    """Finds data, room and messages without a signal to the side that waits for them."""

    name: ClassVar[str] = "wakeups"

    def judge(self, answer: Answer | None) -> list[Finding]:
        waits = set(self._waits())
        limit = time.monotonic() + PATIENCE
        while waits and can_answer(self.vm) and time.monotonic() < limit:
            self.vm.loop.step(PERIOD)
            waits = {each for each in self._waits() if each in waits}
        if not can_answer(self.vm):
            return []  # ended, paused: neither side reads
        found = sorted(waits, key=lambda each: each.line)
        return [self.finding(f"{each.line}, for {PATIENCE:g} s", each.details) for each in found]

    def _waits(self) -> list[Wait]:
        """Return what waits now."""
        found: list[Wait] = []
        for served, channel in self.vm.machine.services.bus.open_channels():
            try:
                for line, *same in self._channel_waits(channel):
                    details = self._details(served, channel)
                    found.append(Wait(f"{channel.name}: {line}", (channel.relid, *same), details))
            except GuestError as error:
                found.append(Wait(f"{channel.name}: {error}", (channel.relid,)))
        for vp, synic in enumerate(self.vm.machine.engine.synic.vps):
            for sint, queue in list(synic.queues.items()):
                if queue:
                    line = f"{len(queue)} messages wait for the slot of SINT {sint} on VP {vp}"
                    found.append(Wait(line, (vp, sint, id(queue[0]))))
        return found

    @staticmethod
    def _channel_waits(channel: Channel) -> list[tuple[str, str, int]]:
        """Return a line, a kind and an index for each thing that waits in a channel."""
        found = []
        to_host, to_guest = channel.reader.ring.words, channel.writer.ring.words
        if channel.awaits_signal and (size := channel.reader.available()):
            line = f"{size} bytes for the host, which was not signalled"
            found.append((line, "to host", to_host[READ_INDEX]))
        if size := channel.writer.used():
            found.append((f"{size} bytes that the guest does not read", "to guest", to_guest[READ_INDEX]))
        if (size := channel.awaits_room) and channel.writer.has_room(size):
            line = f"the host was not signalled that {size} bytes have room"
            found.append((line, "room", to_guest[WRITE_INDEX]))
        return found

    def _details(self, served: ServedChannel, channel: Channel) -> str:
        """Return what tells where the signal was lost."""
        machine = self.vm.machine
        rows = [f"relid {channel.relid}: {channel.signals_in} signals in, {channel.signals_out} out"]
        for name, ring in (("to host", channel.reader.ring.words), ("to guest", channel.writer.ring.words)):
            read, write, mask = ring[READ_INDEX], ring[WRITE_INDEX], ring[INTERRUPT_MASK]
            rows.append(f"ring {name}: read index {read:#x}, write index {write:#x}, interrupt mask {mask}")
        if isinstance(served.state, Open):
            vp = served.state.target_vp
            page = machine.engine.synic.vps[vp].siefp
            if page.enable:
                at = page.gpa + protocol.SINT * EVENT_FLAGS_SIZE + channel.relid // 8
                flag = machine.memory.read(at, 1)[0] >> channel.relid % 8 & 1
                rows.append(f"event flag on VP {vp}: {flag}")
        for index, each in enumerate(machine.slot.vcpu_snapshots()):
            rows.append(f"vCPU {index}: {'idle' if each.is_idle else f'at {each.rip:#x}'}")
        return "\n".join(rows)
