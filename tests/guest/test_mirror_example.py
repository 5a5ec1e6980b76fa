"""The device that docs/adding-a-device.md builds, against a guest played by hand. tests/boot has Linux use it."""

from __future__ import annotations

import re

import pytest

from pyvmm.machine import devices
from tests.support import mirror_example
from tests.support.fake_guest import FakeGuest


def test_each_packet_comes_back(guest: FakeGuest) -> None:
    mirror = mirror_example.load().Mirror()
    guest.open(mirror)
    for text in (b"hello, w", b"orld....", bytes(64)):
        guest.send(text)
        assert guest.take_bytes() == text
    assert mirror.packets == 3
    guest.reopen()
    assert mirror.packets == 0


def test_a_guest_that_does_not_read_is_read_no_further(guest: FakeGuest) -> None:
    mirror = mirror_example.load().Mirror()
    driver = guest.open(mirror)
    with pytest.raises(AssertionError, match="the guest's ring is full"):
        for _ in range(10_000):
            driver.send(bytes(64))
    assert 0 < mirror.packets < 1000


def test_several_are_distinguished(guest: FakeGuest) -> None:
    first, second = mirror_example.load().Mirror(), mirror_example.load().Mirror()
    second.number = 1
    guest.open(first)
    guest.open(second).send(b"to the 2")
    assert guest.take_bytes() == b"to the 2"
    assert (first.packets, second.packets) == (0, 1)


def test_the_document_shows_the_file_as_it_is_and_the_file_is_short() -> None:
    text, source = mirror_example.DOCUMENT.read_text(), mirror_example.SOURCE.read_text()
    assert source in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(source.splitlines()) <= 60


def test_the_document_names_every_device_that_there_is() -> None:
    text = mirror_example.DOCUMENT.read_text()
    assert [name for name in devices.DEVICES if f"`{name}`" not in text] == []
