"""Trace events of fault rules."""

from __future__ import annotations

from pyvmm.trace import event

added = event("fault.added", "#{number} {rule}")
removed = event("fault.removed", "#{number} after {hits} hits")
hit = event("fault.hit", "#{number} {point} {action}: {fields} {data}")
state_changed = event("fault.state", "{old} -> {new}")
delivered_late = event("fault.delivered_late", "#{number} {point}")
failed = event("fault.failed", "#{number} {point}: {reason}")
"""Event of an action without effect: the layer refused what came out of it, or a test's function raised."""
