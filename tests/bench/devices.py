"""All devices in one real guest, with traffic: sessions, services, bind, removal, reset, reboot and kexec.

    python -m tests.bench.devices [--image NAME] [--engine kernel|user] [--cpus N] [--only NAME ...]

Each check is one line, `ok` or `WRONG` with the reason; exit status 1 if one is wrong. While the bus is exercised the
guest writes and reads its disk, fetches from the host by its network card, copies in a shared folder and sends
through a session, all the time; after each step all four must go on, and the kernel's log must be clean. Where the
local KVM does not run Linux it all happens in the emulated host.
"""

from __future__ import annotations

import argparse
import http.server
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64decode
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pyvmm.api import Machine
from pyvmm.client.session import Session, collect, login_words, open_session_at, shell_words
from pyvmm.errors import PyvmmError
from pyvmm.launch.build import build_config
from pyvmm.launch.options import read_keywords
from pyvmm.session_protocol import INPUT_LIMIT
from tests.bench.boot import run_where_linux_runs

HOST_MIB = 1536
SECONDS = 120.0
"""Time limit of a step: the emulated host may be slow."""
TROUBLE = re.compile(r"BUG:|WARNING:|Call Trace|Oops|blocked for more than|general protection")
BUSY = 35_000
DEVICES = ("kvp", "vss", "fcopy", "keyboard", "echo")
CYCLED = ("storvsc", "netvsc", "kvp", "vss", "fcopy", "keyboard", "heartbeat", "shutdown", "timesync", "hv-balloon")
"""Devices that are unbound and bound, and removed and brought back; the first two under load."""
BUS = "/sys/bus/vmbus"

TRAFFIC = """
echo 0 >/tmp/disk.count; echo 0 >/tmp/net.count; echo 0 >/tmp/share.count
count() { read -r n </tmp/$1.count; echo $((n + 1)) >/tmp/$1.new; mv /tmp/$1.new /tmp/$1.count; }
( while :; do
	disk=$(ls /dev/sd? 2>/dev/null | head -n 1)
	if [ -b "$disk" ] && dd if=/tmp/block of=$disk bs=64k count=16 conv=fsync 2>/dev/null && sync &&
		echo 1 >/proc/sys/vm/drop_caches && dd if=$disk bs=64k count=16 2>/dev/null | cmp -s - /tmp/block; then
		count disk
	else
		sleep 0.2
	fi
done ) </dev/null >/dev/null 2>&1 &
( while :; do
	if timeout 20 wget -q -O /tmp/fetched http://10.0.2.2:PORT/block && cmp -s /tmp/fetched /share/block; then
		count net
	else
		for card in /sys/class/net/eth*; do
			[ -d $card ] && timeout 8 udhcpc -n -q -t 3 -T 1 -i ${card##*/} -s /etc/pyvmm/dhcp
		done
		sleep 0.2
	fi
done ) </dev/null >/dev/null 2>&1 &
( while :; do
	cp /share/block /share/copy && cmp -s /share/copy /share/block && count share || sleep 0.2
done ) </dev/null >/dev/null 2>&1 &
"""


class Check:
    """Runs the checks and prints a line for each."""

    def __init__(self, only: list[str]) -> None:
        self.only = only
        self.wrong = 0

    def run(self, name: str, what: Callable[[], object]) -> None:
        if self.only and not any(each in name for each in self.only):
            return
        began = time.monotonic()
        try:
            told = what()
            state, more = "ok", "" if told is None else str(told)
        except Exception as error:
            self.wrong += 1
            state, more = "WRONG", f"{type(error).__name__}: {error}"
        print(f"{state:5} {name:28} {time.monotonic() - began:6.1f} s  {more}", flush=True)


