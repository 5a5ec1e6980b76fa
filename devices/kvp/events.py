"""Trace events of KVP."""

from __future__ import annotations

from pyvmm.trace import event
from pyvmm.trace.views import DeviceView, device_view

asked = event("kvp.asked", "{operation} pool {pool} {what}")
answered = event("kvp.answered", "{operation} pool {pool} {what} status {status:#x}")
read = event("kvp.read", "pool {pool}: {entries} entries")

VIEW = device_view(DeviceView(packages=("kvp",), track="kvp"))
