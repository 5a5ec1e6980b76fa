"""File copy against a guest played by hand."""

from __future__ import annotations

import pytest

from pyvmm.devices.fcopy import FileCopy
from pyvmm.devices.fcopy.device import WRITE_LIMIT, State
from pyvmm.devices.fcopy.protocol import Flag, Header, Operation, Start, Write
from pyvmm.errors import ConfigError
from tests.support.fake_guest import FakeDriver, FakeGuest


@pytest.fixture
def fcopy() -> FileCopy:
    return FileCopy()


@pytest.fixture
def driver(guest: FakeGuest, fcopy: FileCopy) -> FakeDriver:
    return guest.open(fcopy).accept_versions()


def start(fcopy: FileCopy, driver: FakeDriver, size: int, *, status: int = 0) -> list[str]:
    told: list[str] = []
    fcopy.start("/root", "größe", size, Flag.OVERWRITE, told.append)
    request = Start.parse(driver.take_bytes())
    assert (request.operation, request.flags, request.size) == (Operation.START, 1, size)
    assert request.name.decode("utf-16-le").rstrip("\0") == "größe"
    assert request.folder.decode("utf-16-le").rstrip("\0") == "/root/"
    driver.answer(b"", status=status)
    return told


def take_all(driver: FakeDriver) -> bytes:
    """Answer WRITE requests as long as there are some; the file."""
    found = b""
    while driver.incoming.used():
        body = driver.take_bytes()
        request = Write.parse(body)
        assert (request.operation, request.offset) == (Operation.WRITE, len(found))
        assert len(body) == Write.SIZE + request.size, "a packet that every Linux reads whole"
        found += body[Write.SIZE :]
        driver.answer(b"")
    return found


def test_a_file_goes_over_in_pieces(fcopy: FileCopy, driver: FakeDriver) -> None:
    data = bytes(n * 7 % 251 for n in range(WRITE_LIMIT))
    told = start(fcopy, driver, len(data))
    fcopy.write(data, told.append)
    assert told == [""]
    assert take_all(driver) == data
    assert (told, fcopy.state, fcopy.written) == (["", ""], State.OPEN, len(data))
    fcopy.finish(told.append)
    assert Header.parse(driver.take_bytes()).operation == Operation.COMPLETE
    driver.answer(b"")
    assert (told, fcopy.state) == (["", "", ""], State.IDLE)


def test_an_empty_file_is_started_and_ended(fcopy: FileCopy, driver: FakeDriver) -> None:
    told = start(fcopy, driver, 0)
    fcopy.finish(told.append)
    driver.take_bytes()
    driver.answer(b"")
    assert told == ["", ""]


@pytest.mark.parametrize(
    ("status", "reason"), [(0x80070050, "the file exists"), (0x80004005, "daemon"), (7, "status 0x7")]
)
def test_a_refusal_is_told_and_ends_the_copy(fcopy: FileCopy, driver: FakeDriver, status: int, reason: str) -> None:
    (told,) = start(fcopy, driver, 10, status=status)
    assert reason in told and fcopy.state is State.IDLE
    assert start(fcopy, driver, 10) == [""]


def test_a_full_disk_stops_the_pieces(fcopy: FileCopy, driver: FakeDriver) -> None:
    told = start(fcopy, driver, WRITE_LIMIT)
    fcopy.write(bytes(WRITE_LIMIT), told.append)
    driver.take_bytes()
    driver.answer(b"", status=0x80070070)
    driver.expect_nothing()
    assert told[1:] == ["the guest's disk is full"]


def test_a_cancelled_file_is_given_up_whatever_the_answer(fcopy: FileCopy, driver: FakeDriver) -> None:
    told = start(fcopy, driver, 10)
    fcopy.cancel(told.append)
    assert Header.parse(driver.take_bytes()).operation == Operation.CANCEL
    driver.answer(b"", status=0x80004005)
    assert (told, fcopy.state) == (["", ""], State.IDLE)


def test_a_driver_that_goes_ends_the_copy(guest: FakeGuest, fcopy: FileCopy, driver: FakeDriver) -> None:
    told = start(fcopy, driver, 10)
    fcopy.write(bytes(5), told.append)
    guest.close()
    assert (told, fcopy.state) == (["", "the guest's driver is gone"], State.IDLE)


def test_what_is_out_of_order_is_refused(guest: FakeGuest, fcopy: FileCopy) -> None:
    told: list[str] = []
    with pytest.raises(ConfigError, match="no driver"):
        fcopy.start("/", "x", 1, Flag(0), told.append)
    driver = guest.open(fcopy).accept_versions()
    for call in (fcopy.finish, fcopy.cancel):
        with pytest.raises(ConfigError, match="is idle"):
            call(told.append)
    start(fcopy, driver, 10)
    with pytest.raises(ConfigError, match="another file"):
        fcopy.start("/", "x", 1, Flag(0), told.append)
    with pytest.raises(ConfigError, match="10 bytes of the file are missing"):
        fcopy.finish(told.append)
    for data in (b"", bytes(WRITE_LIMIT + 1)):
        with pytest.raises(ConfigError, match="bytes to write"):
            fcopy.write(data, told.append)
    with pytest.raises(ConfigError, match="was to have 10"):
        fcopy.write(bytes(11), told.append)


@pytest.mark.parametrize("name", ["", "x" * 260, "a\0b"])
def test_names_that_do_not_fit_are_refused(fcopy: FileCopy, driver: FakeDriver, name: str) -> None:
    with pytest.raises(ConfigError, match="characters"):
        fcopy.start("/", name, 1, Flag(0), lambda reason: None)
    with pytest.raises(ConfigError, match="characters"):
        fcopy.start(name, "x", 1, Flag(0), lambda reason: None)
