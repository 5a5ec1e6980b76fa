"""The oracles: silent about the guest of an honest host, and each tripped by a fault that its test plants."""

from __future__ import annotations

from uuid import UUID

import pytest

from pyvmm.testbed.oracles import hang, suite, wakeups
from pyvmm.vmbus.protocol import MessageType

GROWING = "512M,max=768M"


def lines(verdict, oracle):
    """What one oracle found, and nothing else did."""
    assert {each.oracle for each in verdict.findings} == {oracle}, str(verdict)
    return [each.line for each in verdict.findings]


def cycle(vm):
    vm.balloon.resize("256M")
    assert vm.survives(0.3)
    vm.balloon.resize("700M")
    assert vm.survives(0.3)
    vm.balloon.resize("400M")
    assert vm.survives(0.3)
    vm.oracles.poison.on()
    vm.balloon.resize("256M")
    assert vm.oracles.poison.pages.pages > 10_000
    assert vm.survives(0.3)
    vm.balloon.resize("700M")
    assert vm.survives(0.3)


@pytest.mark.pyvmm(kernel="6.1", engine="user", cpus=2, memory=GROWING)
def test_nothing_is_found_in_balloon_cycles_and_hot_add_with_two_cpus(vm):
    cycle(vm)


@pytest.mark.pyvmm(kernel="6.1", engine="kernel", cpus=1, memory=GROWING)
def test_nothing_is_found_in_balloon_cycles_and_hot_add_in_the_kernel_engine(vm):
    cycle(vm)


def test_log_a_new_line_is_found_once(vm):
    vm.run("echo '<4>WARNING: planted' >/dev/kmsg")
    assert lines(vm.survives(0.1), "log") == ["warning: WARNING: planted"]
    assert vm.survives(0.1)


def test_panic_is_told_with_its_trace(vm):
    with pytest.raises(AssertionError, match="ended"):
        vm.run("echo c >/proc/sysrq-trigger")
    (finding,) = vm.survives(0.1).of("panic")
    assert finding.line == "Kernel panic - not syncing: sysrq triggered crash"
    assert "sysrq_handle_crash" in finding.details


def test_panic_a_reset_is_told(vm):
    before = vm.machine.resets
    vm.machine.agent.execute("echo b >/proc/sysrq-trigger", lambda stream, data: None, lambda status: None)
    vm.until(lambda: vm.machine.resets > before, 20, "reset")
    assert lines(vm.survives(0.1), "panic") == ["the machine was reset once"]


def test_hang_an_agent_that_stands_still(vm, monkeypatch):
    monkeypatch.setattr(suite, "AGENT_SECONDS", 3.0)
    vm.run("(sleep 0.5; kill -STOP $(cat /run/agent/readers)) >/dev/null 2>&1 &")
    vm.run_for(1.5)
    assert lines(vm.survives(0.1), "hang") == ["the guest's agent does not answer"]


def test_hang_a_task_that_waits_for_a_withheld_answer(vm, host):
    host.vmbus.withhold(MessageType.GPADL_TORNDOWN)
    vm.run("{ cd /sys/bus/vmbus/drivers/hv_balloon && echo *-*-* >unbind; } >/dev/null 2>&1 &")
    verdict = vm.survives(0.5, without=["devices"])
    (finding,) = verdict.of("hang")
    assert "is stuck in the kernel" in finding.line
    assert "vmbus_teardown_gpadl" in finding.details


def test_hang_a_vcpu_that_spins_in_a_tasklet(vm, host):
    host.ring("hv-balloon").send(bytes(8))  # less than a packet: hv_vmbus looks for more of it for ever
    verdict = vm.survives(0.5)
    (finding,) = verdict.of("hang")
    assert finding.line == "vCPU 0 spins in the kernel"
    assert "[hv_" in finding.details
    assert any("bytes that the guest does not read" in each.line for each in verdict.of("wakeups"))


def lose_events(vm, device, point):
    """Lose a channel's signals in one direction."""
    relid = vm.vmbus.device(device)["relid"]

    def lose(item, deliver):
        lost = item.point == point and item.fields.get("relid") == relid
        return None if lost else deliver(item)

    vm.machine.taps.event.attach(lose)


def test_wakeups_a_lost_event_and_the_heartbeat_that_it_costs(vm, monkeypatch):
    monkeypatch.setattr(wakeups, "PATIENCE", 2.0)
    monkeypatch.setattr(hang, "BEAT_SECONDS", 3.0)
    relid = vm.vmbus.device("heartbeat")["relid"]
    vm.machine.taps.event.attach(
        lambda item, deliver: (
            None if item.fields.get("relid") == relid and item.point == "event.out" else deliver(item)
        )
    )
    verdict = vm.survives(4)
    (finding,) = verdict.of("wakeups")
    assert finding.line.startswith("heartbeat: ")
    assert "bytes that the guest does not read" in finding.line
    assert "event flag on VP 0: 0" in finding.details
    assert "no heartbeat for" in verdict.of("hang")[0].line


