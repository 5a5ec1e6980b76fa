"""File copy, "Guest services": files of the host are written into the guest, as root and to any path.

The guest's end is a program of Debian's package hyperv-daemons: hv_fcopy_daemon up to Linux 6.9, behind a driver in
hv_utils; hv_fcopy_uio_daemon from 6.10 on, over uio_hv_generic. Offered only if it is asked for, as in Hyper-V.
"""

from pyvmm.devices.fcopy.device import FileCopy

__all__ = ["FileCopy"]
