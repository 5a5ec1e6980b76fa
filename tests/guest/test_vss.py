"""VSS against a guest played by hand: every freeze is followed by a thaw."""

from __future__ import annotations

import pytest

from pyvmm.devices.vss import Vss
from pyvmm.devices.vss.device import State
from pyvmm.devices.vss.protocol import Operation, VssBody
from pyvmm.errors import ConfigError
from tests.support.fake_guest import FakeDriver, FakeGuest


class Answers(list[str]):
    """What `done` was called with."""


@pytest.fixture
def vss() -> Vss:
    return Vss()


@pytest.fixture
def driver(guest: FakeGuest, vss: Vss) -> FakeDriver:
    return guest.open(vss).accept_versions()


def asked(driver: FakeDriver) -> int:
    (body,) = driver.take(VssBody)
    return body.operation


def reply(driver: FakeDriver, status: int = 0) -> None:
    driver.answer(VssBody(0), status=status)


def test_a_freeze_and_a_thaw(vss: Vss, driver: FakeDriver) -> None:
    frozen, thawed = Answers(), Answers()
    vss.freeze(60, frozen.append)
    assert (asked(driver), frozen) == (Operation.FREEZE, [])
    reply(driver)
    assert (vss.state, frozen) == (State.FROZEN, [""])
    vss.thaw(thawed.append)
    assert asked(driver) == Operation.THAW
    reply(driver)
    assert (vss.state, thawed, frozen) == (State.IDLE, [""], [""])


def test_the_limit_thaws(guest: FakeGuest, vss: Vss, driver: FakeDriver) -> None:
    vss.freeze(30, Answers().append)
    asked(driver)
    reply(driver)
    guest.advance(seconds=31)
    assert asked(driver) == Operation.THAW
    reply(driver)
    assert (vss.state, vss.thawed_by_limit) == (State.IDLE, True)
    with pytest.raises(ConfigError, match="when the limit was reached"):
        vss.thaw(Answers().append)


def test_a_freeze_that_comes_too_late_is_thawed_at_once(guest: FakeGuest, vss: Vss, driver: FakeDriver) -> None:
    frozen = Answers()
    vss.freeze(30, frozen.append)
    asked(driver)
    guest.advance(seconds=31)
    assert frozen == ["the guest did not freeze in time: is its hv_vss_daemon busy?"]
    with pytest.raises(ConfigError, match="abandoned already"):
        vss.freeze(30, frozen.append)
    reply(driver)
    assert asked(driver) == Operation.THAW
    reply(driver)
    assert vss.state is State.IDLE


def test_a_thaw_while_it_freezes_waits_for_both_answers(vss: Vss, driver: FakeDriver) -> None:
    frozen, thawed = Answers(), Answers()
    vss.freeze(30, frozen.append)
    asked(driver)
    vss.thaw(thawed.append)
    assert (frozen, thawed) == (["thawed before it was frozen"], [])
    reply(driver)
    assert (asked(driver), thawed) == (Operation.THAW, [])
    reply(driver)
    assert thawed == [""]


def test_a_guest_without_daemon_refuses(vss: Vss, driver: FakeDriver) -> None:
    frozen = Answers()
    vss.freeze(30, frozen.append)
    asked(driver)
    reply(driver, 0x80004005)
    assert frozen == ["the guest refused with status 0x80004005: does its hv_vss_daemon run?"]
    assert vss.state is State.IDLE
    vss.freeze(30, frozen.append)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_driver_that_goes_ends_it(guest: FakeGuest, vss: Vss, driver: FakeDriver, frozen: bool) -> None:
    told = Answers()
    vss.freeze(30, told.append)
    asked(driver)
    if frozen:
        reply(driver)
    guest.close()
    assert (vss.state, told) == (State.IDLE, [""] if frozen else ["the guest's driver is gone"])
    guest.advance(seconds=100)
    guest.open(vss).accept_versions()
    vss.freeze(30, told.append)


def test_a_thaw_that_fails_is_told(vss: Vss, driver: FakeDriver) -> None:
    told = Answers()
    vss.freeze(30, told.append)
    asked(driver)
    reply(driver)
    vss.thaw(told.append)
    asked(driver)
    reply(driver, 5)
    assert told == ["", "the guest could not thaw, status 0x5"]


@pytest.mark.parametrize("seconds", [0, -1, 601, float("nan")])
def test_bad_limits_are_refused(vss: Vss, driver: FakeDriver, seconds: float) -> None:
    with pytest.raises(ConfigError, match="at most"):
        vss.freeze(seconds, Answers().append)


def test_nothing_can_be_frozen_without_a_driver_or_thawed_without_a_freeze(vss: Vss, guest: FakeGuest) -> None:
    with pytest.raises(ConfigError, match="no driver"):
        vss.freeze(30, Answers().append)
    guest.open(vss).accept_versions()
    with pytest.raises(ConfigError, match="not frozen"):
        vss.thaw(Answers().append)
    vss.freeze(30, Answers().append)
    with pytest.raises(ConfigError, match="freezing already"):
        vss.freeze(30, Answers().append)
