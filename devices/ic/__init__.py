"""Integration components: the small services between a Hyper-V host and its guest. The first devices to read.

Each is a channel of its own and all speak in one frame, where the host asks and the guest answers:

    pipe header (8)  |  IC header (20)                              |  body
    1, size          |  framework, type, version, size, status, ... |  the service's own structure

* `protocol`  the bytes
* `link`      frame, versions and answers, the same for all of them
* `heartbeat` a number every two seconds: is the guest alive?
* `shutdown`  asks the guest to power off or restart in good order
* `timesync`  tells the guest the host's time

In Linux all three are served by the module hv_utils.
"""

from pyvmm.devices.ic.heartbeat import Heartbeat
from pyvmm.devices.ic.shutdown import Shutdown, ShutdownKind
from pyvmm.devices.ic.timesync import TimeSync

__all__ = ["Heartbeat", "Shutdown", "ShutdownKind", "TimeSync"]
