"""The host's side of the agent, and the guest's script on a pty."""

from __future__ import annotations

import os
import random
import select
import shutil
import subprocess
import termios
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm import images
from pyvmm.errors import ConfigError
from pyvmm.images.serve import PROGRAM
from pyvmm.machine.agent_protocol import AgentClient, Event, Exited, Garbled, Lost, Output, Ready, Refused

SCRIPT = Path(images.__file__).parent / "guest" / "agent"


@pytest.fixture
def client() -> AgentClient:
    client = AgentClient()
    assert client.feed(b"ready 2 6.1.0\n") == [Ready("6.1.0")]
    return client


@pytest.mark.parametrize("command", ["echo hi", "a'b\nc  'd' ", '\\n $n "$(x)" `y` \r\t', "\xe4\udcff"])
def test_request_carries_the_command_as_a_word_of_shell_on_one_line(client: AgentClient, command: str) -> None:
    number, request = client.run(command)
    assert request.startswith(b"run %d '" % number) and request.endswith(b"'\n") and request.count(b"\n") == 1
    script = b"n='\n'\ncommand=" + request.split(b" ", 2)[2] + b'printf %s "$command"'
    shown = subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout
    assert shown == command.encode("utf-8", "surrogateescape")


def test_output_and_status_come_back_in_order(client: AgentClient) -> None:
    number, _ = client.run("true")
    said = b"out %d %s\nerr %d %s\nexit %d 3\n" % (number, b64encode(b"a\0b"), number, b64encode(b"!"), number)
    expected = [Output(number, "out", b"a\0b"), Output(number, "err", b"!"), Exited(number, 3)]
    assert client.feed(said) == expected
    assert client.running == set()


def test_lines_may_come_byte_by_byte(client: AgentClient) -> None:
    number, _ = client.run("true")
    events: list[Event] = []
    for byte in b"exit %d 0\r\n" % number:
        events += client.feed(bytes([byte]))
    assert events == [Exited(number, 0)]


def test_commands_of_a_guest_that_started_anew_are_lost(client: AgentClient) -> None:
    first, _ = client.run("reboot")
    second, _ = client.run("true")
    assert client.feed(b"ready 2 6.1.0\n") == [Lost(first), Lost(second), Ready("6.1.0")]


def test_command_sent_before_the_first_ready_is_kept() -> None:
    client = AgentClient()
    number, _ = client.run("true")
    client.feed(b"ready 2 6.1.0\n")
    assert client.feed(b"exit %d 0\n" % number) == [Exited(number, 0)]


def test_a_refusal_is_reported(client: AgentClient) -> None:
    assert client.feed(b"error no command 7\n") == [Refused("no command 7")]


@pytest.mark.parametrize(
    "line",
    [
        b"hello",
        b"out 1",
        b"out 99 YQ==",
        b"out 1 ???",
        b"out 1 YQ",
        b"exit 1 256",
        b"exit 1 -1",
        b"exit 1",
        b"exit 11111111111 0",
        b"exit \xb2 0",
        b"ready 1 6.1.0",
        b"ready",
        b"\xff\xfe\x00\x1b[2J",
    ],
)
def test_bad_line_is_one_event_and_the_next_counts_again(client: AgentClient, line: bytes) -> None:
    number, _ = client.run("true")
    bad, good = client.feed(line + b"\nexit %d 0\n" % number)
    assert isinstance(bad, Garbled)
    assert str(bad.error).isprintable()
    assert good == Exited(number, 0)


def test_endless_line_is_dropped_once_and_takes_no_memory(client: AgentClient) -> None:
    number, _ = client.run("true")
    events: list[Event] = []
    for _ in range(100):
        events += client.feed(b"out 1 " + b"A" * 8192)
    assert [type(event) for event in events] == [Garbled]
    assert client.feed(b"tail\nexit %d 0\n" % number) == [Exited(number, 0)]


def test_noise_raises_nothing() -> None:
    rng = random.Random(3)
    client = AgentClient()
    for _ in range(50):
        client.run("true")
    words = [b"out ", b"err ", b"exit ", b"ready 2", b"\n", b"1 ", b"17 ", b" ", b"YQ==", b"\xff", b"\r", b"error "]
    for _ in range(2000):
        client.feed(b"".join(rng.choices(words, k=rng.randrange(20))))


def test_long_command_and_odd_signal_are_refused(client: AgentClient) -> None:
    with pytest.raises(ConfigError, match="shorten it"):
        client.run("x" * 40000)
    with pytest.raises(ConfigError, match="with its quotes and newlines"):
        client.run("'" * 15000)
    with pytest.raises(ConfigError, match="zero byte"):
        client.run("a\0b")
    with pytest.raises(ConfigError, match="no signal"):
        client.kill(1, "TERM\nrun 1")


