"""Faults of the integration services: heartbeat, shutdown, time synchronisation."""

from __future__ import annotations

from struct import pack
from uuid import UUID

import pytest

from pyvmm.devices.ic.protocol import IcType
from pyvmm.testbed.host.ic import RawService
from pyvmm.vmbus.protocol import MessageType
from tests.hv.guest_actions import hog_cpu
from tests.hv.outcomes import ends, fault, oopses, survives

YEAR = 365.25 * 86400

VSS = UUID("35fa2e29-ea23-4236-96ae-3a6ebacba440")
VSS_TYPE = 5
GET_DM_INFO, FREEZE, THAW = (pack("<B11x", operation) for operation in (3, 5, 6))
"""struct hv_vss_msg: an operation, and the room for the answer."""


def clock(vm):
    """The guest's time of day in seconds since 1970."""
    return int(vm.guest.sh("date +%s"))


@fault("new", "a heartbeat with sequence number 2^64 - 1")
def test_heartbeat_of_the_largest_sequence(host, outcome):
    host.ic.beat((1 << 64) - 1)
    assert host.ic.heartbeat.wait_for().body[:8] == bytes(8)
    outcome(survives())


@fault("new", "a heartbeat without a body")
def test_heartbeat_without_a_body(host, outcome):
    host.ic.heartbeat.send(b"")
    outcome(survives())


@fault("new", "a service's message of 4 bytes, of 8, of 20, of 27")
def test_services_messages_cut_short(vm, host, outcome):
    for service in (host.ic.heartbeat, host.ic.shutdown, host.ic.timesync):
        for size in (4, 8, 20, 27):
            service.send_raw(pack("<II", 1, 0) + bytes(19) if size == 27 else bytes(size))
            vm.run_for(0.1)
    outcome(survives())


@fault("new", "a service's message that says 65535 bytes in each of its headers")
def test_services_sizes_beyond_the_message(vm, host, outcome):
    for service in (host.ic.heartbeat, host.ic.shutdown, host.ic.timesync):
        service.send(bytes(16), size=0xFFFF, pipe_size=0xFFFFFFFF)
        vm.run_for(0.2)
    outcome(survives())


@fault("new", "messages of every type to every service")
def test_services_messages_of_every_type(vm, host, outcome):
    for service in (host.ic.heartbeat, host.ic.timesync):
        for kind in range(1, 12):
            service.send(bytes(64), type=kind)
            vm.run_for(0.05)
    outcome(survives())


@fault("new", "a negotiation with 65535 versions in the header and two in the message")
def test_negotiation_of_65535_versions(vm, host, outcome):
    for service in (host.ic.heartbeat, host.ic.shutdown, host.ic.timesync):
        service.negotiate([(3, 0)], [(3, 0)], counts=(0xFFFF, 0xFFFF))
        vm.run_for(0.2)
    outcome(survives())


@fault("new", "a negotiation with 100 versions in the header and two in the message")
def test_negotiation_of_100_versions(vm, host, outcome):
    host.ic.heartbeat.negotiate([(3, 0)], [(3, 0)], counts=(100, 100))
    vm.run_for(0.5)
    outcome(survives())


@fault("new", "a second negotiation with no version in common")
def test_negotiation_with_nothing_in_common(host, outcome):
    host.ic.heartbeat.negotiate([(9, 9)], [(9, 9)])
    assert host.ic.heartbeat.wait_for().body[:4] == bytes(4)
    outcome(survives())


@fault("new", "a negotiation of no versions at all")
def test_negotiation_of_no_versions(host, outcome):
    host.ic.heartbeat.negotiate([], [])
    outcome(survives())


def clock_once(vm, expected):
    """Return the guest's clock once it is as expected, or after some seconds as it is. The machine's own device sends
    the right time now and then."""
    now = 0
    for _ in range(12):
        vm.run_for(0.4)
        now = clock(vm)
        if expected(now):
            break
    return now


@fault("U4", "a time of 1970")
def test_time_of_1970(vm, host, outcome):
    host.ic.set_time(1000)
    now = clock_once(vm, lambda now: now < 10000)
    outcome.shows("the guest's clock is set", now < 10000, figure=f"{now} s since 1970")


@fault("U4", "a time of 2200")
def test_time_of_2200(vm, host, outcome):
    host.ic.set_time(230 * YEAR)
    now = clock_once(vm, lambda now: now > 229 * YEAR)
    outcome.shows("the guest's clock is set", now > 229 * YEAR, figure=f"year {1970 + now / YEAR:.0f}")


@fault("U4", "a time before 1970")
def test_time_before_1970(vm, host, outcome):
    before = clock(vm)
    host.ic.set_time(-100 * YEAR)
    vm.run_for(1)
    now = clock(vm)
    outcome.shows("the guest's clock is changed", abs(now - before) > YEAR, only=(), figure=f"{now} s since 1970")


