"""A debugger and Linux: kernel breakpoints, steps, watchpoints and Ctrl-C while a guest works."""

from __future__ import annotations

import socket

import pytest

from pyvmm.gdb import registers
from pyvmm.gdb.packets import PacketReader, frame
from tests.support.booted import COMMAND_LIMIT, Booted

STEPS = 20
FENTRY = 5  # bytes of the NOP at a function's start, which is ftrace's


class Debugger:
    """A debugger on a socket pair, whose waits run the machine."""

    def __init__(self, guest: Booted) -> None:
        self._guest = guest
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        self._reader = PacketReader()
        self._replies: list[str] = []
        guest.machine.monitor.debug(theirs, lambda line: f"{line}!")
        assert self("QStartNoAckMode") == "OK"

    def __call__(self, packet: str) -> str:
        self.send(packet)
        return self.reply()

    def send(self, packet: str) -> None:
        self._socket.sendall(frame(packet.encode()))

    def resume(self) -> None:
        self.send("vCont;c")
        self._guest.until(lambda: self._guest.machine.state == "running", 10, "running guest")

    def interrupt(self) -> str:
        self._socket.sendall(b"\x03")
        return self.reply()

    def reply(self) -> str:
        self._guest.until(self._arrived, COMMAND_LIMIT, "reply to the debugger")
        return self._replies.pop(0)

    def _arrived(self) -> bool:
        try:
            data = self._socket.recv(1 << 16)
        except BlockingIOError:
            data = b""
        self._replies += [each.decode() for each in self._reader.feed(data) if isinstance(each, bytes)]
        return bool(self._replies)

    def register(self, name: str) -> int:
        return int.from_bytes(bytes.fromhex(self(f"p{registers.NUMBER[name]:x}")), "little")


@pytest.mark.parametrize(("engine", "cpus"), [("kernel", 2), ("user", 1)])
def test_a_debugger_stops_steps_and_watches_the_kernel(engine: str, cpus: int) -> None:
    with Booted(engine=engine, cpus=cpus) as guest:
        lines = guest.sh("grep -E ' (__x64_sys_sethostname|jiffies_64)$' /proc/kallsyms").split()
        address = {name: int(value, 16) for value, name in zip(lines[::3], lines[2::3], strict=True)}
        place = address["__x64_sys_sethostname"] + FENTRY
        gdb = Debugger(guest)
        before = gdb(f"m{place:x},10")
        assert gdb(f"Z0,{place:x},1") == "OK"
        assert gdb(f"m{place:x},10") == before
        done: list[int | None] = []
        guest.machine.agent.execute("hostname stopped", lambda stream, data: None, done.append)
        gdb.resume()
        stop = gdb.reply()
        assert "swbreak:;" in stop
        assert (gdb.register("rip"), guest.machine.state, done) == (place, "debug", [])
        assert gdb.register("rdi") >> 47 == 0x1FFFF, "a kernel address: the system call's registers"
        thread = stop.partition("thread:")[2].partition(";")[0]

        assert gdb(f"z0,{place:x},1") == "OK"
        seen = set()
        for _ in range(STEPS):
            assert gdb(f"vCont;s:{thread}").startswith("T05")
            seen.add(gdb.register("rip"))
        assert len(seen) > STEPS // 2
        assert all(abs(rip - place) < 1 << 31 for rip in seen), "no interrupt handler between them"

        watched = address["jiffies_64"]
        values = []
        for _ in range(3):
            assert gdb(f"Z2,{watched:x},8") == "OK"
            gdb.resume()
            assert f"watch:{watched:x};" in gdb.reply()
            assert gdb(f"z2,{watched:x},8") == "OK"
            values.append(int.from_bytes(bytes.fromhex(gdb(f"m{watched:x},8")), "little"))
        assert values == sorted(set(values))
        for _ in range(3):
            assert gdb(f"Z3,{watched:x},8") == "OK"
            gdb.resume()
            assert f"rwatch:{watched:x};" in gdb.reply()
            assert gdb(f"z3,{watched:x},8") == "OK"
        assert gdb("qRcmd," + b"hello".hex()) == "O" + b"hello!".hex()
        assert gdb.reply() == "OK"
        gdb.resume()
        guest.until(lambda: done, COMMAND_LIMIT, "end of the command")
        assert gdb.interrupt().startswith("T02")
        assert gdb("D") == "OK"
        assert guest.sh("hostname").strip() == "stopped"
        assert guest.log("BUG|WARNING|Oops") == ""


@pytest.mark.parametrize("engine", ["kernel", "user"])
def test_a_panic_stops_the_debugger_with_sigabrt_and_continue_ends_the_machine(engine: str) -> None:
    with Booted(engine=engine) as guest:
        gdb = Debugger(guest)
        gdb.resume()
        guest.machine.agent.execute("echo c > /proc/sysrq-trigger", lambda stream, data: None, lambda status: None)
        assert gdb.reply().startswith("T06"), "SIGABRT"
        assert (guest.machine.state, guest.machine.outcome) == ("debug", None)
        assert gdb.register("rip") >> 47 == 0x1FFFF, "in the kernel"
        assert "sysrq triggered crash" in guest.console.text
        gdb.send("vCont;c")
        assert gdb.reply() == "W01"
        outcome = guest.wait_end()
        assert (outcome.kind, "sysrq triggered crash" in outcome.text) == ("panic", True)