def test_wakeups_a_signal_of_the_guest_that_is_lost(vm, monkeypatch):
    monkeypatch.setattr(wakeups, "PATIENCE", 2.0)
    relid = vm.vmbus.device("heartbeat")["relid"]
    vm.machine.taps.event.attach(
        lambda item, deliver: (
            None if item.fields.get("relid") == relid and item.point == "event.in" else deliver(item)
        )
    )
    (finding,) = vm.survives(2.5).of("wakeups")
    assert "bytes for the host, which was not signalled" in finding.line


def test_accounting_ten_pages_that_the_host_has_lost(vm):
    vm.balloon.resize("400M")
    ledger = vm.balloon.device.machine.ledger
    ledger.boot.removed_both.subtract(ledger.boot.removed_both.top(10))
    found = lines(vm.survives(0.1), "accounting")
    assert "the guest's memory is off by -10 pages" in found
    assert any(each.startswith("the driver counts") for each in found)


def give_back_and_keep(vm, host, pages):
    """Send the guest some of these pages, which it frees then, and keep them: more than a CPU's list of free pages
    holds, from which another CPU would get none. Returns their addresses."""
    start, size = max(pages, key=lambda each: each.pages)
    size = min(size, 4096)
    assert size > 2000
    vm.machine.taps.packet.detach(vm.oracles.poison._packet)
    host.balloon.send_unballoon([(start, size)])
    return range(start * 4096, (start + size) * 4096)


def test_poison_stops_the_guest_at_the_touch(vm, host):
    vm.oracles.poison.on()
    vm.balloon.resize("256M")
    vm.run_for(0.3)
    kept = give_back_and_keep(vm, host, vm.oracles.poison.pages)
    with pytest.raises(AssertionError, match=r"poison stopped the guest \(.*\) before: end of the command"):
        vm.run("dd if=/dev/zero of=/tmp/all bs=1M count=180")
    (finding,) = vm.survives(0.1).of("poison")
    assert "which is the host's, by vCPU " in finding.line
    assert vm.oracles.poison.touches[0].gpa in kept
    assert "clear_page" in finding.details
    assert "? do_syscall_64" in finding.details
    assert vm.status == "paused"
    vm.oracles.poison.resume()
    assert vm.run("echo alive").stdout == "alive\n"


@pytest.mark.parametrize(
    "engine", [pytest.param(each, marks=pytest.mark.pyvmm(engine=each)) for each in ("kernel", "user")]
)
@pytest.mark.pyvmm(memory=GROWING)
def test_poison_stops_the_guest_at_a_touch_of_hot_added_memory(vm, host, engine):
    vm.balloon.resize("768M")
    added = vm.machine.balloon.machine.ledger.added
    vm.oracles.poison.on()
    vm.balloon.resize("256M")
    vm.run_for(0.3)
    kept = give_back_and_keep(vm, host, vm.oracles.poison.pages & added.ram)
    with pytest.raises(AssertionError, match=r"poison stopped the guest"):
        vm.run("dd if=/dev/zero of=/tmp/all bs=1M count=180")
    (finding,) = vm.survives(0.1).of("poison")
    assert vm.oracles.poison.touches[0].gpa in kept
    assert "clear_page" in finding.details
    vm.oracles.poison.resume()
    vm.balloon.set("700M")
    vm.until(lambda: vm.balloon.actual >= 600 << 20, 30, "memory back, in slots as before")
    assert vm.run("echo alive").stdout == "alive\n"


def test_poison_knows_what_a_raw_host_gives_back(vm, host):
    vm.oracles.poison.on()
    vm.balloon.resize("256M")
    vm.run_for(0.3)
    before = vm.oracles.poison.pages.pages
    taken = list(vm.oracles.poison.pages)[-1]
    host.balloon.send_unballoon([(taken.start, 64)])
    assert vm.oracles.poison.pages.pages == before - 64
    vm.run("dd if=/dev/zero of=/tmp/all bs=1M count=150")
    assert vm.survives(0.1, without=["accounting"])


def test_signals_interrupts_without_packets(vm, host):
    assert vm.survives(0.1)  # the guest's count so far
    ring = host.ring("hv-balloon")
    for _ in range(400):
        ring.signal()
        vm.run_for(0.002)
    (line,) = lines(vm.survives(0.1), "signals")
    assert "VMBus interrupts for" in line


def test_devices_an_offer_that_the_host_does_not_know(vm, host):
    guid = host.vmbus.offer(UUID("00000000-1111-2222-3333-444444444444"), relid=77)
    vm.guest.sh(f"until ls /sys/bus/vmbus/devices | grep -q {guid}; do sleep 0.1; done")
    (line,) = lines(vm.survives(0.1), "devices")
    assert line == f"the guest has {guid}, which is not offered"
