"""Network throughput of a guest: pyvmm's netvsc beside QEMU's virtio-net, through the same passt.

    python -m tests.bench.net [--mib N] [--mtu N ...] [--rounds N] [--only NAME ...]

One TCP stream from the guest to the host, and one from the host to the guest, by busybox's nc and dd. All
contenders get Debian's 6.1 cloud kernel, the same initramfs but for their modules, one vCPU and 256 MiB. Only ratios
of one sitting mean anything. Where the local KVM does not run Linux all of it happens in the emulated host.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from statistics import median

from pyvmm.net.passt import Passt
from pyvmm.net.spec import parse_net
from tests.bench import driver_image
from tests.bench.boot import QEMU_COMMON, QEMU_CONSOLE, run_where_linux_runs

KERNEL = r"linux-image-6[.]1[.]0-[0-9]+-cloud-amd64"
LIMIT = 300.0
TO_HOST, TO_GUEST = 5001, 5002
MAC = bytes.fromhex("525400123456")

INIT = """#!/bin/sh
export PATH=/bin:/sbin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for word in $(cat /proc/cmdline); do
	case $word in
	bench.modules=*) for module in $(echo ${word#*=} | tr , ' '); do insmod /lib/modules/$module.ko; done ;;
	bench.mib=*) mib=${word#*=} ;;
	bench.mtu=*) mtu=${word#*=} ;;
	esac
done
n=0
while [ ! -d /sys/class/net/eth0 ] && [ $n -lt 300 ]; do sleep 0.1; n=$((n + 1)); done
[ $mtu = 1500 ] || ip link set eth0 mtu $mtu
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
for turn in 1 2; do
	dd if=/dev/zero bs=64k count=$((mib * 16)) 2>/dev/null | nc 10.0.2.2 5001
	nc 10.0.2.2 5002 </dev/null >/dev/null
done
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
                caller, _ = self._sockets[TO_GUEST].accept()
                with caller:
                    begin = time.monotonic()
                    for _ in range(self.size // len(block)):
                        caller.sendall(block)
                    caller.shutdown(socket.SHUT_WR)
                    while caller.recv(1 << 16):
                        pass
                    self.seconds[TO_GUEST].append(time.monotonic() - begin)
        except OSError:
            pass

    def close(self) -> None:
        for each in self._sockets.values():
            each.close()


def prepare() -> dict[str, str]:
    """Make kernel and initramfs; return their paths and the modules to load by contender."""
    return driver_image.prepare("net", KERNEL, INIT, {each.name: each.modules for each in CONTENDERS}, {})


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


def run(contender: Contender, facts: dict[str, str], mib: int, mtu: int) -> dict[str, float]:
    """Boot a guest that measures; return MB/s to the host and to the guest."""
    words = f"bench.modules={facts[contender.name]} bench.mib={mib} bench.mtu={mtu}"
    server = Server(mib << 20)
    server.start()
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
    finally:
        server.close()
        if passt is not None:
            passt.close()
    if not all(server.seconds.values()):
        raise RuntimeError(f"{contender.name}: {server.seconds}; {done.stdout[-500:]} {done.stderr[-1500:]}")
    size = server.size / 1e6
    return {
        "to host": size / min(server.seconds[TO_HOST]),
        "to guest": size / min(server.seconds[TO_GUEST]),
    }


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=32, help="MiB of a stream")
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
                found[contender.name].append(run(contender, facts, options.mib, mtu))
                print(f"{turn + 1}: {contender.name}, MTU {mtu}: {found[contender.name][-1]}", flush=True)
        print(f"\nMTU {mtu}, MB/s, medians; {facts['label']}; ratio to virtio-net")
        medians = {name: {key: median(each[key] for each in rows) for key in rows[0]} for name, rows in found.items()}
        for name, figures in medians.items():
            text = "".join(f"{key:>10}{value:9.2f}" for key, value in figures.items())
            if "virtio-net" in medians:
                text += "   " + ", ".join(f"{figures[key] / medians['virtio-net'][key]:.2f}" for key in figures)
            print(f"{name:16}{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
