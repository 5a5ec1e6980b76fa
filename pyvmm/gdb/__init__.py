"""GDB's remote serial protocol, for a debugger of the guest's kernel.

    gdb  <--bytes-->  connection (a socket on the loop)
                          | packets: framing, checksums, acknowledgements
                      session: one packet in, one reply out; knows which vCPU is selected and whether the guest runs
                          | target.Target, implemented by pyvmm.machine.debugger
                      vCPU threads, registers, page_tables, breakpoints

A vCPU is a thread, numbered from 1. All vCPUs stop together (all-stop mode). Nothing here runs in a machine without
a debugger: the modules are imported when the first one connects.

Source: the GDB manual, appendix "GDB Remote Serial Protocol"; QEMU's gdbstub for the names of system registers.
"""
