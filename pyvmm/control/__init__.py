"""The monitor of a running machine: QEMU's monitor protocol (QMP) on a Unix socket, and the human monitor (HMP).

`protocol` is one QMP session without I/O, `commands` holds the commands and how they reach the machine, `hmp` the
human monitor's, `door` is a listening socket on the loop, `server` its clients. `pyvmm.client` is the client's side.
The names, arguments, errors and events are QEMU's, so that qemu.qmp, qmp-shell and scripts work unchanged; what QEMU
does not have starts with `x-`.
"""