def until(what: str, condition: Callable[[], object], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(PyvmmError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not after {seconds:.0f} s")
        time.sleep(0.5)


class Guest:
    """The machine under test."""

    def __init__(self, vm: Machine, share: Path, port: int) -> None:
        self.vm = vm
        self.share = share
        self.port = port
        self.socket = vm._started()[0].socket
        self.stream: threading.Thread | None = None
        self.streamed = 0

    def run(self, command: str, seconds: float = SECONDS) -> tuple[int, str]:
        session = open_session_at(self.socket)
        status, out, err, _ = collect(session, shell_words(command), seconds=seconds, limit=1 << 20)
        return status, (out + err).decode("utf-8", "replace").strip()

    def must(self, command: str, seconds: float = SECONDS) -> str:
        status, text = self.run(command, seconds)
        if status:
            raise RuntimeError(f"{command}: status {status}: {text[-200:]}")
        return text

    def command(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pyvmm", *words], capture_output=True, text=True, timeout=SECONDS
        )
        if done.returncode:
            raise RuntimeError(f"pyvmm {' '.join(words)}: status {done.returncode}: {done.stderr.strip()[-300:]}")
        return done.stdout + done.stderr

    def states(self) -> dict[str, str]:
        """Return the state of each device's primary channel, by name."""
        return {row["name"]: row["state"] for row in reversed(self.vm.describe()["vmbus"])}

    # Traffic

    def begin_traffic(self) -> None:
        self.must("head -c 1048576 /dev/urandom >/tmp/block && cp /tmp/block /share/block")
        self.must(TRAFFIC.replace("PORT", str(self.port)))
        if self.stream is None:
            self.stream = threading.Thread(target=self._stream, daemon=True)
            self.stream.start()

    def _stream(self) -> None:
        while True:
            try:
                session = open_session_at(self.socket)
                with session:
                    session.start(shell_words("while :; do head -c 65536 /dev/zero; sleep 0.2; done"))
                    session.connection.settimeout(SECONDS)
                    while session.status is None:
                        self.streamed += sum(len(data) for _, data in session.receive())
            except (PyvmmError, OSError):
                time.sleep(0.5)

    def counts(self) -> dict[str, int]:
        text = self.must("cat /tmp/disk.count /tmp/net.count /tmp/share.count").split()
        return dict(zip(("disk", "net", "share"), map(int, text), strict=True)) | {"session": self.streamed}

    def goes_on(self) -> str:
        """Wait until all traffic has advanced. Raises TimeoutError naming what has not."""
        before = self.counts()
        still = set(before)

        def moved() -> bool:
            now = self.counts()
            still.intersection_update(name for name in before if now[name] <= before[name])
            return not still

        try:
            until("traffic", moved)
        except TimeoutError as error:
            about = self.run("ls /dev/sd?; ip addr show eth0; dmesg | tail -n 5")[1]
            raise TimeoutError(f"{', '.join(sorted(still))}: no progress; {self.states()}; {about}") from error
        return ""

    def log_is_clean(self) -> None:
        found = [line for line in self.must("dmesg").splitlines() if TROUBLE.search(line)]
        if found:
            raise RuntimeError(f"{len(found)} lines, first: {found[0]}")


# Sessions


def read_until(session: Session, wanted: bytes, seen: bytearray) -> None:
    deadline = time.monotonic() + SECONDS
    while wanted not in seen and session.status is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {wanted!r} in {bytes(seen[-200:])!r}")
        if select.select([session.connection], [], [], 1)[0]:
            for _, data in session.receive():
                seen += data


def shells(guest: Guest) -> str:
    """Three shells at once, each with its size; Ctrl-C in one leaves the others alone; each its own status."""
    sessions = [open_session_at(guest.socket) for _ in range(3)]
    screens = [bytearray() for _ in sessions]
    for number, session in enumerate(sessions):
        session.start(login_words(), window=(20 + number, 70 + number))
    for number, (session, screen) in enumerate(zip(sessions, screens, strict=True)):
        session.write(b"stty size; tty; echo $((40 + 2))\r")
        read_until(session, b"%d %d" % (20 + number, 70 + number), screen)
        read_until(session, b"42", screen)
    for session, screen in zip(sessions, screens, strict=True):
        until_ready(session, screen)
        session.write(b"echo begun; sleep 1000\r")
        read_until(session, b"begun\r\n", screen)
    time.sleep(1)
    until_ready(sessions[1], screens[1])
    sessions[1].write(b"\x03")
    until_ready(sessions[1], screens[1])
    sessions[1].write(b"echo status $?\r")
    read_until(sessions[1], b"status 130", screens[1])
    sessions[0].resize(50, 99)
    for number, (session, screen) in enumerate(zip(sessions, screens, strict=True)):
        until_ready(session, screen)
        if number != 1:
            session.write(b"\x03")
            until_ready(session, screen)
        session.write(b"stty size; exit %d\r" % (number + 5))
        read_until(session, b"never said", screen)
    terminals = {line for screen in screens for line in re.findall(rb"/dev/pts/\d+", screen)}
    statuses = [session.status for session in sessions]
    for session in sessions:
        session.close()
    if statuses != [5, 6, 7] or b"50 99" not in screens[0] or len(terminals) != 3:
        raise RuntimeError(f"statuses {statuses}, terminals {terminals}, {bytes(screens[0][-100:])!r}")
    return "sizes, Ctrl-C, resize, statuses 5 6 7"


def until_ready(session: Session, seen: bytearray) -> None:
    while not session.ready_for_input and session.status is None:
        for _, data in session.receive():
            seen += data


def statuses(guest: Guest) -> str:
    wanted = {
        "true": 0,
        "exit 7": 7,
        "exit 255": 255,
        "/etc/passwd": 126,
        "/no/such": 127,
        "kill -9 $$": 137,
        "kill -SEGV $$": 139,
    }
    found = {command: guest.run(command)[0] for command in wanted}
    if found != wanted:
        raise RuntimeError(str(found))
    return f"{list(wanted.values())}"


def signals(guest: Guest) -> str:
    """Signals that a client forwards: the command's own end, and one that it handles."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        with open_session_at(guest.socket) as session:
            seen = bytearray()
            session.start(shell_words("echo begun; exec sleep 1000"))
            read_until(session, b"begun", seen)
            time.sleep(0.2)
            session.kill(number)
            read_until(session, b"never said", seen)
            if session.status != 128 + number:
                raise RuntimeError(f"{number.name}: status {session.status}")
    with open_session_at(guest.socket) as session:
        seen = bytearray()
        session.start(shell_words("trap 'echo got; exit 3' USR1; echo begun; while :; do sleep 0.1; done"))
        read_until(session, b"begun", seen)
        session.kill(signal.SIGUSR1)
        read_until(session, b"never said", seen)
        if session.status != 3 or b"got" not in seen:
            raise RuntimeError(f"handled: {session.status}, {bytes(seen)!r}")
    return "INT TERM HUP QUIT USR1 USR2, and one handled"


def piped(guest: Guest) -> str:
    """Input by a pipe and its end: the command answers after it, as wc and sha256sum do."""
    data = os.urandom(300_000)
    with open_session_at(guest.socket) as session:
        seen = bytearray()
        session.start(shell_words("wc -c; echo after"))
        for at in range(0, len(data), INPUT_LIMIT):
            until_ready(session, seen)
            session.write(data[at : at + INPUT_LIMIT])
        until_ready(session, seen)
        session.write(b"")
        read_until(session, b"never said", seen)
        if session.status or seen.split() != [b"300000", b"after"]:
            raise RuntimeError(f"{session.status}: {bytes(seen)!r}")
    return "300,000 bytes, then the end"


def round_trips(guest: Guest) -> str:
    """`vm.run` over sockets against the serial agent."""
    guest.vm.run("true", timeout=SECONDS)
    told = []
    for name, command in (("true", "true"), (f"{BUSY} bytes", f"head -c {BUSY} /dev/zero | tr '\\0' x")):
        began = time.monotonic()
        completed = guest.vm.run(command, timeout=SECONDS)
        session = time.monotonic() - began
        began = time.monotonic()
        reply = guest.vm.qmp("x-execute", {"command": command, "timeout": 100}, timeout=SECONDS)
        serial = time.monotonic() - began
        if b64decode(reply["stdout"]).decode() != completed.stdout:
            raise RuntimeError(f"{name}: {len(completed.stdout)} bytes by the session")
        told.append(f"{name}: session {session:.2f}, serial {serial:.2f} s ({serial / session:.1f})")
    return "; ".join(told)


# Services


def kvp(guest: Guest) -> str:
    guest.command("kvp", "--set", "color=blue")
    until("the value", lambda: "blue" in guest.run("tr '\\0' ' ' </var/lib/hyperv/.kvp_pool_0")[1])
    until("the address", lambda: "10.0.2.15" in guest.command("status"))
    card = guest.command("kvp", "--card", "netvsc")
    if "10.0.2.15/24" not in card or "10.0.2.2" not in card:
        raise RuntimeError(card)
    words = "netvsc=10.0.2.15/24,10.9.9.9/24,gateway=10.0.2.2,dns=10.0.2.3"
    guest.command("kvp", "--set-card", words)
    guest.must("ip addr show eth0 | grep -q 10.9.9.9/24 && ip route | grep -q 'default via 10.0.2.2'")
    guest.command("kvp", "--set-card", "netvsc=dhcp")
    until("the lease", lambda: not guest.run("! ip addr | grep -q 10.9.9.9 && ip addr | grep -q 10.0.2.15")[0])
    return " ".join(card.split())


def fcopy(guest: Guest) -> str:
    data = os.urandom(50_000)
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        guest.command("fcopy", file.name, "/tmp/from-host/", "--parents")
        guest.must(f"cp /tmp/from-host/{Path(file.name).name} /share/copied")
    if (guest.share / "copied").read_bytes() != data:
        raise RuntimeError("the file differs")
    return "50,000 bytes"


def copied(guest: Guest) -> str:
    guest.command("cp", ":/tmp/from-host", str(guest.share))
    return guest.command("exec", "--", "uname", "-r").strip()


def keyboard(guest: Guest) -> str:
    guest.must("echo 1 >/proc/sys/kernel/sysrq; dmesg -c >/dev/null")
    guest.vm.monitor("sendkey alt-sysrq-h")
    until("SysRq's help", lambda: "sysrq: HELP" in guest.run("dmesg")[1], 20)
    return "Alt-SysRq-h"


def vss(guest: Guest) -> str:
    guest.vm.qmp("x-vss-freeze", {"seconds": 30}, timeout=SECONDS)
    guest.vm.qmp("x-vss-thaw", timeout=SECONDS)
    return ""


def echo(guest: Guest) -> str:
    guest.must("cp /share/uio_echo /tmp")
    number = guest.must("grep -l -r . /sys/class/uio/*/name >/dev/null; ls /sys/class/uio").split()
    for each in number:
        status, text = guest.run(f"/tmp/uio_echo -u {each.removeprefix('uio')} echo hello", 20)
        if status == 0 and text == "hello":
            use = f"/tmp/uio_echo -u {each.removeprefix('uio')}"
            return guest.must(f"{use} pingpong 200 1000 && {use} pages 100000")
    raise RuntimeError(f"{number}: {text}")


def sub_channels(guest: Guest) -> str:
    """Two sub-channels are driven, closed, and taken with their device."""
    guest.must("(for n in 0 1 2 3; do timeout 15 /tmp/uio_echo -u $n channels 2 100 && break; done) >/tmp/log 2>&1 &")

    def rows() -> list[str]:
        return [row["state"] for row in guest.vm.describe()["vmbus"] if row["name"] == "echo"]

    until("open sub-channels", lambda: rows() == ["open"] * 3)
    packets = [row.get("packets-in", 0) for row in guest.vm.describe()["vmbus"] if row["name"] == "echo"]
    until("their end", lambda: rows() == ["offered"])
    return f"packets {packets}"


# The bus


def unbound(guest: Guest, name: str) -> str:
    """Unbind the device's driver and bind it again."""
    instance = next(row["guid"] for row in guest.vm.describe()["vmbus"] if row["name"] == name)
    driver = Path(guest.must(f"readlink {BUS}/devices/{instance}/driver")).name
    guest.must(f"echo {instance} >{BUS}/drivers/{driver}/unbind")
    until("the channel's end", lambda: guest.states()[name] != "open")
    guest.must(f"echo {instance} >{BUS}/drivers/{driver}/bind")
    until("the channel", lambda: guest.states()[name] == "open" or name in ("echo", "fcopy"))
    guest.goes_on()
    return driver


def removed(guest: Guest, name: str) -> str:
    """Rescind the device and offer it again."""
    guest.vm.qmp("device_del", {"id": name})
    until("its end", lambda: name not in guest.states())
    guest.vm.qmp("device_add", {"driver": name, "id": name}, timeout=SECONDS)
    until("the channel", lambda: guest.states().get(name) == "open" or name in ("echo", "fcopy"))
    guest.goes_on()
    return ""


def restarted(guest: Guest, how: Callable[[], object]) -> str:
    """The guest starts anew, by `how`, with its traffic under way; all works again in the new one."""
    before = guest.must("cat /proc/sys/kernel/random/boot_id")
    how()
    until("another boot", lambda: guest.run("cat /proc/sys/kernel/random/boot_id")[1] not in (before, ""))
    guest.begin_traffic()
    guest.goes_on()
    guest.log_is_clean()
    until("all devices", lambda: all(state == "open" for name, state in guest.states().items() if name in CYCLED[:2]))
    return f"now {guest.must('cat /proc/uptime').split()[0]} s up"


def kexec(guest: Guest) -> None:
    load = "/share/ld.so --library-path /share/lib /share/kexec"
    guest.must(f"{load} -s -l /share/vmlinuz --initrd=/share/initrd --reuse-cmdline")
    with suppress(PyvmmError):
        guest.run(
            "cp /share/ld.so /share/kexec /tmp && cp -r /share/lib /tmp && "
            "/tmp/ld.so --library-path /tmp/lib /tmp/kexec -e",
            20,
        )


def checks(guest: Guest, check: Check) -> None:
    check.run("shells at once", lambda: shells(guest))
    check.run("exit statuses", lambda: statuses(guest))
    check.run("signals", lambda: signals(guest))
    check.run("input by a pipe", lambda: piped(guest))
    check.run("vm.run", lambda: round_trips(guest))
    check.run("kvp", lambda: kvp(guest))
    check.run("fcopy", lambda: fcopy(guest))
    check.run("cp, exec", lambda: copied(guest))
    check.run("keyboard", lambda: keyboard(guest))
    check.run("freeze and thaw", lambda: vss(guest))
    check.run("echo", lambda: echo(guest))
    check.run("echo's sub-channels", lambda: sub_channels(guest))
    check.run("log so far", guest.log_is_clean)
    check.run("traffic", lambda: (guest.begin_traffic(), guest.goes_on())[1])
    for name in CYCLED:
        check.run(f"unbind {name}", lambda name=name: unbound(guest, name))  # type: ignore[misc]
    for name in CYCLED:
        check.run(f"remove {name}", lambda name=name: removed(guest, name))  # type: ignore[misc]
    check.run("log after that", guest.log_is_clean)
    check.run("reset", lambda: restarted(guest, guest.vm.reset))
    check.run("reboot", lambda: restarted(guest, lambda: guest.run("reboot -f", 20)))
    check.run("kexec", lambda: restarted(guest, lambda: kexec(guest)))
    check.run("shells again", lambda: shells(guest))
    check.run("power-off", lambda: guest.vm.shutdown(SECONDS).kind)


def programs(share: Path, options: dict[str, object]) -> None:
    """Put into the share what the guest's image lacks: a program for the echo device, kexec and what to go on to."""
    from pyvmm.images.packages import find_package
    from tests.support import kexec as kexec_support
    from tests.support import uio_guest

    subprocess.run(["gcc", "-O2", "-static", "-o", share / "uio_echo", uio_guest.SOURCE], check=True)
    config = build_config(read_keywords(options, {}))
    assert config.initrd is not None
    (share / "initrd").write_bytes(config.initrd.read_bytes())
    (share / "vmlinuz").write_bytes((config.kernel.parent / "vmlinuz").read_bytes())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        kexec_support._unpack(find_package("kexec-tools", ["bookworm"]), folder)
        program = next(path for path in folder.glob("**/sbin/kexec") if path.is_file())
        (share / "lib").mkdir()
        (share / "kexec").write_bytes(program.read_bytes())
        (share / "ld.so").write_bytes(kexec_support.LOADER.read_bytes())
        places = [*kexec_support.LIBRARIES, *folder.glob(f"usr/{kexec_support.INSIDE}")]
        for path in kexec_support._libraries(program, places):
            (share / "lib" / path.name).write_bytes(path.read_bytes())
    for name in ("uio_echo", "kexec", "ld.so"):
        (share / name).chmod(0o755)


def inner(arguments: argparse.Namespace) -> int:
    share = Path(arguments.inner)
    options = machine_options(arguments, share)
    block = share

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object, **more: object) -> None:
            super().__init__(*args, directory=str(block), **more)  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    check = Check(arguments.only)
    with Machine(**options, process=True).start() as vm:  # type: ignore[arg-type]
        vm.wait_ready(SECONDS)
        guest = Guest(vm, share, server.server_port)
        print(f"Linux {guest.must('uname -r')}, {arguments.engine} engine, {arguments.cpus} vCPUs", flush=True)
        checks(guest, check)
    print("all ok" if not check.wrong else f"{check.wrong} wrong", flush=True)
    return bool(check.wrong)


def machine_options(arguments: argparse.Namespace, share: Path) -> dict[str, object]:
    return {
        "image": arguments.image,
        "disk": [f"{share.parent / 'disk.img'},format=raw"],
        "net": ["user"],
        "device": list(DEVICES),
        "share": [f"{share}:/share"],
        "memory": "320M",
        "cpus": arguments.cpus,
        "hyperv": arguments.engine,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="All devices in one real guest, with traffic.")
    parser.add_argument("--image", default="debian-6.1")
    parser.add_argument("--engine", default="kernel", choices=("kernel", "user"))
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="Checks with this in their name.")
    parser.add_argument("--inner", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inner:
        return inner(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        share = Path(scratch) / "share"
        share.mkdir()
        with (Path(scratch) / "disk.img").open("wb") as file:
            file.truncate(64 << 20)
        programs(share, machine_options(arguments, share))
        return run_where_linux_runs([*sys.argv[1:], "--inner", str(share)], "tests.bench.devices", HOST_MIB)


if __name__ == "__main__":
    sys.exit(main())
