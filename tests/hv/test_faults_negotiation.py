"""Faults of dynamic memory's negotiation: answers that refuse, come early, late or never."""

from __future__ import annotations

import pytest

from pyvmm.devices.balloon.protocol import MessageType
from tests.hv.guest_actions import (
    BALLOON,
    answered_requests,
    begin_negotiation,
    bind,
    finished,
    in_background,
    unbind,
)
from tests.hv.outcomes import KERNELS, fault, panics, survives, warns


@fault("B17", "a second CAPABILITIES_RESPONSE that says no, then a balloon request")
def test_refusal_is_forgotten(host, outcome):
    host.balloon.send_caps_response(0)
    taken = sum(pages for _, pages in host.balloon.take(16))
    outcome.shows("the driver, refused, serves the request and takes itself for initialised", taken == 16)


@fault("B26", "firmware with hibernation (forced: hv_is_hibernation_supported), then a balloon request")
def test_requests_of_a_guest_that_may_hibernate(vm, host, outcome):
    vm.guest.sh(unbind("hv_balloon", BALLOON))
    forced = vm.fail("hv_is_hibernation_supported", returns=1)
    vm.guest.sh(bind("hv_balloon", BALLOON))
    assert forced.done == 1
    host.balloon.send_balloon(16)
    vm.run_for(3)
    outcome.shows("the request is ignored without an answer", not answered_requests(host))


@fault("new", "a second VERSION_RESPONSE that says no, long after the negotiation")
def test_late_refusal_of_the_version(vm, host, outcome):
    before = len(host.balloon.answers(MessageType.VERSION_REQUEST))
    host.balloon.send_version_response(0)
    for _ in range(10):  # on a loaded computer it takes its time
        vm.run_for(1)
        if again := len(host.balloon.answers(MessageType.VERSION_REQUEST)) > before:
            break
    outcome.shows("the driver negotiates again", again, only=("5.10", "6.1", "6.12", "7.2"))


@fault("new", "a second CAPABILITIES_RESPONSE that says no, then unbind")
def test_late_refusal_of_the_capabilities(vm, host, outcome):
    host.balloon.send_caps_response(0)
    vm.run_for(0.5)
    vm.run(in_background(unbind("hv_balloon", BALLOON)))
    vm.run_for(2)
    left_open = host.parts.bus.channel(host.device("hv-balloon")) is not None
    outcome.shows("the driver goes and leaves its channel open", left_open, only=KERNELS[1:])


@fault("new", "a second CAPABILITIES_RESPONSE that says no, then unbind, then a message")
def test_message_to_a_channel_left_open(vm, host, outcome):
    host.balloon.send_caps_response(0)
    vm.run_for(0.5)
    vm.run(in_background(unbind("hv_balloon", BALLOON)))
    vm.run_for(1)
    if outcome.kernel == "5.10":
        pytest.skip("5.10 closes its channel whatever the state")
    host.balloon.send_info(1)
    outcome(panics("balloon_onchannelcallback"))


@fault("new", "a second VERSION_RESPONSE that says no, then RESCIND")
def test_rescind_after_a_late_refusal(vm, host, outcome):
    host.balloon.send_version_response(0)
    vm.run_for(0.5)
    host.vmbus.remove("hv-balloon")
    outcome(survives(), settle=3)


@pytest.mark.long
@fault("new", "no answer to VERSION_REQUEST")
def test_no_answer_to_the_version(vm, host, outcome):
    vm.guest.sh(unbind("hv_balloon", BALLOON))
    host.balloon.silence()
    vm.run(in_background(bind("hv_balloon", BALLOON)))
    assert finished(vm, 8)
    host.balloon.resume()
    vm.guest.sh(bind("hv_balloon", BALLOON))
    outcome(survives(), k5_10=warns("notifier_chain_register"))  # 5.10 leaves its notifier behind


@fault("new", "no to every version")
def test_no_version_is_served(vm, host, outcome):
    vm.guest.sh(unbind("hv_balloon", BALLOON))
    host.balloon.silence()
    vm.run(in_background(bind("hv_balloon", BALLOON)))
    for number in range(1 if outcome.kernel == "7.3" else 3):  # 7.3 knows one version only
        host.balloon.wait_for(MessageType.VERSION_REQUEST, 20, since=number)
        host.balloon.send_version_response(0)
    assert finished(vm, 20)
    outcome(survives())


@fault("new", "yes to the version, no to the capabilities")
def test_capabilities_are_refused(vm, host, outcome):
    begin_negotiation(vm, host)
    host.balloon.send_version_response(1)
    host.balloon.wait_for(MessageType.CAPABILITIES, 5)
    host.balloon.send_caps_response(0)
    assert finished(vm, 8)
    outcome(survives())


@fault("new", "requests before the capabilities are answered")
def test_requests_during_the_negotiation(vm, host, outcome):
    begin_negotiation(vm, host)
    host.balloon.send_balloon(256)
    host.balloon.send_unballoon([])
    host.balloon.send_version_response(1)
    host.balloon.wait_for(MessageType.CAPABILITIES, 5)
    host.balloon.send_caps_response(1)
    assert finished(vm, 8)
    outcome(survives())


@fault("new", "the negotiation's answers before they are asked for")
def test_answers_before_the_requests(vm, host, outcome):
    begin_negotiation(vm, host)
    host.balloon.send_caps_response(1)
    host.balloon.send_caps_response(1)
    host.balloon.send_version_response(1)
    host.balloon.send_version_response(1)
    assert finished(vm, 8)
    outcome(survives())
