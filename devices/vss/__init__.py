"""VSS, "Backup (volume checkpoint)": the guest's file systems are frozen for a copy of its disks, and thawed.

The guest's end is a program, hv_vss_daemon (Debian: hyperv-daemons).

* `protocol`  the bytes
* `device`    freeze and thaw, with a thaw on every way out
"""

from pyvmm.devices.vss.device import Vss

__all__ = ["Vss"]
