"""Network throughput of a guest: pyvmm's netvsc beside QEMU's virtio-net, through the same passt.

    python -m tests.bench.net [--mib N] [--seconds N] [--mtu N ...] [--rounds N] [--only NAME ...]

One TCP stream from the guest to the host, and one from the host to the guest, by busybox's nc and wget, whose bytes
are counted; then both ways for some seconds by iperf3, where this host has it. All contenders get Debian's 6.1 cloud
kernel, the same initramfs but for their modules, one vCPU and 256 MiB. Only ratios of one sitting mean anything.
Where the local KVM does not run Linux all of it happens in the emulated host.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pyvmm.net.passt import Passt
from pyvmm.net.spec import parse_net
from tests.bench import driver_image
from tests.bench.boot import QEMU_COMMON, QEMU_CONSOLE, run_where_linux_runs
from tests.bench.iperf3 import serve

KERNEL = r"linux-image-6[.]1[.]0-[0-9]+-cloud-amd64"
LIMIT = 300.0
TO_HOST, TO_GUEST = 5001, 5002
IPERF = {"iperf3 to host": 5003, "iperf3 to guest": 5004}
"""Port of the server by figure."""
MAC = bytes.fromhex("525400123456")

INIT = """#!/bin/sh
export PATH=/bin:/sbin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for word in $(cat /proc/cmdline); do
	case $word in
	bench.modules=*) for module in $(echo ${word#*=} | tr , ' '); do insmod /lib/modules/$module.ko; done ;;
	bench.mib=*) mib=${word#*=} ;;
	bench.mtu=*) mtu=${word#*=} ;;
	bench.seconds=*) seconds=${word#*=} ;;
	esac
done
n=0
while [ ! -d /sys/class/net/eth0 ] && [ $n -lt 300 ]; do sleep 0.1; n=$((n + 1)); done
[ $mtu = 1500 ] || ip link set eth0 mtu $mtu
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
for turn in 1 2; do
	dd if=/dev/zero bs=64k count=$((mib * 16)) 2>/dev/null | nc 10.0.2.2 5001
	wget -q -O /dev/null http://10.0.2.2:5002/
done
if [ -x /bin/iperf3 ]; then
	iperf3 -c 10.0.2.2 -p 5003 -t $seconds >/tmp/log 2>&1 || cat /tmp/log
	iperf3 -c 10.0.2.2 -p 5004 -t $seconds -R >/tmp/log 2>&1 || cat /tmp/log
fi
poweroff -f
"""


@dataclass(frozen=True, slots=True)
class Contender:
    """A VMM with a kind of card, and the guest's modules."""

    name: str
    modules: tuple[str, ...]
    engine: str = ""  # pyvmm's; empty for QEMU


CONTENDERS = (
    Contender("netvsc kernel", ("hv_vmbus", "hv_netvsc"), "kernel"),
    Contender("netvsc user", ("hv_vmbus", "hv_netvsc"), "user"),
    Contender("virtio-net", ("virtio_pci", "virtio_net")),
)


class Server(threading.Thread):
    """The host's end: takes what comes at one port, gives `size` bytes to each caller of the other."""

    def __init__(self, size: int) -> None:
        super().__init__(daemon=True)
        self.size = size
        self.seconds: dict[int, list[float]] = {TO_HOST: [], TO_GUEST: []}
        self.wrong: list[int] = []  # bytes of uploads that ended early
        self._sockets = {port: socket.create_server(("127.0.0.1", port)) for port in self.seconds}

    def run(self) -> None:
        """Serve one after the other, in the guest's order, until the sockets are closed."""
        block = bytes(1 << 18)
        try:
            while True:
                caller, _ = self._sockets[TO_HOST].accept()
                with caller:
                    first = len(caller.recv(1 << 18))
                    begin, got = time.monotonic(), 0
                    while part := caller.recv(1 << 18):
                        got += len(part)
                    if got + first == self.size:
                        self.seconds[TO_HOST].append((time.monotonic() - begin) * self.size / got)
                    else:
                        self.wrong.append(got + first)
                caller, _ = self._sockets[TO_GUEST].accept()
                with caller:
                    # By HTTP: passt stops sending to a guest that has closed its own side.
                    while b"\r\n\r\n" not in caller.recv(1 << 12):
                        pass
                    begin = time.monotonic()
                    caller.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % self.size)
                    for _ in range(self.size // len(block)):
                        caller.sendall(block)
                    caller.shutdown(socket.SHUT_WR)
                    while caller.recv(1 << 16):
                        pass
                    self.seconds[TO_GUEST].append(time.monotonic() - begin)
        except OSError:
            pass

    def close(self) -> None:
        """Close the ports. A thread that waits in accept() keeps its port until that ends."""
        for each in self._sockets.values():
            each.shutdown(socket.SHUT_RDWR)
            each.close()
        self.join(5)


class Iperf:
    """iperf3's servers, one for each direction, each for one client."""

    def __init__(self) -> None:
        ports = {} if shutil.which("iperf3") is None else IPERF
        self._servers = {name: serve(port, "-1", "-J", output=subprocess.PIPE) for name, port in ports.items()}

    def results(self) -> dict[str, float]:
        """Return MB/s by direction, not a number for one that failed; the clients have ended."""
        found = {}
        for name, server in self._servers.items():
            try:
                told = json.loads(server.communicate(timeout=10)[0])
            except subprocess.TimeoutExpired:
                told = {"end": {}, "error": "its client has not come"}
            ends = [told["end"].get(side) for side in ("sum_sent", "sum_received")]
            sums = [each["bits_per_second"] for each in ends if each is not None]
            if not sums:
                print(f"{name}: {told.get('error')}", flush=True)
            found[name] = max(sums, default=math.nan) / 8e6
        return found

    def close(self) -> None:
        """End those whose client has not come."""
        for server in self._servers.values():
            if server.poll() is None:
                server.kill()
            server.wait()
            assert server.stdout is not None
            server.stdout.close()


def iperf() -> dict[str, bytes]:
    """Return this host's iperf3 and its libraries, by path in the guest; nothing if it has none."""
    program = shutil.which("iperf3")
    if program is None:
        print("no iperf3 here: `apt-get install iperf3` adds its figures", flush=True)
        return {}
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    found = {word for line in listed.splitlines() for word in line.split() if word.startswith("/")}
    files = {path.removeprefix("/usr").lstrip("/"): Path(path).read_bytes() for path in sorted(found)}
    return files | {"bin/iperf3": Path(program).read_bytes()}


def prepare() -> dict[str, str]:
    """Make kernel and initramfs; return their paths and the modules to load by contender."""
    return driver_image.prepare("net", KERNEL, INIT, {each.name: each.modules for each in CONTENDERS}, iperf())


def command(contender: Contender, facts: dict[str, str], words: str, link: int) -> list[str]:
    """Return the command line of one run; `link` is the descriptor of QEMU's passt."""
    if contender.engine:
        return [
            *(sys.executable, "-m", "pyvmm.cli.main", "run", "--host", "auto", "--hyperv", contender.engine),
            *("--kernel", facts["vmlinux"], "--initrd", facts["initrd"], "-m", "256M", "--net", "user"),
            *("--append", words, "--no-reboot"),
        ]
    return [
        *(facts["program"], *json.loads(facts["options"]), *QEMU_COMMON, *QEMU_CONSOLE, "-M", "pc", "-cpu", "host"),
        *("-m", "256M", "-kernel", facts["kernel"], "-initrd", facts["initrd"]),
        *("-append", f"console=ttyS0 quiet cryptomgr.notests {words}"),
        *("-netdev", f"stream,id=n,addr.type=fd,addr.str={link}"),
        *("-device", f"virtio-net-pci,netdev=n,mac={MAC.hex(':')}"),
    ]


def run(contender: Contender, facts: dict[str, str], mib: int, mtu: int, seconds: int) -> dict[str, float]:
    """Boot a guest that measures; return MB/s to the host and to the guest."""
    words = f"bench.modules={facts[contender.name]} bench.mib={mib} bench.mtu={mtu} bench.seconds={seconds}"
    server = Server(mib << 20)
    server.start()
    iperf_servers = Iperf()
    passt = None if contender.engine else Passt(parse_net("user"), MAC)
    try:
        link = -1
        if passt is not None:
            passt.wait()
            link = passt.socket.fileno()
        done = subprocess.run(
            command(contender, facts, words, link),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT,
            pass_fds=() if link < 0 else (link,),
            env=os.environ | (json.loads(facts["environment"]) if passt is not None else {}),
        )
        if server.wrong:  # by passt, which docs/devices.md tells of
            print(f"{contender.name}: uploads that ended early, at bytes {server.wrong}", flush=True)
        if not server.seconds[TO_GUEST]:
            said = f"{done.stdout[-500:]} {done.stderr[-1500:]}"
            raise RuntimeError(f"{contender.name}: {server.seconds}, wrong counts {server.wrong}; {said}")
        streams = iperf_servers.results()
    finally:
        server.close()
        iperf_servers.close()
        if passt is not None:
            passt.close()
    size = server.size / 1e6
    return {
        "to host": size / min(server.seconds[TO_HOST], default=math.nan),
        "to guest": size / min(server.seconds[TO_GUEST]),
    } | streams


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=32, help="MiB of a stream")
    parser.add_argument("--seconds", type=int, default=5, help="seconds of iperf3's streams")
    parser.add_argument("--mtu", type=int, action="append", default=[])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--only", action="append", default=[], metavar="PART", help="contenders with PART in the name"
    )
    parser.add_argument("--facts", help=argparse.SUPPRESS)  # what the outer side found
    options = parser.parse_args()
    if options.facts is None:
        return run_where_linux_runs([*sys.argv[1:], "--facts", json.dumps(prepare())], "tests.bench.net", 1024)
    facts = json.loads(options.facts)
    chosen = [each for each in CONTENDERS if not options.only or any(part in each.name for part in options.only)]
    for mtu in options.mtu or [1500]:
        found: dict[str, list[dict[str, float]]] = {each.name: [] for each in chosen}
        for turn in range(options.rounds):
            for contender in chosen:
                found[contender.name].append(run(contender, facts, options.mib, mtu, options.seconds))
                figures = {key: round(value, 2) for key, value in found[contender.name][-1].items()}
                print(f"{turn + 1}: {contender.name}, MTU {mtu}: {figures}", flush=True)
        print(f"\nMTU {mtu}, MB/s, medians; {facts['label']}; ratio to virtio-net")
        medians = {name: {key: median(each[key] for each in rows) for key in rows[0]} for name, rows in found.items()}
        for name, figures in medians.items():
            text = "".join(f"{key:>17}{value:8.2f}" for key, value in figures.items())
            if "virtio-net" in medians:
                text += "   " + ", ".join(f"{figures[key] / medians['virtio-net'][key]:.2f}" for key in figures)
            print(f"{name:16}{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
