"""Trace events of the monitor, with QEMU's names (monitor/trace-events)."""

from __future__ import annotations

from pyvmm.trace import event

connected = event("control.connected", "client {client} on {path}")
disconnected = event("control.disconnected", "client {client}: {reason}")
command = event("handle_qmp_command", "mon {client} req: {request}")
respond = event("monitor_qmp_respond", "mon {client} resp: {response}")
emitted = event("monitor_protocol_event_emit", "event={name} data={data}")
queued = event("monitor_protocol_event_queue", "event={name} data={data} rate={rate}")
