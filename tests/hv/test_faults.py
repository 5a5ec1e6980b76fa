"""Named faults against Linux's drivers: each breaks one rule of the protocol, and the guest shows that it did."""

from __future__ import annotations

HEARTBEAT = "heartbeat"


def panicked(vm, within=15):
    """Let the guest run until it panics; return the crash text."""
    vm.run_for(within)
    assert vm.ended and vm.machine.outcome.kind == "panic", vm.status
    return vm.machine.outcome.crash.text


def test_a_lost_request_changes_nothing(vm):
    with vm.faults.add("balloon-request-lost") as fault:
        vm.balloon.set("256M")
        vm.until(lambda: fault.hits, 5, "the request")
        vm.run_for(1)
    assert vm.balloon.actual == 512 << 20


def test_a_missing_trailer_has_old_bytes_read_as_messages(vm):
    """Linux's index passes the host's, and the rest of the ring counts as data."""
    with vm.faults.add("packet-trailer-missing"):
        vm.balloon.set("448M")
        vm.run_for(2)
    assert any("Unhandled message: type: 0" in line for line in vm.guest.dmesg("hv_balloon"))


def test_events_that_come_late_delay_a_resize(vm):
    with vm.faults.add("events-late", count=1):
        begin = vm.machine.guest_time.clock()
        vm.balloon.resize("448M")
        assert vm.machine.guest_time.clock() - begin > 1


def test_a_page_beyond_ram_panics_the_guest(vm):
    vm.balloon.resize("448M")
    vm.faults.add("unballoon-beyond-ram")
    vm.balloon.set("512M")
    assert "free_balloon_pages" in panicked(vm)


def test_a_timer_message_panics_a_guest_without_synthetic_timers(vm):
    vm.faults.add("message.out:change,type=RESCIND,to.synic_type=0x80000010")
    vm.machine.monitor.remove_device(HEARTBEAT)
    text = panicked(vm)
    assert "hv_stimer0_isr" in text or "vmbus_isr" in text


def test_a_function_changes_what_crosses(vm):
    """The guest gets requests of a tenth of what the device asks for; the device asks again for the rest."""
    requests = []

    def tenth(item):
        pages = int.from_bytes(item.data[24:28], "little")
        requests.append(pages)
        return item.data[:24] + (pages // 10).to_bytes(4, "little") + item.data[28:]

    with vm.faults.add("packet.out", tenth, message="BALLOON_REQUEST", count=2):
        vm.balloon.set("448M")
        vm.run_for(2)
    assert requests and (512 << 20) - vm.balloon.actual > 0
