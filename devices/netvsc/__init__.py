"""netvsc: the synthetic network card. The chapter after `devices.balloon` and `pyvmm.net`.

    guest                                         host
    hv_netvsc --frame in guest memory, RNDIS---->  sender    views of it, no copy    --> link (passt, tap)
              <-completion------------------------           when the link has it
              <-batch of frames in its buffer----  receiver  one copy, many frames   <-- link
              --completion----------------------->           the slot is free again

* `nvsp`      the channel's messages: versions, buffers, where an RNDIS message lies
* `rndis`     RNDIS messages: control requests, frames, what the guest leaves to the card
* `offload`   checksums, large sends and tags, finished as far as the link needs it
* `rss`       which channel a frame goes to
* `card`      the state that control messages read and set, without I/O
* `buffers`   the send and receive buffers that the guest lends
* `sender`, `receiver`   the two ways of a frame
* `device`    joins them to the channels
* `events`    trace events
"""

from pyvmm.devices.netvsc.card import Card, Counters
from pyvmm.devices.netvsc.device import Netvsc

__all__ = ["Card", "Counters", "Netvsc"]
