"""Linux's storvsc driver, played by hand, against a controller with real files."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import pack, unpack_from
from typing import Any

import pytest

from pyvmm.devices.storvsc import workers
from pyvmm.devices.storvsc.controller import Controller, Phase
from pyvmm.devices.storvsc.disk import Disk
from pyvmm.devices.storvsc.errors import ErrorReports
from pyvmm.disks.open import open_image
from pyvmm.disks.spec import DiskSpec
from pyvmm.qapi import Occurrence
from tests.support.fake_guest import FakeGuest
from tests.support.scsi_guest import (
    FLUSH,
    GPA_DIRECT,
    REPORT_LUNS,
    TEST_UNIT_READY,
    ScsiGuest,
    inquiry,
    page_list,
    read10,
    srb,
    unmap,
    vstor,
    write10,
)

MIB = 1 << 20


class Bench:
    """A controller with disks in files, and what it said."""

    def __init__(self, folder: Path, guest: FakeGuest, *, sub_channels: int = 0) -> None:
        self.folder, self.guest = folder, guest
        self.events: list[Occurrence] = []
        self.stops = 0
        self.controller = Controller(
            guest.time, ErrorReports(self.events.append, self._stop), sub_channels=sub_channels
        )

    def _stop(self) -> None:
        self.stops += 1

    def disk(self, *, size: int = MIB, content: bytes = b"", read_only: bool = False, werror: Any = "report") -> Disk:
        number = self.controller.disks.free_lun()
        path = self.folder / f"disk{number}.img"
        with open(path, "wb") as file:
            file.truncate(size)
            file.write(content)
        image = open_image(DiskSpec(str(path), read_only=read_only))
        disk = Disk(f"disk{number}", image, number, f"serial{number}", werror=werror)
        self.controller.disks.add(disk)
        return disk


@pytest.fixture
def bench(tmp_path: Path, guest: FakeGuest) -> Iterator[Bench]:
    made = Bench(tmp_path, guest)
    yield made
    guest.bus.reset()
    made.controller.close()


def test_written_data_is_read_back_and_lies_in_the_file(bench: Bench) -> None:
    disk = bench.disk()
    scsi = ScsiGuest(bench.guest, bench.controller)
    data = os.urandom(3 * 4096)
    written = scsi.command(write10(8, 24), data=data, offset=512)
    assert (written.ok, written.moved) == (True, len(data))
    assert scsi.command(FLUSH).ok
    read = scsi.command(read10(8, 24), length=len(data), offset=1024)
    assert (read.ok, read.moved, read.data) == (True, len(data), data)
    assert Path(disk.image.path).read_bytes()[4096 : 4096 + len(data)] == data
    assert (disk.stats.rd_bytes, disk.stats.wr_bytes, disk.stats.flush_operations) == (len(data), len(data), 1)


def test_properties_name_the_largest_transfer_and_no_sub_channels(bench: Bench) -> None:
    scsi = ScsiGuest(bench.guest, bench.controller)
    _, sub_channels, _, flags, largest = unpack_from("<IHHII", scsi.properties, 12)
    assert (sub_channels, flags, largest) == (0, 0, MIB)


def test_first_packets_of_linux_5_10_are_short_and_so_are_their_answers(bench: Bench) -> None:
    bench.disk()
    scsi = ScsiGuest(bench.guest, bench.controller, begin=False)
    assert len(scsi.ask(vstor(7, size=48))) == 48
    assert len(scsi.ask(vstor(9, size=48, value=0x0602))) == 48
    assert len(scsi.ask(vstor(10))) == 64


def test_unknown_versions_are_refused_and_an_older_one_is_taken(bench: Bench) -> None:
    scsi = ScsiGuest(bench.guest, bench.controller, begin=False)
    scsi.ask(vstor(7))
    for version, status in ((0x0700, 0xC0000059), (0x0402, 0xC0000059), (0x0501, 0)):
        assert unpack_from("<I", scsi.ask(vstor(9, value=version)), 8)[0] == status
    assert bench.controller.version == 0x0501


def test_handshake_out_of_order_and_commands_before_it_are_refused(bench: Bench) -> None:
    bench.disk()
    scsi = ScsiGuest(bench.guest, bench.controller, begin=False)
    for operation in (8, 9, 10, 13, 1, 0, 99):
        assert unpack_from("<I", scsi.ask(vstor(operation, value=0x0602)), 8)[0] == 0xC0000184
    assert unpack_from("<I", scsi.ask(srb(TEST_UNIT_READY)), 8)[0] == 0xC0000184
    assert bench.controller.phase is Phase.STARTING


def test_scan_finds_the_disks_and_nothing_on_other_targets(bench: Bench) -> None:
    bench.disk()
    bench.disk()
    scsi = ScsiGuest(bench.guest, bench.controller)
    luns = scsi.command(REPORT_LUNS, length=4096)
    assert luns.data[:24] == pack(">I4xBB6xBB6x", 16, 0, 0, 0, 1)
    assert luns.moved == 24
    found = scsi.command(inquiry(), length=96)
    assert found.data[:5] == bytes([0, 0, 5, 2, 91])
    assert found.data[8:32] == b"pyvmm   Virtual Disk    "
    for where in ({"target": 1}, {"path": 3}, {"lun": 5}):
        absent = scsi.command(inquiry(36), length=36, **where)
        assert (absent.ok, absent.data[0]) == (True, 0x7F)
        assert scsi.command(TEST_UNIT_READY, **where).srb_status == 0x20
    empty = scsi.command(REPORT_LUNS, length=4096, target=1)
    assert (empty.ok, empty.data[:4]) == (True, bytes(4))


def test_absent_lun_zero_still_tells_the_other_luns(bench: Bench) -> None:
    first = bench.disk()
    bench.disk()
    scsi = ScsiGuest(bench.guest, bench.controller)
    bench.controller.disks.remove(first, lambda: None)
    scsi.next_packet()
    assert scsi.command(inquiry(36), length=36).data[0] == 0x7F
    assert scsi.command(REPORT_LUNS, length=4096).data[:16] == pack(">I4xBB6x", 8, 0, 1)


def test_read_past_the_end_and_unknown_commands_have_sense_data(bench: Bench) -> None:
    bench.disk()
    scsi = ScsiGuest(bench.guest, bench.controller)
    assert scsi.command(read10(2048, 1), length=512).sense == (5, 0x21, 0)
    assert scsi.command(read10(0xFFFFFFFF, 0xFFFF), length=512).sense == (5, 0x21, 0)
    assert scsi.command(b"\x85" + bytes(15)).sense == (5, 0x20, 0)
    assert scsi.command(inquiry(page=0xC0), length=64).sense == (5, 0x24, 0)


def test_read_only_disk_refuses_to_be_written(bench: Bench) -> None:
    bench.disk(read_only=True, content=b"x" * 512)
    scsi = ScsiGuest(bench.guest, bench.controller)
    assert scsi.command(write10(0, 1), data=bytes(512)).sense == (7, 0x27, 0)
    cdb, parameters = unmap((0, 8))
    assert scsi.command(cdb, data=parameters).sense == (7, 0x27, 0)
    assert scsi.command(read10(0, 1), length=512).data == b"x" * 512
    assert scsi.command(FLUSH).ok


def test_unmap_frees_the_space_of_the_file(bench: Bench) -> None:
    disk = bench.disk(content=b"x" * MIB)
    os.sync()
    before = os.stat(disk.image.path).st_blocks
    scsi = ScsiGuest(bench.guest, bench.controller)
    cdb, parameters = unmap((0, 1024), (1024, 512))
    answer = scsi.command(cdb, data=parameters)
    assert (answer.ok, answer.moved) == (True, len(parameters))
    assert os.stat(disk.image.path).st_blocks < before
    assert scsi.command(read10(0, 8), length=4096).data == bytes(4096)
    assert scsi.command(read10(1536, 8), length=4096).data == b"x" * 4096


def test_write_same_repeats_a_block_and_makes_zeroes(bench: Bench) -> None:
    disk = bench.disk(content=b"x" * MIB)
    scsi = ScsiGuest(bench.guest, bench.controller)
    fill = pack(">BBQIBB", 0x93, 0, 8, 16, 0, 0)
    assert scsi.command(fill, data=b"ab" * 256).ok
    assert Path(disk.image.path).read_bytes()[4096 : 4096 + 8192] == b"ab" * 4096
    for flags in (0x00, 0x08):
        assert scsi.command(pack(">BBQIBB", 0x93, flags, 0, 64, 0, 0), data=bytes(512)).ok
        assert Path(disk.image.path).read_bytes()[: 64 * 512] == bytes(64 * 512)
    assert scsi.command(pack(">BBQIBB", 0x93, 1, 1024, 8, 0, 0)).ok
    assert Path(disk.image.path).read_bytes()[1024 * 512 :][:4096] == bytes(4096)


def test_command_with_less_memory_than_it_moves_is_invalid(bench: Bench) -> None:
    bench.disk()
    scsi = ScsiGuest(bench.guest, bench.controller)
    answer = scsi.command(read10(0, 16), length=4096)
    assert answer.srb_status == 0x06
    assert scsi.command(read10(0, 1), length=4096).moved == 512


def test_pages_outside_memory_are_refused_with_an_answer(bench: Bench) -> None:
    bench.disk()
    scsi = ScsiGuest(bench.guest, bench.controller)
    descriptor = page_list([1 << 40], 4096)
    packet = srb(read10(0, 8), length=4096, direction=1)
    number = scsi.post(packet, type=GPA_DIRECT, descriptor=descriptor)
    assert scsi.completion(number)[14] == 0x06
    assert bench.guest.bus.refused["storvsc"] == 1
    assert scsi.command(TEST_UNIT_READY).ok


def test_bad_packets_are_counted_and_the_channel_goes_on(bench: Bench) -> None:
    bench.disk()
    scsi = ScsiGuest(bench.guest, bench.controller)
    scsi.driver.send(b"short", flags=1, transaction_id=1)
    scsi.driver.send(srb(TEST_UNIT_READY), flags=0, transaction_id=2)
    scsi.driver.send(srb(TEST_UNIT_READY), flags=1, transaction_id=3, type=7)
    scsi.driver.send(srb(bytes(16)).replace(b"\x10\x14", b"\xff\x14"), flags=1, transaction_id=4)
    scsi.driver.expect_nothing()
    assert bench.guest.bus.refused["storvsc"] == 4
    assert scsi.command(TEST_UNIT_READY).ok


class Stuck:
    """An image whose reads wait until they are let go."""

    def __init__(self, image: Any) -> None:
        self.image, self.let_go, self.begun = image, threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.image, name)

    def try_read(self, views: Any, offset: int) -> bool:
        return False

    try_write = try_read

    def write(self, views: Any, offset: int) -> None:
        self.begun.set()
        assert self.let_go.wait(10)
        self.image.write(views, offset)

    def read(self, views: Any, offset: int) -> None:
        self.begun.set()
        assert self.let_go.wait(10)
        self.image.read(views, offset)


def settle(bench: Bench, done: Callable[[], bool]) -> None:
    """Run the loop until the threads have brought `done`."""
    until = time.monotonic() + 10
    while not done():
        assert time.monotonic() < until, "the threads do not end"
        bench.guest.loop.run()
        time.sleep(0.0005)


def test_unload_waits_for_no_stuck_read_and_it_stores_nothing_later(bench: Bench) -> None:
    disk = bench.disk(content=b"x" * 4096)
    disk.image = stuck = Stuck(disk.image)
    scsi = ScsiGuest(bench.guest, bench.controller)
    pages, descriptor = scsi.share(bytes(4096), 4096)
    scsi.post(srb(read10(0, 8), length=4096, direction=1), type=GPA_DIRECT, descriptor=descriptor)
    assert stuck.begun.wait(10)
    bench.guest.unload()
    assert (disk.outstanding, disk.stale) == (1, 1)
    bench.guest.memory.write(pages[0], b"new kernel's")
    stuck.let_go.set()
    settle(bench, lambda: disk.outstanding == 0)
    assert bench.guest.memory.read(pages[0], 12) == b"new kernel's"
    assert disk.stale == 0


def test_new_driver_s_commands_wait_for_the_old_one_s_stuck_write(bench: Bench) -> None:
    disk = bench.disk()
    disk.image = stuck = Stuck(disk.image)
    scsi = ScsiGuest(bench.guest, bench.controller)
    _, descriptor = scsi.share(b"o" * 4096, 4096)
    scsi.post(srb(write10(0, 8), length=4096, direction=0), type=GPA_DIRECT, descriptor=descriptor)
    assert stuck.begun.wait(10)
    bench.guest.close()
    again = ScsiGuest(bench.guest, bench.controller)
    _, descriptor = again.share(b"n" * 4096, 4096)
    new = again.post(srb(write10(0, 8), length=4096, direction=0), type=GPA_DIRECT, descriptor=descriptor)
    assert again.command(TEST_UNIT_READY).ok, "what needs no file is served"
    assert len(disk.waiting) == 1
    stuck.let_go.set()
    assert again.completion(new)[14] == 1
    assert again.command(read10(0, 8), length=4096).data == b"n" * 4096
    assert (disk.stale, disk.outstanding) == (0, 0)


def test_closed_again_a_waiting_command_is_dropped(bench: Bench) -> None:
    disk = bench.disk()
    disk.image = stuck = Stuck(disk.image)
    for _ in range(3):
        scsi = ScsiGuest(bench.guest, bench.controller)
        _, descriptor = scsi.share(b"x" * 4096, 4096)
        scsi.post(srb(write10(0, 8), length=4096, direction=0), type=GPA_DIRECT, descriptor=descriptor)
        assert stuck.begun.wait(10)
        bench.guest.close()
    assert (disk.outstanding, disk.stale) == (1, 1)
    stuck.let_go.set()
    settle(bench, lambda: disk.outstanding == 0)


def test_the_same_number_twice_is_two_requests(bench: Bench) -> None:
    disk = bench.disk()
    disk.image = stuck = Stuck(disk.image)
    scsi = ScsiGuest(bench.guest, bench.controller)
    _, descriptor = scsi.share(None, 4096)
    number = scsi.post(srb(read10(0, 8), length=4096, direction=1), type=GPA_DIRECT, descriptor=descriptor)
    scsi.number -= 1
    assert scsi.post(srb(read10(0, 16), length=4096, direction=1), type=GPA_DIRECT, descriptor=descriptor) == number
    assert scsi.completion(number)[14] == 6, "refused: it has too little memory"
    stuck.let_go.set()
    assert scsi.completion(number)[14] == 1
    assert scsi.driver.channel.outstanding == 0


def test_requests_of_a_hostile_guest_stay_in_its_ring_past_the_limit(bench: Bench) -> None:
    disk = bench.disk()
    disk.image = stuck = Stuck(disk.image)
    scsi = ScsiGuest(bench.guest, bench.controller)
    _, descriptor = scsi.share(None, 512)
    limit = Controller.OWN_COMPLETIONS
    for number in range(limit + 50):
        signal = scsi.driver.outgoing.put(
            srb(read10(0, 1), length=512, direction=1), type=GPA_DIRECT, flags=1, transaction_id=number,
            descriptor=descriptor,
        )  # fmt: skip
        if signal is None or number % 64 == 63:
            scsi.driver.signal()
            bench.guest.loop.run()
    assert bench.controller.workers.outstanding <= limit
    stuck.let_go.set()
    answered = {scsi.next_packet().transaction_id for _ in range(limit + 50)}
    assert len(answered) == limit + 50
    assert len(bench.controller.workers._threads) <= workers.THREADS


def test_guest_that_reads_no_answers_harms_nobody_else(bench: Bench) -> None:
    disk = bench.disk()
    disk.image = stuck = Stuck(disk.image)
    scsi = ScsiGuest(bench.guest, bench.controller)
    _, descriptor = scsi.share(None, 512)
    for _ in range(40):  # the ring of 7 pages holds some 325 answers
        for number in range(64):
            packet = srb(read10(0, 1), length=512, direction=1) if number % 2 else srb(TEST_UNIT_READY)
            how = {"type": GPA_DIRECT, "descriptor": descriptor} if number % 2 else {}
            scsi.driver.outgoing.put(packet, flags=1, transaction_id=number, **how)
        scsi.driver.signal()
        bench.guest.loop.run()
    stuck.let_go.set()
    bench.controller.workers.drain()
    bench.guest.loop.run()
    bench.disk()  # announced to nobody
    assert bench.controller.workers.outstanding == disk.outstanding == 0
    bench.guest.unload()


def failing(code: int) -> Callable[..., None]:
    def fail(*args: Any, **more: Any) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize(
    ("code", "sense"), [(errno.ENOSPC, (7, 0x27, 7)), (errno.EIO, (3, 0x0C, 0)), (errno.EDQUOT, (7, 0x27, 7))]
)
def test_error_of_the_file_is_reported_to_guest_and_monitor(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, code: int, sense: tuple[int, int, int]
) -> None:
    bench.disk()
    scsi = ScsiGuest(bench.guest, bench.controller)
    monkeypatch.setattr(os, "pwritev", failing(code))
    assert scsi.command(write10(0, 1), data=bytes(512)).sense == sense
    (event,) = bench.events
    assert event.name == "BLOCK_IO_ERROR"
    assert (event.data["device"], event.data["operation"], event.data["action"]) == ("disk0", "write", "report")
    assert event.data["nospace"] == (code != errno.EIO)
    assert bench.stops == 0


def test_full_disk_stops_the_machine_and_the_write_is_done_when_it_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = bench.disk(werror="enospc")
    scsi = ScsiGuest(bench.guest, bench.controller)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", failing(errno.ENOSPC))
        _, descriptor = scsi.share(b"y" * 512, 512)
        number = scsi.post(srb(write10(0, 1), length=512, direction=0), type=GPA_DIRECT, descriptor=descriptor)
        bench.controller.workers.drain()
        assert bench.stops == 1
        scsi.driver.expect_nothing()
    bench.controller.resumed()
    assert scsi.completion(number)[14] == 1
    assert Path(disk.image.path).read_bytes()[:512] == b"y" * 512


def test_what_failed_before_the_machine_went_on_does_not_stop_it_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several writes are under way as the disk fills up; the user makes room and goes on once."""
    disk = bench.disk(werror="enospc")
    disk.image._in_memory = False  # type: ignore[attr-defined]
    scsi = ScsiGuest(bench.guest, bench.controller)
    numbers, posted = [], threading.Event()

    def full(fd: int, views: Any, offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError
        assert posted.wait(10)
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        for at in range(4):
            _, descriptor = scsi.share(bytes([at + 1]) * 512, 512)
            packet = srb(write10(at, 1), length=512, direction=0)
            numbers.append(scsi.post(packet, type=GPA_DIRECT, descriptor=descriptor))
        posted.set()
        until = time.monotonic() + 10
        while bench.controller.workers._done < 4 and time.monotonic() < until:
            time.sleep(0.001)
        monkeypatch.setattr(workers, "FINISHED_PER_TURN", 1)
        while not bench.stops:
            assert bench.guest.loop.step()
    bench.controller.resumed()
    assert sorted(scsi.next_packet().transaction_id for _ in numbers) == numbers
    assert bench.stops == 1
    assert Path(disk.image.path).read_bytes()[:2048:512] == bytes([1, 2, 3, 4])


def test_failed_read_stops_the_machine_if_asked_to_and_is_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = bench.disk(content=b"r" * 512)
    disk.rerror = "stop"
    scsi = ScsiGuest(bench.guest, bench.controller)
    pages, descriptor = scsi.share(None, 512)
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", failing(errno.EIO))
        number = scsi.post(srb(read10(0, 1), length=512, direction=1), type=GPA_DIRECT, descriptor=descriptor)
        bench.controller.workers.drain()
        assert bench.stops == 1
        assert (bench.events[0].data["operation"], bench.events[0].data["action"]) == ("read", "stop")
        scsi.driver.expect_nothing()
    bench.controller.resumed()
    assert scsi.completion(number)[14] == 1
    assert scsi.collect(pages, 512) == b"r" * 512


def test_write_that_waits_for_space_is_dropped_with_the_channel(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = bench.disk(werror="stop")
    scsi = ScsiGuest(bench.guest, bench.controller)
    monkeypatch.setattr(os, "pwritev", failing(errno.EIO))
    _, descriptor = scsi.share(bytes(512), 512)
    scsi.post(srb(write10(0, 1), length=512, direction=0), type=GPA_DIRECT, descriptor=descriptor)
    bench.controller.workers.drain()
    assert (bench.stops, disk.outstanding) == (1, 1)
    bench.guest.reset()
    bench.controller.resumed()
    assert (disk.outstanding, bench.controller.workers.outstanding) == (0, 0)


def test_added_disk_is_announced_and_removed_one_leaves_in_order(bench: Bench) -> None:
    bench.disk()
    scsi = ScsiGuest(bench.guest, bench.controller)
    added = bench.disk()
    packet = scsi.next_packet()
    assert (packet.type, packet.transaction_id, packet.payload[:4]) == (6, 0, pack("<I", 11))
    assert scsi.command(TEST_UNIT_READY, lun=1).ok
    gone: list[str] = []
    bench.controller.disks.remove(added, lambda: gone.append(added.id))
    assert scsi.next_packet().payload[:4] == pack("<I", 11)
    assert scsi.command(TEST_UNIT_READY, lun=1).srb_status == 0x20
    bench.guest.advance(1)
    assert scsi.command(FLUSH, lun=1).ok, "a disk that leaves is flushed once more"
    assert not gone
    bench.guest.advance(1)
    settle(bench, lambda: gone == ["disk1"])
    assert scsi.command(FLUSH, lun=1).srb_status == 0x20
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(added.image.fd)  # type: ignore[attr-defined]


def test_disk_of_a_guest_that_does_not_look_is_gone_in_time(bench: Bench) -> None:
    disk = bench.disk()
    ScsiGuest(bench.guest, bench.controller)
    gone: list[int] = []
    bench.controller.disks.remove(disk, lambda: gone.append(1))
    bench.guest.advance(24)
    assert not gone
    bench.guest.advance(2)
    settle(bench, lambda: bool(gone))
    other = bench.disk()
    bench.guest.unload()
    bench.controller.disks.remove(other, lambda: gone.append(2))
    settle(bench, lambda: gone == [1, 2])  # without a driver it is gone at once


def test_controller_is_rescinded_after_its_disks_and_they_come_back_with_it(bench: Bench) -> None:
    disk = bench.disk(content=b"z" * 512)
    scsi = ScsiGuest(bench.guest, bench.controller)
    gone: list[int] = []
    bench.guest.bus.remove(bench.controller, lambda: gone.append(1))
    bench.guest.loop.run()
    assert scsi.next_packet().payload[:4] == pack("<I", 11)
    assert not bench.guest.inbox, "no RESCIND yet"
    assert scsi.command(TEST_UNIT_READY).srb_status == 0x20
    bench.guest.advance(6)
    assert not bench.guest.inbox, "the guest has not let go of the disk"
    assert scsi.command(FLUSH).ok
    bench.guest.advance(1)
    bench.guest.accept_rescind()
    assert gone
    again = ScsiGuest(bench.guest, bench.controller)
    assert again.command(read10(0, 1), length=512).data == b"z" * 512
    assert bench.controller.disks.luns() == [disk.lun]


def test_changed_size_is_told_once(bench: Bench) -> None:
    disk = bench.disk()
    scsi = ScsiGuest(bench.guest, bench.controller)
    disk.image.resize(2 * MIB)
    disk.resized()
    assert scsi.command(inquiry(), length=96).ok, "not to INQUIRY"
    assert scsi.command(TEST_UNIT_READY).sense == (6, 0x2A, 9)
    assert scsi.command(TEST_UNIT_READY).ok
    capacity = scsi.command(b"\x9e\x10" + bytes(8) + pack(">I", 32) + bytes(2), length=32)
    assert unpack_from(">QI", capacity.data) == (2 * MIB // 512 - 1, 512)


def test_sub_channels_carry_commands_and_their_answers(tmp_path: Path) -> None:
    guest = FakeGuest(vp_count=2)
    bench = Bench(tmp_path, guest, sub_channels=1)
    bench.disk(content=b"q" * 512)
    scsi = ScsiGuest(guest, bench.controller)
    assert unpack_from("<IHHI", scsi.properties, 12)[1::2] == (1, 1)
    assert unpack_from("<I", scsi.ask(vstor(13, value=2)), 8)[0] == 0xC000000D, "more than there are"
    assert unpack_from("<I", scsi.ask(vstor(13, value=1)), 8)[0] == 0
    assert unpack_from("<I", scsi.ask(vstor(13, value=1)), 8)[0] == 0xC0000184, "they are offered already"
    second = guest.open(bench.controller, sub_channel=1, target_vp=1, ring_pages=8)
    assert scsi.command(read10(0, 1), length=512, driver=second).data == b"q" * 512
    assert unpack_from("<I", scsi.ask(vstor(7), second), 8)[0] == 0xC0000184, "the handshake is the primary's"
    guest.bus.reset()
    bench.controller.close()
    assert bench.controller.phase is Phase.CLOSED


def test_threads_end_when_the_process_is_to_be_forked(bench: Bench) -> None:
    bench.disk()
    scsi = ScsiGuest(bench.guest, bench.controller)
    assert scsi.command(FLUSH).ok
    assert bench.controller.workers._threads
    bench.controller.quiesce()
    assert not any(thread.name.startswith("disk") for thread in threading.enumerate())
    assert scsi.command(read10(0, 1), length=512).ok


def test_disk_that_the_guest_has_let_go_of_serves_nothing_while_another_leaves(bench: Bench) -> None:
    for _ in range(2):
        bench.disk()
    scsi = ScsiGuest(bench.guest, bench.controller)
    bench.guest.bus.remove(bench.controller)
    bench.guest.loop.run()
    for _ in range(2):
        assert scsi.next_packet().payload[:4] == pack("<I", 11)
    for lun in (0, 1):
        assert scsi.command(TEST_UNIT_READY, lun=lun).srb_status == 0x20
        assert not bench.guest.inbox, "no RESCIND yet"
        assert scsi.command(FLUSH, lun=lun).ok
        bench.guest.advance(1)
        if not lun:
            assert scsi.command(FLUSH, lun=lun).srb_status == 0x20
    bench.guest.accept_rescind()


def test_driver_that_never_finished_its_handshake_is_not_waited_for(bench: Bench) -> None:
    bench.disk()
    ScsiGuest(bench.guest, bench.controller, begin=False)
    bench.guest.bus.remove(bench.controller)
    bench.guest.loop.run()
    bench.guest.accept_rescind()
