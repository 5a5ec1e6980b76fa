"""One guest with everything: its root on storvsc, networked over netvsc, entered by sessions, its memory ballooned.

    python -m tests.bench.everything [--image NAME] [--engine kernel|user] [--cpus N] [--seconds N]

The guest is a whole Debian on a copy of debian-12-root's disk, with the kernel of an image (or `--kdir TREE`). It
needs fio and iperf3 on that disk (`pyvmm image build debian-12-root --force --include fio,iperf3`), and passt on the
host.
For `--seconds` all of this happens at once, in sessions of their own:

* fio writes and reads a file with several requests outstanding, and verifies each block by its checksum;
* a file is copied, flushed, dropped from the page cache and read again: its SHA-256 must stay;
* iperf3 sends to the host and to the guest in turns;
* random bytes of a server on the host are fetched, and their SHA-256 compared;
* the balloon takes the guest down, up to its boot size, past it (hot add) and down again, over and over.

Then the guest powers off by the shutdown service, and fsck and the files of the disk are checked from the host. Exit
status 1 if anything is not as it was. Where the local KVM does not run Linux it all happens in the emulated host.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import pty
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyvmm.api import Machine
from pyvmm.client.session import collect, open_session_at, shell_words
from pyvmm.images.debian_root import NAME, root_disk
from pyvmm.launch.build import build_config
from pyvmm.launch.options import read_keywords
from tests.bench.boot import run_where_linux_runs
from tests.bench.iperf3 import serve

HOST_MIB = 2048
BOOT_SECONDS = 240.0
COMMAND_SECONDS = 240.0
SIZES = ("256M", "512M", "1G", "384M", "768M")
"""Targets of the balloon in turn; the guest boots with 512 MiB and may grow to 1 GiB."""
FETCH_MIB = 2
FILE_MIB = 8
TROUBLE = re.compile(
    r"BUG:|WARNING:|Call Trace|Oops|I/O error|EXT4-fs error|blocked for more than|hv_\w+: .*(fail|err)"
)
FIO = (
    "fio --name=mixed --filename=/var/tmp/fio --size=8m --bsrange=4k-64k --rw=randwrite --ioengine=libaio "
    "--iodepth=8 --direct=1 --verify=sha256 --verify_fatal=1 --output-format=terse"
)


@dataclass(slots=True)
class Tally:
    """What one kind of load has done, and what was wrong."""

    name: str
    rounds: int = 0
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Guest:
    """The machine, and commands in sessions of their own from any thread."""

    def __init__(self, vm: Machine) -> None:
        self.vm = vm
        self.socket = vm._started()[0].socket

    def run(self, command: str, seconds: float = COMMAND_SECONDS) -> str:
        """Return the command's output. Raises RuntimeError if it fails."""
        session = open_session_at(self.socket)
        status, out, err, _ = collect(session, shell_words(command), seconds=seconds, limit=1 << 20)
        if status:
            raise RuntimeError(
                f"{command}: status {status}: {(err or out).decode('utf-8', 'replace').strip()[-300:]}"
            )
        return out.decode("utf-8", "replace").strip()


def load(tally: Tally, deadline: float, once: Callable[[Tally], None]) -> threading.Thread:
    """Repeat `once` on a thread until the deadline; it stops at the first thing that is wrong."""

    def work() -> None:
        while time.monotonic() < deadline and not tally.wrong:
            try:
                once(tally)
                tally.rounds += 1
            except Exception as error:
                tally.wrong.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=work, name=tally.name, daemon=True)
    thread.start()
    return thread


@contextmanager
def server(data: bytes) -> Iterator[int]:
    """Send `data` to whoever connects to a port of this host."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.sendall(data)
                except OSError:
                    continue

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


def shell(monitor: Path) -> str:
    """Run `pyvmm shell` on a terminal of 33 rows and 111 columns, type commands and return what it showed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "dumb"
        os.execv(sys.executable, [sys.executable, "-m", "pyvmm", "shell", "--socket", str(monitor)])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 33, 111, 0, 0))
    os.write(terminal, b"stty size; tty; sleep 1000\n")
    shown = b""
    ends = time.monotonic() + COMMAND_SECONDS
    typed = [(b"/dev/pts/", b"\x03"), (b"^C", b"echo status $?; exit 3\n")]
    while time.monotonic() < ends:
        try:
            shown += os.read(terminal, 4096)
        except OSError:
            break
        if typed and typed[0][0] in shown:
            time.sleep(1)  # sleep(1) is started
            os.write(terminal, typed.pop(0)[1])
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    text = shown.decode("utf-8", "replace").replace("\r", "")
    if status != 3 or "33 111" not in text or "status 130" not in text:
        raise RuntimeError(f"status {status}: {text[-300:]!r}")
    return text


