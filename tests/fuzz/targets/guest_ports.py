"""Port accesses: whatever a guest reads and writes at the devices of the board is answered, at any date."""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.address_map import (
    ACPI_PM,
    COM1,
    FW_CFG,
    I8042_DATA,
    I8042_STATUS,
    RTC,
    TEST_EXIT,
    TEST_FLUSH,
    TEST_LINES,
    TEST_MEMORY,
    TEST_SCRATCH,
)
from pyvmm.devices.acpi_pm import AcpiPm, ResetPort
from pyvmm.devices.i8042 import I8042
from pyvmm.devices.rtc.clock import Rtc
from pyvmm.devices.serial.uart import Serial
from pyvmm.devices.testdev.exit_port import ExitPort
from pyvmm.devices.testdev.fw_cfg import FwCfg
from pyvmm.devices.testdev.pc import InterruptLines, PageFlush, Scratch
from pyvmm.iomap import IoDevice
from tests.fuzz.feed import Feed
from tests.support.fake_clock import FakeLoop

DATES = (  # century, year, month, day, hours, minutes, seconds; BCD
    (0x99, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59),
    (0x00, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00),
    (0x00, 0x01, 0x01, 0x01, 0x00, 0x00, 0x00),
    (0x20, 0x31, 0x02, 0x30, 0x12, 0x00, 0x00),
    (0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF),
)


def _accesses(feed: Feed, device: IoDevice, ports: int, between: Callable[[], None] = lambda: None) -> None:
    """Reads and writes of every width, as KVM may report them."""
    while feed:
        how = feed.u8()
        offset, size = feed.below(ports), (1, 2, 4, 8)[how & 3]
        if how & 4:
            device.write(offset, size, feed.word(size))
        else:
            value = device.read(offset, size)
            assert value >= 0, f"{type(device).__name__} reads {value} at {offset}"
        if how & 0x80:
            between()


def serial(data: bytes) -> None:
    """The 16550A, with and without a window page, and a host that types."""
    feed = Feed(data)
    page = memoryview(bytearray(4096)) if feed.flag() else None
    port = Serial(lambda level: None, lambda data: None, page=page)

    def host() -> None:
        match feed.below(4):
            case 0:
                port.receive(feed.take(feed.below(40)))
            case 1:
                port.send_break()
            case 2:
                port.write_many(feed.take(feed.below(40)))
            case _:
                port.reset()

    _accesses(feed, port, COM1.size, host)


def rtc(data: bytes) -> None:
    """The CMOS clock, set to any date, while the host's clock goes on or jumps."""
    feed = Feed(data)
    loop = FakeLoop()
    now = float(feed.choice((0, 1_700_000_000, 4_102_444_800, 253_402_300_799)))
    clock = [now]
    device = Rtc(lambda level: None, loop, clock=lambda: clock[0])

    def host() -> None:
        step = feed.choice((0.001, 1.0, 3600.0, 86400.0, 1e7, 1e9, -1e7))
        clock[0] = max(0.0, min(clock[0] + step, 253_402_300_799.0))  # a host's own clock ends in 9999 at the latest
        loop.advance(min(max(step, 0.0), 5.0))

    if feed.flag():
        for index, value in zip((0x32, 9, 8, 7, 4, 2, 0), feed.choice(DATES), strict=True):
            device.write(0, 1, index)
            device.write(1, 1, value)
    _accesses(feed, device, RTC.size, host)


def i8042(data: bytes) -> None:
    _accesses(Feed(data), I8042(lambda: None), I8042_STATUS.end - I8042_DATA.start)


def acpi_pm(data: bytes) -> None:
    feed = Feed(data)
    device = AcpiPm(lambda level: None, lambda: None)
    _accesses(feed, device, ACPI_PM.size, lambda: device.press_power_button() and None)


def reset_port(data: bytes) -> None:
    _accesses(Feed(data), ResetPort(lambda: None), 1)


def testdev(data: bytes) -> None:
    """The devices for test programs; exit port and page flush have no effect here."""
    feed = Feed(data)
    devices: list[tuple[IoDevice, int]] = [
        (ExitPort(lambda status: None), TEST_EXIT.size),
        (PageFlush(lambda gpa: None), TEST_FLUSH.size),
        (InterruptLines(lambda line, level: None), TEST_LINES.size),
        (Scratch(TEST_SCRATCH.size), TEST_SCRATCH.size),
        (Scratch(TEST_MEMORY.size), TEST_MEMORY.size),
        (FwCfg(2, 1 << 30), FW_CFG.size),
    ]
    device, ports = feed.choice(devices)
    _accesses(feed, device, ports)


TARGETS = {
    "guest_ports_testdev": testdev,
    "guest_ports_serial": serial,
    "guest_ports_rtc": rtc,
    "guest_ports_i8042": i8042,
    "guest_ports_acpi_pm": acpi_pm,
    "guest_ports_reset": reset_port,
}
