"""What `--net` asks for: the link of a network card, its address, its limits.

    user                                    passt: the guest's connections become the host's
    user,hostfwd=tcp::2222-:22              and connections to the host's port 2222 come to the guest's port 22
    tap=tap0,mac=52:54:00:12:34:56          a tap device of the host
    none                                    a card whose cable leads nowhere

The words are QEMU's (`-nic user,hostfwd=...`). `str(spec)` gives the words back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyvmm.errors import ConfigError

Kind = Literal["user", "tap", "none"]
KINDS = ("user", "tap", "none")
LEAST_MTU, LARGEST_MTU = 576, 65520
NAME_LIMIT = 15
"""Characters of an interface's name (IFNAMSIZ)."""
FORWARDS_LIMIT = 64
HOW = "write it as user, tap=NAME or none; then ,mac=ADDRESS ,mtu=BYTES ,hostfwd=tcp::2222-:22"

_MAC = re.compile(r"[0-9a-f]{2}([:-][0-9a-f]{2}){5}", re.IGNORECASE)
_FORWARD = re.compile(
    r"(?P<protocol>tcp|udp|):(?P<host>\[[^]]*\]|[^:]*):(?P<port>[0-9]{1,5})-(?P<guest>[^:]*):(?P<to>[0-9]{1,5})"
)


@dataclass(frozen=True, slots=True)
class Forward:
    """A port of the host whose connections come to a port of the guest. `address` is empty for all of the host's."""

    protocol: Literal["tcp", "udp"]
    address: str
    port: int
    to: int

    @property
    def text(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.protocol}:{host}:{self.port}-:{self.to}"


@dataclass(frozen=True, slots=True)
class NetSpec:
    """One network card. `mac` is None for an address made from the machine's name; `mtu` None for the link's."""

    kind: Kind
    ifname: str = ""
    mac: bytes | None = None
    mtu: int | None = None
    forwards: tuple[Forward, ...] = ()

    def __str__(self) -> str:
        """Return the words that `parse_net` reads."""
        words = [f"tap={self.ifname}" if self.kind == "tap" else self.kind]
        if self.mac is not None:
            words.append(f"mac={self.mac.hex(':')}")
        if self.mtu is not None:
            words.append(f"mtu={self.mtu}")
        return ",".join([*words, *(f"hostfwd={each.text}" for each in self.forwards)])


def parse_net(text: str) -> NetSpec:
    """Parse a value of `--net`. Raises ConfigError that says what is wrong with it."""
    first, *others = text.split(",")
    kind, equals, ifname = first.partition("=")
    if kind not in KINDS or (equals and kind != "tap"):
        raise ConfigError(f"{first[:40]!r} is no network: {HOW}")
    values: dict[str, str] = {}
    forwards: list[Forward] = []
    for word in others:
        name, equals, value = word.partition("=")
        if name == "hostfwd" and equals:
            forwards.append(_forward(value))
        elif name in ("mac", "mtu", "ifname") and equals and name not in values:
            values[name] = value
        else:
            twice = "twice" if name in values else "no property of a network"
            raise ConfigError(f"{word[:40]!r} is {twice}: {HOW}")
    if kind == "tap":
        ifname = ifname or values.get("ifname", "")
        _check_name(ifname)
    elif "ifname" in values:
        raise ConfigError("ifname= is for a tap: write tap=NAME")
    if forwards and kind != "user":
        raise ConfigError(f"hostfwd= is for `user`: a {kind} has no ports of the host")
    if len(forwards) > FORWARDS_LIMIT:
        raise ConfigError(f"{len(forwards)} times hostfwd=: at most {FORWARDS_LIMIT}")
    mac = _mac(values["mac"]) if "mac" in values else None
    mtu = _mtu(values["mtu"]) if "mtu" in values else None
    return NetSpec(kind, ifname, mac, mtu, tuple(forwards))  # type: ignore[arg-type]


def _check_name(name: str) -> None:
    if not name:
        raise ConfigError("a tap needs its interface's name: write tap=NAME")
    if len(name.encode()) > NAME_LIMIT or "/" in name or any(c.isspace() for c in name) or name in (".", ".."):
        raise ConfigError(f"{name[:40]!r} is no interface's name: at most {NAME_LIMIT} characters, no slash or space")


def _mac(text: str) -> bytes:
    if not _MAC.fullmatch(text):
        raise ConfigError(f"mac={text[:40]!r} is no address: write it as 52:54:00:12:34:56")
    address = bytes.fromhex(text.replace("-", ":").replace(":", ""))
    if address[0] & 1 or not any(address):
        raise ConfigError(f"mac={text} cannot be a card's: the first byte must be even, and not all bytes zero")
    return address


def _mtu(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and LEAST_MTU <= int(text) <= LARGEST_MTU):
        raise ConfigError(f"mtu={text[:20]!r}: {LEAST_MTU} to {LARGEST_MTU} bytes")
    return int(text)


def _forward(text: str) -> Forward:
    match = _FORWARD.fullmatch(text)
    if match is None:
        raise ConfigError(f"hostfwd={text[:60]!r}: write it as tcp::2222-:22, [tcp|udp]:[HOST]:PORT-:PORT")
    if match["guest"]:
        raise ConfigError(f"hostfwd={text[:60]!r}: the guest has one address, leave it out: -:{match['to']}")
    ports = int(match["port"]), int(match["to"])
    for port in ports:
        if not 0 < port < 1 << 16:
            raise ConfigError(f"hostfwd={text[:60]!r}: {port} is no port, 1 to 65535")
    address = match["host"].removeprefix("[").removesuffix("]")
    if address:
        import ipaddress

        try:
            address = str(ipaddress.ip_address("127.0.0.1" if address == "localhost" else address))
        except ValueError:
            raise ConfigError(f"hostfwd={text[:60]!r}: {address[:40]!r} is no IP address of the host") from None
    return Forward("udp" if match["protocol"] == "udp" else "tcp", address, *ports)


def default_mac(machine: str, number: int, spec: NetSpec) -> bytes:
    """Return the address of a card without one: locally administered, the same whenever the machine is started."""
    import hashlib

    digest = hashlib.sha256(f"{machine}\0{number}\0{spec.kind}\0{spec.ifname}".encode()).digest()
    return b"\x52\x54" + digest[:4]


def complete(text: str) -> list[str]:
    """Return the values of `--net` that begin with `text`: kinds, tap devices of the host, properties."""
    before, comma, last = text.rpartition(",")
    if comma:
        kind = before.split(",")[0].partition("=")[0]
        words = ["mac=", "mtu=", *(["hostfwd=tcp::", "hostfwd=udp::"] if kind == "user" else [])]
        return [f"{before},{word}" for word in words if word.startswith(last)]
    folder = Path("/sys/class/net")
    taps = sorted(each.name for each in folder.iterdir() if (each / "tun_flags").exists()) if folder.is_dir() else []
    return [word for word in ("user", "none", *(f"tap={name}" for name in taps or [""])) if word.startswith(text)]
