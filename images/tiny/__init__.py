"""A guest without Linux: Hyper-V in two hundred lines, which every /dev/kvm runs. `pyvmm step` steps through it.

It does what Linux's hv_vmbus and hv_balloon do at the least: it gives Hyper-V pages for hypercalls and messages,
contacts the VMBus, finds the balloon among the offers, lends it two rings, opens the channel, negotiates, lets the
host take memory and takes it back, closes everything and powers off.

    `program`  its instructions, told step by step
    `data`     its memory: pages, messages and packets, built from the same declarations that the host parses
    `kernel`   `write_kernel(path)`: both as an ELF kernel

Reading order: after pyvmm.vmbus and pyvmm.devices.balloon, for which it is the other side.
"""
