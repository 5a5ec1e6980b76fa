"""Faults while channels open and close: events too early, answers that refuse, are wrong or never come."""

from __future__ import annotations

import pytest

from pyvmm.vmbus.protocol import GpadlCreated, GpadlHeader, GpadlTeardown, MessageType, OpenResult
from tests.hv.guest_actions import (
    BALLOON,
    HEARTBEAT,
    NO_DRIVER,
    bind,
    devices,
    finished,
    held_up,
    in_background,
    move_balloon,
    start,
    unbind,
)
from tests.hv.outcomes import fault, hangs, panics, survives, warns


def answer_late(vm, withheld):
    """Send the answers that were withheld, if the guest still runs: else it waits for them in its turn."""
    vm.run_for(0.5)
    if not vm.ended:
        withheld.release()


@fault("V1", "the balloon's event before the answer to its GPADL")
def test_event_before_the_gpadl_is_answered(vm, host, outcome):
    vm.guest.sh(unbind("hv_balloon", BALLOON))
    relid = host.vmbus.relid()
    withheld = host.vmbus.withhold(MessageType.GPADL_CREATED)
    start(vm, bind("hv_balloon", BALLOON))
    vm.until(lambda: withheld or vm.ended, 5, "GPADL")
    host.vmbus.signal(relid)
    answer_late(vm, withheld)
    outcome(panics("vmbus_isr|hv_begin_read|vmbus_chan_sched"), k5_10=survives())


@fault("V1", "the heartbeat's event (a driver with its callback in the tasklet) before the answer to its GPADL")
def test_event_before_the_gpadl_of_a_service_is_answered(vm, host, outcome):
    vm.guest.sh(unbind("hv_utils", HEARTBEAT))
    relid = host.vmbus.relid("heartbeat")
    withheld = host.vmbus.withhold(MessageType.GPADL_CREATED)
    start(vm, bind("hv_utils", HEARTBEAT))
    vm.until(lambda: withheld or vm.ended, 5, "GPADL")
    host.vmbus.signal(relid)
    answer_late(vm, withheld)
    outcome(panics("heartbeat_onchannelcallback|vmbus_recvpacket|hv_ringbuffer"), k5_10=survives())


@fault("new", "the balloon's event between the answer to its GPADL and OPEN")
def test_event_before_open(vm, host, outcome):
    vm.guest.sh(unbind("hv_balloon", BALLOON))
    relid = host.vmbus.relid()
    withheld = host.vmbus.withhold(MessageType.OPEN_RESULT)
    start(vm, bind("hv_balloon", BALLOON))
    vm.until(lambda: withheld or vm.ended, 5, "OPEN")
    host.vmbus.signal(relid)
    vm.run_for(0.5)
    withheld.release()
    outcome(survives())


def refuse_open(vm, host):
    """Unbind the balloon, and refuse OPEN as it is bound again; the guest takes its GPADL back. Return the relid."""
    vm.guest.sh(unbind("hv_balloon", BALLOON))
    relid = host.vmbus.relid()
    before = len(host.vmbus.requests(MessageType.GPADL_TEARDOWN))
    host.vmbus.change(MessageType.OPEN_RESULT, lambda message: OpenResult(relid, relid, 0xC0000001).build(), count=1)
    vm.run(in_background(bind("hv_balloon", BALLOON)))
    teardown = host.vmbus.wait_for(MessageType.GPADL_TEARDOWN, since=before)
    host.vmbus.gpadl_torndown(GpadlTeardown.parse(teardown).gpadl)  # pyvmm's server takes the channel for open
    assert finished(vm)
    return relid


@fault("V2", "OPEN_RESULT says no to the balloon; later an event of its relid")
def test_event_after_a_refused_open(vm, host, outcome):
    host.vmbus.signal(refuse_open(vm, host))
    outcome(panics("vmbus_isr|hv_begin_read|vmbus_chan_sched"))


@fault("V2", "GPADL_CREATED says no to the balloon; later an event of its relid")
def test_event_after_a_refused_gpadl(vm, host, outcome):
    vm.guest.sh(unbind("hv_balloon", BALLOON))
    relid = host.vmbus.relid()
    refused = lambda message: GpadlCreated(relid, GpadlCreated.parse(message).gpadl, 0xC0000044).build()  # noqa: E731
    host.vmbus.change(MessageType.GPADL_CREATED, refused, count=1)
    vm.run(bind("hv_balloon", BALLOON))
    vm.run_for(1)
    host.vmbus.signal(relid)
    outcome(panics("vmbus_isr|hv_begin_read|vmbus_chan_sched"))


