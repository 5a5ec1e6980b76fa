"""The host side of a guest, raw: everything that a host can say, right or wrong.

    host = vm.host
    host.balloon.send_unballoon([(1 << 30, 1)])        # a page that the guest has not got
    with host.vmbus.withhold(MessageType.GPADL_TORNDOWN):
        vm.guest.sh("...unbind")
    host.synic.post(0x80000010)                        # a timer message, though no timer was offered

Whatever goes over the wire is allowed: lengths, counts, types, ids and indices are sent as given. Arguments that no
bytes express (a negative size, a device that is not there) are errors of the test: ValueError.

* `balloon`  messages of dynamic memory, and the guest's answers
* `vmbus`    messages of the bus: offers, rescinds, answers; answers withheld or changed
* `synic`    message slots, event flags, interrupts
* `ring`     the two rings of a channel: packets, indices, masks
* `ic`       heartbeat, shutdown, time synchronisation
* `memory`   memory slots, discards, bytes of the guest

Units: pages and page frames of 4 KiB, bytes elsewhere; a range is (first frame, pages).
"""

from pyvmm.testbed.host.host import Host, Parts

__all__ = ["Host", "Parts"]
