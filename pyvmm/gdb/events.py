"""Trace events of the debugger's connection."""

from pyvmm.trace import event

connected = event("gdb.connected", "a debugger")
refused = event("gdb.refused", "a second debugger")
disconnected = event("gdb.disconnected", "{reason}")
received = event("gdb.received", "{body}")
sent = event("gdb.sent", "{body}")
stopped = event("gdb.stopped", "vcpu {vcpu}: signal {signal} {reason} {address:#x}")
resumed = event("gdb.resumed", "{actions}")
breakpoint = event("gdb.breakpoint", "{what} at {address:#x}: {how}")