@fault("new", "GPADL_CREATED says no to a sub-channel of a device that a program drives over uio_hv_generic")
@pytest.mark.pyvmm(devices="echo-monitored")
def test_uio_sub_channel_that_does_not_open(vm, host, outcome):
    vm.run("sleep 1000 <>/dev/uio0 >/dev/null 2>&1 &")  # a program that has the device open
    vm.until(lambda: vm.vmbus.device("echo-monitored")["state"] == "open", 10, "the program's channel")
    before = len(host.vmbus.requests(MessageType.GPADL_HEADER))
    echo = host.device("echo-monitored").offer
    host.vmbus.offer(echo.type, instance=echo.instance, relid=700, sub_channel=1)
    request = GpadlHeader.parse(host.vmbus.wait_for(MessageType.GPADL_HEADER, since=before))
    host.vmbus.gpadl_created(700, request.gpadl, status=0xC0000044)
    vm.run_for(0.5)
    start(vm, "printf '\\1\\0\\0\\0' >/dev/uio0")  # it wants interrupts
    vm.run_for(0.5)
    outcome(hangs("hv_uio_irqcontrol"))


@fault("V2", "OPEN_RESULT says no to the balloon, and no event follows")
def test_refused_open(vm, host, outcome):
    refuse_open(vm, host)
    outcome(survives())


@fault("V13", "no answer to a GPADL")
def test_gpadl_without_an_answer(vm, host, outcome):
    vm.guest.sh(unbind("hv_balloon", BALLOON))
    host.vmbus.withhold(MessageType.GPADL_CREATED)
    vm.run(in_background(bind("hv_balloon", BALLOON)))
    outcome.shows("the driver waits in D state for ever", not finished(vm))


@fault("V13", "no answer to OPEN")
def test_open_without_an_answer(vm, host, outcome):
    vm.guest.sh(unbind("hv_balloon", BALLOON))
    host.vmbus.withhold(MessageType.OPEN_RESULT)
    vm.run(in_background(bind("hv_balloon", BALLOON)))
    outcome.shows("the driver waits in D state for ever", not finished(vm))


@fault("V13", "no answer to OPEN, then RESCIND")
def test_rescind_wakes_a_waiter_for_open(vm, host, outcome):
    vm.guest.sh(unbind("hv_balloon", BALLOON))
    withheld = held_up(vm, host, MessageType.OPEN_RESULT, bind("hv_balloon", BALLOON))
    host.vmbus.remove("hv-balloon")
    assert finished(vm)
    withheld.release()  # too late
    outcome(survives())


@fault("V13", "no answer to a GPADL, then RESCIND")
def test_rescind_wakes_a_waiter_for_a_gpadl(vm, host, outcome):
    vm.guest.sh(unbind("hv_balloon", BALLOON))
    withheld = held_up(vm, host, MessageType.GPADL_CREATED, bind("hv_balloon", BALLOON))
    host.vmbus.remove("hv-balloon")
    assert finished(vm)
    withheld.release()
    outcome(survives())


@fault("V13", "no answer to GPADL_TEARDOWN")
def test_teardown_without_an_answer(vm, host, outcome):
    host.vmbus.withhold(MessageType.GPADL_TORNDOWN)
    vm.run(in_background(unbind("hv_balloon", BALLOON)))
    outcome.shows("unbind waits in D state for ever", not finished(vm))


@fault("V12", "no answer to GPADL_TEARDOWN, then RESCIND of that channel, then an OFFER")
def test_teardown_without_an_answer_stops_the_bus(vm, host, outcome):
    held_up(vm, host, MessageType.GPADL_TORNDOWN, unbind("hv_balloon", BALLOON))
    host.vmbus.rescind(host.vmbus.relid())
    vm.run_for(1)
    before = devices(vm)
    host.vmbus.offer(NO_DRIVER, relid=700)
    vm.run_for(2)
    outcome.shows("no OFFER and no RESCIND is handled any more", devices(vm) == before)


@fault("new", "no answer to GPADL_TEARDOWN, then an OFFER without a RESCIND")
def test_teardown_without_an_answer_stops_offers(vm, host, outcome):
    held_up(vm, host, MessageType.GPADL_TORNDOWN, unbind("hv_balloon", BALLOON))
    before = devices(vm)
    host.vmbus.offer(NO_DRIVER, relid=700)
    vm.run_for(2)
    outcome.shows("no OFFER is handled while the teardown waits", devices(vm) == before)


