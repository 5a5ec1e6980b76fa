"""The links of a machine's network cards, opened before the process is confined, and the cards.

config.nets --Links--> passt started, tap opened --make_card--> Netvsc, connected to the next link
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvmm.devices.netvsc import Card, Netvsc
from pyvmm.net.link import Link, Poller
from pyvmm.net.spec import NetSpec, default_mac

if TYPE_CHECKING:
    from pyvmm.machine.config import MachineConfig
    from pyvmm.machine.devices import Parts
    from pyvmm.net.passt import Passt

QUEUES = 8
"""Channels of a card at most, one for each CPU: one loop serves them all, so more only spread the guest's work."""
NOTHING = NetSpec("none")


class Links:
    """The open links, in the order of `config.nets`. Raises ConfigError and HostError; none is open then."""

    def __init__(self, config: MachineConfig, loop: Poller) -> None:
        self._loop = loop
        self._machine = config.name
        self._passts: list[Passt] = []
        self.open: list[tuple[NetSpec, Link, bytes]] = []
        try:
            for number, spec in enumerate(config.nets):
                mac = spec.mac or default_mac(config.name, number, spec)
                self.open.append((spec, self._open(spec, mac), mac))
        except BaseException:
            self.close()
            raise

    def _open(self, spec: NetSpec, mac: bytes) -> Link:
        match spec.kind:
            case "user":
                from pyvmm.net.passt import Passt
                from pyvmm.net.passt_link import PasstLink

                passt = Passt(spec, mac)
                self._passts.append(passt)
                return PasstLink(self._loop, passt.socket, ", ".join(each.text for each in spec.forwards))
            case "tap":
                from pyvmm.net.tap import TapLink, open_tap

                return TapLink(self._loop, open_tap(spec.ifname), spec.ifname)
        return Link()

    @property
    def shared(self) -> bool:
        """Whether a fork of this process would share a link with it."""
        return any(link.alive for _, link, _ in self.open)

    def wait(self) -> None:
        """Wait until each passt works. Raises ConfigError if one does not."""
        for passt in self._passts:
            passt.wait()

    def close(self) -> None:
        """End the links. Idempotent."""
        for _, link, _ in self.open:
            link.close()
        for passt in self._passts:
            passt.close()
        self._passts.clear()


def make_card(parts: Parts) -> Netvsc:
    """Return the machine's next card, connected to the next link; one past the last link is connected to nothing."""
    links, number = parts.links, next(parts.cards)
    if links is None or number >= len(links.open):
        spec, link = NOTHING, Link()
        mac = default_mac(parts.config.name, number, spec)
    else:
        spec, link, mac = links.open[number]
    queues = min(parts.config.cpus, QUEUES)
    name = f"pyvmm {spec.kind}{f' {spec.ifname}' if spec.ifname else ''}"
    card = Card(mac, name, queues=queues)
    if spec.mtu is not None:
        card.mtu_limit = spec.mtu

    def lost(reason: str) -> None:
        unplugged = "the guest sees an unplugged cable until the machine is run again"
        parts.notice(f"the peer of --net {spec} is gone, {reason}: {unplugged}")

    return Netvsc(link, card, lost=lost)
