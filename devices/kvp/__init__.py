"""KVP, "Data Exchange": keys and values between host and guest; the guest's name, system and addresses.

The guest's end is a program, hv_kvp_daemon (Debian: hyperv-daemons); while it does not run, hv_utils answers nothing.

* `protocol`  the bytes of requests and answers
* `device`    one request at a time: what the host has to set, then what the guest has to say, each ten seconds
"""

from pyvmm.devices.kvp.device import Kvp

__all__ = ["Kvp"]
