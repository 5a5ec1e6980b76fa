"""Exits of a vCPU through the machine's handler: the whole board, every address, every width, strings and runs."""

from __future__ import annotations

import mmap

from pyvmm.devices.serial.window import AGENT, CONSOLE
from pyvmm.hyperv.user import UserEngine
from pyvmm.inbox import Inbox
from pyvmm.kvm import IoIn, IoOut, MmioRead, MmioWrite, Rdmsr, Wrmsr
from pyvmm.machine.board import Board
from pyvmm.machine.hardware import Hardware
from pyvmm.memory import GuestMemory, HostMemory, Region
from tests.fuzz.feed import Feed
from tests.support.fake_clock import FakeLoop
from tests.support.fake_kvm import FakeVcpu, FakeVm

PORTS = (*range(0x3F8, 0x400), *range(0x2F8, 0x300), 0x60, 0x64, 0x70, 0x71, *range(0x600, 0x60C), 0xCF9, 0xEC, 0x80)
GPAS = tuple(base + at for window in (CONSOLE, AGENT) for base in (window.base, window.early) for at in range(9))
_ram = HostMemory(0x8000, huge=False)
_page = mmap.mmap(-1, 8192)


def exits(data: bytes) -> None:
    feed = Feed(data)
    loop, engine_loop = FakeLoop(), FakeLoop()
    memory = GuestMemory([Region(0, 0x8000, _ram)])
    engine = UserEngine(1, memory, engine_loop)  # type: ignore[arg-type]
    engine.setup_vm(FakeVm())  # type: ignore[arg-type]
    engine.listen(lambda connection, kind, payload: 0)
    inbox = Inbox(lambda data: None, loop)
    board = Board(
        1,
        loop,  # type: ignore[arg-type]
        irq=lambda line, level: None,
        suppress_ier_writes=lambda gpa, on: None,
        reset=lambda reason: None,
        power_off=lambda: None,
        console=lambda data: None,
        agent=inbox.add,
    )
    hardware = Hardware.__new__(Hardware)
    hardware.engine, hardware._ports, hardware._mmio = engine, board.ports, board.mmio
    hardware._coalesced, hardware._inbox = None, inbox
    hardware.on_debug = None
    vcpu = FakeVcpu()
    handle = hardware._handler(vcpu, 0)  # type: ignore[arg-type]
    try:
        while feed:
            inbox.flush()  # there is no loop that would
            port = feed.choice(PORTS) if feed.below(8) else feed.number(2)
            gpa = feed.choice(GPAS) if feed.below(8) else feed.word()
            size, count = feed.choice((1, 2, 4)), feed.choice((1, 1, 1, 7, 1000))
            match feed.below(8):
                case 0 | 1:
                    assert handle(IoOut(port, size, count, (feed.take(size) * count)))
                case 2:
                    assert handle(IoIn(port, size, count, _page, 4096))
                case 3:
                    assert handle(MmioWrite(gpa, feed.take(feed.below(8) + 1)))
                case 4:
                    assert handle(MmioRead(gpa, feed.below(8) + 1, _page))
                case 5:
                    handle(Wrmsr(feed.number(4), feed.word(), 0, _page))
                    handle(Rdmsr(feed.number(4), 0, _page))
                case 6:
                    address = feed.choice((0x3F8, 0x2F8, 0x70, CONSOLE.base, CONSOLE.early))
                    board.coalesced(address, feed.take(feed.below(30) + 1))
                case _:
                    loop.advance(feed.choice((0.0, 0.001, 1.0, 100.0)))
                    engine_loop.run()
    finally:
        board.close()


TARGETS = {"guest_exits": exits}
