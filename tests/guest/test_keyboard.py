"""The synthetic keyboard against a guest played by hand."""

from __future__ import annotations

from struct import pack, unpack_from

import pytest

from pyvmm.devices.keyboard import Keyboard
from pyvmm.devices.keyboard.device import KEYS_LIMIT, VERSION
from pyvmm.devices.keyboard.keys import KEYS, Key, key_named
from pyvmm.errors import ConfigError
from tests.support.fake_guest import FakeDriver, FakeGuest
from tests.support.fake_ring import COMPLETION


def start(guest: FakeGuest, keyboard: Keyboard, version: int = VERSION) -> FakeDriver:
    driver = guest.open(keyboard, ring_pages=9)
    driver.send(pack("<II", 1, version), flags=1, transaction_id=7)
    assert driver.take_bytes() == pack("<II", 2, int(version == VERSION))
    completion = driver.take_packet()
    assert completion is not None and completion.type == COMPLETION
    return driver


def strokes(driver: FakeDriver) -> list[tuple[int, int]]:
    """(make code, flags) of the events that came."""
    found = []
    while driver.incoming.used():
        kind, code, _, flags = unpack_from("<IHHI", driver.take_bytes())
        assert kind == 3
        found.append((code, flags))
    return found


def test_keys_go_down_in_order_and_up_the_other_way(guest: FakeGuest) -> None:
    keyboard = Keyboard()
    driver = start(guest, keyboard)
    keyboard.press([key_named(name) for name in ("ctrl", "alt", "delete")])
    assert strokes(driver) == [(0x1D, 0), (0x38, 0), (0x53, 4)]
    guest.advance(seconds=0.05)
    assert strokes(driver) == []
    guest.advance(seconds=0.06)
    assert strokes(driver) == [(0x53, 6), (0x38, 2), (0x1D, 2)]


def test_without_a_driver_no_key_is_pressed(guest: FakeGuest) -> None:
    keyboard = Keyboard()
    guest.open(keyboard)
    with pytest.raises(ConfigError, match="no driver"):
        keyboard.press([KEYS["a"]])
    guest.close()
    start(guest, keyboard, version=0x20000)
    assert not keyboard.ready


def test_keys_are_not_released_in_another_driver(guest: FakeGuest) -> None:
    keyboard = Keyboard()
    start(guest, keyboard)
    keyboard.press([KEYS["a"]])
    guest.close()
    driver = start(guest, keyboard)
    guest.advance(seconds=1)
    assert strokes(driver) == []


def test_a_guest_that_does_not_read_gets_no_more(guest: FakeGuest) -> None:
    keyboard = Keyboard()
    driver = guest.open(keyboard, ring_pages=2)
    driver.send(pack("<II", 1, VERSION))
    with pytest.raises(ConfigError, match="does not read"):
        for _ in range(1000):
            keyboard.press([KEYS["a"]] * KEYS_LIMIT)


@pytest.mark.parametrize("payload", [b"", bytes(8), pack("<II", 3, 0), pack("<II", 99, 0)])
def test_other_messages_are_refused(guest: FakeGuest, payload: bytes) -> None:
    start(guest, Keyboard()).send(payload).send(pack("<II", 4, 1))
    assert guest.bus.refused["keyboard"] == 1


def test_keys_have_the_codes_of_set_1() -> None:
    expected = {"esc": 1, "q": 0x10, "ret": 0x1C, "a": 0x1E, "z": 0x2C, "spc": 0x39, "f10": 0x44, "kp_7": 0x47}
    assert {name: KEYS[name] for name in expected} == {name: Key(code) for name, code in expected.items()}
    assert (KEYS["sysrq"], KEYS["f12"], KEYS["up"]) == (Key(0x54), Key(0x58), Key(0x48, True))


@pytest.mark.parametrize(("name", "hint"), [("enter", "kp_enter"), ("q9", ""), ("", "")])
def test_a_wrong_name_is_refused_with_those_there_are(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"no key is named.*{hint}"):
        key_named(name)
