"""Lines of a kernel's log that tell of damage, and those that look alike and do not matter.

`<4>[    1.234567] WARNING: ...` is what `dmesg -r` prints: facility and level in the brackets, seconds since boot.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

SIGNS: Final = (
    ("panic", r"Kernel panic - not syncing"),
    ("KFENCE", r"BUG: KFENCE: "),
    ("KASAN", r"BUG: K[AC]SAN: "),
    ("UBSAN", r"UBSAN: "),
    ("list corruption", r"list_(add|del)[a-z_]* corruption|list_add double add|corrupted list"),
    ("bad page", r"BUG: Bad (page|rss-counter)|Bad page (state|map|cache)|nonzero _?(refcount|mapcount)"),
    ("slab corruption", r"Poison overwritten|Redzone overwritten|Object already free|Freelist corrupt"
     r"|Freechain corrupt|Wrong object count|double[- ]free|Right Redzone|Left Redzone"),
    ("reference count", r"refcount_t: |ODEBUG: |kobject: .*tried to"),
    ("stack overflow", r"stack guard page was hit|kernel stack overflow|corrupted stack end|stack-protector: "),
    ("soft lockup", r"BUG: soft lockup"),
    ("hard lockup", r"hard LOCKUP"),
    ("RCU stall", r"rcu.* (self-)?detected (expedited )?stall|rcu.*kthread (starved|timer wakeup)"),
    ("hung task", r"blocked for more than [0-9]+ seconds|blocked in I/O wait for more than"),
    ("workqueue lockup", r"BUG: workqueue lockup|WQ_MEM_RECLAIM .* is flushing"),
    ("lockdep", r"possible (circular|recursive|irq lock|unsafe|deadlock)|inconsistent lock state"
     r"|[sS]uspicious RCU usage|bad unlock balance|held lock freed|lock held when returning|irq lock inversion"
     r"|[Ii]nvalid wait context|DEADLOCK"),
    ("atomic sleep", r"sleeping function called from invalid context|scheduling while atomic"
     r"|do not call blocking ops when"),
    ("oops", r"Oops: |general protection fault|[uU]nable to handle (kernel|page)|NULL pointer dereference"
     r"|invalid opcode: |divide error: |stack segment: |double fault: |int3: [0-9]|unchecked MSR access"),
    ("kernel BUG", r"kernel BUG at |BUG: "),
    ("warning", r"WARNING: "),
    ("allocation failure", r"page allocation failure|allocation stalls"),
    ("out of memory", r"invoked oom-killer|Out of memory: Kill|deadlocked on memory"),
    ("interrupt", r"nobody cared|[Nn]o irq handler for vector|spurious interrupt|unexpected IRQ trap"),
    ("call trace", r"Call Trace:"),
)  # fmt: skip
"""What a report begins with, the more special first. The last is for reports of kinds that are not named."""

PATTERN: Final = "|".join(pattern for _, pattern in SIGNS)
"""The same for grep -E, which knows what is used here of Python's syntax."""

WORST_LEVEL: Final = 2
"""Lines of this level (critical) and lower count, whatever they say."""

KNOWN_WARNINGS: Final = (
    "PCI: Fatal: No config space access function found",  # `pci=off`: there is no PCI bus
    "PCI: System does not support PCI",
    "amd_pstate: the _CPC object is not present",  # the emulated host has an AMD CPU, and no ACPI table of its clocks
    "hrtimer: interrupt took ",  # an emulated host that is busy
    # Of `make defconfig`: a file of the wireless stack, and a helper that Linux 7.3 will lose.
    "platform regulatory.0: Direct firmware load for regulatory.db failed",
    "faux_driver regulatory: Direct firmware load for regulatory.db failed",
    "platform regulatory.0: firmware: failed to load regulatory.db",
    "firmware_class: See https:",  # where Debian tells of missing firmware
    "nf_conntrack_irc: The irc conntrack helper is scheduled for removal.",
    "Please contact the netfilter-devel mailing list if you still need this.",
    "Hyper-V: stimer setup failed with error -22",  # Linux 7.3, without --enlightenments stimer-direct
)
"""Beginnings of messages of level 4 (warning) and lower that are about the machine, not about damage."""

_SIGNS: Final = [(name, re.compile(pattern)) for name, pattern in SIGNS]
_LINE: Final = re.compile(r"<(\d+)>(?:\[ *(\d+\.\d+)\](?:\[ *[TC]\d+\])? ?)?(.*)")
_END: Final = re.compile(r"---\[ end trace|---\[ end Kernel panic")
_CUT: Final = "[ cut here ]"
_LINES_LIMIT: Final = 80
"""Lines of a report that are kept."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the log. `time` is in seconds since boot; 0 where the kernel prints none."""

    level: int
    time: float
    text: str

    @property
    def sign(self) -> str:
        """Which of SIGNS it shows; empty if it is an ordinary line."""
        if self.text.startswith(KNOWN_WARNINGS):
            return ""
        found = next((name for name, pattern in _SIGNS if pattern.search(self.text)), "")
        return found or ("critical" if self.level <= WORST_LEVEL else "")

    def __str__(self) -> str:
        return f"[{self.time:12.6f}] {self.text}"


@dataclass(frozen=True, slots=True)
class Report:
    """Neighbouring lines that tell of one event."""

    kind: str
    headline: Line
    lines: tuple[Line, ...]


def parse(text: str) -> Iterator[Line]:
    """Yield the lines of `dmesg -r`; what is none of its lines (grep's separators) is left out."""
    for line in text.splitlines():
        if found := _LINE.fullmatch(line):
            yield Line(int(found[1]) & 7, float(found[2] or 0), found[3])


def reports(lines: Iterable[Line], gap: float = 0.5) -> list[Report]:
    """Group what tells of damage into reports. A report ends at its end mark, where another begins behind its call
    trace, and at a pause of `gap` seconds.
    """
    found: list[Report] = []
    current: list[Line] = []

    def close() -> None:
        signs = [(order, line) for line in current if (order := _order(line.sign)) is not None]
        if signs:
            order, headline = min(signs, key=lambda each: each[0])
            found.append(Report(headline.sign, headline, tuple(current[:_LINES_LIMIT])))
        current.clear()

    for line in lines:
        cut = _CUT in line.text and any("Call Trace:" in each.text for each in current)
        if current and (cut or line.time > current[-1].time + gap):
            close()
        if current or line.sign or _CUT in line.text:
            current.append(line)
        if _END.search(line.text):
            close()
    close()
    return found


def _order(sign: str) -> int | None:
    names = [name for name, _ in SIGNS] + ["critical"]
    return names.index(sign) if sign else None
