"""passt's arguments, and a passt that runs, if there is one."""

from __future__ import annotations

import shutil
import socket

import pytest

from pyvmm.errors import ConfigError
from pyvmm.net.passt import Passt, arguments, arp_request
from pyvmm.net.spec import parse_net

MAC = bytes.fromhex("525400112233")
has_passt = pytest.mark.skipif(shutil.which("passt") is None, reason="passt is not installed")


def test_forwards_become_its_options() -> None:
    spec = parse_net("user,mtu=1500,hostfwd=tcp::2222-:22,hostfwd=udp:127.0.0.1:53-:5353")
    words = arguments(spec, 7)
    assert words[words.index("--fd") + 1] == "7"
    assert words[words.index("--mtu") + 1] == "1500"
    assert words[words.index("-t") + 1] == "2222:22"
    assert words[words.index("-u") + 1] == "127.0.0.1/53:5353"


def test_names_are_forwarded_to_the_hosts_server_which_passt_reads_only_without_one_of_ours() -> None:
    words = arguments(parse_net("user"), 3)
    assert words[words.index("--dns-forward") + 1] == "10.0.2.2"
    assert "-D" not in words


def test_no_forwards_are_said_to_be_none_and_alone_it_uses_loopback() -> None:
    words = arguments(parse_net("user"), 3, alone=True)
    assert (words[words.index("-t") + 1], words[words.index("-u") + 1]) == ("none", "none")
    assert words[words.index("-i") + 1] == "lo"


def test_the_probe_is_an_arp_request() -> None:
    frame = arp_request(MAC, "10.0.2.15", "10.0.2.2")
    assert (len(frame), frame[6:12], frame[12:14]) == (60, MAC, b"\x08\x06")


def test_without_the_program_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvmm.net.passt.shutil.which", lambda name, path: None)
    with pytest.raises(ConfigError, match="apt-get install passt"):
        Passt(parse_net("user"), MAC)


@has_passt
def test_it_starts_answers_and_ends_with_its_socket() -> None:
    passt = Passt(parse_net("user"), MAC)
    passt.socket.setblocking(False)
    passt.wait()
    assert not passt.socket.getblocking(), "as its link left it"
    passt.close()
    assert passt.status == 0


@has_passt
def test_a_port_in_use_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"tcp port {port} of 127.0.0.1: Address already in use"):
            Passt(parse_net(f"user,hostfwd=tcp:127.0.0.1:{port}-:22"), MAC)


def test_a_program_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    from pathlib import Path

    program = Path(str(tmp_path)) / "passt"
    program.write_text("#!/bin/sh\necho 'cannot do it' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/bin:/usr/bin")
    passt = Passt(parse_net("user"), MAC)
    with pytest.raises(ConfigError, match="--net user: passt: cannot do it"):
        passt.wait()
