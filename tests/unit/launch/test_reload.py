"""Exchanging a kernel module in a guest: what is sent, and when it is refused."""

from __future__ import annotations

import lzma
import os
import re
from base64 import b64decode
from pathlib import Path

import pytest

from pyvmm.errors import ConfigError
from pyvmm.launch.reload import PIECE, CannotReload, NewModule, Ran, read_new_module, reload
from tests.support.sample_modules import module

RELEASE = "6.12.1"
LOADED = "hv_utils 49152 0 - Live 0xffffffffc0231000"


class FakeGuest:
    """Answers the commands of an exchange, with one line of /proc/modules and the status of the last step."""

    def __init__(self, line: str = LOADED, status: int = 0, output: str = "", errors: str = "") -> None:
        self.line, self.last = line, Ran(status, output, errors)
        self.commands: list[str] = []

    def run(self, command: str) -> Ran:
        self.commands.append(command)
        if command.startswith("uname"):
            return Ran(0, f"{RELEASE}\n{self.line}\n", "")
        return self.last if "insmod" in command else Ran(0, "", "")

    def received(self) -> bytes:
        pieces = [found[1] for each in self.commands if (found := re.search(r"echo (\S+) >", each))]
        return lzma.decompress(b64decode("".join(pieces)))


def new(data: bytes = b"", release: str = RELEASE) -> NewModule:
    return NewModule("hv_utils", release, data or module("hv_utils"))


def exchange(guest: FakeGuest, given: NewModule | None = None, *parameters: str) -> bool:
    return reload(given or new(), guest.run, parameters=parameters, progress=lambda line: None).replaced


def test_a_loaded_module_is_removed_before_the_new_one_is_loaded() -> None:
    guest = FakeGuest()
    assert exchange(guest, None, "timesync_implicit=1")
    assert guest.received() == new().data
    last = guest.commands[-1]
    assert last.index("rmmod hv_utils") < last.index("insmod hv_utils.ko $words timesync_implicit=1")


def test_a_module_that_is_not_loaded_is_loaded() -> None:
    guest = FakeGuest("absent")
    assert not exchange(guest)
    assert "rmmod" not in guest.commands[-1]


def test_a_large_module_is_sent_in_pieces() -> None:
    import random

    guest, data = FakeGuest(), random.Random(1).randbytes(100_000)
    exchange(guest, new(data))
    assert guest.received() == data
    assert len(guest.commands) == 2 + -(-len(lzma.compress(data, check=lzma.CHECK_CRC32)) * 4 // 3 // PIECE)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("hv_balloon 45056 0 [permanent], Live 0x0", "has no module_exit"),
        ("hv_vmbus 180224 2 hv_balloon,hv_utils, Live 0x0", "used by hv_balloon, hv_utils"),
        ("hv_utils 49152 3 - Live 0x0", "in use in the guest"),
        ("built-in", "built into the guest's kernel"),
        ("none", "has no modules"),
        ("what?", "is not understood"),
    ],
)
def test_a_module_that_cannot_be_exchanged_is_refused_before_anything_is_sent(line: str, words: str) -> None:
    guest = FakeGuest(line)
    with pytest.raises(CannotReload, match=words):
        exchange(guest)
    assert len(guest.commands) == 1


def test_a_module_of_another_kernel_is_refused() -> None:
    with pytest.raises(CannotReload, match=r"built for Linux 6.1.0, the guest runs 6.12.1"):
        exchange(FakeGuest(), new(release="6.1.0"))


def test_a_kernel_that_refuses_the_new_module_has_the_old_one_again() -> None:
    with pytest.raises(CannotReload, match="unknown symbol; the old one is loaded again"):
        exchange(FakeGuest(status=4, output="before\n", errors="unknown symbol"))
    with pytest.raises(CannotReload, match="it is not loaded now"):
        exchange(FakeGuest(status=4, errors="unknown symbol"))


def test_the_kernels_reason_is_read_before_the_old_module_writes_to_the_log() -> None:
    guest = FakeGuest()
    exchange(guest)
    last = guest.commands[-1]
    assert last.index("insmod hv_utils.ko") < last.index("dmesg") < last.index("insmod /lib/modules/hv_utils.ko")


def test_a_driver_that_cannot_be_unloaded_is_reported() -> None:
    with pytest.raises(CannotReload, match="Resource temporarily unavailable; run the guest again"):
        exchange(FakeGuest(status=3, errors="rmmod: can't unload: Resource temporarily unavailable"))


def test_a_forgotten_make_is_reported_before_the_module_is_sent(tmp_path: Path) -> None:
    (tmp_path / "include/config").mkdir(parents=True)
    (tmp_path / "hv").mkdir()
    (tmp_path / "hv/hv_utils.ko").write_bytes(module("hv_utils", vermagic=RELEASE))
    (tmp_path / "hv/hv_utils.o").touch()
    os.utime(tmp_path / "hv/hv_utils.ko", (1, 1))
    said: list[str] = []
    reload(read_new_module(tmp_path / "hv/hv_utils.ko"), FakeGuest().run, parameters=(), progress=said.append)
    assert said[0].startswith("hv/hv_utils.o changed since the last build: run `make -C")
    assert said[1].startswith("sending hv_utils.ko")


def test_text_of_the_guest_is_filtered() -> None:
    with pytest.raises(CannotReload) as caught:
        exchange(FakeGuest(status=4, errors="\x1b[2Jx"))
    assert str(caught.value).isprintable()


def test_name_and_release_are_read_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "hv-utils.ko").write_bytes(module("hv_utils", vermagic=RELEASE))
    found = read_new_module(tmp_path / "hv-utils.ko")
    assert (found.name, found.release) == ("hv_utils", RELEASE)


def test_what_is_no_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_new_module(tmp_path / "none.ko")
    (tmp_path / "a.ko").write_bytes(b"text")
    with pytest.raises(ConfigError, match="not a kernel module"):
        read_new_module(tmp_path / "a.ko")
    (tmp_path / "b.ko").write_bytes(module("a;reboot"))
    with pytest.raises(ConfigError, match="cannot be named"):
        read_new_module(tmp_path / "b.ko")
