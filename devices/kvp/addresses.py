"""The bodies of KVP's requests for a network card's addresses: reading and setting them.

Source: Linux include/uapi/linux/hyperv.h, struct hv_kvp_ip_msg; drivers/hv/hv_kvp.c, process_ib_ipinfo. Its daemon
finds a card by its hardware address for GET_IP_INFO, and by the GUID of its VMBus instance for SET_IP_INFO.

    +0 operation u8 | pool u8 | +2 card u16[128] | family u8 | DHCP u8 |
    +260 addresses u16[1024] | masks u16[1024] | gateways u16[512] | name servers u16[1024]      UTF-16, `;` between
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from struct import pack
from uuid import UUID

from pyvmm.devices.kvp.protocol import Operation, decode, encode
from pyvmm.errors import ConfigError, WireError

CARD_SIZE, LIST_SIZE, GATEWAYS_SIZE = 256, 2048, 1024
BODY_SIZE = 4 + CARD_SIZE + 3 * LIST_SIZE + GATEWAYS_SIZE
BOTH_FAMILIES = 3
_SIZES = (LIST_SIZE, LIST_SIZE, GATEWAYS_SIZE, LIST_SIZE)
_START = 4 + CARD_SIZE


@dataclass(slots=True)
class Addresses:
    """A card's configuration. `addresses` have their prefix: 10.0.2.15/24. `dhcp` is about IPv4 only."""

    dhcp: bool = False
    addresses: list[str] = field(default_factory=list)
    gateways: list[str] = field(default_factory=list)
    dns: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise ConfigError for what is no address, or too much for a message."""
        for each in self.addresses:
            if "/" not in each:
                raise ConfigError(f"{each[:60]!r}: an address with its prefix is needed, 10.0.2.20/24")
            _read(each, ipaddress.ip_interface)
        for each in (*self.gateways, *self.dns):
            _read(each, ipaddress.ip_address)
        if not self.dhcp and not self.addresses:
            raise ConfigError("neither an address nor DHCP: give one of them")
        for text, size in zip(self._lists(), _SIZES, strict=True):
            if len(encode(text)) > size:
                raise ConfigError(f"more addresses than fit into {size // 2 - 1} characters")

    def _lists(self) -> tuple[str, str, str, str]:
        interfaces = [ipaddress.ip_interface(each) for each in self.addresses]
        plain, masks = [str(each.ip) for each in interfaces], [str(each.netmask) for each in interfaces]
        return ";".join(plain), ";".join(masks), ";".join(self.gateways), ";".join(self.dns)

    def build_set(self, instance: UUID) -> bytes:
        """Return the body of SET_IP_INFO for the card with that VMBus instance."""
        return _head(Operation.SET_IP_INFO, f"{{{instance}}}", self.dhcp) + b"".join(
            encode(text).ljust(size, b"\0") for text, size in zip(self._lists(), _SIZES, strict=True)
        )

    @classmethod
    def parse(cls, body: bytes) -> Addresses:
        """Read the answer to GET_IP_INFO. What is no address is left out. Raises WireError."""
        if len(body) < BODY_SIZE:
            raise WireError(f"KVP: addresses in {len(body)} bytes, needs {BODY_SIZE}")
        lists, at = [], _START
        for size in _SIZES:
            lists.append([each for each in decode(body[at : at + size]).split(";") if each])
            at += size
        plain, masks, gateways, dns = lists
        masks += [""] * (len(plain) - len(masks))
        joined = [_join(address, mask) for address, mask in zip(plain, masks, strict=False)]
        return cls(
            dhcp=bool(body[_START - 1]),
            addresses=[each for each in joined if each],
            gateways=[each for each in map(_plain, gateways) if each],
            dns=[each for each in map(_plain, dns) if each],
        )


def build_get(hardware: bytes) -> bytes:
    """Return the body of GET_IP_INFO for the card with that hardware address."""
    return _head(Operation.GET_IP_INFO, hardware.hex(":").upper(), False).ljust(BODY_SIZE, b"\0")


def _head(operation: Operation, card: str, dhcp: bool) -> bytes:
    return pack("<BB", operation, 0) + encode(card).ljust(CARD_SIZE, b"\0") + pack("<BB", BOTH_FAMILIES, dhcp)


def _read(text: str, kind: object) -> None:
    try:
        kind(text)  # type: ignore[operator]
    except ValueError:
        raise ConfigError(f"{text[:60]!r} is no IP address") from None


def _plain(text: str) -> str:
    """Return an address of the guest's text, with its scope; empty if it is none."""
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        return ""


def _join(address: str, mask: str) -> str:
    """Return ADDRESS/PREFIX. Linux's daemon tells a mask for IPv4, and /PREFIX for IPv6."""
    plain = _plain(address)
    if not plain:
        return ""
    try:
        return str(ipaddress.ip_interface(f"{plain}/{_prefix(mask)}"))
    except ValueError:
        return plain


def _prefix(mask: str) -> str:
    mask = mask.strip().lstrip("/")
    return str(int(ipaddress.IPv6Address(mask)).bit_count()) if ":" in mask else mask
