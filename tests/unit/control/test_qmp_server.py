from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest
from qemu.qmp import EventListener, ExecuteError, QMPClient

from pyvmm import trace
from pyvmm.client.qmp import Client, Disconnected, Refused, TimedOut
from pyvmm.client.session import Session, collect
from pyvmm.control.commands import COMMANDS
from pyvmm.control.server import CLIENT_LIMIT, OUTPUT_LIMIT, ControlServer
from pyvmm.cover_sites import pack_sites
from pyvmm.errors import ConfigError
from pyvmm.loop import Loop
from pyvmm.session_protocol import PORT
from tests.support.fake_machine import MIB, FakeMachine, serving

LAST_ON_A_CONNECTION = {"qmp_capabilities", "x-gdb", "x-vsock", "x-session"}
"""Commands after which the connection speaks no QMP, and one that it takes only first."""


def connect(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.settimeout(10)
    made.connect(str(path))
    return made


def test_the_real_qmp_library_runs_every_command_and_hears_the_events(
    machine: FakeMachine, loop: Loop, path: Path
) -> None:
    arguments: dict[str, dict[str, Any]] = {
        "balloon": {"value": 256 * MIB},
        "x-balloon": {"value": 256 * MIB},
        "human-monitor-command": {"command-line": "info balloon"},
        "x-execute": {"command": "true"},
        "x-cover-start": {"module": "m", "build-id": "00", "base": 0, "sites": pack_sites([], [])[1]},
        "x-autosize": {"enable": False},
        "x-file-start": {"folder": "/", "file": "x", "size": 2},
        "x-file-write": {"data": "eHg="},
        "x-kvp-set": {"key": "color", "value": "blue"},
        "x-kvp-addresses": {"card": "netvsc"},
        "x-kvp-set-addresses": {"card": "netvsc", "dhcp": True},
        "send-key": {"keys": [{"type": "qcode", "data": "a"}]},
        "x-fault-add": {"rule": "eom-lost"},
        "x-fault-remove": {"id": 7},
        "device_add": {"driver": "heartbeat", "id": "again"},
        "device_del": {"id": "heartbeat"},
        "set_link": {"name": "netvsc", "up": False},
        "getfd": {"fdname": "disk"},
        "closefd": {"fdname": "disk"},
        "block_resize": {"device": "disk0", "size": MIB},
    }
    last: list[str] = ["closefd", "stop", "cont", "system_reset", "system_powerdown", "quit"]
    expected = {
        "DEVICE_DELETED",
        "STOP",
        "RESUME",
        "RESET",
        "POWERDOWN",
        "SHUTDOWN",
        "BALLOON_CHANGE",
        "X_BALLOON_TARGET",
    }

    async def talk() -> tuple[dict[str, Any], dict[str, Any]]:
        client, replies, events = QMPClient("test"), {}, {}
        with client.listener() as listener:
            await client.connect(str(path))
            names = [each["name"] for each in cast(list[dict[str, Any]], await client.execute("query-commands"))]
            for name in [each for each in names if each not in last] + last:
                if name == "getfd":
                    client.send_fd_scm(2)
                if name not in LAST_ON_A_CONNECTION:
                    replies[name] = await client.execute(name, arguments.get(name))
            while expected - set(events):
                event = await asyncio.wait_for(listener.get(), 10)
                events[event["event"]] = event
        try:
            await client.disconnect()
        except EOFError:
            pass  # the machine hung up first: it was told to quit
        return replies, events

    replies, events = asyncio.run(talk())
    assert set(replies) | LAST_ON_A_CONNECTION == set(COMMANDS)
    assert replies["query-status"] == {"running": True, "status": "running"}
    assert replies["human-monitor-command"] == "balloon: actual=256\r\n"
    assert replies["query-hv-balloon-status-report"] == {"committed": 100 * MIB, "available": 300 * MIB}
    assert events["SHUTDOWN"]["data"] == {"guest": False, "reason": "host-qmp-quit"}
    assert replies["balloon"] == {}
    assert events["X_BALLOON_TARGET"]["data"] == {"target": 256 * MIB, "will-reach": 256 * MIB, "reason": ""}
    assert events["BALLOON_CHANGE"]["data"] == {"actual": 256 * MIB}
    wanted = "{'card': 'netvsc', 'dhcp': True, 'addresses': [], 'gateways': [], 'dns': []}"
    services = [
        f"addresses netvsc {wanted}",
        "press ['a'] 0.1",
        "freeze 60",
        "thaw",
        "file / x 2 False False",
        "write 2",
        "end",
    ]
    assert [each for each in machine.calls if each not in services] == [
        "resize_disk disk0 1048576",
        "execute true",
        "pause",
        "resume",
        "reset",
        "powerdown",
        "quit",
    ]
    assert sorted(set(machine.calls) & set(services)) == sorted(services)


def test_the_real_qmp_library_understands_errors(loop: Loop, path: Path) -> None:
    async def talk() -> ExecuteError:
        client = QMPClient("test")
        await client.connect(str(path))
        with pytest.raises(ExecuteError) as caught:
            await client.execute("nope")
        await client.disconnect()
        return caught.value

    assert asyncio.run(talk()).error_class == "CommandNotFound"


def test_the_real_qmp_library_filters_guest_panics(machine: FakeMachine, loop: Loop, path: Path) -> None:
    info = {"type": "hyper-v", "arg1": 1, "arg2": 2, "arg3": 3, "arg4": 4, "arg5": 5}

    async def talk() -> Any:
        client, listener = QMPClient("test"), EventListener(names=["GUEST_PANICKED"])
        with client.listen(listener):
            await client.connect(str(path))
            loop.post(lambda: machine.emit("GUEST_PANICKED", action="poweroff", info=info))
            event = await asyncio.wait_for(listener.get(), 10)
        await client.disconnect()
        return event

    assert asyncio.run(talk())["data"] == {"action": "poweroff", "info": info}


def test_x_gdb_gives_the_connection_to_the_debugger_after_the_reply(
    machine: FakeMachine, loop: Loop, path: Path
) -> None:
    machine.name = "web"
    client = Client(path)
    assert client.execute("x-gdb") == {}
    connection, first = client.detach()
    with connection, Client(path) as second:
        machine.emit("STOP")
        assert second.wait_event({"STOP"}) == ("STOP", {})
        assert (first or connection.recv(100)) == b"web\n", "no event: it speaks no QMP any more"
        with pytest.raises(Refused, match="connected already"):
            second.execute("x-gdb")
        machine.debugged[0].sendall(b"$T02")
        assert connection.recv(100) == b"$T02"
        assert second.execute("query-name") == {"name": "web"}
    machine.debugged[0].close()


def test_x_vsock_makes_the_connection_the_guest_s_after_the_reply(
    machine: FakeMachine, loop: Loop, path: Path
) -> None:
    with Client(path) as client:
        with pytest.raises(Refused, match="no program in the guest listens"):
            client.execute("x-vsock", {"port": 5})
        assert client.execute("query-name") == {"name": "vm"}
        client.execute("x-vsock", {"port": PORT})
        session = Session(*client.detach())
        assert collect(session, [b"/bin/echo", b"hello"], seconds=10, limit=99)[1] == b"hello\n"


def test_x_session_tells_why_there_is_none(machine: FakeMachine, loop: Loop, path: Path) -> None:
    machine.no_sessions = "the guest's kernel has no Hyper-V sockets"
    with Client(path) as client, pytest.raises(Refused, match="no Hyper-V sockets") as caught:
        client.execute("x-session")
    assert caught.value.qmp_class == "GenericError"


def test_cont_is_refused_while_a_debugger_holds_the_machine(machine: FakeMachine, loop: Loop, path: Path) -> None:
    machine.state = "debug"
    with Client(path) as client, pytest.raises(Refused, match="continue there, or detach"):
        client.execute("cont")
    assert machine.calls == []


def test_qmp_shell_works(machine: FakeMachine, loop: Loop, path: Path) -> None:
    shell = Path(sys.executable).with_name("qmp-shell")
    if not shell.exists():
        pytest.skip("qmp-shell is not installed")
    done = subprocess.run(
        [shell, path], input="query-status\nballoon value=268435456\n", capture_output=True, text=True, timeout=30
    )
    assert '"running": true' in done.stdout
    assert machine.actual == 256 * MIB


@pytest.mark.parametrize(
    ("name", "event"), [("system_powerdown", "POWERDOWN"), ("system_reset", "RESET"), ("quit", "SHUTDOWN")]
)
def test_an_event_comes_before_the_reply_to_its_command_as_from_qemu_10(
    loop: Loop, path: Path, name: str, event: str
) -> None:
    with Client(path) as client:
        assert client.execute(name) == {}
        assert [each for each, _ in client.events] == [event]


def test_the_reply_to_quit_comes_before_the_end(loop: Loop, path: Path) -> None:
    with Client(path) as client:
        assert client.execute("quit") == {}
        assert client.wait_event({"SHUTDOWN"}) == ("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
        with pytest.raises(Disconnected):
            client.wait_event({"STOP"})


def test_a_server_closed_by_the_command_itself_still_replies(machine: FakeMachine, path: Path) -> None:
    loop = Loop()
    server = ControlServer(loop, machine, path)
    server.start()
    machine.ended = server.close
    with connect(path) as client:
        client.sendall(b'{"execute": "qmp_capabilities"}{"execute": "quit", "id": 1}')
        while path.exists():
            loop.step(1)
        received = b"".join(iter(lambda: client.recv(65536), b""))
    assert b'{"return": {}, "id": 1}' in received
    assert b"SHUTDOWN" in received
    loop.close()


def test_stop_sends_its_event_before_its_reply(loop: Loop, path: Path) -> None:
    with Client(path) as client:
        client.execute("stop")
        assert client.events[0][0] == "STOP"


def test_two_clients_both_hear_what_one_did(loop: Loop, path: Path) -> None:
    with Client(path) as one, Client(path) as two:
        one.execute("stop")
        assert one.wait_event({"STOP"}) == two.wait_event({"STOP"})
        assert two.execute("query-status")["status"] == "paused"


def test_an_event_is_traced_once_however_many_sockets_there_are(machine: FakeMachine, tmp_path: Path) -> None:
    paths = [tmp_path / "one.sock", tmp_path / "two.sock"]
    tail = trace.TailSink()
    with serving(machine, *paths), Client(paths[0]) as one, Client(paths[1]) as two:
        trace.subscribe("monitor_protocol_event_emit", tail)
        try:
            one.execute("stop")
            assert two.wait_event({"STOP"})[0] == one.wait_event({"STOP"})[0] == "STOP"
        finally:
            trace.unsubscribe(tail)
    assert len(tail.records) == 1
    assert not any(path.exists() for path in paths)


def test_a_second_socket_that_cannot_be_leaves_the_first_no_more(machine: FakeMachine, tmp_path: Path) -> None:
    loop = Loop()
    with pytest.raises(ConfigError, match="does not exist"):
        ControlServer(loop, machine, tmp_path / "one.sock", tmp_path / "nowhere" / "two.sock").start()
    assert not (tmp_path / "one.sock").exists()
    loop.close()


def test_a_client_that_did_not_negotiate_hears_no_events(machine: FakeMachine, loop: Loop, path: Path) -> None:
    with connect(path) as silent, Client(path) as client:
        client.execute("stop")
        client.execute("cont")
        silent.sendall(b'{"execute": "qmp_capabilities"}')
        received = b""
        while received.count(b"\n") < 2:
            received += silent.recv(4096)
        assert b"event" not in received


def test_a_megabyte_of_garbage_ends_only_its_own_connection(loop: Loop, path: Path) -> None:
    with connect(path) as rude, Client(path) as client:
        try:
            rude.sendall(random.Random(1).randbytes(MIB))
            rude.shutdown(socket.SHUT_WR)
            received = b"".join(iter(lambda: rude.recv(65536), b""))
            assert b"JSON parse error" in received
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert client.execute("query-status")["running"]


def test_a_client_that_never_reads_is_dropped_by_its_events(machine: FakeMachine, loop: Loop, path: Path) -> None:
    with connect(path) as deaf, Client(path) as client:
        deaf.sendall(b'{"execute": "qmp_capabilities"}')
        client.execute("query-status")  # by now the other one was read too
        size = len(json.dumps({"event": "X_NOTICE", "data": {"text": "x" * 1000}}))
        for _ in range((OUTPUT_LIMIT + MIB) // size // 50):
            loop.post(lambda: [machine.emit("X_NOTICE", text="x" * 1000) for _ in range(50)])
            for _ in range(50):  # all of them: on a busy machine it would be dropped, too
                client.wait_event({"X_NOTICE"})
        client.execute("query-status")
        with pytest.raises(OSError):
            while True:
                deaf.sendall(b" ")  # the server has dropped it


def test_a_client_that_only_writes_is_not_read_any_more(loop: Loop, path: Path) -> None:
    with connect(path) as flood, Client(path) as client:
        flood.sendall(b'{"execute": "qmp_capabilities"}')
        flood.settimeout(0.3)
        with pytest.raises(TimeoutError):
            for _ in range(2000):
                flood.sendall(b'{"execute": "query-commands"}\n' * 100)
        assert client.execute("query-status")["running"]
        flood.settimeout(10)
        assert flood.recv(4096)


def test_many_requests_in_one_write_are_all_answered_in_order(loop: Loop, path: Path) -> None:
    with connect(path) as client:
        requests = b"".join(b'{"execute": "query-name", "id": %d}\n' % number for number in range(1000))
        client.sendall(b'{"execute": "qmp_capabilities"}' + requests)
        received = b""
        while received.count(b"\n") < 1002:
            received += client.recv(65536)
    assert [json.loads(line)["id"] for line in received.splitlines()[2:]] == list(range(1000))


def test_clients_past_the_limit_are_turned_away(loop: Loop, path: Path) -> None:
    clients = [connect(path) for _ in range(CLIENT_LIMIT)]
    assert all(each.recv(4096) for each in clients)
    with connect(path) as one_more:
        assert one_more.recv(4096) == b""
    for each in clients:
        each.close()


def test_the_socket_is_the_users_alone_and_goes_away(machine: FakeMachine, path: Path) -> None:
    with serving(machine, path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


def test_a_socket_in_use_is_refused_and_left_alone(loop: Loop, path: Path) -> None:
    other = Loop()
    with pytest.raises(ConfigError, match="is in use"):
        ControlServer(other, FakeMachine(), path).start()
    other.close()
    with Client(path) as client:
        assert client.execute("query-status")["running"]


def test_a_stale_socket_is_replaced(machine: FakeMachine, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with serving(machine, path), Client(path) as client:
        assert client.execute("query-status")["running"]


def test_a_socket_that_another_took_over_is_not_removed(machine: FakeMachine, path: Path) -> None:
    with serving(machine, path):
        path.unlink()
        path.write_text("mine")
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "text"),
    [("file", "is not a socket"), ("nowhere/vm.sock", "does not exist"), ("x" * 120, "is longer than")],
)
def test_paths_that_cannot_be_sockets_are_refused_in_one_line(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "file").write_text("")
    loop = Loop()
    with pytest.raises(ConfigError, match=text) as caught:
        ControlServer(loop, FakeMachine(), tmp_path / name).start()
    assert "\n" not in str(caught.value)
    loop.close()


def test_the_client_says_who_does_not_listen(path: Path) -> None:
    with pytest.raises(Disconnected, match="no VM listens at"):
        Client(path)


def test_the_client_gives_up_on_a_server_that_says_nothing(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(path))
        mute.listen()
        with pytest.raises(TimedOut):
            Client(path, timeout=0.1)


def test_the_client_raises_what_the_machine_refused(machine: FakeMachine, loop: Loop, path: Path) -> None:
    machine.actual = None
    with Client(path) as client, pytest.raises(Refused) as caught:
        client.execute("query-balloon")
    assert caught.value.qmp_class == "DeviceNotActive"


def test_closing_leaves_no_descriptor_behind(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with serving(FakeMachine(), path), Client(path) as client:
            client.execute("query-status")
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_conversation_can_be_read_from_the_trace(loop: Loop, path: Path) -> None:
    tail = trace.TailSink()
    trace.subscribe("*", tail)
    try:
        with Client(path) as client:
            client.execute("stop")
    finally:
        trace.unsubscribe(tail)
    names = [record.event.name for record in tail.records]
    begin = names.index("handle_qmp_command")
    assert names[begin : begin + 4] == [
        "handle_qmp_command",
        "monitor_protocol_event_emit",
        "monitor_qmp_respond",
        "monitor_qmp_respond",
    ]


def test_a_command_in_the_guest_delays_only_its_client(machine: FakeMachine, loop: Loop, path: Path) -> None:
    with Client(path) as waiting, Client(path) as other:
        waiting._socket.sendall(b'{"execute": "x-execute", "arguments": {"command": "later"}, "id": 1}')
        waiting._socket.sendall(b'{"execute": "query-name", "id": 2}')
        while "execute later" not in machine.calls:
            assert other.execute("query-status")["running"]
        loop.post(lambda: machine.finish())
        first, second = (waiting._receive(time.monotonic() + 10) for _ in range(2))
    assert first == {
        "return": {"status": 3, "stdout": "bGF0ZXI=", "stderr": "/w==", "truncated": False},
        "id": 1,
    }
    assert second == {"return": {"name": "vm"}, "id": 2}


def test_a_client_may_leave_before_its_command_has_ended(machine: FakeMachine, loop: Loop, path: Path) -> None:
    with Client(path, timeout=0.2) as client, pytest.raises(TimedOut):
        client.execute("x-execute", {"command": "later"})
    with Client(path) as other:
        loop.post(lambda: machine.finish())
        assert other.execute("query-status")["running"]


def test_the_machine_may_end_while_a_command_runs(machine: FakeMachine, loop: Loop, path: Path) -> None:
    with Client(path) as client, Client(path) as other:
        client._socket.sendall(b'{"execute": "x-execute", "arguments": {"command": "hang"}}')
        other.execute("quit")
        with pytest.raises(Disconnected):
            client.wait_event({"STOP"})


def test_slow_commands_in_a_row_leave_the_others_their_turns(
    machine: FakeMachine, loop: Loop, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "reset", lambda: time.sleep(0.1))
    with Client(path) as other, Client(path) as client:
        client._socket.sendall(b'{"execute": "system_reset"}\n' * 8)
        time.sleep(0.05)
        began = time.monotonic()
        other.execute("query-status")
        assert time.monotonic() - began < 0.6
