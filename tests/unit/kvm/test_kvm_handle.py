"""Failures say what failed, on what, and why; handles close twice and fail plainly when closed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pyvmm.errors import HostError
from pyvmm.kvm import structs
from pyvmm.kvm.abi import Op
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.handle import Handle, KvmError
from pyvmm.kvm.system import Kvm


@pytest.fixture
def null() -> Handle:
    return Handle(os.open("/dev/null", os.O_RDWR), "vcpu 7")


@pytest.mark.parametrize(
    "argument",
    [0, 1 << 40, structs.Regs(), bytearray(8), bytearray(5000), structs.LapicState()],
    ids=["int", "long int", "structure", "bytes", "many bytes", "1 KiB structure"],
)
def test_a_refused_request_is_named_whatever_its_argument(null: Handle, argument: object) -> None:
    with (
        null,
        pytest.raises(KvmError, match=r"^KVM_SET_REGS\(rip 0x10\) on vcpu 7 .*ENOTTY.*too old") as info,
    ):
        null.ioctl(Op.SET_REGS, argument, "rip 0x10")
    assert (info.value.op, info.value.errno) == (Op.SET_REGS, errno.ENOTTY)


def test_the_cause_fits_the_request() -> None:
    assert "overlaps" in str(KvmError(Op.SET_USER_MEMORY_REGION, "vm", "", errno.EEXIST))
    assert "has a vCPU" in str(KvmError(Op.CREATE_VCPU, "vm", "id 0", errno.EEXIST))
    assert str(KvmError(Op.NMI, "vcpu 0", "", errno.EXDEV)).endswith("(EXDEV)")


def test_closing_twice_is_fine_and_use_after_it_is_a_plain_error(null: Handle) -> None:
    null.close()
    null.close()
    assert null.closed
    with pytest.raises(HostError, match="vcpu 7 is closed"):
        null.ioctl(Op.NMI)


def test_a_missing_device_says_what_would_bring_it(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot open .*kvm: No such file.*kvm-intel or kvm-amd.*--host emulated"):
        Kvm(str(tmp_path / "kvm"))


def test_a_device_that_is_not_kvm_is_refused() -> None:
    with pytest.raises(HostError, match="/dev/null is not KVM"):
        Kvm("/dev/null")


@pytest.mark.parametrize(
    ("number", "hint"), [(errno.EACCES, "group kvm"), (errno.EBUSY, "another hypervisor"), (errno.ENODEV, "emulated")]
)
def test_a_device_that_does_not_open_says_what_to_do(monkeypatch: pytest.MonkeyPatch, number: int, hint: str) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, "refused")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HostError, match=hint) as info:
        Kvm()
    assert "\n" not in str(info.value)


def test_capabilities_have_the_numbers_the_hyperv_engines_use() -> None:
    assert (Cap.HYPERV_SYNIC2, Cap.HYPERV_EVENTFD, Cap.X86_USER_SPACE_MSR, Cap.X86_MSR_FILTER) == (148, 154, 188, 189)


def test_structures_print_their_fields() -> None:
    assert repr(structs.Xcr(0, 0, 7)) == "<Xcr xcr=0x0 reserved=0x0 value=0x7>"
