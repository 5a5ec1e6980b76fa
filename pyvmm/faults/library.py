"""The named faults: each breaks one rule of a protocol on purpose, and says which.

Sources: TLFS, Microsoft's Hypervisor Top Level Functional Specification; Linux include/linux/hyperv.h and drivers/hv/
for the rules of VMBus and of Dynamic Memory (hv_balloon), which have no other public description.

docs/faults.md has the same table, and a test compares both.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyvmm.faults import library_devices, library_host, library_vmbus

Row = tuple[str, str | tuple[str, ...], str, str]
"""Name, rules, what it breaks, and the protocol's rule that this is against."""


@dataclass(frozen=True, slots=True)
class NamedFault:
    """A fault of the library. `breaks`: what happens; `against`: which rule of the protocol that breaks."""

    name: str
    group: str
    rules: tuple[str, ...]
    breaks: str
    against: str


def _table(groups: dict[str, tuple[Row, ...]]) -> dict[str, NamedFault]:
    made: dict[str, NamedFault] = {}
    for group, rows in groups.items():
        for name, rules, breaks, against in rows:
            assert name not in made, f"fault {name} is declared twice"
            each = (rules,) if isinstance(rules, str) else rules
            made[name] = NamedFault(name, group, each, breaks, against)
    return made


LIBRARY = _table({**library_vmbus.GROUPS, **library_devices.GROUPS, **library_host.GROUPS})
"""The named faults by name, in the order in which they are shown."""
