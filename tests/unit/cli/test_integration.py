"""kvp, snapshot-disk, and what status shows of the guest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyvmm.cli.commands import snapshot_disk
from tests.support.command_line import Run
from tests.support.fake_machine import FakeMachine


def test_status_shows_what_the_guest_tells_of_itself(machine: FakeMachine, pyvmm: Run) -> None:
    assert "web.example, Debian 12: 10.0.2.15, fe80::1" in pyvmm("status").out
    machine.integration.ready = False
    assert "web.example" not in pyvmm("status").out


def test_kvp_shows_values_and_who_set_them(machine: FakeMachine, pyvmm: Run) -> None:
    assert pyvmm("kvp", "--set", "color=light=blue", "--set", "bad=1") == (0, "", "")
    out = pyvmm("kvp", "web").out
    assert [line.split() for line in out.splitlines()[1:]] == [
        ["FullyQualifiedDomainName", "web.example", "guest"],
        ["color", "light=blue", "host"],
        ["bad", "1", "refused,", "0x80004005"],
    ]
    assert json.loads(pyvmm("kvp", "--delete", "bad", "--json").out)["external"] == {"color": "light=blue"}


def test_kvp_says_that_the_daemon_does_not_answer(machine: FakeMachine, pyvmm: Run) -> None:
    machine.integration.ready = False
    assert "does not answer" in pyvmm("kvp").err
    assert pyvmm("kvp", "--set", "a=b").err == "pyvmm: kept until the guest's hv_kvp_daemon runs\n"


@pytest.mark.parametrize("word", ["color", "=blue"])
def test_kvp_refuses_what_is_no_pair(machine: FakeMachine, pyvmm: Run, word: str) -> None:
    found = pyvmm("kvp", "--set", word)
    assert found.status in (1, 2) and "give KEY=VALUE" in found.err


def test_kvp_shows_and_sets_a_cards_addresses(machine: FakeMachine, pyvmm: Run) -> None:
    words = "netvsc=10.0.2.20/24,fe80::2/64,gateway=10.0.2.2,dns=10.0.2.3,dns=10.0.2.4"
    assert pyvmm("kvp", "--set-card", words) == (0, "", "")
    assert machine.integration.calls == [
        "addresses netvsc {'card': 'netvsc', 'dhcp': False, 'addresses': ['10.0.2.20/24', 'fe80::2/64'], "
        "'gateways': ['10.0.2.2'], 'dns': ['10.0.2.3', '10.0.2.4']}"
    ]
    shown = pyvmm("kvp", "web", "--set-card", "netvsc=dhcp", "--card", "netvsc").out
    assert "netvsc by DHCP" in shown and "10.0.2.15/24" in shown and "dns" not in shown
    machine.integration.reason = "the guest's hv_kvp_daemon has ended"
    assert "has ended" in pyvmm("kvp", "--card", "netvsc").err


@pytest.mark.parametrize("words", ["netvsc", "=dhcp", "netvsc=gateway=", "netvsc=10.0.0.1/8,mask=255.0.0.0"])
def test_kvp_refuses_what_is_no_configuration(machine: FakeMachine, pyvmm: Run, words: str) -> None:
    found = pyvmm("kvp", "--set-card", words)
    assert found.status in (1, 2) and "give CARD=dhcp" in found.err and "\n" not in found.err.strip()


# snapshot-disk


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The image of disk0 of the machine: data, a hole, data."""
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.write(b"first")
        file.seek(1 << 20)
        file.write(b"last")
    rows: list[dict[str, Any]] = [
        {"device": "disk0", "inserted": {"drv": "raw", "file": str(image)}},
        {"device": "disk1", "inserted": {"drv": "qcow2", "file": "x"}},
    ]
    monkeypatch.setattr(snapshot_disk, "_query", lambda client: rows)
    return image


