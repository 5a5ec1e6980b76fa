"""Faults at the guest's first contact: versions, connections, offers. Each case resets the machine, and so boots."""

from __future__ import annotations

import pytest

from pyvmm.testbed.waits import TimedOut
from pyvmm.vmbus.protocol import MessageType
from tests.hv.guest_actions import start
from tests.hv.outcomes import KERNELS, breaks, fault, survives, warns

pytestmark = pytest.mark.long

BOOT = 60.0
"""Seconds for a boot in a busy emulated host."""
STUCK = 25.0
"""Seconds after which a boot that should take a few counts as stuck."""


def boots(vm, seconds=BOOT):
    """Reset the machine; whether the guest's agent answers in time."""
    vm.machine.reset()
    vm.oracles.panic.begin(None)  # this reset is no finding
    try:
        vm.until(lambda: vm.machine.agent.ready, seconds, "the agent")
    except TimedOut:
        return False
    return True


def refused(message):
    """A VERSION_RESPONSE that says no."""
    return message[:8] + bytes(len(message) - 8)


def version_of(contact):
    """The version that an INITIATE_CONTACT asks for, as 5.3."""
    return f"{int.from_bytes(contact[10:12], 'little')}.{int.from_bytes(contact[8:10], 'little')}"


@fault("V13", "no answer to INITIATE_CONTACT")
def test_contact_without_an_answer(vm, host, outcome):
    host.vmbus.withhold(MessageType.VERSION_RESPONSE)
    outcome.shows("the boot waits for ever", not boots(vm, STUCK))


@fault("new", "no to every version of the bus")
def test_no_version_of_the_bus_is_served(vm, host, outcome):
    host.vmbus.change(MessageType.VERSION_RESPONSE, refused)
    assert boots(vm)
    outcome(survives())


@fault("new", "no to the first version, twice")
def test_version_refused_twice(vm, host, outcome):
    def twice(message):
        host.vmbus.send(refused(message))
        return refused(message)

    host.vmbus.change(MessageType.VERSION_RESPONSE, twice, count=1)
    assert boots(vm)
    contacts = host.vmbus.requests(MessageType.INITIATE_CONTACT)
    text = vm.run("dmesg | grep -o 'Vmbus version:.*'").stdout.strip()
    believed = text.rpartition(":")[2]
    agreed = ".".join(map(str, vm.vmbus.version))
    figure = f"guest {believed}, host {agreed}, {len(contacts)} contacts"
    outcome.shows("guest and host agree on different versions", believed != agreed, figure=figure, only=())


@fault("V15", "no to the first version, again as the second is asked for, whose yes then comes as the third is")
def test_answers_one_contact_late(vm, host, outcome):
    answers = []

    def late(message):
        answers.append(message)
        return refused(message) if len(answers) < 3 else answers[1] if len(answers) == 3 else message

    host.vmbus.change(MessageType.VERSION_RESPONSE, late)
    assert boots(vm)
    versions = [version_of(each) for each in host.vmbus.requests(MessageType.INITIATE_CONTACT)]
    believed = vm.run("dmesg | grep -o 'Vmbus version:.*'").stdout.strip().rpartition(":")[2]
    figure = f"yes to {versions[1]}, the guest runs {believed}"
    outcome.shows("the guest takes the answer for that of its next version", believed != versions[1], figure=figure)


@fault("V27", "no to all versions but 2.4, then the guest panics")
def test_no_unload_with_version_2_4(vm, host, outcome):
    def only_2_4(message):
        contact = host.vmbus.requests(MessageType.INITIATE_CONTACT)[-1]
        return message if version_of(contact) == "2.4" else refused(message)

    host.vmbus.change(MessageType.VERSION_RESPONSE, only_2_4)
    assert boots(vm)
    version = version_of(host.vmbus.requests(MessageType.INITIATE_CONTACT)[-1])
    start(vm, "echo c >/proc/sysrq-trigger")
    vm.run_for(8)
    crashed = vm.ended or "Kernel panic" in vm.console.text
    silent = version == "2.4" and crashed and not host.vmbus.requests(MessageType.UNLOAD)
    outcome.shows("it leaves all channels open", silent, only=KERNELS[:4], figure=f"the last contact is {version}")


@fault("new", "yes to the version, with a message connection that the host then refuses")
def test_unknown_message_connection(vm, host, outcome):
    unknown = lambda message: message[:12] + (99).to_bytes(4, "little") + message[16:]  # noqa: E731
    host.vmbus.change(MessageType.VERSION_RESPONSE, unknown)
    outcome.shows("the boot waits for minutes", not boots(vm, STUCK))


@fault("new", "no offers at all")
def test_no_offers(vm, host, outcome):
    host.vmbus.withhold(MessageType.OFFER)
    assert boots(vm)
    outcome(survives())


@fault("new", "offers, and no word that these were all")
def test_offers_without_an_end(vm, host, outcome):
    host.vmbus.withhold(MessageType.ALL_OFFERS_DELIVERED)
    outcome.shows("the boot waits", not boots(vm, STUCK), only=("7.2", "7.3"))


@fault("new", "every offer twice")
def test_every_offer_twice(vm, host, outcome):
    def twice(message):
        host.vmbus.send(message)
        return message

    host.vmbus.change(MessageType.OFFER, twice)
    assert boots(vm)
    outcome(warns("vmbus_onoffer"))


@fault("new", "offers before they are asked for, at once after the version")
def test_offers_before_the_request(vm, host, outcome):
    def and_offer(message):
        host.vmbus.send(message)
        host.vmbus.offer_again("hv-balloon")
        host.vmbus.offer_again("heartbeat")

    host.vmbus.change(MessageType.VERSION_RESPONSE, and_offer)
    boots(vm, STUCK)
    # They are offered once more later: a warning. The guest may have no table of channels yet when the first come.
    outcome(breaks("vmbus_channel_map_relid|vmbus_onoffer"))


@fault("new", "the end of the offers before the first of them")
def test_end_before_the_offers(vm, host, outcome):
    def end_first(message):
        host.vmbus.all_offers()
        return message

    host.vmbus.change(MessageType.OFFER, end_first, count=1)
    assert boots(vm)
    outcome(survives())
