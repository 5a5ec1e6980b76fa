"""Input from a pipe or a file reaches the guest whole, however slowly the guest reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.devices.serial.uart import RECEIVE_LIMIT
from pyvmm.launch.consoles import PtyConsole, StdioConsole, open_console
from pyvmm.loop import Loop
from pyvmm.output import Output


class Port:
    """A serial port whose guest reads when the test says so."""

    def __init__(self) -> None:
        self.waiting = bytearray()

    @property
    def queued(self) -> int:
        return len(self.waiting)

    def receive(self, data: bytes) -> int:
        assert len(self.waiting) + len(data) <= RECEIVE_LIMIT, "input is lost"
        self.waiting += data
        return len(data)


class Machine:
    def __init__(self) -> None:
        self.loop = Loop()
        self.board = self.monitor = self
        self.serials = [Port()]

        self.ended = False

    def quit(self) -> None:
        self.ended = True


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    yield made
    made.loop.close()


def drain(machine: Machine, wanted: int) -> bytes:
    """Let the guest read everything each time its queue is full or rests."""
    found = bytearray()
    for _ in range(4 * wanted // 4096 + 100):
        if len(found) + machine.serials[0].queued >= wanted or machine.serials[0].queued > RECEIVE_LIMIT - 5000:
            found += machine.serials[0].waiting
            machine.serials[0].waiting.clear()
        if len(found) >= wanted:
            break
        machine.loop.step(0.2)
    return bytes(found)


def test_a_file_longer_than_the_ports_queue_arrives_whole(machine: Machine, tmp_path: Path) -> None:
    text = os.urandom(RECEIVE_LIMIT + 300_000)
    (tmp_path / "input").write_bytes(text)
    with open(tmp_path / "input", "rb") as file, StdioConsole(Output(1, "out"), stdin=file.fileno()) as console:
        console.attach(machine)  # type: ignore[arg-type]
        assert drain(machine, len(text)) == text


def test_a_pipe_arrives_whole_and_may_end(machine: Machine) -> None:
    reader, writer = os.pipe()
    with StdioConsole(Output(1, "out"), stdin=reader) as console:
        console.attach(machine)  # type: ignore[arg-type]
        os.write(writer, b"first ")
        machine.loop.step(1)
        os.write(writer, b"second")
        os.close(writer)
        machine.loop.step(1)
        machine.loop.step(1)
        machine.loop.step(0)
        assert bytes(machine.serials[0].waiting) == b"first second"
    os.close(reader)


def test_a_full_port_stops_the_reading_of_a_pipe(machine: Machine) -> None:
    reader, writer = os.pipe()
    with StdioConsole(Output(1, "out"), stdin=reader) as console:
        console.attach(machine)  # type: ignore[arg-type]
        machine.serials[0].waiting += bytes(RECEIVE_LIMIT)
        os.write(writer, b"later")
        machine.loop.step(1)
        machine.serials[0].waiting.clear()
        for _ in range(5):
            machine.loop.step(0.2)
        assert bytes(machine.serials[0].waiting) == b"later"
    os.close(writer)
    os.close(reader)


@pytest.mark.parametrize("tied", [False, True])
def test_a_machine_tied_to_its_input_ends_with_it(machine: Machine, tied: bool) -> None:
    reader, writer = os.pipe()
    with StdioConsole(Output(1, "out"), stdin=reader) as console:
        console.tied = tied
        console.attach(machine)  # type: ignore[arg-type]
        os.close(writer)
        machine.loop.step(1)
    assert machine.ended == tied
    os.close(reader)


@pytest.mark.parametrize(("where", "place"), [("none", "null"), ("stdio", "stdio"), ("{}/out", "file:{}/out")])
def test_a_console_says_what_it_is_as_qemu_does(tmp_path: Path, where: str, place: str) -> None:
    with open_console(where.format(tmp_path), Output(1, "out")) as console:
        assert console.place == place.format(tmp_path)


def slave_of(console: PtyConsole) -> int:
    return os.open(console.place.removeprefix("pty:"), os.O_RDWR | os.O_NOCTTY)


def test_a_pseudo_terminal_does_not_send_the_guests_own_output_back(machine: Machine) -> None:
    with PtyConsole() as console:
        console.attach(machine)  # type: ignore[arg-type]
        console.write(b"login: \r\n")
        reader = slave_of(console)
        assert os.read(reader, 100) == b"login: \r\n"
        machine.loop.step(0.1)
        machine.loop.step(0.1)
        assert bytes(machine.serials[0].waiting) == b""
        os.write(reader, b"root\r")
        machine.loop.step(1)
        assert bytes(machine.serials[0].waiting) == b"root\r"
        os.close(reader)


def test_a_pseudo_terminal_keeps_output_for_later_readers_and_reports_lost_bytes(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    with PtyConsole() as console:
        console.attach(machine)  # type: ignore[arg-type]
        console.write(bytes(200_000))
        reader = slave_of(console)
        found = 0
        while found < 200_000:
            found += len(os.read(reader, 65536))
            machine.loop.step(0)
            machine.loop.step(0)
        console.write(bytes(1_000_000))
        os.close(reader)
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "were not read" in line]
    lost = int(told.split(":")[-1].split()[0])
    assert 1_000_000 - (64 << 10) < lost < 1_000_000, "some are in the terminal"
