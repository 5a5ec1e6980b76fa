"""The device oracle: the guest's list of VMBus devices is another than the host's offers.

A device's name in the guest is its instance GUID, and its channels are named by their relids: a stale device, a
missing one, one with another's relid each show.
"""

from __future__ import annotations

import time
from typing import ClassVar, Final

from pyvmm.testbed.oracles.asking import Answer, ask_for, can_answer
from pyvmm.testbed.oracles.oracle import Finding, Oracle
from pyvmm.vmbus.states import Hidden, Rescinded, Serving

PATIENCE: Final = 5.0
"""Seconds in which the guest must have handled offers and rescinds."""

ROOT: Final = "/sys/bus/vmbus/devices/"

Devices = dict[str, frozenset[int]]
"""Relids of its channels, by a device's instance GUID."""


class DeviceList(Oracle):
    """Finds devices that only one side knows, or whose channels differ."""

    name: ClassVar[str] = "devices"
    FILES: ClassVar[tuple[str, ...]] = (f"{ROOT}*/device_id", f"{ROOT}*/id", f"{ROOT}*/channels/*/subchannel_id")
    PATTERN: ClassVar[str] = r"^\{|^[0-9]+$"

    def judge(self, answer: Answer | None) -> list[Finding]:
        if answer is None:
            return []
        wrong = self._differences(answer)
        limit = time.monotonic() + PATIENCE
        while wrong and can_answer(self.vm) and time.monotonic() < limit:
            self.vm.loop.step(0.5)
            again = ask_for(self.vm, [self], PATIENCE)
            if again is None:
                return []
            wrong = self._differences(again)
        return [self.finding(line) for line in wrong]

    def _differences(self, answer: Answer) -> list[str]:
        there, offered = parse_devices(answer), self._offered()
        found = [f"the guest lacks {self._title(guid)}" for guid in offered.keys() - there.keys()]
        found += [
            f"the guest has {self._title(guid)}, which is not offered" for guid in there.keys() - offered.keys()
        ]
        for guid in offered.keys() & there.keys():
            if offered[guid] != there[guid]:
                mine, its = sorted(offered[guid]), sorted(there[guid])
                found.append(f"channels of {self._title(guid)}: {its} in the guest, {mine} offered")
        return sorted(found)

    def _offered(self) -> Devices:
        server = self.vm.machine.services.bus.server
        found: dict[str, set[int]] = {}
        if isinstance(server.state, Serving):
            for served in server.offered.values():
                if served.relid and not isinstance(served.state, Hidden | Rescinded):
                    found.setdefault(str(served.offer.instance), set()).add(served.relid)
        return {guid: frozenset(relids) for guid, relids in found.items()}

    def _title(self, guid: str) -> str:
        bus = self.vm.machine.services.bus
        name = next((each.offer.name for each in bus.devices() if str(each.offer.instance) == guid), "")
        return f"{name} {guid}".strip()


def parse_devices(answer: Answer) -> Devices:
    """Return the guest's devices, by what their files say. A device without an id of its own is left out."""
    relids = answer.under(ROOT, "/id")
    found = {name: {int(relid)} for name, relid in relids.items() if relid.isdecimal()}
    for path in answer.under(ROOT, "/subchannel_id"):
        name, _, relid = path.partition("/channels/")
        if name in found and relid.isdecimal():
            found[name].add(int(relid))
    guids = answer.under(ROOT, "/device_id")
    return {guids[name].strip("{}"): frozenset(found[name]) for name in guids.keys() & found.keys()}
