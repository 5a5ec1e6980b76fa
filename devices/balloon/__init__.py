"""hv-balloon: how a guest's memory shrinks and grows while it runs. The chapter after `devices.ic`.

Hyper-V calls it Dynamic Memory. The host asks the guest's driver for pages; the driver allocates them, so that nobody
else in the guest uses them, and names them; the host gives the memory behind them back to its own kernel. Later it
names them to the driver as the guest's again, and the driver frees them.

                guest                                      host
    hv_balloon: alloc_pages      <-- BALLOON_REQUEST n --    target below what the guest has
                                 --- BALLOON_RESPONSE --->   madvise(DONTNEED) on the merged ranges; on the books
                                      (ranges, more)
                __free_page      <-- UNBALLOON_REQUEST --    target above; ranges off the books
                                      (ranges, more)
                                 --- UNBALLOON_RESPONSE ->
    add_memory, online           <-- HOT_ADD_REQUEST ----    target above what it has and had: made RAM just before
                                      (range, region)
                                 --- HOT_ADD_RESPONSE --->
                                      (pages, result)

The device's states (`machine.py` has the picture with every arrow):

    Closed -> AwaitVersion -> AwaitCaps -> Idle -> BalloonPosting -> BalloonWaiting -> Idle
                                                        ^---- BalloonPausing <--+  (less than asked)
                                                -> UnballoonPosting -> UnballoonWaiting -> Idle
                                                -> HotAddPosting -> HotAddWaiting -> Idle
                                                        ^---- HotAddPausing <---+  (not now)

Read in this order:

* `protocol`  the bytes
* `ranges`    sets of pages, quick at any fragmentation
* `hot_add`   memory beyond the boot size: what was given, what is in doubt, what comes next
* `discards`  giving pages back to the host, a slice each turn of the loop
* `ledger`    whose each page is; the one place that discards
* `growth`    hot-add with one driver: what its answers mean
* `driver`    the driver that is bound: what was negotiated, its last report
* `plan`      what a target will come to: the guest keeps a floor
* `retry`     a guest that stopped short is asked again
* `tuning`    what may be turned
* `states`, `machine`  the protocol as states, pieces and time limits, without I/O
* `device`    joined to a channel and to the monitor
* `events`    its trace

Who may be gone when: a driver that is unbound keeps its pages away from the guest, and they stay on the books. A
machine reset gives the guest its boot size and empties the books; the last target is applied again once the new
driver has negotiated. A kernel started by kexec believes it has all boot RAM: `BalloonDevice.restarted()`. Hot-added
memory is the guest's until the reset, whatever driver comes and goes.

Known limit: pages named in answers that were still in the ring when the channel closed are lost to both sides until
the guest reboots; the guest does not repeat them.
"""

from pyvmm.devices.balloon.device import BalloonDevice
from pyvmm.devices.balloon.plan import ResizeOutcome, ResizePlan
from pyvmm.devices.balloon.tuning import Tuning

__all__ = ["BalloonDevice", "ResizeOutcome", "ResizePlan", "Tuning"]
