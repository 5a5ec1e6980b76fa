"""The accounting oracle: where each page is, to the page, by the guest, its driver and the host's books.

    MemTotal  = a constant of this boot + hot-added - ballooned - blocks that are offline
    driver    its counters in debugfs (since 6.1): added and ballooned pages, as the host's ledger has them
    KVM       memory slots map boot RAM and what was granted of the hot-add window, less what poison withholds

Since Linux 5.11 ("hv_balloon: do adjust_managed_page_count() when ballooning/un-ballooning") a ballooned page lowers
MemTotal; before, it does not. While pages move, or a grant was never answered, nothing is compared.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final

from pyvmm import address_map
from pyvmm.devices.balloon.ranges import PageRange, PageRanges
from pyvmm.devices.balloon.states import Idle
from pyvmm.memory import PAGE_SIZE
from pyvmm.testbed.oracles.asking import Answer, ask_for, can_answer
from pyvmm.testbed.oracles.oracle import Bed, Finding, Oracle

if TYPE_CHECKING:
    from pyvmm.devices.balloon.ledger import Ledger
    from pyvmm.vmbus.channel import Channel

PATIENCE: Final = 6.0
"""Seconds in which a difference must vanish: hv_balloon waits five for memory to be onlined."""

_BLOCK_LIMIT, _BLOCKS_LIMIT = 1 << 20, 1 << 20  # pages of a memory block, and blocks
_SINCE: Final = (5, 11)
_MEMORY: Final = "/sys/devices/system/memory/"
_DRIVER: Final = "/sys/kernel/debug/hv-balloon"


@dataclass(slots=True)
class Figures:
    """What the guest says: pages, or None where it says nothing."""

    total: int | None = None
    added: int | None = None
    ballooned: int | None = None
    offline: PageRanges = field(default_factory=PageRanges)


def parse_figures(answer: Answer) -> Figures:
    """Return the figures in the guest's files; what is no number is left out."""
    total = re.match(r"MemTotal: *(\d+) kB", "\n".join(answer.files.get("/proc/meminfo", [])))
    pairs = [line.partition(":") for line in answer.files.get(_DRIVER, [])]
    driver = {name.strip(): value.strip() for name, _, value in pairs}
    block = "".join(answer.files.get(f"{_MEMORY}block_size_bytes", []))
    size = int(block, 16) // PAGE_SIZE if re.fullmatch("[0-9a-f]{1,12}", block) else 0
    offline = [
        (int(number) * size, size)
        for number, state in answer.under(f"{_MEMORY}memory", "/state").items()
        if state != "online" and number.isdecimal() and int(number) < _BLOCKS_LIMIT and size < _BLOCK_LIMIT
    ]
    return Figures(
        int(total[1]) * 1024 // PAGE_SIZE if total else None,
        _number(driver.get("pages_added")),
        _number(driver.get("pages_ballooned")),
        PageRanges(offline),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def lowers_total(release: str) -> bool:
    """Whether ballooned pages lower MemTotal in this kernel."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return found is None or (int(found[1]), int(found[2])) >= _SINCE


class Accounting(Oracle):
    """Finds pages that are lost, doubled or counted wrong since `begin`.

    `withheld()` is the number of pages that poison has taken out of KVM's slots.
    Without `begin` the first check takes what it sees for right, and only later ones find what has changed.
    """

    name: ClassVar[str] = "accounting"
    FILES: ClassVar[tuple[str, ...]] = (
        "/proc/meminfo",
        f"{_MEMORY}block_size_bytes",
        f"{_MEMORY}memory*/state",
        _DRIVER,
    )
    PATTERN: ClassVar[str] = "^MemTotal:|^[0-9a-f]+$|^(online|offline|going-offline)$|^pages_(added|ballooned)"

    def __init__(self, vm: Bed, withheld: Callable[[], int] = lambda: 0) -> None:
        super().__init__(vm)
        self._withheld = withheld
        self._base: int | None = None  # MemTotal in pages, with all boot RAM and nothing else
        self._base_resets = 0
        self._driver: tuple[Channel | None, int, int] = (None, 0, 0)  # of which channel; what it had counted before
        self._refused = 0

    def begin(self, answer: Answer | None) -> None:
        self._refused = self._refusals()
        if answer is not None and (ledger := self._settled()) is not None:
            self._start(parse_figures(answer), ledger)

    def _start(self, figures: Figures, ledger: Ledger) -> None:
        self._base, self._base_resets = self._boot_total(figures, ledger), self.vm.machine.resets
        self._start_driver(figures, ledger)

    def _start_driver(self, figures: Figures, ledger: Ledger) -> None:
        added, ballooned = (figures.added or 0) - ledger.added_pages, (figures.ballooned or 0) - ledger.removed_pages
        self._driver = self._channel(), added, ballooned

    def judge(self, answer: Answer | None) -> list[Finding]:
        refusals = self._refusals()
        new, self._refused = refusals - self._refused, refusals
        found = [self.finding(f"the guest released {new} pages that were not its own")] if new > 0 else []
        if not can_answer(self.vm) or answer is None:
            return found
        limit = time.monotonic() + PATIENCE
        while True:
            lines = self._compare(answer)
            if not lines or time.monotonic() > limit or not can_answer(self.vm):
                break
            until = time.monotonic() + 0.5
            while (left := until - time.monotonic()) > 0 and can_answer(self.vm):
                self.vm.loop.step(left)
            again = ask_for(self.vm, [self], PATIENCE)
            if again is None:
                return found
            answer = again
        return found + [self.finding(line, self._books(parse_figures(answer))) for line in lines]

    def _compare(self, answer: Answer) -> list[str]:
        """Return what does not add up now."""
        ledger = self._settled()
        if ledger is None:
            return []
        figures = parse_figures(answer)
        if self._base is None or self._base_resets != self.vm.machine.resets:
            self._start(figures, ledger)
        if self._driver[0] is not self._channel():
            self._start_driver(figures, ledger)  # bound anew: its counters may have begun again
        lines = []
        base = self._boot_total(figures, ledger)
        if base is not None and self._base is not None and base != self._base:
            lines.append(f"the guest's memory is off by {base - self._base:+} pages")
        for name, counted, books, before in (
            ("added", figures.added, ledger.added_pages, self._driver[1]),
            ("ballooned", figures.ballooned, ledger.removed_pages, self._driver[2]),
        ):
            if counted is not None and counted - before != books:
                lines.append(f"the driver counts {counted - before} {name} pages, the host {books}")
        return lines + self._compare_slots(ledger)

    def _compare_slots(self, ledger: Ledger) -> list[str]:
        machine = self.vm.machine
        window, hardware = machine.window, machine.slot.hardware
        lines = []
        granted = 0 if ledger.hot_range is None else ledger.hot_range.granted_pages
        if window is not None and window.mapped_pages != granted:
            lines.append(f"{window.mapped_pages} pages of the hot-add window are mapped, {granted} granted")
        if hardware is not None:
            others = range(address_map.READONLY_SLOTS.start, address_map.READONLY_SLOTS.end)
            mapped = sum(size for slot, size in hardware.vm.slots.items() if slot not in others) // PAGE_SIZE
            expected = machine.memory.size // PAGE_SIZE - self._withheld()
            if mapped != expected:
                lines.append(f"KVM maps {mapped} pages to the guest, which has {expected}")
        return lines

    def _boot_total(self, figures: Figures, ledger: Ledger) -> int | None:
        """Return the MemTotal that the guest would have with its boot RAM alone, in pages."""
        if figures.total is None:
            return None
        out = ledger.removed_pages if lowers_total(self.vm.machine.agent.release) else 0
        ram = ledger.boot.ram | ledger.added.ram
        return figures.total + out - ledger.added_pages + (figures.offline & ram).pages

    def _settled(self) -> Ledger | None:
        """Return the ledger if no page is on its way and none in doubt."""
        balloon = self.vm.machine.balloon
        if balloon is None or not balloon.ready or not isinstance(balloon.machine.state, Idle):
            return None
        ledger = balloon.machine.ledger
        return None if ledger.unconfirmed_pages or ledger.waiting_pages else ledger

    def _channel(self) -> Channel | None:
        machine = self.vm.machine
        return None if machine.balloon is None else machine.services.bus.channel(machine.balloon)

    def _refusals(self) -> int:
        balloon = self.vm.machine.balloon
        if balloon is None:
            return 0
        counters = balloon.machine.ledger.counters
        return counters.outside + counters.known + counters.repeated

    def _books(self, figures: Figures) -> str:
        ledger = self._settled()
        if ledger is None:
            return ""
        offline = ", ".join(f"{each.start:#x}+{each.pages:#x}" for each in map(PageRange._make, figures.offline))
        return (
            f"guest: MemTotal {figures.total} pages, offline frames {offline or 'none'}; driver:"
            f" {figures.added} added, {figures.ballooned} ballooned\nhost: {ledger.boot_pages} at boot,"
            f" {ledger.added_pages} added, {ledger.removed_pages} out; MemTotal of boot RAM alone {self._base}"
        )
