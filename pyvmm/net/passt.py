"""`--net user`: passt, a program that turns the guest's TCP connections, UDP and pings into sockets of its own.

Source: passt(1), Debian 12's 0.0~git20230309 and newer. It needs no privileges: as root it becomes nobody. It
confines itself by namespaces and seccomp, and it ends when its socket is closed, so it never outlives the machine.

    guest   10.0.2.15/24            by DHCP, as with QEMU's user network; IPv6 as the host's, by its announcements
    10.0.2.2                        the gateway, and the host's own services (127.0.0.1); it answers no pings, and
                                    passes questions for names on to the host's first name server
    name servers                    by DHCP: the host's own, or 10.0.2.2 for one on the host (127.0.0.53)

The emulated host has no network. There passt gets the loopback interface and a route: the guest reaches what listens
in the emulated host.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import struct
import subprocess
from pathlib import Path

from pyvmm.errors import ConfigError, HostError
from pyvmm.net.spec import Forward, NetSpec
from pyvmm.net.stream import widen
from pyvmm.paths import INSIDE

PROGRAM = "passt"
GUEST, GATEWAY, MASK_BITS = "10.0.2.15", "10.0.2.2", 24
GATEWAY_MAC = "52:55:0a:00:02:02"
MTU = 65520
START_SECONDS = 10.0
"""Seconds for passt to answer its first frame: it takes some 30 ms, ten times that in the emulated host."""

_SIOCADDRT, _RTF_UP = 0x890B, 1
_PLACES = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


def arguments(spec: NetSpec, fd: int, *, alone: bool = False) -> list[str]:
    """Return passt's arguments for a network card. `alone`: the host has no network, only its loopback interface."""
    words = ["--foreground", "--quiet", "--stderr", "--fd", str(fd), "--mtu", str(spec.mtu or MTU)]
    words += ["-a", GUEST, "-n", str(MASK_BITS), "-g", GATEWAY, "-M", GATEWAY_MAC]
    words += ["--dns-forward", GATEWAY]  # with -D too, it would not read /etc/resolv.conf, and forward to 0.0.0.0
    if alone:
        words += ["-i", "lo", "-4"]
    for protocol, option in (("tcp", "-t"), ("udp", "-u")):
        for each in spec.forwards:
            if each.protocol == protocol:
                words += [option, f"{each.address + '/' if each.address else ''}{each.port}:{each.to}"]
        if not any(each.protocol == protocol for each in spec.forwards):
            words += [option, "none"]
    return words


class Passt:
    """One passt, started; `socket` is our end. It ends when that is closed, which is its owner's."""

    def __init__(self, spec: NetSpec, mac: bytes) -> None:
        program = shutil.which(PROGRAM, path=f"{os.environ.get('PATH', '')}:{_PLACES}")
        if program is None:
            raise ConfigError("--net user: passt is not installed; `apt-get install passt`, or use --net tap=NAME")
        for forward in spec.forwards:
            check_port(forward)
        alone = INSIDE in os.environ and not has_default_route()
        if alone:
            add_default_route()
        self._spec, self._mac = spec, mac
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        widen(self.socket)
        widen(theirs)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [program, *arguments(spec, theirs.fileno(), alone=alone)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # not for the terminal's signals
                    cwd="/",
                )
            except OSError as error:
                self.socket.close()
                raise HostError(f"--net user: cannot start {program}: {error.strerror}") from error
        probe = arp_request(mac, GUEST, GATEWAY)
        with contextlib.suppress(OSError):
            self.socket.sendall(struct.pack(">I", len(probe)) + probe)

    def wait(self) -> None:
        """Wait until it works, which the answer to an ARP request shows. Raises ConfigError with its last line if it
        does not.
        """
        usual = self.socket.gettimeout()
        self.socket.settimeout(START_SECONDS)
        try:
            if len(head := self._receive(4)) == 4:
                self._receive(struct.unpack(">I", head)[0])
                return
        except TimeoutError:
            with contextlib.suppress(OSError):  # a confined process sends no signals
                self._process.kill()
        except OSError:
            pass
        finally:
            self.socket.settimeout(usual)
        self.socket.close()
        raise ConfigError(f"--net {self._spec}: passt: {self._complaint()}")

    def _receive(self, size: int) -> bytes:
        """Return so many bytes, or less at the end."""
        data = b""
        while len(data) < size and (part := self.socket.recv(size - len(data))):
            data += part
        return data

    def _complaint(self) -> str:
        """Return the last line of a passt that has ended, or is ended now."""
        assert self._process.stderr is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1.0)
        os.set_blocking(self._process.stderr.fileno(), False)
        text = (self._process.stderr.read() or b"").decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        said = [line for line in lines if "syslog" not in line and "Don't run as root" not in line]
        return said[-1][:200] if said else f"it ended with status {self._process.returncode}"

    @property
    def status(self) -> int | None:
        """Return its exit status; None while it runs."""
        return self._process.poll()

    def close(self) -> None:
        """Close our end, by which it ends; wait for that a little."""
        self.socket.close()
        if self._process.stderr is not None:
            self._process.stderr.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2.0)


def arp_request(mac: bytes, sender: str, target: str) -> bytes:
    """Return an ARP request as the guest would send it."""
    addresses = mac + socket.inet_aton(sender) + bytes(6) + socket.inet_aton(target)
    return (b"\xff" * 6 + mac + b"\x08\x06" + struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + addresses).ljust(60, b"\0")


def check_port(forward: Forward) -> None:
    """Raise ConfigError if the host's port cannot be used: passt is content if one of IPv4 and IPv6 is free."""
    kind = socket.SOCK_STREAM if forward.protocol == "tcp" else socket.SOCK_DGRAM
    family = socket.AF_INET6 if ":" in forward.address else socket.AF_INET
    with socket.socket(family, kind) as probe:
        if forward.protocol == "tcp":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((forward.address, forward.port))
        except OSError as error:
            place = f"{forward.protocol} port {forward.port}{f' of {forward.address}' if forward.address else ''}"
            raise ConfigError(f"--net user: {place}: {error.strerror}; choose another in hostfwd=") from error


def has_default_route() -> bool:
    """Return whether this host has an IPv4 route to everywhere, not counting one over its loopback interface."""
    rows = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    return any(row[0] != "lo" and row[1] == row[7] == "00000000" for row in rows if len(row) > 7)


def add_default_route() -> None:
    """Add a route to everywhere over the loopback interface: passt wants one. Raises HostError."""
    import ctypes

    name = ctypes.create_string_buffer(b"lo")
    anywhere = struct.pack("=HH4s8x", socket.AF_INET, 0, bytes(4)) * 3  # destination, gateway, mask
    lo = ctypes.addressof(name)
    route = struct.pack("@Q48sHhQQhPQQH6x", 0, anywhere, _RTF_UP, 0, 0, 0, 0, lo, 0, 0, 0)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
            fcntl.ioctl(handle, _SIOCADDRT, ctypes.create_string_buffer(route, len(route)))
    except FileExistsError:
        pass
    except OSError as error:
        raise HostError(f"--net user: cannot add a route to the emulated host: {error.strerror}") from error
