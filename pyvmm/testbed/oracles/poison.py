"""The poison oracle: a page that the guest has given to the host is touched all the same.

While it is on, ballooned pages are no memory of the guest (`machine.withheld_pages`): the vCPU that reads or writes
one leaves the guest at that instruction, and the machine is paused there.

    guest: BALLOON_RESPONSE --> ledger: out --> withheld, once the loop has turned
    host: UNBALLOON_REQUEST, honest or not --> the ranges in it are the guest's, before it gets the message

Pages that free page reporting has discarded are not withheld: the guest may use them again without a word. Nor are
more ranges than KVM has memory slots for. What the host touches itself is not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final

from pyvmm.devices.balloon.device import BalloonDevice
from pyvmm.devices.balloon.protocol import BalloonResponse, MessageType, UnballoonRequest
from pyvmm.devices.balloon.ranges import PageRanges, clipped
from pyvmm.errors import ConfigError, GuestError, HostError
from pyvmm.iomap import OnUnclaimed
from pyvmm.loop import Pending
from pyvmm.machine.withheld_pages import WithheldPages
from pyvmm.memory import PAGE_SIZE
from pyvmm.tap import Deliver, Item
from pyvmm.testbed.kernel.backtrace import Names
from pyvmm.testbed.oracles.asking import Answer
from pyvmm.testbed.oracles.oracle import Bed, Finding, Oracle

_OFFSET_AT, _UNIT = 2, 8  # of a packet's data, in its header
_REGISTERS: Final = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))


@dataclass(frozen=True, slots=True)
class Touch:
    """An access to a page that was the host's, as the vCPU left the guest."""

    vcpu: int
    access: str  # "read" or "write"
    gpa: int
    size: int
    value: int | None  # that was written
    rip: int
    registers: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        value = "" if self.value is None else f" of {self.value:#x}"
        return f"a {self.access}{value}, {self.size} bytes at gpa {self.gpa:#x}, which is the host's"


