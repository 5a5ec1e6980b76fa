"""Faults around hibernation. Linux suspends and resumes all its devices before it finds that there is no swap."""

from __future__ import annotations

import pytest

from pyvmm.devices.balloon.protocol import MessageType as DmType
from pyvmm.testbed.kernel.printk import LogReader
from pyvmm.vmbus.protocol import MessageType
from tests.hv.guest_actions import BALLOON, NO_DRIVER, devices, in_background, unbind
from tests.hv.outcomes import fault, hangs, oopses, survives

pytestmark = [pytest.mark.long, pytest.mark.pyvmm(append="hibernate=nocompress")]
"""Since Linux 6.9 hibernation looks for its compressor first, which our images lack."""


def hibernate(vm, host):
    """Begin to hibernate; return once the guest's VMBus has made contact anew, on its way back."""
    vm.oracles.log.allow("unchecked MSR access error: WRMSR to 0xc0011029")  # Linux 5.10 on an emulated AMD processor
    before = len(host.vmbus.requests(MessageType.INITIATE_CONTACT))
    vm.run(in_background("echo disk >/sys/power/state"))
    host.vmbus.wait_for(MessageType.INITIATE_CONTACT, 30, since=before)


def thawed(vm):
    """Wait until the guest's processes run again: what the agent gets before is lost."""
    log = LogReader(vm.oracles.kernel())
    vm.until(lambda: any("hibernation exit" in line.text for line in log.read()), 40, "the end of the hibernation")


@fault("new", "nothing; the guest suspends and resumes its devices for a hibernation that fails for lack of swap")
def test_honest_hibernation(vm, host, outcome):
    hibernate(vm, host)
    vm.until(lambda: vm.balloon.ready, 20, "hv_balloon's negotiation")
    outcome(survives(), settle=2)


@fault("B5", "no answer to VERSION_REQUEST as the guest resumes, then unbind")
def test_unbind_after_a_failed_resume(vm, host, outcome):
    before = len(host.balloon.answers(DmType.VERSION_REQUEST))
    host.balloon.silence()
    hibernate(vm, host)
    host.balloon.wait_for(DmType.VERSION_REQUEST, 20, since=before)
    vm.run_for(7)
    vm.run(in_background(unbind("hv_balloon", BALLOON)))
    outcome(oopses("kthread_stop"), settle=2)


@fault("B5", "no answer to VERSION_REQUEST as the guest resumes, then RESCIND")
def test_rescind_after_a_failed_resume(vm, host, outcome):
    before = len(host.balloon.answers(DmType.VERSION_REQUEST))
    host.balloon.silence()
    hibernate(vm, host)
    host.balloon.wait_for(DmType.VERSION_REQUEST, 20, since=before)
    vm.run_for(7)
    host.vmbus.rescind(host.vmbus.relid())
    outcome(oopses("kthread_stop"), settle=2)


@fault("V23", "no offer as the guest resumes, and no answer for the relid that it then makes up")
def test_resume_without_offers(vm, host, outcome):
    host.vmbus.withhold(MessageType.OFFER)
    host.vmbus.withhold(MessageType.GPADL_CREATED)
    hibernate(vm, host)
    outcome(hangs("agent"), settle=12)


@fault("V23", "no offer as the guest resumes; what it asks for the relid that it makes up is refused")
def test_resume_without_offers_but_with_answers(vm, host, outcome):
    host.vmbus.withhold(MessageType.OFFER)
    hibernate(vm, host)
    vm.run_for(12)
    made_up = [each for each in host.vmbus.requests(MessageType.GPADL_HEADER) if each[8:12] == b"\xff" * 4]
    outcome.shows("it opens channels of relid 0xffffffff", bool(made_up), figure=f"{len(made_up)} GPADLs")


@fault("V20", "OFFER as the guest unloads, to hibernate; then, resumed, RESCIND of another device")
def test_offer_before_unload(vm, host, outcome):
    def after_an_offer(message):
        host.vmbus.offer(NO_DRIVER, relid=700)
        return message

    host.vmbus.change(MessageType.UNLOAD_RESPONSE, after_an_offer)
    hibernate(vm, host)
    thawed(vm)
    before = devices(vm)
    host.vmbus.rescind(host.vmbus.relid("timesync"))
    vm.run_for(3)
    outcome.shows("no RESCIND is done any more", devices(vm) == before, only=("5.10",))  # later ones drop such offers


@fault("V13", "no answer to UNLOAD as the guest suspends")
def test_unload_without_an_answer(vm, host, outcome):
    host.vmbus.withhold(MessageType.UNLOAD_RESPONSE)
    vm.run(in_background("echo disk >/sys/power/state"))
    host.vmbus.wait_for(MessageType.UNLOAD, 30)
    outcome(hangs("agent"), settle=3)


@fault("new", "no answer to the contact as the guest resumes")
def test_contact_without_an_answer_at_resume(vm, host, outcome):
    host.vmbus.withhold(MessageType.VERSION_RESPONSE)
    hibernate(vm, host)
    outcome(hangs("agent"), settle=3)


@fault("new", "the version that was agreed on is refused as the guest resumes")
def test_refused_contact_at_resume(vm, host, outcome):
    host.vmbus.change(MessageType.VERSION_RESPONSE, lambda message: message[:8] + bytes(len(message) - 8), count=1)
    hibernate(vm, host)
    outcome(hangs("agent"), settle=12)  # it goes on as if it had been accepted, and asks for relid 0xffffffff
