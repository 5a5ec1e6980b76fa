"""A debugger and a machine with a tiny guest: stops, steps, breakpoints, threads, and how the two part."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvmm.client.qmp import Client, Refused
from pyvmm.gdb.breakpoints import OUT
from pyvmm.gdb_place import Place
from pyvmm.host.inside import inside, socket_path
from pyvmm.kvm import Kvm
from pyvmm.launch.session import Session
from pyvmm.machine import Machine, MachineConfig
from pyvmm.machine.debug_probe import find_means
from tests.support.flooded import ENTRY, MEMORY, kernel
from tests.support.gdb_client import GdbClient

pytestmark = pytest.mark.kvm

LOOP, STORE, COUNT, JUMP = ENTRY, ENTRY + 2, ENTRY + 7, ENTRY + 10
CODE = bytes.fromhex("89 D8 A300002000 83C101 EBF4")
"""again: mov eax, ebx; mov [0x200000], eax; add ecx, 1; jmp again"""
LIMIT = 20.0


@pytest.fixture
def folder(kvm: Kvm, tmp_path: Path) -> Path:
    (tmp_path / "kernel").write_bytes(kernel(CODE))
    return tmp_path


@contextmanager
def running(folder: Path, *, gdb: Place | None = None, **options: object) -> Iterator[Machine]:
    """A machine whose loop runs on a thread; its monitor is at folder/s."""
    config = MachineConfig(kernel=folder / "kernel", memory=MEMORY, entry="pvh", engine="user", **options)  # type: ignore[arg-type]
    with Session(config, sockets=[folder / "s"], gdb=gdb) as session:
        session.start()
        thread = threading.Thread(target=session.machine.run)
        thread.start()
        try:
            yield session.machine
        finally:
            session.loop.post(session.machine.quit)
            thread.join(LIMIT)


def monitor(folder: Path) -> Client:
    return Client(Path(socket_path(folder / "s")))


def attach(folder: Path) -> GdbClient:
    """A debugger by the monitor's connection."""
    client = monitor(folder)
    client.execute("x-gdb")
    connection, first = client.detach()
    assert not first
    return GdbClient(connection)


def status(folder: Path) -> str:
    with monitor(folder) as client:
        found: str = client.execute("query-status")["status"]
        return found


def soon(folder: Path, wanted: str) -> None:
    until = time.monotonic() + LIMIT
    while status(folder) != wanted:
        assert time.monotonic() < until, f"the machine is {status(folder)}, not {wanted}"


@pytest.mark.parametrize("cpus", [1, 2])
def test_it_stops_shows_registers_and_memory_and_goes_on(folder: Path, cpus: int) -> None:
    with running(folder, cpus=cpus) as machine, attach(folder) as gdb:
        assert status(folder) == "debug"
        assert gdb("?").startswith("T05")
        assert gdb.read(ENTRY, len(CODE)) == CODE
        gdb.set_register("rbx", 0x1234)
        gdb.set_register("xmm3", 7 << 64)
        assert (gdb.register("rbx"), gdb.register("xmm3")) == (0x1234, 7 << 64)
        assert ENTRY <= gdb.register("rip") < ENTRY + len(CODE)
        assert gdb.register("cr0") & 1
        gdb.set_register("rip", LOOP)
        gdb.send("vCont;c")
        until = time.monotonic() + LIMIT
        while machine.memory.read(0x200000, 2) != b"\x34\x12" and time.monotonic() < until:
            time.sleep(0.01)
        assert gdb.interrupt().startswith("T02")
        assert gdb.read(0x200000, 4) == bytes.fromhex("34120000")
        assert gdb("M200000,4:05060708") == "OK"
        assert gdb.read(0x1FFFFC, 8) == bytes.fromhex("0000000005060708")
        assert gdb("qfThreadInfo") == ("m1,2" if cpus == 2 else "m1")
        assert bytes.fromhex(gdb(f"qThreadExtraInfo,{cpus}")).endswith(
            b"[not started]" if cpus == 2 else b"[running]"
        )
        assert gdb("D") == "OK"
        soon(folder, "running")


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("kind", ["Z0", "Z1"])
def test_it_stops_at_breakpoints_before_the_instruction(folder: Path, kvm: Kvm, cpus: int, kind: str) -> None:
    reason = "hwbreak" if kind == "Z1" and find_means(kvm).breakpoints else "swbreak"  # else a patch, too
    with running(folder, cpus=cpus) as machine, attach(folder) as gdb:
        assert gdb(f"{kind},{COUNT:x},1") == "OK"
        assert gdb.read(ENTRY, len(CODE)) == CODE, "breakpoints are not seen"
        if kind == "Z0":
            assert machine.memory.read(COUNT, 2) in (OUT, b"\xcc\xc1")
        for _ in range(3):
            stop = gdb("vCont;c")
            assert stop.startswith("T05")
            assert f"thread:1;{reason}:;" in stop
            assert gdb.register("rip") == COUNT
            counted = gdb.register("rcx")
            assert gdb(f"z{kind[1]},{COUNT:x},1") == "OK"
            assert gdb("vCont;s:1").startswith("T05")
            assert (gdb.register("rip"), gdb.register("rcx")) == (JUMP, counted + 1)
            assert gdb(f"{kind},{COUNT:x},1") == "OK"
        assert gdb("D") == "OK"
        soon(folder, "running")
        assert machine.memory.read(ENTRY, len(CODE)) == CODE