@fault("U4", "times with all bits set")
def test_time_of_all_ones(vm, host, outcome):
    for reference in (0, (1 << 64) - 1):
        host.ic.timesync.send(pack("<QQBBB3s", (1 << 64) - 1, reference, 1, 0xFF, 0xFF, bytes(3)))
        vm.run_for(0.3)
    outcome(survives())


@fault("new", "a time sample whose reference counter lies far ahead")
def test_sample_with_a_wrong_reference(vm, host, outcome):
    host.ic.set_time(1_700_000_000, flags=2, reference=1 << 62)
    vm.run_for(0.3)
    vm.run("cat /sys/class/ptp/ptp0/clock_name; date")
    outcome(survives())


@fault("new", "500 times to set at once")
def test_flood_of_times(vm, host, outcome):
    for _ in range(500):
        host.ic.set_time(1_700_000_000)
        vm.run_for(0.002)
    outcome(survives())


@fault("new", "a shutdown request with unknown flags")
def test_shutdown_with_unknown_flags(host, outcome):
    host.ic.shut_down(0xFFFFFFFE)
    assert host.ic.shutdown.wait_for().status != 0
    outcome(survives())


@fault("new", "a shutdown request without a body")
def test_shutdown_without_a_body(vm, host, outcome):
    host.ic.shutdown.send(b"")
    outcome(survives(), settle=3, k5_10=ends("reset"))  # 5.10 reads what the message before left in its buffer


@fault("new", "a shutdown request for hibernation, which the guest's firmware does not offer")
def test_hibernation_is_refused(vm, host, outcome):
    host.ic.shut_down(4)
    outcome(survives(), settle=3)


@fault("new", "an answer in place of a request")
def test_answer_in_place_of_a_request(host, outcome):
    host.ic.heartbeat.send(bytes(40), flags=5, type=IcType.HEARTBEAT)
    outcome(survives())


@fault("new", "two heartbeats and two negotiations in one event")
def test_messages_in_one_event(vm, host, outcome):
    for _ in range(2):
        host.ic.beat(7)
        host.ic.heartbeat.negotiate([(3, 0)], [(3, 0)])
    outcome(survives())


def backup_service(vm, host):
    """Offer the service of backups (VSS), for which hv_utils has a driver; return it once it has negotiated."""
    device = host.vmbus.add(VSS, name="raw-vss")
    vm.until(lambda: device.channel, 5, "open channel of VSS")
    service = RawService(host, device, VSS_TYPE, (5, 0))
    service.negotiate([(3, 0)], [(5, 0)])
    service.wait_for()
    return service


@fault("U3", "two requests to the backup service before its worker runs")
@pytest.mark.pyvmm(cpus=1)
def test_two_requests_to_the_backup_service(vm, host, outcome):
    service = backup_service(vm, host)
    hog_cpu(vm)
    for transaction, body in ((1, GET_DM_INFO), (2, THAW)):
        service.send(body, transaction=transaction)
        vm.run_for(0.1)
    vm.run_for(3)
    answered = [each.header.transaction for each in service.answers if each.header.transaction in (1, 2)]
    outcome.shows("the second overwrites the first", answered == [2], figure=f"answers to {answered}")


@fault("U3", "a question to the backup service, then a request to freeze, though no daemon is there")
def test_freeze_without_a_daemon(vm, host, outcome):
    service = backup_service(vm, host)
    vm.run_for(1)  # the driver prepares what it needs only once its channel is open
    service.send(FREEZE, transaction=1)
    first = service.wait_for(1).status
    service.send(GET_DM_INFO, transaction=2)
    service.wait_for(2)
    service.send(FREEZE, transaction=3)
    second = service.wait_for(3).status
    sent = bool(vm.guest.dmesg("failed to communicate to the daemon"))
    figure = f"answers {first:#x}, then {second:#x}"
    outcome.shows("after the question the driver takes its daemon for there", sent, figure=figure)


@fault("new", "a question to the backup service and a request to freeze, before OPEN is answered")
def test_freeze_before_the_open_is_answered(vm, host, outcome):
    withheld = host.vmbus.withhold(MessageType.OPEN_RESULT)
    device = host.vmbus.add(VSS, name="raw-vss")
    vm.until(lambda: device.channel, 5, "open channel of VSS")
    service = RawService(host, device, VSS_TYPE, (5, 0))
    service.send(GET_DM_INFO, transaction=1)
    service.wait_for(1)
    service.send(FREEZE, transaction=2)
    vm.run_for(0.5)
    withheld.release()
    outcome(oopses("hvutil_transport_send"), settle=2)
