"""Linux's hv_netvsc on our network card, through passt to a server beside the VMM.

One case does all; the others, of other kernels and engines, what depends on them.
"""

from __future__ import annotations

import hashlib
import http.server
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from pyvmm.images.catalog import find_image
from pyvmm.machine.config import DEFAULT_DEVICES
from pyvmm.net.spec import parse_net
from tests.support.booted import Booted

pytestmark = pytest.mark.skipif(shutil.which("passt") is None, reason="passt is not installed")
BLOB = os.urandom(1_000_000)
UPLOAD = 300_000
"""Bytes that the guest sends: busybox's nc writes a KiB at a time."""
DIGEST = hashlib.sha256(BLOB).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Gives BLOB."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BLOB)))
        self.end_headers()
        self.wfile.write(BLOB)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Its address for a guest."""
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    thread = threading.Thread(target=partial(made.serve_forever, 0.1), daemon=True)
    thread.start()
    yield f"http://10.0.2.2:{made.server_port}/"
    made.shutdown()
    thread.join()
    made.server_close()


def fetch(guest: Booted, server: str) -> None:
    """A file arrives in the guest whole."""
    assert guest.sh(f"wget -q -O /tmp/blob {server} && sha256sum </tmp/blob").split()[0] == DIGEST


def upload(guest: Booted) -> None:
    """A file arrives outside whole, though the guest closes its side at once and we read late."""
    before = guest.machine.monitor.nets().info()[0]["sent-bytes"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        guest.send(f"head -c {UPLOAD} /tmp/blob | nc 10.0.2.2 {server.getsockname()[1]}")
        server.setblocking(False)
        taken: list[socket.socket] = []

        def accepted() -> bool:
            try:
                taken.append(server.accept()[0])
            except BlockingIOError:
                return False
            return True

        guest.until(accepted, 30, "the guest's connection")
    data = bytearray()
    with taken[0] as connection:
        guest.until(lambda: guest.machine.monitor.nets().info()[0]["sent-bytes"] > before + UPLOAD // 8, 30, "data")
        connection.setblocking(False)

        def ended() -> bool:
            try:
                while part := connection.recv(1 << 18):
                    data.extend(part)
            except BlockingIOError:
                return False
            return True

        guest.until(ended, 60, "the end of the upload")
    assert bytes(data) == BLOB[:UPLOAD]


CASES = [("debian-6.1", "kernel", 2), ("debian-6.12", "user", 1), ("debian-7.2", "user", 2)]


@pytest.mark.parametrize(("image", "engine", "cpus"), CASES)
def test_linux_gets_an_address_and_carries_files(server: str, image: str, engine: str, cpus: int) -> None:
    initrd = find_image(image, features=("net",)).initrd
    devices, nets = (*DEFAULT_DEVICES, "netvsc"), (parse_net("user"),)
    with Booted(
        image, initrd=initrd, engine=engine, cpus=cpus, devices=devices, nets=nets, memory=256 << 20
    ) as guest:
        assert "inet 10.0.2.15/24" in guest.sh("ip addr show eth0")
        fetch(guest, server)
        upload(guest)
        (card,) = guest.machine.monitor.nets().info()
        assert (card["channels"], card["errors"], card["up"]) == (cpus, 0, True)
        if engine == "kernel":
            plugged_and_unplugged(guest, server)
        if cpus == 1:
            with guest.expect_reset():
                guest.send(f"wget -q -O /dev/null {server} & reboot -f")
            fetch(guest, server)
        assert not guest.log("hv_netvsc.*(fail|error|unable|invalid)|WARNING|BUG|Oops")


def plugged_and_unplugged(guest: Booted, server: str) -> None:
    """Cable, driver and card go and come back under load; the MTU changes."""
    nets = guest.machine.monitor.nets()
    nets.set_link("netvsc", False)
    guest.sh("while [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do sleep 0.1; done")
    nets.set_link("netvsc", True)
    guest.sh("while [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do sleep 0.1; done")
    up = "/etc/pyvmm/net; while ! ip route | grep -q default; do sleep 0.1; done"
    driver, device = "/sys/bus/vmbus/drivers/hv_netvsc", "$(basename $(readlink /sys/class/net/eth0/device))"
    guest.send(f"echo $$ >/tmp/loop; while :; do wget -q -O /dev/null {server}; done")
    before = nets.info()[0]["received"]
    guest.until(lambda: guest.machine.monitor.nets().info()[0]["received"] > before, 20, "traffic")
    guest.sh(f"d={device}; echo $d >{driver}/unbind; echo $d >{driver}/bind; {up}")
    guest.machine.monitor.remove_device("netvsc")
    guest.until(lambda: "DEVICE_DELETED" in [name for name, _ in guest.events], 30, "the card's end")
    guest.machine.monitor.add_device("netvsc", "again")
    guest.sh(f"while [ ! -d /sys/class/net/eth0 ]; do sleep 0.1; done; {up}")
    guest.sh("kill $(cat /tmp/loop); killall wget; true")
    guest.sh("ip link set eth0 mtu 9000; while [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do sleep 0.1; done")
    fetch(guest, server)
    assert guest.machine.monitor.nets().info()[0]["mtu"] == 9000