@fault("new", "GPADL_TORNDOWN twice")
def test_torndown_twice(vm, host, outcome):
    withheld = held_up(vm, host, MessageType.GPADL_TORNDOWN, unbind("hv_balloon", BALLOON))
    message = withheld.messages[0]
    withheld.release()
    host.vmbus.send(message)
    vm.run_for(0.5)
    host.vmbus.honest()
    vm.guest.sh(bind("hv_balloon", BALLOON))
    outcome(survives())


@fault("new", "GPADL_CREATED for another GPADL, later the right one")
def test_answer_for_another_gpadl(vm, host, outcome):
    vm.guest.sh(unbind("hv_balloon", BALLOON))
    withheld = held_up(vm, host, MessageType.GPADL_CREATED, bind("hv_balloon", BALLOON))
    host.vmbus.gpadl_created(host.vmbus.relid(), 0xDEAD)
    vm.run_for(0.5)
    host.vmbus.honest()
    withheld.release()
    assert finished(vm)
    outcome(survives())


@fault("new", "OPEN_RESULT with another open id, later the right one")
def test_answer_with_another_open_id(vm, host, outcome):
    vm.guest.sh(unbind("hv_balloon", BALLOON))
    withheld = held_up(vm, host, MessageType.OPEN_RESULT, bind("hv_balloon", BALLOON))
    host.vmbus.open_result(host.vmbus.relid(), 0xDEAD)
    vm.run_for(0.5)
    host.vmbus.honest()
    withheld.release()
    assert finished(vm)
    outcome(survives())


@fault("V13", "no answer to MODIFYCHANNEL")
@pytest.mark.pyvmm(cpus=2)
def test_modify_without_an_answer(vm, host, outcome):
    host.vmbus.withhold(MessageType.MODIFY_CHANNEL_RESPONSE)
    vm.run(in_background(move_balloon()))
    outcome.shows(
        "the write to sysfs waits in D state for ever", not finished(vm), only=("6.1", "6.12", "7.2", "7.3")
    )


@pytest.mark.long
@fault("V13", "no answer to MODIFYCHANNEL, then an OFFER")
@pytest.mark.pyvmm(cpus=2)
def test_modify_without_an_answer_stops_the_bus(vm, host, outcome):
    host.vmbus.withhold(MessageType.MODIFY_CHANNEL_RESPONSE)
    vm.run(in_background(move_balloon()))
    vm.run_for(1)
    before = devices(vm)
    host.vmbus.offer(NO_DRIVER, relid=700)
    vm.run_for(2)
    outcome.shows("no OFFER is handled any more", devices(vm) == before, only=())


@pytest.mark.long
@fault("new", "MODIFYCHANNEL_RESPONSE says no")
@pytest.mark.pyvmm(cpus=2)
def test_refused_modify(vm, host, outcome):
    refuse = lambda message: message[:12] + (5).to_bytes(4, "little")  # noqa: E731
    host.vmbus.change(MessageType.MODIFY_CHANNEL_RESPONSE, refuse)
    vm.run(in_background(move_balloon()))
    assert finished(vm)
    outcome(survives())


@pytest.mark.long
@fault("new", "the balloon's event on another VP than the guest chose")
@pytest.mark.pyvmm(cpus=2)
def test_event_on_another_vp(vm, host, outcome):
    for vp in (0, 1):
        host.synic.signal(host.vmbus.relid(), vp=vp)
    outcome(survives())


@pytest.mark.long
@fault("new", "messages of the bus on another VP than the guest chose")
@pytest.mark.pyvmm(cpus=2)
def test_messages_on_another_vp(vm, host, outcome):
    before = devices(vm)
    host.vmbus.rescind(host.vmbus.relid("timesync"))  # on VP 0
    for vp in (0, 1):
        host.vmbus.offer(NO_DRIVER, relid=700 + vp)
        host.vmbus.send_type(MessageType.ALL_OFFERS_DELIVERED, vp=vp)
    vm.run_for(1)
    assert devices(vm) == before + 1
    outcome(survives())


@fault("new", "RESCIND while the balloon gives memory")
def test_rescind_while_ballooning(vm, host, outcome):
    vm.balloon.set("300M")
    vm.run_for(0.05)
    host.vmbus.remove("hv-balloon")
    outcome(survives(), settle=3)


@fault("new", "RESCIND and OFFER of the same relid and instance at once, without waiting for the release")
def test_offer_before_the_release(vm, host, outcome):
    relid = host.vmbus.relid()
    host.vmbus.rescind(relid)
    host.vmbus.offer_again()
    outcome(warns("vmbus_onoffer"), settle=3)
