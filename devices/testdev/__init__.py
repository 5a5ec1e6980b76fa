"""Devices for test programs such as kvm-unit-tests, only in a machine with `--test-devices`.

Source: QEMU hw/misc/debugexit.c, hw/misc/pc-testdev.c, hw/hyperv/hyperv_testdev.c, hw/nvram/fw_cfg.c;
kvm-unit-tests lib/x86/fwcfg.c for what it reads of the last.

* `exit_port`  ends the machine with a status of the guest's choice
* `pc`         interrupt lines, memory and ports to play with, and a page that disappears for a moment
* `fw_cfg`     how many CPUs and how much RAM there is
* `hyperv`     SINTs to raise, and connections for HvPostMessage and HvSignalEvent that lead back to the guest
"""
