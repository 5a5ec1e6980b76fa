"""What comes over sockets and ports: QMP, the human monitor, the emulated host's frames, the guest agent's lines."""

from __future__ import annotations

import json
from contextlib import suppress

from pyvmm.control import hmp
from pyvmm.control.commands import COMMANDS, dispatch
from pyvmm.control.protocol import QmpSession
from pyvmm.errors import ConfigError
from pyvmm.host.protocol import Decoder, Frame, Kind, ProtocolError, ReceiveWindow, SendWindow
from pyvmm.machine.agent_protocol import AgentClient
from tests.support.fake_machine import FakeMachine

NAMES = sorted(COMMANDS)


def _answers(data: bytes) -> None:
    machine = FakeMachine()
    session = QmpSession(lambda name, arguments: dispatch(machine, name, arguments))
    session.feed(b'{"execute":"qmp_capabilities"}' + data)
    replies: list[bytes] = []
    while session.step(replies.append):
        assert len(replies) <= len(data) + 2
    for reply in replies:
        assert reply.endswith(b"\r\n") and json.loads(reply).keys() & {"return", "error"}


def qmp(data: bytes) -> None:
    _answers(data)


def qmp_command(data: bytes) -> None:
    """A command that there is, with fuzzed arguments."""
    name = NAMES[data[0] % len(NAMES)] if data else NAMES[0]
    _answers(b'{"execute":"' + name.encode() + b'","arguments":{' + data[1:] + b"}}")


def monitor(data: bytes) -> None:
    for line in data.decode("utf-8", "replace").split("\n")[:20]:
        assert isinstance(hmp.execute(FakeMachine(), line), str)


def host_frames(data: bytes) -> None:
    """Frames of the emulated host's port, and the windows that DATA and CREDIT move."""
    decoder, sends, receives = Decoder(), SendWindow(), ReceiveWindow()
    with suppress(ProtocolError):
        for at in range(0, len(data), 64):
            for frame in decoder.feed(data[at : at + 64]):
                assert Frame(frame.kind, frame.stream, frame.channel, frame.payload).build()
                match frame.kind:
                    case Kind.DATA:
                        receives.received(frame.payload)
                        receives.taken(len(frame.payload))
                    case Kind.CREDIT:
                        sends.credited(frame.number)
                    case Kind.EXIT | Kind.SIGNAL:
                        assert isinstance(frame.number, int)


def agent(data: bytes) -> None:
    """The agent's lines while two commands run."""
    client = AgentClient()
    client.run("true")
    with suppress(ConfigError):
        client.run(data.decode("utf-8", "surrogateescape"))
    client.feed(b"ready 2 6.1.0\n")
    client.feed(data)
    for at in range(0, len(data), 7):
        client.feed(data[at : at + 7])


TARGETS = {
    "file_qmp": qmp,
    "file_qmp_command": qmp_command,
    "file_monitor": monitor,
    "file_host_frames": host_frames,
    "file_agent": agent,
}
