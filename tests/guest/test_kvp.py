"""KVP against a guest played by hand: reading its pools, setting values, a daemon that is not there."""

from __future__ import annotations

from struct import pack, unpack_from
from uuid import UUID

import pytest

from pyvmm.devices.kvp import Kvp
from pyvmm.devices.kvp.addresses import BODY_SIZE as ADDRESSES_SIZE
from pyvmm.devices.kvp.addresses import Addresses, build_get
from pyvmm.devices.kvp.device import ENTRIES_LIMIT, EXTERNAL_LIMIT, REQUESTS_LIMIT
from pyvmm.devices.kvp.protocol import BODY_SIZE, NO_MORE, Operation, Pool
from pyvmm.errors import ConfigError, WireError
from tests.support.fake_guest import FakeDriver, FakeGuest


def text(data: str) -> bytes:
    return data.encode("utf-16-le") + b"\0\0"


class Daemon:
    """The guest's kernel and hv_kvp_daemon: answers each request from its pools."""

    def __init__(self, driver: FakeDriver) -> None:
        self.driver = driver
        self.pools: dict[int, dict[str, str]] = {pool: {} for pool in Pool}
        self.status = 0
        self.seen: list[str] = []
        self.addresses = b""  # the body of its answers about them

    def serve(self) -> None:
        """Answer all requests that are there, and those that follow."""
        while self.driver.incoming.used():
            self.answer(self.driver.take_bytes())

    def answer(self, body: bytes) -> None:
        if body[0] in (Operation.GET_IP_INFO, Operation.SET_IP_INFO):
            self.seen.append(f"{Operation(body[0]).name} {body[2:258].decode('utf-16-le').rstrip(chr(0))}")
            self.driver.answer(self.addresses or body, status=self.status)
            return
        assert len(body) == BODY_SIZE
        operation, pool = body[0], self.pools[body[1]]
        reply, status = bytearray(body), self.status
        match operation:
            case Operation.SET:
                _kind, key_size, value_size = unpack_from("<III", body, 4)
                key = body[16 : 16 + key_size].decode("utf-16-le").rstrip("\0")
                self.seen.append(f"set {key}")
                pool[key] = body[528 : 528 + value_size].decode("utf-16-le").rstrip("\0")
            case Operation.DELETE:
                key = body[8 : 8 + unpack_from("<I", body, 4)[0]].decode("utf-16-le").rstrip("\0")
                self.seen.append(f"delete {key}")
                pool.pop(key, None)
            case Operation.ENUMERATE:
                (index,) = unpack_from("<I", body, 4)
                self.seen.append(f"enumerate {body[1]}")
                if index < len(pool):
                    key, value = (text(each) for each in list(pool.items())[index])
                    reply[8:20] = pack("<III", 1, len(key), len(value))
                    reply[20 : 20 + len(key)] = key
                    reply[532 : 532 + len(value)] = value
                else:
                    status = NO_MORE
        self.driver.answer(bytes(reply), status=status)


def start(guest: FakeGuest, kvp: Kvp) -> Daemon:
    daemon = Daemon(guest.open(kvp, ring_pages=4).accept_versions())  # as Linux
    daemon.pools[Pool.AUTO] = {"FullyQualifiedDomainName": "web.example", "OSName": "Debian GNU/Linux"}
    return daemon


def test_the_guests_values_are_read_and_read_again(guest: FakeGuest) -> None:
    kvp = Kvp()
    daemon = start(guest, kvp)
    daemon.serve()
    assert kvp.auto == {"FullyQualifiedDomainName": "web.example", "OSName": "Debian GNU/Linux"}
    daemon.pools[Pool.GUEST]["load"] = "low"
    daemon.driver.expect_nothing()
    guest.advance(seconds=Kvp.REFRESH)
    daemon.serve()
    assert kvp.guest == {"load": "low"}


def test_a_guest_without_daemon_is_silent_and_asked_nothing(guest: FakeGuest) -> None:
    kvp = Kvp()
    driver = guest.open(kvp)
    kvp.set("key", "value")
    guest.advance(seconds=1000)
    driver.is_ic = True
    driver.take_bytes()  # the negotiation
    driver.expect_nothing()
    assert not kvp.ready


