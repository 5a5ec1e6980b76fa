"""hv-balloon: how a guest's memory shrinks and grows while it runs. The chapter after `devices.ic`.

Hyper-V calls it Dynamic Memory. The host asks the guest's driver for pages; the driver allocates them, so that
nothing else in the guest uses them, and reports their addresses; the host returns the memory behind them to its own
kernel. Later it gives their addresses back to the driver, which frees them.

                guest                                      host
    hv_balloon: alloc_pages      <-- BALLOON_REQUEST n --    target below the guest's size
                                 --- BALLOON_RESPONSE --->   madvise(DONTNEED) on the merged ranges; in the ledger
                                      (ranges, more)
                __free_page      <-- UNBALLOON_REQUEST --    target above; ranges leave the ledger
                                      (ranges, more)
                                 --- UNBALLOON_RESPONSE ->
    add_memory, online           <-- HOT_ADD_REQUEST ----    target above size and pages out: made RAM just before
                                      (range, region)
                                 --- HOT_ADD_RESPONSE --->
                                      (pages, result)

The device's states (`state_machine.py` has the picture with every arrow):

    Closed -> AwaitVersion -> AwaitCaps -> Idle -> BalloonPosting -> BalloonWaiting -> Idle
                                                        ^---- BalloonPausing <--+  (less than requested)
                                                -> UnballoonPosting -> UnballoonWaiting -> Idle
                                                -> HotAddPosting -> HotAddWaiting -> Idle
                                                        ^---- HotAddPausing <---+  (not now)

Read in this order:

* `protocol`  the bytes
* `ranges`    sets of pages, quick at any fragmentation
* `hot_add`   the hot-add range: memory that was granted, unconfirmed memory, the next grant
* `discards`  returning pages to the host, a slice each turn of the loop
* `ledger`    the owner of each page; the only place that discards
* `growth`    hot-add with one driver: its requests and the meaning of its answers
* `driver`    the bound driver: what was negotiated, its last report
* `plan`      the forecast of a resize: the guest keeps a floor
* `retry`     the retry schedule for a guest that stopped short
* `tuning`    limits and timeouts
* `states`, `state_machine`  the protocol as a state machine, with pieces and time limits, without I/O
* `device`    joins them to a channel and to the monitor
* `events`    trace events

Lifetimes: a driver that is unbound keeps its pages allocated, and they stay in the ledger. A machine reset gives the
guest its boot size and empties the ledger; the last target is applied again once the new driver has negotiated. A
kernel started by kexec believes it has all boot RAM: `BalloonDevice.bus_connected()`. Hot-added memory is the guest's
until the reset, whatever driver comes and goes.

Known limit: pages named in answers that were still in the ring when the channel closed are lost to both sides until
the guest reboots; the guest does not repeat them.
"""

from pyvmm.devices.balloon.device import BalloonDevice
from pyvmm.devices.balloon.plan import ResizeOutcome, ResizePlan
from pyvmm.devices.balloon.tuning import Tuning

__all__ = ["BalloonDevice", "ResizeOutcome", "ResizePlan", "Tuning"]
