"""Integration components: the small services between a Hyper-V host and its guest. The first devices to read.

Each has a channel of its own, and all use the same frame for the host's requests and the guest's answers:

    pipe header (8)  |  IC header (20)                              |  body
    1, size          |  framework, type, version, size, status, ... |  the service's own structure

* `protocol`  the bytes
* `link`      frame, versions and answers, the same for all of them
* `device`    base class: opens and closes the link, hands out what comes
* `heartbeat` a number every two seconds, to detect a dead guest
* `shutdown`  requests an orderly power-off or restart
* `timesync`  sends the guest the host's time

In Linux all three are served by the module hv_utils.
"""

from pyvmm.devices.ic.heartbeat import Heartbeat
from pyvmm.devices.ic.shutdown import Shutdown, ShutdownKind
from pyvmm.devices.ic.timesync import TimeSync

__all__ = ["Heartbeat", "Shutdown", "ShutdownKind", "TimeSync"]
