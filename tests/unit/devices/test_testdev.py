"""The devices for test programs: exit port, scratch ports, interrupt lines, fw_cfg, and QEMU's hyperv-testdev."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from pyvmm.devices.testdev.exit_port import ExitPort
from pyvmm.devices.testdev.fw_cfg import FwCfg
from pyvmm.devices.testdev.hyperv import HypervTestdev
from pyvmm.devices.testdev.pc import InterruptLines, PageFlush, Scratch
from pyvmm.errors import HostError
from pyvmm.hyperv.tlfs import HypercallStatus


@pytest.mark.parametrize(("value", "status"), [(0, 1), (1, 3), (77, 155), (0xFFFFFFFF, 255), (0x80, 1)])
def test_the_exit_port_ends_with_qemus_status(value: int, status: int) -> None:
    seen: list[int] = []
    port = ExitPort(seen.append)
    port.write(0, 4, value)
    assert (seen, port.read(0, 4)) == ([status], 0)


def test_lines_follow_their_ports() -> None:
    seen: list[tuple[int, bool]] = []
    lines = InterruptLines(lambda line, level: seen.append((line, level)))
    lines.write(14, 1, 1)
    lines.write(14, 1, 0)
    assert seen == [(14, True), (14, False)]


def test_scratch_holds_what_was_written_up_to_its_end() -> None:
    scratch = Scratch(4)
    scratch.write(1, 2, 0xBEEF)
    assert scratch.read(0, 4) == 0xBEEF00
    scratch.write(2, 8, (1 << 64) - 1)
    assert (scratch.read(0, 4), scratch.read(3, 4)) == (0xFFFFEF00, 0xFF)
    scratch.reset()
    assert scratch.read(0, 4) == 0


def test_a_flush_names_the_page_and_only_a_32_bit_write_flushes() -> None:
    seen: list[int] = []
    port = PageFlush(seen.append)
    port.write(0, 4, 0x123456)
    port.write(1, 1, 0xFF)
    assert seen == [0x123000]


def test_fw_cfg_gives_the_selected_items_bytes_then_zeros() -> None:
    device = FwCfg(cpus=3, ram_size=0x1_2345_6000)

    def item(number: int, size: int) -> int:
        device.write(0, 2, number)
        return int.from_bytes(bytes(device.read(1, 1) for _ in range(size)), "little")

    assert item(0, 4) == int.from_bytes(b"QEMU", "little")
    assert (item(5, 2), item(3, 8), item(5, 8)) == (3, 0x1_2345_6000, 3)
    assert (item(0x11, 8), item(0xFFFF, 8)) == (0, 0)
    device.write(0, 2, 5)
    device.reset()
    assert device.read(1, 1) == 0


@dataclass
class Engine:
    """Records the calls; `post_message` keeps the callback for later."""

    vp_count: int = 2
    message_ports: dict[int, Callable[[int, bytes], int]] = field(default_factory=dict)
    event_ports: dict[int, Callable[[], int]] = field(default_factory=dict)
    calls: list[tuple[object, ...]] = field(default_factory=list)
    posted: list[Callable[[int], None]] = field(default_factory=list)
    full: bool = False

    def open_sint(self, vp: int, sint: int) -> None:
        if self.full:
            raise HostError("too many routes")
        self.calls.append(("open", vp, sint))

    def close_sint(self, vp: int, sint: int) -> None:
        self.calls.append(("close", vp, sint))

    def interrupt(self, vp: int, sint: int) -> None:
        self.calls.append(("raise", vp, sint))

    def signal_event(self, vp: int, sint: int, flag: int) -> bool:
        self.calls.append(("signal", vp, sint, flag))
        return vp == 0

    def post_message(self, vp: int, sint: int, type: int, payload: bytes, done: Callable[[int], None]) -> None:
        self.calls.append(("post", vp, sint, type, payload))
        self.posted.append(done)

    def post(self, callback: Callable[..., None], *args: object) -> None:
        """As the loop."""
        callback(*args)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def device(engine: Engine) -> HypervTestdev:
    return HypervTestdev(engine, engine)


def word(operation: int, vp: int, sint: int, connection: int = 0) -> int:
    return connection << 24 | operation << 16 | vp << 8 | sint


def test_a_routed_sint_is_raised_until_its_last_user_has_gone(device: HypervTestdev, engine: Engine) -> None:
    device.write(0, 4, word(3, 1, 5))  # not routed
    device.write(0, 4, word(1, 1, 5))
    device.write(0, 4, word(3, 1, 5))
    device.write(0, 4, word(6, 1, 5, 0x20))
    device.write(0, 4, word(2, 1, 5))
    device.write(0, 4, word(3, 1, 5))
    device.write(0, 4, word(7, 0, 0, 0x20))
    device.write(0, 4, word(3, 1, 5))
    raised = ("raise", 1, 5)
    assert engine.calls == [("open", 1, 5), raised, raised, ("close", 1, 5)]


def test_one_message_at_a_time_is_on_its_way_to_a_sint(device: HypervTestdev, engine: Engine) -> None:
    device.write(0, 4, word(4, 0, 8, 0x10))
    post = engine.message_ports[0x10]
    assert post(0x12345678, b"abc") == HypercallStatus.SUCCESS
    assert post(1, b"") == HypercallStatus.INSUFFICIENT_BUFFERS
    engine.posted[0](-errno.EAGAIN)  # the slot is busy, it stays queued
    assert post(1, b"") == HypercallStatus.INSUFFICIENT_BUFFERS
    engine.posted[0](0)
    assert post(2, b"d") == HypercallStatus.SUCCESS
    assert [call for call in engine.calls if call[0] == "post"] == [
        ("post", 0, 8, 0x12345678, b"abc"),
        ("post", 0, 8, 2, b"d"),
    ]
    device.write(0, 4, word(5, 0, 0, 0x10))
    assert engine.message_ports == {}


def test_an_event_sets_the_flag_of_its_connection(device: HypervTestdev, engine: Engine) -> None:
    device.write(0, 4, word(6, 0, 9, 0x20))
    device.write(0, 4, word(6, 1, 9, 0x21))
    assert engine.event_ports[0x20]() == HypercallStatus.SUCCESS
    assert engine.event_ports[0x21]() == HypercallStatus.INVALID_PORT_ID, "its SynIC is off"
    assert ("signal", 0, 9, 0x20) in engine.calls


def test_a_reset_forgets_all(device: HypervTestdev, engine: Engine) -> None:
    device.write(0, 4, word(4, 0, 8, 0x10))
    device.write(0, 4, word(6, 0, 9, 0x20))
    engine.message_ports[0x10](1, b"")
    device.reset()
    assert (engine.message_ports, engine.event_ports) == ({}, {})
    device.write(0, 4, word(4, 0, 8, 0x10))
    engine.posted[0](0)  # of the life before
    assert engine.message_ports[0x10](1, b"") == HypercallStatus.SUCCESS
    assert engine.message_ports[0x10](1, b"") == HypercallStatus.INSUFFICIENT_BUFFERS


@pytest.mark.parametrize("value", [word(0, 0, 0), word(9, 0, 0), word(1, 2, 0), word(1, 0, 16), word(5, 0, 0, 7)])
def test_an_operation_without_sense_is_ignored(device: HypervTestdev, engine: Engine, value: int) -> None:
    device.write(0, 4, value)
    device.write(0, 2, word(1, 0, 0))
    device.write(1, 4, word(1, 0, 0))
    assert engine.calls == []


def test_a_host_that_has_no_more_routes_is_no_failure(device: HypervTestdev, engine: Engine) -> None:
    engine.full = True
    device.write(0, 4, word(4, 0, 8, 0x10))
    assert engine.message_ports == {}
    engine.full = False
    device.write(0, 4, word(4, 0, 8, 0x10))
    assert (0x10 in engine.message_ports, engine.calls) == (True, [("open", 0, 8)])
