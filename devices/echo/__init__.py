"""Echo: a device without hardware, driven raw from a guest's user space by uio_hv_generic. For tests and figures.

It sends each packet back, counts packets, sends packets, offers sub-channels, and reaches memory that the guest
shares by GPADLs and GPA_DIRECT packets: all that a channel can do, with the program in the guest as its driver.

* `protocol`  the commands that a packet may hold
* `device`    what they do
"""

from pyvmm.devices.echo.device import Echo

__all__ = ["Echo"]