def test_a_disk_is_copied_between_freeze_and_thaw(
    machine: FakeMachine, pyvmm: Run, disk: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.img"
    found = pyvmm("snapshot-disk", "web", "disk0", str(copy), "--limit", "30")
    assert (found.status, machine.calls) == (0, ["freeze 30", "thaw"])
    assert copy.read_bytes() == disk.read_bytes()
    assert copy.stat().st_mode & 0o777 == 0o600


def test_a_guest_that_was_thawed_too_early_leaves_no_copy(
    machine: FakeMachine, pyvmm: Run, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def freeze(seconds: float, done: Any) -> None:
        done("")
        machine.integration.reason = "the guest was thawed when the limit was reached"

    monkeypatch.setattr(machine.integration, "freeze", freeze)
    found = pyvmm("snapshot-disk", "disk0", str(tmp_path / "copy.img"))
    assert found.status == 1 and "the copy was given up: the guest was thawed" in found.err
    assert not (tmp_path / "copy.img").exists()


def test_a_copy_that_fails_thaws(machine: FakeMachine, pyvmm: Run, disk: Path, tmp_path: Path) -> None:
    disk.unlink()
    found = pyvmm("snapshot-disk", "disk0", str(tmp_path / "copy.img"))
    assert found.status == 1 and "cannot copy" in found.err
    assert machine.calls == ["freeze 60", "thaw"]
    assert not (tmp_path / "copy.img").exists()


def test_without_a_freeze_nothing_is_asked_of_the_guest(
    machine: FakeMachine, pyvmm: Run, disk: Path, tmp_path: Path
) -> None:
    assert pyvmm("snapshot-disk", "disk0", str(tmp_path / "copy.img"), "--no-freeze").status == 0
    assert machine.calls == []


def test_an_images_relative_path_counts_from_the_machines_folder(
    machine: FakeMachine, pyvmm: Run, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"device": "disk0", "inserted": {"drv": "raw", "file": disk.name}}]
    monkeypatch.setattr(snapshot_disk, "_query", lambda client: rows)
    assert snapshot_disk._folder(-1) == Path()
    monkeypatch.setattr(snapshot_disk, "_folder", lambda pid: disk.parent)
    assert pyvmm("snapshot-disk", "disk0", str(tmp_path / "copy.img")).status == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["disk0"], "give [NAME] DISK FILE"),
        (["a", "b", "c", "d"], "give [NAME] DISK FILE"),
        (["disk9", "new.img"], "no disk is called 'disk9': there are disk0, disk1"),
        (["disk1", "new.img"], "disk1 is qcow2: only raw images"),
        (["disk0", "/dev/null"], "exists already"),
        (["disk0", "/nowhere/new.img"], "cannot copy"),
    ],
)
def test_impossible_copies_are_refused(
    machine: FakeMachine, pyvmm: Run, disk: Path, words: list[str], text: str
) -> None:
    found = pyvmm("snapshot-disk", *words)
    assert found.status in (1, 2) and text in found.err


# fcopy


@pytest.mark.parametrize(
    ("words", "called"),
    [
        (["/root/"], "file /root notes.txt 40000 False False"),
        (["/x", "--overwrite"], "file / x 40000 True False"),
        (["/a/b/c", "--parents"], "file /a/b c 40000 False True"),
    ],
)
def test_fcopy_sends_a_file_in_pieces(
    machine: FakeMachine, pyvmm: Run, tmp_path: Path, words: list[str], called: str
) -> None:
    (tmp_path / "notes.txt").write_bytes(bytes(40000))
    found = pyvmm("fcopy", "web", str(tmp_path / "notes.txt"), *words)
    assert found.status == 0 and "40000 bytes" in found.out
    assert machine.calls == [called, "write 32768", "write 7232", "end"]


def test_fcopy_gives_a_file_up_that_the_guest_cannot_take(machine: FakeMachine, pyvmm: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"full" + bytes(40000))
    found = pyvmm("fcopy", str(tmp_path / "notes.txt"), "/root/")
    assert found.status == 1 and "the guest's disk is full" in found.err
    assert machine.calls[-1] == "cancel"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["x"], "give [NAME] FILE PATH"),
        (["/dev/null", "tmp/x"], "not an absolute path"),
        (["/nowhere", "/tmp/x"], "/nowhere"),
        (["/dev/null", "/tmp/x"], "/dev/null"),
    ],
)
def test_fcopy_refuses_what_cannot_be_copied(machine: FakeMachine, pyvmm: Run, words: list[str], text: str) -> None:
    found = pyvmm("fcopy", *words)
    assert found.status in (1, 2) and text in found.err
    assert machine.calls == []