class Poison(Oracle):
    """Stops the guest where it touches a ballooned page. Off until `on`."""

    name: ClassVar[str] = "poison"

    def __init__(self, vm: Bed, names: Callable[[], Names]) -> None:
        super().__init__(vm)
        self.touches: list[Touch] = []
        """All touches so far, on whichever vCPU."""
        self._names = names
        self._told = 0  # of the touches
        self._withheld: WithheldPages | None = None
        self._returned = PageRanges()  # by messages of the host, whatever the ledger says
        self._before: OnUnclaimed | None = None
        self._pending = Pending(vm.loop, self.sync)

    # Switching

    @property
    def is_on(self) -> bool:
        """Whether ballooned pages are withheld from the guest."""
        return self._before is not None

    @property
    def pages(self) -> PageRanges:
        """The pages that are withheld now."""
        return PageRanges() if self._withheld is None else self._withheld.pages

    def on(self) -> None:
        """Withhold ballooned pages from now on. Raises ConfigError while a debugger is attached; HostError."""
        machine = self.vm.machine
        if self.is_on:
            return
        if machine.debugger is not None and machine.debugger.attached:
            raise ConfigError("poison and a debugger both change memory slots: detach the debugger")
        self._before = machine.board.mmio.on_unclaimed
        machine.board.mmio.on_unclaimed = self._accessed
        machine.taps.packet.attach(self._packet)
        if machine.balloon is not None:
            machine.balloon.on_change.append(self._changed)
        self.sync()

    def off(self) -> None:
        """Give the guest back what is withheld: a later touch reads zeros, or writes."""
        machine = self.vm.machine
        if self._before is None:
            return
        machine.board.mmio.on_unclaimed, self._before = self._before, None
        machine.taps.packet.detach(self._packet)
        if machine.balloon is not None and self._changed in machine.balloon.on_change:
            machine.balloon.on_change.remove(self._changed)
        withheld, self._withheld = self._withheld, None
        if withheld is not None and withheld.hardware is machine.slot.hardware:
            with machine.slot.stopped_vcpus():
                withheld.end()

    def resume(self) -> None:
        """Let a guest that was stopped at a touch go on, with poison off."""
        self.off()
        self.vm.machine.resume()

    # Keeping up

    def sync(self) -> None:
        """Withhold just the pages that are out now. Raises HostError."""
        if self.is_on:
            self._apply(self._out() - self._returned)

    def _out(self) -> PageRanges:
        balloon = self.vm.machine.balloon
        if not isinstance(balloon, BalloonDevice):
            return PageRanges()
        ledger = balloon.machine.ledger
        return ledger.removed_both | ledger.removed_guest

    def _ram(self) -> list[tuple[int, int]]:
        return [(each.gpa // PAGE_SIZE, each.size // PAGE_SIZE) for each in self.vm.machine.memory]

    def _apply(self, pages: PageRanges) -> None:
        slot = self.vm.machine.slot
        hardware = slot.hardware
        if hardware is None:
            self._withheld = None
            return
        if self._withheld is None or self._withheld.hardware is not hardware:  # a reset, or a fork
            self._withheld = WithheldPages(hardware, self.vm.machine.kvm)
        if pages != self._withheld.pages:
            with slot.stopped_vcpus():
                self._withheld.apply(pages)

    def _changed(self, actual: int) -> None:
        """Handle a change of the ledger: at once if pages are the guest's again, else once the loop has turned."""
        if self.pages - self._out():
            self.sync()
        else:
            self._pending.ask()

    def _packet(self, item: Item, deliver: Deliver) -> object:
        """Look at a packet of a balloon for pages that change hands."""
        kind, ranges = _ranges(item)
        named = PageRanges(clipped(ranges, self._ram())[0])
        if named:
            if kind == MessageType.UNBALLOON_REQUEST:
                self._returned.update(named)
                if not self.pages.isdisjoint(named):
                    self._apply(self.pages - named)
            else:
                self._returned.subtract(named)
        return deliver(item)

    # On vCPU threads

    def _accessed(self, kind: str, address: int, size: int, value: int | None) -> None:
        """Handle an access to an address that nothing claims."""
        if self._before is not None:
            self._before(kind, address, size, value)
        machine = self.vm.machine
        caller = machine.slot.caller()
        if caller is None or address // PAGE_SIZE not in self.pages:
            return
        index, rip = caller
        try:
            values = machine.slot.threads[index].vcpu.regs
            registers = tuple((name, int(getattr(values, name))) for name in _REGISTERS)
        except HostError:  # the thread gets the same error
            registers = ()
        self.touches.append(Touch(index, kind.rpartition(" ")[2], address, size, value, rip, registers))
        for thread in machine.slot.threads:
            thread.request(pause=True)
        machine.loop.post(machine.pause)

    # Judging

    def open_window(self) -> None:
        self.sync()

    def watch(self) -> None:
        hardware = self.vm.machine.slot.hardware
        if self._withheld is not None and self._withheld.hardware is not hardware:
            self.sync()

    def judge(self, answer: Answer | None) -> list[Finding]:
        new, self._told = self.touches[self._told :], len(self.touches)
        return [self.finding(f"{each}, by vCPU {each.vcpu}", self._describe(each)) for each in new]

    def _describe(self, touch: Touch) -> str:
        names = self._names()
        pairs = [f"{name:>3} {value:016x}" for name, value in touch.registers]
        rows = ["  ".join(pairs[at : at + 4]) for at in range(0, len(pairs), 4)]
        frames = names.backtrace(touch.rip, dict(touch.registers).get("rsp", 0))
        return "\n".join([f"rip {touch.rip:016x}", *rows, *frames])


def _ranges(item: Item) -> tuple[int, list[tuple[int, int]]]:
    """Return the message type and page ranges of a packet that hands pages over; no ranges for other packets."""
    data = item.data
    if "balloon" not in str(item.fields.get("channel")) or len(data) < 16:
        return 0, []
    payload = data[_UNIT * int.from_bytes(data[_OFFSET_AT : _OFFSET_AT + 2], "little") :]
    kind = int.from_bytes(payload[:2], "little")
    try:
        if item.point == "packet.out" and kind == MessageType.UNBALLOON_REQUEST:
            ranges = UnballoonRequest.parse(payload).ranges
        elif item.point == "packet.in" and kind == MessageType.BALLOON_RESPONSE:
            ranges = BalloonResponse.parse(payload).ranges
        else:
            return kind, []
    except GuestError:
        return kind, []
    return kind, ranges
