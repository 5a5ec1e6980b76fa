"""Which engine a machine gets on which KVM."""

from __future__ import annotations

from typing import Any

import pytest

from pyvmm.errors import ConfigError, HostError
from pyvmm.hyperv import kernel, user
from pyvmm.hyperv.tlfs import Access, Hint
from pyvmm.kvm import Cap, CpuidEntry
from pyvmm.machine.engines import choose, missing
from pyvmm.memory import GuestMemory
from tests.support.fake_kvm import FakeLoop


class FakeKvm:
    """A KVM with these capabilities."""

    def __init__(self, *caps: Cap) -> None:
        self.caps = set(caps)
        self.leaves: list[CpuidEntry] = []

    def check(self, cap: Cap) -> int:
        return int(cap in self.caps)

    def supported_hv_cpuid(self) -> list[Any]:
        return self.leaves


BOTH = FakeKvm(*kernel.NEEDED, *user.NEEDED)
ONLY_USER = FakeKvm(*user.NEEDED)
NEITHER = FakeKvm()


def chosen(choice: Any, kvm: FakeKvm) -> str:
    return choose(choice, kvm, 1, GuestMemory.flat(0x1000), FakeLoop(), invariant_tsc=False).name  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("choice", "kvm", "engine"),
    [("auto", BOTH, "kernel"), ("auto", ONLY_USER, "user"), ("kernel", BOTH, "kernel"), ("user", BOTH, "user"),
     ("user", ONLY_USER, "user")],
)  # fmt: skip
def test_auto_takes_the_kernel_s_where_it_is_whole(choice: str, kvm: FakeKvm, engine: str) -> None:
    assert chosen(choice, kvm) == engine


def test_half_a_kernel_engine_is_none() -> None:
    assert chosen("auto", FakeKvm(*user.NEEDED, *kernel.NEEDED[1:])) == "user"


def test_an_engine_asked_for_by_name_says_what_it_lacks() -> None:
    with pytest.raises(ConfigError, match=r"KVM_CAP_HYPERV_SYNIC2.*--hyperv user"):
        chosen("kernel", ONLY_USER)


@pytest.mark.parametrize("choice", ["auto", "user"])
def test_a_kvm_that_can_carry_neither_is_the_host_s_fault(choice: str) -> None:
    with pytest.raises(HostError, match="KVM_CAP_SIGNAL_MSI"):
        chosen(choice, NEITHER)


def test_missing_names_capabilities_as_the_kernel_does() -> None:
    assert missing(NEITHER, (Cap.HYPERV,)) == ["KVM_CAP_HYPERV"]  # type: ignore[arg-type]


class VersionedKvm(FakeKvm):
    """A KVM with all capabilities, and these features in its leaf 0x40000003; None: no such ioctl."""

    def __init__(self, eax: int | None, ebx: int = 0) -> None:
        super().__init__(*kernel.NEEDED, *(() if eax is None else (Cap.SYS_HYPERV_CPUID,)))
        self.leaf = CpuidEntry(0x40000003, 0, 0, eax or 0, ebx, 0, 0)

    def supported_hv_cpuid(self) -> list[Any]:
        return [CpuidEntry(0x40000000, 0, 0, 0x4000000A, 0, 0, 0), self.leaf]


@pytest.mark.parametrize(
    ("kvm", "stable", "offered", "exits"),
    [
        (VersionedKvm(None), True, False, False),  # Linux 5.10
        (VersionedKvm(0x2EFE), True, False, False),  # 6.1: no TSC_INVARIANT_CONTROL, so Linux's write would be #GP
        (VersionedKvm(0xAEFE), True, True, False),  # 6.2
        (VersionedKvm(0xAEFE, 1 << 20), True, True, True),  # 6.3: passes on extended calls
        (VersionedKvm(0xAEFE, 1 << 20), False, False, True),
    ],
)
def test_the_kernel_engine_offers_what_this_kvm_s_version_has(
    kvm: VersionedKvm, stable: bool, offered: bool, exits: bool
) -> None:
    engine = choose("kernel", kvm, 1, GuestMemory.flat(0x1000), FakeLoop(), invariant_tsc=stable)  # type: ignore[arg-type]
    assert bool(engine.offer.access & Access.TSC_INVARIANT) == offered
    assert kernel.passes_extended_calls(kvm) == exits  # type: ignore[arg-type]


def offered(choice: Any, kvm: FakeKvm, *words: str) -> Any:
    memory, loop = GuestMemory.flat(0x1000), FakeLoop()
    return choose(choice, kvm, 1, memory, loop, invariant_tsc=False, enlightenments=words).offer  # type: ignore[arg-type]


def old_kernel(access: int, hints: int) -> FakeKvm:
    """A KVM that lists what of Hyper-V it has."""
    kvm = FakeKvm(*kernel.NEEDED, *user.NEEDED, Cap.SYS_HYPERV_CPUID)
    kvm.leaves = [CpuidEntry(0x40000003, 0, 0, access, 0, 0, 0), CpuidEntry(0x40000004, 0, 0, hints, 0, 0, 0)]
    return kvm


def test_what_kvm_does_not_list_is_refused_by_name_and_left_out_of_all() -> None:
    kvm = old_kernel(int(Access.SYNTIMER | Access.VP_RUNTIME), int(Hint.RELAXED_TIMING))
    assert offered("kernel", kvm, "+stimer").access & Access.SYNTIMER
    with pytest.raises(ConfigError, match="this KVM has no enlightenment ipi, vapic: leave"):
        offered("auto", kvm, "+vapic", "+ipi", "+stimer")
    everything = offered("kernel", kvm, "+all")
    assert everything.access & Access.SYNTIMER
    assert everything.hints == Hint.RELAXED_TIMING | Hint.AUTO_EOI_DEPRECATED
    with pytest.raises(ConfigError, match="enlightenment ipi"):
        offered("kernel", kvm, "+all", "+ipi")


def test_a_kvm_that_lists_nothing_is_believed() -> None:
    assert offered("kernel", BOTH, "+all").hints & Hint.CLUSTER_IPI


def test_the_user_engine_that_auto_takes_refuses_what_only_the_kernel_s_has() -> None:
    assert offered("auto", BOTH, "+tlbflush").hints & Hint.REMOTE_TLB_FLUSH
    with pytest.raises(ConfigError, match="the user engine has no enlightenment tlbflush"):
        offered("auto", ONLY_USER, "+tlbflush")
