"""Exits decoded from pages written by hand, and answers read back from them."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from struct import pack_into, unpack_from

import pytest

from pyvmm.kvm import exits
from pyvmm.kvm.abi import ExitReason
from pyvmm.kvm.exits import decode

DATA = 4096  # where KVM puts port data


@pytest.fixture
def page() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, 3 * 4096) as area:
        yield area


def leave(page: mmap.mmap, reason: int, layout: str = "", *values: object) -> exits.Exit:
    pack_into("<I", page, 8, reason)
    pack_into("<" + layout, page, 32, *values)
    return decode(page)


def test_a_port_write_carries_its_bytes(page: mmap.mmap) -> None:
    page[DATA : DATA + 4] = b"abcd"
    assert leave(page, ExitReason.IO, "BBHIQ", 1, 2, 0x3F8, 2, DATA) == exits.IoOut(0x3F8, 2, 2, b"abcd")


def test_the_answer_to_a_port_read_lands_where_kvm_looks(page: mmap.mmap) -> None:
    read = leave(page, ExitReason.IO, "BBHIQ", 0, 4, 0x60, 1, DATA)
    assert isinstance(read, exits.IoIn)
    read.reply(b"wxyz")
    assert (read.port, read.size, read.count, page[DATA : DATA + 5]) == (0x60, 4, 1, b"wxyz\0")


@pytest.mark.parametrize("answer", [b"", b"x", b"xyz"])
def test_an_answer_of_the_wrong_length_is_our_mistake(page: mmap.mmap, answer: bytes) -> None:
    read = leave(page, ExitReason.IO, "BBHIQ", 0, 2, 0x60, 1, DATA)
    assert isinstance(read, exits.IoIn)
    with pytest.raises(AssertionError):
        read.reply(answer)


def test_an_mmio_write_carries_only_the_bytes_written(page: mmap.mmap) -> None:
    write = leave(page, ExitReason.MMIO, "Q8sIB", 0xFED00000, b"12345678", 4, 1)
    assert write == exits.MmioWrite(0xFED00000, b"1234")


def test_the_answer_to_an_mmio_read_lands_where_kvm_looks(page: mmap.mmap) -> None:
    read = leave(page, ExitReason.MMIO, "Q8sIB", 0xFED00000, bytes(8), 2, 0)
    assert isinstance(read, exits.MmioRead)
    read.reply(b"hi")
    assert (read.gpa, read.size, page[40:43]) == (0xFED00000, 2, b"hi\0")


def test_an_msr_read_is_answered_with_a_value_or_a_fault(page: mmap.mmap) -> None:
    read = leave(page, ExitReason.X86_RDMSR, "B7xIIQ", 0, 2, 0x40000002, 0)
    assert isinstance(read, exits.Rdmsr)
    read.fault()
    assert page[32] == 1
    read.reply(1 << 63)
    assert (read.index, read.reason, page[32], unpack_from("<Q", page, 48)) == (0x40000002, 2, 0, (1 << 63,))


def test_an_msr_write_is_accepted_or_faulted(page: mmap.mmap) -> None:
    write = leave(page, ExitReason.X86_WRMSR, "B7xIIQ", 0, 4, 0x40000000, 1 << 63)
    assert isinstance(write, exits.Wrmsr)
    write.fault()
    assert page[32] == 1
    write.ok()
    assert (write.index, write.value, write.reason, page[32]) == (0x40000000, 1 << 63, 4, 0)


def test_a_hyperv_hypercall_takes_a_result(page: mmap.mmap) -> None:
    call = leave(page, ExitReason.HYPERV, "IIQQQQ", 2, 0, 0x1005D, 0, 7, 8)
    assert isinstance(call, exits.HypervHcall)
    call.reply(0x12)
    assert (call.input, call.params, unpack_from("<Q", page, 48)) == (0x1005D, (7, 8), (0x12,))


def test_a_synic_exit_has_all_three_registers(page: mmap.mmap) -> None:
    exit = leave(page, ExitReason.HYPERV, "IIIIQQQ", 1, 0, 0x40000083, 0, 1, 0x2001, 0x3001)
    assert exit == exits.HypervSynic(0x40000083, 1, 0x2001, 0x3001)


def test_a_hyperv_exit_of_a_new_kind_is_unknown(page: mmap.mmap) -> None:
    assert leave(page, ExitReason.HYPERV, "I", 9) == exits.Unknown(ExitReason.HYPERV, 9)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (ExitReason.HLT, exits.Hlt()),
        (ExitReason.SHUTDOWN, exits.Shutdown()),
        (ExitReason.INTR, exits.Interrupted()),
        (ExitReason.IRQ_WINDOW_OPEN, exits.IrqWindowOpen()),
        (ExitReason.UNKNOWN, exits.Unknown(0, 0)),
        (ExitReason.WATCHDOG, exits.Unknown(21)),
        (0xFFFFFFFF, exits.Unknown(0xFFFFFFFF)),
    ],
)
def test_exits_without_data(page: mmap.mmap, reason: int, expected: exits.Exit) -> None:
    assert leave(page, reason) == expected


def test_an_internal_error_keeps_no_more_words_than_there_are(page: mmap.mmap) -> None:
    assert leave(page, ExitReason.INTERNAL_ERROR, "II2Q", 3, 2, 5, 6) == exits.InternalError(3, (5, 6))
    many = leave(page, ExitReason.INTERNAL_ERROR, "II", 3, 0xFFFFFFFF)
    assert isinstance(many, exits.InternalError)
    assert len(many.data) == 16


def test_an_emulation_failure_shows_the_instruction(page: mmap.mmap) -> None:
    failure = leave(page, ExitReason.INTERNAL_ERROR, "IIQB15s", 1, 3, 1, 3, b"\x0f\x01\xc1" + b"\xcc" * 12)
    assert isinstance(failure, exits.InternalError)
    assert failure.instruction == b"\x0f\x01\xc1"


def test_a_system_event_of_an_old_kernel_has_one_word(page: mmap.mmap) -> None:
    assert leave(page, ExitReason.SYSTEM_EVENT, "IIQ", 3, 0, 9) == exits.SystemEvent(3, (9,))


def test_the_other_exits_carry_what_the_kernel_wrote(page: mmap.mmap) -> None:
    assert leave(page, ExitReason.FAIL_ENTRY, "QI", 0x80000021, 3) == exits.FailEntry(0x80000021, 3)
    assert leave(page, ExitReason.DEBUG, "IIQQQ", 1, 0, 0x1000, 2, 3) == exits.Debug(1, 0x1000, 2, 3)
    assert leave(page, ExitReason.TPR_ACCESS, "QI", 0x1000, 1) == exits.TprAccess(0x1000, True)
    assert leave(page, ExitReason.IOAPIC_EOI, "B", 0x31) == exits.IoapicEoi(0x31)


def test_a_kvm_hypercall_takes_a_result(page: mmap.mmap) -> None:
    call = leave(page, ExitReason.HYPERCALL, "Q6QQI", 12, 1, 2, 3, 4, 5, 6, 0, 1)
    assert isinstance(call, exits.Hypercall)
    call.reply(5)
    assert (call.number, call.args, call.long_mode) == (12, (1, 2, 3, 4, 5, 6), True)
    assert unpack_from("<Q", page, 88) == (5,)


def test_the_detail_of_an_exit_is_plain_data_without_the_page_it_came_on(page: mmap.mmap) -> None:
    page[DATA : DATA + 4] = b"abcd"
    write = leave(page, ExitReason.IO, "BBHIQ", 1, 2, 0x3F8, 2, DATA)
    assert (write.NAME, exits.exit_detail(write)) == (
        "IoOut",
        {"port": 0x3F8, "size": 2, "count": 2, "data": "61626364"},
    )
    assert exits.exit_detail(leave(page, ExitReason.HLT)) == {}