def test_it_steps_one_instruction_or_a_range(folder: Path) -> None:
    with running(folder), attach(folder) as gdb:
        gdb.set_register("rip", LOOP)
        seen = []
        for _ in range(5):
            assert gdb("vCont;s:1").startswith("T05")
            seen.append(gdb.register("rip"))
        assert seen == [STORE, COUNT, JUMP, LOOP, STORE]
        assert status(folder) == "debug"
        assert gdb(f"vCont;r{LOOP:x},{JUMP:x}:1").startswith("T05")
        assert gdb.register("rip") == JUMP
        gdb.send(f"vCont;r{LOOP:x},{JUMP + 2:x}:1")  # never left
        assert gdb.interrupt().startswith("T02")


def test_a_breakpoint_where_two_bytes_do_not_fit_takes_a_debug_register(folder: Path, kvm: Kvm) -> None:
    means = find_means(kvm)
    (folder / "kernel").write_bytes(kernel(bytes.fromhex("90 90 83C101 72FB EBF7")))  # 72 FB leads to the third byte
    with running(folder) as machine, attach(folder) as gdb:
        if not (means.int3 or means.breakpoints):
            assert gdb(f"Z0,{ENTRY + 1:x},1") == "E1c", "nothing on this KVM can stop there"
            return
        assert gdb(f"Z0,{ENTRY + 1:x},1") == "OK"
        patched = machine.memory.read(ENTRY + 1, 1) != b"\x90"  # by INT3
        for address in range(0x1000, 0x1003):
            assert gdb(f"Z1,{address:x},1") == "OK"
        assert gdb("Z1,5000,1") == ("OK" if patched else "E1c")
        assert "swbreak" in gdb("vCont;c")
        assert gdb.register("rip") == ENTRY + 1


def test_it_stops_after_the_instruction_that_writes_watched_memory(folder: Path) -> None:
    with running(folder, cpus=2) as machine, attach(folder) as gdb:
        gdb.set_register("rbx", 0)
        for value in (0x1234, 0x5678):
            gdb.set_register("rip", LOOP)
            gdb.set_register("rbx", value)
            assert gdb("Z2,200002,2") == "OK"
            assert gdb("vCont;c").startswith("T05")
            assert gdb("z2,200002,2") == "OK"
            assert (gdb.register("rip"), gdb.read(0x200000, 4)) == (COUNT, value.to_bytes(4, "little"))
        assert "watch:200002;" in gdb("?")
        assert gdb("Z2,200004,2") == "OK", "beside it"
        assert gdb(f"Z1,{JUMP:x},1") == "OK"
        assert "hwbreak" in gdb("vCont;c") or gdb.register("rip") == JUMP
        assert gdb("D") == "OK"
        soon(folder, "running")
        machine.memory.write(0x200000, bytes(4))
        until = time.monotonic() + LIMIT
        while machine.memory.read(0x200000, 2) == bytes(2) and time.monotonic() < until:
            time.sleep(0.01)
        assert machine.memory.read(0x200000, 2) == b"\x78\x56", "the guest writes its memory itself again"


READER = bytes.fromhex("A1 00002000  83C101  FF05 10002000  83C301 EBED")
"""again: mov eax, [0x200000]; add ecx, 1; inc dword [0x200010]; add ebx, 1; jmp again"""
AFTER_READ, AFTER_INC = ENTRY + 5, ENTRY + 14


