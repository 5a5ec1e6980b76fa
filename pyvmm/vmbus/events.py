"""Trace events of the VMBus. `vmbus_*` are QEMU's, with its names, arguments and formats; `vmbus.*` are ours.

Source: QEMU hw/hyperv/trace-events (10.0).
"""

from __future__ import annotations

from pyvmm.trace import event

# QEMU's
recv_message = event("vmbus_recv_message", "type {type} size {size}")
signal_event = event("vmbus_signal_event")
channel_notify_guest = event("vmbus_channel_notify_guest", "channel #{chan_id}")
post_msg = event("vmbus_post_msg", "type {type} size {size}")
msg_cb = event("vmbus_msg_cb", "message status {status}")
process_incoming_message = event("vmbus_process_incoming_message", "type {message_type}")
initiate_contact = event(
    "vmbus_initiate_contact",
    "version {major}.{minor} target vp {vcpu} mon pages 0x{monitor_page1:x},0x{monitor_page2:x} "
    "int page 0x{interrupt_page:x}",
)
send_offer = event("vmbus_send_offer", "channel #{chan_id} dev {dev:#x}")
terminate_offers = event("vmbus_terminate_offers")
gpadl_header = event("vmbus_gpadl_header", "gpadl #{gpadl_id} gfns {num_gfns}")
gpadl_body = event("vmbus_gpadl_body", "gpadl #{gpadl_id}")
gpadl_created = event("vmbus_gpadl_created", "gpadl #{gpadl_id}")
gpadl_teardown = event("vmbus_gpadl_teardown", "gpadl #{gpadl_id}")
gpadl_torndown = event("vmbus_gpadl_torndown", "gpadl #{gpadl_id}")
open_channel = event("vmbus_open_channel", "channel #{chan_id} gpadl #{gpadl_id} target vp {target_vp}")
channel_open = event("vmbus_channel_open", "channel #{chan_id} status {status}")
close_channel = event("vmbus_close_channel", "channel #{chan_id}")

# Ours: what QEMU does not trace
connection_state = event("vmbus.connection_state", "{old} -> {new}")
channel_state = event("vmbus.channel_state", "channel #{chan_id} {name}: {old} -> {new}")
version_response = event(
    "vmbus.version_response", "version {major}.{minor} supported {supported} message connection {connection_id:#x}"
)
gpadl_refused = event("vmbus.gpadl_refused", "gpadl #{gpadl_id}: {reason}")
gpadl_teardown_delayed = event("vmbus.gpadl_teardown_delayed", "gpadl #{gpadl_id} in use by channel #{chan_id}")
open_refused = event("vmbus.open_refused", "channel #{chan_id}: {reason}")
modify_channel = event("vmbus.modify_channel", "channel #{chan_id} target vp {target_vp} status {status}")
rescind = event("vmbus.rescind", "channel #{chan_id} {name}")
relid_released = event("vmbus.relid_released", "channel #{chan_id}")
unload = event("vmbus.unload", "{open_channels} channels open, {gpadls} gpadls")
reset = event("vmbus.reset", "{reason}")
hypercall_refused = event("vmbus.hypercall_refused", "connection {connection_id:#x} status {status:#x}: {reason}")
message_refused = event("vmbus.message_refused", "type {type}: {reason}")
_PACKET = "channel #{chan_id} type {type} flags {flags:#x} transaction {transaction_id:#x} size {size}"
packet_received = event("vmbus.packet_received", _PACKET)
packet_sent = event("vmbus.packet_sent", _PACKET)
packet_refused = event("vmbus.packet_refused", "channel #{chan_id} {kind}: {reason}")
packet_dropped = event("vmbus.packet_dropped", "channel #{chan_id} type {type} size {size}: {reason}")
event_lost = event("vmbus.event_lost", "channel #{chan_id} target vp {target_vp}: SynIC off")
channel_signalled = event("vmbus.channel_signalled", "channel #{chan_id}")
ring_broken = event("vmbus.ring_broken", "channel #{chan_id}: {reason}")
