"""Trace events of the integration components."""

from __future__ import annotations

from pyvmm.trace import event
from pyvmm.trace.views import DeviceView, Pair, device_view

negotiated = event("ic.negotiated", "{name} framework {framework} version {version}")
requested = event("ic.requested", "{name} type {type} transaction {transaction} size {size}")
replied = event("ic.replied", "{name} type {type} transaction {transaction} status {status:#x} size {size}")
not_sent = event("ic.not_sent", "{name} type {type}: {reason}")
heartbeat_lost = event("ic.heartbeat_lost", "{seconds} s without an answer")
heartbeat_back = event("ic.heartbeat_back", "beat {sequence}")
shutdown_answered = event("ic.shutdown_answered", "{kind} status {status:#x}")
time_sent = event("ic.time_sent", "time {time_100ns} flags {flags}")

VIEW = device_view(
    DeviceView(
        packages=("ic",),
        pairs=(Pair("service request to reply", "ic.requested", "ic.replied", ("name", "transaction")),),
    )
)
