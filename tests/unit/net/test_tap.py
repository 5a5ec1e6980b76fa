"""The tap device of a host that lets us make one, in a network namespace of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.errors import ConfigError
from pyvmm.net.tap import open_tap

SCRIPT = """
import fcntl, os, socket, struct, sys
from pyvmm.loop import Loop
from pyvmm.net.tap import TapLink, open_tap
from pyvmm.net.checksum import checksum

loop, name = Loop(), "t0"
link = TapLink(loop, open_tap(name), name)
control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def address(text): return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))
fcntl.ioctl(control, 0x8916, struct.pack("16s16s8x", name.encode(), address("10.9.0.1")))
fcntl.ioctl(control, 0x891c, struct.pack("16s16s8x", name.encode(), address("255.255.255.0")))
fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", name.encode(), 0x41))
hardware = fcntl.ioctl(control, 0x8927, struct.pack("16s16x", name.encode()))[18:24]
mac, got = bytes.fromhex("525400aabbcc"), []
link.start(lambda: got.extend(bytes(each) for each in link.read()), lambda: None, print)

def wait(wanted):
    for _ in range(200):
        found = [each for each in got if wanted(each)]
        if found:
            return found[0]
        loop.step(0.05)
    sys.exit(f"nothing came: {got}")

ours, host = socket.inet_aton("10.9.0.2"), socket.inet_aton("10.9.0.1")
head = struct.pack("!HHBBH", 1, 0x800, 6, 4, 2) + mac + ours + hardware + host
arp = hardware + mac + b"\\x08\\x06" + head
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.sendto(b"x", ("10.9.0.2", 7))
wait(lambda each: each[12:14] == b"\\x08\\x06")
link.write([[bytes(10), arp]])
udp.sendto(b"hello", ("10.9.0.2", 7))
frame = wait(lambda each: each[12:14] == b"\\x08\\x00" and each.endswith(b"hello"))
pseudo = frame[26:34] + struct.pack("!HH", 17, len(frame) - 34)
print("checksum", checksum(pseudo + frame[34:]))

# a datagram whose checksum the kernel finishes
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("10.9.0.1", 9))
body = struct.pack("!HHHH", 7, 9, 12, 0) + b"back"
start = ~checksum(ours + host + struct.pack("!HH", 17, 12)) & 0xFFFF
ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 32, 0, 0, 64, 17, 0, ours, host)
ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
body = body[:6] + struct.pack("!H", start) + body[8:]
link.write([[struct.pack("<BBHHHH", 1, 0, 0, 0, 34, 6), hardware + mac + b"\\x08\\x00", ip + body]])
udp.settimeout(5)
print(udp.recv(100))
link.close()
"""


def _can_unshare() -> bool:
    return Path("/dev/net/tun").exists() and os.geteuid() == 0


@pytest.mark.skipif(not _can_unshare(), reason="needs root and /dev/net/tun")
def test_frames_pass_with_checksums_finished_by_either_side(tmp_path: Path) -> None:
    script = tmp_path / "tap.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        ["unshare", "-n", sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "checksum 0\nb'back'\n", "")


@pytest.mark.skipif(not _can_unshare(), reason="needs root and /dev/net/tun")
def test_an_interface_that_is_no_tap_is_one_line() -> None:
    with pytest.raises(ConfigError, match="no tap device"):
        open_tap("lo")


def test_without_the_device_the_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvmm.net.tap.DEVICE", "/dev/net/absent")
    with pytest.raises(ConfigError, match="load the module tun"):
        open_tap("tap0")
