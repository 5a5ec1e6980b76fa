"""Trace events of the synthetic SCSI controller."""

from __future__ import annotations

from pyvmm.trace import event
from pyvmm.trace.views import DeviceView, Pair, device_view

handshake = event("storvsc.handshake", "channel {channel}: operation {operation} value {value:#x}")
ready = event("storvsc.ready", "version {version:#x}, {sub_channels} sub-channels")
command = event("storvsc.command", "request {request:#x} lun {lun} opcode {opcode:#x}: {length} bytes")
done = event("storvsc.done", "request {request:#x} lun {lun} opcode {opcode:#x}: moved {moved}")
failed = event("storvsc.failed", "request {request:#x} lun {lun} opcode {opcode:#x}: sense {sense}")
unanswered = event("storvsc.unanswered", "request {request:#x}: {reason}")
no_lun = event("storvsc.no_lun", "request {request:#x} path {path} target {target} lun {lun} opcode {opcode:#x}")
io_error = event("storvsc.io_error", "disk {id}: {text}, {action}")
plugged = event("storvsc.plugged", "disk {id} lun {lun}")
leaving = event("storvsc.leaving", "disk {id} lun {lun}")
gone = event("storvsc.gone", "disk {id} lun {lun}")

VIEW = device_view(
    DeviceView(
        packages=("storvsc",),
        track="storvsc",
        pairs=(Pair("SCSI command to answer", "storvsc.command", "storvsc.done", ("request",)),),
    )
)