class Guest:
    """The agent's script, run by the host's busybox with a pty for a serial port."""

    def __init__(self, folder: Path) -> None:
        self.main, self.port = os.openpty()
        self.console, self._slave = os.openpty()
        self.folder = folder
        self.client = AgentClient()
        self.start()

    def start(self) -> None:
        run, console = str(self.folder / "run"), os.ttyname(self._slave)
        serve = self.folder / "serve"
        if not serve.exists():
            serve.write_bytes(PROGRAM)
            serve.chmod(0o755)
        command = ["busybox", "sh", str(SCRIPT), os.ttyname(self.port), run, console, str(serve)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.wait(lambda events: any(isinstance(event, Ready) for event in events))

    def wait(self, done: object) -> list[Event]:
        """Events until `done(events)`, ten seconds at most."""
        assert callable(done)
        events: list[Event] = []
        end = time.monotonic() + 10
        while not done(events):
            left = end - time.monotonic()
            assert left > 0 and select.select([self.main], [], [], left)[0], f"the agent said only {events}"
            events += self.client.feed(os.read(self.main, 65536))
        return events

    def run(self, command: str) -> tuple[bytes, bytes, int]:
        number, request = self.client.run(command)
        os.write(self.main, request)
        events = self.wait(lambda events: any(isinstance(event, Exited) for event in events))
        out = b"".join(e.data for e in events if isinstance(e, Output) and e.stream == "out")
        err = b"".join(e.data for e in events if isinstance(e, Output) and e.stream == "err")
        assert isinstance(events[-1], Exited)
        assert events[-1].id == number
        return out, err, events[-1].status

    def close(self) -> None:
        os.close(self.main)
        os.close(self.port)
        self.process.wait(10)
        os.close(self.console)
        os.close(self._slave)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    if shutil.which("busybox") is None:
        pytest.skip("busybox (package busybox-static) is not installed")
    guest = Guest(tmp_path)
    yield guest
    guest.close()


def test_script_gives_the_console_a_size(guest: Guest) -> None:
    os.write(guest.main, b"size x 80\nsize 24\n" + guest.client.size(50, 132))
    assert guest.run("true")[2] == 0
    end = time.monotonic() + 10
    while termios.tcgetwinsize(guest.console) != (50, 132):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_script_separates_output_errors_and_status(guest: Guest) -> None:
    assert guest.run("echo out; echo err >&2; exit 3") == (b"out\n", b"err\n", 3)


def test_script_passes_binary_output_whole(guest: Guest) -> None:
    out, err, status = guest.run("i=0; while [ $i -lt 3000 ]; do printf 'abc\\0\\377\\n'; i=$((i + 1)); done")
    assert (out, err, status) == (b"abc\0\xff\n" * 3000, b"", 0)


def test_script_takes_any_command(guest: Guest) -> None:
    """Each byte but zero, lines, quotes, and spaces at the ends."""
    text = bytes(range(1, 256)).decode("utf-8", "surrogateescape")
    command = "printf %s '" + text.replace("'", "'\\''") + "'\nprintf %s ' end '"
    assert guest.run(command) == (bytes(range(1, 256)) + b" end ", b"", 0)
    assert guest.run("n=1; printf '%s\\n' \"$n\" # " + "x" * 20000) == (b"1\n", b"", 0)


def test_script_kills_a_command_with_all_that_it_started(guest: Guest) -> None:
    number, request = guest.client.run("echo begun; sleep 60 & sleep 60; true")
    os.write(guest.main, request)
    guest.wait(lambda events: any(isinstance(event, Output) for event in events))
    os.write(guest.main, guest.client.kill(number))
    assert guest.wait(lambda events: any(isinstance(event, Exited) for event in events)) == [Exited(number, 143)]
    assert not list((guest.folder / "run").glob("*.pid"))


def test_script_reports_which_signal_ended_a_command(guest: Guest) -> None:
    assert guest.run("kill -15 $$") == (b"", b"", 143)


def test_script_says_when_a_command_was_killed(guest: Guest) -> None:
    """And why, if the kernel counts processes killed for want of memory; here that may be so."""
    out, err, status = guest.run("kill -9 $$")
    assert (out, status) == (b"", 137)
    assert err.startswith(b"pyvmm: the command was killed by signal 9")
    assert guest.run("echo well") == (b"well\n", b"", 0)
    assert guest.run("kill -9 $$")[1] == b"pyvmm: the command was killed by signal 9\n", (
        "an earlier reason is told once"
    )


def test_script_that_starts_anew_ends_what_was_left_of_it(guest: Guest) -> None:
    _, request = guest.client.run(f"kill -9 {guest.process.pid}")
    os.write(guest.main, request)
    guest.process.wait(10)
    guest.wait(lambda events: any(isinstance(event, Exited) for event in events))
    guest.start()
    assert guest.run("echo well") == (b"well\n", b"", 0)


def test_script_survives_what_passes_its_output_on(guest: Guest) -> None:
    """The OOM killer takes that last, and then the command's end is still told."""
    _, err, status = guest.run("kill -9 $PPID; sleep 0.2")
    assert status == 137
    assert err.startswith(b"pyvmm: the command was killed")
    assert guest.run("echo well") == (b"well\n", b"", 0)


def test_script_loses_no_request_while_commands_end(guest: Guest) -> None:
    """busybox's `read` forgets the line it is in when a child ends; so the agent reads in a childless shell."""
    expected = {}
    for index in range(20):
        number, request = guest.client.run(f"exit {index}")
        expected[number] = index
        for piece in (request[:9], request[9:]):
            os.write(guest.main, piece)
            time.sleep(0.01)  # let the line be read in two halves, and children end between them
    found: dict[int, int] = {}

    def all_ended(events: list[Event]) -> bool:
        found.update({event.id: event.status for event in events if isinstance(event, Exited)})
        return len(found) == len(expected)

    guest.wait(all_ended)
    assert found == expected


def test_script_answers_what_it_does_not_understand(guest: Guest) -> None:
    os.write(guest.main, b"dance 1\nrun x\nkill 9 TERM\n")
    events = guest.wait(lambda events: len(events) == 3)
    assert events == [
        Refused("unknown request dance"),
        Refused("bad request run"),
        Refused("no command 9"),
    ]
