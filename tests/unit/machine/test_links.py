"""Links of a machine's cards: opened together, given out in order, closed together."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from pyvmm.errors import ConfigError
from pyvmm.loop import Loop
from pyvmm.machine.config import DEFAULT_DEVICES, MachineConfig
from pyvmm.machine.devices import Parts
from pyvmm.machine.links import Links, make_card
from pyvmm.net.spec import parse_net


def config(*nets: str, cards: int | None = None) -> MachineConfig:
    devices = (*DEFAULT_DEVICES, *["netvsc"] * (len(nets) if cards is None else cards))
    return MachineConfig(Path("/none"), cpus=2, nets=tuple(map(parse_net, nets)), devices=devices)


def parts(config: MachineConfig, links: Links | None, notices: list[str]) -> Parts:
    nothing: Any = SimpleNamespace()
    return Parts(config, nothing, nothing, nothing, links=links, notice=notices.append)


def test_cards_get_the_links_in_order_and_the_next_ones_nothing() -> None:
    made = config("none,mac=52:54:00:00:00:01", "none,mtu=9000", cards=3)
    loop = Loop()
    links = Links(made, loop)
    given = parts(made, links, [])
    first, second, third = (make_card(given) for _ in range(3))
    assert first.card.mac.hex(":") == "52:54:00:00:00:01"
    assert second.card.mtu_limit == 9000
    assert third.link.kind == "none"
    assert len({each.card.mac for each in (first, second, third)}) == 3
    assert first.card.queues == 2
    links.close()
    loop.close()


def test_cards_without_links_have_addresses_of_their_own() -> None:
    given = parts(config(cards=2), None, [])
    assert make_card(given).card.mac != make_card(given).card.mac


class FakePasst:
    """A passt that notes what is closed."""

    closed: ClassVar[list[str]] = []
    socket = SimpleNamespace(
        fileno=lambda: 0, setblocking=lambda on: None, close=lambda: FakePasst.closed.append("socket")
    )

    def __init__(self, spec: object, mac: bytes) -> None: ...
    def close(self) -> None:
        self.closed.append("passt")


def test_a_link_that_cannot_be_opened_closes_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakePasst, "closed", [])

    def refuse(name: str) -> int:
        raise ConfigError(f"no {name}")

    monkeypatch.setattr("pyvmm.net.passt.Passt", FakePasst)
    monkeypatch.setattr("pyvmm.net.tap.open_tap", refuse)
    loop = Loop()
    with pytest.raises(ConfigError, match="no tap7"):
        Links(config("user", "tap=tap7"), loop)
    assert FakePasst.closed == ["socket", "passt"]
    loop.close()


def test_a_link_shows_its_forwarded_ports_as_the_user_wrote_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvmm.net.passt.Passt", FakePasst)
    loop = Loop()
    links = Links(config("user,hostfwd=tcp::2222-:22,hostfwd=udp:127.0.0.1:53-:5353"), loop)
    assert links.open[0][1].place == "tcp::2222-:22, udp:127.0.0.1:53-:5353"
    links.close()
    loop.close()


def test_more_networks_than_cards_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 networks"):
        config("none", "none", cards=1).check()


def test_the_user_hears_of_a_lost_link() -> None:
    made = config("none")
    loop, notices = Loop(), list[str]()
    links = Links(made, loop)
    card = make_card(parts(made, links, notices))
    card._link_ended("it has closed the connection")
    assert "the peer of --net none is gone, it has closed the connection" in notices[0]
    links.close()
    loop.close()
