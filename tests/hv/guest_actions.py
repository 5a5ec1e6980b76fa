"""What fault cases have the guest do: bind and unbind drivers, use memory, and tell how it is."""

from __future__ import annotations

from uuid import UUID

from pyvmm.devices.balloon.protocol import MessageType, StatusReport
from pyvmm.devices.ic.heartbeat import Heartbeat
from pyvmm.testbed.balloon import BALLOON_ID

NO_DRIVER = UUID("f8e65716-3cb3-4a06-9a60-1889c5cccab5")
"""A device type that Linux knows and has no driver for."""

BALLOON = BALLOON_ID
HEARTBEAT = str(Heartbeat.OFFER.instance)
DRIVERS = "/sys/bus/vmbus/drivers"
KERNEL_HALF = 1 << 63
"""Addresses from here on are the kernel's."""
STUCK = 4.0
"""Seconds after which a guest's command that should take milliseconds counts as stuck."""


def start(vm, command):
    """Start a command in the guest; returns a list that gets its status."""
    status = []
    vm.machine.agent.execute(command, lambda stream, data: None, status.append)
    return status


def bind(driver, device):
    """The command that binds a driver; it says nothing if that fails."""
    return f"(echo {device} >{DRIVERS}/{driver}/bind) 2>/dev/null"


def unbind(driver, device):
    """The command that unbinds a driver."""
    return f"echo {device} >{DRIVERS}/{driver}/unbind"


def in_background(command):
    """A command that leaves the agent free, whatever becomes of it."""
    return f"({command}; echo $? >/tmp/status) >/dev/null 2>&1 &"


def held_up(vm, host, answer, command):
    """Start a command whose request the bus does not answer; returns the answers, once one was withheld."""
    withheld = host.vmbus.withhold(answer)
    vm.run(in_background(command))
    vm.until(lambda: withheld, 5, answer.name)
    return withheld


def begin_negotiation(vm, host):
    """Have hv_balloon bound again with the raw host alone at the other end, up to its VERSION_REQUEST."""
    vm.guest.sh(unbind("hv_balloon", BALLOON))
    host.balloon.silence()
    vm.run(in_background(bind("hv_balloon", BALLOON)))
    host.balloon.wait_for(MessageType.VERSION_REQUEST, 5)


def finished(vm, seconds=STUCK):
    """Whether the last `in_background` command has ended, within a time."""
    wait = f"for i in $(seq {int(seconds * 2)}); do [ -e /tmp/status ] && exit 0; sleep 0.5; done; exit 1"
    return vm.run(wait).status == 0


def hog_cpu(vm, seconds=2):
    """Have a real-time task take the only CPU: for a second interrupts and softirqs run, and no worker of the kernel.

    Returns once it has the CPU, of which Linux leaves a twentieth of each second to others.
    """
    start(vm, f"exec /etc/pyvmm/realtime /bin/timeout {seconds} /bin/sh -c 'while :; do :; done'")
    seen = 0
    for _ in range(200):
        (vcpu,) = vm.machine.slot.vcpu_snapshots()
        seen = seen + 1 if not vcpu.halted and vcpu.rip < KERNEL_HALF else 0
        if seen == 3:
            return
        vm.run_for(0.01)
    raise AssertionError("the real-time task does not run")


def move_balloon():
    """The command that moves the balloon's channel to the other of two CPUs."""
    return f"for c in /sys/bus/vmbus/devices/{BALLOON}/channels/*/cpu; do echo $((1 - $(cat $c))) >$c; done"


def answered_requests(host):
    """The number of balloon requests that the driver has answered to the end."""
    return sum(not each.data[12] & 1 for each in host.balloon.answers(MessageType.BALLOON_RESPONSE))


def devices(vm):
    """The number of VMBus devices that the guest has."""
    return int(vm.guest.sh("ls /sys/bus/vmbus/devices | wc -l"))


def committed(vm, host):
    """Pages that the guest's next status report calls committed."""
    report_at_once(vm)
    since = len(host.balloon.answers(MessageType.STATUS_REPORT))
    return StatusReport.parse(host.balloon.wait_for(MessageType.STATUS_REPORT, 10, since=since).data).committed_pages


def report_at_once(vm):
    """Let hv_balloon send status reports now: at first it waits 45 s."""
    vm.guest.write("/sys/module/hv_balloon/parameters/pressure_report_delay", "0")


def free_memory(vm, mib):
    """Let the guest use memory and free it, so that free page reporting has something to report."""
    vm.guest.sh(f"dd if=/dev/zero of=/tmp/fill bs=1M count={mib} 2>/dev/null; rm /tmp/fill")


def use_memory(vm, mib=250):
    """Let the guest fill memory and free it again; it may not survive that."""
    status = []
    fill = f"dd if=/dev/zero of=/tmp/fill bs=1M count={mib} 2>/dev/null; rm /tmp/fill"
    vm.machine.agent.execute(fill, lambda stream, data: None, status.append, seconds=8)
    limit = vm.loop.clock() + 8
    while not status and not vm.ended and vm.loop.clock() < limit:
        vm.run_for(0.1)