def test_values_are_set_first_when_the_daemon_comes_and_at_once_later(guest: FakeGuest) -> None:
    kvp = Kvp({"VirtualMachineName": "web"})
    kvp.set("color", "blue")
    daemon = start(guest, kvp)
    daemon.serve()
    assert daemon.pools[Pool.AUTO_EXTERNAL] == {"VirtualMachineName": "web"}
    assert daemon.pools[Pool.EXTERNAL] == {"color": "blue"}
    assert daemon.seen[:3] == ["set VirtualMachineName", "set color", "enumerate 2"]
    kvp.set("color", "grün 🎨")
    kvp.set("size", "7")
    kvp.delete("size")
    daemon.serve()
    assert daemon.pools[Pool.EXTERNAL] == {"color": "grün 🎨"}
    assert daemon.seen[-2:] == ["set color", "delete size"], "what is obsolete is not sent"


def test_a_value_that_the_guest_refuses_is_remembered(guest: FakeGuest) -> None:
    kvp = Kvp()
    daemon = start(guest, kvp)
    daemon.serve()
    daemon.status = 0x80004005
    kvp.set("color", "blue")
    daemon.serve()
    assert kvp.refused == {"color": 0x80004005}


def test_a_new_driver_gets_the_values_again(guest: FakeGuest) -> None:
    kvp = Kvp()
    daemon = start(guest, kvp)
    kvp.set("color", "blue")
    daemon.serve()
    guest.close()
    assert (kvp.auto, kvp.ready) == ({}, False)
    daemon = start(guest, kvp)
    daemon.serve()
    assert daemon.pools[Pool.EXTERNAL] == {"color": "blue"}


@pytest.mark.parametrize(
    ("key", "value"), [("", "x"), ("k" * 256, "x"), ("k", "v" * 1024), ("🎨" * 128, ""), ("a\0b", ""), ("a", "b\0")]
)
def test_what_no_message_can_hold_is_refused(key: str, value: str) -> None:
    with pytest.raises(ConfigError):
        Kvp().set(key, value)


def test_values_are_limited() -> None:
    kvp = Kvp()
    for number in range(EXTERNAL_LIMIT):
        kvp.set(str(number), "")
    with pytest.raises(ConfigError, match="64 values"):
        kvp.set("more", "")
    kvp.set("0", "again")
    kvp.delete("0")
    kvp.set("more", "")
    with pytest.raises(ConfigError, match="no value"):
        kvp.delete("0")


def test_a_guest_that_lists_without_end_is_stopped(guest: FakeGuest) -> None:
    kvp = Kvp()
    daemon = start(guest, kvp)
    daemon.pools[Pool.AUTO] = {f"key {n}": "x" for n in range(3 * ENTRIES_LIMIT)}
    daemon.serve()
    assert (len(kvp.auto), daemon.seen[-1]) == (ENTRIES_LIMIT, "enumerate 1")


@pytest.mark.parametrize(
    "record",
    [
        pack("<III", 1, 514, 2),
        pack("<III", 1, 2, 2050),
        pack("<III", 4, 4, 3),
        pack("<III", 3, 4, 4),
        pack("<III", 1, 0xFFFFFFFF, 0xFFFFFFFF),
    ],
)
def test_a_damaged_record_is_counted_and_the_next_is_read(guest: FakeGuest, record: bytes) -> None:
    kvp = Kvp()
    daemon = start(guest, kvp)
    body = bytearray(daemon.driver.take_bytes())
    body[8:20] = record
    daemon.driver.answer(bytes(body))
    daemon.serve()
    assert guest.bus.refused["kvp"] == 1
    assert list(kvp.auto) == ["OSName"]


def test_numbers_and_odd_text_are_read_as_well_as_can_be(guest: FakeGuest) -> None:
    kvp = Kvp()
    daemon = start(guest, kvp)
    for kind, key, value in (
        (4, text("u32"), pack("<I", 7)),
        (8, text("u64"), pack("<Q", 1 << 40)),
        (11, text("windows"), pack("<Q", 9)),
        (1, "no nul".encode("utf-16-le"), b"\x00\xd8a"),
    ):
        body = bytearray(daemon.driver.take_bytes())
        body[8:20] = pack("<III", kind, len(key), len(value))
        body[20 : 20 + len(key)] = key
        body[532 : 532 + len(value)] = value
        daemon.driver.answer(bytes(body))
    daemon.pools[Pool.AUTO] = {}
    daemon.serve()
    assert kvp.auto == {"u32": "7", "u64": str(1 << 40), "windows": "9", "no nul": "�"}


