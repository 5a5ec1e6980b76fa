"""The count of unhandled accesses."""

from __future__ import annotations

from pyvmm.errors import HostError
from pyvmm.hyperv.tlfs import HypercallStatus
from pyvmm.machine.unhandled import LIMIT, UnhandledLog


def nowhere() -> None:
    return None


def test_the_first_access_keeps_its_place_and_all_are_counted() -> None:
    places = iter([(1, 0x1000), (0, 0x2000)])
    log = UnhandledLog(lambda: next(places))
    for _ in range(3):
        log.io("port write", 0x80, 1, 7)
    log.msr("msr read", 0x8B, None)
    rows = log.describe()["accesses"]
    assert [(row["kind"], row["count"], row["vcpu"], row["rip"]) for row in rows] == [
        ("port write", 3, 1, 0x1000),
        ("msr read", 1, 0, 0x2000),
    ]


def test_entries_are_bounded_and_the_rest_is_counted() -> None:
    log = UnhandledLog(nowhere)
    for port in range(LIMIT + 5):
        log.io("port read", port, 1, None)
    log.io("port read", 0, 1, None)
    about = log.describe()
    assert (len(about["accesses"]), about["more"]) == (LIMIT, 5)
    assert about["accesses"][0]["count"] == 2


def test_known_ports_msrs_and_calls_have_names() -> None:
    log = UnhandledLog(nowhere)
    log.io("port read", 0xCFF, 1, None)
    log.io("mmio read", 0xCFF, 1, None)
    log.msr("msr write", 0x40000105, 1)
    log.hypercall(0x5C, HypercallStatus.INVALID_CONNECTION_ID)
    log.hypercall(0x4242, HypercallStatus.INVALID_HYPERCALL_CODE)
    log.exit("IoapicEoi")
    names = {(row["kind"], row["number"]): row["name"] for row in log.describe()["accesses"]}
    assert names == {
        ("port read", 0xCFF): "PCI configuration",
        ("mmio read", 0xCFF): "",
        ("msr write", 0x40000105): "Hyper-V CRASH_CTL",
        ("hypercall", 0x5C): "POST_MESSAGE",
        ("hypercall", 0x4242): "",
        ("exit", 0): "IoapicEoi",
    }


def test_registers_that_cannot_be_read_cost_only_the_place() -> None:
    def fails() -> None:
        raise HostError("vcpu 0 is closed")

    log = UnhandledLog(fails)
    log.io("mmio read", 0xF0000000, 4, None)
    assert log.describe()["accesses"][0]["rip"] is None
