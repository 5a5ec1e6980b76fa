"""The console as a user reads and types it: the port in memory, and the I/O ports for those who ask for them."""

from __future__ import annotations

import re

import pytest

from pyvmm import trace
from tests.support.booted import Booted

KERNELS = pytest.mark.parametrize(
    ("image", "engine", "cpus"),
    [
        ("debian-5.10", "kernel", 2),
        ("debian-6.1", "kernel", 1),
        ("debian-6.1", "user", 2),
        ("debian-6.12", "user", 1),
        ("debian-6.12", "kernel", 2),
        ("debian-7.2", "user", 2),
    ],
)


def not_shown(guest: Booted) -> list[str]:
    """The kernel's messages that its console does not show."""
    lines = [line for line in guest.sh("dmesg").splitlines() if re.match(r"\[ *\d", line)]
    assert len(lines) > 150, "a kernel's whole boot"
    guest.until(lambda: lines[-1] in guest.console.text, 10, "the last message on the console")
    return [line for line in lines if line not in guest.console.text]


@KERNELS
def test_a_talkative_kernel_s_messages_are_all_on_the_console(image: str, engine: str, cpus: int) -> None:
    with Booted(image, engine=engine, cpus=cpus, append="loglevel=8") as guest:
        assert not_shown(guest) == []
        assert "mmio" in guest.sh("dmesg | grep -i 'ttyS0 at'").lower()
        assert guest.sh("cat /sys/class/tty/console/active").split() == ["ttyS0"]
        assert "MTRRs disabled" not in guest.console.text
        assert re.search("PAT: Configuration .* WC ", guest.console.text), "the firmware's work is done, on all CPUs"
        assert "inconsistent MTRR" not in guest.sh("dmesg")


@pytest.mark.parametrize("engine", ["kernel", "user"])
def test_a_talkative_kernel_leaves_the_guest_seldom_for_it(engine: str) -> None:
    """Neither a line's bytes nor its masking of the interrupts are exits; a full ring of writes is, at most."""
    counts = trace.TailSink(100)
    trace.subscribe("machine.exit_count", counts)
    try:
        with Booted(engine=engine, append="loglevel=7") as guest:
            said = len(guest.console.text)
            guest.send("poweroff -f")
            guest.until(lambda: guest.machine.outcome is not None, 30, "the end")
    finally:
        trace.unsubscribe(counts)
    (writes,) = (int(line.split()[-2]) for line in counts.lines() if line.endswith("MmioWrite"))
    assert said > 15_000
    assert writes < said / 50


@pytest.mark.parametrize("image", ["debian-6.1", "debian-6.12"])
def test_a_user_s_own_console_words_work_by_the_ports_until_the_driver_comes(image: str) -> None:
    with Booted(image, append="loglevel=8 console=ttyS0") as guest:
        assert not_shown(guest) == []
        assert guest.console.text.count("Linux version") <= 2, "once by the early console, once by the port at most"


@pytest.mark.parametrize("engine", ["kernel", "user"])
def test_the_console_takes_what_is_typed_and_shows_what_is_written(engine: str) -> None:
    with Booted(engine=engine) as guest:
        before = len(guest.console.text.splitlines())
        assert before < 5, "quiet"
        guest.send('stty -F /dev/ttyS0 -echo; while read -r line; do echo "<$line>"; done </dev/ttyS0 >/dev/ttyS0')
        typed = [f"line {number} of those typed" for number in range(40)]
        guest.until(lambda: guest.sh("pgrep -f '[w]hile read' | wc -l").strip() != "0", 20, "reader")
        guest.machine.board.serials[0].receive("".join(f"{line}\n" for line in typed).encode())
        guest.until(lambda: guest.console.text.count(">") >= len(typed), 30, "answers")
        assert guest.console.text.splitlines()[before:] == [f"<{line}>" for line in typed]
        guest.sh("seq 5000 >/dev/ttyS0")
        guest.until(lambda: guest.console.text.endswith("\n5000\n"), 30, "all that was written")
        assert guest.console.text.splitlines()[before + len(typed) :] == [str(number) for number in range(1, 5001)]