def drive(guest: Guest, seconds: float) -> list[Tally]:
    """Load the guest for `seconds` and return what happened."""
    data = random.Random(16).randbytes(FETCH_MIB << 20)
    digest = hashlib.sha256(data).hexdigest()
    guest.run(f"head -c {FILE_MIB}M /dev/urandom >/var/tmp/file && sha256sum /var/tmp/file >/var/tmp/sum && sync")
    iperf = serve(5201)
    sizes = iter(SIZES * 1000)
    tallies = [Tally(name) for name in ("fio", "file", "iperf3", "fetch", "balloon")]
    ways = iter(["", "-R"] * 1000)

    def fio(tally: Tally) -> None:
        guest.run(FIO)

    def copied(tally: Tally) -> None:
        drop = "sync && echo 1 >/proc/sys/vm/drop_caches"
        guest.run(f"cd /var/tmp && cp file copy && mv copy file && {drop} && sha256sum -c sum")

    def streams(tally: Tally) -> None:
        way = next(ways)
        told = json.loads(guest.run(f"iperf3 -c 10.0.2.2 -p 5201 -t 5 {way} -J"))
        rate = told["end"]["sum_received"]["bits_per_second"] / 1e6
        tally.notes.append(f"{'to the guest' if way else 'to the host'} {rate:.1f} Mbit/s")

    def resized(tally: Tally) -> None:
        memory = guest.vm.balloon(next(sizes), timeout=COMMAND_SECONDS)
        tally.notes.append(f"{memory.actual >> 20}")

    with server(data) as port:
        fetch = f"exec 3<>/dev/tcp/10.0.2.2/{port}; sha256sum <&3"

        def fetched(tally: Tally) -> None:
            found = guest.run(f"bash -c '{fetch}'").split()[0]
            if found != digest:
                tally.wrong.append(f"{found}, not {digest}")

        deadline = time.monotonic() + seconds
        kinds = (fio, copied, streams, fetched, resized)
        threads = [load(tally, deadline, once) for tally, once in zip(tallies, kinds, strict=True)]
        for thread in threads:
            thread.join(seconds + 2 * COMMAND_SECONDS)
        for thread, tally in zip(threads, tallies, strict=True):
            if thread.is_alive():
                tally.wrong.append("does not end")
    iperf.kill()
    return tallies


def check_disk(disk: Path, wanted: str) -> list[str]:
    """Return what is wrong on the disk of the guest that has powered off."""
    wrong = []
    checked = subprocess.run(["fsck.ext4", "-f", "-n", str(disk)], capture_output=True, text=True)
    if checked.returncode:
        wrong.append(f"fsck: status {checked.returncode}: {checked.stdout[-300:]}")
    read = subprocess.run(["debugfs", "-R", "cat /var/tmp/file", str(disk)], capture_output=True)
    if hashlib.sha256(read.stdout).hexdigest() != wanted:
        wrong.append("the file's contents on the disk are not those that the guest has flushed")
    return wrong


def machine_options(arguments: argparse.Namespace, disk: Path) -> dict[str, Any]:
    kernel = {"kdir": arguments.kdir} if arguments.kdir else {"image": arguments.image}
    return {
        **kernel,
        "disk": [f"{disk},format=raw,id=root"],
        "append": "root=/dev/sda rw",
        "net": ["user"],
        "device": ["kvp", "vss"],
        "memory": "512M,max=1G",
        "cpus": arguments.cpus,
        "hyperv": arguments.engine,
    }


def inner(arguments: argparse.Namespace) -> int:
    wrong: list[str] = []
    disk = Path(arguments.inner)
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    began = time.monotonic()
    with Machine(**machine_options(arguments, disk), process=True).start() as vm:
        vm.wait_ready(BOOT_SECONDS)
        guest = Guest(vm)
        wait = "until ip -4 addr show eth0 | grep -q inet; do sleep 1; done; uname -r; cat /proc/uptime"
        if arguments.early:
            guest.run("ip link set lo up; dhclient -1 eth0", BOOT_SECONDS)
        release, uptime = guest.run(wait, BOOT_SECONDS).splitlines()
        print(f"Linux {release}, {arguments.engine} engine, {arguments.cpus} vCPUs", flush=True)
        took = time.monotonic() - began
        print(f"networked after {took:.0f} s, {uptime.split()[0]} s of the guest's", flush=True)
        if not arguments.early:
            shell(guest.socket)
            print("a shell with 33 rows and 111 columns, Ctrl-C, status 3", flush=True)
        tallies = drive(guest, arguments.seconds)
        for tally in tallies:
            print(f"{tally.name}: {tally.rounds} rounds; {', '.join(tally.notes)}", flush=True)
            wrong += [f"{tally.name}: {each}" for each in tally.wrong]
        messages = guest.run("dmesg")
        wrong += [line for line in messages.splitlines() if TROUBLE.search(line)]
        total = guest.run("sha256sum /var/tmp/file").split()[0]
        print(f"status: {vm.describe()['guest']}", flush=True)
        end = vm.shutdown(COMMAND_SECONDS)
        if end.kind != "poweroff":
            wrong.append(f"ended by {end.kind}: {end.text}")
    wrong += check_disk(disk, total)
    for line in wrong:
        print(f"WRONG {line}", flush=True)
    print("all as it was" if not wrong else f"{len(wrong)} wrong", flush=True)
    return bool(wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description="One guest with everything, under load.")
    parser.add_argument("--image", default="debian-6.1")
    parser.add_argument("--kdir")
    parser.add_argument("--engine", default="kernel", choices=("kernel", "user"))
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--early", action="store_true", help="Begin before systemd has booted, and open no shell.")
    parser.add_argument("--inner", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inner:
        return inner(arguments)
    if not root_disk().exists():
        print(f"no disk: pyvmm image build {NAME} --include fio,iperf3", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(dir=root_disk().parent) as scratch:
        disk = Path(scratch) / "root.img"
        subprocess.run(["cp", "--sparse=always", str(root_disk()), str(disk)], check=True)
        build_config(read_keywords(machine_options(arguments, disk), {}), progress=print)  # not in the emulated host
        return run_where_linux_runs([*sys.argv[1:], "--inner", str(disk)], "tests.bench.everything", HOST_MIB)


if __name__ == "__main__":
    sys.exit(main())
