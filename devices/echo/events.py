"""Trace events of the echo device."""

from __future__ import annotations

from pyvmm.trace import event
from pyvmm.trace.views import DeviceView, device_view

commanded = event("echo.commanded", "device {number} channel {channel}: {command} count {count} size {size}")
sunk = event("echo.sunk", "device {number} channel {channel}: {packets} packets, {size} bytes")
poured = event("echo.poured", "device {number} channel {channel}: {packets} packets")
inverted = event("echo.inverted", "device {number} channel {channel}: {size} bytes in {views} pieces")

VIEW = device_view(DeviceView(packages=("echo",), track="echo"))