@pytest.mark.parametrize("cpus", [1, 2])
def test_it_stops_after_the_instruction_that_reads_watched_memory(folder: Path, kvm: Kvm, cpus: int) -> None:
    exact = not find_means(kvm).watchpoints  # debug registers have no watchpoint for reads alone
    (folder / "kernel").write_bytes(kernel(READER))
    with running(folder, cpus=cpus) as machine, attach(folder) as gdb:
        gdb.set_register("rip", ENTRY)
        machine.memory.write(0x200000, bytes.fromhex("11223344"))
        assert gdb("Z3,200000,4") == "OK"
        for _ in range(2):
            stop = gdb("vCont;c")
            assert "thread:1;rwatch:200000;" in stop
            assert gdb("z3,200000,4") == "OK"
            assert (gdb.register("rip"), gdb.register("rax") & 0xFFFFFFFF) == (AFTER_READ, 0x44332211)
            assert gdb("Z3,200000,4") == "OK"
        assert gdb("z3,200000,4") == "OK"
        counted = machine.memory.read(0x200010, 1)[0]
        assert gdb("Z4,200010,4") == "OK"
        for n in (1, 2):
            assert "awatch:200010;" in gdb("vCont;c")
            assert gdb("z4,200010,4") == "OK"
            assert (gdb.register("rip"), machine.memory.read(0x200010, 1)[0]) == (AFTER_INC, (counted + n) & 0xFF)
            assert gdb("Z4,200010,4") == "OK"
        assert gdb("z4,200010,4") == "OK"
        if exact:
            assert gdb("Z3,200012,1") == "OK"
            assert "rwatch:200012;" in gdb("vCont;c")
        assert gdb("D") == "OK"
        soon(folder, "running")
        machine.memory.write(0x200010, bytes(4))
        until = time.monotonic() + LIMIT
        while machine.memory.read(0x200010, 4) == bytes(4) and time.monotonic() < until:
            time.sleep(0.01)
        assert machine.memory.read(0x200010, 4) != bytes(4), "the page is back"


def test_a_machine_paused_from_the_start_waits_before_its_first_instruction(folder: Path) -> None:
    with running(folder, paused=True) as machine:
        assert status(folder) == "prelaunch"
        with attach(folder) as gdb:
            assert gdb.register("rip") == ENTRY
            assert (status(folder), machine.guest_time.clock() > 0) == ("debug", True)
            assert gdb("vCont;s:1;c").startswith("T05")
            assert gdb.register("rip") == STORE
            with monitor(folder) as client, pytest.raises(Refused, match="debugger has stopped the machine"):
                client.execute("cont")
        soon(folder, "running")


def test_a_machine_that_has_not_begun_is_in_prelaunch_as_in_qemu(folder: Path) -> None:
    with running(folder, paused=True) as machine, monitor(folder) as client:
        assert client.execute("query-status") == {"running": False, "status": "prelaunch"}
        assert client.execute("human-monitor-command", {"command-line": "info status"}) == (
            "VM status: paused (prelaunch)\r\n"
        )
        client.execute("stop")
        assert status(folder) == "prelaunch"
        client.execute("system_reset")
        assert status(folder) == "prelaunch"
        client.execute("cont")
        client.wait_event(("RESUME",), 1)
        soon(folder, "running")
        client.execute("stop")
        assert status(folder) == "paused"
        client.execute("system_reset")
        assert (status(folder), machine.slot.threads[0].vcpu.regs.rip) == ("prelaunch", ENTRY)


def test_the_kernel_is_found_at_its_virtual_address_before_it_has_mapped_itself(folder: Path) -> None:
    with running(folder, paused=True, cpus=2) as machine, attach(folder) as gdb:
        virtual = 0xFFFFFFFF_80000000 + JUMP
        for thread in (1, 2):
            assert gdb(f"Hg{thread}") == "OK"
            assert gdb.read(virtual, 2) == CODE[JUMP - ENTRY :]
        assert gdb("mffffffffc0000000,1") == "E0e"
        assert gdb(f"Z0,{virtual:x},1") == "OK"
        assert machine.memory.read(JUMP, 1) != CODE[JUMP - ENTRY :][:1]
        assert gdb("D") == "OK"


def test_a_lost_debugger_leaves_the_machine_running_without_breakpoints(folder: Path) -> None:
    with running(folder) as machine:
        with attach(folder) as gdb:
            assert gdb(f"Z0,{STORE:x},1") == "OK"
            assert "swbreak" in gdb("vCont;c")
        soon(folder, "running")
        assert machine.memory.read(ENTRY, len(CODE)) == CODE
        with attach(folder) as gdb:
            gdb.send("vCont;c")
            soon(folder, "running")
        soon(folder, "running")
        with attach(folder) as gdb:
            assert gdb("vCont;s:1").startswith("T05")


