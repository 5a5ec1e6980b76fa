"""`pyvmm disk` against a fake machine, and the QMP commands behind it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from pyvmm.cli.commands import disk as disk_module
from pyvmm.client.qmp import Client, Refused
from pyvmm.client.registry import find
from pyvmm.disks.spec import PROGRAM
from tests.support.command_line import Run
from tests.support.fake_machine import FakeMachine
from tests.support.qcow2 import make_qcow2


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "data.img"
    path.write_bytes(bytes(1 << 20))
    return path


def test_disk_is_opened_here_and_sent_to_the_machine(machine: FakeMachine, pyvmm: Run, image: Path) -> None:
    done = pyvmm("disk", "add", "web", f"{image},ro,id=data,serial=S")
    assert (done.status, done.out) == (0, "data: 1 MiB, LUN 0\n")
    assert machine.calls[-1] == f"add_disk {image},ro,id=data,serial=S sent"
    listed = pyvmm("disk", "list")
    assert listed.out.splitlines()[1].split()[:7] == ["data", "0", "1", "MiB", "raw", "ro", "5"]
    assert json.loads(pyvmm("disk", "list", "--json").out)[0]["device"] == "data"
    assert pyvmm("disk", "resize", "data", "2M").status == 0
    assert machine.calls[-1] == "resize_disk data 2097152"
    assert pyvmm("disk", "remove", "data").status == 0
    assert pyvmm("disk", "list").out == "no disks; `pyvmm disk add FILE` adds one\n"


@pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"no {PROGRAM}")
def test_qcow2_image_is_served_by_a_daemon_whose_connections_are_sent(
    machine: FakeMachine, pyvmm: Run, tmp_path: Path
) -> None:
    path = tmp_path / "data.qcow2"
    make_qcow2(path, 64 << 20)
    done = pyvmm("disk", "add", "web", f"{path},format=qcow2,id=data")
    assert (done.status, done.out) == (0, "data: 64 MiB, LUN 0\n"), done.err
    assert machine.calls[-1] == f"add_disk {path},format=qcow2,id=data sent"
    assert machine.block[0]["inserted"]["drv"] == "qcow2"
    until = time.monotonic() + 10
    while subprocess.run(["pgrep", "-f", str(path)], capture_output=True).returncode != 1:
        assert time.monotonic() < until, "the machine closed the image: its daemon ends"
        time.sleep(0.02)
    again = pyvmm("disk", "add", "web", f"{path},format=qcow2,id=data")
    assert (again.status, "Duplicate device ID 'data'" in again.err) == (1, True)
    bad = pyvmm("disk", "add", "web", f"{tmp_path / 'no'},format=qcow2")
    assert (bad.status, bad.err.count("\n")) == (1, 1)
    assert "No such file" in bad.err


@pytest.mark.parametrize(
    "served",
    [
        5,
        {},
        {"connections": ["a"], "line": "a", "size": 1},
        {"connections": [], "line": "a", "size": 512, "flags": 0},
        {"connections": [1], "line": "a", "size": 512, "flags": 0},
        {"connections": ["a"], "line": "a", "size": -1, "flags": 0},
        {"connections": "a", "line": "a", "size": 512, "flags": 0},
        {"connections": ["none"], "line": "a", "size": 512, "flags": 0},
        {"connections": ["a"], "line": "a", "size": 512, "flags": 0},
    ],
)
def test_bad_connections_of_a_daemon_are_refused(machine: FakeMachine, image: Path, served: object) -> None:
    with Client(find("web").socket) as client, open(image, "rb") as file:
        client.execute("getfd", {"fdname": "a"}, file=file.fileno())  # no socket
        with pytest.raises(Refused, match=r"x-nbd|Invalid parameter|not found|no socket"):
            client.execute("device_add", {"driver": "scsi-hd", "file": "x", "format": "qcow2", "x-nbd": served})


def test_guest_without_a_driver_is_told_of(
    machine: FakeMachine, pyvmm: Run, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_module, "FOUND_LIMIT", 0.1)
    machine.storvsc = "offered"
    done = pyvmm("disk", "add", str(image))
    assert done.status == 1
    assert "the guest has no driver for it: load hv_storvsc" in done.err


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["add"], 2, "give [NAME] FILE"),
        (["add", "a", "b", "c"], 2, "give [NAME] FILE"),
        (["add", "/nowhere.img"], 1, "truncate -s 8G"),
        (["add", "x.img,rw"], 2, "'rw' is no option of a disk"),
        (["remove", "nothing"], 1, "no disk 'nothing'; `pyvmm disk list`"),
        (["resize", "data"], 2, "give [NAME] ID SIZE"),
        (["resize", "data", "big"], 2, "big"),
        (["list", "nobody"], 1, "nobody"),
    ],
)
def test_bad_requests_are_one_line(
    machine: FakeMachine, pyvmm: Run, words: list[str], status: int, text: str
) -> None:
    done = pyvmm("disk", *words)
    assert (done.status, text in done.err) == (status, True), done.err


def test_descriptors_are_named_used_and_closed(machine: FakeMachine, image: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Client(find("web").socket) as client, open(image, "r+b") as file:
        with pytest.raises(Refused, match="No file descriptor supplied via SCM_RIGHTS"):
            client.execute("getfd", {"fdname": "a"})
        for name in ("a", "b", "a"):
            client.execute("getfd", {"fdname": name}, file=file.fileno())
        client.execute("closefd", {"fdname": "b"})
        with pytest.raises(Refused, match="File descriptor named 'b' not found"):
            client.execute("closefd", {"fdname": "b"})
        with pytest.raises(Refused, match="fdname"):
            client.execute("getfd", {"fdname": "1"}, file=file.fileno())
        client.execute("query-status", file=file.fileno())
        client.execute("device_add", {"driver": "scsi-hd", "file": str(image), "fd": "a", "id": "d"})
        with pytest.raises(Refused, match="File descriptor named 'a' not found"):
            client.execute("device_add", {"driver": "scsi-hd", "file": str(image), "fd": "a"})
        with pytest.raises(Refused, match="Duplicate device ID 'd'"):
            client.execute("device_add", {"driver": "scsi-hd", "file": str(image), "id": "d"})
    with Client(find("web").socket) as client:
        client.execute("query-status")  # the first client's end was seen
    assert len(os.listdir("/proc/self/fd")) <= before + 1


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({}, "Parameter 'file' is missing"),
        ({"file": 1}, "Invalid parameter type for 'file', expected: string"),
        ({"file": "x", "bootindex": 1}, "Property 'scsi-hd.bootindex' not found"),
        ({"file": "x", "serial": "a,ro"}, "a comma in a property"),
        ({"file": "x", "werror": "no"}, "werror='no'"),
        ({"file": ""}, "names no file"),
    ],
)
def test_properties_of_a_disk_are_checked(machine: FakeMachine, properties: dict[str, object], message: str) -> None:
    with Client(find("web").socket) as client, pytest.raises(Refused) as refused:
        client.execute("device_add", {"driver": "scsi-hd"} | properties)
    assert message in str(refused.value)


def test_resize_needs_one_name(machine: FakeMachine) -> None:
    with Client(find("web").socket) as client:
        for given in ({}, {"device": "a", "node-name": "a"}):
            with pytest.raises(Refused, match="Need exactly one"):
                client.execute("block_resize", {"size": 512} | given)
