"""The wake-up oracle: something waits for one side, and that side does not know.

    guest -> host   bytes in the ring, and the host reads only once the guest signals
    host -> guest   bytes in the ring that the guest does not read
    room            the host waits for room that is there, and the guest does not signal it
    message         the host waits for the end of the message in a SynIC's slot

Each is an ordinary moment of a channel; it is found if it lasts, with the same indices, while the guest runs.
"""

from __future__ import annotations

import time
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

Wait = tuple[str, str]
"""What waits, and what stays the same as long as it does."""


class Wakeups(Oracle):
    """Finds data, room and messages that nobody was told of."""

    name: ClassVar[str] = "wakeups"

    def judge(self, answer: Answer | None) -> list[Finding]:
        waits = self._waits()
        limit = time.monotonic() + PATIENCE
        while waits and can_answer(self.vm) and time.monotonic() < limit:
            self.vm.loop.step(PERIOD)
            waits = {key: details for key, details in self._waits().items() if key in waits}
        if not can_answer(self.vm):
            return []  # ended, paused: nobody reads
        return [self.finding(f"{what}, for {PATIENCE:g} s", details) for (what, _), details in waits.items()]

    def _waits(self) -> dict[Wait, str]:
        """Return what waits now, with details."""
        found: dict[Wait, str] = {}
        for served, channel in self.vm.machine.services.bus.open_channels():
            try:
                for what, same in self._channel_waits(channel):
                    found[f"{channel.name}: {what}", same] = self._details(served, channel)
            except GuestError as error:
                found[f"{channel.name}: {error}", ""] = ""
        for vp, synic in enumerate(self.vm.machine.engine.synic.vps):
            for sint, queue in list(synic.queues.items()):
                if queue:
                    same = f"{len(queue)} {id(queue[0])}"
                    found[f"{len(queue)} messages wait for the slot of SINT {sint} on VP {vp}", same] = ""
        return found

    @staticmethod
    def _channel_waits(channel: Channel) -> list[Wait]:
        found: list[Wait] = []
        to_host, to_guest = channel.reader.ring.words, channel.writer.ring.words
        if channel.awaits_signal and (size := channel.reader.available()):
            same = f"{to_host[READ_INDEX]}"
            found.append((f"{size} bytes for the host, which was not signalled", same))
        if size := channel.writer.used():
            found.append((f"{size} bytes that the guest does not read", f"{to_guest[READ_INDEX]}"))
        if (size := channel.awaits_room) and channel.writer.has_room(size):
            same = f"{to_guest[READ_INDEX]} {to_guest[WRITE_INDEX]}"
            found.append((f"the host was not signalled that {size} bytes have room", same))
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
