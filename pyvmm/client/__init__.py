"""Access to a running machine from another process.

`qmp` is a synchronous client of QEMU's monitor protocol: the command line and the API use it with pyvmm's machines,
the emulated host with QEMU. `registry` finds running machines by name, and registers the names of new ones.
"""