def test_there_is_one_debugger_at_a_time(folder: Path) -> None:
    with running(folder, gdb=folder / "gdb"), attach(folder):
        with pytest.raises(Refused, match="connected already"):
            attach(folder)
        with socket.socket(socket.AF_UNIX) as second:
            second.connect(socket_path(folder / "gdb"))
            second.settimeout(LIMIT)
            assert second.recv(1) == b"", "hung up"


@pytest.mark.parametrize("tcp", [False, True])
def test_debuggers_connect_at_the_place_that_the_user_gave(folder: Path, tcp: bool) -> None:
    place: Place = folder / "gdb"
    if tcp and inside():
        pytest.skip("in the emulated host the outer side listens at the port")
    if tcp:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = free.getsockname()
    with running(folder, gdb=place):
        for _ in range(2):
            if isinstance(place, Path):
                connection = socket.socket(socket.AF_UNIX)
                connection.connect(socket_path(place))
            else:
                connection = socket.create_connection(place)
            with GdbClient(connection) as gdb:
                assert gdb.read(ENTRY, 2) == CODE[:2]
                assert bytes.fromhex(gdb("qRcmd," + b"info status".hex())[1:]) == b"VM status: paused (debug)\n"
                assert gdb.reply() == "OK"
                assert gdb("D") == "OK"


def test_a_reset_stops_at_the_first_instruction_again(folder: Path) -> None:
    with running(folder) as machine, attach(folder) as gdb:
        assert gdb(f"Z0,{JUMP:x},1") == "OK"
        assert gdb("vCont;s:1").startswith("T05")
        assert gdb(f"z0,{JUMP:x},1") == "OK"
        gdb.send("vCont;c")
        soon(folder, "running")
        with monitor(folder) as client:
            client.execute("system_reset")
        assert gdb.reply().startswith("T05")
        assert (gdb.register("rip"), machine.resets) == (ENTRY, 1)
        assert gdb(f"Z0,{JUMP:x},1") == "OK"
        assert "swbreak" in gdb("vCont;c")


def test_the_end_of_the_machine_is_reported_and_kill_ends_it(folder: Path) -> None:
    with running(folder), attach(folder) as gdb:
        gdb.send("vCont;c")
        soon(folder, "running")
        with monitor(folder) as client:
            client.execute("quit")
        assert gdb.reply() == "W00"
    with running(folder) as machine, attach(folder) as gdb:
        gdb.send("k")
        assert gdb.socket.recv(1) == b""
        until = time.monotonic() + LIMIT
        while machine.outcome is None and time.monotonic() < until:
            time.sleep(0.01)
        assert machine.outcome is not None


def test_a_debugger_that_floods_or_does_not_read_does_not_stop_the_monitor(folder: Path) -> None:
    with running(folder, gdb=folder / "gdb"), socket.socket(socket.AF_UNIX) as flood:
        flood.connect(socket_path(folder / "gdb"))
        flood.settimeout(1)
        data = b"$m100000,1000#" + b"%02x" % (sum(b"m100000,1000") & 0xFF) + b"+" * 100 + b"\x00junk$zz#00"
        with pytest.raises(TimeoutError):
            while True:
                flood.sendall(data * 100)
        began = time.monotonic()
        assert status(folder) == "debug"
        assert time.monotonic() - began < 5


@pytest.mark.own_process
@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed")
def test_gdb_itself_connects_by_the_command_line(folder: Path) -> None:
    with running(folder, cpus=2) as machine:
        words = ["info threads", f"break *{COUNT:#x}", "continue", "print/x $rip", "stepi", "print/x $rip",
                 "monitor info name", f"x/2xb {COUNT:#x}", "info registers cr0", "detach"]  # fmt: skip
        command = [sys.executable, "-m", "pyvmm", "gdb", "--socket", socket_path(folder / "s"), "--batch"]
        for each in words:
            command += ["--ex", each]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        for line in ("Thread 2 (vCPU 1 [not started])", f"= {COUNT:#x}", f"= {JUMP:#x}", "0x83\t0xc1", "PE ET"):
            assert line in done.stdout, done.stdout + done.stderr
        assert machine.name in done.stdout + done.stderr
        soon(folder, "running")
