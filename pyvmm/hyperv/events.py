"""Trace events of the Hyper-V engines."""

from pyvmm.trace import event

msr_read = event("hyperv.msr_read", "vp {vp} {msr:#x} -> {value:#x}")
msr_write = event("hyperv.msr_write", "vp {vp} {msr:#x} <- {value:#x}")
msr_refused = event("hyperv.msr_refused", "vp {vp} {kind} {msr:#x}: {reason}")
hypercall = event("hyperv.hypercall", "vp {vp} code {code:#x} control {control:#x} -> {status:#x}")
message_delivered = event("hyperv.message_delivered", "vp {vp} sint {sint} type {type} size {size}")
message_busy = event("hyperv.message_busy", "vp {vp} sint {sint}: slot busy, {queued} queued")
message_dropped = event("hyperv.message_dropped", "vp {vp} sint {sint}: {reason}")
timer_expired = event(
    "hyperv.timer_expired", "vp {vp} timer {timer} due {expires}, {late} later, delivered={delivered}"
)
event_flag = event("hyperv.event_flag", "vp {vp} sint {sint} flag {flag}, was_set={was_set}")
event_lost = event("hyperv.event_lost", "vp {vp} sint {sint} flag {flag}: SynIC off")
interrupt_lost = event("hyperv.interrupt_lost", "vp {vp} vector {vector:#x}: {reason}")
auto_eoi = event("hyperv.auto_eoi", "vp {vp} vector {vector:#x}")
eom = event("hyperv.eom", "vp {vp}")
synic_page = event("hyperv.synic_page", "vp {vp} {page} <- {value:#x}")
crash = event("hyperv.crash", "P0 {p0:#x} P1 {p1:#x} P2 {p2:#x} P3 {p3:#x} P4 {p4:#x}, {text_bytes} bytes of text")
cold_discard = event(
    "hyperv.cold_discard", "{entries} entries as {ranges} ranges, {size} bytes discarded, {done} reps -> {status:#x}"
)
cold_discard_failed = event("hyperv.cold_discard_failed", "{size} bytes at {gpa:#x}: {reason}")
hypercall_page = event("hyperv.hypercall_page", "vp {vp} {gpa:#x}: extended calls leave by port {port:#x}")
