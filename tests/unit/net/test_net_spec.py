"""`--net`: what is accepted, and what is said of the rest."""

from __future__ import annotations

import pytest

from pyvmm.errors import ConfigError
from pyvmm.net.spec import Forward, NetSpec, default_mac, parse_net


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("user", NetSpec("user")),
        ("none", NetSpec("none")),
        ("tap=tap0", NetSpec("tap", "tap0")),
        ("tap,ifname=tap0", NetSpec("tap", "tap0")),
        ("user,mac=52:54:00:12:34:56", NetSpec("user", mac=bytes.fromhex("525400123456"))),
        ("tap=t,mac=52-54-00-AB-CD-EF,mtu=9000", NetSpec("tap", "t", bytes.fromhex("525400abcdef"), 9000)),
        ("user,hostfwd=tcp::2222-:22", NetSpec("user", forwards=(Forward("tcp", "", 2222, 22),))),
        ("user,hostfwd=::2222-:22", NetSpec("user", forwards=(Forward("tcp", "", 2222, 22),))),
        (
            "user,hostfwd=udp:127.0.0.1:53-:53,hostfwd=tcp:[::1]:80-:8080",
            NetSpec("user", forwards=(Forward("udp", "127.0.0.1", 53, 53), Forward("tcp", "::1", 80, 8080))),
        ),
        ("user,hostfwd=tcp:localhost:1-:65535", NetSpec("user", forwards=(Forward("tcp", "127.0.0.1", 1, 65535),))),
    ],
)
def test_what_is_accepted_and_written_back(text: str, spec: NetSpec) -> None:
    assert parse_net(text) == spec
    assert parse_net(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no network"),
        ("bridge=br0", "no network"),
        ("user=1", "no network"),
        ("user,", "no property"),
        ("user,speed=1", "no property"),
        ("user,mac", "no property"),
        ("user,mtu=1500,mtu=1500", "twice"),
        ("tap", "write tap=NAME"),
        ("tap=", "write tap=NAME"),
        ("tap=a/b", "no slash"),
        ("tap=sixteencharacters", "at most 15"),
        ("user,ifname=tap0", "tap=NAME"),
        ("tap=t,hostfwd=tcp::1-:1", "is for `user`"),
        ("user,mac=52:54:00:12:34", "52:54:00:12:34:56"),
        ("user,mac=53:54:00:12:34:56", "must be even"),
        ("user,mac=00:00:00:00:00:00", "not all bytes zero"),
        ("user,mtu=100", "576 to 65520"),
        ("user,mtu=70000", "576 to 65520"),
        ("user,mtu=x", "576 to 65520"),
        ("user,hostfwd=tcp:2222:22", "tcp::2222-:22"),
        ("user,hostfwd=sctp::1-:1", "tcp::2222-:22"),
        ("user,hostfwd=tcp::0-:22", "0 is no port"),
        ("user,hostfwd=tcp::22-:70000", "70000 is no port"),
        ("user,hostfwd=tcp:host:22-:22", "no IP address"),
        ("user,hostfwd=tcp::22-10.0.2.15:22", "leave it out"),
        ("user" + ",hostfwd=tcp::1-:1" * 65, "at most 64"),
    ],
)
def test_what_is_refused_in_one_line(text: str, why: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_net(text)
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)


def test_default_addresses_are_local_stable_and_differ() -> None:
    spec = parse_net("user")
    addresses = [default_mac(name, number, spec) for name in ("vm", "other") for number in (0, 1)]
    assert len(set(addresses)) == 4
    assert all(address[0] & 3 == 2 for address in addresses), "locally administered, no group"
    assert addresses[0] == default_mac("vm", 0, spec)
