"""Trace events of network cards."""

from __future__ import annotations

from pyvmm.trace import event
from pyvmm.trace.views import DeviceView, Pair, device_view

negotiated = event("netvsc.negotiated", "card {number}: NVSP {major}.{minor}")
refused_version = event("netvsc.refused_version", "card {number}: NVSP {version:#x}")
configured = event("netvsc.configured", "card {number}: MTU {mtu}, capabilities {capabilities:#x}")
buffer_lent = event("netvsc.buffer_lent", "card {number}: {which} buffer, {size} bytes in sections of {section}")
buffer_revoked = event("netvsc.buffer_revoked", "card {number}: {which} buffer")
control_received = event("netvsc.control_received", "card {number}: {kind} {oid:#x}, request {request}")
control_answered = event("netvsc.control_answered", "card {number}: {kind}, request {request}, {size} bytes")
frames_sent = event("netvsc.frames_sent", "card {number}: {frames} frames, {size} bytes to the link")
frames_received = event("netvsc.frames_received", "card {number} channel {channel}: {frames} frames, {size} bytes")
frames_dropped = event("netvsc.frames_dropped", "card {number}: {frames} frames {way}: {reason}")
refused = event("netvsc.refused", "card {number}: {error}")
held = event("netvsc.held", "card {number}: the guest has all of the receive buffer, the link waits")
sub_channels = event("netvsc.sub_channels", "card {number}: {count} offered")
link_changed = event("netvsc.link_changed", "card {number}: {state}")
link_ended = event("netvsc.link_ended", "card {number}: {reason}")

VIEW = device_view(
    DeviceView(
        packages=("netvsc",),
        track="netvsc",
        pairs=(
            Pair(
                "RNDIS request to answer",
                "netvsc.control_received",
                "netvsc.control_answered",
                ("number", "request"),
            ),
        ),
    )
)
