"""Trace events of Hyper-V sockets."""

from __future__ import annotations

from pyvmm.trace import event
from pyvmm.trace.views import DeviceView, device_view

requested = event("hvsock.requested", "guest port {guest_port} wants host port {host_port}")
refused = event("hvsock.refused", "guest port {guest_port} host port {host_port}: {reason}")
offered = event("hvsock.offered", "guest port {guest_port} host port {host_port}")
opened = event("hvsock.opened", "guest port {guest_port} host port {host_port}")
finished = event("hvsock.finished", "guest port {guest_port} host port {host_port}: {side} sends no more")
ended = event(
    "hvsock.ended", "guest port {guest_port} host port {host_port}: {reason}; {received} bytes in, {sent} bytes out"
)

VIEW = device_view(DeviceView(packages=("hvsock",), track="hvsock"))