CARD = UUID("f8615163-df3e-46c5-913f-f2d2f965ed0e")


def test_a_cards_addresses_are_set_by_its_instance_and_read_by_its_hardware_address(guest: FakeGuest) -> None:
    kvp = Kvp()
    daemon = start(guest, kvp)
    daemon.serve()
    told: list[tuple[bytes | None, int]] = []
    wanted = Addresses(False, ["10.0.2.20/24", "fe80::2/64"], ["10.0.2.2"], ["10.0.2.3", "10.0.2.4"])
    wanted.check()
    body = wanted.build_set(CARD)
    assert len(body) == ADDRESSES_SIZE == 7428
    kvp.request(Operation.SET_IP_INFO, body, lambda *answer: told.append(answer))
    kvp.request(Operation.GET_IP_INFO, build_get(bytes.fromhex("5254e5b4488b")), lambda *answer: told.append(answer))
    daemon.addresses = body
    daemon.serve()
    assert daemon.seen[-2:] == [f"SET_IP_INFO {{{CARD}}}", "GET_IP_INFO 52:54:E5:B4:48:8B"]
    assert [status for _, status in told] == [0, 0]
    answer = told[1][0]
    assert answer is not None and Addresses.parse(answer) == wanted
    assert text("10.0.2.20;fe80::2") in body and text("255.255.255.0;ffff:ffff:ffff:ffff::") in body


def test_a_daemon_that_ends_or_refuses_answers_each_request_once(guest: FakeGuest) -> None:
    kvp = Kvp()
    with pytest.raises(ConfigError, match="does not answer"):
        kvp.request(Operation.GET_IP_INFO, build_get(bytes(6)), lambda *answer: None)
    daemon = start(guest, kvp)
    daemon.serve()
    told: list[tuple[bytes | None, int]] = []
    daemon.status = 0x80041002
    body = Addresses(dhcp=True).build_set(CARD)
    kvp.request(Operation.SET_IP_INFO, body, lambda *answer: told.append(answer))
    daemon.serve()
    assert told[0][1] == 0x80041002
    for _ in range(REQUESTS_LIMIT + 1):
        kvp.request(Operation.GET_IP_INFO, build_get(bytes(6)), lambda *answer: told.append(answer))
    with pytest.raises(ConfigError, match="wait already"):
        kvp.request(Operation.GET_IP_INFO, build_get(bytes(6)), lambda *answer: told.append(answer))
    guest.close()
    assert told[1:] == [(None, 0)] * (REQUESTS_LIMIT + 1)


def test_requests_about_addresses_are_answered_in_order(guest: FakeGuest) -> None:
    kvp = Kvp()
    daemon = start(guest, kvp)
    daemon.serve()
    told: list[int] = []
    for number in range(5):
        kvp.request(Operation.GET_IP_INFO, build_get(bytes([number] * 6)), lambda *_, n=number: told.append(n))
    daemon.serve()
    assert told == [0, 1, 2, 3, 4]
    assert daemon.seen[-5].endswith("00:00:00:00:00:00") and daemon.seen[-1].endswith("04:04:04:04:04:04")


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Addresses(), "neither an address nor DHCP"),
        (Addresses(addresses=["10.0.2.20"]), "with its prefix"),
        (Addresses(addresses=["10.0.2/24"]), "no IP address"),
        (Addresses(dhcp=True, gateways=["router"]), "no IP address"),
        (Addresses(dhcp=True, dns=["10.0.0.1/8"]), "no IP address"),
        (Addresses(addresses=["10.0.2.20/24"] * 200), "more addresses than fit"),
    ],
)
def test_what_is_no_address_is_refused_before_it_is_sent(wanted: Addresses, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        wanted.check()


def test_the_guests_nonsense_is_left_out_of_its_addresses() -> None:
    body = bytearray(Addresses(True, ["10.0.2.15/24"], [], []).build_set(CARD))
    listed = text("10.0.2.15;fe80::1;x\x1b[2J;10.1.1.1")
    body[260 : 260 + len(listed)] = listed
    masks = text("255.255.255.0;/64;1;lots")
    body[2308 : 2308 + len(masks)] = masks
    assert Addresses.parse(bytes(body)).addresses == ["10.0.2.15/24", "fe80::1/64", "10.1.1.1"]
    with pytest.raises(WireError):
        Addresses.parse(bytes(body[:-1]))
