"""The device that docs/adding-a-device.md builds, against a guest played by hand. tests/boot has Linux use it."""

from __future__ import annotations

import re

import pytest

from pyvmm.machine import devices
from tests.support import echo_example
from tests.support.fake_guest import FakeGuest


def test_each_packet_comes_back(guest: FakeGuest) -> None:
    echo = echo_example.load().Echo()
    guest.open(echo)
    for text in (b"hello, w", b"orld....", bytes(64)):
        guest.send(text)
        assert guest.take_bytes() == text
    assert echo.packets == 3
    guest.reopen()
    assert echo.packets == 0


def test_a_guest_that_does_not_read_is_read_no_further(guest: FakeGuest) -> None:
    echo = echo_example.load().Echo()
    driver = guest.open(echo)
    with pytest.raises(AssertionError, match="the guest's ring is full"):
        for _ in range(10_000):
            driver.send(bytes(64))
    assert 0 < echo.packets < 1000


def test_several_are_distinguished(guest: FakeGuest) -> None:
    first, second = echo_example.load().Echo(), echo_example.load().Echo()
    second.number = 1
    guest.open(first)
    guest.open(second).send(b"to the 2")
    assert guest.take_bytes() == b"to the 2"
    assert (first.packets, second.packets) == (0, 1)


def test_the_document_shows_the_file_as_it_is_and_the_file_is_short() -> None:
    text, source = echo_example.DOCUMENT.read_text(), echo_example.SOURCE.read_text()
    assert source in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(source.splitlines()) <= 60


def test_the_document_names_every_device_that_there_is() -> None:
    text = echo_example.DOCUMENT.read_text()
    assert [name for name in devices.DEVICES if f"`{name}`" not in text] == []
