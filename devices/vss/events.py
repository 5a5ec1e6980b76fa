"""Trace events of VSS."""

from __future__ import annotations

from pyvmm.trace import event
from pyvmm.trace.views import DeviceView, device_view

asked = event("vss.asked", "{operation}")
answered = event("vss.answered", "{operation} status {status:#x}")
state = event("vss.state", "{old} -> {new}")
thawed_late = event("vss.thawed_late", "frozen for {seconds} s, which is the limit")

VIEW = device_view(DeviceView(packages=("vss",), track="vss", states={"vss.state": "new"}))
