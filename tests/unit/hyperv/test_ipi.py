"""IPI hypercalls: masks and sets of VPs, by register and by memory, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable
from struct import pack

import pytest

from pyvmm.errors import GuestMemoryError
from pyvmm.hyperv.hypercall import Hypercalls
from pyvmm.hyperv.ipi import IpiCalls
from pyvmm.hyperv.tlfs import HypercallControl, HypercallStatus
from pyvmm.memory import GuestMemory

VPS = 130
FAST = 1 << 16
GPA = 0x3000
OK, INPUT, ALIGNMENT = (
    HypercallStatus.SUCCESS,
    HypercallStatus.INVALID_HYPERCALL_INPUT,
    HypercallStatus.INVALID_ALIGNMENT,
)


class Calls:
    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.sent: list[tuple[int, list[int]]] = []
        self.ipi = IpiCalls(VPS, memory, self._send)

    def _send(self, vector: int, vps: Iterable[int]) -> None:
        self.sent.append((vector, list(vps)))

    def call(self, control: int, first: int = 0, second: int = 0) -> int:
        return self.ipi.call(HypercallControl(control), first, second)

    def extended(self, vector: int, form: int, valid: int, banks: list[int], gpa: int = GPA, header: int = -1) -> int:
        self.memory.write(gpa, pack(f"<IIQQ{len(banks)}Q", vector, 0, form, valid, *banks))
        return self.call(0x15 | (len(banks) if header < 0 else header) << 17, gpa)


@pytest.fixture
def calls(memory: GuestMemory) -> Calls:
    return Calls(memory)


def test_a_mask_by_register_or_memory_names_the_first_64_vps(calls: Calls) -> None:
    assert calls.call(0x0B | FAST, 0xFD, 0b101 | 1 << 63) == OK
    calls.memory.write(GPA, pack("<IIQ", 0xFC, 0, 2))
    assert calls.call(0x0B, GPA) == OK
    assert calls.sent == [(0xFD, [0, 2, 63]), (0xFC, [1])]


def test_banks_name_any_vp_and_those_that_do_not_exist_are_left_out(calls: Calls) -> None:
    assert calls.extended(0xFD, 0, 0b101, [1 << 5, (1 << 64) - 1]) == OK
    assert calls.extended(0xFD, 0, 1 << 63, [1]) == OK
    assert calls.sent == [(0xFD, [5, 128, 129]), (0xFD, [])]


def test_all_means_all(calls: Calls) -> None:
    assert calls.extended(0x20, 1, 0, []) == OK
    assert calls.sent == [(0x20, list(range(VPS)))]


@pytest.mark.parametrize("vector", [0, 2, 15, 256, 0xFFFFFFFF])
def test_a_vector_that_no_ipi_has_is_refused(calls: Calls, vector: int) -> None:
    assert calls.call(0x0B | FAST, vector, 1) == INPUT
    assert calls.extended(vector, 0, 1, [1]) == INPUT
    assert not calls.sent


@pytest.mark.parametrize(
    ("control", "first", "status"),
    [
        (0x0B | FAST, 0xFD | 1 << 32, INPUT),  # another trust level
        (0x0B | FAST | 1 << 17, 0xFD, INPUT),
        (0x0B | 1 << 32, GPA, INPUT),  # a repetition
        (0x0B, GPA + 4, ALIGNMENT),
        (0x0B, GPA + 4096 - 8, ALIGNMENT),
        (0x15 | FAST, 0xFD, INPUT),
        (0x15, GPA + 4, ALIGNMENT),
        (0x15 | 1023 << 17, GPA, ALIGNMENT),
        (0x15 | 3 << 17, GPA + 4096 - 24, ALIGNMENT),
    ],
)
def test_calls_that_are_no_good_have_a_status(calls: Calls, control: int, first: int, status: int) -> None:
    assert calls.call(control, first, 1) == status
    assert not calls.sent


def test_a_header_that_does_not_fit_the_banks_is_refused(calls: Calls) -> None:
    assert calls.extended(0xFD, 0, 0b11, [1]) == INPUT
    assert calls.extended(0xFD, 0, 0b1, [1], header=2) == INPUT
    assert calls.extended(0xFD, 2, 0b1, [1]) == INPUT


def test_input_outside_of_ram_is_the_guest_s_error(calls: Calls) -> None:
    for control in (0x0B, 0x15):
        with pytest.raises(GuestMemoryError):
            calls.call(control, 1 << 40)


def test_the_call_exists_only_where_it_is_offered(memory: GuestMemory, calls: Calls) -> None:
    hypercalls = Hypercalls(memory, lambda connection: False)
    assert hypercalls.call(0x0B | FAST, 0xFD, 1) == HypercallStatus.INVALID_HYPERCALL_CODE
    hypercalls.ipi = calls.ipi
    assert hypercalls.call(0x0B | FAST, 0xFD, 1) == OK
    assert hypercalls.call(0x0B, 1 << 40, 1) == HypercallStatus.INVALID_PARAMETER
    assert hypercalls.call(0x5D | 1 << 17, 0, 0) == INPUT, "other calls have no variable header"
