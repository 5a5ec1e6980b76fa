"""What is said at the end about drivers that a guest did not use."""

from __future__ import annotations

import pytest

from pyvmm.images.initramfs import guest_files
from pyvmm.launch.driver_report import INIT_STARTED, report_lines

DEVICES = ("hv-balloon", "heartbeat", "shutdown", "timesync")
BOOTED = f"{INIT_STARTED}\n"


def lines(
    absent: dict[str, str], console: str = BOOTED, *, contacts: int = 1, opened: tuple[str, ...] = ()
) -> list[str]:
    return report_lines(absent, console, devices=DEVICES, contacts=contacts, opened=opened)


def test_nothing_is_said_of_drivers_that_were_used() -> None:
    assert lines({}, opened=("hv-balloon", "heartbeat")) == []
    assert lines({"hv_sock": "CONFIG_HYPERV_VSOCKETS is not set"}, opened=DEVICES) == []


def test_a_guest_without_the_bus_gets_one_line_with_the_reason() -> None:
    absent = {"hv_vmbus": "CONFIG_HYPERV is not set", "hv_balloon": "CONFIG_HYPERV is not set"}
    assert lines(absent, contacts=0) == [
        "the guest never contacted VMBus: hv_vmbus was not loaded because CONFIG_HYPERV is not set"
    ]


def test_drivers_that_lack_are_named_each() -> None:
    found = lines({"hv_balloon": "CONFIG_HYPERV_BALLOON is not set"}, opened=("shutdown",))
    assert found == [
        "the guest never used its balloon: hv_balloon was not loaded because CONFIG_HYPERV_BALLOON is not set"
    ]


@pytest.mark.parametrize(
    ("console", "reason"),
    [
        (BOOTED + "insmod: can't insert '/lib/modules/hv_vmbus.ko': invalid module format\r\n", "invalid module"),
        ("[    0.0] Linux version 6.12\n", "did not get to /init"),
        (BOOTED, "did not find its device"),
    ],
)
def test_the_reason_is_taken_from_the_console_where_nothing_was_known_before(console: str, reason: str) -> None:
    [line] = lines({}, console, contacts=0)
    assert reason in line


def test_text_of_the_guest_is_filtered() -> None:
    [line] = lines({}, BOOTED + "insmod: can't insert '/lib/modules/hv_vmbus.ko': \x1b[2J\x07x\n", contacts=0)
    assert line.isprintable()


def test_init_begins_with_the_line_that_is_looked_for() -> None:
    assert f"echo '{INIT_STARTED}'".encode() in guest_files()["init"]
