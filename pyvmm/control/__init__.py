"""Talking to a machine that runs: QEMU's monitor protocol (QMP) on a Unix socket, and the human monitor (HMP).

`protocol` is one conversation without I/O, `commands` what may be asked and how it reaches the machine, `hmp` the
same for people, `door` a socket on the loop, `server` the clients that came in. `pyvmm.client` is the other end.
The names, arguments, errors and events are QEMU's, so that qemu.qmp, qmp-shell and scripts work unchanged; what QEMU
does not have starts with `x-`.
"""
